// IA-PC HPET Specification 1.0a.

#include "devices/chipset/hpet.h"

#include <gtest/gtest.h>

#include "base/bits.h"
#include "devices/chipset/device_testing.h"

namespace nacre::devices {
namespace {

class HpetTest : public testing::Test {
 protected:
  static uint64_t Timer(unsigned index, uint64_t reg) { return 0x100 + 0x20 * index + reg; }
  uint64_t Read(uint64_t offset) { return hpet_.Read(offset, 8); }
  void Write(uint64_t offset, uint64_t value) { hpet_.Write(offset, 8, value); }

  ManualScheduler scheduler_;
  TestLine irq0_, irq8_, routes_[4];
  TestMsiSink msi_;
  Hpet hpet_{scheduler_, {&irq0_, &irq8_, {&routes_[0], &routes_[1], &routes_[2], &routes_[3]}}, msi_};
};

TEST_F(HpetTest, CapabilitiesNamePeriodAndTimers_2_3_4) {
  EXPECT_EQ(hpet_.Read(4, 4), 10'000'000u);
  EXPECT_EQ(Read(0) >> 8 & 0x1f, 2u);
  EXPECT_EQ(Read(Timer(0, 0)) >> 32, 0x00f00000u);
  EXPECT_EQ(Read(Timer(0, 0)) & 0x8030, 0x8030u);
}

TEST_F(HpetTest, TheCounterRunsWhileEnabledAndIsWritableWhileNot_2_3_7) {
  Write(0xf0, 1000);
  scheduler_.Advance(1000);
  EXPECT_EQ(Read(0xf0), 1000u);
  Write(0x10, 1);
  scheduler_.Advance(1000);
  EXPECT_EQ(Read(0xf0), 1100u);
  Write(0xf0, 5);
  EXPECT_EQ(Read(0xf0), 1100u);
  Write(0x10, 0);
  scheduler_.Advance(1000);
  EXPECT_EQ(Read(0xf0), 1100u);
}

TEST_F(HpetTest, OneShotEdge_2_3_9_2_1) {
  Write(Timer(2, 0), 0x4 | 21 << 9);
  Write(Timer(2, 8), 500);
  Write(0x10, 1);
  scheduler_.Advance(4999);
  EXPECT_EQ(routes_[1].rises, 0);
  scheduler_.Advance(1'000'000'000);
  EXPECT_EQ(routes_[1].rises, 1);
}

TEST_F(HpetTest, PeriodicWithValueSet_2_3_9_2_2) {
  Write(0x10, 1);
  Write(Timer(0, 0), 0x4 | 0x8 | 0x40 | 20 << 9);
  Write(Timer(0, 8), 10'000);  // the first interrupt, and VAL_SET is used up
  Write(Timer(0, 8), 5'000);   // the period
  scheduler_.Advance(100'000);
  EXPECT_EQ(routes_[0].rises, 1);
  scheduler_.Advance(500'000);
  EXPECT_EQ(routes_[0].rises, 11);
  EXPECT_EQ(Read(Timer(0, 8)), 65'000u);
}

TEST_F(HpetTest, LevelStaysUntilTheStatusIsCleared_2_3_6) {
  Write(Timer(1, 0), 0x6 | 22 << 9);
  Write(Timer(1, 8), 100);
  Write(0x10, 1);
  scheduler_.Advance(1000);
  EXPECT_TRUE(routes_[2].level);
  EXPECT_EQ(Read(0x20), 2u);
  Write(0x20, 2);
  EXPECT_FALSE(routes_[2].level);
}

TEST_F(HpetTest, LegacyReplacementTakesTheLines_2_3_5) {
  hpet_.gate_irq0().Pulse();
  EXPECT_EQ(irq0_.rises, 1);
  Write(Timer(0, 0), 0x4);
  Write(Timer(0, 8), 100);
  Write(0x10, 3);
  hpet_.gate_irq0().Pulse();
  EXPECT_EQ(irq0_.rises, 1);
  scheduler_.Advance(1000);
  EXPECT_EQ(irq0_.rises, 2);
  Write(0x10, 0);
  hpet_.gate_irq8().Set(true);
  EXPECT_TRUE(irq8_.level);
}

TEST_F(HpetTest, FsbDelivery_2_4_1) {
  Write(Timer(0, 0x10), uint64_t{0xfee01000} << 32 | 0x31);
  Write(Timer(0, 0), 0x4 | 0x4000);
  Write(Timer(0, 8), 100);
  Write(0x10, 1);
  scheduler_.Advance(1000);
  ASSERT_EQ(msi_.sent.size(), 1u);
  EXPECT_EQ(msi_.sent[0], (std::pair<uint64_t, uint32_t>{0xfee01000, 0x31}));
}

TEST_F(HpetTest, ThirtyTwoBitTimersCompareTheLowHalf_2_3_8) {
  Write(0xf0, 0xffffff00);
  Write(Timer(0, 0), 0x4 | 0x100 | 20 << 9);
  Write(Timer(0, 8), 0x10);
  Write(0x10, 1);
  scheduler_.Advance(0x110 * 10);
  EXPECT_EQ(routes_[0].rises, 1);
}

}  // namespace
}  // namespace nacre::devices
