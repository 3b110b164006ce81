// PCI Local Bus 3.0; tests named after its sections.

#include <gtest/gtest.h>

#include "base/bits.h"
#include "devices/chipset/device_testing.h"
#include "devices/chipset/small_ports.h"
#include "devices/pci/pci_host.h"

namespace nacre::devices {
namespace {

struct Register final : bus::IoHandler {
  uint64_t Read(uint64_t offset, unsigned size) override { return MaskToSize(value + offset, size); }
  void Write(uint64_t, unsigned, uint64_t written) override { value = written; }
  uint64_t value = 0;
};

class Card final : public PciDevice {
 public:
  explicit Card(const PciWiring& wiring) : PciDevice("card", {0x1234, 0x5678, 0x1af4, 1, 0x020000, 3, 1}, wiring) {
    AddBar(0, BarKind::kIo, 32);
    AddBarBlock(0, 0, 32, io);
    AddBar(1, BarKind::kMemory32, 0x2000);
    AddMsix(1, 0x1000, 3);
    AddBarBlock(1, 0, 0x1000, memory);
    AddBar(4, BarKind::kMemory64Prefetchable, 0x100000);
    AddBarBlock(4, 0x1000, 0x1000, memory);
    const uint8_t body[] = {6, 0xaa, 0xbb, 0xcc};
    const uint8_t mask[] = {0, 0, 0xff, 0};
    vendor_capability = AddCapability(pci::kCapVendor, body, mask);
    AddMsi(4);
    Reset();
  }
  void ResetFunction() override {}
  void SerializeFunction(state::Archive&) override {}
  using PciDevice::msi_enabled;
  using PciDevice::msix_enabled;
  using PciDevice::NotifyVector;
  using PciDevice::SetIntx;
  Register io, memory;
  unsigned vendor_capability = 0;
};

class PciTest : public testing::Test {
 protected:
  PciTest() {
    EXPECT_TRUE(host_.Attach(card_, 3));
    mapping_ = ports_.Add(0xcf8, 8, host_.io(), "pci");
  }
  uint64_t ReadSlot(unsigned slot, unsigned offset, unsigned size) {
    ports_.Write(0xcf8, 4, 0x80000000 | slot << 11 | (offset & ~3u));
    return ports_.Read(0xcfc + (offset & 3), size);
  }
  uint64_t Config(unsigned offset, unsigned size = 4) { return ReadSlot(3, offset, size); }
  void Config(unsigned offset, unsigned size, uint64_t value) {
    ports_.Write(0xcf8, 4, 0x80000000 | 3 << 11 | (offset & ~3u));
    ports_.Write(0xcfc + (offset & 3), size, value);
  }
  unsigned Capability(uint8_t id) {
    for (uint64_t at = Config(0x34, 1); at != 0; at = Config(static_cast<unsigned>(at) + 1, 1)) {
      if (Config(static_cast<unsigned>(at), 1) == id) return static_cast<unsigned>(at);
    }
    ADD_FAILURE() << "no capability " << int{id};
    return 0;
  }

