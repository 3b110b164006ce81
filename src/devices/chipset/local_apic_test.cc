// Tests are named after the sections of the Intel SDM, volume 3A, chapter 11.

#include "devices/chipset/local_apic.h"

#include <gtest/gtest.h>

#include "devices/chipset/device_testing.h"

namespace nacre::devices {
namespace {

constexpr uint64_t kId = 0x20, kVersion = 0x30, kTpr = 0x80, kPpr = 0xa0, kEoi = 0xb0, kLdr = 0xd0, kDfr = 0xe0,
                   kSvr = 0xf0, kIsr = 0x100, kTmr = 0x180, kIrr = 0x200, kEsr = 0x280, kIcrLow = 0x300,
                   kIcrHigh = 0x310, kLvtTimer = 0x320, kLint0 = 0x350, kLint1 = 0x360, kLvtError = 0x370,
                   kInitial = 0x380, kCurrent = 0x390, kDivide = 0x3e0;
constexpr uint64_t kX2ApicEnable = 0xfee00c00;

struct EoiLog final : EoiListener {
  void OnEoi(uint8_t vector) override { vectors.push_back(vector); }
  std::vector<uint8_t> vectors;
};

struct FixedExtInt final : ExtIntSource {
  uint8_t AcknowledgeExtInt() override { return 0x20; }
};

class LocalApicTest : public testing::Test {
 protected:
  LocalApicTest() {
    bus_.AddEoiListener(&eois_);
    bus_.SetExtIntSource(&pic_);
    for (unsigned i = 0; i < 3; ++i) {
      apics_.push_back(std::make_unique<LocalApic>(i, bus_, scheduler_, tsc_, cpus_[i]));
      Write(kSvr, 0x1ff, i);
    }
  }
  uint32_t Read(uint64_t reg, unsigned cpu = 0) { return static_cast<uint32_t>(apics_[cpu]->Read(reg, 4)); }
  void Write(uint64_t reg, uint32_t value, unsigned cpu = 0) { apics_[cpu]->Write(reg, 4, value); }
  void Ipi(uint32_t low, uint8_t destination, unsigned from = 0) {
    Write(kIcrHigh, uint32_t{destination} << 24, from);
    Write(kIcrLow, low, from);
  }
  void EnableX2Apic() {
    for (auto& apic : apics_)
      ASSERT_TRUE(apic->WriteMsr(LocalApic::kMsrApicBase, kX2ApicEnable | (apic->id() == 0 ? 0x100 : 0)));
  }
  void Interrupt(uint8_t vector, unsigned cpu = 0, bool level = false) {
    apics_[cpu]->Deliver(DeliveryMode::kFixed, vector, level);
  }

