// ELF kernels with a PVH note (Linux vmlinux, Xen, BSD kernels, small test kernels).
// Specification: Xen, docs/misc/pvh.pandoc and the public header arch-x86/hvm/start_info.h.

#include "boot/boot_state.h"
#include "boot/loader.h"

namespace nacre::boot {

namespace {

constexpr uint32_t kStartInfoMagic = 0x336ec578;

struct StartInfo {
  uint32_t magic = kStartInfoMagic, version = 1, flags = 0, module_count = 0;
  uint64_t modules = 0, command_line = 0, rsdp = 0, memory_map = 0;
  uint32_t memory_map_count = 0, reserved = 0;
};
static_assert(sizeof(StartInfo) == 56);

struct ModuleEntry {
  uint64_t address = 0, size_bytes = 0, text = 0, reserved = 0;
};
struct MapEntry {
  uint64_t address = 0, size_bytes = 0;
  uint32_t type = 0, reserved = 0;
};
constexpr uint64_t kMaxModules = 64, kMaxMapEntries = 128;
constexpr GuestPhys kMapAddress = kStartInfoAddress + 0x100;
static_assert(0x100 + kMaxMapEntries * sizeof(MapEntry) <= kSetupDataAddress.value - kStartInfoAddress.value);
constexpr uint64_t kStringsOffset = kMaxModules * sizeof(ModuleEntry);

}  // namespace

Result<LoadedKernel> LoadPvh(memory::GuestMemory& memory, const BootRequest& request, const KernelFile&,
                             const ElfImage& elf, GuestPhys entry) {
  const GuestPhys end = NACRE_TRY(elf.Load(memory));
  if (!memory.IsRam(entry, 1) || entry.value >= 4 * kGiB)
    return Fail("the PVH entry {:#x} is not in memory", entry.value);
  if (request.initrds.size() > kMaxModules) return Fail("more than {} modules", kMaxModules);
  if (request.memory_map.size() > kMaxMapEntries) return Fail("a memory map of {} entries", request.memory_map.size());
  NACRE_TRY_STATUS(WriteCommandLine(memory, request.command_line, kCommandLineMax - 1));
  const auto modules = NACRE_TRY(LoadModules(memory, request, end, kModuleTableAddress + kStringsOffset,
                                             kModuleTableBytes - kStringsOffset, false));
  bool written = true;
  GuestPhys at = kModuleTableAddress;
  for (const LoadedModule& module : modules) {
    written &= memory.WriteValue(at, ModuleEntry{module.address.value, module.size_bytes, module.text.value, 0});
    at = at + sizeof(ModuleEntry);
  }
  at = kMapAddress;
  for (const MemoryMapEntry& range : request.memory_map) {
    written &=
        memory.WriteValue(at, MapEntry{range.start.value, range.size_bytes, static_cast<uint32_t>(range.type), 0});
    at = at + sizeof(MapEntry);
  }
  StartInfo info;
  info.module_count = static_cast<uint32_t>(modules.size());
  info.modules = modules.empty() ? 0 : kModuleTableAddress.value;
  info.command_line = kCommandLineAddress.value;
  info.rsdp = request.rsdp.value;
  info.memory_map = kMapAddress.value;
  info.memory_map_count = static_cast<uint32_t>(request.memory_map.size());
  written &= memory.WriteValue(kStartInfoAddress, info);
  if (!written) return Fail("the guest has no memory for the start info");

  LoadedKernel loaded;
  loaded.state = NACRE_TRY(ProtectedModeState(memory, entry));
  loaded.state.gpr[x86::kRbx] = kStartInfoAddress.value;
  loaded.protocol = "PVH";
  return loaded;
}

}  // namespace nacre::boot
