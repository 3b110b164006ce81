// The local APIC's state handed from one to another: what began in the one goes on in the other.

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>

#include "devices/chipset/device_testing.h"
#include "devices/chipset/local_apic.h"

namespace nacre::devices {
namespace {

using x86::LocalApicState;

constexpr uint64_t kTpr = 0x80, kPpr = 0xa0, kEoi = 0xb0, kLdr = 0xd0, kDfr = 0xe0, kSvr = 0xf0, kIrr = 0x200,
                   kEsr = 0x280, kIcrLow = 0x300, kIcrHigh = 0x310, kLvtTimer = 0x320, kLint0 = 0x350, kLint1 = 0x360,
                   kLvtError = 0x370, kInitial = 0x380, kCurrent = 0x390, kDivide = 0x3e0;
constexpr uint64_t kX2ApicEnable = 0xfee00c00;
constexpr unsigned kCpus = 3;

struct EoiLog final : EoiListener {
  void OnEoi(uint8_t vector) override { vectors.push_back(vector); }
  std::vector<uint8_t> vectors;
};

struct FixedExtInt final : ExtIntSource {
  uint8_t AcknowledgeExtInt() override { return 0x20; }
};

/// A host that is late with its timers.
struct LateScheduler final : ManualScheduler {
  int64_t NowNs() const override { return ManualScheduler::NowNs() + late_ns; }
  int64_t late_ns = 0;
};

/// A board's local APICs.
struct Side {
  explicit Side(Scheduler& scheduler, const GuestTsc& tsc) {
    bus.AddEoiListener(&eois);
    bus.SetExtIntSource(&pic);
    for (unsigned i = 0; i < kCpus; ++i) apics.push_back(std::make_unique<LocalApic>(i, bus, scheduler, tsc, cpus[i]));
  }
  ApicBus bus;
  EoiLog eois;
  FixedExtInt pic;
  TestCpu cpus[kCpus];
  std::vector<std::unique_ptr<LocalApic>> apics;
};

/// Everything, for comparisons that show what differs.
std::vector<uint64_t> Words(const LocalApicState& s) {
  std::vector<uint64_t> words = {s.apic_base,     s.id,     s.tpr,         s.ldr,      s.dfr,
                                 s.svr,           s.esr,    s.icr_low,     s.icr_high, s.initial_count,
                                 s.current_count, s.divide, s.tsc_deadline};
  for (const auto* list : {&s.irr, &s.isr, &s.tmr}) words.insert(words.end(), std::begin(*list), std::end(*list));
  words.insert(words.end(), std::begin(s.lvt), std::end(s.lvt));
  return words;
}

class LocalApicStateTest : public testing::Test {
 protected:
  LocalApicStateTest() {
    for (unsigned i = 0; i < kCpus; ++i) Write(kSvr, 0x1ff, i);
  }
  LocalApic& apic(unsigned cpu = 0) { return *side_->apics[cpu]; }
  TestCpu& cpu(unsigned index = 0) { return side_->cpus[index]; }
  uint32_t Read(uint64_t reg, unsigned cpu = 0) { return static_cast<uint32_t>(apic(cpu).Read(reg, 4)); }
  void Write(uint64_t reg, uint32_t value, unsigned cpu = 0) { apic(cpu).Write(reg, 4, value); }
  void Interrupt(uint8_t vector, bool level = false) { apic().Deliver(DeliveryMode::kFixed, vector, level); }
  void EnableX2Apic() {
    for (unsigned i = 0; i < kCpus; ++i)
      ASSERT_TRUE(apic(i).WriteMsr(LocalApic::kMsrApicBase, kX2ApicEnable | (i == 0 ? 0x100 : 0)));
  }
  /// The guest goes on with fresh models.
  void Move() {
    auto next = std::make_unique<Side>(scheduler_, tsc_);
    for (unsigned i = 0; i < kCpus; ++i) {
      const LocalApicState state = apic(i).ExportState();
      ASSERT_TRUE(next->apics[i]->ImportState(state)) << i;
      EXPECT_EQ(Words(next->apics[i]->ExportState()), Words(state)) << i;
    }
    side_ = std::move(next);
  }
  bool Import(const std::function<void(LocalApicState&)>& change) {
    LocalApicState state = apic().ExportState();
    change(state);
    return apic().ImportState(state);
  }

