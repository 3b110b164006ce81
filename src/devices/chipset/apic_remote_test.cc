// Somebody else keeps the local APICs, the rest of the board's interrupt controllers is ours (a split irqchip, Linux
// Documentation/virt/kvm/api.rst, KVM_CAP_SPLIT_IRQCHIP).

#include <gtest/gtest.h>

#include "devices/chipset/device_testing.h"
#include "devices/chipset/gsi_router.h"
#include "devices/chipset/io_apic.h"
#include "devices/chipset/local_apic.h"
#include "devices/legacy/pic8259.h"

namespace nacre::devices {
namespace {

constexpr uint64_t kEoi = 0xb0, kSvr = 0xf0, kIcrLow = 0x300, kLvtTimer = 0x320, kLint0 = 0x350, kLint1 = 0x360,
                   kInitial = 0x380, kCurrent = 0x390, kDivide = 0x3e0;
constexpr unsigned kCpus = 2;

struct Keeper final : RemoteApics {
  void Deliver(const ApicMessage& message) override { messages.push_back(message); }
  void SetExtInt(bool level) override {
    ext_int = level;
    ++ext_int_calls;
  }
  void Nmi() override { ++nmis; }
  struct Line final : RemoteLine {
    Line(Keeper& owner, const ApicMessage& first) : keeper(owner), message(first) { ++keeper.lines; }
    ~Line() override { --keeper.lines; }
    void Send() override { keeper.by_line.push_back(message.vector); }
    bool Change(const ApicMessage& other) override {
      ++keeper.changes;
      message = other;
      return true;
    }
    Keeper& keeper;
    ApicMessage message;
  };
  std::unique_ptr<RemoteLine> NewLine(const ApicMessage& message) override {
    return lines == most_lines ? nullptr : std::make_unique<Line>(*this, message);
  }
  ApicMessage Take() {
    EXPECT_EQ(messages.size(), 1u);
    const ApicMessage message = messages.empty() ? ApicMessage{} : messages.back();
    messages.clear();
    return message;
  }
  std::vector<ApicMessage> messages;
  bool ext_int = false;
  int ext_int_calls = 0;
  int nmis = 0;
  int lines = 0, most_lines = 2, changes = 0;
  std::vector<uint8_t> by_line;
};

class ApicRemoteTest : public testing::Test {
 protected:
  ApicRemoteTest() {
    bus_.SetExtIntSource(&pic_);
    pic_.Reset();
    for (unsigned i = 0; i < kCpus; ++i) {
      apics_.push_back(std::make_unique<LocalApic>(i, bus_, scheduler_, tsc_, cpus_[i]));
      Write(kSvr, 0x1ff, i);
    }
  }
  uint32_t Read(uint64_t reg, unsigned cpu = 0) { return static_cast<uint32_t>(apics_[cpu]->Read(reg, 4)); }
  void Write(uint64_t reg, uint32_t value, unsigned cpu = 0) { apics_[cpu]->Write(reg, 4, value); }
  /// The keeper has the state from here on, as a machine would do it.
  void Enter() {
    for (unsigned i = 0; i < kCpus; ++i) states_[i] = apics_[i]->ExportState();
    bus_.SetRemote(&keeper_);
  }
  void Leave() {
    bus_.SetRemote(nullptr);
    for (unsigned i = 0; i < kCpus; ++i) ASSERT_TRUE(apics_[i]->ImportState(states_[i]));
  }
  void InitializePic() {
    for (bus::IoHandler* chip : {&pic_.master_io(), &pic_.slave_io()}) {
      const bool master = chip == &pic_.master_io();
      chip->Write(0, 1, 0x11);
      chip->Write(1, 1, master ? 0x20 : 0x28);
      chip->Write(1, 1, master ? 0x04 : 0x02);
      chip->Write(1, 1, 0x01);
      chip->Write(1, 1, 0x00);
    }
  }
  void Redirect(unsigned pin, uint32_t low) {
    io_apic_.Write(0, 4, 0x10 + 2 * pin);
    io_apic_.Write(0x10, 4, low);
  }

