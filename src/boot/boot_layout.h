#pragma once
// Where the direct boot puts its own structures, and the memory map it tells the guest. All of it lies in the first
// megabyte, which kernels leave alone until they have read the map. Plain data, any thread.

#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"
#include "memory/address.h"
#include "memory/guest_memory.h"

namespace nacre::boot {

/// Fixed places below 1 MiB. Page tables take six pages: PML4, PDPT, four page directories.
inline constexpr GuestPhys kGdtAddress{0x1000}, kStartInfoAddress{0x2000}, kSetupDataAddress{0x6000},
    kZeroPageAddress{0x7000}, kPageTableAddress{0x9000}, kBootStackTop{0x20000}, kCommandLineAddress{0x20000},
    kModuleTableAddress{0x40000}, kExtendedBiosData{0x9fc00}, kAcpiAddress{0xe0000};
inline constexpr uint64_t kCommandLineMax = 64 * kKiB, kModuleTableBytes = 64 * kKiB, kAcpiBytes = 128 * kKiB;
/// The tables' place ends with a page for the VM generation ID.
inline constexpr uint64_t kAcpiTableBytes = kAcpiBytes - kPageSize;
inline constexpr GuestPhys kGenerationIdPage{0x100000 - kPageSize};
inline constexpr GuestPhys kHighMemory{kMiB};

enum class MemoryType : uint32_t { kUsable = 1, kReserved = 2, kAcpi = 3, kAcpiNvs = 4 };

struct MemoryMapEntry {
  GuestPhys start;
  uint64_t size_bytes = 0;
  MemoryType type = MemoryType::kUsable;
};

/// The words of the BIOS data area that kernels read to learn where the first 640 KiB end: 0x40e, the segment of the
/// extended BIOS data area, and 0x413, KiB of memory; and that area's size.
Status WriteBiosData(memory::GuestMemory& memory);

/// RAM with the holes of the first megabyte, and `reserved` ranges (for example ECAM), sorted by address.
std::vector<MemoryMapEntry> BuildMemoryMap(const memory::GuestMemory& memory, std::span<const MemoryMapEntry> reserved);

/// A place for `size_bytes` as high as possible, ending at or below `limit`, starting at or above `floor`, page-aligned
/// and inside the low RAM region; false if there is none.
bool PlaceHigh(const memory::GuestMemory& memory, uint64_t size_bytes, GuestPhys floor, uint64_t limit,
               GuestPhys& place);

}  // namespace nacre::boot
