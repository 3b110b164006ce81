// Modes as in the Intel 8254 data sheet, "Mode Definitions".

#include "devices/legacy/pit8254.h"

#include <gtest/gtest.h>

#include "devices/chipset/device_testing.h"

namespace nacre::devices {
namespace {

class PitTest : public testing::Test {
 protected:
  PitTest() { Ticks(10); }
  /// Time goes on to the moment at which so many more ticks have passed.
  void Ticks(uint64_t count) {
    ticks_ += count;
    scheduler_.Advance(TicksToNs(ticks_, Pit8254::kHz) - scheduler_.NowNs());
  }
  void Program(unsigned counter, unsigned mode, uint16_t count, bool bcd = false) {
    pit_.Write(3, 1, counter << 6 | 0x30 | mode << 1 | (bcd ? 1 : 0));
    Load(counter, count);
  }
  void Load(unsigned counter, uint16_t count) {
    pit_.Write(counter, 1, count & 0xff);
    pit_.Write(counter, 1, count >> 8);
  }
  uint16_t Count(unsigned counter) {
    pit_.Write(3, 1, counter << 6);
    const uint64_t low = pit_.Read(counter, 1);
    return static_cast<uint16_t>(low | pit_.Read(counter, 1) << 8);
  }
  uint8_t Status(unsigned counter) {
    pit_.Write(3, 1, 0xe0 | 2u << counter);
    return static_cast<uint8_t>(pit_.Read(counter, 1));
  }
  void Gate2(bool level) { pit_.speaker_io().Write(0, 1, level ? 1 : 0); }
  bool Out2() { return (pit_.speaker_io().Read(0, 1) & 0x20) != 0; }

