#pragma once
// Direct boot: puts a kernel, its initrd or modules and its command line into guest memory and says in which CPU state
// it starts. The kind of kernel is found by looking: Linux bzImage (64-bit entry, or 32-bit for i386 kernels),
// multiboot 1, ELF with a PVH note, Linux vmlinux without. Called by the machine before any vCPU runs, and again at a
// reset. One thread.
//
// Every file is hostile: each offset and size taken from one is checked against the file and the guest's memory.
// Failures name the file and the cause.

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "boot/boot_layout.h"
#include "boot/elf_image.h"
#include "memory/guest_memory.h"
#include "x86/cpu_state.h"

namespace nacre::boot {

/// A linear frame buffer that shows a picture already: 32 bits per pixel, 0x00RRGGBB.
struct LinearScreen {
  GuestPhys address;
  uint32_t size_bytes = 0;
  uint16_t width = 0, height = 0;  ///< pixels; rows without gaps
};

struct BootRequest {
  std::string kernel;
  /// Linux gets them joined into one initrd. For PVH and multiboot each is a module; what follows the first space of an
  /// entry is the module's string (unless a file of the whole name exists).
  std::vector<std::string> initrds;
  std::string command_line;
  std::vector<MemoryMapEntry> memory_map;
  GuestPhys rsdp;  ///< 0: no ACPI tables
  std::array<uint8_t, 32> random_seed{};
  std::optional<LinearScreen> screen;  ///< for Linux
};

struct LoadedKernel {
  x86::CpuState state;
  std::string protocol;  ///< "Linux 64-bit", "PVH", ... for messages
};

Result<LoadedKernel> LoadKernel(memory::GuestMemory& memory, const BootRequest& request);

// What LoadKernel is made of. `file` is the kernel file's content.
using KernelFile = std::vector<uint8_t>;
bool IsBzImage(const KernelFile& file);
Result<LoadedKernel> LoadBzImage(memory::GuestMemory& memory, const BootRequest& request, const KernelFile& file);
/// A Linux vmlinux entered by the 64-bit protocol with a zero page made from nothing.
Result<LoadedKernel> LoadVmlinux(memory::GuestMemory& memory, const BootRequest& request, const KernelFile& file,
                                 const ElfImage& elf);
bool IsMultiboot(const KernelFile& file);
Result<LoadedKernel> LoadMultiboot(memory::GuestMemory& memory, const BootRequest& request, const KernelFile& file);
Result<LoadedKernel> LoadPvh(memory::GuestMemory& memory, const BootRequest& request, const KernelFile& file,
                             const ElfImage& elf, GuestPhys entry);

/// Shared steps of the loaders.
struct LoadedModule {
  GuestPhys address;
  uint64_t size_bytes = 0;
  GuestPhys text;  ///< zero-terminated string
};
/// Writes the command line with its final zero at kCommandLineAddress. `max_bytes` without the zero.
Status WriteCommandLine(memory::GuestMemory& memory, const std::string& text, uint64_t max_bytes);
/// Loads each initrd page-aligned, as high as possible below `limit` and above `kernel_end`, their strings at
/// `strings` (up to `string_bytes` altogether): what follows the file's name, or, `with_names`, all of the entry.
Result<std::vector<LoadedModule>> LoadModules(memory::GuestMemory& memory, const BootRequest& request,
                                              GuestPhys kernel_end, GuestPhys strings, uint64_t string_bytes,
                                              bool with_names);
/// Modules and kernels that say nothing else stay below this (as Linux's oldest limit, 896 MiB).
inline constexpr uint64_t kModuleLimit = 0x38000000;

}  // namespace nacre::boot
