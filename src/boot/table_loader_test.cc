// The table loader's script, carried out as firmware does, gives tables that a guest finds.

#include "boot/table_loader.h"

#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <numeric>
#include <string>

#include "base/bits.h"
#include "boot/smbios.h"

namespace nacre::boot {
namespace {

uint8_t Sum(std::span<const uint8_t> bytes) {
  return std::accumulate(bytes.begin(), bytes.end(), uint8_t{0},
                         [](uint8_t a, uint8_t b) { return static_cast<uint8_t>(a + b); });
}

/// Firmware: files go to addresses of its own choice.
class Loader {
 public:
  explicit Loader(const FirmwareTables& made) {
    files_[kAcpiTablesFile] = {made.tables, 0x7fe0000};
    files_[kAcpiRsdpFile] = {made.rsdp, 0xf5a00};
    files_[kGenerationIdFile] = {std::vector<uint8_t>(kGenerationIdFileBytes), kGenerationIdAt};
    files_[kGenerationIdPlaceFile] = {std::vector<uint8_t>(8), 0};
    for (size_t at = 0; at + 128 <= made.loader.size(); at += 128) Run(&made.loader[at]);
    EXPECT_EQ(made.loader.size() % 128, 0u);
  }
  std::span<const uint8_t> At(uint64_t address) {
    for (auto& [name, file] : files_)
      if (address >= file.address && address < file.address + file.bytes.size())
        return std::span<const uint8_t>(file.bytes).subspan(address - file.address);
    ADD_FAILURE() << "nothing at " << address;
    return {};
  }
  static constexpr uint64_t kGenerationIdAt = 0x7fdf000;
  /// What the host is told.
  uint64_t generation_id_place() { return LoadLe<uint64_t>(files_[kGenerationIdPlaceFile].bytes.data()); }
  const std::vector<uint8_t>& rsdp() { return files_[kAcpiRsdpFile].bytes; }

