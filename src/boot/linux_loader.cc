// Linux: bzImage and vmlinux, by the 64-bit or the 32-bit boot protocol.
// Specification: Linux, Documentation/arch/x86/boot.rst and zero-page.rst.

#include <algorithm>

#include "boot/boot_file.h"
#include "boot/boot_state.h"
#include "boot/loader.h"

namespace nacre::boot {

namespace {

constexpr size_t kSectorBytes = 512;
// Offsets in the zero page; from 0x1f1 on also in the bzImage.
constexpr size_t kAcpiRsdp = 0x070, kE820Count = 0x1e8, kHeaderStart = 0x1f1, kSetupSectors = 0x1f1,
                 kPayloadSize = 0x1f4, kBootFlag = 0x1fe, kHeaderLength = 0x201, kSignature = 0x202, kVersion = 0x206,
                 kLoaderType = 0x210, kLoadFlags = 0x211, kCode32Start = 0x214, kInitrdAddress = 0x218,
                 kInitrdSize = 0x21c, kCommandLine = 0x228, kInitrdMax = 0x22c, kKernelAlignment = 0x230,
                 kRelocatable = 0x234, kExtraLoadFlags = 0x236, kCommandLineSize = 0x238, kSetupData = 0x250,
                 kPreferredAddress = 0x258, kInitSize = 0x260, kHeaderEnd = 0x290, kE820Table = 0x2d0;
constexpr uint16_t kBootFlagValue = 0xaa55;
constexpr uint32_t kSignatureValue = 0x53726448;  // "HdrS"
constexpr uint16_t kOldestVersion = 0x20c;        // 2.12: xloadflags
constexpr uint8_t kLoadedHigh = 1, kUnknownLoader = 0xff;
constexpr uint16_t kHas64BitEntry = 1;
constexpr uint64_t k64BitEntryOffset = 0x200;
constexpr size_t kMaxE820Entries = 128, kE820EntryBytes = 20;
constexpr uint32_t kSetupRngSeed = 9;

using ZeroPage = std::array<uint8_t, kPageSize>;

template <typename T>
T Get(std::span<const uint8_t> bytes, size_t offset) {
  return LoadLe<T>(bytes.data() + offset);
}
template <typename T>
void Put(ZeroPage& page, size_t offset, T value) {
  StoreLe(page.data() + offset, value);
}

Status WriteSetupData(memory::GuestMemory& memory, const BootRequest& request, ZeroPage& page) {
  std::array<uint8_t, 16 + sizeof(request.random_seed)> node{};  // next, type, length, data
  StoreLe<uint32_t>(node.data() + 8, kSetupRngSeed);
  StoreLe<uint32_t>(node.data() + 12, static_cast<uint32_t>(request.random_seed.size()));
  std::ranges::copy(request.random_seed, node.begin() + 16);
  if (!memory.Write(kSetupDataAddress, node)) return Fail("the guest has no memory for the setup data");
  Put<uint64_t>(page, kSetupData, kSetupDataAddress.value);
  return {};
}

/// Joins the initrds, each padded to 4 bytes as the kernel's unpacker allows, and loads them as one.
Status LoadInitrd(memory::GuestMemory& memory, const BootRequest& request, GuestPhys kernel_end, uint64_t limit,
                  ZeroPage& page) {
  std::vector<uint8_t> all;
  const uint64_t room = std::min(memory.regions().front().size_bytes, limit);
  for (const std::string& path : request.initrds) {
    const auto content = NACRE_TRY(ReadBootFile(path, room));
    if (all.size() + content.size() > room)
      return Fail("{}: the initrds together do not fit in the guest's memory: give more with --memory", path);
    all.insert(all.end(), content.begin(), content.end());
    if (request.initrds.size() > 1) all.resize(AlignUp(all.size(), 4));
  }
  if (all.empty()) return {};
  GuestPhys place;
  if (!PlaceHigh(memory, all.size(), kernel_end, limit, place))
    return Fail("initrd {}: {} bytes do not fit beside the kernel in the guest's memory: give more with --memory",
                request.initrds.front(), all.size());
  NACRE_TRY_STATUS(LoadBytes(memory, place, all, all.size()));
  Put<uint32_t>(page, kInitrdAddress, static_cast<uint32_t>(place.value));
  Put<uint32_t>(page, kInitrdSize, static_cast<uint32_t>(all.size()));
  return {};
}

/// struct screen_info: a VESA linear frame buffer, for drivers that know no more than that.
void DescribeScreen(const LinearScreen& screen, ZeroPage& page) {
  constexpr uint8_t kVesaLinear = 0x23;  // VIDEO_TYPE_VLFB
  Put<uint8_t>(page, 0x0f, kVesaLinear);
  Put<uint16_t>(page, 0x12, screen.width);
  Put<uint16_t>(page, 0x14, screen.height);
  Put<uint16_t>(page, 0x16, 32);
  Put<uint32_t>(page, 0x18, static_cast<uint32_t>(screen.address.value));
  Put<uint32_t>(page, 0x1c, screen.size_bytes / 0x10000);
  Put<uint16_t>(page, 0x24, static_cast<uint16_t>(screen.width * 4));
  constexpr uint8_t kSizesAndPositions[] = {8, 16, 8, 8, 8, 0, 8, 24};  // red, green, blue, nothing
  for (size_t i = 0; i < sizeof(kSizesAndPositions); ++i) Put<uint8_t>(page, 0x26 + i, kSizesAndPositions[i]);
  Put<uint16_t>(page, 0x32, 1);  // pages
}

/// Everything that does not depend on the kind of kernel file; writes the page.
Status FinishZeroPage(memory::GuestMemory& memory, const BootRequest& request, ZeroPage& page) {
  if (request.memory_map.size() > kMaxE820Entries) return Fail("a memory map of {} entries", request.memory_map.size());
  page[kE820Count] = static_cast<uint8_t>(request.memory_map.size());
  size_t at = kE820Table;
  for (const MemoryMapEntry& entry : request.memory_map) {
    Put<uint64_t>(page, at, entry.start.value);
    Put<uint64_t>(page, at + 8, entry.size_bytes);
    Put<uint32_t>(page, at + 16, static_cast<uint32_t>(entry.type));
    at += kE820EntryBytes;
  }
  Put<uint64_t>(page, kAcpiRsdp, request.rsdp.value);
  Put<uint8_t>(page, kLoaderType, kUnknownLoader);
  if (request.screen) DescribeScreen(*request.screen, page);
  Put<uint32_t>(page, kCommandLine, static_cast<uint32_t>(kCommandLineAddress.value));
  NACRE_TRY_STATUS(WriteSetupData(memory, request, page));
  if (!memory.Write(kZeroPageAddress, page)) return Fail("the guest has no memory for the boot parameters");
  return {};
}

Result<LoadedKernel> EnterLinux(memory::GuestMemory& memory, GuestPhys entry, bool long_mode) {
  LoadedKernel loaded;
  loaded.state = NACRE_TRY(long_mode ? LongModeState(memory, entry) : ProtectedModeState(memory, entry));
  loaded.state.gpr[x86::kRsi] = kZeroPageAddress.value;
  loaded.protocol = long_mode ? "Linux 64-bit" : "Linux 32-bit";
  return loaded;
}

Status CheckAddresses(const memory::GuestMemory& memory, uint64_t load_address, uint64_t init_bytes,
                      uint64_t payload_bytes) {
  const uint64_t ram_end = memory.regions().front().size_bytes;
  const uint64_t needed = std::max(init_bytes, payload_bytes);
  if (load_address < kHighMemory.value || load_address > 4 * kGiB)
    return Fail("the header asks for the load address {:#x}", load_address);
  if (needed > ram_end || load_address > ram_end - needed)
    return Fail("it needs {} MiB of guest memory below 3 GiB, the guest has {} MiB: give more with --memory",
                (load_address + needed + kMiB - 1) / kMiB, ram_end / kMiB);
  return {};
}

}  // namespace

bool IsBzImage(const KernelFile& file) {
  return file.size() >= kVersion + 2 && Get<uint16_t>(file, kBootFlag) == kBootFlagValue &&
         Get<uint32_t>(file, kSignature) == kSignatureValue;
}

Result<LoadedKernel> LoadBzImage(memory::GuestMemory& memory, const BootRequest& request, const KernelFile& file) {
  if (file.size() < kHeaderEnd) return Fail("the Linux header is cut off");
  const auto version = Get<uint16_t>(file, kVersion);
  if (version < kOldestVersion)
    return Fail("boot protocol {}.{:02}; Nacre needs 2.12 (Linux 3.8) or later", version >> 8, version & 0xff);
  if (!(file[kLoadFlags] & kLoadedHigh)) return Fail("a zImage; Nacre needs a bzImage");
  const uint64_t setup_sectors = file[kSetupSectors] ? file[kSetupSectors] : 4;
  const uint64_t payload_at = (setup_sectors + 1) * kSectorBytes;
  const uint64_t payload_bytes = uint64_t{Get<uint32_t>(file, kPayloadSize)} * 16;
  if (payload_bytes <= k64BitEntryOffset || payload_at > file.size() || payload_bytes > file.size() - payload_at)
    return Fail("the file is cut off: the header promises {} bytes, the file has {}", payload_at + payload_bytes,
                file.size());

  // A relocatable kernel runs anywhere, but decompresses to its preferred address or above it anyway.
  const uint64_t init_bytes = Get<uint32_t>(file, kInitSize);
  const uint64_t load_address = Get<uint64_t>(file, kPreferredAddress);
  NACRE_TRY_STATUS(CheckAddresses(memory, load_address, init_bytes, payload_bytes));
  NACRE_TRY_STATUS(
      LoadBytes(memory, GuestPhys(load_address), std::span(file).subspan(payload_at, payload_bytes), payload_bytes));
  NACRE_TRY_STATUS(WriteCommandLine(memory, request.command_line,
                                    std::min<uint64_t>(Get<uint32_t>(file, kCommandLineSize), kCommandLineMax - 1)));

  ZeroPage page{};
  const size_t header_end = std::clamp<size_t>(kSignature + file[kHeaderLength], kInitSize + 4, kHeaderEnd);
  std::copy(file.begin() + kHeaderStart, file.begin() + static_cast<std::ptrdiff_t>(header_end),
            page.begin() + kHeaderStart);
  Put<uint32_t>(page, kCode32Start, static_cast<uint32_t>(load_address));
  Put<uint32_t>(page, kInitrdAddress, 0);
  Put<uint32_t>(page, kInitrdSize, 0);
  const GuestPhys kernel_end(load_address + std::max(init_bytes, payload_bytes));
  const uint64_t initrd_limit = uint64_t{Get<uint32_t>(file, kInitrdMax)} + 1;
  NACRE_TRY_STATUS(LoadInitrd(memory, request, kernel_end, initrd_limit, page));
  NACRE_TRY_STATUS(FinishZeroPage(memory, request, page));
  const bool long_mode = (Get<uint16_t>(file, kExtraLoadFlags) & kHas64BitEntry) != 0;
  return EnterLinux(memory, GuestPhys(load_address + (long_mode ? k64BitEntryOffset : 0)), long_mode);
}

Result<LoadedKernel> LoadVmlinux(memory::GuestMemory& memory, const BootRequest& request, const KernelFile&,
                                 const ElfImage& elf) {
  const GuestPhys end = NACRE_TRY(elf.Load(memory));
  const GuestPhys entry(elf.PhysicalEntry());
  if (!memory.IsRam(entry, 1) || entry.value >= 4 * kGiB)
    return Fail("the ELF entry {:#x} is not in memory", elf.entry());
  NACRE_TRY_STATUS(WriteCommandLine(memory, request.command_line, kCommandLineMax - 1));
  ZeroPage page{};
  Put<uint16_t>(page, kBootFlag, kBootFlagValue);
  Put<uint32_t>(page, kSignature, kSignatureValue);
  Put<uint16_t>(page, kVersion, kOldestVersion);
  Put<uint8_t>(page, kLoadFlags, kLoadedHigh);
  Put<uint32_t>(page, kCode32Start, static_cast<uint32_t>(entry.value));
  Put<uint32_t>(page, kCommandLineSize, kCommandLineMax - 1);
  Put<uint32_t>(page, kKernelAlignment, 16 * kMiB);
  Put<uint8_t>(page, kRelocatable, 0);
  Put<uint32_t>(page, kInitrdMax, kModuleLimit - 1);
  NACRE_TRY_STATUS(LoadInitrd(memory, request, end, kModuleLimit, page));
  NACRE_TRY_STATUS(FinishZeroPage(memory, request, page));
  return EnterLinux(memory, entry, elf.is64());
}

}  // namespace nacre::boot
