// The PIIX3 IDE function with ATA disks, as a driver sees them.

#include <gtest/gtest.h>

#include "devices/ata/ata_testing.h"

namespace nacre::devices {
namespace {

using namespace ata;

constexpr uint64_t kDiskSize = 64 * kMiB;
constexpr uint8_t kGood = kReady | kSeekComplete;

class IdeTest : public testing::Test, public IdeBench {
 protected:
  IdeTest() {
    PlugDisk(0, image);
    PlugDisk(1, second, true);
    PowerOn();
  }
  std::vector<uint8_t> Identify() {
    Command28(0xec, 0, 0);
    return ReadBlocks();
  }
  static uint16_t Word(const std::vector<uint8_t>& data, unsigned word) { return LoadLe<uint16_t>(&data[2 * word]); }
  TestImage image{kDiskSize};
  TestImage second{kMiB};
};

TEST_F(IdeTest, IsAPiix3) {
  EXPECT_EQ(0x70108086u, ide->ConfigRead(0, 4));
  EXPECT_EQ(0x010180u, ide->ConfigRead(8, 4) >> 8);
  ide->ConfigWrite(0x20, 4, 0xffffffff);
  EXPECT_EQ(0xfffffff1u, ide->ConfigRead(0x20, 4));
}

TEST_F(IdeTest, PortsFollowTheDecodeBits) {
  EXPECT_EQ(kGood, In(7));
  ide->ConfigWrite(0x40, 2, 0);
  EXPECT_FALSE(ports.Claims(0x1f0));
  EXPECT_TRUE(ports.Claims(0x170));
  ide->ConfigWrite(0x40, 2, 0x8000);
  EXPECT_TRUE(ports.Claims(0x1f0));
  ide->ConfigWrite(pci::kCommand, 2, 0);
  EXPECT_FALSE(ports.Claims(0x1f7));
  EXPECT_FALSE(ports.Claims(0x3f6));
}

TEST_F(IdeTest, AnEmptyChannelAndAMissingDriveReadZero) {
  channel = 1;
  EXPECT_EQ(0, In(7));
  EXPECT_EQ(0, AltStatus());
  IdeBench one;
  one.PlugDisk(0, image);
  one.PowerOn();
  one.Select(1);
  EXPECT_EQ(0, one.In(7));
  one.Out(3, 0x55);
  EXPECT_EQ(0, one.In(3));
  one.Out(7, 0xec);
  EXPECT_EQ(0, one.AltStatus());
}

TEST_F(IdeTest, IdentifyTellsSizeAndModes) {
  const auto data = Identify();
  ASSERT_EQ(512u, data.size());
  EXPECT_TRUE(lines[0].level);
  In(7);
  EXPECT_FALSE(lines[0].level) << "reading the status register takes the interrupt back";
  EXPECT_EQ(kDiskSize / 512, LoadLe<uint32_t>(&data[120]));
  EXPECT_EQ(kDiskSize / 512, LoadLe<uint64_t>(&data[200]));
  EXPECT_EQ(kDiskSize / 512 / 1008, Word(data, 1));
  EXPECT_EQ('E', data[20]);
  EXPECT_EQ('T', data[21]);
  EXPECT_EQ(0x2f00, Word(data, 49));
  EXPECT_EQ(0x0407, Word(data, 63)) << "multiword DMA 2";
  EXPECT_NE(0, Word(data, 83) & 1 << 10);
  uint8_t sum = 0;
  for (const uint8_t byte : data) sum = static_cast<uint8_t>(sum + byte);
  EXPECT_EQ(0xa5, data[510]);
  EXPECT_EQ(0, sum);
}

TEST_F(IdeTest, TwoDrivesOnOneCable) {
  place = 1;
  const auto data = Identify();
  EXPECT_EQ(kMiB / 512, LoadLe<uint32_t>(&data[120]));
  EXPECT_EQ(0xf0, In(6) & 0xf0);
  place = 0;
  EXPECT_EQ(kDiskSize / 512, LoadLe<uint32_t>(&Identify()[120]));
}

TEST_F(IdeTest, ReadSectorsInterruptsForEachBlock) {
  image.Set(512 * 100, TestPattern(1024, 1));
  Command28(0x20, 100, 2);
  EXPECT_EQ(kGood | kDataRequest, Wait());
  EXPECT_TRUE(lines[0].level);
  EXPECT_EQ(kGood | kDataRequest, In(7));
  EXPECT_FALSE(lines[0].level);
  EXPECT_EQ(TestPattern(1024, 1), ReadBlocks());
  EXPECT_EQ(2, lines[0].rises);
  EXPECT_EQ(kGood, AltStatus());
}

TEST_F(IdeTest, DataMovesInEveryWidth) {
  image.Set(0, TestPattern(512, 9));
  for (const unsigned width : {1u, 2u, 4u}) {
    Command28(0x20, 0, 1);
    EXPECT_EQ(TestPattern(512, 9), ReadBlocks(512, width)) << width;
    const auto data = TestPattern(512, 20 + width);
    Command28(0x30, 50 + width, 1);
    WriteBlocks(data, 512, width);
    EXPECT_EQ(data, image.Get(512 * (50 + width), 512));
  }
}

TEST_F(IdeTest, MultipleSectorsToABlock) {
  Select(0);
  Out(2, 4);
  Out(7, 0xc6);
  EXPECT_EQ(kGood, Wait());
  image.Set(0, TestPattern(512 * 6, 2));
  lines[0].rises = 0;
  Command28(0xc4, 0, 6);
  std::vector<uint8_t> data;
  for (unsigned i = 0; i < 6 * 256; ++i) {
    if (i % (4 * 256) == 0) {
      EXPECT_NE(0, Wait() & kDataRequest);
      In(7);
    }
    const uint64_t word = ports.Read(0x1f0, 2);
    data.push_back(static_cast<uint8_t>(word));
    data.push_back(static_cast<uint8_t>(word >> 8));
  }
  EXPECT_EQ(TestPattern(512 * 6, 2), data);
  EXPECT_EQ(2, lines[0].rises);
  Out(2, 3);
  Out(7, 0xc6);
  EXPECT_EQ(kGood | kError, Wait()) << "not a power of two";
  EXPECT_EQ(kAbort, In(1));
}

TEST_F(IdeTest, DmaScattersOverPieces) {
  image.Set(512 * 7, TestPattern(4096, 3));
  SetTable({{kData, 1000}, {kData + 0x3000, 24}, {kData + 0x5000, 3072}});
  Command28(0xc8, 7, 8);
  EXPECT_EQ(kGood, RunDma(true));
  auto got = Get(kData, 1000);
  const auto middle = Get(kData + 0x3000, 24), rest = Get(kData + 0x5000, 3072);
  got.insert(got.end(), middle.begin(), middle.end());
  got.insert(got.end(), rest.begin(), rest.end());
  EXPECT_EQ(TestPattern(4096, 3), got);
  EXPECT_EQ(0x04, MasterStatus() & 7) << "interrupt, not active any more, no error";
  EXPECT_TRUE(lines[0].level);
}

TEST_F(IdeTest, DmaBeforeAndAfterTheCommandIsWritten) {
  Fill(kData, TestPattern(65536, 4));
  SetTable({{kData, 0}});  // 64 KiB
  StartDma(false);
  Command48(0x35, 200, 128);
  EXPECT_EQ(kGood, Wait());
  EXPECT_EQ(TestPattern(65536, 4), image.Get(512 * 200, 65536));
}

TEST_F(IdeTest, ATableThatIsLongerThanTheCommandStaysActive) {
  SetTable({{kData, 4096}, {kData + 4096, 4096}});
  Command28(0xc8, 0, 8);
  StartDma(true);
  EXPECT_EQ(kGood, Wait());
  EXPECT_EQ(0x05, MasterStatus() & 7);
  StopDma();
  EXPECT_EQ(0x04, MasterStatus() & 7);
}

TEST_F(IdeTest, ATableThatIsTooShortLeavesTheDriveWaiting) {
  SetTable({{kData, 1024}});
  Command28(0xc8, 0, 8);
  StartDma(true);
  for (int i = 0; i < 100 && (MasterStatus() & 1) != 0; ++i) io->Wait();
  EXPECT_EQ(0, MasterStatus() & 7);
  EXPECT_EQ(kBusy, AltStatus());
  StopDma();
  SetTable({{kData + 0x4000, 3072}});
  image.Set(1024, TestPattern(3072, 5));
  EXPECT_EQ(kGood, RunDma(true)) << "and another table serves the rest";
  EXPECT_EQ(TestPattern(3072, 5), Get(kData + 0x4000, 3072));
}

TEST_F(IdeTest, DmaOutsideRamFails) {
  SetTable({{kData, 512}, {0xc000'0000, 4096}});
  Command28(0xc8, 0, 8);
  EXPECT_EQ(kGood | kError, RunDma(true));
  EXPECT_EQ(kAbort, In(1));
  EXPECT_NE(0, MasterStatus() & 2);
  ports.Write(master() + 4u, 4, 0xf000'0000);
  Command28(0xc8, 0, 8);
  EXPECT_EQ(kGood | kError, RunDma(true)) << "a table outside RAM";
}

TEST_F(IdeTest, DmaNeedsTheBusMasterBit) {
  ide->ConfigWrite(pci::kCommand, 2, pci::kCommandIo);
  SetTable({{kData, 512}});
  Command28(0xc8, 0, 1);
  StartDma(true);
  EXPECT_EQ(kBusy, AltStatus());
}

TEST_F(IdeTest, LongTransfersOfSmallPiecesArriveWhole) {
  std::vector<Region> regions;
  for (unsigned i = 0; i < 4096; ++i) regions.push_back({kData + 2 * i, 2});
  SetTable(regions);
  image.Set(0, TestPattern(8192, 6));
  Command28(0xc8, 0, 16);
  EXPECT_EQ(kGood, RunDma(true));
  EXPECT_EQ(TestPattern(8192, 6), Get(kData, 8192));
}

TEST_F(IdeTest, AddressesOutsideTheDiskAreNotFound) {
  const uint32_t sectors = kDiskSize / 512;
  for (const uint8_t command : {0x20, 0x30, 0x40, 0xc8, 0xca}) {
    Command28(command, sectors - 1, 2);
    EXPECT_EQ(kGood | kError, Wait());
    EXPECT_EQ(kNotFound, In(1));
  }
  for (const uint8_t command : {0x24, 0x34, 0x42, 0x25, 0x35}) {
    Command48(command, sectors, 1);
    EXPECT_EQ(kGood | kError, Wait());
    EXPECT_EQ(kNotFound, In(1));
    Command48(command, 1, 0);
    if (command == 0x24 || command == 0x42) {
      EXPECT_EQ(0, Wait() & kError) << "count 0 is 65536 sectors";
      Control(kSoftReset);
      Control(0);
    } else {
      Control(kSoftReset);
      Control(0);
    }
  }
}

TEST_F(IdeTest, CylindersHeadsAndSectors) {
  Out(6, 0xa0 | 15);
  Out(2, 100);
  Out(7, 0x91);  // 100 sectors, 16 heads
  EXPECT_EQ(kGood, Wait());
  image.Set(512 * ((3 * 16 + 5) * 100 + 41), TestPattern(512, 8));
  const auto read = [&](uint8_t head, uint16_t cylinder, uint8_t sector) {
    Out(6, static_cast<uint8_t>(0xa0 | head));
    Out(2, 1);
    Out(3, sector);
    Out(4, static_cast<uint8_t>(cylinder));
    Out(5, static_cast<uint8_t>(cylinder >> 8));
    Out(7, 0x20);
    return Wait();
  };
  EXPECT_NE(0, read(5, 3, 42) & kDataRequest);
  EXPECT_EQ(TestPattern(512, 8), ReadBlocks());
  EXPECT_EQ(kGood | kError, read(5, 3, 0));
  EXPECT_EQ(kGood | kError, read(5, 3, 101));
  EXPECT_EQ(kGood | kError, read(0, 65535, 1));
}

TEST_F(IdeTest, HighOrderBytesAreThereToRead) {
  Command48(0x24, 0x1234'5678'9abc, 0x1122);
  EXPECT_NE(0, Wait() & kError);
  Control(kHighOrder);
  EXPECT_EQ(0x11, In(2));
  EXPECT_EQ(0x56, In(3));
  EXPECT_EQ(0x12, In(5));
  Control(0);
  EXPECT_EQ(0xbc, In(3));
}

TEST_F(IdeTest, ErrorsOfTheImageBecomeErrorsOfTheDrive) {
  io->fault = [](storage::IoOperation&) { return std::optional<int64_t>(-EIO); };
  Command28(0x20, 1000, 4);
  EXPECT_EQ(kGood | kError, Wait());
  EXPECT_EQ(kUncorrectable, In(1));
  EXPECT_EQ(1000 & 0xff, In(3));
  SetTable({{kData, 4096}});
  Command28(0xc8, 0, 8);
  EXPECT_EQ(kGood | kError, RunDma(true));
  EXPECT_EQ(kUncorrectable, In(1));
  Command28(0xca, 0, 8);
  EXPECT_EQ(kGood | kError, RunDma(false));
  EXPECT_EQ(kAbort, In(1));
  Command28(0xe7, 0, 0);
  EXPECT_EQ(kGood | kError, Wait());
  io->fault = nullptr;
  Command28(0xe7, 0, 0);
  EXPECT_EQ(kGood, Wait());
}

TEST_F(IdeTest, AReadOnlyDiskRefusesWrites) {
  place = 1;
  for (const uint8_t command : {0x30, 0xc5, 0xca}) {
    Command28(command, 0, 1);
    EXPECT_EQ(kGood | kError, Wait());
    EXPECT_NE(0, In(1) & kAbort);
  }
  Command28(0x20, 0, 1);
  EXPECT_EQ(512u, ReadBlocks().size());
}

TEST_F(IdeTest, FlushAndWriteThrough) {
  unsigned syncs = 0;
  io->fault = [&](storage::IoOperation& operation) -> std::optional<int64_t> {
    syncs += operation.kind == storage::IoOperation::Kind::kSync;
    return std::nullopt;
  };
  Command28(0xe7, 0, 0);
  EXPECT_EQ(kGood, Wait());
  Command48(0xea, 0, 0);
  EXPECT_EQ(kGood, Wait());
  EXPECT_EQ(2u, syncs);
  SetTable({{kData, 512}});
  Command28(0xca, 0, 1);
  EXPECT_EQ(kGood, RunDma(false));
  EXPECT_EQ(2u, syncs);
  Command48(0x3d, 0, 1);
  EXPECT_EQ(kGood, RunDma(false));
  EXPECT_EQ(3u, syncs) << "FUA";
  Out(1, 0x82);
  Out(7, 0xef);
  EXPECT_EQ(kGood, Wait());
  Command28(0xca, 0, 1);
  EXPECT_EQ(kGood, RunDma(false));
  EXPECT_EQ(5u, syncs) << "turning the cache off flushes it; without it, each write is flushed";
}

TEST_F(IdeTest, TrimGivesRangesBack) {
  image.Set(0, TestPattern(65536, 1));
  Fill(kData, std::vector<uint8_t>(512));
  memory.WriteValue(GuestPhys(kData), uint64_t{16} << 48 | 8);
  memory.WriteValue(GuestPhys(kData + 8), uint64_t{8} << 48 | 64);
  SetTable({{kData, 512}});
  const auto trim = [&](uint8_t features) {
    Select(0);
    Out(1, features);
    Command48(0x06, 0, 1);
    return RunDma(false);
  };
  EXPECT_EQ(kGood, trim(1));
  EXPECT_EQ(std::vector<uint8_t>(8192), image.Get(4096, 8192));
  EXPECT_EQ(std::vector<uint8_t>(4096), image.Get(32768, 4096));
  EXPECT_EQ(TestPattern(65536, 1)[40960], image.Get(40960, 1)[0]);
  memory.WriteValue(GuestPhys(kData + 8), uint64_t{8} << 48 | kDiskSize / 512);
  EXPECT_EQ(kGood | kError, trim(1));
  EXPECT_EQ(kGood | kError, trim(0));
}

TEST_F(IdeTest, SmartIsMinimalAndPowerModesAreAnswered) {
  const auto smart = [&](uint8_t what, uint16_t key = 0xc24f) {
    Select(0);
    Out(1, what);
    Out(4, static_cast<uint8_t>(key));
    Out(5, static_cast<uint8_t>(key >> 8));
    Out(7, 0xb0);
    return Wait();
  };
  EXPECT_EQ(kGood, smart(0xda));
  EXPECT_EQ(0x4f, In(4));
  EXPECT_EQ(0xc2, In(5));
  EXPECT_EQ(kGood | kDataRequest, smart(0xd0));
  EXPECT_EQ(512u, ReadBlocks().size());
  EXPECT_EQ(kGood | kError, smart(0xda, 0));
  EXPECT_EQ(kGood, smart(0xd9));
  EXPECT_EQ(kGood | kError, smart(0xd0));
  Command28(0xe5, 0, 0);
  Wait();
  EXPECT_EQ(0xff, In(2));
  Command28(0xe0, 0, 0);
  Wait();
  Command28(0xe5, 0, 0);
  Wait();
  EXPECT_EQ(0x00, In(2));
}

TEST_F(IdeTest, SoftResetEndsCommandsAndGivesTheSignature) {
  io->hold = true;
  Command28(0x20, 0, 1);
  EXPECT_EQ(kBusy, AltStatus());
  io->hold = false;
  Control(kSoftReset);
  EXPECT_EQ(kBusy, AltStatus());
  Control(0);
  EXPECT_EQ(kGood, AltStatus());
  EXPECT_EQ(1, In(1));
  EXPECT_EQ(1, In(2));
  EXPECT_EQ(1, In(3));
  EXPECT_EQ(0, In(4));
  EXPECT_EQ(0, In(5));
  EXPECT_FALSE(lines[0].level);
}

TEST_F(IdeTest, InterruptsCanBeTurnedOff) {
  Control(kInterruptsOff);
  Command28(0xec, 0, 0);
  EXPECT_FALSE(lines[0].level);
  Control(0);
  EXPECT_TRUE(lines[0].level);
  In(7);
  EXPECT_FALSE(lines[0].level);
}

TEST_F(IdeTest, UnknownCommandsAreAborted) {
  for (const uint8_t command : {0x00, 0x22, 0xa0, 0xa1, 0xf5, 0x60, 0xff}) {
    Command28(command, 0, 0);
    EXPECT_EQ(kGood | kError, Wait());
    EXPECT_EQ(kAbort, In(1));
  }
}

TEST_F(IdeTest, TheStateMovesInTheMiddleOfABlock) {
  image.Set(0, TestPattern(1024, 7));
  Command28(0x20, 0, 2);
  Wait();
  for (unsigned i = 0; i < 100; ++i) ports.Read(0x1f0, 2);
  auto saving = state::Archive::ForSaving();
  ide->Serialize(saving);
  const auto bytes = saving.Finish();
  IdeBench other;
  other.PlugDisk(0, image);
  other.PlugDisk(1, second, true);
  other.PowerOn();
  auto loading = state::Archive::ForLoading(bytes);
  other.ide->Serialize(loading);
  ASSERT_TRUE(loading.ok()) << loading.status().error().message;
  std::vector<uint8_t> rest;
  for (unsigned i = 0; i < 156 + 256; ++i) {
    other.Wait();
    const uint64_t word = other.ports.Read(0x1f0, 2);
    rest.push_back(static_cast<uint8_t>(word));
    rest.push_back(static_cast<uint8_t>(word >> 8));
  }
  const auto all = TestPattern(1024, 7);
  EXPECT_EQ(std::vector<uint8_t>(all.begin() + 200, all.end()), rest);
}

TEST_F(IdeTest, AStateOfAnotherDiskIsRejected) {
  auto saving = state::Archive::ForSaving();
  ide->Serialize(saving);
  const auto bytes = saving.Finish();
  IdeBench other;
  other.PlugDisk(0, second);
  other.PlugDisk(1, second, true);
  other.PowerOn();
  auto loading = state::Archive::ForLoading(bytes);
  other.ide->Serialize(loading);
  EXPECT_FALSE(loading.ok());
}

}  // namespace
}  // namespace nacre::devices
