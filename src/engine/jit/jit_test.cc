// Small guest programs on the translator. They are assembled here, run in 64-bit mode at CPL 0 over an identity map of
// the first gigabyte, and end with HLT. The same programs run in lockstep with the interpreter.

#include "engine/jit/jit_engine.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "engine/interp/interp_engine.h"

// Guest programs: position-dependent on kLoadAddress only where they say so.
asm(R"(
    .pushsection .rodata
    .intel_syntax noprefix

    .globl jit_test_fib
jit_test_fib:
    call 1f
    hlt
1:  push rbx
    mov rbx, rdi
    mov eax, edi
    cmp edi, 2
    jb 2f
    lea rdi, [rbx-1]
    push r12
    call 1b
    mov r12, rax
    lea rdi, [rbx-2]
    call 1b
    add rax, r12
    pop r12
2:  pop rbx
    ret
    .globl jit_test_fib_end
jit_test_fib_end:

    .globl jit_test_deep
jit_test_deep:                   # deeper than the host's return stack, with an access that misses at each depth
    xor eax, eax
    mov ecx, 9000
    call 1f
    hlt
1:  mov edx, ecx
    and edx, 31
    shl edx, 12
    add [rdx+0x200000], rcx
    add rax, [rdx+0x200000]
    dec ecx
    jz 2f
    call 1b
2:  ret
    .globl jit_test_deep_end
jit_test_deep_end:

    .globl jit_test_homed
jit_test_homed:                  # registers that live in memory, stack pointer as operand and base
    mov r10, 0x1111
    mov r11, 0x2222
    mov r15, 0x3333
    lea rax, [r10+r11*2+5]
    add r15, r10
    mov [rsp+r15*8-0x40000], r11
    mov r9, [rsp+r15*8-0x40000]
    imul r10, r11
    xchg r10, r15
    mov rcx, rsp
    sub rcx, 16
    mov qword ptr [rcx], 77
    lea r14, [rsp-16]
    mov r13, [r14]
    push r10
    push r11
    pop r10
    pop r11
    mov r8b, r10b
    mov [rsp-8], r15w
    movzx edx, word ptr [rsp-8]
    hlt
    .globl jit_test_homed_end
jit_test_homed_end:

    .globl jit_test_high_bytes
jit_test_high_bytes:
    mov eax, 0x12345678
    mov ebx, 0x9abcdef0
    mov rsi, rsp
    sub rsi, 64
    mov [rsi], ah
    mov [rsi+1], bh
    add [rsi], bl
    mov ch, [rsi]
    add ch, ah
    mov dl, ch
    movzx edx, dh
    cmp ah, [rsi]
    setne dl
    hlt
    .globl jit_test_high_bytes_end
jit_test_high_bytes_end:

    .globl jit_test_flags
jit_test_flags:                  # flags that live across memory accesses, calls and returns
    xor eax, eax
    stc
    mov rcx, [rsp-8]
    adc eax, 0
    mov rcx, 3
    cmp rcx, 5
    call 1f
    adc eax, 10
    lahf
    mov edx, eax
    mov ecx, 100
    xor eax, eax
2:  add eax, ecx
    push rax
    pop rbx
    dec ecx
    jnz 2b
    pushfq
    pop rsi
    hlt
1:  push rcx
    mov rcx, [rsp]
    pop rcx
    ret
    .globl jit_test_flags_end
jit_test_flags_end:

    .globl jit_test_crossing
jit_test_crossing:               # accesses across a page boundary, at 0x204000
    mov rdi, 0x203ffd
    mov rax, 0x1122334455667788
    mov [rdi], rax
    mov rbx, [rdi]
    mov ecx, [rdi+1]
    lock add qword ptr [rdi], 1
    movups xmm0, [rdi]
    movups [rdi+0xff5], xmm0
    mov rdx, [rdi+0xff5]
    hlt
    .globl jit_test_crossing_end
jit_test_crossing_end:

    .globl jit_test_beside_code
jit_test_beside_code:            # data on the page of its code; at the end a write to both
    xor eax, eax
    mov ecx, 100
    lea rsi, [rip+2f]
1:  mov [rsi+256], rcx
    add rax, [rsi+256]
    clflush [rsi+256]
    add [rsi+264], rcx
    stc
    mov [rsi+272], ecx
    adc eax, 0
    push qword ptr [rsi+264]
    pop rdx
    dec ecx
    jnz 1b
    mov rbx, [rip+2f]
    mov dword ptr [rip+2f+1], 77
2:  mov edi, 5
    nop
    nop
    nop
    hlt
    .globl jit_test_beside_code_end
jit_test_beside_code_end:

    .globl jit_test_self_modifying
jit_test_self_modifying:
    xor eax, eax
    mov ecx, 5
    lea rsi, [rip+1f+1]          # the immediate of the MOV below
2:  mov dword ptr [rsi], ecx     # changes an instruction of the running block
1:  mov edx, 0x7fffffff
    add eax, edx
    dec ecx
    jnz 2b
    hlt
    .globl jit_test_self_modifying_end
jit_test_self_modifying_end:

    .globl jit_test_indirect
jit_test_indirect:
    xor eax, eax
    mov ecx, 1000
    lea rbx, [rip+3f]
    lea rdx, [rip+4f]
1:  test cl, 1
    mov rsi, rbx
    cmovz rsi, rdx
    call rsi
    dec ecx
    jnz 1b
    hlt
3:  add eax, 3
    ret
4:  add eax, 5
    ret
    .globl jit_test_indirect_end
jit_test_indirect_end:

    .globl jit_test_spin
jit_test_spin:
    xor eax, eax
1:  inc rax
    jmp 1b
    .globl jit_test_spin_end
jit_test_spin_end:

    .globl jit_test_spin_indirect
jit_test_spin_indirect:
    xor eax, eax
    lea rbx, [rip+1f]
1:  inc rax
    jmp rbx
    .globl jit_test_spin_indirect_end
jit_test_spin_indirect_end:

    .globl jit_test_two_spaces
jit_test_two_spaces:             # rdi rounds over two PCIDs, no load of CR3 flushing
    mov rax, cr4
    bts rax, 17
    mov cr4, rax
    mov rax, cr3
    or rax, 1
    mov rbx, rax
    xor rbx, 3
    bts rax, 63
    bts rbx, 63
1:  mov cr3, rax
    mov rcx, [0x300000]
    add [0x301000], rcx
    xchg rax, rbx
    sub edi, 1
    jnz 1b
    hlt
    .globl jit_test_two_spaces_end
jit_test_two_spaces_end:

    .globl jit_test_loops
jit_test_loops:                  # loops of one block over arrays that lie across pages; sums in rax
    xor eax, eax
    lea rdi, [rsp-0x7ff35]       # 0x2000cb
    mov ecx, 0x3001
1:  mov [rdi+rcx-1], cl          # backwards, bytes
    sub rcx, 1
    jnz 1b
    mov r10, rdi                 # two streams that move apart; registers that live in memory
    lea r11, [rdi+0x2ff8]
    mov ecx, 700
2:  mov r15, [r10]
    add r15, [r11]
    mov [r10], r15
    add rax, r15
    add r10, 8
    sub r11, 16
    sub ecx, 1
    jnz 2b
    xor ecx, ecx                 # scaled, several offsets, changes in between
3:  mov rdx, [rdi+rcx*4]
    add rcx, 1
    xor rdx, [rdi+rcx*4+4]
    mov [rdi+rcx*4-2], rdx
    inc rcx
    add rax, rdx
    add rax, [rsp-0x60000]
    cmp rcx, 2500
    jne 3b
    mov rsi, rdi                 # vectors that cross pages in the middle
    lea rbp, [rdi+0x2800]
4:  movups xmm0, [rsi]
    movups xmm1, [rsi+16]
    paddd xmm0, xmm1
    movups [rsi+32], xmm0
    pxor xmm2, xmm0
    add rsi, 48
    cmp rsi, rbp
    jb 4b
    movq rdx, xmm2
    add rax, rdx
    mov rsi, rdi                 # four streams, high bytes, a flag that lives through the round
    lea rbx, [rdi+0x1000]
    lea rbp, [rdi+0x2000]
    lea r9, [rdi+0x2900]
    mov ecx, 1000
    clc
5:  mov dx, [rsi]
    adc dh, [rbx]
    mov [rbp], dh
    sbb [r9], dl
    lea rsi, [rsi+1]
    lea rbx, [rbx+1]
    lea rbp, [rbp+1]
    lea r9, [r9+1]
    dec ecx
    jnz 5b
    mov ecx, 1000
6:  mov dx, [rsi]
    add dh, [rbx]
    mov [rbp], dh
    sub [r9], dl
    dec rsi
    dec rbx
    inc rbp
    inc r9
    sub ecx, 1
    jnz 6b
    xor edx, edx                 # a column; then out of memory
    mov rsi, rdi
    mov ecx, 30
7:  add rax, [rsi+rdx]
    add rdx, 0x1f0
    sub ecx, 1
    jnz 7b
    mov rsi, 0xfffe01
    mov ecx, 100
8:  add rax, [rsi]
    add rsi, 8
    sub ecx, 1
    jnz 8b
    mov ecx, 0x3000
    mov rsi, rdi
9:  imul rax, rax, 31
    movzx edx, byte ptr [rsi]
    add rax, rdx
    inc rsi
    dec rcx
    jnz 9b
    hlt
    .globl jit_test_loops_end
jit_test_loops_end:

    .globl jit_test_strings
jit_test_strings:
    cld
    mov rdi, 0x200f00
    mov ecx, 0x1000
    mov al, 0x5a
    rep stosb
    mov rsi, 0x200f00
    mov rdi, 0x300801
    mov ecx, 0x1000
    rep movsb
    mov rax, [0x3017f9]
    mov rsi, 0x200f00
    mov rdi, 0x300801
    mov ecx, 0x1000
    repe cmpsb
    hlt
    .globl jit_test_strings_end
jit_test_strings_end:

    .globl jit_test_vector
jit_test_vector:
    fninit                       # RESET leaves the stack full and exceptions unmasked
    mov eax, 0x40490fdb
    movd xmm0, eax
    sqrtss xmm1, xmm0
    mulss xmm1, xmm1
    subss xmm1, xmm0
    movaps [0x202000], xmm0
    addps xmm0, [0x202000]
    fldpi
    fld1
    faddp
    fstp qword ptr [0x202020]
    mov rbx, [0x202020]
    movd eax, xmm0
    cvtss2sd xmm2, xmm0
    movq rcx, xmm2
    hlt
    .globl jit_test_vector_end
jit_test_vector_end:

    .att_syntax
    .popsection
)");

