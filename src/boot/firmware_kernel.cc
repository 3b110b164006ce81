#include "boot/firmware_kernel.h"

#include <unistd.h>

#include <algorithm>

#include "base/bits.h"
#include "boot/boot_file.h"

namespace nacre::boot {

namespace {

constexpr uint64_t kMaxFile = 512 * kMiB;
constexpr uint32_t kSetupAddress = 0x10000, kCommandLineAddress = 0x20000, kKernelAddress = 0x100000;
constexpr uint64_t kCommandLineRoom = 64 * kKiB;
/// Firmware keeps tables at the top of low memory.
constexpr uint64_t kFirmwareTop = 2 * kMiB;
// Setup header.
constexpr size_t kSetupSectors = 0x1f1, kMagic = 0x202, kProtocol = 0x206, kLoaderType = 0x210, kLoadFlags = 0x211,
                 kRamdiskImage = 0x218, kRamdiskSize = 0x21c, kHeapEnd = 0x224, kCommandLinePointer = 0x228,
                 kInitrdMax = 0x22c, kHeaderEnd = 0x230;
constexpr uint8_t kUnknownLoader = 0xff, kCanUseHeap = 0x80;
constexpr const char* kKernelRoms[] = {"/usr/share/qemu/linuxboot_dma.bin", "/usr/share/seabios/linuxboot_dma.bin"};

}  // namespace

Result<FirmwareKernel> LoadFirmwareKernel(const FirmwareKernelRequest& request, uint64_t low_memory_bytes) {
  std::vector<uint8_t> file = NACRE_TRY(ReadBootFile(request.kernel, kMaxFile));
  if (file.size() < kHeaderEnd || LoadLe<uint32_t>(&file[kMagic]) != 0x53726448 ||
      LoadLe<uint16_t>(&file[kProtocol]) < 0x203)
    return Fail("kernel {}: firmware starts Linux bzImages only; leave out --firmware for other kinds", request.kernel);
  const size_t sectors = file[kSetupSectors] == 0 ? 4 : file[kSetupSectors];
  const size_t setup_bytes = (sectors + 1) * 512;
  if (setup_bytes >= file.size()) return Fail("kernel {}: the file is cut off", request.kernel);

  FirmwareKernel out;
  out.setup_address = kSetupAddress;
  out.kernel_address = kKernelAddress;
  out.command_line_address = kCommandLineAddress;
  if (request.command_line.size() >= kCommandLineRoom || request.command_line.find('\0') != std::string::npos)
    return Fail("the command line has {} bytes, at most {} are possible, none of them zero",
                request.command_line.size(), kCommandLineRoom - 1);
  out.command_line.assign(request.command_line.begin(), request.command_line.end());
  out.command_line.push_back(0);
  for (const std::string& path : request.initrds) {
    const auto part = NACRE_TRY(ReadBootFile(path, kMaxFile - out.initrd.size()));
    out.initrd.insert(out.initrd.end(), part.begin(), part.end());
  }
  if (!out.initrd.empty()) {
    const uint64_t end = std::min<uint64_t>(uint64_t{LoadLe<uint32_t>(&file[kInitrdMax])} + 1,
                                            low_memory_bytes - std::min(low_memory_bytes, kFirmwareTop));
    if (out.initrd.size() + kKernelAddress + file.size() > end)
      return Fail("the initrd's {} bytes do not fit beside the kernel in the guest's memory: give more with --memory",
                  out.initrd.size());
    out.initrd_address = static_cast<uint32_t>(AlignDown(end - out.initrd.size(), kPageSize));
  }
  file[kLoaderType] = kUnknownLoader;
  file[kLoadFlags] |= kCanUseHeap;
  StoreLe(&file[kHeapEnd], static_cast<uint16_t>(kCommandLineAddress - kSetupAddress - 0x200));
  StoreLe(&file[kCommandLinePointer], kCommandLineAddress);
  StoreLe(&file[kRamdiskImage], out.initrd_address);
  StoreLe(&file[kRamdiskSize], static_cast<uint32_t>(out.initrd.size()));
  out.setup.assign(file.begin(), file.begin() + static_cast<std::ptrdiff_t>(setup_bytes));
  out.kernel.assign(file.begin() + static_cast<std::ptrdiff_t>(setup_bytes), file.end());
  return out;
}

Result<std::vector<uint8_t>> LoadKernelRom() {
  for (const char* path : kKernelRoms)
    if (access(path, R_OK) == 0) return ReadBootFile(path, 64 * kKiB);
  return Fail(
      "--firmware bios with --kernel needs {}: install Debian's package qemu-system-data, or leave out --firmware",
      kKernelRoms[0]);
}

}  // namespace nacre::boot
