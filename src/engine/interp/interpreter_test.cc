// Memory, faults and their restart, debug traps, shadows, strings, control registers, and the engine around it all.

#include "engine/interp/interpreter.h"

#include "engine/interp/interp_engine.h"
#include "engine/interp/interp_testing.h"

namespace nacre::engine::interp {
namespace {

namespace rf = x86::rflags;
using x86::kRax, x86::kRbx, x86::kRcx, x86::kRdx, x86::kRsp, x86::kRbp, x86::kRsi, x86::kRdi;

constexpr uint64_t kBsBit = Bit(14);

TEST_F(InterpTest, PageFaultLeavesEverythingAsItWas) {
  LongMode();
  UserMode();
  s.gpr[kRax] = at::kUnmapped + 8;
  s.gpr[kRbx] = 7;
  Code({0x48, 0x01, 0x18});  // add [rax], rbx
  EXPECT_EQ(Run(), 14);
  EXPECT_EQ(s.cr2, at::kUnmapped + 8);
  EXPECT_EQ(Stack64(0), 6u) << "write by user, not present: a read-modify-write asks for the write at once";
  EXPECT_EQ(Stack64(1), at::kCode);
  EXPECT_EQ(Stack64(4), at::kStack3);
  EXPECT_TRUE(Stack64(3) & rf::kRf);
  EXPECT_EQ(s.gpr[kRax], at::kUnmapped + 8);
}

TEST_F(InterpTest, PageCrossingAccessFaultsBeforeItWrites) {
  LongMode();
  s.gpr[kRax] = at::kUnmapped - 4;
  Put<uint32_t>(at::kUnmapped - 4, 0x55555555);
  Code({0x48, 0xc7, 0x00, 1, 2, 3, 4});  // mov qword [rax], 0x04030201
  EXPECT_EQ(Run(), 14);
  EXPECT_EQ(s.cr2, at::kUnmapped);
  EXPECT_EQ(Get<uint32_t>(at::kUnmapped - 4), 0x55555555u);
  EXPECT_EQ(Stack64(0), 2u);
}

TEST_F(InterpTest, PushAllProbesFirst) {
  Protected32();
  UserMode();
  s.gpr[kRsp] = 20;
  s.segment[x86::kSs].limit = 0xffff;
  Put<uint32_t>(8, 0x77777777);
  Code({0x60});  // pusha: 5 of 8 fit
  EXPECT_EQ(Run(), 12);
  EXPECT_EQ(Stack32(0), 0u);
  EXPECT_EQ(Stack32(4), 20u) << "ESP";
  EXPECT_EQ(Get<uint32_t>(8), 0x77777777u);
}

TEST_F(InterpTest, RepStopsAtAPageFaultAndGoesOn) {
  LongMode();
  s.gpr[kRsi] = at::kData;
  s.gpr[kRdi] = at::kUnmapped - 16;
  s.gpr[kRcx] = 40;
  for (unsigned i = 0; i < 40; ++i) Put<uint8_t>(at::kData + i, static_cast<uint8_t>(i));
  Code({0xf3, 0xa4, 0xf4});  // rep movsb; hlt
  EXPECT_EQ(Run(), 14);
  EXPECT_EQ(s.gpr[kRcx], 24u);
  EXPECT_EQ(s.gpr[kRsi], at::kData + 16);
  EXPECT_EQ(s.gpr[kRdi], at::kUnmapped);
  EXPECT_EQ(Stack64(1), at::kCode);
  Put<uint64_t>(PageEntry(at::kUnmapped), at::kUnmapped | 7);
  Code({0x48, 0x83, 0xc4, 0x08, 0x48, 0xcf}, at::kHandlers + 14 * 16 + 1);  // add rsp, 8; iretq
  s.halted = false;
  EXPECT_EQ(Run(), -1);
  EXPECT_EQ(s.gpr[kRcx], 0u);
  for (unsigned i = 0; i < 40; ++i) EXPECT_EQ(Get<uint8_t>(at::kUnmapped - 16 + i), i);
}

TEST_F(InterpTest, RepIsBoundedInOneStep) {
  LongMode();
  s.gpr[kRdi] = at::kData;
  s.gpr[kRcx] = 10000;
  s.gpr[kRax] = 0xab;
  Code({0xf3, 0xaa, 0xf4});  // rep stosb; hlt
  Steps(1);
  EXPECT_EQ(s.rip, at::kCode);
  EXPECT_GT(s.gpr[kRcx], 0u);
  EXPECT_LT(s.gpr[kRcx], 10000u);
  EXPECT_EQ(Run(), -1);
  EXPECT_EQ(Get<uint8_t>(at::kData + 9999), 0xab);
  EXPECT_EQ(Get<uint8_t>(at::kData + 10000), 0);
}

TEST_F(InterpTest, OverlappingMovsRepeatsThePattern) {
  LongMode();
  Put<uint16_t>(at::kData, 0x2211);
  s.gpr[kRsi] = at::kData;
  s.gpr[kRdi] = at::kData + 2;
  s.gpr[kRcx] = 100;
  Code({0xf3, 0xa4, 0xf4});
  EXPECT_EQ(Run(), -1);
  EXPECT_EQ(Get<uint16_t>(at::kData + 100), 0x2211);
}

TEST_F(InterpTest, RepCmpsAndScasStopWhereTheyShould) {
  LongMode();
  Put<uint64_t>(at::kData, 0x0807060504030201);
  Put<uint64_t>(at::kData + 16, 0x0807069904030201);
  s.gpr[kRsi] = at::kData;
  s.gpr[kRdi] = at::kData + 16;
  s.gpr[kRcx] = 8;
  Code({0xf3, 0xa6, 0x48, 0x89, 0xcb, 0xb9, 8, 0, 0, 0, 0xb8, 6, 0, 0, 0, 0xbf, 0, 0, 3, 0, 0xf2, 0xae, 0xf4});
  // repe cmpsb; mov rbx, rcx; ecx = 8; eax = 6; edi = kData; repne scasb; hlt
  EXPECT_EQ(Run(), -1);
  EXPECT_EQ(s.gpr[kRbx], 3u);
  EXPECT_EQ(s.gpr[kRcx], 2u);
  EXPECT_EQ(s.gpr[kRdi], at::kData + 6);
  EXPECT_TRUE(s.rflags & rf::kZf);
}

TEST_F(InterpTest, InsDoesNotReadThePortBeforeItCanStore) {
  LongMode();
  s.gpr[kRdi] = at::kUnmapped;
  s.gpr[kRdx] = 0x1f0;
  Code({0x6c});
  EXPECT_EQ(Run(), 14);
  EXPECT_TRUE(host.port_reads.empty());
}

TEST_F(InterpTest, DoubleAndTripleFault) {
  LongMode();
  Gate(at::kIdt + 14 * 16, 0, at::kHandlers, 0x8e);  // #PF's handler: a null selector: #GP while delivering #PF
  s.gpr[kRax] = at::kUnmapped;
  Code({0x8b, 0x00});
  EXPECT_EQ(Run(), 8);
  EXPECT_EQ(Stack64(0), 0u);
  EXPECT_EQ(Stack64(1), at::kCode);
  LongMode();
  s.idtr.limit = 0;
  Code({0x0f, 0x0b});
  EXPECT_EQ(Run(), -2);
}

TEST_F(InterpTest, BenignThenFaultIsServedSerially) {
  LongMode();
  Gate(at::kIdt + 6 * 16, 0, at::kHandlers, 0x8e);  // #UD's handler: null selector
  Code({0x0f, 0x0b});
  EXPECT_EQ(Run(), 13);
  EXPECT_EQ(Stack64(0), 1u) << "error code 0 with EXT";
}

TEST_F(InterpTest, SingleStep) {
  LongMode();
  s.rflags |= rf::kTf;
  Code({0x90, 0x90});
  EXPECT_EQ(Run(), 1);
  EXPECT_EQ(Stack64(0), at::kCode + 1);
  EXPECT_EQ(Stack64(2), rf::kTf | 2) << "a trap pushes no RF";
  EXPECT_TRUE(s.dr6 & kBsBit);
  EXPECT_FALSE(s.rflags & rf::kTf);
  // POPF that sets TF: the next instruction is the first that traps.
  LongMode();
  Code({0x68, 0x02, 0x01, 0, 0, 0x9d, 0x90, 0x90});  // push 0x102; popf; nop; nop
  EXPECT_EQ(Run(), 1);
  EXPECT_EQ(Stack64(0), at::kCode + 7);
}

TEST_F(InterpTest, MovSsHoldsTheTrapBack) {
  LongMode();
  s.rflags |= rf::kTf;
  s.gpr[kRax] = sel::kData0;
  Code({0x8e, 0xd0, 0x90, 0x90});  // mov ss, ax; nop
  Steps(1);
  EXPECT_TRUE(s.interrupt_shadow && s.shadow_is_mov_ss);
  EXPECT_EQ(s.rip, at::kCode + 2);
  EXPECT_EQ(Run(), 1);
  EXPECT_EQ(Stack64(0), at::kCode + 3);
}

TEST_F(InterpTest, StiShadowOnlyWhenIfWasClear) {
  LongMode();
  Code({0xfb, 0xfb, 0x90});
  Steps(1);
  EXPECT_TRUE(s.interrupt_shadow);
  EXPECT_FALSE(s.shadow_is_mov_ss);
  Steps(1);
  EXPECT_FALSE(s.interrupt_shadow);
}

TEST_F(InterpTest, InstructionBreakpointAndRf) {
  LongMode();
  s.dr[1] = at::kCode + 1;
  s.dr7 = 0x400 | (1 << 2);
  Code({0x90, 0x90, 0xf4});
  EXPECT_EQ(Run(), 1);
  EXPECT_EQ(Stack64(0), at::kCode + 1) << "before the instruction";
  EXPECT_EQ(s.dr6 & 0xf, 2u);
  Put<uint64_t>(s.gpr[kRsp] + 16, Get<uint64_t>(s.gpr[kRsp] + 16) | rf::kRf);
  Code({0x48, 0xcf}, at::kHandlers + 16 + 1);
  s.halted = false;
  EXPECT_EQ(Run(), -1) << "RF lets it pass once";
  EXPECT_FALSE(s.rflags & rf::kRf);
}

TEST_F(InterpTest, DataBreakpointTrapsAfterTheWrite) {
  LongMode();
  s.dr[0] = at::kData;
  s.dr7 = 0x400 | 2 | (0xdull << 16);                                        // 4 bytes, write, global
  Code({0x8b, 0x04, 0x25, 0, 0, 3, 0, 0x89, 0x04, 0x25, 2, 0, 3, 0, 0x90});  // mov eax, [kData]; mov [kData + 2], eax
  s.gpr[kRax] = 5;
  EXPECT_EQ(Run(), 1);
  EXPECT_EQ(Stack64(0), at::kCode + 14);
  EXPECT_EQ(s.dr6 & 0xf, 1u);
}

TEST_F(InterpTest, GeneralDetect) {
  LongMode();
  s.dr7 = 0x400 | Bit(13);
  Code({0x0f, 0x21, 0xc0});  // mov rax, dr0
  EXPECT_EQ(Run(), 1);
  EXPECT_EQ(Stack64(0), at::kCode);
  EXPECT_TRUE(s.dr6 & Bit(13));
  EXPECT_FALSE(s.dr7 & Bit(13)) << "cleared for the handler";
}

TEST_F(InterpTest, AlignmentCheck) {
  LongMode();
  UserMode();
  s.cr0 |= x86::cr0::kAm;
  s.rflags |= rf::kAc;
  Code({0x8b, 0x04, 0x25, 0, 0, 3, 0, 0x8b, 0x04, 0x25, 2, 0, 3, 0});
  EXPECT_EQ(Run(), 17);
  EXPECT_EQ(Stack64(0), 0u);
  EXPECT_EQ(Stack64(1), at::kCode + 7);
}

TEST_F(InterpTest, CanonicalAddresses) {
  for (const bool stack : {false, true}) {
    LongMode();
    s.gpr[stack ? kRbp : kRax] = Bit(47) - 4;
    if (stack)
      Code({0x48, 0x8b, 0x45, 0x00});  // mov rax, [rbp]: crosses the hole
    else
      Code({0x48, 0x8b, 0x00});
    EXPECT_EQ(Run(), stack ? 12 : 13);
  }
  LongMode();
  s.gpr[kRax] = Bit(50);
  Code({0xff, 0xe0});  // jmp rax
  EXPECT_EQ(Run(), 13);
  EXPECT_EQ(Stack64(1), at::kCode) << "at the jump";
}

TEST_F(InterpTest, LockedAndAtomic) {
  LongMode();
  s.gpr[kRax] = at::kData;
  s.gpr[kRcx] = 5;
  Put<uint64_t>(at::kData, 37);
  Code({0xf0, 0x48, 0x0f, 0xc1, 0x08, 0xf4});  // lock xadd [rax], rcx; hlt
  EXPECT_EQ(Run(), -1);
  EXPECT_EQ(Get<uint64_t>(at::kData), 42u);
  EXPECT_EQ(s.gpr[kRcx], 37u);
  LongMode();
  s.gpr[kRdi] = at::kData + 8;
  Code({0x48, 0x0f, 0xc7, 0x0f});  // cmpxchg16b [rdi]: not aligned
  EXPECT_EQ(Run(), 13);
  LongMode();
  Code({0xf0, 0x89, 0xc0});  // lock mov: no such thing
  EXPECT_EQ(Run(), 6);
}

TEST_F(InterpTest, MmioGoesToTheHost) {
  LongMode();
  Put<uint64_t>(PageEntry(at::kUnmapped), 0xfee00000 | 7);
  host.mmio_value = 0x1122334455667788;
  s.gpr[kRbx] = at::kUnmapped;
  Code({0x8b, 0x43, 0x30, 0x89, 0x83, 0xb0, 0, 0, 0, 0x48, 0x01, 0x43, 0x40, 0xf4});
  EXPECT_EQ(Run(), -1);
  ASSERT_EQ(host.mmio_reads.size(), 2u);
  EXPECT_EQ(host.mmio_reads[0], (std::pair<uint64_t, uint64_t>{0xfee00030, 4}));
  EXPECT_EQ(host.mmio_reads[1], (std::pair<uint64_t, uint64_t>{0xfee00040, 8}));
  ASSERT_EQ(host.mmio_writes.size(), 2u);
  EXPECT_EQ(host.mmio_writes[0], (std::pair<uint64_t, uint64_t>{0xfee000b0, 0x55667788}));
  EXPECT_EQ(host.mmio_writes[1].second, 0x1122334455667788 + 0x55667788);
}

TEST_F(InterpTest, SelfModifyingCode) {
  LongMode();
  // Loop twice: inc eax; then patch it to dec by its own store.
  Code({0xff, 0xc0, 0xc6, 0x04, 0x25, 0x01, 0x80, 0, 0, 0xc8, 0xff, 0xc9, 0x75, 0xf2, 0xf4});
  s.gpr[kRax] = 10;
  s.gpr[kRcx] = 3;
  EXPECT_EQ(Run(), -1);
  EXPECT_EQ(s.gpr[kRax], 9u) << "one INC, then two DECs";
}

TEST_F(InterpTest, CodeAcrossPagesFaultsOnTheSecond) {
  LongMode();
  s.rip = at::kUnmapped - 2;
  Code({0x48, 0xb8}, at::kUnmapped - 2);  // mov rax, imm64
  EXPECT_EQ(Run(), 14);
  EXPECT_EQ(s.cr2, at::kUnmapped);
  EXPECT_EQ(Stack64(0), 0x10u);
  EXPECT_EQ(Stack64(1), at::kUnmapped - 2);
}

TEST_F(InterpTest, StaleTranslationsGoWithInvlpgAndCr3) {
  LongMode();
  s.gpr[kRbx] = at::kData;
  Put<uint8_t>(at::kData, 1);
  Put<uint8_t>(at::kData + 0x1000, 2);
  // al = [rbx]; pte(rbx) = next page; invlpg [rbx]; ah = [rbx]
  Code({0x8a, 0x03, 0x48, 0xc7, 0x05, 0, 0, 0, 0, 0, 0, 0, 0, 0x0f, 0x01, 0x3b, 0x8a, 0x23, 0xf4});
  Put<uint32_t>(at::kCode + 5, static_cast<uint32_t>(PageEntry(at::kData) - (at::kCode + 13)));
  Put<uint32_t>(at::kCode + 9, static_cast<uint32_t>((at::kData + 0x1000) | 7));
  EXPECT_EQ(Run(), -1);
  EXPECT_EQ(s.gpr[kRax] & 0xffff, 0x0201u);
}

TEST_F(InterpTest, ControlRegisterRules) {
  struct Case {
    std::vector<uint8_t> bytes;
    uint64_t rax;
  };
  const uint64_t cr0_now = x86::cr0::kPe | x86::cr0::kPg | x86::cr0::kEt | x86::cr0::kNe | x86::cr0::kWp;
  const Case kFaults[] = {
      {{0x0f, 0x22, 0xc0}, cr0_now & ~x86::cr0::kPe},  // PG without PE
      {{0x0f, 0x22, 0xc0}, cr0_now & ~x86::cr0::kPg},  // leaving paging in 64-bit code
      {{0x0f, 0x22, 0xc0}, cr0_now | x86::cr0::kNw},   // NW without CD
      {{0x0f, 0x22, 0xc0}, cr0_now | Bit(32)},
      {{0x0f, 0x22, 0xe0}, 0},                         // CR4 without PAE
      {{0x0f, 0x22, 0xe0}, x86::cr4::kPae | Bit(13)},  // VMXE
      {{0x0f, 0x22, 0xe0}, x86::cr4::kPae | x86::cr4::kLa57},
      {{0x0f, 0x22, 0xd8}, Bit(60)},   // CR3
      {{0x44, 0x0f, 0x22, 0xc0}, 16},  // CR8
  };
  for (const Case& c : kFaults) {
    LongMode();
    s.gpr[kRax] = c.rax;
    for (size_t i = 0; i < c.bytes.size(); ++i) Put<uint8_t>(at::kCode + i, c.bytes[i]);
    EXPECT_EQ(Run(), 13) << std::hex << c.rax;
    EXPECT_EQ(s.cr0, cr0_now);
  }
  LongMode();
  s.gpr[kRax] = 5;
  Code({0x44, 0x0f, 0x22, 0xc0, 0xf4});
  EXPECT_EQ(Run(), -1);
  EXPECT_EQ(host.cr8, 5u);
}

TEST_F(InterpTest, MsrRules) {
  struct Case {
    uint32_t index;
    uint64_t value;
    bool faults;
  };
  for (const Case& c :
       {Case{0xc0000082, Bit(47), true}, Case{0xc0000082, 0xffff800000000000, false}, Case{0x277, 2, true},
        Case{0x277, 6, false}, Case{0xc0000080, 0, true} /* LME off */, Case{0xc0000080, Bit(1), true},
        Case{0x1b, 0, false}, Case{0x999, 0, true}, Case{0xc0000101, 0x1000, false}}) {
    LongMode();
    s.gpr[kRcx] = c.index;
    s.gpr[kRax] = c.value & 0xffffffff;
    s.gpr[kRdx] = c.value >> 32;
    Code({0x0f, 0x30, 0xf4});
    EXPECT_EQ(Run(), c.faults ? 13 : -1) << std::hex << c.index;
  }
}

TEST_F(InterpTest, InstructionsThatTheModelLacks) {
  auto v2 = x86::CpuModel::Create("x86-64-v2", {});
  ASSERT_TRUE(v2.has_value());
  config.model = &*v2;
  interpreter = std::make_unique<Interpreter>(config, nullptr);
  LongMode();
  Code({0xc4, 0xe2, 0x78, 0xf2, 0xc1});  // andn eax, eax, ecx
  EXPECT_EQ(Run(), 6);
}

TEST_F(InterpTest, FlagsOfArithmetic) {
  LongMode();
  s.gpr[kRax] = 0x7fffffff;
  Code({0x83, 0xc0, 0x01, 0xf4});  // add eax, 1
  EXPECT_EQ(Run(), -1);
  EXPECT_EQ(s.rflags & rf::kArithmetic, rf::kOf | rf::kSf | rf::kAf | rf::kPf);
  LongMode();
  s.rflags |= rf::kCf;
  s.gpr[kRax] = ~uint64_t{0};
  Code({0xff, 0xc0, 0xf4});  // inc eax: CF stays
  EXPECT_EQ(Run(), -1);
  EXPECT_EQ(s.rflags & rf::kArithmetic, rf::kCf | rf::kZf | rf::kAf | rf::kPf);
  EXPECT_EQ(s.gpr[kRax], 0u);
}

TEST_F(InterpTest, DivideEdges) {
  LongMode();
  s.gpr[kRdx] = Bit(63);
  s.gpr[kRax] = 0;
  s.gpr[kRcx] = ~uint64_t{0};
  Code({0x48, 0xf7, 0xf9});  // idiv rcx: -2^127 / -1
  EXPECT_EQ(Run(), 0);
  LongMode();
  s.gpr[kRdx] = ~uint64_t{0};
  s.gpr[kRax] = Bit(63);
  s.gpr[kRcx] = 1;
  Code({0x48, 0xf7, 0xf9, 0xf4});  // -2^63 / 1 just fits
  EXPECT_EQ(Run(), -1);
  EXPECT_EQ(s.gpr[kRax], Bit(63));
  EXPECT_EQ(s.gpr[kRdx], 0u);
}

TEST_F(InterpTest, NmiIsMaskedUntilIret) {
  LongMode();
  Code({0xf4});
  interpreter->InjectNmi(s);
  EXPECT_TRUE(s.nmi_masked);
  EXPECT_EQ(s.rip, at::kHandlers + 2 * 16);
  Code({0x48, 0xcf}, at::kHandlers + 2 * 16);
  Steps(1);
  EXPECT_FALSE(s.nmi_masked);
  EXPECT_EQ(s.rip, at::kCode);
}

// ---- The engine.

class InterpEngineTest : public InterpTest {
 protected:
  void SetUp() override {
    InterpTest::SetUp();
    engine = CreateInterpEngine();
    auto made = engine->CreateVcpu(config);
    ASSERT_TRUE(made.has_value());
    vcpu = std::move(*made);
    LongMode();
  }
  ExitReason RunVcpu(uint64_t budget = 0) {
    vcpu->Import(s);
    const ExitReason reason = vcpu->Run(budget);
    vcpu->Export(s);
    return reason;
  }
  std::unique_ptr<Engine> engine;
  std::unique_ptr<Vcpu> vcpu;
};

TEST_F(InterpEngineTest, InterruptWakesAHaltedCpu) {
  s.rflags |= rf::kIf;
  Code({0xf4, 0xeb, 0xfe});
  EXPECT_EQ(RunVcpu(), ExitReason::kHalted);
  EXPECT_EQ(s.rip, at::kCode + 1);
  host.interrupt = 0x30;
  vcpu->Request(kRequestInterrupt);
  EXPECT_EQ(vcpu->Run(), ExitReason::kHalted);
  vcpu->Export(s);
  EXPECT_EQ(s.rip, at::kHandlers + 0x30 * 16 + 1);
  EXPECT_EQ(Stack64(0), at::kCode + 1);
}

TEST_F(InterpEngineTest, InterruptWaitsForIfAndShadow) {
  Code({0xfb, 0x90, 0x90, 0x90, 0xf4});  // sti; nop...
  host.interrupt = 0x30;
  vcpu->Request(kRequestInterrupt);
  EXPECT_EQ(RunVcpu(), ExitReason::kHalted);
  EXPECT_EQ(Stack64(0), at::kCode + 2) << "one instruction after STI";
}

TEST_F(InterpEngineTest, UnhaltGoesOnBehindHlt) {
  Code({0xf4, 0xff, 0xc0, 0xf4});  // hlt; inc eax; hlt
  s.gpr[x86::kRax] = 0;
  EXPECT_EQ(RunVcpu(), ExitReason::kHalted);
  EXPECT_EQ(s.gpr[x86::kRax], 0u);
  vcpu->Request(kRequestUnhalt);
  EXPECT_EQ(vcpu->Run(), ExitReason::kHalted);
  vcpu->Export(s);
  EXPECT_EQ(s.gpr[x86::kRax], 1u);
  EXPECT_EQ(vcpu->pending_requests(), 0u);
}

TEST_F(InterpEngineTest, StopBudgetAndShutdown) {
  Code({0xeb, 0xfe});
  vcpu->Request(kRequestStop);
  EXPECT_EQ(RunVcpu(), ExitReason::kStop);
  EXPECT_EQ(vcpu->pending_requests(), 0u);
  EXPECT_EQ(RunVcpu(1000), ExitReason::kBudget);
  EXPECT_EQ(vcpu->Statistics().front().value, 1000u);
  s.idtr.limit = 0;
  Code({0x0f, 0x0b});
  EXPECT_EQ(RunVcpu(), ExitReason::kShutdown);
}

}  // namespace
}  // namespace nacre::engine::interp
