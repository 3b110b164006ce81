// ACPI 6.5, section 4.8.

#include "devices/chipset/acpi_pm.h"

#include <gtest/gtest.h>

#include "devices/chipset/device_testing.h"
#include "devices/chipset/small_ports.h"

namespace nacre::devices {
namespace {

class AcpiPmTest : public testing::Test {
 protected:
  void EnableAcpi() { pm_.smi_io().Write(0, 1, AcpiPm::kAcpiEnable); }

  void Sleep() { pm_.io().Write(4, 2, 0x2000 | AcpiPm::kSleepTypeS3 << 10); }

  ManualScheduler scheduler_;
  TestLine sci_, irq8_;
  TestMachine machine_;
  AcpiPm pm_{scheduler_, sci_, machine_};
  bus::IrqLine& clock_ = pm_.WatchRtc(irq8_);
};

TEST_F(AcpiPmTest, SmiCommandTurnsAcpiModeOnAndOff_4_8_2_5) {
  EXPECT_EQ(pm_.io().Read(4, 2) & 1, 0u);
  pm_.io().Write(4, 2, 1);  // SCI_EN is not the operating system's to write
  EXPECT_EQ(pm_.io().Read(4, 2) & 1, 0u);
  EnableAcpi();
  EXPECT_EQ(pm_.io().Read(4, 2) & 1, 1u);
  pm_.smi_io().Write(0, 1, AcpiPm::kAcpiDisable);
  EXPECT_EQ(pm_.io().Read(4, 2) & 1, 0u);
}

TEST_F(AcpiPmTest, PowerButtonRaisesTheSciUntilItIsCleared_4_8_2_2) {
  EnableAcpi();
  pm_.PressPowerButton();
  EXPECT_FALSE(sci_.level);  // not enabled
  pm_.io().Write(2, 2, 0x100);
  EXPECT_TRUE(sci_.level);
  EXPECT_EQ(pm_.io().Read(0, 2) & 0x100, 0x100u);
  pm_.io().Write(0, 2, 0x100);
  EXPECT_FALSE(sci_.level);
  EXPECT_EQ(pm_.io().Read(0, 2) & 0x100, 0u);
}

TEST_F(AcpiPmTest, SoftOff_4_8_3_2_1) {
  pm_.io().Write(4, 2, 0x2000 | 5 << 10);  // a sleep type that there is not
  EXPECT_EQ(machine_.power_offs, 0);
  pm_.io().Write(4, 2, AcpiPm::kSleepTypeS5 << 10);  // without SLP_EN
  EXPECT_EQ(machine_.power_offs, 0);
  pm_.io().Write(4, 2, 0x2000 | AcpiPm::kSleepTypeS5 << 10);
  EXPECT_EQ(machine_.power_offs, 1);
  EXPECT_EQ(pm_.io().Read(4, 2) & 0x2000, 0u);
  pm_.io().Write(4, 2, 0x2000 | AcpiPm::kSleepTypeS4 << 10);
  EXPECT_EQ(machine_.power_offs, 2);
  EXPECT_FALSE(pm_.asleep());
  EXPECT_EQ(machine_.sleeps, 0);
}

TEST_F(AcpiPmTest, SuspendToRamEndsByWhatIsEnabled_7_4_2_4) {
  EnableAcpi();
  pm_.io().Write(2, 2, 0x100);
  Sleep();
  EXPECT_TRUE(pm_.asleep());
  EXPECT_EQ(machine_.sleeps, 1);
  EXPECT_EQ(machine_.power_offs, 0);
  clock_.Set(true);  // not enabled
  pm_.KeyPressed();
  EXPECT_EQ(machine_.wakes, 0);
  pm_.PressPowerButton();
  EXPECT_EQ(machine_.wakes, 1);
  EXPECT_TRUE(pm_.asleep()) << "until the machine says so";
  EXPECT_EQ(pm_.io().Read(0, 2) & 0x8000, 0u);
  const int rises = sci_.rises;
  pm_.EndSleep();
  EXPECT_FALSE(pm_.asleep());
  EXPECT_EQ(pm_.io().Read(0, 2) & 0x8500, 0x8500u) << "woken, by the button; the clock has rung too";
  EXPECT_EQ(pm_.io().Read(4, 2) & 1, 1u) << "ACPI mode is still on";
  EXPECT_EQ(sci_.rises, rises + 1) << "for an interrupt controller that was reset";
  pm_.io().Write(0, 2, 0xffff);
  EXPECT_EQ(pm_.io().Read(0, 2) & 0x8500, 0u);
}

TEST_F(AcpiPmTest, TheClocksInterruptIsAWakeEvent_4_8_3_1_2) {
  pm_.io().Write(2, 2, 0x400);
  clock_.Set(true);
  EXPECT_TRUE(irq8_.level);
  EXPECT_EQ(pm_.io().Read(0, 2) & 0x400, 0x400u);
  pm_.io().Write(0, 2, 0x400);
  Sleep();
  clock_.Set(true);  // it still rings
  EXPECT_EQ(machine_.wakes, 0);
  clock_.Set(false);
  clock_.Set(true);
  EXPECT_EQ(machine_.wakes, 1);
  EXPECT_EQ(irq8_.rises, 2);
}

TEST_F(AcpiPmTest, AKeyIsAGeneralPurposeEventOfASleepingMachine) {
  pm_.gpe_io().Write(2, 1, 1 << AcpiPm::kKeyboardGpe);
  pm_.KeyPressed();
  EXPECT_EQ(pm_.gpe_io().Read(0, 1), 0u) << "awake: the 8042 tells of it";
  Sleep();
  pm_.KeyPressed();
  EXPECT_EQ(machine_.wakes, 1);
  EXPECT_EQ(pm_.gpe_io().Read(0, 1), 1u << AcpiPm::kKeyboardGpe);
}

TEST_F(AcpiPmTest, WhatIsPendingEndsASleepAtOnceAndSoDoesAReset) {
  pm_.io().Write(2, 2, 0x100);
  pm_.PressPowerButton();
  Sleep();
  EXPECT_EQ(machine_.sleeps, 1);
  EXPECT_EQ(machine_.wakes, 1);
  pm_.Reset();
  EXPECT_FALSE(pm_.asleep());
}

TEST_F(AcpiPmTest, ASleepingMachineIsSavedAndRestored) {
  pm_.io().Write(2, 2, 0x500);
  Sleep();
  auto out = state::Archive::ForSaving();
  pm_.Serialize(out);
  const std::vector<uint8_t> bytes = out.Finish();
  AcpiPm other{scheduler_, sci_, machine_};
  bus::IrqLine& clock = other.WatchRtc(irq8_);
  auto in = state::Archive::ForLoading(bytes);
  other.Serialize(in);
  EXPECT_TRUE(in.ok());
  EXPECT_TRUE(other.asleep());
  EXPECT_EQ(machine_.wakes, 0);
  clock.Set(true);
  EXPECT_EQ(machine_.wakes, 1);
}

TEST_F(AcpiPmTest, PmTimerRunsAt3579545Hz_4_8_3_3) {
  const uint64_t before = pm_.io().Read(8, 4);
  scheduler_.Advance(kNsPerSecond);
  EXPECT_EQ(pm_.io().Read(8, 4) - before, 3'579'545u);
  scheduler_.Advance(10 * kNsPerSecond);
  EXPECT_LT(pm_.io().Read(8, 4), 1u << 24);
}

TEST_F(AcpiPmTest, TimerStatusWhenTheTopBitChanges_4_8_3_1_1) {
  EnableAcpi();
  pm_.io().Write(2, 2, 1);
  scheduler_.Advance(TicksToNs((1 << 23) - 1, AcpiPm::kTimerHz));
  EXPECT_FALSE(sci_.level);
  scheduler_.Advance(1000);
  EXPECT_TRUE(sci_.level);
  pm_.io().Write(0, 2, 1);
  EXPECT_FALSE(sci_.level);
  scheduler_.Advance(TicksToNs(1 << 23, AcpiPm::kTimerHz));
  EXPECT_TRUE(sci_.level);
}

TEST_F(AcpiPmTest, GeneralPurposeEvents_4_8_4_1) {
  EnableAcpi();
  pm_.RaiseGpe(3);
  pm_.RaiseGpe(99);
  EXPECT_EQ(pm_.gpe_io().Read(0, 1), 8u);
  pm_.gpe_io().Write(2, 1, 8);
  EXPECT_TRUE(sci_.level);
  pm_.gpe_io().Write(0, 1, 8);
  EXPECT_FALSE(sci_.level);
}

TEST(SmallPorts, ResetControlResetsOnTheRisingBit2) {
  TestMachine machine;
  ResetControl port(machine);
  port.Write(0, 1, 0x02);
  EXPECT_EQ(machine.resets, 0);
  port.Write(0, 1, 0x06);
  EXPECT_EQ(machine.resets, 1);
  EXPECT_EQ(port.Read(0, 1), 0x06u);
  port.Write(0, 1, 0x06);
  EXPECT_EQ(machine.resets, 1);
}

TEST(SmallPorts, Port92ResetsAndSwitchesTheA20Gate) {
  TestMachine machine;
  std::vector<bool> told;
  A20Gate a20([&](bool on) { told.push_back(on); });
  SystemControlA port(machine, a20);
  EXPECT_EQ(port.Read(0, 1), 0x02u);
  port.Write(0, 1, 0x00);
  port.Write(0, 1, 0x00);
  EXPECT_EQ(port.Read(0, 1), 0x00u);
  port.Write(0, 1, 0xfe);
  EXPECT_EQ(port.Read(0, 1), 0x02u);
  EXPECT_EQ(told, (std::vector<bool>{false, true})) << "at a change only";
  EXPECT_EQ(machine.resets, 0);
  port.Write(0, 1, 0x01);
  EXPECT_EQ(machine.resets, 1);
  EXPECT_FALSE(a20.on());
  a20.Reset();
  EXPECT_EQ(port.Read(0, 1), 0x03u);
}

TEST(SmallPorts, DebugExitPassesTheValue) {
  TestMachine machine;
  DebugExitPort port(machine);
  port.Write(0, 4, 0x10);
  port.Write(1, 1, 0x20);
  EXPECT_EQ(machine.exits, std::vector<uint32_t>{0x10});
}

}  // namespace
}  // namespace nacre::devices