  ManualScheduler scheduler_;
  TestTsc tsc_{scheduler_};
  ApicBus bus_;
  Keeper keeper_;
  TestCpu cpus_[kCpus];
  std::vector<std::unique_ptr<LocalApic>> apics_;
  IoApic io_apic_{1, bus_};
  Pic8259 pic_{bus_.lint0()};
  GsiRouter router_{pic_, io_apic_};
  x86::LocalApicState states_[kCpus];
};

TEST_F(ApicRemoteTest, MessagesGoToTheKeeperWhole) {
  Enter();
  bus_.Send(0xfee01000, 0x4133);  // lowest priority to one
  ApicMessage message = keeper_.Take();
  EXPECT_EQ(message.destination, 1u);
  EXPECT_FALSE(message.logical);
  EXPECT_EQ(message.mode, DeliveryMode::kLowestPriority);
  EXPECT_FALSE(message.level);
  EXPECT_EQ(message.vector, 0x33);
  bus_.Send(0xfeeff000, 0xc095);  // level, to all
  message = keeper_.Take();
  EXPECT_EQ(message.destination, ApicMessage::kBroadcast);
  EXPECT_EQ(message.mode, DeliveryMode::kFixed);
  EXPECT_TRUE(message.level);
  bus_.Send(0xfee0300c, 0x0041);  // logical, with the redirection hint: one of those
  message = keeper_.Take();
  EXPECT_EQ(message.destination, 3u);
  EXPECT_TRUE(message.logical);
  EXPECT_EQ(message.mode, DeliveryMode::kLowestPriority);
  bus_.Send(0xfee00000, 0x0400);
  EXPECT_EQ(keeper_.Take().mode, DeliveryMode::kNmi);
  bus_.Send(0x12345000, 0x0035);  // not an interrupt
  EXPECT_TRUE(keeper_.messages.empty());
  for (unsigned i = 0; i < kCpus; ++i) {
    EXPECT_FALSE(cpus_[i].interrupt);
    EXPECT_EQ(cpus_[i].nmis, 0);
    for (const uint32_t word : apics_[i]->ExportState().irr) EXPECT_EQ(word, 0u);
  }
}

TEST_F(ApicRemoteTest, WhatIsSentToOneModelGoesToTheKeeper) {
  Enter();
  apics_[1]->Deliver(DeliveryMode::kFixed, 0x70, false);
  ApicMessage message = keeper_.Take();
  EXPECT_EQ(message.destination, 1u);
  EXPECT_EQ(message.vector, 0x70);
  Write(kIcrLow, 0x40400);  // IPIs as well
  EXPECT_TRUE(keeper_.messages.empty()) << "self is a shorthand for fixed interrupts";
  Write(kIcrLow, 0xc4500);  // INIT to the others
  message = keeper_.Take();
  EXPECT_EQ(message.destination, 1u);
  EXPECT_EQ(message.mode, DeliveryMode::kInit);
  EXPECT_EQ(cpus_[1].inits, 0);
}

TEST_F(ApicRemoteTest, LevelPinOfTheIoApicAndItsEoi) {
  Redirect(16, 0x8050);
  const auto line = router_.NewSource(16);
  Enter();
  line->Set(true);
  EXPECT_TRUE(keeper_.Take().level);
  bus_.BroadcastEoi(0x50);
  EXPECT_EQ(keeper_.Take().vector, 0x50) << "still asserted";
  line->Set(false);
  bus_.BroadcastEoi(0x50);
  EXPECT_TRUE(keeper_.messages.empty());
}

TEST_F(ApicRemoteTest, LevelInterruptInServiceCrossesOver) {
  Redirect(16, 0x8050);
  const auto line = router_.NewSource(16);
  line->Set(true);
  ASSERT_EQ(apics_[0]->Acknowledge(), 0x50);
  Enter();
  EXPECT_EQ(states_[0].isr[2], 1u << 16);
  EXPECT_EQ(states_[0].tmr[2], 1u << 16);
  EXPECT_TRUE(keeper_.messages.empty());
  Leave();
  Write(kEoi, 0);
  EXPECT_EQ(apics_[0]->Acknowledge(), 0x50);
}

TEST_F(ApicRemoteTest, PicIsAcknowledgedHere) {
  InitializePic();
  const auto irq1 = router_.NewSource(1);
  const auto irq3 = router_.NewSource(3);
  Enter();
  EXPECT_FALSE(keeper_.ext_int);
  EXPECT_EQ(apics_[0]->Acknowledge(), -1);
  irq3->Set(true);
  EXPECT_TRUE(keeper_.ext_int);
  EXPECT_FALSE(cpus_[0].interrupt) << "the keeper's business";
  irq1->Set(true);
  EXPECT_EQ(apics_[0]->Acknowledge(), 0x21);
  EXPECT_FALSE(keeper_.ext_int);
  EXPECT_EQ(apics_[0]->Acknowledge(), -1);
  pic_.master_io().Write(0, 1, 0x20);
  EXPECT_TRUE(keeper_.ext_int);
  EXPECT_EQ(apics_[0]->Acknowledge(), 0x23);
}

TEST_F(ApicRemoteTest, PinsAreToldByTheirChanges) {
  bus_.lint0().Set(true);
  Enter();
  EXPECT_TRUE(keeper_.ext_int) << "the level at the beginning";
  EXPECT_EQ(keeper_.ext_int_calls, 1);
  bus_.lint0().Set(true);
  EXPECT_EQ(keeper_.ext_int_calls, 1);
  bus_.lint0().Set(false);
  EXPECT_FALSE(keeper_.ext_int);
  Write(kLint1, 0x400);
  bus_.lint1().Set(true);
  bus_.lint1().Set(true);
  bus_.lint1().Set(false);
  EXPECT_EQ(keeper_.nmis, 1);
  EXPECT_EQ(cpus_[0].nmis, 0);
  bus_.SetRemote(nullptr);
  bus_.lint0().Set(true);
  bus_.lint1().Set(true);
  EXPECT_FALSE(keeper_.ext_int);
  EXPECT_EQ(keeper_.nmis, 1);
  EXPECT_EQ(cpus_[0].nmis, 1);
}

TEST_F(ApicRemoteTest, VectorsOfDevicesHaveLinesWhileSomebodyElseKeepsTheApics) {
  const auto vector = bus_.NewVector();
  auto other = bus_.NewVector();
  auto third = bus_.NewVector();
  const auto message = [](uint32_t data) { return bus::MsiMessage{0xfee00000, data}; };
  vector->Send();
  EXPECT_FALSE(cpus_[0].interrupt) << "there is no message";
  vector->Set(message(0x50));
  vector->Send();
  EXPECT_TRUE(cpus_[0].interrupt) << "our model";
  EXPECT_EQ(keeper_.lines, 0);
  Enter();
  EXPECT_EQ(keeper_.lines, 1) << "those that have a message";
  vector->Send();
  vector->Set(message(0x50));
  EXPECT_EQ(keeper_.changes, 0);
  vector->Set(message(0x51));
  vector->Send();
  EXPECT_EQ(keeper_.changes, 1);
  EXPECT_EQ(keeper_.by_line, (std::vector<uint8_t>{0x50, 0x51}));
  other->Set(message(0x52));
  third->Set(message(0x53));
  EXPECT_EQ(keeper_.lines, 2);
  third->Send();
  EXPECT_EQ(keeper_.Take().vector, 0x53) << "no line was left";
  other.reset();
  third->Set(std::nullopt);
  third->Set(message(0x53));
  EXPECT_EQ(keeper_.lines, 2) << "one came back";
  vector->Set(bus::MsiMessage{0xfed00000, 0x51});
  vector->Send();
  EXPECT_TRUE(keeper_.messages.empty()) << "a write to somewhere else";
  EXPECT_EQ(keeper_.lines, 1);
  vector->Set(message(0x54));
  Leave();
  EXPECT_EQ(keeper_.lines, 0);
  vector->Send();
  EXPECT_EQ(apics_[0]->ExportState().irr[2] >> 20 & 1, 1u) << "our model again";
}

TEST_F(ApicRemoteTest, ModelsStandStillAndGoOnFromTheirState) {
  Write(kDivide, 0xb);
  Write(kLvtTimer, 0x31);
  Write(kInitial, 1000);
  Write(kLvtTimer, 0x40032, 1);
  ASSERT_TRUE(apics_[1]->WriteMsr(LocalApic::kMsrTscDeadline, 100'000));
  apics_[0]->Deliver(DeliveryMode::kFixed, 0x60, false);
  EXPECT_TRUE(cpus_[0].interrupt);
  scheduler_.Advance(400);
  Enter();
  EXPECT_FALSE(cpus_[0].interrupt) << "taken back";
  EXPECT_EQ(states_[0].current_count, 600u);
  EXPECT_EQ(states_[1].tsc_deadline, 100'000u);
  scheduler_.Advance(1'000'000);
  EXPECT_EQ(apics_[1]->ExportState().tsc_deadline, 100'000u) << "no timer ran";
  tsc_.offset = 1'000'000;
  apics_[1]->TscChanged();
  tsc_.offset = 0;
  EXPECT_FALSE(cpus_[0].interrupt);
  EXPECT_FALSE(cpus_[1].interrupt);
  bus_.SetRemote(nullptr);
  scheduler_.Advance(1'000'000);
  EXPECT_FALSE(cpus_[0].interrupt) << "not before ImportState";
  Leave();
  EXPECT_EQ(apics_[0]->Acknowledge(), 0x60);
  Write(kEoi, 0);
  EXPECT_EQ(Read(kCurrent), 600u);
  EXPECT_EQ(apics_[1]->Acknowledge(), 0x32) << "long past";
  scheduler_.Advance(599);
  EXPECT_FALSE(cpus_[0].interrupt);
  scheduler_.Advance(1);
  EXPECT_EQ(apics_[0]->Acknowledge(), 0x31);
}

TEST_F(ApicRemoteTest, ResetOfTheMachineMeanwhile) {
  InitializePic();
  const auto irq1 = router_.NewSource(1);
  irq1->Set(true);
  Enter();
  EXPECT_TRUE(keeper_.ext_int);
  for (auto& apic : apics_) apic->Reset();  // in a board's order: local APICs first
  pic_.Reset();
  EXPECT_FALSE(keeper_.ext_int);
  EXPECT_FALSE(cpus_[0].interrupt);
  const x86::LocalApicState state = apics_[1]->ExportState();  // for the keeper
  EXPECT_EQ(state.apic_base, 0xfee00800u);
  EXPECT_EQ(state.svr, 0xffu);
}

TEST_F(ApicRemoteTest, SavedAndRestoredMeanwhile) {
  Write(kDivide, 0xb);
  Write(kLvtTimer, 0x20031);
  Write(kInitial, 100'000);
  apics_[0]->Deliver(DeliveryMode::kFixed, 0x60, false);
  Enter();
  // The model takes the keeper's state for the save, and starts nothing.
  states_[0].current_count = 50'000;
  ASSERT_TRUE(apics_[0]->ImportState(states_[0]));
  EXPECT_FALSE(cpus_[0].interrupt);
  auto out = state::Archive::ForSaving();
  apics_[0]->Serialize(out);
  const std::vector<uint8_t> bytes = out.Finish();
  apics_[0]->Reset();
  auto in = state::Archive::ForLoading(bytes);
  apics_[0]->Serialize(in);
  ASSERT_TRUE(in.status());
  EXPECT_FALSE(cpus_[0].interrupt);
  const x86::LocalApicState state = apics_[0]->ExportState();
  EXPECT_EQ(state.irr[3], 1u);
  EXPECT_EQ(state.current_count, 50'000u);
  scheduler_.Advance(1'000'000);
  EXPECT_FALSE(cpus_[0].interrupt);
}

}  // namespace
}  // namespace nacre::devices
