#include "devices/ata/ahci.h"

#include <gtest/gtest.h>

#include "devices/ata/ahci_testing.h"

namespace nacre::devices {
namespace {

using namespace ata;

constexpr uint64_t kDiskSize = 64 * kMiB;
constexpr uint32_t kGood = kReady | kSeekComplete;
constexpr uint32_t kTaskFileError = 1u << 30;

class AhciTest : public testing::Test, public AhciBench {
 protected:
  AhciTest() {
    disc.Set(0, TestPattern(kMiB, 11));
    PlugDisk(0, image);
    PlugCd(1, disc);
    PowerOn();
    StartPort(1);
    StartPort(0);
  }
  TestImage image{kDiskSize};
  TestImage disc{kMiB};
};

TEST_F(AhciTest, IsAnIch9) {
  EXPECT_EQ(0x29228086u, ahci->ConfigRead(0, 4));
  EXPECT_EQ(0x010601u, ahci->ConfigRead(8, 4) >> 8);
  EXPECT_EQ(5u, Hba(0) & 0x1f);
  EXPECT_EQ(31u, Hba(0) >> 8 & 0x1f);
  EXPECT_EQ(0x3fu, Hba(0x0c));
  EXPECT_EQ(0x80000002u, Hba(4));
}

TEST_F(AhciTest, LinksAndSignatures) {
  ahci->Reset();
  Enable();
  for (port = 0; port < 2; ++port) {
    EXPECT_EQ(0x123u, Reg(kSsts));
    EXPECT_EQ(port == 0 ? 0x00000101u : 0xeb140101u, Reg(kSig));
    EXPECT_NE(0u, Reg(kIs) & 1 << 6) << "connect change";
  }
  EXPECT_EQ(0u, Reg(kSsts)) << "port 2 is empty";
  EXPECT_EQ(0x7fu, Reg(kTfd));
}

TEST_F(AhciTest, PortResetBringsTheLinkUpAgain) {
  SetReg(kCmd, 0x10);
  SetReg(kSctl, 0x301);
  EXPECT_EQ(0u, Reg(kSsts));
  EXPECT_EQ(0x7fu, Reg(kTfd));
  SetReg(kSctl, 0x300);
  EXPECT_EQ(0x123u, Reg(kSsts));
  EXPECT_EQ(kGood | 0x100, Reg(kTfd));
  EXPECT_NE(0u, Reg(kSerr) & 1 << 26);
  EXPECT_EQ(0x34, Get(Frames() + 0x40, 1)[0]) << "the signature was received";
}

TEST_F(AhciTest, IdentifyIsProgrammedIo) {
  EXPECT_EQ(kGood, Execute({.command = 0xec}, {{kData, 512}}));
  EXPECT_EQ(kDiskSize / 512, LoadLe<uint64_t>(&Get(kData + 200, 8)[0]));
  EXPECT_EQ(0x010e, LoadLe<uint16_t>(&Get(kData + 152, 2)[0])) << "NCQ";
  EXPECT_NE(0u, Reg(kIs) & 2) << "a PIO setup frame with interrupt";
  EXPECT_EQ(0u, Reg(kIs) & 1);
  const auto frame = Get(Frames() + 0x20, 20);
  EXPECT_EQ(0x5f, frame[0]);
  EXPECT_EQ(0x60, frame[1]);
  EXPECT_EQ(kGood, frame[15]);
  EXPECT_EQ(512u, LoadLe<uint32_t>(&Get(List() + 4, 4)[0])) << "bytes moved";
  EXPECT_TRUE(line.level);
  EXPECT_EQ(1u, Hba(8));
  SetReg(kIs, 0xffffffff);
  EXPECT_TRUE(line.level);
  SetHba(8, 1);
  EXPECT_FALSE(line.level);
}

TEST_F(AhciTest, DmaReadsAndWrites) {
  const auto data = TestPattern(128 * 512, 2);
  Fill(kData, data);
  EXPECT_EQ(kGood, Execute({.command = 0x35, .lba = 1000, .count = 128}, {{kData, 1000}, {kData + 1000, 64536}}));
  EXPECT_EQ(data, image.Get(512'000, data.size()));
  EXPECT_EQ(kGood, Execute({.command = 0x25, .lba = 1000, .count = 128}, {{kData + 0x20000, 65536}}, 7));
  EXPECT_EQ(data, Get(kData + 0x20000, data.size()));
  EXPECT_EQ(65536u, LoadLe<uint32_t>(&Get(List() + 32 * 7 + 4, 4)[0]));
  EXPECT_NE(0u, Reg(kIs) & 1);
  EXPECT_EQ(0u, Reg(kCi));
}

TEST_F(AhciTest, QueuedCommandsRunTogether) {
  const auto data = TestPattern(32 * 4096, 3);
  Fill(kData, data);
  uint32_t all = 0;
  for (unsigned tag = 0; tag < 32; ++tag) {
    SetCommand(tag, {.command = 0x61, .lba = tag * 8, .count = static_cast<uint16_t>(tag << 3), .features = 8},
               {{kData + 4096 * tag, 4096}});
    all |= 1u << tag;
  }
  SetReg(kSact, all);
  SetReg(kCi, all);
  EXPECT_EQ(0u, Reg(kCi)) << "the drive took them all";
  for (unsigned tag = 0; tag < 32; ++tag) Wait(tag);
  EXPECT_EQ(0u, Reg(kSact));
  EXPECT_EQ(data, image.Get(0, data.size()));
  EXPECT_NE(0u, Reg(kIs) & 8) << "set device bits";
  EXPECT_EQ(0xa1, Get(Frames() + 0x58, 1)[0]);
  EXPECT_EQ(kGood,
            Execute({.command = 0x60, .lba = 0, .count = 5 << 3, .features = 256}, {{kData + 0x40000, 131072}}, 5));
  EXPECT_EQ(data, Get(kData + 0x40000, 131072));
}

TEST_F(AhciTest, AFailedQueuedCommandStopsTheListAndIsLogged) {
  EXPECT_EQ(kGood | kError | kNotFound << 8,
            Execute({.command = 0x60, .lba = kDiskSize / 512, .count = 3 << 3, .features = 1}, {{kData, 512}}, 3));
  EXPECT_NE(0u, Reg(kIs) & kTaskFileError);
  SetCommand(4, {.command = 0xec}, {{kData, 512}});
  Issue(4);
  EXPECT_EQ(1u << 4, Reg(kCi) & 1u << 4) << "nothing runs until ST was cleared";
  Recover();
  EXPECT_EQ(0u, Reg(kCi) | Reg(kSact));
  EXPECT_EQ(kGood, Execute({.command = 0x2f, .lba = 0x10, .count = 1}, {{kData, 512}}));
  const auto log = Get(kData, 512);
  EXPECT_EQ(3, log[0]);
  EXPECT_EQ(kNotFound, log[3]);
  EXPECT_EQ(kDiskSize / 512, LoadLe<uint32_t>(&log[4]) & 0xffffff);
}

TEST_F(AhciTest, HostErrorsOfQueuedCommands) {
  io->fault = [](storage::IoOperation&) { return std::optional<int64_t>(-EIO); };
  EXPECT_EQ(kGood | kError | kUncorrectable << 8,
            Execute({.command = 0x60, .count = 9 << 3, .features = 8}, {{kData, 4096}}, 9));
  EXPECT_EQ(1u << 9, Reg(kSact));
  io->fault = nullptr;
  Recover();
  EXPECT_EQ(kGood, Execute({.command = 0x60, .count = 9 << 3, .features = 8}, {{kData, 4096}}, 9));
}

TEST_F(AhciTest, ErrorsKeepTheSlotIssued) {
  EXPECT_EQ(kGood | kError | kNotFound << 8,
            Execute({.command = 0x25, .lba = kDiskSize / 512, .count = 1}, {{kData, 512}}, 2));
  EXPECT_EQ(4u, Reg(kCi));
  EXPECT_EQ(2u, Reg(kCmd) >> 8 & 0x1f) << "the current slot";
  EXPECT_NE(0u, Reg(kIs) & kTaskFileError);
  Recover();
  EXPECT_EQ(0u, Reg(kCi));
  EXPECT_EQ(kGood, Execute({.command = 0xec}, {{kData, 512}}));
}

TEST_F(AhciTest, TablesThatAreTooShortOrLeadOutsideRam) {
  EXPECT_NE(0u, Execute({.command = 0x25, .count = 8}, {{kData, 1024}}) & kError);
  EXPECT_NE(0u, Reg(kIs) & 1 << 24) << "overflow";
  Recover();
  EXPECT_NE(0u, Execute({.command = 0xec}, {}) & kError);
  EXPECT_NE(0u, Reg(kIs) & 1 << 24);
  Recover();
  EXPECT_NE(0u, Execute({.command = 0x25, .count = 8}, {{0xd0000000, 4096}}) & kError);
  EXPECT_NE(0u, Reg(kIs) & 1 << 29) << "host bus error";
  Recover();
  EXPECT_NE(0u, Execute({.command = 0x60, .count = 0, .features = 8}, {{kData, 100}}) & kError);
  Recover();
  SetReg(0x04, 0x80);
  Issue(0);
  EXPECT_NE(0u, Reg(kIs) & 1 << 29) << "a command list outside RAM";
}

TEST_F(AhciTest, PacketsReadTheDisc) {
  port = 1;
  const auto run = [&](const std::vector<uint8_t>& packet, uint16_t features, const std::vector<Region>& regions) {
    SetCommand(0, {.command = 0xa0, .features = features}, regions, 1 << 5);
    SetPacket(0, packet);
    Issue(0);
    return Wait(0);
  };
  EXPECT_NE(0u, run({0}, 0, {}) & kError) << "unit attention";
  Recover();
  EXPECT_EQ(kGood, run({0}, 0, {}));
  EXPECT_EQ(kGood, run({0x25}, 0, {{kData, 8}}));
  EXPECT_EQ((std::vector<uint8_t>{0, 0, 1, 0xff, 0, 0, 8, 0}), Get(kData, 8));
  EXPECT_EQ(kGood, run({0x28, 0, 0, 0, 0, 16, 0, 0, 64}, 1, {{kData, 131072}}));
  EXPECT_EQ(disc.Get(16 * 2048, 131072), Get(kData, 131072));
  EXPECT_EQ(kGood, run({0x28, 0, 0, 0, 0, 16, 0, 0, 64}, 0, {{kData + 0x40000, 131072}})) << "programmed I/O";
  EXPECT_EQ(disc.Get(16 * 2048, 131072), Get(kData + 0x40000, 131072));
}

TEST_F(AhciTest, SoftResetByFrames) {
  SetCommand(0, {.control = kSoftReset, .is_command = false}, {}, 1 << 8 | 1 << 10);
  SetCommand(1, {.is_command = false}, {});
  Issue(0);
  EXPECT_EQ(0u, Reg(kCi));
  Issue(1);
  EXPECT_EQ(0u, Reg(kCi));
  EXPECT_EQ(kGood | 0x100, Reg(kTfd));
  EXPECT_EQ(0x00000101u, Reg(kSig));
}

TEST_F(AhciTest, StoppingDropsWhatRuns) {
  io->hold = true;
  SetCommand(0, {.command = 0x60, .count = 0, .features = 8}, {{kData, 4096}});
  Issue(0, true);
  EXPECT_EQ(1u, Reg(kSact));
  io->hold = false;
  SetReg(kCmd, 0x10);
  EXPECT_EQ(0u, Reg(kSact));
  EXPECT_EQ(0u, Reg(kIs) & 8);
  EXPECT_EQ(0u, Reg(kCmd) & 1 << 15);
}

TEST_F(AhciTest, MessagesInsteadOfTheLine) {
  unsigned at = ahci->ConfigRead(pci::kCapabilities, 1);
  while (ahci->ConfigRead(at, 1) != pci::kCapMsi) at = ahci->ConfigRead(at + 1, 1);
  ahci->ConfigWrite(at + 4, 4, 0xfee00000);
  ahci->ConfigWrite(at + 12, 2, 0x51);
  ahci->ConfigWrite(at + 2, 2, 1);
  EXPECT_EQ(kGood, Execute({.command = 0xec}, {{kData, 512}}));
  ASSERT_EQ(1u, msi.sent.size());
  EXPECT_EQ(0x51u, msi.sent[0].second);
  EXPECT_FALSE(line.level);
  SetHba(8, 1);
  EXPECT_EQ(2u, msi.sent.size()) << "the port's cause is still there";
  SetReg(kIs, 0xffffffff);
  SetHba(8, 1);
  EXPECT_EQ(2u, msi.sent.size());
}

TEST_F(AhciTest, NothingMovesWithoutBusMastering) {
  ahci->ConfigWrite(pci::kCommand, 2, pci::kCommandMemory);
  SetCommand(0, {.command = 0xec}, {{kData, 512}});
  Issue(0);
  EXPECT_EQ(1u, Reg(kCi));
  EXPECT_EQ(std::vector<uint8_t>(512), Get(kData, 512));
}

TEST_F(AhciTest, TheStateMoves) {
  io->hold = true;
  SetCommand(2, {.command = 0x60, .count = 2 << 3, .features = 8}, {{kData, 4096}});
  image.Set(0, TestPattern(4096, 6));
  Issue(2, true);
  io->hold = false;
  auto saving = state::Archive::ForSaving();
  ahci->Serialize(saving);
  const auto bytes = saving.Finish();
  EXPECT_EQ(TestPattern(4096, 6), Get(kData, 4096)) << "what was in flight is done before the state is taken";
  AhciBench other;
  other.PlugDisk(0, image);
  other.PlugCd(1, disc);
  other.PowerOn();
  auto loading = state::Archive::ForLoading(bytes);
  other.ahci->Serialize(loading);
  ASSERT_TRUE(loading.ok()) << loading.status().error().message;
  EXPECT_EQ(0u, other.Reg(kSact));
  EXPECT_TRUE(other.line.level);
  EXPECT_EQ(kGood, other.Execute({.command = 0xec}, {{kData, 512}}));
}

}  // namespace
}  // namespace nacre::devices