  LateScheduler scheduler_;
  TestTsc tsc_{scheduler_};
  std::unique_ptr<Side> side_ = std::make_unique<Side>(scheduler_, tsc_);
};

TEST_F(LocalApicStateTest, RegistersAsTheyRead) {
  Write(kTpr, 0x30, 1);
  Write(kLdr, 0x02000000, 1);
  Write(kDfr, 0x0fffffff, 1);
  Write(kIcrHigh, 0x07000000, 1);
  Write(kIcrLow, 0x000c4041, 1);
  for (unsigned i = 0; i < 6; ++i) Write(kLvtTimer + 0x10 * i, 0x10040 + i, 1);
  Write(kDivide, 0x9, 1);
  Write(kInitial, 77, 1);
  const LocalApicState state = apic(1).ExportState();
  EXPECT_EQ(state.apic_base, 0xfee00800u);
  EXPECT_EQ(state.id, 1u);
  EXPECT_EQ(state.tpr, 0x30u);
  EXPECT_EQ(state.ldr, 0x02000000u);
  EXPECT_EQ(state.dfr, 0x0fffffffu);
  EXPECT_EQ(state.svr, 0x1ffu);
  EXPECT_EQ(state.icr_low, 0x000c4041u);
  EXPECT_EQ(state.icr_high, 0x07000000u);
  for (unsigned i = 0; i < 6; ++i) EXPECT_EQ(state.lvt[i], 0x10040 + i);
  EXPECT_EQ(state.divide, 0x9u);
  EXPECT_EQ(state.initial_count, 77u);
  EXPECT_EQ(state.current_count, 77u);
  Move();
  EXPECT_EQ(Read(kTpr, 1), 0x30u);
  EXPECT_EQ(Read(kIcrLow, 1), 0x000c4041u);
  EXPECT_EQ(Read(kDfr, 1), 0x0fffffffu);
}

TEST_F(LocalApicStateTest, PendingAndNestedInterruptsGoOn_11_8_3) {
  Interrupt(0x41);
  Interrupt(0x53);
  ASSERT_EQ(apic().Acknowledge(), 0x53);
  Interrupt(0x5f);
  Interrupt(0xf1);
  Move();
  EXPECT_TRUE(cpu().interrupt);
  EXPECT_FALSE(cpu(1).interrupt);
  EXPECT_EQ(Read(kPpr), 0x50u);
  EXPECT_EQ(apic().Acknowledge(), 0xf1);
  Write(kEoi, 0);
  EXPECT_FALSE(cpu().interrupt) << "0x5f waits for 0x53";
  Move();
  EXPECT_FALSE(cpu().interrupt);
  Write(kEoi, 0);
  EXPECT_EQ(apic().Acknowledge(), 0x5f);
  Write(kEoi, 0);
  EXPECT_EQ(apic().Acknowledge(), 0x41);
  EXPECT_TRUE(side_->eois.vectors.empty());
}

TEST_F(LocalApicStateTest, TaskPriorityHoldsBack_11_8_3_1) {
  Write(kTpr, 0x50);
  Interrupt(0x5f);
  Move();
  EXPECT_FALSE(cpu().interrupt);
  apic().WriteCr8(4);
  EXPECT_TRUE(cpu().interrupt);
}

TEST_F(LocalApicStateTest, EoiOfALevelInterruptIsBroadcast_11_8_5) {
  Interrupt(0x70, true);
  ASSERT_EQ(apic().Acknowledge(), 0x70);
  Interrupt(0x90, true);
  Move();
  EXPECT_EQ(apic().Acknowledge(), 0x90);
  Write(kEoi, 0);
  Write(kEoi, 0);
  EXPECT_EQ(side_->eois.vectors, (std::vector<uint8_t>{0x90, 0x70}));
}

TEST_F(LocalApicStateTest, OneShotGoesOnFromItsCount_11_5_4) {
  Write(kDivide, 0x3);  // 16
  Write(kLvtTimer, 0x31);
  Write(kInitial, 1000);
  scheduler_.Advance(8000);
  Move();
  EXPECT_EQ(Read(kInitial), 1000u);
  EXPECT_EQ(Read(kCurrent), 500u);
  scheduler_.Advance(7999);
  EXPECT_FALSE(cpu().interrupt);
  scheduler_.Advance(1);
  EXPECT_EQ(apic().Acknowledge(), 0x31);
  Write(kEoi, 0);
  Move();  // it has ended
  EXPECT_EQ(Read(kInitial), 1000u);
  scheduler_.Advance(1'000'000);
  EXPECT_FALSE(cpu().interrupt);
}

TEST_F(LocalApicStateTest, OneShotThatEndedUnnoticedIsAnInterrupt) {
  Write(kDivide, 0xb);  // 1
  Write(kLvtTimer, 0x31);
  Write(kInitial, 1000);
  scheduler_.late_ns = 1000;
  Move();
  EXPECT_EQ(apic().Acknowledge(), 0x31);
  Write(kEoi, 0);
  scheduler_.Advance(1'000'000);
  EXPECT_FALSE(cpu().interrupt);
}

TEST_F(LocalApicStateTest, PeriodicKeepsItsPhase_11_5_4) {
  Write(kDivide, 0xb);
  Write(kLvtTimer, 0x20031);
  Write(kInitial, 100'000);
  scheduler_.Advance(130'000);
  ASSERT_EQ(apic().Acknowledge(), 0x31);
  Write(kEoi, 0);
  Move();
  EXPECT_EQ(Read(kCurrent), 70'000u);
  scheduler_.Advance(69'999);
  EXPECT_FALSE(cpu().interrupt);
  for (int i = 0; i < 3; ++i) {
    scheduler_.Advance(i == 0 ? 1 : 100'000);
    EXPECT_EQ(apic().Acknowledge(), 0x31);
    Write(kEoi, 0);
  }
}

TEST_F(LocalApicStateTest, PeriodicAtTheEndOfItsCountStartsAnew) {
  Write(kDivide, 0xb);
  Write(kLvtTimer, 0x20031);
  Write(kInitial, 100'000);
  ASSERT_TRUE(Import([](LocalApicState& state) { state.current_count = 0; }));
  EXPECT_EQ(Read(kCurrent), 100'000u);
  scheduler_.Advance(100'000);
  EXPECT_EQ(apic().Acknowledge(), 0x31);
  Write(kInitial, 0);
  Move();  // stopped
  scheduler_.Advance(1'000'000);
  EXPECT_FALSE(cpu().interrupt);
}

TEST_F(LocalApicStateTest, TscDeadlineIsArmedAgain_11_5_4_1) {
  Write(kLvtTimer, 0x40032);
  ASSERT_TRUE(apic().WriteMsr(LocalApic::kMsrTscDeadline, 2000));
  Move();
  uint64_t deadline = 0;
  ASSERT_TRUE(apic().ReadMsr(LocalApic::kMsrTscDeadline, deadline));
  EXPECT_EQ(deadline, 2000u);
  scheduler_.Advance(999);
  EXPECT_FALSE(cpu().interrupt);
  scheduler_.Advance(1);
  EXPECT_EQ(apic().Acknowledge(), 0x32);
  Write(kEoi, 0);
  ASSERT_TRUE(apic().ReadMsr(LocalApic::kMsrTscDeadline, deadline));
  EXPECT_EQ(deadline, 0u);
  // It passed while somebody else kept the APIC.
  ASSERT_TRUE(Import([](LocalApicState& state) { state.tsc_deadline = 1500; }));
  EXPECT_EQ(apic().Acknowledge(), 0x32);
  Write(kEoi, 0);
  scheduler_.Advance(1'000'000);
  EXPECT_FALSE(cpu().interrupt);
}

TEST_F(LocalApicStateTest, TimersOfOtherModesAreNotArmed) {
  Write(kLvtTimer, 0x31);
  ASSERT_TRUE(Import([](LocalApicState& state) { state.tsc_deadline = 2000; }));
  EXPECT_EQ(apic().ExportState().tsc_deadline, 0u);
  Write(kLvtTimer, 0x40032);
  ASSERT_TRUE(Import([](LocalApicState& state) { state.initial_count = state.current_count = 1000; }));
  EXPECT_EQ(Read(kInitial), 0u);
  scheduler_.Advance(1'000'000);
  EXPECT_FALSE(cpu().interrupt);
}

TEST_F(LocalApicStateTest, MaskedAndSoftwareDisabled_11_4_7_2) {
  Write(kLvtTimer, 0x10031);
  Write(kInitial, 100);
  Write(kSvr, 0xff, 1);
  Move();
  scheduler_.Advance(1'000'000);
  EXPECT_FALSE(cpu().interrupt);
  apic(1).Deliver(DeliveryMode::kFixed, 0x80, false);
  EXPECT_FALSE(cpu(1).interrupt);
  Write(kLvtTimer, 0x31, 1);
  EXPECT_EQ(Read(kLvtTimer, 1), 0x10031u);
}

TEST_F(LocalApicStateTest, LocalVectorTableGoesOn_11_5_1) {
  Write(kLint1, 0x400);
  Write(kLint0, 0x700);
  Write(kLvtError, 0xe0);
  Move();
  side_->bus.lint1().Set(true);
  EXPECT_EQ(cpu().nmis, 1);
  EXPECT_EQ(cpu(1).nmis, 0);
  Read(0x40);  // a reserved register
  EXPECT_EQ(apic().Acknowledge(), 0xe0);
  Write(kEsr, 0);
  Move();
  EXPECT_EQ(Read(kEsr), 0x80u);
  // The wire is the board's, not the APIC's.
  EXPECT_FALSE(cpu().interrupt);
  side_->bus.lint0().Set(true);
  ASSERT_TRUE(Import([](LocalApicState&) {}));
  EXPECT_TRUE(cpu().interrupt);
  EXPECT_EQ(apic().Acknowledge(), 0x20);
  ASSERT_TRUE(Import([](LocalApicState& state) { state.lvt[LocalApicState::kLint0] |= 1 << 16; }));
  EXPECT_FALSE(cpu().interrupt);
}

TEST_F(LocalApicStateTest, AHeldExtIntIsAcknowledgedOnce) {
  apic().HoldExtInt(0x66);
  EXPECT_TRUE(cpu().interrupt);
  EXPECT_EQ(apic().TakeHeldExtInt(), 0x66);
  EXPECT_EQ(apic().TakeHeldExtInt(), -1);
  apic().HoldExtInt(0x66);
  EXPECT_EQ(apic().Acknowledge(), 0x66);
  EXPECT_FALSE(cpu().interrupt);
  EXPECT_EQ(apic().Acknowledge(), -1);
  apic().HoldExtInt(0x67);
  apic().Reset();
  EXPECT_FALSE(cpu().interrupt);
  EXPECT_EQ(apic().TakeHeldExtInt(), -1);
}

TEST_F(LocalApicStateTest, ExtIntMessageWaitsAsLongAsThePic) {
  side_->bus.lint0().Set(true);
  for (const bool waits : {true, false}) {
    apic().Deliver(DeliveryMode::kExtInt, 0, false);
    Write(kLint0, 0x10700);
    side_->bus.lint0().Set(waits);
    ASSERT_TRUE(Import([](LocalApicState&) {}));
    EXPECT_EQ(cpu().interrupt, waits);
    EXPECT_EQ(apic().Acknowledge(), waits ? 0x20 : -1);
  }
}

TEST_F(LocalApicStateTest, X2ApicModeAndItsIpis_11_12) {
  EnableX2Apic();
  ASSERT_TRUE(apic(2).WriteMsr(0x830, uint64_t{1} << 32 | 0x55));
  ASSERT_TRUE(apic(2).WriteMsr(0x808, 0x20));
  const LocalApicState state = apic(2).ExportState();
  EXPECT_EQ(state.apic_base, kX2ApicEnable);
  EXPECT_EQ(state.id, 2u);
  EXPECT_EQ(state.ldr, 4u) << "derived from the ID";
  EXPECT_EQ(state.icr_low, 0x55u);
  EXPECT_EQ(state.icr_high, 1u);
  Move();
  EXPECT_FALSE(apic(2).mmio_enabled());
  uint64_t value = 0;
  ASSERT_TRUE(apic(2).ReadMsr(0x830, value));
  EXPECT_EQ(value, uint64_t{1} << 32 | 0x55);
  ASSERT_TRUE(apic(2).ReadMsr(0x80d, value));
  EXPECT_EQ(value, 4u);
  EXPECT_EQ(apic(1).Acknowledge(), 0x55);
  ASSERT_TRUE(apic(0).WriteMsr(0x830, uint64_t{0b110} << 32 | 0x866));  // logical, cluster 0
  EXPECT_FALSE(cpu(0).interrupt);
  EXPECT_EQ(apic(1).Acknowledge(), 0x66);
  EXPECT_EQ(apic(2).Acknowledge(), 0x66);
  EXPECT_FALSE(apic(2).WriteMsr(LocalApic::kMsrApicBase, 0xfee00800));  // left through disabled only
  ASSERT_TRUE(apic(2).WriteMsr(LocalApic::kMsrApicBase, 0xfee00000));
  Move();
  EXPECT_FALSE(apic(2).accepts_interrupts());
}

TEST_F(LocalApicStateTest, ImportTakesThePlaceOfWhatWas) {
  const LocalApicState quiet = apic().ExportState();
  Write(kLvtTimer, 0x31);
  Write(kInitial, 1000);
  Interrupt(0x50);
  Interrupt(0x91);
  ASSERT_EQ(apic().Acknowledge(), 0x91);
  ASSERT_TRUE(apic().ImportState(quiet));
  EXPECT_FALSE(cpu().interrupt);
  EXPECT_EQ(Words(apic().ExportState()), Words(quiet));
  scheduler_.Advance(1'000'000);
  EXPECT_FALSE(cpu().interrupt);
}

TEST_F(LocalApicStateTest, ACpuIsToldAgain) {
  Interrupt(0x50);
  cpu().interrupt = false;  // the machine's side was built anew
  ASSERT_TRUE(Import([](LocalApicState&) {}));
  EXPECT_TRUE(cpu().interrupt);
}

TEST_F(LocalApicStateTest, ImpossibleStatesAreRefused) {
  Write(kLvtTimer, 0x20031);
  Write(kInitial, 1'000'000);
  Interrupt(0x50);
  const std::vector<uint64_t> before = Words(apic().ExportState());
  using S = LocalApicState;
  const std::function<void(S&)> changes[] = {
      [](S& s) { s.id = 1; },
      [](S& s) { s.id = 0x01000000; },
      [](S& s) { s.apic_base |= 1; },
      [](S& s) { s.apic_base |= 1 << 9; },
      [](S& s) { s.apic_base |= uint64_t{1} << 52; },
      [](S& s) { s.apic_base = 0xfee00500; },  // x2APIC mode without enable
      [](S& s) { s.tpr = 0x100; },
      [](S& s) { s.ldr = 1; },
      [](S& s) { s.dfr = 0xf0000000; },
      [](S& s) { s.svr |= 1 << 10; },
      [](S& s) { s.svr |= 1 << 13; },
      [](S& s) { s.esr = 0x100; },
      [](S& s) { s.icr_high = 1; },
      [](S& s) { s.divide = 4; },
      [](S& s) { s.divide = 0x10; },
      [](S& s) { s.lvt[S::kTimer] |= 1 << 8; },
      [](S& s) { s.lvt[S::kTimer] |= 1 << 19; },
      [](S& s) { s.lvt[S::kThermal] |= 1 << 14; },
      [](S& s) { s.lvt[S::kPerformance] |= 1 << 17; },
      [](S& s) { s.lvt[S::kLint0] |= 1 << 11; },
      [](S& s) { s.lvt[S::kLint1] |= 1u << 31; },
      [](S& s) { s.lvt[S::kError] |= 1 << 8; },
      [](S& s) { s.isr[0] = 1; },
      [](S& s) { s.isr[0] = 1 << 15; },
  };
  for (size_t i = 0; i < std::size(changes); ++i) {
    cpu().interrupt = false;
    EXPECT_FALSE(Import(changes[i])) << i;
    EXPECT_FALSE(cpu().interrupt) << i << ": nothing changed, nobody is told";
    EXPECT_EQ(Words(apic().ExportState()), before) << i;
  }
}

TEST_F(LocalApicStateTest, WhatGuestsBringIntoOtherApicsIsDropped) {
  using S = LocalApicState;
  const std::vector<uint64_t> before = Words(apic().ExportState());
  const std::function<void(S&)> changes[] = {
      [](S& s) { s.icr_low |= 0xfff33000; },
      [](S& s) { s.irr[0] = s.tmr[0] = 0xffff; },
      [](S& s) { s.svr |= 1 << 9 | 1 << 12; },
      [](S& s) { s.lvt[S::kTimer] |= 1 << 12; },
      [](S& s) { s.lvt[S::kLint0] |= 1 << 12 | 1 << 14; },
      [](S& s) { s.apic_base &= ~uint64_t{0x100}; },
      [](S& s) { s.current_count = 5; },  // without an initial count
  };
  for (size_t i = 0; i < std::size(changes); ++i) {
    EXPECT_TRUE(Import(changes[i])) << i;
    EXPECT_EQ(Words(apic().ExportState()), before) << i;
  }
  EXPECT_FALSE(cpu().interrupt);
  EXPECT_EQ(Read(kIrr), 0u);
  // A count beyond its period, as KVM makes the shortest ones longer.
  Write(kLvtTimer, 0x20031);
  Write(kInitial, 1000);
  ASSERT_TRUE(Import([](S& s) { s.current_count = 100'000; }));
  EXPECT_EQ(Read(kCurrent), 1000u);
  // In x2APIC mode the logical ID is what the ID makes it, and there is no DFR.
  EnableX2Apic();
  ASSERT_TRUE(Import([](S& s) { s.ldr = s.dfr = 0; }));
  EXPECT_EQ(apic().ExportState().ldr, 1u);
}

}  // namespace
}  // namespace nacre::devices
