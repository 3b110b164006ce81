// What the kernel does for a guest without leaving it, and how it is got out of it: write events, kicks, LINT1.
#include "engine/kvm/kvm_vm.h"

#include <gtest/gtest.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <atomic>
#include <thread>
#include <vector>

#include "engine/kvm/kvm_testing.h"

namespace nacre::engine::kvm {
namespace {

constexpr uint64_t kDevice = 0xd0000000;

class KvmVmTest : public KvmGuestTest {
 protected:
  void SetUp() override {
    KvmGuestTest::SetUp();
    if (!engine) return;
    // The device's page, by a page of 2 MiB.
    Put<uint64_t>(kApicDirectory + 8 * ((kDevice >> 21) & 511), kDevice | 0x9b);
  }
  static uint64_t Take(int fd) {
    uint64_t count = 0;
    return read(fd, &count, sizeof count) == sizeof count ? count : 0;
  }
  void SetLint1(uint32_t entry) {
    KeptState kept;
    ASSERT_TRUE(vcpu->apic_keeper()->ExportKept(kept));
    kept.apic.lvt[x86::LocalApicState::kLint1] = entry;
    ASSERT_TRUE(vcpu->apic_keeper()->ImportKept(kept));
  }
};

TEST_F(KvmVmTest, AWriteEventIsCountedAndTheNextAddressIsADevice) {
  // mov edx, kDevice + 8; mov word [rdx], 3 (twice); mov dword [rdx], 3; mov byte [rdx + 1], 5; sti; hlt; jmp to hlt
  Code({0xba, 0x08, 0x00, 0x00, 0xd0, 0x66, 0xc7, 0x02, 3,    0, 0x66, 0xc7, 0x02, 3,   0,
        0xc7, 0x02, 3,    0,    0,    0,    0xc6, 0x42, 0x01, 5, 0xfb, 0xf4, 0xeb, 0xfd});
  const Fd event(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  WriteEvents& events = *engine->write_events();
  const Status added = events.AddWriteEvent(GuestPhys(kDevice + 8), event.get());
  ASSERT_TRUE(added) << added.error().message;
  EXPECT_FALSE(events.AddWriteEvent(GuestPhys(kDevice + 8), event.get())) << "the address is taken";
  auto line = engine->message_sink()->OpenLine({0xfee00000, 0x61});
  ASSERT_TRUE(line);
  Start();
  line->Send();
  ASSERT_TRUE(Eventually([&] { return Count(0x61) == 1; })) << "the guest is past its writes";
  Stop();
  EXPECT_EQ(Take(event.get()), 3u);
  EXPECT_EQ(host.mmio_writes, (std::vector<std::pair<uint64_t, uint64_t>>{{kDevice + 9, 5}}));

  events.RemoveWriteEvent(GuestPhys(kDevice + 8), event.get());
  s.rip = interp::at::kCode;
  vcpu->Import(s);
  host.mmio_writes.clear();
  Start();
  line->Send();
  ASSERT_TRUE(Eventually([&] { return Count(0x61) == 2; }));
  Stop();
  EXPECT_EQ(Take(event.get()), 0u);
  EXPECT_EQ(host.mmio_writes.size(), 4u);
}

// A request is seen whether it comes before, in or after KVM_RUN, in a guest that spins and in one that halts.
class KvmKickTest : public KvmVmTest, public testing::WithParamInterface<bool> {};

TEST_P(KvmKickTest, NoRequestIsMissed) {
  if (GetParam()) Code({0xeb, 0xfe});
  constexpr unsigned kStops = 400;
  std::atomic<unsigned> returned = 0, asked = 0;
  std::atomic<bool> end = false;
  std::thread runner([&] {
    while (!end) {
      reason = vcpu->Run();
      if (reason != ExitReason::kStop) break;
      ++returned;
      // The next stop is asked for before, while or after the vCPU starts again.
      while (!end && asked < returned) std::this_thread::yield();
    }
  });
  std::vector<std::thread> noise;
  for (unsigned i = 0; i < 3; ++i)
    noise.emplace_back([&, i] {
      while (!end) {
        vcpu->Request(i == 0 ? kRequestUnhalt : kRequestInterrupt);
        vcpu->ClearRequest(kRequestInterrupt);
        std::this_thread::sleep_for(std::chrono::microseconds(20 + 30 * i));
      }
    });
  bool missed = false;
  for (unsigned i = 1; i <= kStops && !missed; ++i) {
    asked = i;
    if (i % 4 != 0) std::this_thread::sleep_for(std::chrono::microseconds(i % 7 * 20));
    vcpu->Request(kRequestStop);
    missed = !Eventually([&] { return returned >= i; });
  }
  end = true;
  vcpu->Request(kRequestStop);
  runner.join();
  for (std::thread& one : noise) one.join();
  EXPECT_FALSE(missed) << "after " << returned;
  EXPECT_EQ(static_cast<int>(reason), static_cast<int>(ExitReason::kStop)) << vcpu->error();
}

INSTANTIATE_TEST_SUITE_P(Guests, KvmKickTest, testing::Bool(),
                         [](const auto& spins) { return spins.param ? "spins" : "halts"; });

TEST_F(KvmVmTest, Lint1IsWhatTheLocalVectorTableSays) {
  Put<uint64_t>(interp::at::kIdt + 2 * 16, Get<uint64_t>(interp::at::kIdt + 0x72 * 16));  // an NMI counts as 72H
  const auto pulse = [&] {
    Start();
    auto line = engine->message_sink()->OpenLine({0xfee00000, 0x61});
    const int before = Count(0x61);
    vcpu->Request(kRequestLint1);
    EXPECT_TRUE(Eventually([&] { return (vcpu->pending_requests() & (kRequestLint1 | kRequestNmi)) == 0; }));
    line->Send();
    EXPECT_TRUE(Eventually([&] { return Count(0x61) == before + 1; }));
    Stop();
  };
  SetLint1(0x10400);
  pulse();
  EXPECT_EQ(Count(0x71) + Count(0x72), 0) << "masked";
  SetLint1(0x71);
  pulse();
  EXPECT_EQ(Count(0x71), 1) << "fixed";
  EXPECT_EQ(Count(0x72), 0);
  SetLint1(0x400);
  pulse();
  EXPECT_EQ(Count(0x72), 1) << "NMI";
  EXPECT_EQ(Count(0x71), 1);
}

TEST_F(KvmVmTest, ArchCapabilitiesPromiseOnlyWhatTheHostHas) {
  const auto device = KvmDevice::Open();
  ASSERT_TRUE(device);
  // mov ecx, 0x10a; rdmsr; mov [kCounts + 0x100], eax; mov [kCounts + 0x104], edx; sti; hlt; jmp to hlt
  Code({0xb9, 0x0a, 0x01, 0,    0,    0x0f, 0x32, 0x89, 0x04, 0x25, 0x00, 0x01, 0x03,
        0,    0x89, 0x14, 0x25, 0x04, 0x01, 0x03, 0,    0xfb, 0xf4, 0xeb, 0xfd});
  Put<uint64_t>(kCounts + 0x100, ~uint64_t{0});
  Start();
  ASSERT_TRUE(Eventually([&] { return Get<uint32_t>(kCounts + 0x104) != ~0u; }));
  Stop();
  const auto promised = Get<uint64_t>(kCounts + 0x100);
  EXPECT_EQ(promised & ~device->FeatureMsr(0x10a), 0u);
  EXPECT_EQ(promised & ~x86::CpuModel::arch_capabilities(), 0u);
}

/// Asks for a stop in the acknowledge cycle, as late as can be before KVM has the vector.
struct StoppingHost final : interp::FakeHost {
  int AcknowledgeInterrupt() override {
    if (stop) vcpu->Request(kRequestStop);
    vcpu->ClearRequest(kRequestInterrupt);
    ++acknowledged;
    return 0x66;
  }
  Vcpu* vcpu = nullptr;
  bool stop = true;
  std::atomic<int> acknowledged = 0;
};

class KvmExtIntTest : public KvmVmTest {
 protected:
  void SetUp() override {
    KvmVmTest::SetUp();
    stopping.vcpu = vcpu.get();
  }
  VcpuHost& machine() override { return stopping; }
  int Held() {
    KeptState kept;
    EXPECT_TRUE(vcpu->apic_keeper()->ExportKept(kept));
    return kept.ext_int;
  }
  /// Until the guest halts with interrupts enabled.
  void StartHalted() {
    Start();
    auto line = engine->message_sink()->OpenLine({0xfee00000, 0x61});
    line->Send();
    ASSERT_TRUE(Eventually([&] { return Count(0x61) == 1; }));
  }
  StoppingHost stopping;
};

TEST_F(KvmExtIntTest, DeliveredByTheSameCpu) {
  StartHalted();
  vcpu->Request(kRequestInterrupt);
  ASSERT_TRUE(Eventually([&] { return stopping.acknowledged == 1; }));
  thread.join();
  ASSERT_EQ(static_cast<int>(reason), static_cast<int>(ExitReason::kStop)) << vcpu->error();
  EXPECT_EQ(Held(), 0x66);
  EXPECT_EQ(Count(0x66), 0);
  KeptState kept;
  ASSERT_TRUE(vcpu->apic_keeper()->ExportKept(kept));
  ASSERT_TRUE(vcpu->apic_keeper()->ImportKept(kept)) << "a pause";
  Start();
  EXPECT_TRUE(Eventually([&] { return Count(0x66) == 1; }));
  Stop();
  EXPECT_EQ(Held(), -1);
  EXPECT_EQ(Count(0x66), 1) << "once";
}

TEST_F(KvmExtIntTest, DeliveredByAnotherCpu) {
  StartHalted();
  vcpu->Request(kRequestInterrupt);
  ASSERT_TRUE(Eventually([&] { return stopping.acknowledged == 1; }));
  thread.join();
  KeptState kept;
  ASSERT_TRUE(vcpu->apic_keeper()->ExportKept(kept));
  ASSERT_EQ(kept.ext_int, 0x66);
  x86::CpuState state;
  vcpu->Export(state);
  vcpu.reset();
  engine = std::move(*CreateKvmEngine(*memory));
  vcpu = std::move(*engine->CreateVcpu({0, model.get(), memory.get(), &host}));
  vcpu->Import(state);
  ASSERT_TRUE(vcpu->apic_keeper()->ImportKept(kept));
  Start();
  EXPECT_TRUE(Eventually([&] { return Count(0x66) == 1; }));
  Stop();
  EXPECT_EQ(Held(), -1);
}

TEST_F(KvmExtIntTest, WhatWasDeliveredIsNotHeld) {
  stopping.stop = false;
  StartHalted();
  vcpu->Request(kRequestInterrupt);
  EXPECT_TRUE(Eventually([&] { return Count(0x66) == 1; }));
  Stop();
  EXPECT_EQ(Held(), -1);
}

}  // namespace
}  // namespace nacre::engine::kvm