#define NACRE_PROGRAM(name)                                            \
  extern "C" const uint8_t jit_test_##name[], jit_test_##name##_end[]; \
  static const nacre::engine::jit::Program k_##name{jit_test_##name, jit_test_##name##_end};

namespace nacre::engine::jit {
struct Program {
  const uint8_t* begin;
  const uint8_t* end;
};
}  // namespace nacre::engine::jit

NACRE_PROGRAM(fib)
NACRE_PROGRAM(deep)
NACRE_PROGRAM(homed)
NACRE_PROGRAM(high_bytes)
NACRE_PROGRAM(flags)
NACRE_PROGRAM(crossing)
NACRE_PROGRAM(beside_code)
NACRE_PROGRAM(self_modifying)
NACRE_PROGRAM(indirect)
NACRE_PROGRAM(loops)
NACRE_PROGRAM(spin)
NACRE_PROGRAM(spin_indirect)
NACRE_PROGRAM(strings)
NACRE_PROGRAM(two_spaces)
NACRE_PROGRAM(vector)

namespace nacre::engine::jit {
namespace {

using x86::CpuState;
using x86::Segment;

constexpr uint64_t kLoadAddress = 0x100000, kStack = 0x280000;

class NullHost : public VcpuHost {
 public:
  uint32_t PortRead(uint16_t, unsigned) override { return 0xffffffff; }
  void PortWrite(uint16_t, unsigned, uint32_t) override {}
  uint64_t MmioRead(GuestPhys, unsigned) override { return ~uint64_t{0}; }
  void MmioWrite(GuestPhys, unsigned, uint64_t) override {}
  bool ReadMsr(uint32_t, uint64_t&) override { return false; }
  bool WriteMsr(uint32_t, uint64_t) override { return false; }
  uint64_t ReadCr8() override { return 0; }
  void WriteCr8(uint64_t) override {}
  int AcknowledgeInterrupt() override { return -1; }
  uint64_t Hypercall(uint64_t, const uint64_t (&)[4], bool) override { return ~uint64_t{0}; }
};

CpuState LongModeState() {
  CpuState state;
  x86::ResetCpuState(state);
  state.cr0 = x86::cr0::kPe | x86::cr0::kMp | x86::cr0::kEt | x86::cr0::kNe | x86::cr0::kWp | x86::cr0::kPg;
  state.cr3 = 0x1000;
  state.cr4 = x86::cr4::kPae | x86::cr4::kOsFxsr | x86::cr4::kOsXmmExcpt;
  state.msr.efer = x86::efer::kSce | x86::efer::kLme | x86::efer::kLma | x86::efer::kNxe;
  for (Segment& segment : state.segment)
    segment = {.base = 0,
               .limit = 0xffffffff,
               .attributes = Segment::kS | Segment::kP | Segment::kDb | Segment::kG | 3,
               .selector = 0x10};
  state.segment[x86::kCs].attributes = Segment::kS | Segment::kP | Segment::kL | Segment::kG | 0xb;
  state.segment[x86::kCs].selector = 8;
  state.rip = kLoadAddress;
  state.gpr[x86::kRsp] = kStack;
  return state;
}

/// One machine: memory with page tables and a program, and a vCPU of one engine.
class Machine {
 public:
  explicit Machine(std::unique_ptr<Engine> engine, const Program& program) : engine_(std::move(engine)) {
    memory_ = std::move(*memory::GuestMemory::Create(16 * kMiB));
    model_ = std::make_unique<x86::CpuModel>(std::move(*x86::CpuModel::Create("x86-64-v2", {})));
    EXPECT_TRUE(memory_->WriteValue(GuestPhys(0x1000), uint64_t{0x2003}));
    EXPECT_TRUE(memory_->WriteValue(GuestPhys(0x2000), uint64_t{0x83}));
    EXPECT_TRUE(memory_->Write(GuestPhys(kLoadAddress), {program.begin, program.end}));
    auto vcpu = engine_->CreateVcpu({.index = 0, .model = model_.get(), .memory = memory_.get(), .host = &host_});
    EXPECT_TRUE(vcpu.has_value()) << (vcpu ? "" : vcpu.error().message);
    vcpu_ = std::move(*vcpu);
    vcpu_->Import(LongModeState());
  }
  Vcpu& vcpu() { return *vcpu_; }
  memory::GuestMemory& memory() { return *memory_; }
  CpuState RunToHalt(uint64_t rdi = 0) {
    CpuState state;
    vcpu_->Export(state);
    state.gpr[x86::kRdi] = rdi;
    vcpu_->Import(state);
    const ExitReason reason = vcpu_->Run();
    vcpu_->Export(state);
    EXPECT_EQ(reason, ExitReason::kHalted) << vcpu_->error() << " at " << std::hex << state.rip - kLoadAddress;
    return state;
  }
  uint64_t Statistic(std::string_view name) const {
    for (const auto& statistic : vcpu_->Statistics())
      if (statistic.name == name) return statistic.value;
    ADD_FAILURE() << "no statistic " << name;
    return 0;
  }

