// What a guest in kernel mode sees where KVM cannot emulate an instruction. A KVM that can does it itself, and the test
// still holds but for the counters.

#include "engine/kvm/kvm_cpuid.h"
#include "engine/kvm/kvm_probe.h"
#include "engine/kvm/kvm_testing.h"

namespace nacre::engine::kvm {
namespace {

namespace at = interp::at;

class KvmAssistTest : public KvmGuestTest {
 protected:
  static constexpr uint64_t kDone = at::kData + 0x200;
  static constexpr uint64_t kDevice = 0xd0000000;

  void SetUp() override {
    KvmGuestTest::SetUp();
    if (IsSkipped() || HasFatalFailure()) return;
    const auto device = KvmDevice::Open();
    emulates_ = Emulates(ProbeSpeed(*device, *SupportedCpuid(*device)));
    // Exceptions end in: mov byte [kDone], 2; hlt; jmp back to hlt
    for (const unsigned vector : {6u, 13u, 14u}) {
      Code({0xc6, 0x04, 0x25, 0x00, 0x02, 0x03, 0x00, 0x02, 0xf4, 0xeb, 0xfd}, kCommon + 0x100);
      Gate(at::kIdt + vector * 16, interp::sel::kCode0, kCommon + 0x100, 0x8e);
    }
    s.gpr[x86::kRax] = 1, s.gpr[x86::kRdx] = 2, s.gpr[x86::kRbx] = 3, s.gpr[x86::kRcx] = 4;
    s.gpr[x86::kRdi] = at::kData;
    Put<uint64_t>(at::kData, 1);
    Put<uint64_t>(at::kData + 8, 2);
  }
  /// Runs `code`, which is followed by: mov byte [kDone], 1; hlt. 1: it came to its end; 2: an exception.
  int Execute(std::vector<uint8_t> code) {
    constexpr uint8_t kEnd[] = {0xc6, 0x04, 0x25, 0x00, 0x02, 0x03, 0x00, 0x01, 0xf4, 0xeb, 0xfd};
    code.insert(code.end(), std::begin(kEnd), std::end(kEnd));
    uint64_t place = at::kCode;
    for (const uint8_t byte : code) Put<uint8_t>(place++, byte);
    vcpu->Import(s);
    Start();
    EXPECT_TRUE(Eventually([this] { return Get<uint8_t>(kDone) != 0; }));
    Stop();
    vcpu->Export(s);
    return Get<uint8_t>(kDone);
  }
  uint64_t Counted(std::string_view name) const {
    for (const auto& [found, value] : vcpu->Statistics())
      if (found == name) return value;
    return 0;
  }
  void ExpectAssisted(std::string_view mnemonic, uint64_t times) const {
    if (!emulates_) return;  // the CPU did it
    EXPECT_EQ(Counted(fmt::format("assisted: {}", mnemonic)), times);
  }

  bool emulates_ = false;
};

TEST_F(KvmAssistTest, AnInstructionThatKvmDoesNotKnow) {
  EXPECT_EQ(Execute({0xf0, 0x48, 0x0f, 0xc7, 0x0f}), 1);  // lock cmpxchg16b [rdi]
  EXPECT_EQ(Get<uint64_t>(at::kData), 3u);
  EXPECT_EQ(Get<uint64_t>(at::kData + 8), 4u);
  EXPECT_TRUE(s.rflags & x86::rflags::kZf);
  ExpectAssisted("CMPXCHG16B", 1);
}

TEST_F(KvmAssistTest, ItsFaultIsTheGuests) {
  s.gpr[x86::kRdi] = at::kUnmapped;
  EXPECT_EQ(Execute({0xf0, 0x48, 0x0f, 0xc7, 0x0f}), 2);
  EXPECT_EQ(s.cr2, at::kUnmapped);
  EXPECT_EQ(Get<uint64_t>(s.gpr[x86::kRsp] + 8), at::kCode);  // behind the error code
}

TEST_F(KvmAssistTest, AMisalignedOneFaultsToo) {
  s.gpr[x86::kRdi] = at::kData + 8;
  EXPECT_EQ(Execute({0xf0, 0x48, 0x0f, 0xc7, 0x0f}), 2);
  EXPECT_EQ(Get<uint64_t>(at::kData), 1u);
}

TEST_F(KvmAssistTest, LoopsOfThem) {
  // mov esi, 100; again: lock cmpxchg16b [rdi]; dec esi; jnz again
  EXPECT_EQ(Execute({0xbe, 100, 0, 0, 0, 0xf0, 0x48, 0x0f, 0xc7, 0x0f, 0xff, 0xce, 0x75, 0xf7}), 1);
  EXPECT_EQ(s.gpr[x86::kRsi], 0u);
  ExpectAssisted("CMPXCHG16B", 100);
}

TEST_F(KvmAssistTest, OnDeviceMemory) {
  Put<uint64_t>(at::kPml4 + 0x1000 + 8 * 3, 0x28000 | 7);
  Put<uint64_t>(0x28000 + 8 * ((kDevice >> 21) & 511), kDevice | 0x9b);
  host.mmio_value = 0xf0f;
  s.gpr[x86::kRdi] = kDevice + 0x20;
  EXPECT_EQ(Execute({0xf3, 0x0f, 0xb8, 0x07}), 1);  // popcnt eax, [rdi]
  EXPECT_EQ(s.gpr[x86::kRax], 8u);
  ASSERT_EQ(host.mmio_reads.size(), 1u);
  EXPECT_EQ(host.mmio_reads[0], (std::pair<uint64_t, uint64_t>{kDevice + 0x20, 4}));
}

TEST_F(KvmAssistTest, OnTheLocalApic) {
  s.gpr[x86::kRdi] = 0xfee00080;  // task priority
  // mov dword [rdi], 0x31; popcnt eax, [rdi]
  EXPECT_EQ(Execute({0xc7, 0x07, 0x31, 0, 0, 0, 0xf3, 0x0f, 0xb8, 0x07}), 1);
  EXPECT_EQ(s.gpr[x86::kRax], 3u);
  EXPECT_TRUE(host.mmio_reads.empty());
}

TEST_F(KvmAssistTest, WhatKvmRefusesOfItsOwnMsrsIsRefused) {
  // mov ecx, 0x1b; rdmsr; or eax, 0x400; wrmsr: x2APIC; and eax, ~0x400; wrmsr: back is #GP
  EXPECT_EQ(Execute({0xb9, 0x1b, 0,    0,    0,    0x0f, 0x32, 0x0d, 0x00, 0x04, 0,
                     0,    0x0f, 0x30, 0x25, 0xff, 0xfb, 0xff, 0xff, 0x0f, 0x30}),
            2);
  EXPECT_EQ(Get<uint64_t>(s.gpr[x86::kRsp] + 8), at::kCode + 19);
}

}  // namespace
}  // namespace nacre::engine::kvm
