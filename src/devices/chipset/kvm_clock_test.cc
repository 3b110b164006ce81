#include "devices/chipset/kvm_clock.h"

#include <gtest/gtest.h>

#include "devices/chipset/device_testing.h"

namespace nacre::devices {
namespace {

struct Info {
  uint32_t version, pad;
  uint64_t tsc_timestamp;
  uint64_t system_time;
  uint32_t mul;
  int8_t shift;
  uint8_t flags;
  uint8_t pad2[2];
};
static_assert(sizeof(Info) == 32);

/// As a guest computes its clock.
uint64_t SystemTime(const Info& info, uint64_t tsc) {
  uint64_t delta = tsc - info.tsc_timestamp;
  delta = info.shift >= 0 ? delta << info.shift : delta >> -info.shift;
  return info.system_time + MulDiv(delta, info.mul, uint64_t{1} << 32);
}

class KvmClockTest : public testing::Test {
 protected:
  Info Page(uint64_t address) {
    Info info{};
    EXPECT_TRUE(memory_->ReadValue(GuestPhys(address), info));
    return info;
  }

  ManualScheduler scheduler_;
  TestTsc tsc_{scheduler_};
  TestWallClock wall_{scheduler_};
  std::unique_ptr<memory::GuestMemory> memory_ = std::move(*memory::GuestMemory::Create(kMiB));
  KvmClock clock_{2, *memory_, scheduler_, tsc_, wall_};
};

TEST(TscScaleFor, IsExactToPartsInABillion) {
  for (const uint32_t khz : {100'000u, 999'999u, 1'000'000u, 2'000'000u, 2'893'437u, 5'200'000u, 4'000'000'000u}) {
    const TscScale scale = TscScaleFor(khz);
    const double factor =
        scale.mul / 4294967296.0 * (scale.shift >= 0 ? double(1 << scale.shift) : 1.0 / (1 << -scale.shift));
    EXPECT_NEAR(factor * khz / 1e6, 1.0, 1e-9) << khz;
    EXPECT_GE(scale.mul, 0x80000000u);
  }
}

TEST_F(KvmClockTest, ThePageGivesSystemTimeFromTheCounter) {
  scheduler_.Advance(5'000'000);
  ASSERT_TRUE(clock_.WriteMsr(0, KvmClock::kMsrSystemTime, 0x1001));
  const Info info = Page(0x1000);
  EXPECT_EQ(info.version % 2, 0u);
  EXPECT_NE(info.version, 0u);
  EXPECT_EQ(info.flags, 1u);
  EXPECT_EQ(SystemTime(info, tsc_.Read()), 5'000'000u);
  scheduler_.Advance(123'456'789);
  EXPECT_NEAR(static_cast<double>(SystemTime(info, tsc_.Read())), 128'456'789.0, 2.0);
}

TEST_F(KvmClockTest, AllCpusShareOneReference) {
  ASSERT_TRUE(clock_.WriteMsr(0, KvmClock::kMsrSystemTime, 0x1001));
  scheduler_.Advance(777);
  ASSERT_TRUE(clock_.WriteMsr(1, KvmClock::kMsrSystemTimeLegacy, 0x2001));
  EXPECT_EQ(Page(0x1000).tsc_timestamp, Page(0x2000).tsc_timestamp);
  EXPECT_EQ(Page(0x1000).system_time, Page(0x2000).system_time);
}

TEST_F(KvmClockTest, WallClockIsUtcAtSystemTimeZero) {
  scheduler_.Advance(3 * kNsPerSecond);
  ASSERT_TRUE(clock_.WriteMsr(0, KvmClock::kMsrWallClock, 0x3000));
  uint32_t words[3] = {};
  ASSERT_TRUE(memory_->ReadValue(GuestPhys(0x3000), words));
  EXPECT_EQ(words[0] % 2, 0u);
  EXPECT_EQ(words[1], 1'709'164'790u);
}

TEST_F(KvmClockTest, AfterAPauseTimeGoesOnAndTheGuestIsTold) {
  ASSERT_TRUE(clock_.WriteMsr(0, KvmClock::kMsrSystemTime, 0x1001));
  const uint32_t version = Page(0x1000).version;
  scheduler_.Advance(1'000'000);
  tsc_.offset = 1'000'000'000;  // the counter ran on while guest time stood still
  clock_.Resumed();
  const Info info = Page(0x1000);
  EXPECT_GT(info.version, version);
  EXPECT_EQ(info.flags, 3u);
  EXPECT_EQ(SystemTime(info, tsc_.Read()), 1'000'000u);
}

TEST_F(KvmClockTest, AddressesOutsideMemoryAndUnknownCpusDoNoHarm) {
  EXPECT_TRUE(clock_.WriteMsr(0, KvmClock::kMsrSystemTime, ~uint64_t{0}));
  EXPECT_TRUE(clock_.WriteMsr(0, KvmClock::kMsrSystemTime, (kMiB - 8) | 1));
  EXPECT_TRUE(clock_.WriteMsr(0, KvmClock::kMsrWallClock, ~uint64_t{0} - 3));
  EXPECT_FALSE(clock_.WriteMsr(2, KvmClock::kMsrSystemTime, 1));
  EXPECT_FALSE(clock_.WriteMsr(0, 0x4b564d02, 1));
  uint64_t value = 0;
  EXPECT_TRUE(clock_.ReadMsr(0, KvmClock::kMsrSystemTime, value));
  EXPECT_EQ(value, (kMiB - 8) | 1);
}

}  // namespace
}  // namespace nacre::devices
