#pragma once
// A Linux kernel for firmware to start: the parts of the bzImage as the configuration device gives them out, with the
// fields of the setup header that a boot loader fills in. Linux Documentation/arch/x86/boot.rst, "Real-mode kernel".
// Called by the machine before any vCPU runs. The file is hostile.

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"

namespace nacre::boot {

/// The option ROM by which a BIOS starts the kernel, as its file is called.
inline constexpr char kKernelRomFile[] = "genroms/linuxboot_dma.bin";

struct FirmwareKernelRequest {
  std::string kernel;
  std::vector<std::string> initrds;
  std::string command_line;
};

struct FirmwareKernel {
  std::vector<uint8_t> setup, kernel, initrd;
  std::vector<uint8_t> command_line;  ///< with its final zero
  uint32_t setup_address = 0, kernel_address = 0, initrd_address = 0, command_line_address = 0;
};

/// `low_memory_bytes`: RAM below 4 GiB.
Result<FirmwareKernel> LoadFirmwareKernel(const FirmwareKernelRequest& request, uint64_t low_memory_bytes);

/// A failure names the package to install.
Result<std::vector<uint8_t>> LoadKernelRom();

}  // namespace nacre::boot
