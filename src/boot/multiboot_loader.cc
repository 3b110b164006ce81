// Multiboot 1 kernels: ELF, or any file whose header gives its load addresses.
// Specification: "Multiboot Specification version 0.6.96", sections 3.1 to 3.3.

#include <algorithm>
#include <optional>

#include "boot/boot_state.h"
#include "boot/loader.h"

namespace nacre::boot {

namespace {

constexpr uint32_t kHeaderMagic = 0x1badb002, kLoaderMagic = 0x2badb002;
constexpr size_t kSearchBytes = 8192;
constexpr uint32_t kHasAddresses = 1 << 16;
constexpr uint32_t kUnknownRequired = 0xfff8;  // bits 3-15: we must understand what is set there

struct Header {
  uint32_t magic, flags, checksum, header_address, load_address, load_end, bss_end, entry;
};

constexpr uint32_t kInfoMemory = 1 << 0, kInfoCommandLine = 1 << 2, kInfoModules = 1 << 3, kInfoMap = 1 << 6,
                   kInfoLoaderName = 1 << 9;

struct Info {
  uint32_t flags = 0, memory_lower_kib = 0, memory_upper_kib = 0, boot_device = 0, command_line = 0, module_count = 0,
           modules = 0, symbols[4] = {}, map_bytes = 0, map = 0, drives_bytes = 0, drives = 0, config_table = 0,
           loader_name = 0, apm_table = 0;
};
static_assert(sizeof(Info) == 72);

struct ModuleEntry {
  uint32_t start = 0, end = 0, text = 0, reserved = 0;
};
struct __attribute__((packed)) MapEntry {
  uint32_t size = 20;  // of what follows
  uint64_t start = 0, size_bytes = 0;
  uint32_t type = 0;
};
static_assert(sizeof(MapEntry) == 24);

constexpr uint64_t kMaxModules = 128, kMaxMapEntries = 128;
constexpr GuestPhys kNameAddress = kStartInfoAddress + 0x80, kMapAddress = kStartInfoAddress + 0x100;
static_assert(0x100 + kMaxMapEntries * sizeof(MapEntry) <= kSetupDataAddress.value - kStartInfoAddress.value);
constexpr uint64_t kStringsOffset = kMaxModules * sizeof(ModuleEntry);

struct FoundHeader {
  Header header{};
  uint64_t offset = 0;
};

std::optional<FoundHeader> FindHeader(std::span<const uint8_t> file) {
  const size_t end = std::min(file.size(), kSearchBytes);
  for (size_t at = 0; at + 12 <= end; at += 4) {
    FoundHeader found;
    found.offset = at;
    std::memcpy(&found.header, file.data() + at, 12);
    if (found.header.magic != kHeaderMagic || found.header.magic + found.header.flags + found.header.checksum != 0)
      continue;
    // The address fields may be missing at the end of the file: then they read as zero and are refused below.
    std::memcpy(&found.header, file.data() + at, std::min(sizeof(Header), file.size() - at));
    return found;
  }
  return std::nullopt;
}

struct Loaded {
  GuestPhys end, entry;
};

/// The "a.out kludge" (section 3.1.3): the header says which part of the file goes where.
Result<Loaded> LoadByAddresses(memory::GuestMemory& memory, std::span<const uint8_t> file, const FoundHeader& found) {
  const Header& header = found.header;
  if (header.load_address > header.header_address || header.header_address - header.load_address > found.offset)
    return Fail("the multiboot header's load address {:#x} lies before the file's start", header.load_address);
  const uint64_t start = found.offset - (header.header_address - header.load_address);
  const uint64_t available = file.size() - start;
  uint64_t file_bytes = available;
  if (header.load_end != 0) {
    if (header.load_end < header.load_address || header.load_end - header.load_address > available)
      return Fail("the multiboot header's load end {:#x} lies outside the file", header.load_end);
    file_bytes = header.load_end - header.load_address;
  }
  uint64_t memory_bytes = file_bytes;
  if (header.bss_end != 0) {
    if (header.bss_end < header.load_address + file_bytes)
      return Fail("the multiboot header's bss end {:#x} lies before the load end", header.bss_end);
    memory_bytes = header.bss_end - header.load_address;
  }
  const GuestPhys address(header.load_address);
  NACRE_TRY_STATUS(LoadBytes(memory, address, file.subspan(start, file_bytes), memory_bytes));
  return Loaded{address + memory_bytes, GuestPhys(header.entry)};
}

Result<Loaded> LoadFile(memory::GuestMemory& memory, const KernelFile& file, const FoundHeader& found) {
  if (found.header.flags & kUnknownRequired)
    return Fail("the multiboot header requires features that Nacre does not know (flags {:#x})", found.header.flags);
  if (found.header.flags & kHasAddresses) return LoadByAddresses(memory, file, found);
  if (!ElfImage::HasMagic(file)) return Fail("a multiboot header without addresses in a file that is not ELF");
  const ElfImage elf = NACRE_TRY(ElfImage::Parse(file));
  return Loaded{NACRE_TRY(elf.Load(memory)), GuestPhys(elf.PhysicalEntry())};
}

bool WriteMemoryMap(memory::GuestMemory& memory, const BootRequest& request, Info& info) {
  bool written = true;
  GuestPhys at = kMapAddress;
  for (const MemoryMapEntry& range : request.memory_map) {
    written &=
        memory.WriteValue(at, MapEntry{20, range.start.value, range.size_bytes, static_cast<uint32_t>(range.type)});
    at = at + sizeof(MapEntry);
  }
  info.map = static_cast<uint32_t>(kMapAddress.value);
  info.map_bytes = static_cast<uint32_t>(at - kMapAddress);
  info.memory_lower_kib = static_cast<uint32_t>(kExtendedBiosData.value / kKiB);
  info.memory_upper_kib = static_cast<uint32_t>((memory.regions().front().size_bytes - kMiB) / kKiB);
  info.flags |= kInfoMap | kInfoMemory;
  return written;
}

}  // namespace

bool IsMultiboot(const KernelFile& file) { return FindHeader(file).has_value(); }

Result<LoadedKernel> LoadMultiboot(memory::GuestMemory& memory, const BootRequest& request, const KernelFile& file) {
  const auto found = FindHeader(file);
  if (!found) return Fail("no multiboot header");
  const Loaded kernel = NACRE_TRY(LoadFile(memory, file, *found));
  if (!memory.IsRam(kernel.entry, 1) || kernel.entry.value >= 4 * kGiB)
    return Fail("the entry {:#x} is not in memory", kernel.entry.value);
  if (request.initrds.size() > kMaxModules) return Fail("more than {} modules", kMaxModules);
  if (request.memory_map.size() > kMaxMapEntries) return Fail("a memory map of {} entries", request.memory_map.size());

  // The first word of the command line is the kernel's name, as GRUB and others pass it.
  NACRE_TRY_STATUS(WriteCommandLine(
      memory, request.command_line.empty() ? request.kernel : request.kernel + " " + request.command_line,
      kCommandLineMax - 1));
  Info info;
  info.flags = kInfoCommandLine | kInfoLoaderName;
  info.command_line = static_cast<uint32_t>(kCommandLineAddress.value);
  info.loader_name = static_cast<uint32_t>(kNameAddress.value);
  // As its own, a module's line begins with a name: Xen takes the first word away.
  const auto modules = NACRE_TRY(LoadModules(memory, request, kernel.end, kModuleTableAddress + kStringsOffset,
                                             kModuleTableBytes - kStringsOffset, true));
  bool written = memory.WriteValue(kNameAddress, std::array{'N', 'a', 'c', 'r', 'e', '\0'});
  GuestPhys at = kModuleTableAddress;
  for (const LoadedModule& module : modules) {
    const auto start = static_cast<uint32_t>(module.address.value);
    written &= memory.WriteValue(at, ModuleEntry{start, start + static_cast<uint32_t>(module.size_bytes),
                                                 static_cast<uint32_t>(module.text.value), 0});
    at = at + sizeof(ModuleEntry);
  }
  info.flags |= kInfoModules;
  info.module_count = static_cast<uint32_t>(modules.size());
  info.modules = static_cast<uint32_t>(kModuleTableAddress.value);
  written &= WriteMemoryMap(memory, request, info);
  written &= memory.WriteValue(kStartInfoAddress, info);
  if (!written) return Fail("the guest has no memory for the multiboot information");

  LoadedKernel loaded;
  loaded.state = NACRE_TRY(ProtectedModeState(memory, kernel.entry));
  loaded.state.gpr[x86::kRax] = kLoaderMagic;
  loaded.state.gpr[x86::kRbx] = kStartInfoAddress.value;
  loaded.protocol = "multiboot";
  return loaded;
}

}  // namespace nacre::boot