  ManualScheduler scheduler_;
  TestTsc tsc_{scheduler_};
  ApicBus bus_;
  EoiLog eois_;
  FixedExtInt pic_;
  TestCpu cpus_[3];
  std::vector<std::unique_ptr<LocalApic>> apics_;
};

TEST_F(LocalApicTest, PowerUpState_11_4_7_1) {
  apics_[1]->Reset();
  EXPECT_EQ(Read(kId, 1), 0x01000000u);
  EXPECT_EQ(Read(kVersion, 1) & 0xff, 0x14u);
  EXPECT_EQ(Read(kVersion, 1) >> 16 & 0xff, 5u);
  EXPECT_EQ(Read(kSvr, 1), 0xffu);
  EXPECT_EQ(Read(kDfr, 1), 0xffffffffu);
  for (const uint64_t lvt : {kLvtTimer, kLint0, kLint1, kLvtError}) EXPECT_EQ(Read(lvt, 1), 0x10000u);
  uint64_t base = 0;
  ASSERT_TRUE(apics_[0]->ReadMsr(LocalApic::kMsrApicBase, base));
  EXPECT_EQ(base, 0xfee00900u);  // the bootstrap processor's flag
  ASSERT_TRUE(apics_[1]->ReadMsr(LocalApic::kMsrApicBase, base));
  EXPECT_EQ(base, 0xfee00800u);
}

TEST_F(LocalApicTest, TheHighestVectorIsServedFirstAndHoldsBackItsClass_11_8_3) {
  Interrupt(0x41);
  Interrupt(0x53);
  EXPECT_TRUE(cpus_[0].interrupt);
  EXPECT_EQ(Read(kIrr + 0x20), 1u << 1 | 1u << 0x13);
  EXPECT_EQ(apics_[0]->Acknowledge(), 0x53);
  EXPECT_EQ(Read(kIsr + 0x20), 1u << 0x13);
  EXPECT_EQ(Read(kPpr), 0x50u);
  EXPECT_FALSE(cpus_[0].interrupt);
  EXPECT_EQ(apics_[0]->Acknowledge(), -1);
  Interrupt(0x5f);  // same class: waits
  EXPECT_FALSE(cpus_[0].interrupt);
  Interrupt(0x60);  // higher class: nests
  EXPECT_TRUE(cpus_[0].interrupt);
  EXPECT_EQ(apics_[0]->Acknowledge(), 0x60);
  Write(kEoi, 0);
  EXPECT_EQ(Read(kPpr), 0x50u);
  Write(kEoi, 0);
  EXPECT_EQ(apics_[0]->Acknowledge(), 0x5f);
  Write(kEoi, 0);
  EXPECT_EQ(apics_[0]->Acknowledge(), 0x41);
}

TEST_F(LocalApicTest, TaskPriorityHoldsBackClasses_11_8_3_1) {
  Write(kTpr, 0x50);
  EXPECT_EQ(apics_[0]->ReadCr8(), 5u);
  Interrupt(0x5f);
  EXPECT_FALSE(cpus_[0].interrupt);
  apics_[0]->WriteCr8(4);
  EXPECT_EQ(Read(kTpr), 0x40u);
  EXPECT_TRUE(cpus_[0].interrupt);
  apics_[0]->WriteCr8(15);
  EXPECT_FALSE(cpus_[0].interrupt);
}

TEST_F(LocalApicTest, EoiOfALevelInterruptIsBroadcast_11_8_5) {
  Interrupt(0x70, 0, true);
  EXPECT_EQ(Read(kTmr + 0x30), 1u << 16);
  EXPECT_EQ(apics_[0]->Acknowledge(), 0x70);
  Write(kEoi, 0);
  Interrupt(0x71, 0, false);
  EXPECT_EQ(apics_[0]->Acknowledge(), 0x71);
  Write(kEoi, 0);
  EXPECT_EQ(eois_.vectors, std::vector<uint8_t>{0x70});
}

TEST_F(LocalApicTest, ASoftwareDisabledApicTakesOnlyNmiInitAndSipi_11_4_7_2) {
  Write(kLvtTimer, 0x30);
  Write(kSvr, 0xff);
  EXPECT_EQ(Read(kLvtTimer), 0x10030u);  // masks are set ...
  Write(kLvtTimer, 0x30);
  EXPECT_EQ(Read(kLvtTimer), 0x10030u);  // ... and stay
  Interrupt(0x80);
  EXPECT_FALSE(cpus_[0].interrupt);
  Ipi(0x400, 0, 1);
  EXPECT_EQ(cpus_[0].nmis, 1);
}

TEST_F(LocalApicTest, IpiPhysicalLogicalAndShorthands_11_6) {
  Ipi(0x40, 2);
  EXPECT_TRUE(cpus_[2].interrupt);
  EXPECT_FALSE(cpus_[1].interrupt);
  EXPECT_EQ(apics_[2]->Acknowledge(), 0x40);
  Write(kEoi, 0, 2);

  Ipi(0xc0041, 0);  // all excluding self
  EXPECT_FALSE(cpus_[0].interrupt);
  EXPECT_EQ(apics_[1]->Acknowledge(), 0x41);
  EXPECT_EQ(apics_[2]->Acknowledge(), 0x41);
  Write(kEoi, 0, 1);
  Write(kEoi, 0, 2);

  Ipi(0x80042, 0);  // all including self
  for (unsigned i = 0; i < 3; ++i) {
    EXPECT_EQ(apics_[i]->Acknowledge(), 0x42);
    Write(kEoi, 0, i);
  }
  Ipi(0x40043, 0);  // self
  EXPECT_EQ(apics_[0]->Acknowledge(), 0x43);
  Write(kEoi, 0);

  Ipi(0x44, 0xff);  // physical broadcast
  for (unsigned i = 0; i < 3; ++i) EXPECT_EQ(apics_[i]->Acknowledge(), 0x44);
  EXPECT_EQ(Read(kIcrLow) & 0x1000, 0u);  // never busy
}

TEST_F(LocalApicTest, LogicalDestinationsFlatAndCluster_11_6_2_2) {
  for (unsigned i = 0; i < 3; ++i) Write(kLdr, 1u << (24 + i), i);
  Ipi(0x850, 0b101);
  EXPECT_TRUE(cpus_[0].interrupt);
  EXPECT_FALSE(cpus_[1].interrupt);
  EXPECT_TRUE(cpus_[2].interrupt);
  // Cluster 2, members 1 and 2; CPU 0 stays in cluster 1.
  for (unsigned i = 0; i < 3; ++i) {
    apics_[i]->Acknowledge();
    Write(kEoi, 0, i);
    Write(kDfr, 0x0fffffff, i);
    Write(kLdr, (i == 0 ? 0x11u : 0x20u | i) << 24, i);
  }
  Ipi(0x851, 0x23);
  EXPECT_FALSE(cpus_[0].interrupt);
  EXPECT_TRUE(cpus_[1].interrupt);
  EXPECT_TRUE(cpus_[2].interrupt);
}

TEST_F(LocalApicTest, LowestPriorityGoesToOneCpuOfLowestPriority_11_6_2_4) {
  for (unsigned i = 0; i < 3; ++i) Write(kLdr, 1u << (24 + i), i);
  Write(kTpr, 0x20, 0);
  Write(kTpr, 0x30, 2);
  Ipi(0x961, 0x07);
  EXPECT_FALSE(cpus_[0].interrupt);
  EXPECT_TRUE(cpus_[1].interrupt);
  EXPECT_FALSE(cpus_[2].interrupt);
}

TEST_F(LocalApicTest, InitAndStartup_11_4_7_3) {
  Write(kTpr, 0x40, 1);
  Ipi(0x4500, 1);  // INIT, level assert
  EXPECT_EQ(cpus_[1].inits, 1);
  EXPECT_EQ(Read(kTpr, 1), 0u);
  EXPECT_EQ(Read(kId, 1), 0x01000000u);
  Ipi(0x8500, 1);  // INIT level de-assert: nothing
  EXPECT_EQ(cpus_[1].inits, 1);
  Ipi(0x4609, 1);
  EXPECT_EQ(cpus_[1].sipis, std::vector<uint8_t>{9});
}

TEST_F(LocalApicTest, ErrorsAreCollectedUntilEsrIsWritten_11_5_3) {
  Write(kLvtError, 0xe0);
  Ipi(0x0f, 1);  // vectors below 16 are illegal
  EXPECT_EQ(Read(kEsr), 0u);
  EXPECT_EQ(apics_[0]->Acknowledge(), 0xe0);
  Write(kEsr, 0);
  EXPECT_EQ(Read(kEsr), 0x20u);
  Write(kEsr, 0);
  EXPECT_EQ(Read(kEsr), 0u);
  Interrupt(0x0a);
  Write(kEsr, 0);
  EXPECT_EQ(Read(kEsr), 0x40u);
  Read(0x40);  // a reserved register
  Write(kEsr, 0);
  EXPECT_EQ(Read(kEsr), 0x80u);
}

TEST_F(LocalApicTest, TimerOneShot_11_5_4) {
  Write(kDivide, 0x3);  // 16
  Write(kLvtTimer, 0x31);
  Write(kInitial, 1000);
  scheduler_.Advance(8000);
  EXPECT_EQ(Read(kCurrent), 500u);
  EXPECT_FALSE(cpus_[0].interrupt);
  scheduler_.Advance(8000);
  EXPECT_EQ(Read(kCurrent), 0u);
  EXPECT_EQ(apics_[0]->Acknowledge(), 0x31);
  Write(kEoi, 0);
  scheduler_.Advance(1'000'000);
  EXPECT_FALSE(cpus_[0].interrupt);
  EXPECT_EQ(Read(kInitial), 1000u);
}

TEST_F(LocalApicTest, TimerPeriodicAndStop_11_5_4) {
  Write(kDivide, 0xb);  // 1
  Write(kLvtTimer, 0x20031);
  Write(kInitial, 100'000);
  for (int i = 0; i < 3; ++i) {
    scheduler_.Advance(100'000);
    EXPECT_EQ(apics_[0]->Acknowledge(), 0x31);
    Write(kEoi, 0);
  }
  scheduler_.Advance(30'000);
  EXPECT_EQ(Read(kCurrent), 70'000u);
  Write(kInitial, 0);
  scheduler_.Advance(1'000'000);
  EXPECT_FALSE(cpus_[0].interrupt);
}

TEST_F(LocalApicTest, TimerMaskedCountsWithoutInterrupt_11_5_1) {
  Write(kLvtTimer, 0x10031);
  Write(kInitial, 10);
  scheduler_.Advance(1000);
  EXPECT_FALSE(cpus_[0].interrupt);
}

TEST_F(LocalApicTest, TscDeadline_11_5_4_1) {
  uint64_t value = 1;
  EXPECT_TRUE(apics_[0]->WriteMsr(LocalApic::kMsrTscDeadline, 1000));  // ignored in other modes
  ASSERT_TRUE(apics_[0]->ReadMsr(LocalApic::kMsrTscDeadline, value));
  EXPECT_EQ(value, 0u);
  Write(kLvtTimer, 0x40032);
  Write(kInitial, 5);  // ignored in this mode
  ASSERT_TRUE(apics_[0]->WriteMsr(LocalApic::kMsrTscDeadline, 2000));
  scheduler_.Advance(999);
  EXPECT_FALSE(cpus_[0].interrupt);
  scheduler_.Advance(1);
  EXPECT_EQ(apics_[0]->Acknowledge(), 0x32);
  Write(kEoi, 0);
  ASSERT_TRUE(apics_[0]->ReadMsr(LocalApic::kMsrTscDeadline, value));
  EXPECT_EQ(value, 0u);                                              // cleared when it fires
  ASSERT_TRUE(apics_[0]->WriteMsr(LocalApic::kMsrTscDeadline, 10));  // in the past: at once
  EXPECT_TRUE(cpus_[0].interrupt);
  apics_[0]->Acknowledge();
  Write(kEoi, 0);
  ASSERT_TRUE(apics_[0]->WriteMsr(LocalApic::kMsrTscDeadline, 10'000));
  Write(kLvtTimer, 0x32);  // leaving the mode disarms
  scheduler_.Advance(100'000);
  EXPECT_FALSE(cpus_[0].interrupt);
}

TEST_F(LocalApicTest, TscDeadlineFollowsAChangedCounter) {
  Write(kLvtTimer, 0x40032);
  ASSERT_TRUE(apics_[0]->WriteMsr(LocalApic::kMsrTscDeadline, 1'000'000));
  tsc_.offset = 900'000;
  apics_[0]->TscChanged();
  scheduler_.Advance(50'000);
  EXPECT_TRUE(cpus_[0].interrupt);
}

TEST_F(LocalApicTest, ExtIntThroughLint0IsAskedFromThePic_11_5_1) {
  Write(kLint0, 0x700);
  bus_.lint0().Set(true);
  EXPECT_TRUE(cpus_[0].interrupt);
  EXPECT_FALSE(cpus_[1].interrupt);
  Write(kTpr, 0xff);  // not subject to priority
  EXPECT_EQ(apics_[0]->Acknowledge(), 0x20);
  bus_.lint0().Set(false);
  EXPECT_FALSE(cpus_[0].interrupt);
  EXPECT_EQ(Read(kIsr + 0x10), 0u);  // never in service here
}

TEST_F(LocalApicTest, ABootstrapProcessorThatIsResetOrDisabledHearsThePic) {
  apics_[0]->Reset();
  bus_.lint0().Set(true);
  EXPECT_TRUE(cpus_[0].interrupt);
  bus_.lint0().Set(false);
  ASSERT_TRUE(apics_[0]->WriteMsr(LocalApic::kMsrApicBase, 0xfee00000));
  EXPECT_FALSE(apics_[0]->mmio_enabled());
  bus_.lint0().Set(true);
  EXPECT_TRUE(cpus_[0].interrupt);
  EXPECT_EQ(apics_[0]->Acknowledge(), 0x20);
}

TEST_F(LocalApicTest, Lint1AsNmi_11_5_1) {
  Write(kLint1, 0x400);
  bus_.lint1().Set(true);
  bus_.lint1().Set(true);
  EXPECT_EQ(cpus_[0].nmis, 1);
}

TEST_F(LocalApicTest, X2ApicModeTransitions_11_12_5) {
  LocalApic& apic = *apics_[1];
  uint64_t value = 0;
  EXPECT_FALSE(apic.ReadMsr(0x802, value));           // not in x2APIC mode
  EXPECT_FALSE(apic.WriteMsr(0x1b, 0xfee00400));      // EXTD without EN
  EXPECT_FALSE(apic.WriteMsr(0x1b, 0xfee00800 | 1));  // reserved bit
  EXPECT_TRUE(apic.WriteMsr(0x1b, 0xfee00000));
  EXPECT_FALSE(apic.WriteMsr(0x1b, 0xfee00c00));  // disabled to x2APIC
  EXPECT_TRUE(apic.WriteMsr(0x1b, 0xfee00800));
  EXPECT_TRUE(apic.WriteMsr(0x1b, 0xfee00c00));
  EXPECT_FALSE(apic.mmio_enabled());
  EXPECT_FALSE(apic.WriteMsr(0x1b, 0xfee00800));  // x2APIC to xAPIC
  EXPECT_TRUE(apic.WriteMsr(0x1b, 0xfee00000));
}

TEST_F(LocalApicTest, X2ApicRegisters_11_12_1) {
  EnableX2Apic();
  LocalApic& apic = *apics_[2];
  uint64_t value = 0;
  ASSERT_TRUE(apic.ReadMsr(0x802, value));
  EXPECT_EQ(value, 2u);
  ASSERT_TRUE(apic.ReadMsr(0x80d, value));
  EXPECT_EQ(value, 4u);  // logical ID derived from the ID
  EXPECT_FALSE(apic.WriteMsr(0x80d, 1));
  EXPECT_FALSE(apic.WriteMsr(0x802, 1));
  EXPECT_FALSE(apic.ReadMsr(0x80e, value));  // no DFR
  EXPECT_FALSE(apic.ReadMsr(0x831, value));  // no second half of ICR
  EXPECT_FALSE(apic.ReadMsr(0x83f, value));  // self-IPI is write-only
  EXPECT_FALSE(apic.WriteMsr(0x80b, 1));     // EOI takes 0 only
  EXPECT_TRUE(apic.WriteMsr(0x80b, 0));
  EXPECT_FALSE(apic.WriteMsr(0x808, 0x100));
  EXPECT_FALSE(apic.WriteMsr(0x828, 1));
  EXPECT_FALSE(apic.WriteMsr(0x808, uint64_t{1} << 32));
  EXPECT_FALSE(apic.WriteMsr(0x8ff, 0));
  EXPECT_TRUE(apic.WriteMsr(0x835, 0x5700));  // LVT LINT0 with its read-only bits
  EXPECT_FALSE(apic.WriteMsr(0x834, 1u << 14));
}

TEST_F(LocalApicTest, X2ApicIpis_11_12_9_And_11_12_10) {
  EnableX2Apic();
  ASSERT_TRUE(apics_[0]->WriteMsr(0x830, uint64_t{2} << 32 | 0x55));
  EXPECT_EQ(apics_[2]->Acknowledge(), 0x55);
  uint64_t icr = 0;
  EXPECT_FALSE(apics_[0]->WriteMsr(0x831, 0x01000000));  // no second half of ICR
  ASSERT_TRUE(apics_[0]->ReadMsr(0x830, icr));
  EXPECT_EQ(icr, uint64_t{2} << 32 | 0x55);
  ASSERT_TRUE(apics_[0]->WriteMsr(0x830, uint64_t{0b011} << 32 | 0x866));  // logical, cluster 0
  EXPECT_EQ(apics_[0]->Acknowledge(), 0x66);
  EXPECT_EQ(apics_[1]->Acknowledge(), 0x66);
  EXPECT_EQ(apics_[2]->Acknowledge(), -1);
  ASSERT_TRUE(apics_[1]->WriteMsr(0x830, uint64_t{0xffffffff} << 32 | 0x77));
  for (auto& apic : apics_) EXPECT_EQ(apic->Acknowledge(), 0x77);
  ASSERT_TRUE(apics_[2]->WriteMsr(0x83f, 0x88));
  EXPECT_EQ(apics_[2]->Acknowledge(), 0x88);
}

TEST_F(LocalApicTest, MessageAddressAndData_11_11) {
  bus_.Send(0xfee01000, 0x4033);  // to CPU 1
  EXPECT_EQ(apics_[1]->Acknowledge(), 0x33);
  bus_.Send(0xfeeff000, 0x0034);  // to all
  for (auto& apic : apics_) EXPECT_TRUE(apic->Acknowledge() == 0x34 || apic->id() == 1);
  bus_.Send(0xfee02000, 0xc095);  // level
  EXPECT_EQ(apics_[2]->Acknowledge(), 0x95);
  Write(kEoi, 0, 2);
  EXPECT_EQ(eois_.vectors, std::vector<uint8_t>{0x95});
  bus_.Send(0xfee02000, 0x0400);
  EXPECT_EQ(cpus_[2].nmis, 1);
  bus_.Send(0x12345000, 0x0035);  // not an interrupt
}

TEST_F(LocalApicTest, ARestoredApicSignalsAndFiresAgain) {
  Write(kLvtTimer, 0x40032);
  ASSERT_TRUE(apics_[0]->WriteMsr(LocalApic::kMsrTscDeadline, 4000));
  Interrupt(0x50);
  state::Archive out = state::Archive::ForSaving();
  apics_[0]->Serialize(out);
  const std::vector<uint8_t> bytes = out.Finish();
  apics_[0]->Reset();
  EXPECT_FALSE(cpus_[0].interrupt);
  state::Archive in = state::Archive::ForLoading(bytes);
  apics_[0]->Serialize(in);
  ASSERT_TRUE(in.status());
  EXPECT_TRUE(cpus_[0].interrupt);
  EXPECT_EQ(apics_[0]->Acknowledge(), 0x50);
  Write(kEoi, 0);
  scheduler_.Advance(2000);
  EXPECT_EQ(apics_[0]->Acknowledge(), 0x32);
}

}  // namespace
}  // namespace nacre::devices
