// Control transfers. Direct ones become patchable jumps (links), indirect ones a lookup in the jump cache.

#include "engine/jit/translator.h"

namespace nacre::engine::jit {

using x86::BranchKind;
using x86::Instruction;
using x86::OperandKind;

namespace {

/// Any that takes 32 bits.
constexpr int32_t kFarDisplacement = 1 << 20;

Mem SavedRcx() { return Context(offsetof(JitContext, saved_rcx)); }

}  // namespace

/// The flags that must be right where a link is taken.
uint16_t Translator::FlagsAt(uint64_t target_rip, bool poll) {
  return compact_ && !poll ? kAllFlags : LiveAt(target_rip);
}

/// `displacement`: of the jump.
uint32_t Translator::NewLink(uint8_t* displacement, uint64_t target_rip, uint16_t live_flags) {
  Link link;
  link.displacement = InBlock(displacement);
  link.target_rip = target_rip;
  link.live_flags = live_flags & kAllFlags;
  return store_.AddLink(block_, link);
}

/// The same of a jump or call that leads to the cold part while it is unlinked.
uint32_t Translator::NewColdLink(uint8_t* displacement, uint64_t target_rip, uint16_t live_flags) {
  const uint32_t id = NewLink(displacement, target_rip, live_flags);
  cold_[cold_count_++] = {.kind = ColdExit::kLink, .displacement = displacement, .id = id};
  return id;
}

/// A jump or call to `target_rip`. `poll`: look for requests first (every loop must contain a poll). Across pages the
/// link is taken only while the target page is known to be mapped as it was: its slot holds the id of the (linear,
/// physical) pair.
void Translator::EmitLinkExit(uint64_t target_rip, uint32_t target_flags, bool poll, bool call) {
  const bool same_page = SamePage(target_rip);
  const uint16_t live_flags = FlagsAt(target_rip, poll);
  const bool live = live_flags != 0;
  const bool test_page = !same_page;
  uint8_t* id_place = nullptr;
  const size_t slot = (target_rip >> 12) % kPageSlots;
  const Mem slot_id =
      Context(offsetof(JitContext, code_pages) + (target_flags & kFlagContextMask) * sizeof(CodePages) + 4 * slot);
  uint8_t* poll_exit = nullptr;
  ColdExit cross_exit{.kind = ColdExit::kLink};
  if (live && (poll || test_page)) {
    code_.Store(SavedRcx(), kHostRcx);
    if (poll) {
      code_.Load(kHostRcx, Context(offsetof(JitContext, go)));
      uint8_t* stop = code_.JumpIfRcxZero();
      uint8_t* over = code_.JumpShort(0xeb);
      code_.Bind8(stop);
      poll_exit = code_.Jump();
      code_.Bind8(over);
    }
    if (test_page) {
      code_.Load(kHostRcx, slot_id, false);
      NoteFixup(code_.at() - 4, Fixup::kPageSlot);
      code_.Lea(kHostRcx, {.base = kHostRcx, .disp = kUnknownPage}, false);
      id_place = code_.at() - 4;
      uint8_t* same = code_.JumpIfRcxZero();
      cross_exit.displacement = code_.Jump();
      cross_exit.restore_rcx = true;
      code_.Bind8(same);
    }
    code_.Load(kHostRcx, SavedRcx());
  } else {
    if (poll) {
      code_.CompareImm8(Context(offsetof(JitContext, go)), 0);
      poll_exit = code_.JumpIf(4);
    }
    if (test_page) {
      code_.CompareImm32(slot_id, static_cast<uint32_t>(kUnknownPage));
      NoteFixup(code_.at() - 8, Fixup::kPageSlot);
      id_place = code_.at() - 4;
      cross_exit.displacement = code_.JumpIf(5);
    }
  }
  uint32_t id = kNone;
  if (call) {
    id = NewColdLink(code_.Call(), target_rip, live_flags);
  } else {
    id = NewLink(code_.at() + 1, target_rip, live_flags);
    store_.link(id).in_place = true;
    EmitExitTo(stubs_.exit_link, id, Fixup::kLink);
  }
  store_.link(id).page_id_place = id_place ? InBlock(id_place) : 0;
  store_.link(id).page_id_negated = live;
  if (poll_exit)
    cold_[cold_count_++] = {.kind = ColdExit::kPoll, .displacement = poll_exit, .id = id, .restore_rcx = live};
  if (cross_exit.displacement) {
    cross_exit.kind = ColdExit::kPoll;  // not the link's own stub: only "go to its target through the dispatcher"
    cross_exit.id = id;
    cold_[cold_count_++] = cross_exit;
  }
}

void Translator::EmitConditional(unsigned index) {
  const Instruction& insn = insns_[index];
  if (stream_count_ != 0) {
    EmitLoop(index);
    return;
  }
  const uint64_t next = TruncateRip(NextRip(index));
  const uint64_t target = TargetOf(index);
  const unsigned condition = insn.opcode & 15;
  const bool backward = target <= RipOf(index);
  if (SamePage(target) && !backward) {
    NewColdLink(code_.JumpIf(condition), target, FlagsAt(target, false));
    if (IsSideExit(index)) return;
  } else {
    uint8_t* skip = code_.JumpIf(condition ^ 1);
    EmitLinkExit(target, request_.flags, backward);
    code_.Bind32(skip);
  }
  EmitLinkExit(next, request_.flags, next <= RipOf(index));  // at the end of the address space next is behind
}

/// LOOP, LOOPE, LOOPNE, JCXZ: the host's own, on the host's RCX (ECX with an address-size prefix of 32-bit addresses).
void Translator::EmitCounterBranch(unsigned index) {
  const Instruction& insn = insns_[index];
  const uint64_t target = TargetOf(index);
  if (insn.address_size == 2) {
    EmitNarrowCounterBranch(index);
  } else {
    if (insn.address_size == 4) code_.Byte(0x67);
    uint8_t* taken = code_.JumpShort(insn.opcode);
    uint8_t* not_taken = code_.Jump();
    code_.Bind8(taken);
    EmitLinkExit(target, request_.flags, target <= RipOf(index));
    code_.Bind32(not_taken);
  }
  const uint64_t next = TruncateRip(NextRip(index));
  EmitLinkExit(next, request_.flags, next <= RipOf(index));
}

/// The same with CX, which no instruction of the host counts in: up to where it is not taken.
void Translator::EmitNarrowCounterBranch(unsigned index) {
  const Instruction& insn = insns_[index];
  const uint64_t target = TargetOf(index);
  const bool counts = insn.opcode != 0xe3, backward = target <= RipOf(index);
  uint8_t* not_taken[2] = {};
  if (live_before_[index] == 0 && (insn.opcode == 0xe2 || !counts)) {
    code_.Byte(0x66);
    if (counts)
      code_.Op(1, kHostRcx, 0xff, false);  // DEC CX
    else
      code_.Op(kHostRcx, kHostRcx, 0x85, false);  // TEST CX, CX
    not_taken[0] = code_.JumpIf(counts ? 4 : 5);
  } else {
    if (counts) {
      code_.Byte(0x66);
      code_.Lea(kHostRcx, {.base = kHostRcx, .disp = -1}, false);
    }
    code_.Move(kScratch1, kHostRcx);
    code_.Op(kHostRcx, kHostRcx, 0xb7, false, 1);
    uint8_t* const zero = code_.JumpIfRcxZero();
    code_.Move(kHostRcx, kScratch1);
    uint8_t* const not_zero = code_.Jump();
    code_.Bind8(zero);
    code_.Move(kHostRcx, kScratch1);
    if (counts) {
      not_taken[0] = code_.Jump();
      code_.Bind32(not_zero);
      if (insn.opcode != 0xe2) not_taken[1] = code_.JumpIf(insn.opcode == 0xe0 ? 4 : 5);
    } else {
      not_taken[0] = not_zero;
    }
  }
  EmitLinkExit(target, request_.flags, backward);
  for (uint8_t* jump : not_taken)
    if (jump) code_.Bind32(jump);
}

/// R10 = `rip`, or away with R10 as it was. Uses R11. Keeps the flags: those who go away may need them.
void Translator::EmitRipCheck(uint64_t rip, ColdExit::Kind otherwise) {
  ColdExit exit{.kind = otherwise, .rip_check = true};
  const uint64_t negated = 0 - rip;
  if (negated == SignExtend(negated, 32)) {
    code_.Move(kScratch2, kHostRcx);
    code_.Lea(kHostRcx, {.base = kScratch1, .disp = kFarDisplacement});
    StoreLe<uint32_t>(code_.at() - 4, static_cast<uint32_t>(negated));
    NoteFixup(code_.at() - 4, Fixup::kRipNegated);
  } else {
    EmitRipImm(kScratch2, rip, WideRip(rip));
    code_.Not(kScratch2);
    code_.Lea(kScratch1, {.base = kScratch1, .index = kScratch2, .disp = 1});
    code_.Move(kScratch2, kHostRcx);
    code_.Move(kHostRcx, kScratch1);
    exit.rip = rip;
  }
  uint8_t* same = code_.JumpIfRcxZero();
  exit.displacement = code_.Jump();
  code_.Bind8(same);
  code_.Move(kHostRcx, kScratch2);
  cold_[cold_count_++] = exit;
}

/// Where indirect branches come in, straight from the jump cache.
void Translator::EmitIndirectEntry() {
  if (count_ == 0 || !request_.indirect) return;
  EmitRipCheck(request_.rip, ColdExit::kMiss);
}

/// Where the host's RET comes back to after a call: with the guest's return address in R10, which is usually the
/// instruction behind the call. Polls, because a loop may go backwards by returns alone.
void Translator::EmitReturnPoint(unsigned index) {
  const uint64_t next = TruncateRip(NextRip(index));
  EmitRipCheck(next, ColdExit::kLookup);
  EmitLinkExit(next, request_.flags, true);
}

/// Stores the return address below the stack pointer and moves the pointer.
void Translator::EmitPushReturnAddress(unsigned index) {
  const unsigned size = WordSize(insns_[index]);
  const Mem stack = EmitStackAccess(index, size, true);
  const uint64_t next = TruncateRip(NextRip(index));
  if (!code64() && (code16() || WideRip(next)))
    code_.LoadImm(kScratch2, OffsetOf(next));
  else
    EmitRipImm(kScratch2, next, code64());
  StoreSized(stack, kScratch2, size);
  EmitMoveStack(-static_cast<int32_t>(size));
}

bool Translator::EmitCall(unsigned index) {
  const uint64_t target = TargetOf(index);
  if (!CanUseStack(insns_[index]) || !InSegment(target)) return false;
  EmitPushReturnAddress(index);
  EmitLinkExit(target, request_.flags, target <= RipOf(index), PairsCalls());
  if (PairsCalls()) EmitReturnPoint(index);
  return true;
}

/// R10 is EIP after an indirect branch: away unless it lies within the segment. The flags are live.
void Translator::EmitTargetCheck(unsigned index) {
  if (code64() || request_.segment.limit == 0xffffffff) return;
  if (WordSize(insns_[index]) == 2 && request_.segment.limit >= 0xffff) return;
  EmitAtMost(kScratch1, request_.segment.limit, false, true, RipOf(index));
}

/// JMP and CALL through a register or memory.
bool Translator::EmitIndirect(unsigned index) {
  const Instruction& insn = insns_[index];
  const bool call = insn.branch == BranchKind::kIndirectCall;
  const unsigned size = WordSize(insn);
  if (insn.operand_count == 0 || (call && !CanUseStack(insn))) return false;
  const x86::Operand& operand = insn.operand[0];
  const Mem saved = Context(offsetof(JitContext, saved_scratch));
  if (operand.kind == OperandKind::kMemory) {
    if (!CanAddress(insn) || operand.size != size) return false;
    LoadSized(kScratch1, EmitAccess(index, kOperand, size, false), size);
  } else if (operand.kind == OperandKind::kRegister) {
    const uint8_t from = LoadGpr(operand.index, kScratch1);
    if (size == 2)
      code_.Op(kScratch1, from, 0xb7, false, 1);
    else if (from != kScratch1)
      code_.Move(kScratch1, from, code64());
  } else {
    return false;
  }
  addend_of_ = -1;
  EmitTargetCheck(index);
  if (!code64()) EmitCodeAddress();
  if (call) {
    code_.Store(saved, kScratch1);
    EmitPushReturnAddress(index);
    code_.Load(kScratch1, saved);
  }
  EmitLookup(code_, context(), call && PairsCalls());
  if (call && PairsCalls()) EmitReturnPoint(index);
  return true;
}

bool Translator::EmitReturn(unsigned index) {
  const Instruction& insn = insns_[index];
  const unsigned size = WordSize(insn);
  if (!CanUseStack(insn)) return false;
  LoadSized(kScratch1, EmitStackAccess(index, size, false), size);
  EmitTargetCheck(index);
  const auto extra = insn.opcode == 0xc2 ? static_cast<int32_t>(insn.immediate & 0xffff) : 0;
  EmitMoveStack(static_cast<int32_t>(size) + extra);
  if (!code64()) EmitCodeAddress();
  if (PairsCalls())
    code_.Return();
  else
    EmitLookup(code_, context());
  return true;
}

bool Translator::EmitBranch(unsigned index) {
  const Instruction& insn = insns_[index];
  if (code64() ? insn.operand_size == 2 && insn.branch != BranchKind::kConditional && insn.branch != BranchKind::kJump
               : !CanBranch(insn))
    return false;
  switch (insn.branch) {
    case BranchKind::kConditional:
      if (!InSegment(TargetOf(index))) return false;
      if (IsJcc(insn)) {
        EmitConditional(index);
        return true;
      }
      if (insn.map != 0 || insn.opcode < 0xe0 || insn.opcode > 0xe3) return false;
      EmitCounterBranch(index);
      return true;
    case BranchKind::kJump: {
      if (insn.operand_count == 0 || insn.operand[0].kind != OperandKind::kRelative) return false;
      const uint64_t target = TargetOf(index);
      if (!InSegment(target)) return false;
      EmitLinkExit(target, request_.flags, target <= RipOf(index));
      return true;
    }
    case BranchKind::kCall:
      return EmitCall(index);
    case BranchKind::kIndirectJump:
    case BranchKind::kIndirectCall:
      return EmitIndirect(index);
    case BranchKind::kReturn:
      return EmitReturn(index);
    case BranchKind::kFar:
      return EmitFar(index);
    default:
      return false;
  }
}

}  // namespace nacre::engine::jit
