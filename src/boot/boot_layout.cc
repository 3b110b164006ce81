#include "boot/boot_layout.h"

#include <algorithm>

namespace nacre::boot {

Status WriteBiosData(memory::GuestMemory& memory) {
  const bool written =
      memory.WriteValue(GuestPhys(0x40e), static_cast<uint16_t>(kExtendedBiosData.value >> 4)) &&
      memory.WriteValue(GuestPhys(0x413), static_cast<uint16_t>(kExtendedBiosData.value / kKiB)) &&
      memory.WriteValue(kExtendedBiosData, static_cast<uint8_t>((0xa0000 - kExtendedBiosData.value) / kKiB));
  return written ? Status() : Fail("the guest has no memory for the BIOS data area");
}

std::vector<MemoryMapEntry> BuildMemoryMap(const memory::GuestMemory& memory,
                                           std::span<const MemoryMapEntry> reserved) {
  std::vector<MemoryMapEntry> map;
  for (const memory::Region& region : memory.regions()) {
    if (region.start.value != 0) {
      map.push_back({region.start, region.size_bytes, MemoryType::kUsable});
      continue;
    }
    map.push_back({GuestPhys(0), kExtendedBiosData.value, MemoryType::kUsable});
    map.push_back({kExtendedBiosData, 0xa0000 - kExtendedBiosData.value, MemoryType::kReserved});
    map.push_back({kAcpiAddress, kAcpiBytes, MemoryType::kReserved});
    if (region.size_bytes > kMiB) map.push_back({kHighMemory, region.size_bytes - kMiB, MemoryType::kUsable});
  }
  map.insert(map.end(), reserved.begin(), reserved.end());
  std::ranges::sort(map, {}, &MemoryMapEntry::start);
  return map;
}

bool PlaceHigh(const memory::GuestMemory& memory, uint64_t size_bytes, GuestPhys floor, uint64_t limit,
               GuestPhys& place) {
  const uint64_t top = std::min(memory.regions().front().size_bytes, limit);
  if (size_bytes > top) return false;
  place = GuestPhys(AlignDown(top - size_bytes, kPageSize));
  return place >= floor;
}

}  // namespace nacre::boot
