// ATAPI drives on IDE, as a driver sees them.

#include <gtest/gtest.h>

#include "devices/ata/ata_testing.h"

namespace nacre::devices {
namespace {

using namespace ata;

constexpr uint8_t kGood = kReady | kSeekComplete;
constexpr uint64_t kDiscSize = kMiB;
constexpr uint32_t kSectors = kDiscSize / 2048;
using Bytes = std::vector<uint8_t>;

class AtapiTest : public testing::Test, public IdeBench {
 protected:
  AtapiTest() {
    disc.Set(0, TestPattern(kDiscSize, 5));
    channel = 1;
    PlugCd(2, disc);
    PowerOn();
  }
  void Ready() {
    EXPECT_EQ(kGood | kError, Packet({0}));
    EXPECT_EQ(kGood, Packet({0}));
  }
  Bytes Sense() {
    Packet({0x03, 0, 0, 0, 18});
    return ReadAnswer();
  }
  /// Key and additional sense code of a command that must fail.
  std::pair<int, int> Fails(const Bytes& packet) {
    EXPECT_NE(0, Packet(packet) & kError);
    const Bytes sense = Sense();
    return sense.size() == 18 ? std::pair<int, int>{sense[2], sense[12]} : std::pair<int, int>{-1, -1};
  }
  TestImage disc{kDiscSize};
};

TEST_F(AtapiTest, SignatureAndIdentify) {
  EXPECT_EQ(0, AltStatus());
  EXPECT_EQ(0x14, In(4));
  EXPECT_EQ(0xeb, In(5));
  Command28(0xec, 0, 0);
  EXPECT_EQ(kGood | kError, Wait()) << "IDENTIFY DEVICE is for disks";
  EXPECT_EQ(0xeb, In(5));
  Command28(0xa1, 0, 0);
  const Bytes data = ReadBlocks();
  ASSERT_EQ(512u, data.size());
  EXPECT_EQ(0x85c0, LoadLe<uint16_t>(&data[0]));
}

TEST_F(AtapiTest, PhasesAndInterrupts) {
  Ready();
  lines[1].rises = 0;
  In(7);
  Select(0);
  Out(1, 0);
  Out(4, 0xfe);
  Out(5, 0xff);
  Out(7, 0xa0);
  EXPECT_EQ(kGood | kDataRequest, AltStatus());
  EXPECT_EQ(kReasonCommand, In(2));
  EXPECT_FALSE(lines[1].level);
  for (const unsigned word : {0x0025u, 0u, 0u, 0u, 0u, 0u}) ports.Write(0x170, 2, word);
  EXPECT_TRUE(lines[1].level);
  EXPECT_EQ(kReasonToHost, In(2));
  EXPECT_EQ(8, In(4));
  In(7);
  Bytes data;
  for (int i = 0; i < 4; ++i) {
    const uint64_t word = ports.Read(0x170, 2);
    data.push_back(static_cast<uint8_t>(word));
    data.push_back(static_cast<uint8_t>(word >> 8));
  }
  EXPECT_EQ((Bytes{0, 0, 1, 0xff, 0, 0, 8, 0}), data);
  EXPECT_TRUE(lines[1].level);
  EXPECT_EQ(kReasonCommand | kReasonToHost, In(2));
  EXPECT_EQ(kGood, In(7));
}

TEST_F(AtapiTest, ReadsInBlocksOfTheByteCountLimit) {
  Ready();
  Packet({0x28, 0, 0, 0, 0, 3, 0, 0, 40}, false, 3000);
  lines[1].rises = 0;
  EXPECT_EQ(disc.Get(3 * 2048, 40 * 2048), ReadAnswer());
  EXPECT_GT(lines[1].rises, -1);
}

TEST_F(AtapiTest, ReadsByDma) {
  Ready();
  SetTable({{kData, 0x8000}, {kData + 0x10000, 0x8000}});
  Packet({0xa8, 0, 0, 0, 0, 100, 0, 0, 0, 32}, true);
  EXPECT_EQ(kGood, RunDma(true));
  EXPECT_EQ(disc.Get(100 * 2048, 0x8000), Get(kData, 0x8000));
  EXPECT_EQ(disc.Get(100 * 2048 + 0x8000, 0x8000), Get(kData + 0x10000, 0x8000));
}

TEST_F(AtapiTest, AddressesOutsideTheDisc) {
  Ready();
  EXPECT_EQ((std::pair{5, 0x21}), Fails({0x28, 0, 0, 0, kSectors >> 8, kSectors & 0xff, 0, 0, 1}));
  EXPECT_EQ((std::pair{5, 0x21}), Fails({0xa8, 0, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff}));
  EXPECT_EQ((std::pair{5, 0x21}), Fails({0x28, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1}));
}

TEST_F(AtapiTest, TableOfContentsAndOtherAnswers) {
  Ready();
  Packet({0x43, 0, 0, 0, 0, 0, 0, 0, 20});
  const Bytes toc = ReadAnswer();
  ASSERT_EQ(20u, toc.size());
  EXPECT_EQ(18, toc[1]);
  EXPECT_EQ(0xaa, toc[14]);
  EXPECT_EQ(kSectors, toc[18] << 8u | toc[19]);
  Packet({0x43, 2, 0, 0, 0, 0, 0xaa, 0, 12});
  EXPECT_EQ((Bytes{0, 10, 1, 1, 0, 0x14, 0xaa, 0, 0, 0, (kSectors + 150) / 75, (kSectors + 150) % 75}), ReadAnswer());
  Packet({0x12, 0, 0, 0, 36});
  EXPECT_EQ(36u, ReadAnswer().size());
  Packet({0x46, 0, 0, 0, 0, 0, 0, 0, 200});
  const Bytes features = ReadAnswer();
  EXPECT_EQ(8, features[7]) << "profile CD-ROM";
  Packet({0x51, 0, 0, 0, 0, 0, 0, 0, 34});
  EXPECT_EQ(34u, ReadAnswer().size());
  Packet({0x5a, 0, 0x2a, 0, 0, 0, 0, 0, 30});
  EXPECT_EQ(28u, ReadAnswer().size());
  EXPECT_EQ((std::pair{5, 0x24}), Fails({0x5a, 0, 0x11, 0, 0, 0, 0, 0, 30}));
  EXPECT_EQ((std::pair{5, 0x20}), Fails({0x2a}));
  Packet({0xbe, 0, 0, 0, 0, 2, 0, 0, 1, 0x10});
  EXPECT_EQ(disc.Get(4096, 2048), ReadAnswer());
}

TEST_F(AtapiTest, EjectLoadAndLock) {
  Ready();
  EXPECT_EQ(kGood, Packet({0x1e, 0, 0, 0, 1}));
  EXPECT_EQ((std::pair{5, 0x53}), Fails({0x1b, 0, 0, 0, 2}));
  EXPECT_EQ(kGood, Packet({0x1e, 0, 0, 0, 0}));
  EXPECT_EQ(kGood, Packet({0x1b, 0, 0, 0, 2}));
  EXPECT_EQ((std::pair{2, 0x3a}), Fails({0x28, 0, 0, 0, 0, 0, 0, 0, 1}));
  Packet({0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8});
  EXPECT_EQ((Bytes{0, 6, 4, 0x10, 3, 1, 0, 0}), ReadAnswer());
  EXPECT_EQ(kGood, Packet({0x1b, 0, 0, 0, 3}));
  Packet({0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8});
  EXPECT_EQ((Bytes{0, 6, 4, 0x10, 2, 2, 0, 0}), ReadAnswer());
  EXPECT_EQ((std::pair{6, 0x28}), Fails({0}));
  EXPECT_EQ(kGood, Packet({0}));
}

TEST_F(AtapiTest, ErrorsOfTheImage) {
  Ready();
  io->fault = [](storage::IoOperation&) { return std::optional<int64_t>(-EIO); };
  EXPECT_EQ((std::pair{3, 0x11}), Fails({0x28, 0, 0, 0, 0, 0, 0, 0, 1}));
  io->fault = nullptr;
  EXPECT_EQ(kGood | kDataRequest, Packet({0x28, 0, 0, 0, 0, 0, 0, 0, 1}));
}

TEST_F(AtapiTest, DeviceResetEndsACommand) {
  Ready();
  Packet({0x28, 0, 0, 0, 0, 0, 0, 0, 40});
  Out(7, 0x08);
  EXPECT_EQ(0, AltStatus());
  EXPECT_EQ(0x14, In(4));
  EXPECT_EQ(kGood, Packet({0}));
}

TEST_F(AtapiTest, OddImagesAreRefused) {
  TestImage odd{2048 * 3 + 512};
  const auto drive = AtapiDrive::Create({.name = "--cdrom x.iso"}, odd.Open(io, true));
  ASSERT_FALSE(drive.has_value());
  EXPECT_NE(std::string::npos, drive.error().message.find("2048"));
}

}  // namespace
}  // namespace nacre::devices
