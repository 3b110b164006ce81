// Tests are named after what Linux Documentation/virt/kvm/x86/{msr,hypercalls}.rst promise.

#include "devices/chipset/kvm_paravirt.h"

#include <gtest/gtest.h>

#include "devices/chipset/device_testing.h"
#include "devices/chipset/local_apic.h"

namespace nacre::devices {
namespace {

constexpr unsigned kCpus = 3;
constexpr uint64_t kFlag = 0x3004, kRecord = 0x4040, kRam = kMiB;
constexpr uint64_t kEoi = 0xb0, kSvr = 0xf0, kIsr = 0x100, kPpr = 0xa0;

struct CodeWrites final : memory::CodeWriteListener {
  void OnCodeWrite(GuestPhys address, uint64_t) override { addresses.push_back(address.value); }
  std::vector<uint64_t> addresses;
};

class KvmParavirtTest : public testing::Test {
 protected:
  KvmParavirtTest() {
    for (unsigned i = 0; i < kCpus; ++i) {
      apics_.push_back(std::make_unique<LocalApic>(i, bus_, scheduler_, tsc_, cpus_[i]));
      apics_[i]->Write(kSvr, 4, 0x1ff);
    }
    paravirt_ = std::make_unique<KvmParavirt>(*memory_, bus_);
  }
  ~KvmParavirtTest() override { paravirt_.reset(); }
  LocalApic& apic() { return *apics_[0]; }
  void Interrupt(uint8_t vector, bool level = false) { apic().Deliver(DeliveryMode::kFixed, vector, level); }
  bool InService(uint8_t vector) { return (apic().Read(kIsr + vector / 32 * 16, 4) >> (vector % 32) & 1) != 0; }
  template <typename T>
  T Get(uint64_t address) {
    T value{};
    EXPECT_TRUE(memory_->ReadValue(GuestPhys(address), value));
    return value;
  }
  template <typename T>
  void Put(uint64_t address, T value) {
    EXPECT_TRUE(memory_->WriteValue(GuestPhys(address), value));
  }
  void EnableEoi() { ASSERT_TRUE(paravirt_->WriteMsr(0, KvmParavirt::kMsrEoi, kFlag | 1)); }
  void EnableSteal(unsigned cpu = 0, uint64_t record = kRecord) {
    ASSERT_TRUE(paravirt_->WriteMsr(cpu, KvmParavirt::kMsrStealTime, record | 1));
  }
  int64_t Call(uint64_t number, uint64_t a = 0, uint64_t b = 0, uint64_t c = 0, uint64_t d = 0, bool code64 = true) {
    return static_cast<int64_t>(paravirt_->Hypercall(number, {a, b, c, d}, code64));
  }

