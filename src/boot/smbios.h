#pragma once
// The SMBIOS structures that describe the virtual computer, for firmware to place (etc/smbios/smbios-tables and
// -anchor). DMTF DSP0134 2.8. The firmware adds the structure about itself (type 0). Called by the machine.

#include <cstdint>
#include <vector>

namespace nacre::boot {

inline constexpr char kSmbiosTablesFile[] = "etc/smbios/smbios-tables",
                      kSmbiosAnchorFile[] = "etc/smbios/smbios-anchor";

struct SmbiosTables {
  std::vector<uint8_t> tables;
  std::vector<uint8_t> anchor;  ///< of 2.8, its table address 0: who places the tables fills it in
};

SmbiosTables BuildSmbios(unsigned cpu_count, uint64_t memory_bytes);

}  // namespace nacre::boot