 private:
  NullHost host_;
  std::unique_ptr<memory::GuestMemory> memory_;
  std::unique_ptr<x86::CpuModel> model_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<Vcpu> vcpu_;
};

std::unique_ptr<Engine> Jit(JitOptions options = {}) {
  options.code_cache_bytes = std::min<uint64_t>(options.code_cache_bytes, 8 * kMiB);
  return std::move(*CreateJitEngine(options));
}

TEST(Jit, CallsReturnTheRightValue) {
  Machine machine(Jit(), k_fib);
  EXPECT_EQ(machine.RunToHalt(20).gpr[x86::kRax], 6765u);
  EXPECT_LT(machine.Statistic("dispatches"), 100u) << "blocks are linked and returns found in the jump cache";
}

TEST(Jit, SelfModifyingCodeIsSeenByTheNextInstruction) {
  Machine machine(Jit(), k_self_modifying);
  EXPECT_EQ(machine.RunToHalt().gpr[x86::kRax], 15u);
  EXPECT_GT(machine.Statistic("blocks invalidated"), 0u);
}

TEST(Jit, WritesBesideCodeAreWrites) {
  Machine machine(Jit(), k_beside_code);
  const CpuState state = machine.RunToHalt();
  EXPECT_EQ(state.gpr[x86::kRax], 5050u + 100);
  EXPECT_EQ(state.gpr[x86::kRdx], 5050u);
  EXPECT_EQ(state.gpr[x86::kRdi], 77u);
  EXPECT_EQ(machine.Statistic("writes beside translated code"), 300u);
  EXPECT_EQ(machine.Statistic("interpreted: memory slow path"), 1u) << "the write to an instruction";
}

TEST(Jit, ReadsAcrossPagesAreReads) {
  Machine machine(Jit(), k_crossing);
  machine.RunToHalt();
  EXPECT_EQ(machine.Statistic("reads across pages"), 3u);
}

TEST(Jit, FlagsSurviveMemoryAccessesAndReturns) {
  Machine machine(Jit(), k_flags);
  const CpuState state = machine.RunToHalt();
  EXPECT_EQ(state.gpr[x86::kRdx] & 0xff, 12u);  // 1 by the first ADC, 10 and the carry of 3 - 5 by the second
  EXPECT_EQ(state.gpr[x86::kRax], 5050u);
  EXPECT_EQ(state.gpr[x86::kRsi] & (x86::rflags::kZf | x86::rflags::kIf), x86::rflags::kZf);
}

TEST(Jit, IndirectCallsReachBothTargets) {
  Machine machine(Jit(), k_indirect);
  EXPECT_EQ(machine.RunToHalt().gpr[x86::kRax], 4000u);
}

TEST(Jit, StopReachesLoopsOfEveryKind) {
  for (const Program& program : {k_spin, k_spin_indirect}) {
    Machine machine(Jit(), program);
    std::thread stopper([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      machine.vcpu().Request(kRequestStop);
    });
    EXPECT_EQ(machine.vcpu().Run(), ExitReason::kStop);
    stopper.join();
    CpuState state;
    machine.vcpu().Export(state);
    EXPECT_GT(state.gpr[x86::kRax], 1000u);
  }
}

TEST(Jit, SwitchesBetweenPcidsFlushNothing) {
  Machine machine(Jit(), k_two_spaces);
  machine.RunToHalt(4);
  const uint64_t fills = machine.Statistic("TLB fills"), flushes = machine.Statistic("TLB flushes");
  Machine longer(Jit(), k_two_spaces);
  longer.RunToHalt(1000);
  EXPECT_EQ(longer.Statistic("address space switches"), 1000u);
  EXPECT_EQ(longer.Statistic("TLB flushes"), flushes);
  // The pages are not global: supervisor entries, which all spaces share, go at every switch.
  EXPECT_LE(longer.Statistic("TLB fills") - fills, 996u * 2);
}

TEST(Jit, UnhaltGoesOnBehindHltAndTlbFlushForgetsTranslations) {
  Machine machine(Jit(), k_indirect);
  // mov eax, [0x40400000]; hlt; mov ebx, [0x40400000]; hlt
  const uint8_t code[] = {0x8b, 0x04, 0x25, 0, 0, 0x40, 0x40, 0xf4, 0x8b, 0x1c, 0x25, 0, 0, 0x40, 0x40, 0xf4};
  ASSERT_TRUE(machine.memory().Write(GuestPhys(kLoadAddress), code));
  ASSERT_TRUE(machine.memory().WriteValue(GuestPhys(0x2008), uint64_t{0x3003}));
  ASSERT_TRUE(machine.memory().WriteValue(GuestPhys(0x3010), uint64_t{0x400083}));
  ASSERT_TRUE(machine.memory().WriteValue(GuestPhys(0x400000), uint32_t{1}));
  ASSERT_TRUE(machine.memory().WriteValue(GuestPhys(0x600000), uint32_t{2}));
  EXPECT_EQ(machine.RunToHalt().gpr[x86::kRax], 1u);
  // As another CPU would: the page is another one now.
  ASSERT_TRUE(machine.memory().WriteValue(GuestPhys(0x3010), uint64_t{0x600083}));
  machine.vcpu().Request(kRequestTlbFlush);
  EXPECT_EQ(machine.vcpu().Run(), ExitReason::kHalted) << "a flush wakes nobody";
  machine.vcpu().Request(kRequestUnhalt);
  EXPECT_EQ(machine.vcpu().Run(), ExitReason::kHalted);
  CpuState state;
  machine.vcpu().Export(state);
  EXPECT_EQ(state.gpr[x86::kRbx], 2u);
  EXPECT_EQ(machine.vcpu().pending_requests(), 0u);
}

TEST(Jit, BudgetRunsExactlySoManyInstructions) {
  Machine machine(Jit(), k_homed);
  EXPECT_EQ(machine.vcpu().Run(3), ExitReason::kBudget);
  CpuState state;
  machine.vcpu().Export(state);
  EXPECT_EQ(state.gpr[x86::kR15], 0x3333u);
  EXPECT_EQ(state.gpr[x86::kRax], 0u);
}

TEST(Jit, DeviceWritesToCodeInvalidateIt) {
  Machine machine(Jit(), k_indirect);
  EXPECT_EQ(machine.RunToHalt().gpr[x86::kRax], 4000u);
  const auto size = static_cast<uint64_t>(k_indirect.end - k_indirect.begin);
  std::vector<uint8_t> code(k_indirect.begin, k_indirect.end);
  code[size - 2] = 7;  // the last ADD's immediate
  ASSERT_TRUE(machine.memory().Write(GuestPhys(kLoadAddress), code));
  CpuState state = LongModeState();
  machine.vcpu().Import(state);
  EXPECT_EQ(machine.RunToHalt().gpr[x86::kRax], 5000u);
}

/// A chain of many small blocks, no two alike: INC and a jump to the next every 16 bytes, from `first` to `last`, and
/// HLT there.
void PutChain(Machine& machine, uint64_t first, uint64_t last) {
  for (uint64_t at = first; at < last; at += 16) {
    uint8_t link[] = {0xff, 0xc0, 0xb9, 0, 0, 0, 0, 0xeb, 0x07};  // inc eax; mov ecx, number; jmp +7
    StoreLe<uint32_t>(link + 3, static_cast<uint32_t>(at - first));
    ASSERT_TRUE(machine.memory().Write(GuestPhys(at), link));
  }
  const uint8_t halt = 0xf4;
  ASSERT_TRUE(machine.memory().Write(GuestPhys(last), {&halt, 1}));
}

uint64_t RunFrom(Machine& machine, uint64_t rip) {
  CpuState state = LongModeState();
  state.rip = rip;
  machine.vcpu().Import(state);
  return machine.RunToHalt().gpr[x86::kRax];
}

TEST(Jit, AFullCodeCacheDropsItsOldestPart) {
  Machine machine(Jit({.code_cache_bytes = 4 * kMiB}), k_indirect);
  const uint64_t first = 3 * kMiB, last = 13 * kMiB;
  PutChain(machine, first, last);
  const uint64_t blocks = (last - first) / 16;
  for (int round = 0; round < 3; ++round) EXPECT_EQ(RunFrom(machine, first), blocks);
  EXPECT_GT(machine.Statistic("code segments dropped"), 16u) << "every part was filled more than once";
  EXPECT_EQ(machine.Statistic("code cache resets"), 0u);
  EXPECT_LE(machine.Statistic("host code, bytes") + machine.Statistic("records of blocks, bytes"), 4 * kMiB);
  // What was used last is still there.
  const uint64_t before = machine.Statistic("translated blocks");
  EXPECT_EQ(RunFrom(machine, last - 160), 10u);
  // The first of them is translated again, with an entry for the way from the dispatcher.
  EXPECT_LE(machine.Statistic("translated blocks"), before + 1);
}

TEST(Jit, TheSameBytesInAnotherPageAreNotTranslatedAgain) {
  Machine machine(Jit({.debug = {.check_reuse = true}}), k_indirect);
  const uint64_t first = 3 * kMiB, second = 5 * kMiB, bytes = 64 * kKiB;
  PutChain(machine, first, first + bytes);
  PutChain(machine, second, second + bytes);
  EXPECT_EQ(RunFrom(machine, first), bytes / 16);
  EXPECT_EQ(RunFrom(machine, second), bytes / 16);
  EXPECT_GT(machine.Statistic("reused blocks checked"), bytes / 16 - 32) << "all but those at the ends of pages";
  EXPECT_EQ(RunFrom(machine, first), bytes / 16);
  EXPECT_EQ(machine.Statistic("blocks reused: moved"), 0u) << "both are in use";
}

TEST(Jit, TextPatchedForthAndBackIsNotTranslatedAgain) {
  Machine machine(Jit({.debug = {.check_reuse = true}}), k_indirect);
  const uint64_t at = 3 * kMiB;
  PutChain(machine, at, at + 160);
  EXPECT_EQ(RunFrom(machine, at), 10u);
  const uint8_t add_five[] = {0x83, 0xc0, 0x05, 0xeb, 0x0b};  // add eax, 5; jmp +11
  const uint8_t add_one[] = {0xff, 0xc0, 0xb9, 0x20, 0};
  for (int i = 0; i < 5; ++i) {
    ASSERT_TRUE(machine.memory().Write(GuestPhys(at + 32), add_five));
    EXPECT_EQ(RunFrom(machine, at), 14u);
    ASSERT_TRUE(machine.memory().Write(GuestPhys(at + 32), add_one));
    EXPECT_EQ(RunFrom(machine, at), 10u);
  }
  EXPECT_GE(machine.Statistic("blocks reused: in their old place"), 8u);
  EXPECT_LE(machine.Statistic("translated blocks"), 16u);
}

TEST(Jit, BytesThatWereOnlyLookedAtAreCompared) {
  // The first block's CMP sets flags that its successor overwrites, in one page, and reads, in another.
  Machine machine(Jit(), k_indirect);
  const uint8_t head[] = {0x31, 0xc0, 0x83, 0xf8, 0x01, 0xeb, 0x00};  // xor eax, eax; cmp eax, 1; jmp +0
  const uint8_t dead[] = {0x48, 0x8b, 0x0c, 0x25, 0,   0,
                          0x30, 0,    0x85, 0xc0, 0xf4};  // mov rcx, [3M]; test eax, eax; hlt
  const uint8_t live[] = {0x48, 0x8b, 0x0c, 0x25, 0, 0, 0x30, 0, 0x11, 0xc0, 0xf4};  // ...; adc eax, eax; hlt
  for (const auto& [at, tail] : {std::pair{3 * kMiB, dead}, {4 * kMiB, live}}) {
    ASSERT_TRUE(machine.memory().Write(GuestPhys(at), head));
    ASSERT_TRUE(machine.memory().Write(GuestPhys(at + sizeof head), {tail, sizeof dead}));
  }
  EXPECT_EQ(RunFrom(machine, 3 * kMiB), 0u);
  EXPECT_EQ(RunFrom(machine, 4 * kMiB), 1u);
}

struct NamedProgram {
  const char* name;
  Program program;
};

class EveryProgram : public testing::TestWithParam<NamedProgram> {};

TEST_P(EveryProgram, EndsAsOnTheInterpreter) {
  Machine reference(interp::CreateInterpEngine(), GetParam().program);
  Machine translated(Jit(), GetParam().program);
  const CpuState expected = reference.RunToHalt(15);
  const CpuState got = translated.RunToHalt(15);
  for (unsigned i = 0; i < 16; ++i) EXPECT_EQ(expected.gpr[i], got.gpr[i]) << "register " << i;
  EXPECT_EQ(expected.rip, got.rip);
  EXPECT_EQ(expected.rflags, got.rflags);
}

TEST_P(EveryProgram, RunsInLockstep) {
  Machine machine(Jit({.lockstep = true}), GetParam().program);
  machine.RunToHalt(15);
}

TEST_P(EveryProgram, EndsAsOnTheInterpreterUnderStress) {
  using Stress = JitStress;
  Machine reference(interp::CreateInterpEngine(), GetParam().program);
  const CpuState expected = reference.RunToHalt(15);
  for (const Stress& stress :
       {Stress{.flush = 1}, Stress{.flush = 2}, Stress{.interrupt = 1}, Stress{.invalidate = 1}, Stress{.cache_mib = 1},
        Stress{.tiny_tlb = true}, Stress{.compact = true}, Stress{.compact = true, .sample = 1},
        Stress{.tiny_tlb = true, .compact = true, .sample = 1'000'000},
        Stress{.flush = 2, .compact = true, .sample = 3},
        Stress{.flush = 3, .interrupt = 2, .invalidate = 5, .cache_mib = 1, .tiny_tlb = true}}) {
    SCOPED_TRACE(fmt::format("flush {} interrupt {} invalidate {} tiny cache {} tiny TLB {} compact {} sample {}",
                             stress.flush, stress.interrupt, stress.invalidate, stress.cache_mib, stress.tiny_tlb,
                             stress.compact, stress.sample));
    Machine translated(Jit({.debug = {.stress = stress}}), GetParam().program);
    const CpuState got = translated.RunToHalt(15);
    for (unsigned i = 0; i < 16; ++i) EXPECT_EQ(expected.gpr[i], got.gpr[i]) << "register " << i;
    EXPECT_EQ(expected.rip, got.rip);
    EXPECT_EQ(expected.rflags, got.rflags);
  }
}

INSTANTIATE_TEST_SUITE_P(Jit, EveryProgram,
                         testing::Values(NamedProgram{"fib", k_fib}, NamedProgram{"deep", k_deep},
                                         NamedProgram{"homed", k_homed}, NamedProgram{"high_bytes", k_high_bytes},
                                         NamedProgram{"flags", k_flags}, NamedProgram{"crossing", k_crossing},
                                         NamedProgram{"beside_code", k_beside_code},
                                         NamedProgram{"self_modifying", k_self_modifying},
                                         NamedProgram{"indirect", k_indirect}, NamedProgram{"loops", k_loops},
                                         NamedProgram{"strings", k_strings}, NamedProgram{"vector", k_vector}),
                         [](const auto& test) { return std::string(test.param.name); });

}  // namespace
}  // namespace nacre::engine::jit
