#pragma once
// ACPI tables for firmware, which places them itself: the tables with pointers relative to their file, and a script of
// commands that says what to allocate, which pointers to add to and which checksums to make (QEMU's documented table
// loader, etc/table-loader). Called by the machine, once and whenever firmware asks for the files.

#include <cstdint>
#include <vector>

#include "boot/acpi_tables.h"

namespace nacre::boot {

inline constexpr char kAcpiTablesFile[] = "etc/acpi/tables", kAcpiRsdpFile[] = "etc/acpi/rsdp",
                      kTableLoaderFile[] = "etc/table-loader",
                      kGenerationIdFile[] = "etc/vmgenid_guid",  ///< a page of zeros, kGenerationIdFileBytes
    kGenerationIdPlaceFile[] = "etc/vmgenid_addr";               ///< 8 bytes: firmware writes the ID's address
inline constexpr size_t kGenerationIdFileBytes = 4096;

struct FirmwareTables {
  std::vector<uint8_t> tables, rsdp, loader;
};

/// The sizes do not depend on addresses in `config`.
FirmwareTables BuildFirmwareTables(const AcpiConfig& config);

}  // namespace nacre::boot
