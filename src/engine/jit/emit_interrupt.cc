// POPF, and INT n and IRET in real-address and virtual-8086 mode (SDM 2A "INT n", "IRET", 2B "POPF"; 3B 20.1.4). What
// would trap after the instruction, or let a waiting interrupt in, is left to the interpreter.

#include "engine/jit/translator.h"

namespace nacre::engine::jit {

using x86::Instruction;

namespace rf = x86::rflags;

namespace {

Mem StateField(size_t offset) { return Context(offsetof(JitContext, state) + offset); }
#define NACRE_STATE(field) StateField(offsetof(x86::CpuState, field))
#define NACRE_CONTEXT(field) Context(offsetof(JitContext, field))

Mem CodeField(size_t field) {
  return StateField(offsetof(x86::CpuState, segment) + x86::kCs * sizeof(x86::Segment) + field);
}

}  // namespace

/// saved_scratch = RFLAGS as PUSHF shows them. Uses R10 and R11. Keeps the flags.
void Translator::EmitFlagsImage() {
  const Mem mask = NACRE_CONTEXT(arithmetic_mask);
  code_.PushFlags();
  code_.Pop(kScratch1);
  code_.Pext(kScratch1, kScratch1, mask);
  code_.Pdep(kScratch1, kScratch1, mask);
  code_.Load(kScratch2, NACRE_CONTEXT(interrupt_flag));
  for (int i = 0; i < 3; ++i) code_.Lea(kScratch2, {.index = kScratch2, .scale = 8});  // IF is bit 9
  code_.Lea(kScratch1, {.base = kScratch1, .index = kScratch2});
  code_.Load(kScratch2, NACRE_STATE(rflags));
  code_.Lea(kScratch1, {.base = kScratch1, .index = kScratch2});
  code_.Store(NACRE_CONTEXT(saved_scratch), kScratch1);
}

/// Which of RFLAGS POPF and IRET change here; 0: the interpreter decides.
uint64_t Translator::ChangeableFlags(unsigned size) const {
  const bool cpl0 = (request_.flags & kFlagCpl0) != 0, v86 = real() && !cpl0;
  if (code64() || (!cpl0 && !(request_.flags & kFlagIopl))) return 0;
  // AC chooses another TLB, or other checks.
  if (size == 4 && (!cpl0 || (request_.flags & kFlagSmap))) return 0;
  if (v86 && size != 2) return 0;
  return rf::kArithmetic | rf::kIf | rf::kDf | rf::kNt | (cpl0 ? rf::kIoplMask : 0) |
         (size == 4 ? rf::kAc | rf::kId : 0);
}

/// R11 is an image of RFLAGS: away if it has TF, or IF while a request waits. Clobbers the flags.
void Translator::EmitImageCheck(uint64_t rip) {
  const auto leave = [&](uint8_t* jump) {
    cold_[cold_count_++] = {
        .kind = ColdExit::kInterpret, .displacement = jump, .id = store_.AddSite(block_, SiteAt(rip))};
  };
  code_.TestImm32(kScratch2, static_cast<uint32_t>(rf::kTf));
  leave(code_.JumpIf(5));
  code_.TestImm32(kScratch2, static_cast<uint32_t>(rf::kIf));
  uint8_t* const off = code_.JumpShort(0x74);
  code_.CompareImm8(NACRE_CONTEXT(no_request), 0);
  leave(code_.JumpIf(4));
  code_.Bind8(off);
}

/// RFLAGS from the image in R11. Uses R10. The arithmetic flags are the image's afterwards.
void Translator::EmitSetFlags(uint64_t changeable) {
  const auto elsewhere = static_cast<uint32_t>(changeable & ~(rf::kArithmetic | rf::kIf));
  code_.Move(kScratch1, kScratch2, false);
  code_.ShiftRight(kScratch1, 9);
  code_.AndImm32(kScratch1, 1);
  code_.Store(NACRE_CONTEXT(interrupt_flag), kScratch1);
  code_.Move(kScratch1, kScratch2, false);
  code_.AndImm32(kScratch1, elsewhere);
  code_.AndImm32(NACRE_STATE(rflags), ~elsewhere);
  code_.Op(kScratch1, NACRE_STATE(rflags), 0x09);  // OR
  code_.AndImm32(kScratch2, static_cast<uint32_t>(rf::kArithmetic));
  code_.Push(kScratch2);
  code_.PopFlags();
}

bool Translator::EmitPopFlags(unsigned index) {
  const Instruction& insn = insns_[index];
  const unsigned size = WordSize(insn);
  const uint64_t changeable = ChangeableFlags(size);
  if (changeable == 0 || live_before_[index] != 0 || !CanUseStack(insn)) return false;
  LoadSized(kScratch2, EmitStackAccess(index, size, false), size);
  EmitImageCheck(RipOf(index));
  EmitSetFlags(changeable);
  EmitMoveStack(static_cast<int32_t>(size));
  return true;
}

bool Translator::EmitInterrupt(unsigned index) {
  const Instruction& insn = insns_[index];
  // Elsewhere a gate tells.
  if (!(request_.flags & kFlagCpl0) || (request_.flags & kFlagSmap)) return false;
  const auto vector = static_cast<int32_t>(insn.immediate & 0xff);
  EmitFlagsImage();
  const Mem saved_rcx = NACRE_CONTEXT(saved_rcx);
  code_.Store(saved_rcx, kHostRcx);
  LoadSized(kHostRcx, StateField(offsetof(x86::CpuState, idtr) + offsetof(x86::DescriptorTable, limit)), 2);
  code_.Lea(kHostRcx, {.base = kHostRcx, .disp = -(vector * 4 + 3)});
  code_.Pext(kHostRcx, kHostRcx, NACRE_CONTEXT(above_32_mask));
  uint8_t* const within = code_.JumpIfRcxZero();
  EmitLimitExit(false, true, RipOf(index), code_.Jump());
  code_.Bind8(within);
  code_.Load(kHostRcx, saved_rcx);
  code_.Load(kScratch2, StateField(offsetof(x86::CpuState, idtr) + offsetof(x86::DescriptorTable, base)), false);
  code_.Lea(kScratch2, {.base = kScratch2, .disp = vector * 4}, false);
  EmitCheckToHost({.size = 4, .write = false, .flags_live = true}, RipOf(index));
  code_.Load(kScratch1, {.base = kScratch1}, false);
  code_.Store(NACRE_CONTEXT(saved_pointer), kScratch1);

  const Mem at = EmitSegmentAccess(index, kStack, x86::kSs, StackOffset(-6), 6, true, true);
  code_.Load(kScratch2, NACRE_CONTEXT(saved_scratch));
  StoreSized({.base = at.base, .disp = at.disp + 4}, kScratch2, 2);
  LoadSized(kScratch2, CodeField(offsetof(x86::Segment, selector)), 2);
  StoreSized({.base = at.base, .disp = at.disp + 2}, kScratch2, 2);
  code_.LoadImm(kScratch2, OffsetOf(NextRip(index)) & 0xffff);
  StoreSized(at, kScratch2, 2);
  EmitMoveStack(-6);
  code_.StoreImm32(NACRE_CONTEXT(interrupt_flag), 0, true);
  code_.Load(kScratch1, NACRE_STATE(rflags));
  code_.Pext(kScratch1, kScratch1, NACRE_CONTEXT(not_ac_mask));
  code_.Pdep(kScratch1, kScratch1, NACRE_CONTEXT(not_ac_mask));
  code_.Store(NACRE_STATE(rflags), kScratch1);
  EmitFarPointer();
  EmitLookup(code_, context(), PairsCalls());
  if (PairsCalls()) EmitReturnPoint(index);
  return true;
}

bool Translator::EmitInterruptReturn(unsigned index) {
  const uint64_t changeable = ChangeableFlags(2);
  if (changeable == 0 || live_before_[index] != 0) return false;
  const Mem at = EmitSegmentAccess(index, kStack, x86::kSs, StackOffset(0), 6, false, true);
  LoadSized(kScratch2, {.base = at.base, .disp = at.disp + 4}, 2);
  code_.Load(kScratch1, at, false);
  code_.Store(NACRE_CONTEXT(saved_pointer), kScratch1);
  EmitImageCheck(RipOf(index));
  EmitSetFlags(changeable);
  code_.Op(0, NACRE_STATE(nmi_masked), 0xc6, false);
  code_.Byte(0);
  EmitMoveStack(6);
  EmitFarPointer();
  if (PairsCalls())
    code_.Return();
  else
    EmitLookup(code_, context());
  return true;
}

}  // namespace nacre::engine::jit
