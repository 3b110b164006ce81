// The tables that a guest sees: found from the RSDP by following pointers, as a guest does.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <string>

#include "boot/acpi_tables.h"
#include "boot/aml.h"

namespace nacre::boot {
namespace {

constexpr uint64_t kBase = 0xe0000;

AcpiConfig TestConfig() {
  AcpiConfig config;
  config.cpu_count = 300;
  config.pm_event_port = 0x600;
  config.pm_control_port = 0x604;
  config.pm_timer_port = 0x608;
  config.s5_sleep_type = 5;
  config.reset_port = 0xcf9;
  config.reset_value = 6;
  config.hpet_address = 0xfed00000;
  config.ecam_address = 0xb0000000;
  config.pci_memory32 = {0xc0000000, 0xfebfffff};
  config.pci_memory64 = {0x8000000000, 0x8fffffffff};
  config.pci_pic_irq = {10, 11, 10, 11};
  return config;
}

uint8_t Sum(std::span<const uint8_t> bytes) {
  return std::accumulate(bytes.begin(), bytes.end(), uint8_t{0},
                         [](uint8_t a, uint8_t b) { return static_cast<uint8_t>(a + b); });
}

/// Signature to table, by way of RSDP and XSDT (or RSDT).
std::map<std::string, std::span<const uint8_t>> Walk(const std::vector<uint8_t>& all, bool extended) {
  std::map<std::string, std::span<const uint8_t>> found;
  const auto table_at = [&](uint64_t address) {
    const auto rest = std::span(all).subspan(address - kBase);
    const auto table = rest.first(LoadLe<uint32_t>(rest.data() + 4));
    EXPECT_EQ(Sum(table), 0) << std::string(rest.begin(), rest.begin() + 4);
    found[std::string(table.begin(), table.begin() + 4)] = table;
    return table;
  };
  const auto root = table_at(extended ? LoadLe<uint64_t>(&all[24]) : LoadLe<uint32_t>(&all[16]));
  for (size_t at = 36; at < root.size(); at += extended ? 8 : 4)
    table_at(extended ? LoadLe<uint64_t>(&root[at]) : LoadLe<uint32_t>(&root[at]));
  table_at(LoadLe<uint64_t>(&found["FACP"][140]));
  return found;
}

TEST(Acpi, EveryTableIsReachedAndSumsToZero) {
  const auto all = BuildAcpiTables(TestConfig(), kBase);
  EXPECT_EQ(std::string(all.begin(), all.begin() + 8), "RSD PTR ");
  EXPECT_EQ(Sum(std::span(all).first(20)), 0);
  EXPECT_EQ(Sum(std::span(all).first(36)), 0);
  for (const bool extended : {false, true}) {
    const auto tables = Walk(all, extended);
    for (const char* name : {"FACP", "APIC", "HPET", "MCFG", "DSDT"}) EXPECT_TRUE(tables.contains(name)) << name;
  }
}

TEST(Acpi, TablesOfMissingDevicesAreAbsent) {
  AcpiConfig config = TestConfig();
  config.hpet_address = config.ecam_address = 0;
  const auto all = BuildAcpiTables(config, kBase);
  const auto tables = Walk(all, true);
  EXPECT_FALSE(tables.contains("HPET"));
  EXPECT_FALSE(tables.contains("MCFG"));
}

TEST(Acpi, MadtNamesEveryCpuAndTheOverrides) {
  const auto all = BuildAcpiTables(TestConfig(), kBase);
  const auto madt = Walk(all, true)["APIC"];
  std::map<unsigned, unsigned> count;
  std::map<unsigned, uint32_t> overrides;
  for (size_t at = 44; at < madt.size(); at += madt[at + 1]) {
    ASSERT_GE(madt[at + 1], 2);
    ++count[madt[at]];
    if (madt[at] == 2) overrides[madt[at + 3]] = LoadLe<uint32_t>(&madt[at + 4]);
  }
  EXPECT_EQ(count[0], 255u);
  EXPECT_EQ(count[9], 45u);
  EXPECT_EQ(count[1], 1u);
  EXPECT_EQ(overrides, (std::map<unsigned, uint32_t>{{0, 2}, {9, 9}, {10, 10}, {11, 11}}));
}

TEST(Acpi, FadtPlacesRegisters) {
  const auto all = BuildAcpiTables(TestConfig(), kBase);
  const auto fadt = Walk(all, true)["FACP"];
  ASSERT_EQ(fadt.size(), 244u);
  EXPECT_EQ(LoadLe<uint16_t>(&fadt[46]), 9);       // SCI_INT
  EXPECT_EQ(LoadLe<uint32_t>(&fadt[56]), 0x600u);  // PM1a_EVT_BLK
  EXPECT_EQ(LoadLe<uint32_t>(&fadt[64]), 0x604u);
  EXPECT_EQ(LoadLe<uint32_t>(&fadt[76]), 0x608u);
  EXPECT_EQ(LoadLe<uint64_t>(&fadt[120]), 0xcf9u);
  EXPECT_EQ(fadt[128], 6);
  const uint64_t facs = LoadLe<uint64_t>(&fadt[132]);
  EXPECT_EQ(facs % 64, 0u);
  EXPECT_EQ(std::string(&all[facs - kBase], &all[facs - kBase] + 4), "FACS");
}

bool Holds(const std::vector<uint8_t>& bytes, std::initializer_list<aml::Bytes> parts) {
  const aml::Bytes wanted = aml::Join(parts);
  return !std::ranges::search(bytes, wanted).empty();
}

TEST(Acpi, DsdtNamesTheSleepStatesOfTheBoard) {
  AcpiConfig config = TestConfig();
  const auto state = [](const char* name, uint8_t type) {
    return aml::Name(name, aml::Package({aml::Integer(type), aml::Integer(0), aml::Integer(0), aml::Integer(0)}));
  };
  EXPECT_TRUE(Holds(BuildDsdt(config), {state("\\_S5", 5)}));
  EXPECT_FALSE(Holds(BuildDsdt(config), {aml::Path("\\_S3")}));
  EXPECT_FALSE(Holds(BuildDsdt(config), {aml::Path("\\_S4")}));
  config.has_ps2 = true;
  config.keyboard_gpe = 1;
  EXPECT_FALSE(Holds(BuildDsdt(config), {aml::Path("_PRW")})) << "nothing to wake from";
  config.s3_sleep_type = 1;
  config.s4_sleep_type = 2;
  EXPECT_TRUE(Holds(BuildDsdt(config), {state("\\_S3", 1), state("\\_S4", 2), state("\\_S5", 5)}));
  EXPECT_TRUE(Holds(BuildDsdt(config), {aml::Name("_PRW", aml::Package({aml::Integer(1), aml::Integer(3)}))}));
}

TEST(Acpi, DsdtSaysWhereTheGenerationIdIs) {
  AcpiConfig config = TestConfig();
  EXPECT_FALSE(Holds(BuildDsdt(config), {aml::Path("VGEN")}));
  config.has_generation_id = true;
  config.generation_id_page = 0xff000;
  config.generation_id_event = 5;
  const auto dsdt = BuildDsdt(config);
  EXPECT_EQ(LoadLe<uint32_t>(&dsdt[kGenerationIdPointerAt]), 0xff000u);
  EXPECT_EQ(dsdt[kGenerationIdPointerAt - 1], 0x0c);
  EXPECT_TRUE(Holds(dsdt, {aml::Scope("\\_GPE", aml::Method("_E05", 0, aml::Notify("\\_SB.VGEN", 0x80)))}));
  EXPECT_TRUE(Holds(dsdt, {aml::Name("_CID", aml::String("VM_Gen_Counter"))}));
}

TEST(Acpi, DsdtNamesDmaAndFloppyControllersThatAreThere) {
  AcpiConfig config = TestConfig();
  const aml::Bytes dma = aml::EisaId("PNP0200"), floppy = aml::EisaId("PNP0700");
  EXPECT_FALSE(Holds(BuildDsdt(config), {dma}));
  EXPECT_FALSE(Holds(BuildDsdt(config), {floppy}));
  config.has_dma = true;
  EXPECT_TRUE(Holds(BuildDsdt(config), {dma}));
  EXPECT_FALSE(Holds(BuildDsdt(config), {floppy}));
  config.has_floppy = true;
  EXPECT_TRUE(Holds(BuildDsdt(config), {floppy}));
  EXPECT_TRUE(Holds(BuildDsdt(config), {aml::IoPorts(0x3f7, 1), aml::Irq(6), aml::DmaChannel(2)}));
  EXPECT_EQ(aml::DmaChannel(2), (aml::Bytes{0x2a, 0x04, 0x00}));
  EXPECT_EQ(aml::DmaChannel(4), (aml::Bytes{0x2a, 0x10, 0x02}));
}

TEST(Acpi, TheClockIsAFixedWakeEvent) {
  constexpr uint32_t kNoFixedRtc = 1 << 6;
  AcpiConfig config = TestConfig();
  const auto flags = [&] { return LoadLe<uint32_t>(&Walk(BuildAcpiTables(config, kBase), true)["FACP"][112]); };
  EXPECT_EQ(flags() & kNoFixedRtc, 0u);
  config.has_rtc = false;
  EXPECT_EQ(flags() & kNoFixedRtc, kNoFixedRtc);
}

TEST(Acpi, WakingVectorIsWhatTheGuestWroteIntoTheFacs) {
  auto memory = memory::GuestMemory::Create(2 * kMiB);
  ASSERT_TRUE(memory);
  const GuestPhys rsdp = WriteAcpiTables(**memory, TestConfig()).value();
  std::vector<uint8_t> all(64 * kKiB);
  ASSERT_TRUE((*memory)->Read(rsdp, all));
  const auto fadt = Walk(all, true)["FACP"];
  const GuestPhys vector{LoadLe<uint32_t>(&fadt[36]) + 12};
  EXPECT_EQ(WakingVector(**memory), std::nullopt);
  ASSERT_TRUE((*memory)->WriteValue(vector, uint32_t{0x9a123}));
  EXPECT_EQ(WakingVector(**memory), 0x9a123u);
  ASSERT_TRUE((*memory)->WriteValue(vector, uint32_t{0x100000}));
  EXPECT_EQ(WakingVector(**memory), std::nullopt) << "real-address mode does not reach it";
}

// 20.2.4: the length counts its own bytes; one byte up to 63.
TEST(Aml, PackageLengths) {
  EXPECT_EQ(aml::Scope("\\_SB", aml::Bytes(57)).at(1), 63);
  const auto two = aml::Scope("\\_SB", aml::Bytes(58));
  EXPECT_EQ(two.at(1), 0x40 | (65 & 0xf));
  EXPECT_EQ(two.at(2), 65 >> 4);
  const auto three = aml::Scope("\\_SB", aml::Bytes(5000));
  EXPECT_EQ(three.at(1) >> 6, 2);
  EXPECT_EQ((three.at(1) & 0xf) | (three.at(2) << 4) | (three.at(3) << 12), static_cast<int>(three.size() - 1));
}

TEST(Aml, Encodings) {
  EXPECT_EQ(aml::EisaId("PNP0A03"), (aml::Bytes{0x0c, 0x41, 0xd0, 0x0a, 0x03}));
  EXPECT_EQ(aml::Path("\\_SB.PCI0"), (aml::Bytes{'\\', 0x2e, '_', 'S', 'B', '_', 'P', 'C', 'I', '0'}));
  EXPECT_EQ(aml::Integer(0), aml::Bytes{0});
  EXPECT_EQ(aml::Integer(0x1234), (aml::Bytes{0x0b, 0x34, 0x12}));
  EXPECT_EQ(aml::Integer(uint64_t{1} << 32), (aml::Bytes{0x0e, 0, 0, 0, 0, 1, 0, 0, 0}));
}

}  // namespace
}  // namespace nacre::boot
