#include "devices/legacy/floppy82077.h"

#include <gtest/gtest.h>

#include "bus/conformance_testing.h"
#include "devices/legacy/floppy_testing.h"

namespace nacre::devices {
namespace {

using Bytes = std::vector<uint8_t>;
constexpr uint64_t k1440 = 1440 * kKiB;

class FloppyTest : public testing::Test {
 protected:
  FloppyTest() {
    image.Set(0, content);
    EXPECT_TRUE(bench.Plug(0, image));
    bench.PowerOn();
  }
  /// Of the image: C, H, R of a 1.44 MB diskette.
  static uint64_t Offset(unsigned c, unsigned h, unsigned r) { return ((c * 2 + h) * 18 + r - 1) * 512ull; }
  Bytes Content(unsigned c, unsigned h, unsigned r, size_t size) {
    const auto from = content.begin() + static_cast<ptrdiff_t>(Offset(c, h, r));
    return {from, from + static_cast<ptrdiff_t>(size)};
  }

  TestImage image{k1440};
  Bytes content = TestPattern(k1440, 3);
  FloppyBench bench;
};

TEST(FloppyGeometry, KnowsDiskettesBySize) {
  for (const unsigned kib : {160, 180, 320, 360, 720, 1200, 1440, 2880}) {
    const FloppyGeometry* geometry = FloppyGeometry::Find(kib * kKiB);
    ASSERT_NE(nullptr, geometry) << kib;
    EXPECT_EQ(kib * kKiB, geometry->size_bytes());
  }
  EXPECT_EQ(18, FloppyGeometry::Find(k1440)->sectors);
  for (const uint64_t size : {uint64_t{0}, uint64_t{512}, k1440 - 512, k1440 + 512, kGiB})
    EXPECT_EQ(nullptr, FloppyGeometry::Find(size));
}

TEST_F(FloppyTest, RefusesImagesThatAreNoDiskettes) {
  TestImage odd(kMiB);
  const Status status = bench.Plug(1, odd);
  ASSERT_FALSE(status);
  EXPECT_NE(std::string::npos, status.error().message.find("no diskette has 1048576 bytes"));
  EXPECT_EQ(4, bench.floppy->drive_type(0));
  EXPECT_EQ(0, bench.floppy->drive_type(1));
}

TEST_F(FloppyTest, ResetTellsOfFourDrives) {
  bench.Out(0x3f2, 0x08);
  EXPECT_EQ(0, bench.MainStatus());
  EXPECT_FALSE(bench.line.level);
  bench.Out(0x3f2, 0x0c);
  EXPECT_EQ(0x80, bench.MainStatus());
  EXPECT_TRUE(bench.line.level);
  for (uint8_t unit = 0; unit < 4; ++unit) {
    EXPECT_EQ((Bytes{static_cast<uint8_t>(0xc0 | unit), 0}), bench.Execute({0x08}));
    EXPECT_FALSE(bench.line.level);
  }
  EXPECT_EQ(Bytes{0x80}, bench.Execute({0x08})) << "nothing more to tell";
  bench.Out(0x3f4, 0x80);  // DSR
  EXPECT_TRUE(bench.line.level);
  EXPECT_EQ((Bytes{0xc0, 0}), bench.Execute({0x08}));
  bench.Execute({0x13, 0, 0x10, 0});  // polling off
  bench.Execute({0x94});              // and locked
  bench.Out(0x3f2, 0x08);
  bench.Out(0x3f2, 0x0c);
  EXPECT_FALSE(bench.line.level);
}

TEST_F(FloppyTest, InterruptsAreGatedByTheOutputRegister) {
  bench.Out(0x3f2, 0x34);
  bench.Command({0x07, 0});
  EXPECT_FALSE(bench.line.level);
  bench.Out(0x3f2, 0x3c);
  EXPECT_TRUE(bench.line.level);
}

TEST_F(FloppyTest, SeeksAndTheDiskChangeLine) {
  bench.Out(0x3f2, 0x1c);
  EXPECT_EQ(0x80, bench.In(0x3f7));
  bench.Command({0x0f, 0, 5});
  EXPECT_TRUE(bench.line.level);
  EXPECT_EQ(0x81, bench.MainStatus()) << "drive 0 seeks until it was told";
  EXPECT_EQ((Bytes{0x20, 5}), bench.Execute({0x08}));
  EXPECT_EQ(0x80, bench.MainStatus());
  EXPECT_EQ(0, bench.In(0x3f7));
  EXPECT_EQ(Bytes{0x28}, bench.Execute({0x04, 0}));
  bench.Command({0xcf, 4, 3});
  EXPECT_EQ((Bytes{0x24, 8}), bench.Execute({0x08}));
  bench.Command({0x8f, 0, 20});
  EXPECT_EQ((Bytes{0x20, 0}), bench.Execute({0x08}));
  EXPECT_EQ((Bytes{0x20, 83}), bench.Seek(200));
  bench.Command({0x07, 0});
  EXPECT_EQ((Bytes{0x70, 4}), bench.Execute({0x08})) << "79 steps are not enough";
  bench.Command({0x07, 0});
  EXPECT_EQ((Bytes{0x20, 0}), bench.Execute({0x08}));
  EXPECT_EQ(Bytes{0x3c}, bench.Execute({0x04, 4}));
  bench.Command({0x07, 1});
  EXPECT_EQ((Bytes{0x71, 0}), bench.Execute({0x08})) << "no drive";
}

TEST_F(FloppyTest, TwoDrivesEndTheirSeeksOneAfterTheOther) {
  bench.Command({0x0f, 0, 5});
  bench.Command({0x0f, 1, 6});
  EXPECT_EQ(0x83, bench.MainStatus());
  EXPECT_EQ((Bytes{0x20, 5}), bench.Execute({0x08}));
  EXPECT_TRUE(bench.line.level) << "drive 1 is still to be told";
  EXPECT_EQ((Bytes{0x21, 6}), bench.Execute({0x08}));
  EXPECT_FALSE(bench.line.level);
}

TEST_F(FloppyTest, WhoItIs) {
  EXPECT_EQ(Bytes{0x90}, bench.Execute({0x10}));
  EXPECT_EQ(Bytes{0x80}, bench.Execute({0x18})) << "PART ID came with the 82078";
  EXPECT_EQ(Bytes{0x80}, bench.Execute({0x1f}));
  EXPECT_EQ(Bytes{0x10}, bench.Execute({0x94}));
  EXPECT_EQ(Bytes{}, bench.Execute({0x13, 0, 0x57, 9}));
  EXPECT_EQ(Bytes{}, bench.Execute({0x12, 0x87}));
  bench.Seek(7);
  const Bytes registers = bench.Execute({0x0e});
  ASSERT_EQ(10u, registers.size());
  EXPECT_EQ((Bytes{7, 0, 0, 0, 0xaf, 0x02}), Bytes(registers.begin(), registers.begin() + 6));
  EXPECT_EQ((Bytes{0x87, 0x57, 9}), Bytes(registers.begin() + 7, registers.end()));
  bench.Out(0x3f4, 0x80);
  for (int i = 0; i < 4; ++i) bench.Execute({0x08});
  EXPECT_EQ(0x57, bench.Execute({0x0e})[8]) << "locked";
  EXPECT_EQ(0x84, bench.Execute({0x0e})[7]) << "GAP and WGATE are not";
  EXPECT_EQ(Bytes{0}, bench.Execute({0x14}));
  bench.Out(0x3f4, 0x80);
  for (int i = 0; i < 4; ++i) bench.Execute({0x08});
  EXPECT_EQ(0x20, bench.Execute({0x0e})[8]);
}

TEST_F(FloppyTest, ReadsByDma) {
  bench.Seek(2);
  bench.SetUpDma(3 * 512, true);
  EXPECT_EQ((Bytes{0x04, 0, 0, 2, 1, 8, 2}), bench.Transfer(0x46, 2, 1, 5, 18));
  EXPECT_EQ(Content(2, 1, 5, 3 * 512), bench.Get(FloppyBench::kData, 3 * 512));
  EXPECT_EQ(Bytes(512, 0), bench.Get(FloppyBench::kData + 3 * 512, 512));
}

TEST_F(FloppyTest, TellsOfResultsByInterrupt) {
  bench.Seek(0);
  bench.SetUpDma(512, true);
  EXPECT_FALSE(bench.line.level);
  bench.Command({0x46, 0, 0, 0, 1, 2, 18, 0x1b, 0xff});
  bench.Wait();
  EXPECT_TRUE(bench.line.level);
  EXPECT_EQ(0xd0, bench.MainStatus());
  bench.In(0x3f5);
  EXPECT_FALSE(bench.line.level);
}

TEST_F(FloppyTest, ReadsBothSidesOfACylinder) {
  bench.Seek(79);
  bench.SetUpDma(36 * 512, true);
  EXPECT_EQ((Bytes{0x04, 0, 0, 80, 0, 1, 2}), bench.Transfer(0xe6, 79, 0, 1, 18));
  EXPECT_EQ(Content(79, 0, 1, 36 * 512), bench.Get(FloppyBench::kData, 36 * 512));
  bench.SetUpDma(18 * 512, true);
  EXPECT_EQ((Bytes{0x00, 0, 0, 79, 1, 1, 2}), bench.Transfer(0xe6, 79, 0, 1, 18)) << "terminal count on side 0";
  bench.SetUpDma(18 * 512, true);
  EXPECT_EQ((Bytes{0x00, 0, 0, 80, 0, 1, 2}), bench.Transfer(0x46, 79, 0, 1, 18));
}

TEST_F(FloppyTest, TheTrackEndsBeforeTheCount) {
  bench.Seek(1);
  bench.SetUpDma(4 * 512, true);
  EXPECT_EQ((Bytes{0x40, 0x80, 0, 1, 0, 18, 2}), bench.Transfer(0x46, 1, 0, 17, 18));
  EXPECT_EQ(Content(1, 0, 17, 2 * 512), bench.Get(FloppyBench::kData, 2 * 512));
}

TEST_F(FloppyTest, ACountInsideASector) {
  bench.SetUpDma(700, true);
  EXPECT_EQ((Bytes{0x00, 0, 0, 0, 0, 3, 2}), bench.Transfer(0x46, 0, 0, 1, 18));
  EXPECT_EQ(Content(0, 0, 1, 700), bench.Get(FloppyBench::kData, 700));
  EXPECT_EQ(Bytes(100, 0), bench.Get(FloppyBench::kData + 700, 100));
  bench.Fill(FloppyBench::kData, Bytes(700, 0x77));
  bench.SetUpDma(700, false);
  EXPECT_EQ((Bytes{0x00, 0, 0, 0, 0, 3, 2}), bench.Transfer(0x45, 0, 0, 1, 18));
  EXPECT_EQ(Bytes(700, 0x77), image.Get(0, 700));
  EXPECT_EQ(Bytes(324, 0), image.Get(700, 324)) << "the rest of the sector is zeros";
  EXPECT_EQ(Content(0, 0, 3, 512), image.Get(1024, 512));
}

TEST_F(FloppyTest, WritesByDma) {
  const Bytes data = TestPattern(20 * 512, 99);
  bench.Fill(FloppyBench::kData, data);
  bench.Seek(40);
  bench.SetUpDma(20 * 512, false);
  EXPECT_EQ((Bytes{0x04, 0, 0, 40, 1, 4, 2}), bench.Transfer(0xc5, 40, 0, 2, 18));
  EXPECT_EQ(data, image.Get(Offset(40, 0, 2), data.size()));
  EXPECT_EQ(Content(40, 1, 4, 512), image.Get(Offset(40, 1, 4), 512));
}

TEST_F(FloppyTest, WaitsForTheDmaControllerAndItsGate) {
  bench.Out(0x0a, 6);
  bench.Command({0x46, 0, 0, 0, 1, 2, 18, 0x1b, 0xff});
  bench.floppy->Quiesce();
  EXPECT_EQ(0x10, bench.MainStatus());
  bench.Out(0x3f2, 0x34);
  bench.SetUpDma(512, true);
  EXPECT_EQ(0x10, bench.MainStatus());
  bench.Out(0x3f2, 0x3c);
  EXPECT_EQ((Bytes{0x00, 0, 0, 0, 0, 2, 2}), bench.Results());
}

TEST_F(FloppyTest, ReadsAndWritesByTheProcessor) {
  bench.Execute({0x03, 0xaf, 0x03});
  bench.Command({0x46, 0, 0, 0, 17, 2, 18, 0x1b, 0xff});
  Bytes data;
  for (int sector = 0; sector < 2; ++sector) {
    bench.Wait();
    EXPECT_TRUE(bench.line.level);
    for (int i = 0; i < 512; ++i) {
      EXPECT_EQ(0xf0, bench.MainStatus());
      data.push_back(bench.In(0x3f5));
    }
  }
  EXPECT_EQ(Content(0, 0, 17, 1024), data);
  EXPECT_EQ((Bytes{0x40, 0x80, 0, 0, 0, 18, 2}), bench.Results()) << "without terminal count";
  bench.Command({0x45, 0, 0, 0, 18, 2, 18, 0x1b, 0xff});
  for (int i = 0; i < 512; ++i) {
    EXPECT_EQ(0xb0, bench.MainStatus());
    bench.Out(0x3f5, static_cast<uint8_t>(i * 5));
  }
  EXPECT_EQ((Bytes{0x40, 0x80, 0, 0, 0, 18, 2}), bench.Results());
  for (size_t i = 0; i < 512; ++i) EXPECT_EQ(static_cast<uint8_t>(i * 5), image.Get(Offset(0, 0, 18), 512)[i]);
}

TEST_F(FloppyTest, SectorsThatAreNotThere) {
  bench.SetUpDma(512, true);
  EXPECT_EQ((Bytes{0x40, 0x04, 0, 0, 0, 19, 2}), bench.Transfer(0x46, 0, 0, 19, 19));
  EXPECT_EQ((Bytes{0x40, 0x04, 0, 0, 0, 0, 2}), bench.Transfer(0x46, 0, 0, 0, 18));
  EXPECT_EQ((Bytes{0x40, 0x04, 0x10, 9, 0, 1, 2}), bench.Transfer(0x46, 9, 0, 1, 18)) << "not on this cylinder";
  EXPECT_EQ((Bytes{0x40, 0x04, 0x02, 255, 0, 1, 2}), bench.Transfer(0x46, 255, 0, 1, 18));
  EXPECT_EQ((Bytes{0x40, 0x04, 0, 0, 1, 1, 2}), bench.Execute({0x46, 0, 0, 1, 1, 2, 18, 0x1b, 0xff})) << "head";
  EXPECT_EQ((Bytes{0x40, 0x04, 0, 0, 0, 1, 3}), bench.Execute({0x46, 0, 0, 0, 1, 3, 18, 0x1b, 0xff})) << "size";
  EXPECT_EQ((Bytes{0x40, 0x01, 0, 0, 0, 1, 2}), bench.Transfer(0x06, 0, 0, 1, 18)) << "FM";
  EXPECT_EQ((Bytes{0x41, 0x01, 0, 0, 0, 1, 2}), bench.Transfer(0x46, 0, 0, 1, 18, 1)) << "no drive";
  bench.Seek(80);
  EXPECT_EQ((Bytes{0x40, 0x01, 0, 80, 0, 1, 2}), bench.Transfer(0x46, 80, 0, 1, 18)) << "beyond the last cylinder";
  bench.Seek(0);
  bench.Out(0x3f7, 2);
  EXPECT_EQ((Bytes{0x40, 0x01, 0, 0, 0, 1, 2}), bench.Transfer(0x46, 0, 0, 1, 18)) << "another data rate";
  EXPECT_EQ((Bytes{0x40, 0x01, 0, 0, 0, 1, 2}), bench.Execute({0x4a, 0}));
  bench.Out(0x3f4, 0);
  EXPECT_EQ((Bytes{0x00, 0, 0, 0, 0, 2, 2}), bench.Execute({0x4a, 0}));
  EXPECT_EQ((Bytes{0x04, 0, 0, 0, 1, 3, 2}), bench.Execute({0x4a, 4})) << "the next one passes by";
}

TEST_F(FloppyTest, ImpliedSeek) {
  bench.Execute({0x13, 0, 0x40, 0});
  bench.SetUpDma(512, true);
  EXPECT_EQ((Bytes{0x20, 0, 0, 33, 0, 2, 2}), bench.Transfer(0x46, 33, 0, 1, 18));
  EXPECT_EQ(Content(33, 0, 1, 512), bench.Get(FloppyBench::kData, 512));
  EXPECT_EQ(Bytes{0x80}, bench.Execute({0x08}));
}

TEST_F(FloppyTest, VerifiesWithoutData) {
  EXPECT_EQ((Bytes{0x00, 0, 0, 1, 0, 1, 2}), bench.Transfer(0x56, 0, 0, 1, 18));
  EXPECT_EQ((Bytes{0x00, 0, 0, 0, 0, 6, 2}), bench.Execute({0x56, 0x80, 0, 0, 1, 2, 18, 0x1b, 5}));
  EXPECT_EQ((Bytes{0x04, 0, 0, 1, 0, 1, 2}), bench.Execute({0xd6, 0x80, 0, 0, 1, 2, 18, 0x1b, 36}));
  EXPECT_EQ((Bytes{0x40, 0x80, 0, 0, 0, 18, 2}), bench.Execute({0x56, 0x80, 0, 0, 1, 2, 18, 0x1b, 19}));
}

TEST_F(FloppyTest, ReadsATrackAndDeletedData) {
  bench.SetUpDma(18 * 512, true);
  EXPECT_EQ((Bytes{0x40, 0x04, 0, 0, 0, 4, 2}), bench.Transfer(0x42, 0, 0, 9, 4)) << "from the index on, whatever R";
  EXPECT_EQ(Content(0, 0, 1, 4 * 512), bench.Get(FloppyBench::kData, 4 * 512));
  bench.SetUpDma(18 * 512, true);
  EXPECT_EQ((Bytes{0x00, 0, 0x40, 0, 0, 7, 2}), bench.Transfer(0x4c, 0, 0, 7, 18)) << "has no deleted data mark";
  EXPECT_EQ((Bytes{0x40, 0x80, 0x40, 0, 0, 18, 2}), bench.Transfer(0x6c, 0, 0, 7, 18));
}

TEST_F(FloppyTest, FormatsATrack) {
  bench.Seek(3);
  Bytes ids;
  for (uint8_t sector = 1; sector <= 18; ++sector) ids.insert(ids.end(), {3, 1, sector, 2});
  bench.Fill(FloppyBench::kData, ids);
  bench.SetUpDma(static_cast<uint32_t>(ids.size()), false);
  EXPECT_EQ(0x04, bench.Execute({0x4d, 4, 2, 18, 0x54, 0xf6})[0]);
  EXPECT_EQ(Bytes(18 * 512, 0xf6), image.Get(Offset(3, 1, 1), 18 * 512));
  EXPECT_EQ(Content(3, 0, 18, 512), image.Get(Offset(3, 0, 18), 512));
  EXPECT_EQ(Content(4, 0, 1, 512), image.Get(Offset(4, 0, 1), 512));
  ids[2] = 21;
  bench.Fill(FloppyBench::kData, ids);
  bench.SetUpDma(static_cast<uint32_t>(ids.size()), false);
  EXPECT_EQ((Bytes{0x44, 0x04, 0}), [&] {
    Bytes results = bench.Execute({0x4d, 4, 2, 21, 0x54, 0xf6});
    results.resize(3);
    return results;
  }()) << "another format has no place in the image";
}

TEST_F(FloppyTest, WriteProtected) {
  TestImage other(720 * kKiB);
  ASSERT_TRUE(bench.Plug(1, other, true));
  bench.PowerOn(2);
  EXPECT_EQ(3, bench.floppy->drive_type(1));
  EXPECT_EQ(Bytes{0x79}, bench.Execute({0x04, 1}));
  bench.SetUpDma(512, false);
  EXPECT_EQ((Bytes{0x41, 0x02, 0, 0, 0, 1, 2}), bench.Transfer(0x45, 0, 0, 1, 9, 1));
  EXPECT_EQ(0x41, bench.Execute({0x4d, 1, 2, 9, 0x54, 0xf6})[0]);
  bench.SetUpDma(512, true);
  EXPECT_EQ((Bytes{0x01, 0, 0, 0, 0, 2, 2}), bench.Transfer(0x46, 0, 0, 1, 9, 1));
}

TEST_F(FloppyTest, ErrorsOfTheImage) {
  bench.io->fault = [](storage::IoOperation&) { return std::optional<int64_t>(-EIO); };
  bench.SetUpDma(512, true);
  EXPECT_EQ((Bytes{0x40, 0x20, 0x20, 0, 0, 1, 2}), bench.Transfer(0x46, 0, 0, 1, 18));
  bench.SetUpDma(512, false);
  EXPECT_EQ((Bytes{0x40, 0x20, 0x20, 0, 0, 1, 2}), bench.Transfer(0x45, 0, 0, 1, 18));
  bench.io->fault = nullptr;
  bench.SetUpDma(512, true);
  EXPECT_EQ(0, bench.Transfer(0x46, 0, 0, 1, 18)[0]);
}

TEST_F(FloppyTest, ResetEndsACommand) {
  bench.Out(0x0a, 6);
  bench.Command({0x46, 0, 0, 0, 1, 2, 18, 0x1b, 0xff});
  bench.Out(0x3f2, 0x38);
  bench.Out(0x3f2, 0x3c);
  EXPECT_EQ(0x80, bench.MainStatus());
  for (int i = 0; i < 4; ++i) bench.Execute({0x08});
  bench.SetUpDma(512, true);
  EXPECT_EQ(0, bench.Transfer(0x46, 0, 0, 1, 18)[0]);
}

TEST_F(FloppyTest, ACommandGoesOnAfterSaveAndLoad) {
  bench.Execute({0x03, 0xaf, 0x03});
  bench.Command({0x46, 0, 0, 0, 17, 2, 18, 0x1b, 0xff});
  bench.Wait();
  Bytes data;
  for (int i = 0; i < 300; ++i) data.push_back(bench.In(0x3f5));
  const auto saved = bus::Save(*bench.floppy);
  bench.floppy->Reset();
  ASSERT_TRUE(bus::Load(*bench.floppy, saved));
  EXPECT_EQ(saved, bus::Save(*bench.floppy));
  while (data.size() < 1024) {
    bench.Wait();
    data.push_back(bench.In(0x3f5));
  }
  EXPECT_EQ(Content(0, 0, 17, 1024), data);
  EXPECT_EQ(0x80, bench.Results()[1]);
}

struct FloppySubject final : bus::ConformanceSubject {
  FloppySubject() {
    EXPECT_TRUE(bench.Plug(0, image));
    EXPECT_TRUE(bench.Plug(1, other, true));
    bench.floppy->Reset();
  }
  bus::Device& device() override { return *bench.floppy; }
  std::vector<bus::ConformanceBlock> blocks() override {
    return {{&bench.floppy->io(), Floppy82077::kSize, 4}, {&bench.floppy->input_io(), 1, 1}};
  }
  void Stimulate(uint64_t random) override {
    static constexpr uint8_t kCommands[] = {0x46, 0xe6, 0x45, 0xc5, 0x56, 0x42, 0x4c, 0x4d};
    bench.Out(0xd4, 0);
    bench.Out(0x3f2, static_cast<uint8_t>(0x3c | (random & 1)));
    bench.SetUpDma(1 + (random >> 8 & 0x7ff), (random >> 3 & 1) != 0);
    const auto unit = static_cast<uint8_t>(random & 5);
    for (const uint8_t byte :
         {kCommands[(random >> 20) % std::size(kCommands)], unit, uint8_t{0}, uint8_t{0},
          static_cast<uint8_t>(random >> 28 & 15), uint8_t{2}, uint8_t{18}, uint8_t{0x1b}, uint8_t{0xff}})
      bench.Out(0x3f5, byte);
    bench.floppy->Quiesce();
  }
  TestImage image{k1440};
  TestImage other{360 * kKiB};
  FloppyBench bench;
};
TEST(Conformance, Floppy82077) {
  bus::RunConformance([] { return std::make_unique<FloppySubject>(); });
}

}  // namespace
}  // namespace nacre::devices