  ManualScheduler scheduler_;
  TestLine irq0_;
  Pit8254 pit_{scheduler_, irq0_};
  uint64_t ticks_ = 0;
};

TEST_F(PitTest, Mode0InterruptOnTerminalCount) {
  Program(0, 0, 100);
  EXPECT_FALSE(irq0_.level);
  Ticks(99);
  EXPECT_EQ(Count(0), 1u);
  EXPECT_FALSE(irq0_.level);
  Ticks(1);
  EXPECT_TRUE(irq0_.level);
  Ticks(1);
  EXPECT_EQ(Count(0), 0xffffu);  // goes on below zero
  EXPECT_EQ(irq0_.rises, 1);
}

TEST_F(PitTest, Mode0GateStopsTheCount) {
  Gate2(true);
  Program(2, 0, 100);
  Ticks(40);
  Gate2(false);
  Ticks(1000);
  EXPECT_EQ(Count(2), 60u);
  EXPECT_FALSE(Out2());
  Gate2(true);
  Ticks(60);
  EXPECT_TRUE(Out2());
}

TEST_F(PitTest, Mode1OneShotIsTriggeredByTheGate) {
  Program(2, 1, 50);
  EXPECT_TRUE(Out2());
  Ticks(100);
  Gate2(true);
  EXPECT_FALSE(Out2());
  Ticks(30);
  Gate2(false);
  Gate2(true);  // again before it ends
  Ticks(49);
  EXPECT_FALSE(Out2());
  Ticks(1);
  EXPECT_TRUE(Out2());
}

TEST_F(PitTest, Mode2RateGenerator) {
  Program(0, 2, 1000);
  irq0_.rises = 0;
  Ticks(1000);
  EXPECT_EQ(irq0_.rises, 1);
  EXPECT_EQ(Count(0), 1000u);
  Ticks(400);
  EXPECT_EQ(Count(0), 600u);
  Ticks(9600);
  EXPECT_EQ(irq0_.rises, 11);
}

TEST_F(PitTest, Mode2NewCountBeginsWithTheNextPeriod) {
  Program(0, 2, 1000);
  irq0_.rises = 0;
  Ticks(500);
  Load(0, 200);
  EXPECT_EQ(Count(0), 500u);
  EXPECT_EQ(Status(0) & 0x40, 0x40);  // null count: not loaded yet
  Ticks(500);
  EXPECT_EQ(irq0_.rises, 1);
  EXPECT_EQ(Status(0) & 0x40, 0);
  Ticks(200);
  EXPECT_EQ(irq0_.rises, 2);
}

TEST_F(PitTest, Mode3SquareWaveCountsByTwo) {
  Gate2(true);
  Program(2, 3, 100);
  EXPECT_TRUE(Out2());
  Ticks(10);
  EXPECT_EQ(Count(2), 80u);
  Ticks(40);
  EXPECT_FALSE(Out2());
  EXPECT_EQ(Count(2), 100u);
  Ticks(50);
  EXPECT_TRUE(Out2());
  Gate2(false);  // forces OUT high
  Ticks(60);
  EXPECT_TRUE(Out2());
}

TEST_F(PitTest, Mode3OddCountIsHighOneTickLonger) {
  Gate2(true);
  Program(2, 3, 5);
  Ticks(2);
  EXPECT_TRUE(Out2());
  Ticks(1);
  EXPECT_FALSE(Out2());
  Ticks(2);
  EXPECT_TRUE(Out2());
}

TEST_F(PitTest, Mode4StrobeIsLowForOneTick) {
  Gate2(true);
  Program(2, 4, 30);
  EXPECT_TRUE(Out2());
  Ticks(30);
  EXPECT_FALSE(Out2());
  Ticks(1);
  EXPECT_TRUE(Out2());
}

TEST_F(PitTest, Mode5StrobeAfterTheGate) {
  Program(2, 5, 30);
  Ticks(100);
  EXPECT_TRUE(Out2());
  Gate2(true);
  Ticks(30);
  EXPECT_FALSE(Out2());
}

TEST_F(PitTest, CountZeroIs65536AndBcdCountsDecimal) {
  Program(0, 2, 0);
  Ticks(1);
  EXPECT_EQ(Count(0), 65535u);
  Program(0, 2, 0x1234, true);
  Ticks(35);
  EXPECT_EQ(Count(0), 0x1199u);
}

TEST_F(PitTest, LatchHoldsTheCountUntilRead) {
  Program(0, 2, 1000);
  Ticks(100);
  pit_.Write(3, 1, 0x00);
  Ticks(100);
  pit_.Write(3, 1, 0x00);  // a second latch is ignored
  EXPECT_EQ(pit_.Read(0, 1) | pit_.Read(0, 1) << 8, 900u);
  EXPECT_EQ(pit_.Read(0, 1) | pit_.Read(0, 1) << 8, 800u);
}

TEST_F(PitTest, ReadBackGivesStatusThenCount) {
  Program(0, 2, 1000);
  Ticks(250);
  pit_.Write(3, 1, 0xc2);
  EXPECT_EQ(pit_.Read(0, 1), 0x80u | 0x34u);
  EXPECT_EQ(pit_.Read(0, 1) | pit_.Read(0, 1) << 8, 750u);
}

TEST_F(PitTest, LowAndHighByteAccess) {
  pit_.Write(3, 1, 0x14);  // low byte only, mode 2
  pit_.Write(0, 1, 200);
  Ticks(50);
  EXPECT_EQ(pit_.Read(0, 1), 150u);
  EXPECT_EQ(pit_.Read(0, 1), 150u);
  pit_.Write(3, 1, 0x24);  // high byte only
  pit_.Write(0, 1, 2);
  Ticks(1);
  EXPECT_EQ(pit_.Read(0, 1), 1u);
}

TEST_F(PitTest, Port61GatesCounter2AndShowsItsOutput) {
  Program(2, 3, 100);
  const auto port = [&] { return static_cast<uint8_t>(pit_.speaker_io().Read(0, 1)); };
  pit_.speaker_io().Write(0, 1, 0xf2);
  EXPECT_EQ(0x22, port() & 0x2f) << "without the gate OUT stays high; bits 7:4 are read-only";
  scheduler_.Advance(1'000'000);
  EXPECT_EQ(0x22, port() & 0x2f);
  pit_.speaker_io().Write(0, 1, 0x0f);
  EXPECT_EQ(0x2f, port() & 0x2f) << "parity checks off";
  int changes = 0;
  for (int last = port() & 0x20, i = 0; i < 100; ++i) {
    scheduler_.Advance(10'000);
    changes += (port() & 0x20) != last;
    last = port() & 0x20;
  }
  EXPECT_GE(changes, 22) << "every 42 us in 1 ms";
  EXPECT_LE(changes, 25);
}

TEST_F(PitTest, RefreshBitOfPort61Toggles) {
  int changes = 0;
  uint64_t last = pit_.speaker_io().Read(0, 1) & 0x10;
  for (int i = 0; i < 100; ++i) {
    scheduler_.Advance(15'085);
    const uint64_t now = pit_.speaker_io().Read(0, 1) & 0x10;
    changes += now != last ? 1 : 0;
    last = now;
  }
  EXPECT_EQ(changes, 100);
}

}  // namespace
}  // namespace nacre::devices
