#pragma once
// A guest on the host's KVM for tests: 64-bit code at CPL 0 on the interpreter tests' memory, which counts every
// interrupt that it takes by vector and ends it at its local APIC. Skips where KVM cannot be opened. Tests only.

#include <gtest/gtest.h>

#include <chrono>
#include <functional>
#include <memory>
#include <thread>

#include "engine/interp/interp_testing.h"
#include "engine/kvm/kvm_device.h"
#include "engine/kvm/kvm_engine.h"
#include "memory/guest_memory.h"

namespace nacre::engine::kvm {

class KvmGuestTest : public interp::InterpTest {
 protected:
  static constexpr uint64_t kCounts = 0x30000, kStubs = 0x40000 + kPageSize, kCommon = kStubs + 0x1000,
                            kApicDirectory = 0x28000;

  void SetUp() override {
    const auto device = KvmDevice::Open();
    if (!device) GTEST_SKIP() << device.error().message;
    InterpTest::SetUp();
    auto made_engine = CreateKvmEngine(*memory);
    ASSERT_TRUE(made_engine) << made_engine.error().message;
    engine = std::move(*made_engine);
    MakeGuest();
    auto made = engine->CreateVcpu({0, model.get(), memory.get(), &machine()});
    ASSERT_TRUE(made) << made.error().message;
    vcpu = std::move(*made);
    vcpu->Import(s);
    const Status imported = vcpu->apic_keeper()->ImportKept(Kept());
    ASSERT_TRUE(imported) << imported.error().message;
  }
  /// The local APIC, switched on, and the 8259 pair at LINT0.
  static KeptState Kept() {
    KeptState kept;
    kept.apic.apic_base = 0xfee00900;
    kept.apic.svr = 0x1ff;
    kept.apic.dfr = ~0u;
    for (uint32_t& lvt : kept.apic.lvt) lvt = 1 << 16;
    kept.apic.lvt[x86::LocalApicState::kLint0] = 0x700;
    return kept;
  }
  void TearDown() override {
    Stop();
    vcpu.reset();
    engine.reset();
  }

  /// The vCPU on a thread of its own, until Stop.
  void Start() {
    thread = std::thread([this] { reason = vcpu->Run(); });
  }
  void Stop() {
    if (!thread.joinable()) return;
    vcpu->Request(kRequestStop);
    thread.join();
    EXPECT_EQ(static_cast<int>(reason), static_cast<int>(ExitReason::kStop)) << vcpu->error();
  }
  static bool Eventually(const std::function<bool()>& what) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(30);
    while (!what()) {
      if (std::chrono::steady_clock::now() > end) return false;
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
    return true;
  }
  /// How often the guest took an interrupt, modulo 256.
  int Count(uint8_t vector) { return Get<uint8_t>(kCounts + vector); }

  virtual VcpuHost& machine() { return host; }

  std::unique_ptr<Engine> engine;
  std::unique_ptr<Vcpu> vcpu;
  std::thread thread;
  ExitReason reason = ExitReason::kError;

 private:
  void MakeGuest() {
    LongMode();
    // The local APIC's page, by a page of 2 MiB.
    Put<uint64_t>(Pdpte(3), kApicDirectory | 7);
    Put<uint64_t>(kApicDirectory + 8 * ((0xfee00000 >> 21) & 511), 0xfee00000 | 0x9b);
    // sti; hlt; jmp back to hlt
    Code({0xfb, 0xf4, 0xeb, 0xfd});
    for (unsigned vector = 32; vector < 256; ++vector) {
      const uint64_t stub = kStubs + vector * 16;
      // push vector; jmp common
      Code({0x68}, stub);
      Put<uint32_t>(stub + 1, vector);
      Code({0xe9}, stub + 5);
      Put<uint32_t>(stub + 6, static_cast<uint32_t>(kCommon - (stub + 10)));
      Gate(interp::at::kIdt + vector * 16, interp::sel::kCode0, stub, 0x8e);
    }
    Code({0x50,                                       // push rax
          0x8b, 0x44, 0x24, 0x08,                     // mov eax, [rsp + 8]
          0xfe, 0x80, 0x00, 0x00, 0x03, 0x00,         // inc byte [rax + kCounts]
          0xb8, 0xb0, 0x00, 0xe0, 0xfe,               // mov eax, 0xfee000b0
          0xc7, 0x00, 0x00, 0x00, 0x00, 0x00,         // mov dword [rax], 0
          0x58, 0x48, 0x83, 0xc4, 0x08, 0x48, 0xcf},  // pop rax; add rsp, 8; iretq
         kCommon);
  }
  static uint64_t Pdpte(unsigned gigabyte) { return interp::at::kPml4 + 0x1000 + 8 * gigabyte; }
};

}  // namespace nacre::engine::kvm
