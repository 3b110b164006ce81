// Motorola MC146818A.

#include "devices/legacy/rtc.h"

#include <gtest/gtest.h>

#include "devices/chipset/device_testing.h"

namespace nacre::devices {
namespace {

constexpr int64_t kSecond = kNsPerSecond;

class RtcTest : public testing::Test {
 protected:
  uint8_t Get(uint8_t index) {
    rtc_.Write(0, 1, index);
    return static_cast<uint8_t>(rtc_.Read(1, 1));
  }
  void Put(uint8_t index, uint8_t value) {
    rtc_.Write(0, 1, index);
    rtc_.Write(1, 1, value);
  }

  ManualScheduler scheduler_;
  TestWallClock wall_{scheduler_};
  TestLine irq_;
  Rtc rtc_{scheduler_, wall_, irq_};
};

TEST_F(RtcTest, TimeInBcdAndOverALeapDay) {
  EXPECT_EQ(Get(0), 0x50);
  EXPECT_EQ(Get(2), 0x59);
  EXPECT_EQ(Get(4), 0x23);
  EXPECT_EQ(Get(6), 4);  // a Wednesday
  EXPECT_EQ(Get(7), 0x28);
  EXPECT_EQ(Get(8), 0x02);
  EXPECT_EQ(Get(9), 0x24);
  EXPECT_EQ(Get(0x32), 0x20);
  EXPECT_EQ(Get(13), 0x80);
  scheduler_.Advance(10 * kSecond);
  EXPECT_EQ(Get(0), 0x00);
  EXPECT_EQ(Get(4), 0x00);
  EXPECT_EQ(Get(7), 0x29);
  scheduler_.Advance(24 * 3600 * kSecond);
  EXPECT_EQ(Get(7), 0x01);
  EXPECT_EQ(Get(8), 0x03);
}

TEST_F(RtcTest, BinaryAndTwelveHourFormats) {
  Put(11, 0x04);
  EXPECT_EQ(Get(0), 50);
  EXPECT_EQ(Get(2), 59);
  EXPECT_EQ(Get(4), 0x80 | 11);
  scheduler_.Advance(10 * kSecond);
  EXPECT_EQ(Get(4), 12);  // midnight
}

TEST_F(RtcTest, SettingTheTimeUnderSet) {
  Put(11, 0x82);
  scheduler_.Advance(5 * kSecond);
  EXPECT_EQ(Get(0), 0x50);  // stands still
  for (const auto& [index, value] :
       {std::pair<uint8_t, uint8_t>{0, 0x30}, {2, 0x15}, {4, 0x08}, {7, 0x31}, {8, 0x12}, {9, 0x99}, {0x32, 0x19}})
    Put(index, value);
  Put(11, 0x02);
  scheduler_.Advance(2 * kSecond);
  EXPECT_EQ(Get(0), 0x32);
  EXPECT_EQ(Get(9), 0x99);
  EXPECT_EQ(Get(0x32), 0x19);
  EXPECT_EQ(Get(6), 6);  // 1999-12-31 was a Friday
}

TEST_F(RtcTest, NonsenseIsBroughtIntoRange) {
  Put(11, 0x86);
  for (const uint8_t index : {0, 2, 4, 6, 7, 8, 9, 0x32}) Put(index, 0xff);
  Put(11, 0x06);
  scheduler_.Advance(kSecond);
  EXPECT_LT(Get(0), 60);
  EXPECT_LT(Get(4), 24);
  EXPECT_LE(Get(7), 31);
  EXPECT_LE(Get(8), 12);
}

TEST_F(RtcTest, UpdateInProgressBeforeTheSecondEnds) {
  EXPECT_EQ(Get(10) & 0x80, 0);
  scheduler_.Advance(kSecond - 2'000'000);
  EXPECT_EQ(Get(10) & 0x80, 0x80);
  scheduler_.Advance(2'000'000);
  EXPECT_EQ(Get(10) & 0x80, 0);
}

TEST_F(RtcTest, UpdateEndedInterrupt) {
  Put(11, 0x12);
  scheduler_.Advance(kSecond);
  EXPECT_TRUE(irq_.level);
  EXPECT_EQ(Get(12) & 0xb0, 0x90);
  EXPECT_FALSE(irq_.level);
  EXPECT_EQ(Get(12), 0);
  scheduler_.Advance(kSecond);
  EXPECT_TRUE(irq_.level);
}

TEST_F(RtcTest, FlagsAreSetWithoutInterruptsToo) {
  scheduler_.Advance(kSecond);
  EXPECT_EQ(Get(12) & 0x50, 0x50);
  EXPECT_EQ(irq_.rises, 0);
}

TEST_F(RtcTest, AlarmWithDontCare) {
  Put(1, 0x05);
  Put(3, 0xc0);  // every minute
  Put(5, 0xff);  // every hour
  Get(12);
  Put(11, 0x22);
  scheduler_.Advance(14 * kSecond);
  EXPECT_FALSE(irq_.level);
  scheduler_.Advance(kSecond);
  EXPECT_TRUE(irq_.level);
  EXPECT_EQ(Get(12) & 0xa0, 0xa0);
  scheduler_.Advance(60 * kSecond);
  EXPECT_EQ(irq_.rises, 2);
}

TEST_F(RtcTest, PeriodicInterruptAtItsRate) {
  Put(10, 0x26);  // 1024 Hz
  Put(11, 0x42);
  int seen = 0;
  for (int i = 0; i < 1000; ++i) {
    scheduler_.Advance(kSecond / 1000);
    if (irq_.level) {
      ++seen;
      EXPECT_EQ(Get(12) & 0xc0, 0xc0);
    }
  }
  EXPECT_GE(seen, 999);
  Put(11, 0x02);
  irq_.rises = 0;
  scheduler_.Advance(kSecond);
  EXPECT_EQ(irq_.rises, 0);
}

TEST_F(RtcTest, CmosRamKeepsItsBytesOverReset) {
  Put(0x40, 0xa5);
  rtc_.SetMemorySize(3 * kGiB, 5 * kGiB);
  rtc_.Reset();
  EXPECT_EQ(Get(0x40), 0xa5);
  EXPECT_EQ(Get(0x34) | Get(0x35) << 8, 0xbf00);  // (3 GiB - 16 MiB) / 64 KiB
  EXPECT_EQ(Get(0x5b) | Get(0x5c) << 8 | Get(0x5d) << 16, 0x14000);
  EXPECT_EQ(Get(0x15) | Get(0x16) << 8, 640);
}

TEST_F(RtcTest, IndexBit7MasksNmi) {
  rtc_.Write(0, 1, 0x80 | 0x40);
  EXPECT_TRUE(rtc_.nmi_masked());
  rtc_.Write(0, 1, 0x40);
  EXPECT_FALSE(rtc_.nmi_masked());
}

}  // namespace
}  // namespace nacre::devices
