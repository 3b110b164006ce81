#include "boot/acpi_tables.h"

#include <algorithm>
#include <set>
#include <string_view>

#include "base/check.h"
#include "boot/boot_layout.h"

namespace nacre::boot {

namespace {

constexpr size_t kHeaderBytes = 36, kChecksumAt = 9, kLengthAt = 4;
constexpr size_t kFacsAt = 64, kWakingVectorAt = 12;  ///< the FACS in the image, the vector in the FACS

/// A table in the making. Values are little-endian.
class Table {
 public:
  Table(std::string_view signature, uint8_t revision) {
    Text(signature);
    Put<uint32_t>(0);  // length
    Put<uint8_t>(revision);
    Put<uint8_t>(0);  // checksum
    Text("NACRE ");
    Text("NACREPC ");
    Put<uint32_t>(1);
    Text("NACR");
    Put<uint32_t>(1);
    NACRE_CHECK(bytes_.size() == kHeaderBytes);
  }

  template <typename T>
  void Put(T value) {
    const size_t at = bytes_.size();
    bytes_.resize(at + sizeof(T));
    StoreLe(bytes_.data() + at, value);
  }
  void Text(std::string_view text) { bytes_.insert(bytes_.end(), text.begin(), text.end()); }
  void Append(const std::vector<uint8_t>& more) { bytes_.insert(bytes_.end(), more.begin(), more.end()); }
  void Zeros(size_t count) { bytes_.resize(bytes_.size() + count); }
  /// Generic address structure (5.2.3.2); access size 0 leaves it to the width.
  void Address(uint8_t space, uint8_t bit_width, uint64_t address) {
    Put<uint8_t>(space);
    Put<uint8_t>(bit_width);
    Put<uint8_t>(0);
    Put<uint8_t>(0);
    Put<uint64_t>(address);
  }
  size_t size() const { return bytes_.size(); }

  std::vector<uint8_t> Finish() {
    StoreLe(bytes_.data() + kLengthAt, static_cast<uint32_t>(bytes_.size()));
    uint8_t sum = 0;
    for (const uint8_t byte : bytes_) sum = static_cast<uint8_t>(sum + byte);
    bytes_[kChecksumAt] = static_cast<uint8_t>(-sum);
    return std::move(bytes_);
  }