 private:
  struct File {
    std::vector<uint8_t> bytes;
    uint64_t address = 0;
    bool allocated = false;
  };
  File& Named(const uint8_t* name) {
    const std::string text(reinterpret_cast<const char*>(name));
    EXPECT_TRUE(files_.contains(text)) << text;
    return files_[text];
  }
  void Run(const uint8_t* command) {
    File& file = Named(command + 4);
    switch (LoadLe<uint32_t>(command)) {
      case 1:
        file.allocated = true;
        EXPECT_EQ(file.address % LoadLe<uint32_t>(command + 60), 0u);
        return;
      case 2: {
        const File& to = Named(command + 60);
        EXPECT_TRUE(file.allocated && to.allocated);
        const uint32_t at = LoadLe<uint32_t>(command + 116);
        uint64_t value = 0;
        std::memcpy(&value, &file.bytes.at(at), command[120]);
        value += to.address;
        std::memcpy(&file.bytes.at(at), &value, command[120]);
        return;
      }
      case 3: {
        uint8_t& sum = file.bytes.at(LoadLe<uint32_t>(command + 60));
        const auto range =
            std::span(file.bytes).subspan(LoadLe<uint32_t>(command + 64), LoadLe<uint32_t>(command + 68));
        EXPECT_EQ(sum, 0);  // SeaBIOS takes it into account, OVMF does not
        sum = static_cast<uint8_t>(-Sum(range));
        return;
      }
      case 4: {
        const File& to = Named(command + 60);
        EXPECT_TRUE(to.allocated && !file.allocated);
        ASSERT_EQ(command[124], 8);
        const uint64_t value = to.address + LoadLe<uint32_t>(command + 120);
        StoreLe(&file.bytes.at(LoadLe<uint32_t>(command + 116)), value);
        return;
      }
      default:
        ADD_FAILURE() << "command " << LoadLe<uint32_t>(command);
    }
  }
  std::map<std::string, File> files_;
};

TEST(TableLoader, TablesAreFoundWhereFirmwarePutThem) {
  AcpiConfig config;
  config.cpu_count = 3;
  config.pm_event_port = 0x600;
  Loader loader(BuildFirmwareTables(config));
  EXPECT_EQ(Sum(loader.rsdp()), 0);
  EXPECT_EQ(Sum(std::span(loader.rsdp()).first(20)), 0);
  for (const bool extended : {false, true}) {
    const auto root = loader.At(extended ? LoadLe<uint64_t>(&loader.rsdp()[24]) : LoadLe<uint32_t>(&loader.rsdp()[16]));
    const uint32_t length = LoadLe<uint32_t>(&root[4]);
    EXPECT_EQ(Sum(root.first(length)), 0);
    std::map<std::string, std::span<const uint8_t>> found;
    for (size_t at = 36; at < length; at += extended ? 8 : 4) {
      const auto rest = loader.At(extended ? LoadLe<uint64_t>(&root[at]) : LoadLe<uint32_t>(&root[at]));
      const auto table = rest.first(LoadLe<uint32_t>(&rest[4]));
      EXPECT_EQ(Sum(table), 0);
      found[std::string(table.begin(), table.begin() + 4)] = table;
    }
    ASSERT_TRUE(found.contains("FACP") && found.contains("APIC"));
    const auto fadt = found["FACP"];
    EXPECT_EQ(LoadLe<uint32_t>(&fadt[40]), LoadLe<uint64_t>(&fadt[140]));
    const auto dsdt = loader.At(LoadLe<uint64_t>(&fadt[140]));
    EXPECT_EQ(std::string(dsdt.begin(), dsdt.begin() + 4), "DSDT");
    const auto facs = loader.At(LoadLe<uint32_t>(&fadt[36]));
    EXPECT_EQ(std::string(facs.begin(), facs.begin() + 4), "FACS");
  }
}

TEST(TableLoader, GuestAndHostLearnWhereTheGenerationIdIs) {
  AcpiConfig config;
  config.has_generation_id = true;
  Loader loader(BuildFirmwareTables(config));
  EXPECT_EQ(loader.generation_id_place(), Loader::kGenerationIdAt + kGenerationIdOffset);
  const auto fadt = loader.At(LoadLe<uint64_t>(&loader.At(LoadLe<uint64_t>(&loader.rsdp()[24]))[36]));
  const auto dsdt = loader.At(LoadLe<uint64_t>(&fadt[140]));
  EXPECT_EQ(std::string(&dsdt[kGenerationIdPointerAt - 5], &dsdt[kGenerationIdPointerAt - 1]), "VGIA");
  EXPECT_EQ(LoadLe<uint32_t>(&dsdt[kGenerationIdPointerAt]), Loader::kGenerationIdAt);
  EXPECT_EQ(Sum(dsdt.first(LoadLe<uint32_t>(&dsdt[4]))), 0);
  EXPECT_EQ(BuildFirmwareTables(AcpiConfig()).loader.size() + 4 * 128, BuildFirmwareTables(config).loader.size())
      << "allocate, two pointers, a checksum";
}

TEST(TableLoader, SizesDoNotDependOnAddresses) {
  AcpiConfig config;
  const FirmwareTables before = BuildFirmwareTables(config);
  config.pm_event_port = config.pm_control_port = config.pm_timer_port = 0xb000;
  config.pci_memory32 = {0x80000000, 0xfebfffff};
  config.pci_memory64 = {0x8000000000, 0x8fffffffff};
  const FirmwareTables after = BuildFirmwareTables(config);
  EXPECT_EQ(before.tables.size(), after.tables.size());
  EXPECT_EQ(before.loader.size(), after.loader.size());
}

TEST(Smbios, StructuresFollowEachOtherToTheEnd) {
  const SmbiosTables smbios = BuildSmbios(4, 5 * kGiB);
  EXPECT_EQ(Sum(smbios.anchor), 0);
  EXPECT_EQ(Sum(std::span(smbios.anchor).subspan(16)), 0);
  EXPECT_EQ(LoadLe<uint16_t>(&smbios.anchor[22]), smbios.tables.size());
  std::map<unsigned, unsigned> types;
  size_t at = 0;
  while (at + 4 <= smbios.tables.size()) {
    ++types[smbios.tables[at]];
    size_t next = at + smbios.tables[at + 1];
    while (next + 1 < smbios.tables.size() && (smbios.tables[next] != 0 || smbios.tables[next + 1] != 0)) ++next;
    at = next + 2;
  }
  EXPECT_EQ(at, smbios.tables.size());
  EXPECT_EQ(types,
            (std::map<unsigned, unsigned>{{1, 1}, {3, 1}, {4, 4}, {16, 1}, {17, 1}, {19, 1}, {32, 1}, {127, 1}}));
  EXPECT_EQ(LoadLe<uint16_t>(&smbios.anchor[28]), 11);
}

}  // namespace
}  // namespace nacre::boot