  bus::PortBus ports_;
  bus::MemoryBus memory_;
  TestMsiSink msi_;
  PciWiring wiring_{&ports_, &memory_, &msi_};
  TestLine lines_[4];
  PciHost host_{wiring_, {&lines_[0], &lines_[1], &lines_[2], &lines_[3]}, {16, 17, 18, 19}};
  Card card_{wiring_};
  bus::Mapping mapping_;
};

TEST_F(PciTest, ConfigurationMechanism1_3_2_2_3_2) {
  EXPECT_EQ(Config(0), 0x56781234u);
  EXPECT_EQ(Config(2, 2), 0x5678u);
  EXPECT_EQ(ReadSlot(0, 0, 4), 0x12378086u);  // the bridge
  EXPECT_EQ(ReadSlot(5, 0, 4), 0xffffffffu);  // an empty slot
  ports_.Write(0xcf8, 4, 0x80010000);         // another bus
  EXPECT_EQ(ports_.Read(0xcfc, 4), 0xffffffffu);
  ports_.Write(0xcf8, 4, 3 << 11);  // not enabled
  EXPECT_EQ(ports_.Read(0xcfc, 4), 0xffffffffu);
  ports_.Write(0xcf8, 4, 0x80001800);
  ports_.Write(0xcf8, 2, 0);  // not a dword: not the address register
  EXPECT_EQ(ports_.Read(0xcf8, 4), 0x80001800u);
}

TEST_F(PciTest, ResetControlIsReachedAsAByte) {
  TestMachine machine;
  ResetControl reset(machine);
  host_.SetResetControl(&reset);
  ports_.Write(0xcf9, 1, 6);
  EXPECT_EQ(machine.resets, 1);
  EXPECT_EQ(ports_.Read(0xcf9, 1), 6u);
}

TEST_F(PciTest, IdentityIsReadOnly_6_2_1) {
  Config(0, 4, 0);
  Config(8, 4, 0);
  EXPECT_EQ(Config(0), 0x56781234u);
  EXPECT_EQ(Config(8), 0x02000003u);
  EXPECT_EQ(Config(0x2c), 0x00011af4u);
  EXPECT_EQ(Config(0x3d, 1), 1u);
  EXPECT_EQ(Config(0x06, 2) & 0x10, 0x10u);
}

TEST_F(PciTest, SizingBaseAddresses_6_2_5_1) {
  for (const unsigned bar : {0x10, 0x14, 0x18, 0x20, 0x24}) Config(bar, 4, 0xffffffff);
  EXPECT_EQ(Config(0x10), 0xffffffe1u);
  EXPECT_EQ(Config(0x14), 0xffffe000u);
  EXPECT_EQ(Config(0x18), 0u);
  EXPECT_EQ(Config(0x20), 0xfff0000cu);
  EXPECT_EQ(Config(0x24), 0xffffffffu);
}

TEST_F(PciTest, BarsDecodeOnlyWhileEnabled_6_2_2) {
  card_.memory.value = 0x77;
  Config(0x10, 4, 0xc001);
  Config(0x14, 4, 0xe0000000);
  Config(0x20, 4, 0x00000000);
  Config(0x24, 4, 0x10);
  EXPECT_EQ(memory_.Read(0xe0000000, 1), 0xffu);
  Config(4, 2, 2);
  EXPECT_EQ(memory_.Read(0xe0000000, 1), 0x77u);
  EXPECT_EQ(memory_.Read(0x1000001000, 1), 0x77u);
  EXPECT_EQ(memory_.Read(0x1000000000, 1), 0xffu);  // a gap in the BAR
  EXPECT_EQ(ports_.Read(0xc000, 1), 0xffu);
  Config(4, 2, 3);
  EXPECT_EQ(ports_.Read(0xc005, 1), 5u);
  Config(0x14, 4, 0xe8000000);  // moves
  EXPECT_EQ(memory_.Read(0xe0000000, 1), 0xffu);
  EXPECT_EQ(memory_.Read(0xe8000000, 1), 0x77u);
  Config(4, 2, 0);
  EXPECT_EQ(memory_.Read(0xe8000000, 1), 0xffu);
}

TEST_F(PciTest, CapabilityListAndWriteMasks_6_7) {
  const unsigned at = Capability(pci::kCapVendor);
  EXPECT_EQ(at, card_.vendor_capability);
  Config(at + 2, 2, 0);
  Config(at + 4, 2, 0);
  EXPECT_EQ(Config(at + 2, 1), 6u);
  EXPECT_EQ(Config(at + 4, 1), 0u);
  EXPECT_EQ(Config(at + 5, 1), 0xccu);
}

TEST_F(PciTest, IntxReachesItsRotatedLineUnlessDisabled_6_2_2_And_6_2_4) {
  TestLine& line = lines_[PciHost::PirqOf(3, 1)];
  card_.SetIntx(true);
  EXPECT_TRUE(line.level);
  EXPECT_EQ(Config(6, 2) & 8, 8u);
  Config(4, 2, 0x400);
  EXPECT_FALSE(line.level);
  EXPECT_EQ(Config(6, 2) & 8, 8u);  // the status still tells
  Config(4, 2, 0);
  EXPECT_TRUE(line.level);
  card_.Reset();
  EXPECT_FALSE(line.level);
}

TEST_F(PciTest, MsixSendsMasksAndKeepsPending_6_8_2) {
  const unsigned at = Capability(pci::kCapMsix);
  EXPECT_EQ(Config(at + 2, 2), 2u);  // three vectors
  EXPECT_EQ(Config(at + 4), 0x1001u);
  const uint64_t pba = 0xe0000000 + (Config(at + 8) & ~7u);
  Config(0x14, 4, 0xe0000000);
  Config(4, 2, 2);
  const uint64_t table = 0xe0001000;
  memory_.Write(table + 16, 8, 0xfee01000);
  memory_.Write(table + 24, 4, 0x4041);
  EXPECT_EQ(memory_.Read(table + 28, 4), 1u);  // masked after reset
  Config(at + 2, 2, 0x8000);
  EXPECT_TRUE(card_.msix_enabled());
  card_.NotifyVector(1);
  EXPECT_TRUE(msi_.sent.empty());
  EXPECT_EQ(memory_.Read(pba, 8), 2u);
  Config(4, 2, 6);  // bus master: messages are memory writes
  memory_.Write(table + 28, 4, 0);
  ASSERT_EQ(msi_.sent.size(), 1u);
  EXPECT_EQ(msi_.sent[0], (std::pair<uint64_t, uint32_t>{0xfee01000, 0x4041}));
  EXPECT_EQ(memory_.Read(pba, 8), 0u);
  Config(at + 2, 2, 0xc000);  // function mask
  card_.NotifyVector(1);
  card_.NotifyVector(1);
  EXPECT_EQ(msi_.sent.size(), 1u);
  Config(at + 2, 2, 0x8000);
  EXPECT_EQ(msi_.sent.size(), 2u);
  card_.NotifyVector(3);  // there is no such vector
  memory_.Write(pba, 8, 0xff);
  EXPECT_EQ(memory_.Read(pba, 8), 0u);  // read-only
  EXPECT_EQ(msi_.sent.size(), 2u);
}

TEST_F(PciTest, MsixTableTakesPartialAccesses_6_8_2_6) {
  Config(0x14, 4, 0xe0000000);
  Config(4, 2, 2);
  const uint64_t table = 0xe0001000;
  memory_.Write(table, 8, 0x1122334455667788);
  EXPECT_EQ(memory_.Read(table, 8), 0x1122334455667788u);
  EXPECT_EQ(memory_.Read(table + 3, 2), 0x4455u);
  EXPECT_EQ(memory_.Read(table + 1, 8), 0x0011223344556677u);
}

TEST_F(PciTest, MsiNumbersItsVectorsInTheData_6_8_1) {
  const unsigned at = Capability(pci::kCapMsi);
  EXPECT_EQ(Config(at + 2, 2), 0x0184u);
  Config(at + 4, 4, 0xfee02000);
  Config(at + 12, 2, 0x4050);
  Config(4, 2, 4);
  Config(at + 2, 2, 0x0021);  // enable, four vectors
  card_.NotifyVector(2);
  ASSERT_EQ(msi_.sent.size(), 1u);
  EXPECT_EQ(msi_.sent[0].second, 0x4052u);
  Config(at + 16, 4, 0x4);
  card_.NotifyVector(2);
  EXPECT_EQ(msi_.sent.size(), 1u);
  EXPECT_EQ(Config(at + 20), 4u);
  Config(at + 16, 4, 0);
  EXPECT_EQ(msi_.sent.size(), 2u);
  EXPECT_EQ(Config(at + 20), 0u);
  Config(at + 12, 2, 0x4060);
  card_.NotifyVector(1);
  EXPECT_EQ(msi_.sent.back().second, 0x4061u) << "the data of now";
  Config(at + 2, 2, 0x0020);
  card_.NotifyVector(1);
  EXPECT_EQ(msi_.sent.size(), 3u);
}

TEST_F(PciTest, MsixSendsTheMessageOfNow_6_8_2) {
  const unsigned at = Capability(pci::kCapMsix);
  Config(0x14, 4, 0xe0000000);
  Config(4, 2, 6);
  const uint64_t entry = 0xe0001000;
  memory_.Write(entry, 8, 0xfee00000);
  memory_.Write(entry + 8, 8, 0x41);
  Config(at + 2, 2, 0x8000);
  card_.NotifyVector(0);
  memory_.Write(entry + 8, 4, 0x42);
  card_.NotifyVector(0);
  memory_.Write(entry + 12, 4, 1);
  memory_.Write(entry + 8, 4, 0x43);
  card_.NotifyVector(0);
  memory_.Write(entry + 12, 4, 0);
  ASSERT_EQ(msi_.sent.size(), 3u);
  EXPECT_EQ(msi_.sent[0].second, 0x41u);
  EXPECT_EQ(msi_.sent[1].second, 0x42u);
  EXPECT_EQ(msi_.sent[2].second, 0x43u);
  card_.Reset();
  card_.NotifyVector(0);
  EXPECT_EQ(msi_.sent.size(), 3u);
}

TEST_F(PciTest, DirectBootAssignsWhatFirmwareWould) {
  PciWindows windows;
  windows.memory32_start = 0xd0000000;
  windows.memory32_end = 0xe0000000;
  windows.memory64_start = 0x800000000;
  windows.memory64_end = 0x900000000;
  ASSERT_TRUE(host_.AssignResources(windows));
  EXPECT_EQ(card_.BarAddress(0), 0xc000u);
  EXPECT_EQ(card_.BarAddress(1), 0xd0000000u);
  EXPECT_EQ(card_.BarAddress(4), 0x800000000u);
  EXPECT_EQ(Config(0x3c, 1), 16u + PciHost::PirqOf(3, 1));
  windows.memory32_end = windows.memory32_start + 0x1000;
  EXPECT_FALSE(host_.AssignResources(windows));
}

TEST_F(PciTest, SlotsAreChecked) {
  Card other(wiring_);
  EXPECT_FALSE(host_.Attach(other, 3));
  EXPECT_FALSE(host_.Attach(other, 32));
  const Result<unsigned> slot = host_.AttachAnywhere(other);
  ASSERT_TRUE(slot);
  EXPECT_EQ(*slot, 1u);
}

TEST_F(PciTest, EcamShowsTheSameRegisters) {
  EXPECT_EQ(host_.ecam().Read(3 << 15, 4), 0x56781234u);
  EXPECT_EQ(host_.ecam().Read((3 << 15) + 0x100, 4), 0u);  // no extended capabilities
  EXPECT_EQ(host_.ecam().Read(5 << 15, 4), 0xffffffffu);
  host_.ecam().Write((3 << 15) + 4, 2, 2);
  EXPECT_EQ(Config(4, 2), 2u);
}

}  // namespace
}  // namespace nacre::devices
