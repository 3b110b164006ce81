#pragma once
// The ACPI tables of the pc board: RSDP, RSDT, XSDT, FADT, FACS, MADT, DSDT, and HPET and MCFG where the board has
// them. The board says where its devices are; nothing here knows a device. Called by the machine before any vCPU runs.
// Specification: ACPI 6.5 chapter 5; HPET 1.0a section 3.2.4; PCI Firmware 3.2 section 4.1.2 (MCFG).

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "base/result.h"
#include "memory/guest_memory.h"

namespace nacre::boot {

struct AcpiConfig {
  unsigned cpu_count = 1;  ///< APIC ids 0 to cpu_count - 1
  uint64_t local_apic_address = 0xfee00000;
  uint32_t io_apic_address = 0xfec00000;
  uint8_t io_apic_id = 0;

  uint16_t pm_event_port = 0, pm_control_port = 0;  ///< PM1a: 4 and 2 ports
  uint16_t pm_timer_port = 0;                       ///< 4 ports, a counter of 24 bits
  uint16_t gpe_port = 0;                            ///< general-purpose events; 0: none
  uint8_t gpe_length = 0;
  uint16_t smi_command_port = 0;  ///< 0: always in ACPI mode
  uint8_t acpi_enable = 0, acpi_disable = 0;
  unsigned sci_irq = 9;  ///< level-triggered, active high
  /// SLP_TYP of soft off, and of suspend to RAM and to disk where the board has them.
  uint8_t s5_sleep_type = 0;
  std::optional<uint8_t> s3_sleep_type, s4_sleep_type;
  uint8_t keyboard_gpe = 0;  ///< the general-purpose event by which the keyboard ends S3; 0: it does not
  uint16_t reset_port = 0;
  uint8_t reset_value = 0;
  uint8_t rtc_century = 0;  ///< CMOS index of the century; 0: none

  uint64_t hpet_address = 0;  ///< 0: no HPET

  bool has_generation_id = false;    ///< the VM generation ID: kGenerationIdOffset into a page of its own
  uint32_t generation_id_page = 0;   ///< its address; 0: firmware adds it
  unsigned generation_id_event = 0;  ///< the general-purpose event that tells of its change

  struct Window {
    uint64_t first = 0, last = 0;  ///< both included; last 0: none
  };
  Window pci_memory32, pci_memory64;
  uint8_t pci_last_bus = 0;
  uint64_t ecam_address = 0;  ///< 0: configuration through ports 0xcf8/0xcfc only
  /// INTx of slot s, pin p (0: INTA) arrives at [(s + p + 3) % 4]: GSIs of the IO-APIC, and lines of the 8259 pair for
  /// guests without IO-APIC (all zero: none).
  std::array<uint8_t, 4> pci_gsi{16, 17, 18, 19}, pci_pic_irq{};

  bool has_serial0 = true, has_rtc = true, has_ps2 = false, has_vga = false;
  bool has_dma = false, has_floppy = false;  ///< the 8237s of a PC; a floppy controller on their channel 2
};

/// Firmware takes what a table points to for a table if it looks like one: before the ID there are zeros.
inline constexpr unsigned kGenerationIdOffset = 40;

/// The tables' bytes and what in them depends on where they lie. The RSDP comes first, 36 bytes.
struct AcpiImage {
  struct Pointer {
    size_t at = 0;
    uint8_t size = 0;               ///< 4 or 8 bytes, little-endian
    bool to_generation_id = false;  ///< to its page, not into the tables
  };
  struct Checksum {
    size_t at = 0;
    size_t start = 0, length = 0;  ///< all bytes of the range sum to 0
  };
  std::vector<uint8_t> bytes;
  std::vector<Pointer> pointers;
  std::vector<Checksum> checksums;  ///< of the tables that hold pointers
};
/// To be placed at `base`, 64-byte aligned.
AcpiImage BuildAcpiImage(const AcpiConfig& config, uint64_t base);
/// Its bytes.
std::vector<uint8_t> BuildAcpiTables(const AcpiConfig& config, uint64_t base);
/// Only the DSDT, header included. Where it has a generation ID, the four bytes at kGenerationIdPointerAt are its page.
inline constexpr size_t kGenerationIdPointerAt = 36 + 7;
std::vector<uint8_t> BuildDsdt(const AcpiConfig& config);

/// Writes the tables at boot_layout.h's kAcpiAddress and returns the RSDP's address.
Result<GuestPhys> WriteAcpiTables(memory::GuestMemory& memory, const AcpiConfig& config);
/// Where the guest wants to go on after S3, as it has written to the FACS of these tables (5.2.10): a physical address
/// for real-address mode. Nothing: it has not, or it is beyond 1 MiB.
std::optional<uint32_t> WakingVector(const memory::GuestMemory& memory);

}  // namespace nacre::boot
