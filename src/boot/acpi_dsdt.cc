// The DSDT: what the operating system cannot find out by looking. Specification: ACPI 6.5 chapters 6 and 19.
#include "base/check.h"
#include "boot/acpi_tables.h"
#include "boot/aml.h"

namespace nacre::boot {

namespace {

using aml::Bytes;

constexpr unsigned kSlots = 32, kPins = 4;

/// _PRT (6.2.13): every slot's four pins.
Bytes Routing(const std::array<uint8_t, 4>& lines) {
  std::vector<Bytes> entries;
  for (unsigned slot = 0; slot < kSlots; ++slot) {
    for (unsigned pin = 0; pin < kPins; ++pin)
      entries.push_back(aml::Package({aml::Integer((slot << 16) | 0xffff), aml::Integer(pin), aml::Integer(0),
                                      aml::Integer(lines[(slot + pin + 3) % lines.size()])}));
  }
  return aml::Package(entries);
}

/// The OS calls \_PIC(1) when it uses the IO-APIC (5.8.1).
Bytes RoutingTerms(const AcpiConfig& config) {
  if (config.pci_pic_irq == std::array<uint8_t, 4>{} || config.pci_pic_irq == config.pci_gsi)
    return aml::Name("_PRT", Routing(config.pci_gsi));
  return aml::Join({aml::Name("PRTA", Routing(config.pci_gsi)), aml::Name("PRTP", Routing(config.pci_pic_irq)),
                    aml::Method("_PRT", 0,
                                aml::Join({aml::If(aml::Path("\\PICM"), aml::Return(aml::Path("PRTA"))),
                                           aml::Return(aml::Path("PRTP"))}))});
}

Bytes BridgeResources(const AcpiConfig& config) {
  Bytes windows = aml::Join({aml::BusWindow(0, config.pci_last_bus), aml::IoPorts(0xcf8, 8), aml::IoWindow(0, 0xcf7),
                             aml::IoWindow(0xd00, 0xffff)});
  if (config.has_vga) windows = aml::Join({windows, aml::MemoryWindow32(0xa0000, 0xbffff)});
  if (config.pci_memory32.last)
    windows = aml::Join({windows, aml::MemoryWindow32(static_cast<uint32_t>(config.pci_memory32.first),
                                                      static_cast<uint32_t>(config.pci_memory32.last))});
  if (config.pci_memory64.last)
    windows = aml::Join({windows, aml::MemoryWindow64(config.pci_memory64.first, config.pci_memory64.last)});
  return aml::Resources({windows});
}

Bytes SimpleDevice(std::string_view name, std::string_view hid, unsigned uid, const Bytes& resources,
                   const Bytes& more = {}) {
  return aml::Device(name, aml::Join({aml::Name("_HID", aml::EisaId(hid)), aml::Name("_UID", aml::Integer(uid)),
                                      aml::Name("_CRS", resources), more}));
}

/// Devices of fixed ports below the host bridge.
Bytes LegacyDevices(const AcpiConfig& config) {
  Bytes out;
  const auto add = [&](const Bytes& device) { out.insert(out.end(), device.begin(), device.end()); };
  // Ports and memory that no other node names, so that the OS places nothing there.
  Bytes board = aml::Join({aml::IoPorts(config.pm_event_port, 4), aml::IoPorts(config.pm_control_port, 2),
                           aml::IoPorts(config.pm_timer_port, 4)});
  if (config.gpe_port) board = aml::Join({board, aml::IoPorts(config.gpe_port, config.gpe_length)});
  if (config.smi_command_port) board = aml::Join({board, aml::IoPorts(config.smi_command_port, 2)});
  if (config.ecam_address)
    board = aml::Join(
        {board, aml::FixedMemory(static_cast<uint32_t>(config.ecam_address), (config.pci_last_bus + 1u) << 20)});
  add(SimpleDevice("MBRD", "PNP0C02", 0, aml::Resources({board})));
  if (config.has_serial0)
    add(SimpleDevice("COM1", "PNP0501", 0, aml::Resources({aml::IoPorts(0x3f8, 8), aml::Irq(4)})));
  if (config.has_rtc) add(SimpleDevice("RTC", "PNP0B00", 0, aml::Resources({aml::IoPorts(0x70, 2), aml::Irq(8)})));
  if (config.has_ps2) {
    // _PRW (7.3.13): the event, and the deepest sleep state that it ends.
    const Bytes wake = config.keyboard_gpe && config.s3_sleep_type
                           ? aml::Name("_PRW", aml::Package({aml::Integer(config.keyboard_gpe), aml::Integer(3)}))
                           : Bytes{};
    add(SimpleDevice("KBD", "PNP0303", 0, aml::Resources({aml::IoPorts(0x60, 1), aml::IoPorts(0x64, 1), aml::Irq(1)}),
                     wake));
    add(SimpleDevice("MOU", "PNP0F13", 0, aml::Resources({aml::Irq(12)})));
  }
  if (config.has_dma)
    add(SimpleDevice(
        "DMAC", "PNP0200", 0,
        aml::Resources({aml::IoPorts(0x00, 16), aml::IoPorts(0x81, 15), aml::IoPorts(0xc0, 32), aml::DmaChannel(4)})));
  // 0x3f6 is IDE's.
  if (config.has_floppy)
    add(SimpleDevice(
        "FDC0", "PNP0700", 0,
        aml::Resources({aml::IoPorts(0x3f0, 6), aml::IoPorts(0x3f7, 1), aml::Irq(6), aml::DmaChannel(2)})));
  if (config.hpet_address)
    add(SimpleDevice("HPET", "PNP0103", 0,
                     aml::Resources({aml::FixedMemory(static_cast<uint32_t>(config.hpet_address), 0x400)})));
  return out;
}

Bytes HostBridge(const AcpiConfig& config) {
  Bytes identity =
      config.ecam_address
          ? aml::Join({aml::Name("_HID", aml::EisaId("PNP0A08")), aml::Name("_CID", aml::EisaId("PNP0A03"))})
          : aml::Name("_HID", aml::EisaId("PNP0A03"));
  return aml::Device(
      "PCI0", aml::Join({identity, aml::Name("_UID", aml::Integer(0)), aml::Name("_BBN", aml::Integer(0)),
                         aml::Name("_CRS", BridgeResources(config)), RoutingTerms(config), LegacyDevices(config)}));
}

Bytes Processors(const AcpiConfig& config) {
  Bytes out;
  constexpr char kHex[] = "0123456789ABCDEF";
  for (unsigned id = 0; id < config.cpu_count; ++id) {
    const char name[] = {'C', kHex[(id >> 8) & 15], kHex[(id >> 4) & 15], kHex[id & 15], 0};
    const Bytes device =
        aml::Device(name, aml::Join({aml::Name("_HID", aml::String("ACPI0007")), aml::Name("_UID", aml::Integer(id))}));
    out.insert(out.end(), device.begin(), device.end());
  }
  return out;
}

/// \_Sx (7.4.2): SLP_TYPa, SLP_TYPb, two reserved.
Bytes SleepState(std::string_view name, std::optional<uint8_t> type) {
  if (!type) return {};
  return aml::Name(name, aml::Package({aml::Integer(*type), aml::Integer(0), aml::Integer(0), aml::Integer(0)}));
}

/// The first of all terms: kGenerationIdPointerAt depends on it.
Bytes GenerationIdPage(const AcpiConfig& config) {
  return config.has_generation_id ? aml::Name("\\VGIA", aml::Dword(config.generation_id_page)) : Bytes();
}

/// Microsoft, "Virtual Machine Generation ID": ADDR gives the two halves of the ID's address. Linux knows the name that
/// has the length of one.
Bytes GenerationId(const AcpiConfig& config) {
  if (!config.has_generation_id) return {};
  const Bytes address = aml::Local(0);
  const Bytes terms =
      aml::Join({aml::Store(aml::Package({aml::Integer(0), aml::Integer(0)}), address),
                 aml::Store(aml::Add(aml::Path("\\VGIA"), aml::Integer(kGenerationIdOffset)), aml::Index(address, 0)),
                 aml::Return(address)});
  return aml::Device(
      "VGEN", aml::Join({aml::Name("_HID", aml::String("VMGENCTR")), aml::Name("_CID", aml::String("VM_Gen_Counter")),
                         aml::Name("_DDN", aml::String("VM_Gen_Counter")), aml::Method("ADDR", 0, terms)}));
}

Bytes GeneralPurposeEvents(const AcpiConfig& config) {
  if (!config.has_generation_id) return {};
  constexpr char kHex[] = "0123456789ABCDEF";
  const unsigned event = config.generation_id_event;
  const char name[] = {'_', 'E', kHex[(event >> 4) & 15], kHex[event & 15], 0};
  return aml::Scope("\\_GPE", aml::Method(name, 0, aml::Notify("\\_SB.VGEN", 0x80)));
}

}  // namespace

std::vector<uint8_t> BuildDsdt(const AcpiConfig& config) {
  const Bytes terms =
      aml::Join({GenerationIdPage(config), aml::Name("\\PICM", aml::Integer(0)),
                 aml::Method("\\_PIC", 1, aml::Store(aml::Argument(0), aml::Path("\\PICM"))),
                 SleepState("\\_S3", config.s3_sleep_type), SleepState("\\_S4", config.s4_sleep_type),
                 SleepState("\\_S5", config.s5_sleep_type),
                 aml::Scope("\\_SB", aml::Join({HostBridge(config), Processors(config), GenerationId(config)})),
                 GeneralPurposeEvents(config)});
  std::vector<uint8_t> table(36);
  std::memcpy(table.data(), "DSDT", 4);
  StoreLe(table.data() + 4, static_cast<uint32_t>(36 + terms.size()));
  table[8] = 2;  // revision 2: 64-bit integers
  std::memcpy(table.data() + 10, "NACRE NACREPC ", 14);
  StoreLe<uint32_t>(table.data() + 24, 1);
  std::memcpy(table.data() + 28, "NACR", 4);
  StoreLe<uint32_t>(table.data() + 32, 1);
  table.insert(table.end(), terms.begin(), terms.end());
  uint8_t sum = 0;
  for (const uint8_t byte : table) sum = static_cast<uint8_t>(sum + byte);
  table[9] = static_cast<uint8_t>(-sum);
  return table;
}

}  // namespace nacre::boot