 private:
  std::vector<uint8_t> bytes_;
};

constexpr uint8_t kSystemMemory = 0, kSystemIo = 1;

// FADT fixed feature flags (table 5.10).
constexpr uint32_t kWbinvd = 1 << 0, kProcC1 = 1 << 2, kNoSleepButton = 1 << 5, kNoFixedRtc = 1 << 6,
                   kResetRegister = 1 << 10;
// IA-PC boot architecture flags (table 5.11).
constexpr uint16_t kLegacyDevices = 1 << 0, kHas8042 = 1 << 1, kNoVga = 1 << 2, kNoAspm = 1 << 4, kNoCmosRtc = 1 << 5;

std::vector<uint8_t> BuildFadt(const AcpiConfig& config, uint64_t facs, uint64_t dsdt) {
  Table table("FACP", 3);
  table.Put<uint32_t>(static_cast<uint32_t>(facs));
  table.Put<uint32_t>(static_cast<uint32_t>(dsdt));
  table.Put<uint8_t>(0);
  table.Put<uint8_t>(0);  // preferred profile: unspecified
  table.Put<uint16_t>(static_cast<uint16_t>(config.sci_irq));
  table.Put<uint32_t>(config.smi_command_port);
  table.Append({config.acpi_enable, config.acpi_disable, 0, 0});  // S4BIOS_REQ, PSTATE_CNT
  table.Put<uint32_t>(config.pm_event_port);
  table.Put<uint32_t>(0);
  table.Put<uint32_t>(config.pm_control_port);
  table.Put<uint32_t>(0);
  table.Put<uint32_t>(0);  // PM2
  table.Put<uint32_t>(config.pm_timer_port);
  table.Put<uint32_t>(config.gpe_port);
  table.Put<uint32_t>(0);
  // Lengths: PM1_EVT, PM1_CNT, PM2_CNT, PM_TMR, GPE0, GPE1; then GPE1_BASE, CST_CNT.
  table.Append({4, 2, 0, 4, config.gpe_length, 0, 0, 0});
  table.Put<uint16_t>(101);                        // C2 latency: over 100 means there is none
  table.Put<uint16_t>(1001);                       // C3 likewise
  table.Zeros(4);                                  // FLUSH_SIZE, FLUSH_STRIDE
  table.Append({0, 0, 0, 0, config.rtc_century});  // duty cycle (2), day and month alarm
  table.Put<uint16_t>(static_cast<uint16_t>(kLegacyDevices | kNoAspm | (config.has_ps2 ? kHas8042 : 0) |
                                            (config.has_vga ? 0 : kNoVga) | (config.has_rtc ? 0 : kNoCmosRtc)));
  table.Put<uint8_t>(0);
  table.Put<uint32_t>(kWbinvd | kProcC1 | kNoSleepButton | (config.has_rtc ? 0 : kNoFixedRtc) |
                      (config.reset_port ? kResetRegister : 0));
  table.Address(kSystemIo, 8, config.reset_port);
  table.Put<uint8_t>(config.reset_value);
  table.Zeros(3);
  table.Put<uint64_t>(facs);
  table.Put<uint64_t>(dsdt);
  table.Address(kSystemIo, 32, config.pm_event_port);
  table.Zeros(12);
  table.Address(kSystemIo, 16, config.pm_control_port);
  table.Zeros(12);
  table.Zeros(12);  // PM2
  table.Address(kSystemIo, 32, config.pm_timer_port);
  table.Address(kSystemIo, static_cast<uint8_t>(config.gpe_length * 8), config.gpe_port);
  table.Zeros(12);
  NACRE_CHECK(table.size() == 244);
  return table.Finish();
}

std::vector<uint8_t> BuildMadt(const AcpiConfig& config) {
  Table table("APIC", 3);
  table.Put<uint32_t>(static_cast<uint32_t>(config.local_apic_address));
  table.Put<uint32_t>(1);  // PCAT_COMPAT: there are 8259s
  for (unsigned id = 0; id < config.cpu_count; ++id) {
    if (id < 255) {
      table.Append({0, 8, static_cast<uint8_t>(id), static_cast<uint8_t>(id)});
      table.Put<uint32_t>(1);  // enabled
    } else {
      table.Append({9, 16, 0, 0});  // local x2APIC
      table.Put<uint32_t>(id);
      table.Put<uint32_t>(1);
      table.Put<uint32_t>(id);
    }
  }
  table.Append({1, 12, config.io_apic_id, 0});
  table.Put<uint32_t>(config.io_apic_address);
  table.Put<uint32_t>(0);
  const auto override_irq = [&](unsigned irq, uint32_t gsi, uint16_t flags) {
    table.Append({2, 10, 0, static_cast<uint8_t>(irq)});
    table.Put<uint32_t>(gsi);
    table.Put<uint16_t>(flags);
  };
  constexpr uint16_t kLevelHigh = 0xd;
  override_irq(0, 2, 0);
  override_irq(config.sci_irq, config.sci_irq, kLevelHigh);
  std::set<uint8_t> pci_irqs(config.pci_pic_irq.begin(), config.pci_pic_irq.end());
  pci_irqs.erase(0);
  pci_irqs.erase(static_cast<uint8_t>(config.sci_irq));
  for (const uint8_t irq : pci_irqs) override_irq(irq, irq, kLevelHigh);
  table.Append({4, 6, 0xff, 0, 0, 1});  // every processor: NMI at LINT1
  return table.Finish();
}

std::vector<uint8_t> BuildHpet(const AcpiConfig& config) {
  Table table("HPET", 1);
  table.Put<uint32_t>(0x8086a201);  // event timer block: three comparators, 64-bit, legacy replacement
  table.Address(kSystemMemory, 64, config.hpet_address);
  table.Put<uint8_t>(0);
  table.Put<uint16_t>(0x80);
  table.Put<uint8_t>(0);
  return table.Finish();
}

std::vector<uint8_t> BuildMcfg(const AcpiConfig& config) {
  Table table("MCFG", 1);
  table.Zeros(8);
  table.Put<uint64_t>(config.ecam_address);
  table.Put<uint16_t>(0);
  table.Put<uint8_t>(0);
  table.Put<uint8_t>(config.pci_last_bus);
  table.Zeros(4);
  return table.Finish();
}

std::vector<uint8_t> BuildFacs() {
  std::vector<uint8_t> facs(64);
  std::ranges::copy(std::string_view("FACS"), facs.begin());
  StoreLe<uint32_t>(facs.data() + 4, 64);
  facs[32] = 1;  // version
  return facs;
}

template <typename Pointer>
std::vector<uint8_t> BuildRoot(std::string_view signature, const std::vector<uint64_t>& tables) {
  Table table(signature, 1);
  for (const uint64_t address : tables) table.Put(static_cast<Pointer>(address));
  return table.Finish();
}

/// 5.2.5.3, revision 2.
std::vector<uint8_t> BuildRsdp(uint64_t rsdt, uint64_t xsdt) {
  std::vector<uint8_t> rsdp(36);
  std::ranges::copy(std::string_view("RSD PTR "), rsdp.begin());
  std::ranges::copy(std::string_view("NACRE "), rsdp.begin() + 9);
  rsdp[15] = 2;
  StoreLe(rsdp.data() + 16, static_cast<uint32_t>(rsdt));
  StoreLe<uint32_t>(rsdp.data() + 20, 36);
  StoreLe(rsdp.data() + 24, xsdt);
  const auto checksum = [&](size_t count) {
    uint8_t sum = 0;
    for (size_t i = 0; i < count; ++i) sum = static_cast<uint8_t>(sum + rsdp[i]);
    return static_cast<uint8_t>(-sum);
  };
  rsdp[8] = checksum(20);
  rsdp[32] = checksum(36);
  return rsdp;
}

}  // namespace

AcpiImage BuildAcpiImage(const AcpiConfig& config, uint64_t base) {
  constexpr size_t kTablesAt = 128;
  NACRE_CHECK(base % 64 == 0);
  AcpiImage image;
  std::vector<uint8_t>& out = image.bytes;
  out.resize(kTablesAt);
  std::ranges::copy(BuildFacs(), out.begin() + kFacsAt);
  /// `pointers`: where in the table they are.
  const auto place = [&](const std::vector<uint8_t>& table, const std::vector<AcpiImage::Pointer>& pointers) {
    const size_t start = AlignUp(out.size(), 16);
    out.resize(start);
    out.insert(out.end(), table.begin(), table.end());
    for (const AcpiImage::Pointer& pointer : pointers)
      image.pointers.push_back({start + pointer.at, pointer.size, pointer.to_generation_id});
    if (!pointers.empty()) image.checksums.push_back({start + kChecksumAt, start, table.size()});
    return base + start;
  };
  const auto place_root = [&]<typename Pointer>(std::string_view signature, const std::vector<uint64_t>& tables,
                                                Pointer) {
    std::vector<AcpiImage::Pointer> pointers;
    for (size_t i = 0; i < tables.size(); ++i)
      pointers.push_back({kHeaderBytes + i * sizeof(Pointer), sizeof(Pointer)});
    return place(BuildRoot<Pointer>(signature, tables), pointers);
  };
  std::vector<AcpiImage::Pointer> in_dsdt;
  if (config.has_generation_id) in_dsdt.push_back({kGenerationIdPointerAt, 4, true});
  const uint64_t dsdt = place(BuildDsdt(config), in_dsdt);
  std::vector<uint64_t> tables{place(BuildFadt(config, base + kFacsAt, dsdt), {{36, 4}, {40, 4}, {132, 8}, {140, 8}}),
                               place(BuildMadt(config), {})};
  if (config.hpet_address) tables.push_back(place(BuildHpet(config), {}));
  if (config.ecam_address) tables.push_back(place(BuildMcfg(config), {}));
  const uint64_t rsdt = place_root("RSDT", tables, uint32_t{});
  const uint64_t xsdt = place_root("XSDT", tables, uint64_t{});
  std::ranges::copy(BuildRsdp(rsdt, xsdt), out.begin());
  image.pointers.insert(image.pointers.end(), {{16, 4}, {24, 8}});
  image.checksums.insert(image.checksums.end(), {{8, 0, 20}, {32, 0, 36}});
  return image;
}

std::vector<uint8_t> BuildAcpiTables(const AcpiConfig& config, uint64_t base) {
  return BuildAcpiImage(config, base).bytes;
}

Result<GuestPhys> WriteAcpiTables(memory::GuestMemory& memory, const AcpiConfig& config) {
  const auto tables = BuildAcpiTables(config, kAcpiAddress.value);
  if (tables.size() > kAcpiTableBytes) return Fail("the ACPI tables for {} CPUs are too large", config.cpu_count);
  if (!memory.Write(kAcpiAddress, tables)) return Fail("the guest has no memory for the ACPI tables");
  return kAcpiAddress;
}

std::optional<uint32_t> WakingVector(const memory::GuestMemory& memory) {
  uint32_t vector = 0;
  if (!memory.ReadValue(kAcpiAddress + kFacsAt + kWakingVectorAt, vector) || vector == 0 || vector >= kMiB)
    return std::nullopt;
  return vector;
}

}  // namespace nacre::boot