  ManualScheduler scheduler_;
  TestTsc tsc_{scheduler_};
  ApicBus bus_;
  TestCpu cpus_[kCpus];
  std::vector<std::unique_ptr<LocalApic>> apics_;
  std::unique_ptr<memory::GuestMemory> memory_ = std::move(*memory::GuestMemory::Create(kRam));
  std::unique_ptr<KvmParavirt> paravirt_;
};

TEST_F(KvmParavirtTest, MsrsKeepTheirValuePerCpu) {
  uint64_t value = 1;
  EXPECT_TRUE(paravirt_->ReadMsr(1, KvmParavirt::kMsrStealTime, value));
  EXPECT_EQ(value, 0u);
  EnableSteal(1, 0x5000);
  EXPECT_TRUE(paravirt_->ReadMsr(1, KvmParavirt::kMsrStealTime, value));
  EXPECT_EQ(value, 0x5001u);
  EXPECT_TRUE(paravirt_->ReadMsr(0, KvmParavirt::kMsrStealTime, value));
  EXPECT_EQ(value, 0u);
  EXPECT_FALSE(paravirt_->ReadMsr(kCpus, KvmParavirt::kMsrEoi, value));
  EXPECT_FALSE(paravirt_->WriteMsr(kCpus, KvmParavirt::kMsrEoi, 0));
  EXPECT_FALSE(KvmParavirt::OwnsMsr(0x4b564d02)) << "no asynchronous page faults";
}

TEST_F(KvmParavirtTest, ReservedBitsAndForeignAddressesFault) {
  for (const uint64_t bit : {2, 4, 8, 0x10, 0x20})
    EXPECT_FALSE(paravirt_->WriteMsr(0, KvmParavirt::kMsrStealTime, kRecord | 1 | bit)) << bit;
  EXPECT_FALSE(paravirt_->WriteMsr(0, KvmParavirt::kMsrEoi, kFlag | 3));
  EXPECT_FALSE(paravirt_->WriteMsr(0, KvmParavirt::kMsrEoi, kRam | 1));
  EXPECT_FALSE(paravirt_->WriteMsr(0, KvmParavirt::kMsrEoi, ~uint64_t{2}));
  EXPECT_TRUE(paravirt_->WriteMsr(0, KvmParavirt::kMsrEoi, kRam)) << "not enabled: any address";
}

TEST_F(KvmParavirtTest, EoiBitClearedIsEndOfInterrupt) {
  EnableEoi();
  Interrupt(0x50);
  ASSERT_EQ(apic().Acknowledge(), 0x50);
  EXPECT_EQ(Get<uint32_t>(kFlag), 1u);
  EXPECT_TRUE(InService(0x50));
  Put(kFlag, uint32_t{0});
  EXPECT_FALSE(InService(0x50));
  EXPECT_EQ(apic().Read(kPpr, 4), 0u);
  EXPECT_FALSE(cpus_[0].interrupt);
}

TEST_F(KvmParavirtTest, EoiRegisterWorksBesideTheFlag) {
  EnableEoi();
  Interrupt(0x50);
  ASSERT_EQ(apic().Acknowledge(), 0x50);
  apic().Write(kEoi, 4, 0);
  EXPECT_FALSE(InService(0x50));
  EXPECT_EQ(Get<uint32_t>(kFlag), 0u) << "nothing is left that a later clear could end";
  // Said twice, it ends one interrupt.
  Interrupt(0x50);
  ASSERT_EQ(apic().Acknowledge(), 0x50);
  Interrupt(0x90);
  ASSERT_EQ(apic().Acknowledge(), 0x90);
  apic().Write(kEoi, 4, 0);
  EXPECT_TRUE(InService(0x50));
}

TEST_F(KvmParavirtTest, EoiIsOfferedOnlyWhereNothingElseWaits) {
  EnableEoi();
  // Another one is pending.
  Interrupt(0x50);
  Interrupt(0x40);
  ASSERT_EQ(apic().Acknowledge(), 0x50);
  EXPECT_EQ(Get<uint32_t>(kFlag), 0u);
  apic().Write(kEoi, 4, 0);
  ASSERT_EQ(apic().Acknowledge(), 0x40);
  EXPECT_EQ(Get<uint32_t>(kFlag), 1u);
  // A nested one takes the offer back, in the context of the CPU.
  Interrupt(0x80);
  EXPECT_EQ(Get<uint32_t>(kFlag), 1u) << "only the CPU itself may change it";
  ASSERT_EQ(apic().Acknowledge(), 0x80);
  EXPECT_EQ(Get<uint32_t>(kFlag), 0u);
  apic().Write(kEoi, 4, 0);
  apic().Write(kEoi, 4, 0);
  EXPECT_FALSE(InService(0x40));
  // A level-triggered one needs its broadcast.
  Interrupt(0x60, true);
  ASSERT_EQ(apic().Acknowledge(), 0x60);
  EXPECT_EQ(Get<uint32_t>(kFlag), 0u);
}

TEST_F(KvmParavirtTest, InterruptThatComesMeanwhileIsNotLost) {
  EnableEoi();
  Interrupt(0x50);
  ASSERT_EQ(apic().Acknowledge(), 0x50);
  Interrupt(0x40);  // has to wait for the end of the first
  EXPECT_TRUE(cpus_[0].interrupt) << "the CPU must look: it may say end of interrupt unseen";
  // Not said yet: from now on by the register.
  EXPECT_EQ(apic().Acknowledge(), -1);
  EXPECT_FALSE(cpus_[0].interrupt);
  EXPECT_EQ(Get<uint32_t>(kFlag), 0u);
  apic().Write(kEoi, 4, 0);
  EXPECT_TRUE(cpus_[0].interrupt);
  ASSERT_EQ(apic().Acknowledge(), 0x40);
  // Said already.
  EXPECT_EQ(Get<uint32_t>(kFlag), 1u);
  Put(kFlag, uint32_t{0});
  Interrupt(0x30);
  EXPECT_TRUE(cpus_[0].interrupt);
  EXPECT_EQ(apic().Acknowledge(), 0x30);
}

TEST_F(KvmParavirtTest, LowestPriorityGoesByWhatWasSaid) {
  EnableEoi();
  Interrupt(0x50);
  ASSERT_EQ(apic().Acknowledge(), 0x50);
  for (unsigned i = 1; i < kCpus; ++i) apics_[i]->Write(0x80, 4, 0x20);
  Put(kFlag, uint32_t{0});
  ApicMessage message;
  message.destination = ApicMessage::kBroadcast;
  message.mode = DeliveryMode::kLowestPriority;
  message.vector = 0x61;
  bus_.Route(message);
  EXPECT_TRUE(cpus_[0].interrupt);
}

TEST_F(KvmParavirtTest, SwitchingEoiOffLeavesTheRegister) {
  EnableEoi();
  Interrupt(0x50);
  ASSERT_EQ(apic().Acknowledge(), 0x50);
  ASSERT_TRUE(paravirt_->WriteMsr(0, KvmParavirt::kMsrEoi, 0));
  EXPECT_EQ(Get<uint32_t>(kFlag), 0u);
  EXPECT_TRUE(InService(0x50));
  apic().Write(kEoi, 4, 0);
  Interrupt(0x51);
  ASSERT_EQ(apic().Acknowledge(), 0x51);
  EXPECT_EQ(Get<uint32_t>(kFlag), 0u);
}

TEST_F(KvmParavirtTest, EoiSaidBeforeTheStateLeavesIsDone) {
  EnableEoi();
  Interrupt(0x50);
  ASSERT_EQ(apic().Acknowledge(), 0x50);
  Put(kFlag, uint32_t{0});
  EXPECT_EQ(apic().ExportState().isr[2], 0u);
}

TEST_F(KvmParavirtTest, EoiOfferIsWithdrawnBeforeTheStateLeaves) {
  EnableEoi();
  Interrupt(0x50);
  ASSERT_EQ(apic().Acknowledge(), 0x50);
  const x86::LocalApicState state = apic().ExportState();
  EXPECT_EQ(state.isr[2], 1u << 16);
  EXPECT_EQ(Get<uint32_t>(kFlag), 0u) << "nobody else knows of the offer";
  ASSERT_TRUE(apic().ImportState(state));
  EXPECT_TRUE(InService(0x50));
  apic().Write(kEoi, 4, 0);
  EXPECT_FALSE(InService(0x50));
}

TEST_F(KvmParavirtTest, EoiThatAnotherApicOfferedEndsTheHighestInService) {
  Interrupt(0x50);
  ASSERT_EQ(apic().Acknowledge(), 0x50);
  Interrupt(0x90);
  ASSERT_EQ(apic().Acknowledge(), 0x90);
  const x86::LocalApicState state = apic().ExportState();
  EnableEoi();
  Put(kFlag, uint32_t{1});
  ASSERT_TRUE(apic().ImportState(state));
  // The guest looks at the flag and goes to the register.
  EXPECT_EQ(Get<uint32_t>(kFlag), 0u);
  EXPECT_TRUE(InService(0x90));
  apic().Write(kEoi, 4, 0);
  EXPECT_FALSE(InService(0x90));
  EXPECT_TRUE(InService(0x50));
  apic().Write(kEoi, 4, 0);
  // Offers go on as ever.
  Interrupt(0x51);
  ASSERT_EQ(apic().Acknowledge(), 0x51);
  EXPECT_EQ(Get<uint32_t>(kFlag), 1u);
  Put(kFlag, uint32_t{0});
  EXPECT_FALSE(InService(0x51));
}

TEST_F(KvmParavirtTest, StateWithoutAnOfferLeavesTheFlagsMemoryAlone) {
  CodeWrites writes;
  memory_->SetCodeWriteListener(&writes);
  Put(kFlag, uint32_t{1});
  const x86::LocalApicState state = apic().ExportState();
  ASSERT_TRUE(apic().ImportState(state));
  EXPECT_EQ(Get<uint32_t>(kFlag), 1u) << "not enabled: it is no flag";
  EnableEoi();
  Put(kFlag, uint32_t{0});
  memory_->SetCodePage(GuestPhys(kFlag), true);
  ASSERT_TRUE(apic().ImportState(state));
  EXPECT_TRUE(writes.addresses.empty());
  memory_->SetCodeWriteListener(nullptr);
}

TEST_F(KvmParavirtTest, SomebodyElseWhoKeepsTheApicsFindsNoOffer) {
  struct Keeper final : RemoteApics {
    void Deliver(const ApicMessage& message) override { destinations.push_back(message.destination); }
    void SetExtInt(bool) override {}
    void Nmi() override {}
    std::vector<uint32_t> destinations;
  } keeper;
  EnableEoi();
  Interrupt(0x50);
  ASSERT_EQ(apic().Acknowledge(), 0x50);
  bus_.SetRemote(&keeper);
  EXPECT_EQ(Get<uint32_t>(kFlag), 0u);
  EXPECT_EQ(Call(KvmParavirt::kHcSendIpi, 0b110, 0, 0, 0x70), 2);
  EXPECT_EQ(keeper.destinations, (std::vector<uint32_t>{1, 2}));
  EXPECT_FALSE(cpus_[1].interrupt);
  bus_.SetRemote(nullptr);
}

TEST_F(KvmParavirtTest, PreemptedWhileItSleeps) {
  paravirt_->Sleeping(0);  // no record: nothing happens
  EXPECT_FALSE(paravirt_->Running(0));
  EnableSteal();
  paravirt_->Sleeping(0);
  EXPECT_EQ(Get<uint8_t>(kRecord + 16), 1u);
  EXPECT_FALSE(paravirt_->Running(0));
  EXPECT_EQ(Get<uint8_t>(kRecord + 16), 0u);
  // Another CPU asks for a flush instead of sending an interrupt.
  paravirt_->Sleeping(0);
  Put(kRecord + 16, uint8_t{3});
  EXPECT_TRUE(paravirt_->Running(0));
  EXPECT_EQ(Get<uint8_t>(kRecord + 16), 0u);
  EXPECT_FALSE(paravirt_->Running(0));
}

TEST_F(KvmParavirtTest, RecordOutsideRamIsNotWritten) {
  for (const uint64_t record : {kRam, ~uint64_t{0x3f}, uint64_t{0xfee00000}}) {
    EnableSteal(0, record);
    paravirt_->Sleeping(0);
    EXPECT_FALSE(paravirt_->Running(0));
    paravirt_->AddStolenTime(0, 100);
  }
}

TEST_F(KvmParavirtTest, StealAddsUpBetweenEvenVersions) {
  EXPECT_FALSE(paravirt_->wants_stolen_time(0));
  EnableSteal();
  EXPECT_TRUE(paravirt_->wants_stolen_time(0));
  paravirt_->AddStolenTime(0, 1000);
  const auto version = Get<uint32_t>(kRecord + 8);
  EXPECT_EQ(version % 2, 0u);
  EXPECT_NE(version, 0u);
  paravirt_->AddStolenTime(0, 234);
  EXPECT_EQ(Get<uint64_t>(kRecord), 1234u);
  EXPECT_GT(Get<uint32_t>(kRecord + 8), version);
}

TEST_F(KvmParavirtTest, WritesAreSeenByWhoHoldsTheCode) {
  CodeWrites writes;
  memory_->SetCodeWriteListener(&writes);
  EnableSteal();
  EnableEoi();
  memory_->SetCodePage(GuestPhys(kRecord), true);
  memory_->SetCodePage(GuestPhys(kFlag), true);
  paravirt_->Sleeping(0);
  paravirt_->Running(0);
  Interrupt(0x50);
  apic().Acknowledge();
  EXPECT_EQ(writes.addresses, (std::vector<uint64_t>{kRecord + 16, kRecord + 16, kFlag}));
  memory_->SetCodeWriteListener(nullptr);
}

TEST_F(KvmParavirtTest, KickEndsTheNextHalt) {
  EXPECT_FALSE(paravirt_->TakeKick(1));
  EXPECT_EQ(Call(KvmParavirt::kHcKickCpu, 0, 1), 0);
  EXPECT_EQ(cpus_[1].kicks, 1);
  EXPECT_FALSE(paravirt_->TakeKick(0));
  EXPECT_TRUE(paravirt_->TakeKick(1));
  EXPECT_FALSE(paravirt_->TakeKick(1));
  EXPECT_EQ(Call(KvmParavirt::kHcKickCpu, 0, kCpus), 0);  // nobody
  EXPECT_EQ(Call(KvmParavirt::kHcKickCpu, 0, ~uint64_t{0}), 0);
}

TEST_F(KvmParavirtTest, SendIpiReachesTheBitmapsCpus) {
  EXPECT_EQ(Call(KvmParavirt::kHcSendIpi, 0b101, 0, 0, 0x4000 | 0x70), 2);
  EXPECT_EQ(apics_[0]->Acknowledge(), 0x70);
  EXPECT_EQ(apics_[1]->Acknowledge(), -1);
  EXPECT_EQ(apics_[2]->Acknowledge(), 0x70);
  // The third argument is the APIC ID of bit 0; those that do not exist are not counted.
  EXPECT_EQ(Call(KvmParavirt::kHcSendIpi, ~uint64_t{0}, ~uint64_t{0}, 1, 0x71), 2);
  EXPECT_EQ(apics_[0]->Acknowledge(), -1);
  for (const uint64_t first : {uint64_t{kCpus}, ~uint64_t{0}, uint64_t{1} << 32})
    EXPECT_EQ(Call(KvmParavirt::kHcSendIpi, 3, 3, first, 0x72), 0);
  EXPECT_EQ(Call(KvmParavirt::kHcSendIpi, 0b110, 0, 0, 0x400), 2) << "NMI";
  EXPECT_EQ(cpus_[1].nmis, 1);
  EXPECT_EQ(cpus_[2].nmis, 1);
  for (const uint64_t icr : {0x500, 0x600, 0x100, 0x40070, 0x870})
    EXPECT_EQ(Call(KvmParavirt::kHcSendIpi, 1, 0, 0, icr), KvmParavirt::kErrorInvalid) << std::hex << icr;
}

TEST_F(KvmParavirtTest, SendIpiFrom32BitCodeHasNarrowHalves) {
  // Bit 0 of the second half is bit 32 there: no such CPU; bit 64 in 64-bit code as well.
  EXPECT_EQ(Call(KvmParavirt::kHcSendIpi, 1, 1, 0, 0x70, false), 1);
  EXPECT_EQ(Call(KvmParavirt::kHcSendIpi, uint64_t{1} << 32 | 2, 0, 0, 0x70, false), 1);
}

TEST_F(KvmParavirtTest, OtherHypercallsAreUnknown) {
  for (const uint64_t number : {0, 1, 2, 6, 9, 11, 12, 1000})
    EXPECT_EQ(Call(number, 1, 1, 1, 1), KvmParavirt::kErrorNoSuchCall) << number;
}

TEST_F(KvmParavirtTest, InitSwitchesTheCpuOff) {
  EnableSteal();
  EnableEoi();
  EnableSteal(1, 0x5000);
  Call(KvmParavirt::kHcKickCpu, 0, 0);
  paravirt_->ResetCpu(0);
  EXPECT_FALSE(paravirt_->wants_stolen_time(0));
  EXPECT_TRUE(paravirt_->wants_stolen_time(1));
  EXPECT_FALSE(paravirt_->TakeKick(0));
  Interrupt(0x50);
  apic().Acknowledge();
  EXPECT_EQ(Get<uint32_t>(kFlag), 0u);
}

TEST_F(KvmParavirtTest, RestoreGoesOnWithAnOfferedEoi) {
  EnableEoi();
  Call(KvmParavirt::kHcKickCpu, 0, 2);
  Interrupt(0x50);
  ASSERT_EQ(apic().Acknowledge(), 0x50);
  const auto save = [](bus::Device& device) {
    auto archive = state::Archive::ForSaving();
    device.Serialize(archive);
    return archive.Finish();
  };
  const std::vector<uint8_t> apic_state = save(apic()), state = save(*paravirt_);
  apic().Reset();
  paravirt_->Reset();
  // In any order.
  auto first = state::Archive::ForLoading(apic_state);
  apic().Serialize(first);
  auto second = state::Archive::ForLoading(state);
  paravirt_->Serialize(second);
  ASSERT_TRUE(first.status() && second.status());
  EXPECT_TRUE(paravirt_->TakeKick(2));
  EXPECT_TRUE(InService(0x50));
  Put(kFlag, uint32_t{0});
  EXPECT_FALSE(InService(0x50));
}

}  // namespace
}  // namespace nacre::devices
