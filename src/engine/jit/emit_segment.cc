// Code and data in segments (SDM 3A ch. 3, 5.3; 20.1): accesses whose segment has a base or a limit, stacks of 16 bits,
// and what real-address and virtual-8086 mode do to segment registers. What faults is left to the interpreter, before
// anything has changed.

#include <algorithm>

#include "engine/jit/translator.h"

namespace nacre::engine::jit {

using x86::Instruction;
using x86::Operand;
using x86::OperandKind;
using x86::RegisterClass;

namespace {

Mem SegmentField(unsigned segment, size_t field) {
  return Context(offsetof(JitContext, state) + offsetof(x86::CpuState, segment) + segment * sizeof(x86::Segment) +
                 field);
}
Mem BaseOf(unsigned segment) { return SegmentField(segment, offsetof(x86::Segment, base)); }
Mem LimitOf(unsigned segment) { return SegmentField(segment, offsetof(x86::Segment, limit)); }
Mem SelectorOf(unsigned segment) { return SegmentField(segment, offsetof(x86::Segment, selector)); }

Mem SavedRcx() { return Context(offsetof(JitContext, saved_rcx)); }
Mem SavedPointer() { return Context(offsetof(JitContext, saved_pointer)); }
Mem SavedScratch() { return Context(offsetof(JitContext, saved_scratch)); }

/// LDS and the like: the segment register that they load; kNoRegister: none of them.
uint8_t PointerSegment(const Instruction& insn) {
  switch (insn.zydis_mnemonic()) {
    case ZYDIS_MNEMONIC_LES:
      return x86::kEs;
    case ZYDIS_MNEMONIC_LDS:
      return x86::kDs;
    case ZYDIS_MNEMONIC_LFS:
      return x86::kFs;
    case ZYDIS_MNEMONIC_LGS:
      return x86::kGs;
    default:
      return x86::kNoRegister;
  }
}

/// A load of SS holds interrupts back, CS cannot be loaded: both are the interpreter's.
bool IsDataSegment(unsigned segment) {
  return segment == x86::kEs || segment == x86::kDs || segment == x86::kFs || segment == x86::kGs;
}

}  // namespace

void Translator::LoadSized(uint8_t reg, const Mem& mem, unsigned size) {
  if (size >= 4)
    code_.Load(reg, mem, size == 8);
  else
    code_.Op(reg, mem, size == 2 ? 0xb7 : 0xb6, false, 1);
}

void Translator::StoreSized(const Mem& mem, uint8_t reg, unsigned size) {
  code_.Op(reg, mem, 0x89, size == 8, 0, size == 2 ? 0x66 : 0);
}

void Translator::WriteSized(uint8_t to, uint8_t from, unsigned size) {
  if (size == 2) code_.Byte(0x66);
  code_.Op(from, to, 0x89, size == 8);
}

void Translator::EmitMoveStack(int32_t distance) {
  if (stack_size() != 2) {
    EmitAddressPlus(kHostR15, kHostR15, distance);
    return;
  }
  code_.Byte(0x66);
  code_.Lea(kHostR15, {.base = kHostR15, .disp = distance}, false);
}

Translator::SegmentOffset Translator::OperandOffset(const Instruction& insn) {
  return {.base = insn.base,
          .index = insn.index,
          .scale = insn.index == x86::kNoRegister ? 1u : insn.scale,
          .displacement = insn.displacement,
          .address_size = insn.address_size};
}

/// Whether the access is not simply at its 32-bit offset, or FS's or GS's base plus that.
bool Translator::Segmented(const Instruction& insn) const {
  if (code64()) return false;
  if (insn.segment == x86::kCs || insn.address_size == 2) return true;
  const SegmentKind kind = KindOf(insn.segment);
  return kind != SegmentKind::kFlat && (kind != SegmentKind::kWhole || insn.segment < x86::kFs);
}

/// Whether EmitSegmentAddress can be asked: the rights are there, and an offset that is known lies within a limit that
/// is known.
bool Translator::CanAddressSegment(unsigned segment, const SegmentOffset& offset, unsigned bytes, bool write) const {
  uint64_t limit = 0xffffffff;
  if (segment == x86::kCs) {
    if (write ? !real() : !(request_.flags & kFlagCsReadable)) return false;
    limit = request_.segment.limit;
  } else {
    const SegmentKind kind = KindOf(segment);
    if (kind == SegmentKind::kNone) return false;
    if (kind == SegmentKind::kSmall) limit = 0xffff;
  }
  return !offset.constant() || uint64_t{offset.value()} + bytes - 1 <= limit;
}

/// Where an offset is too high.
void Translator::EmitLimitExit(bool group, bool live, uint64_t rip, uint8_t* jump) {
  Site site = SiteAt(rip);
  site.group = group;
  cold_[cold_count_++] = {
      .kind = ColdExit::kInterpret, .displacement = jump, .id = store_.AddSite(block_, site), .restore_rcx = live};
}

/// Leaves for the interpreter unless a register with a number of 32 bits is at most `most`. `reg`: R10 or R11, the
/// other is clobbered.
void Translator::EmitAtMost(uint8_t reg, int64_t most, bool group, bool live, uint64_t rip) {
  const uint8_t other = reg == kScratch1 ? kScratch2 : kScratch1;
  const bool wide = most > INT32_MAX / 2;
  if (wide) code_.LoadImm(other, static_cast<uint64_t>(most));
  if (!live) {
    if (wide)
      code_.Compare(reg, other);
    else
      code_.CompareImm32(reg, static_cast<uint32_t>(most));
    EmitLimitExit(group, false, rip, code_.JumpIf(15));  // greater
    return;
  }
  code_.Store(SavedRcx(), kHostRcx);
  if (most <= 0xffff && most >= 0) {
    code_.Lea(kHostRcx, {.base = reg, .disp = static_cast<int32_t>(0xffff - most)});
    code_.Pext(kHostRcx, kHostRcx, Context(offsetof(JitContext, above_16_mask)));
  } else {
    code_.Move(kHostRcx, reg);
    code_.Not(kHostRcx);  // -reg - 1
    if (wide)
      code_.Lea(kHostRcx, {.base = kHostRcx, .index = other, .disp = 1});
    else
      code_.Lea(kHostRcx, {.base = kHostRcx, .disp = static_cast<int32_t>(most + 1)});
    code_.Pext(kHostRcx, kHostRcx, Context(offsetof(JitContext, above_32_mask)));
  }
  uint8_t* const within = code_.JumpIfRcxZero();
  EmitLimitExit(group, true, rip, code_.Jump());
  code_.Bind8(within);
  code_.Load(kHostRcx, SavedRcx());
}

/// The same of the offset in R11 and the segment's limit less the other bytes of the access.
void Translator::EmitWithinLimit(unsigned segment, unsigned bytes, bool group, bool live, uint64_t rip) {
  const auto others = static_cast<int32_t>(bytes) - 1;
  if (!live) {
    code_.Load(kScratch1, LimitOf(segment), false);
    if (others != 0) code_.Lea(kScratch1, {.base = kScratch1, .disp = -others});
    code_.Compare(kScratch2, kScratch1);
    EmitLimitExit(group, false, rip, code_.JumpIf(15));
    return;
  }
  code_.Store(SavedRcx(), kHostRcx);
  code_.Load(kScratch1, LimitOf(segment), false);
  code_.Move(kHostRcx, kScratch2);
  code_.Not(kHostRcx);
  code_.Lea(kHostRcx, {.base = kHostRcx, .index = kScratch1, .disp = 1 - others});
  code_.Pext(kHostRcx, kHostRcx, Context(offsetof(JitContext, above_32_mask)));
  uint8_t* const within = code_.JumpIfRcxZero();
  EmitLimitExit(group, true, rip, code_.Jump());
  code_.Bind8(within);
  code_.Load(kHostRcx, SavedRcx());
}

/// R11 = the linear address of `bytes` bytes, which lie within the limit, or out. `range`: they are of several
/// accesses, each of which would wrap at 16 bits; then none may. Uses R10. Keeps the flags if they are live.
void Translator::EmitSegmentAddress(unsigned segment, const SegmentOffset& offset, unsigned bytes, bool range,
                                    bool group, bool live, uint64_t rip) {
  addend_of_ = -1;
  const bool narrow = offset.address_size == 2;
  if (offset.constant()) {
    const SegmentKind kind = segment == x86::kCs ? SegmentKind::kFlat : KindOf(segment);
    const uint32_t code_base = segment == x86::kCs ? request_.segment.base : 0;
    if (kind == SegmentKind::kLimited) {
      code_.LoadImm(kScratch2, offset.value());
      EmitWithinLimit(segment, bytes, group, live, rip);
    }
    if (kind == SegmentKind::kFlat) {
      code_.LoadImm(kScratch2, offset.value() + code_base);
    } else {
      code_.Load(kScratch2, BaseOf(segment), false);
      if (offset.value() != 0)
        code_.Lea(kScratch2, {.base = kScratch2, .disp = static_cast<int32_t>(offset.value())}, false);
    }
    return;
  }
  if (narrow && offset.index == x86::kNoRegister && offset.displacement == 0) {
    code_.Op(kScratch2, HostOf(offset.base), 0xb7, false, 1);
  } else {
    Mem mem{.disp = static_cast<int32_t>(offset.displacement)};
    if (offset.base != x86::kNoRegister) mem.base = HostOf(offset.base);
    if (offset.index != x86::kNoRegister) {
      mem.index = HostOf(offset.index);
      mem.scale = offset.scale;
    }
    code_.Lea(kScratch2, mem, false);
    if (narrow) code_.Op(kScratch2, kScratch2, 0xb7, false, 1);
  }
  EmitSegmentLinear(segment, narrow, bytes, range, group, live, rip);
}

/// The same of an offset in R11.
void Translator::EmitSegmentLinear(unsigned segment, bool narrow, unsigned bytes, bool range, bool group, bool live,
                                   uint64_t rip) {
  addend_of_ = -1;
  const bool code = segment == x86::kCs;
  const SegmentKind kind = code ? SegmentKind::kFlat : KindOf(segment);
  const uint32_t code_base = code ? request_.segment.base : 0;
  // The most that the offset may be.
  constexpr int64_t kAny = 0xffffffff;
  int64_t most = kAny;
  if (kind == SegmentKind::kSmall || (narrow && range)) most = 0x10000 - static_cast<int64_t>(bytes);
  if (code && request_.segment.limit != kAny)
    most = std::min(most, int64_t{request_.segment.limit} - static_cast<int64_t>(bytes) + 1);
  if (most < (narrow ? 0xffff : kAny)) EmitAtMost(kScratch2, most, group, live, rip);
  if (kind == SegmentKind::kLimited) EmitWithinLimit(segment, bytes, group, live, rip);
  if (kind != SegmentKind::kFlat) {
    code_.Load(kScratch1, BaseOf(segment), false);
    code_.Lea(kScratch2, {.base = kScratch2, .index = kScratch1}, false);
  } else if (code_base != 0) {
    code_.Lea(kScratch2, {.base = kScratch2, .disp = static_cast<int32_t>(code_base)}, false);
  }
}

/// Such an access on the host, through its group where it has one. CanAddressSegment has been asked.
Mem Translator::EmitSegmentAccess(unsigned index, Part part, unsigned segment, const SegmentOffset& offset,
                                  unsigned size, bool write, bool range) {
  const PlannedAccess& planned = plan_[index][part];
  if (planned.group >= 0 && !planned.leader) {
    EmitLoadGroup(planned.group);
    return {.base = kScratch1, .disp = planned.distance};
  }
  Access access{.size = size, .write = write, .flags_live = live_before_[index] != 0};
  SegmentOffset at = offset;
  if (planned.leader) {
    access = GroupAccess(planned.group, access.flags_live);
    at.displacement -= planned.distance;
  }
  EmitSegmentAddress(segment, at, access.size, range || planned.leader, planned.leader, access.flags_live,
                     RipOf(index));
  EmitCheckToHost(access, RipOf(index));
  if (planned.leader) EmitStoreGroup(planned.group);
  return {.base = kScratch1, .disp = planned.leader ? planned.distance : 0};
}

// ---- Segment registers in real-address and virtual-8086 mode.

/// Instructions of which EmitLoadSegment and the like take most.
bool Translator::IsSegmentMove(const Instruction& insn) const {
  if (code64() || insn.encoding != x86::Encoding::kLegacy) return false;
  if (PointerSegment(insn) != x86::kNoRegister) return plain_segments();
  switch (insn.zydis_mnemonic()) {
    case ZYDIS_MNEMONIC_MOV:
      if (insn.map != 0) return false;
      return insn.opcode == 0x8c || (insn.opcode == 0x8e && plain_segments());
    case ZYDIS_MNEMONIC_PUSHA:
    case ZYDIS_MNEMONIC_PUSHAD:
    case ZYDIS_MNEMONIC_POPA:
    case ZYDIS_MNEMONIC_POPAD:
    case ZYDIS_MNEMONIC_ENTER:
    case ZYDIS_MNEMONIC_XLAT:
      return true;
    default:
      return false;
  }
}

/// A selector in R11 to a segment register. Uses R10.
void Translator::EmitSetSegment(unsigned segment) {
  StoreSized(SelectorOf(segment), kScratch2, 2);
  code_.Lea(kScratch1, {.index = kScratch2, .scale = 8}, false);
  code_.Lea(kScratch1, {.base = kScratch1, .index = kScratch1}, false);
  code_.Store(BaseOf(segment), kScratch1);
  addend_of_ = -1;
}

/// MOV to a segment register.
bool Translator::EmitLoadSegment(unsigned index) {
  const Instruction& insn = insns_[index];
  const unsigned segment = insn.operand[0].index;
  if (!plain_segments() || !IsDataSegment(segment)) return false;
  const Operand& from = insn.operand[1];
  if (from.kind == OperandKind::kMemory) {
    if (!Segmented(insn) || !CanAddressSegment(insn.segment, OperandOffset(insn), 2, false)) return false;
    LoadSized(kScratch2, EmitSegmentAccess(index, kOperand, insn.segment, OperandOffset(insn), 2, false), 2);
  } else {
    code_.Op(kScratch2, HostOf(from.index), 0xb7, false, 1);
  }
  EmitSetSegment(segment);
  return true;
}

/// MOV of a selector to memory.
bool Translator::EmitStoreSegment(unsigned index) {
  const Instruction& insn = insns_[index];
  if (!Segmented(insn) || !CanAddressSegment(insn.segment, OperandOffset(insn), 2, true)) return false;
  const Mem to = EmitSegmentAccess(index, kOperand, insn.segment, OperandOffset(insn), 2, true);
  LoadSized(kScratch2, SelectorOf(insn.operand[1].index), 2);
  StoreSized(to, kScratch2, 2);
  return true;
}

/// LDS, LES, LFS, LGS: the offset, and behind it the selector.
bool Translator::EmitLoadPointer(unsigned index) {
  const Instruction& insn = insns_[index];
  const unsigned size = WordSize(insn);
  const SegmentOffset offset = OperandOffset(insn);
  if (!plain_segments() || !Segmented(insn) || !CanAddressSegment(insn.segment, offset, size + 2, false)) return false;
  const Mem at = EmitSegmentAccess(index, kOperand, insn.segment, offset, size + 2, false);
  LoadSized(kScratch2, {.base = at.base, .disp = at.disp + static_cast<int32_t>(size)}, 2);
  const uint8_t to = HostOf(insn.operand[0].index);
  code_.Op(to, at, 0x8b, false, 0, size == 2 ? 0x66 : 0);
  EmitSetSegment(PointerSegment(insn));
  return true;
}

bool Translator::EmitPopSegment(unsigned index) {
  const Instruction& insn = insns_[index];
  const unsigned segment = insn.operand[0].index;
  if (!plain_segments() || !IsDataSegment(segment)) return false;
  LoadSized(kScratch2, EmitStackAccess(index, WordSize(insn), false), 2);
  EmitMoveStack(static_cast<int32_t>(WordSize(insn)));
  EmitSetSegment(segment);
  return true;
}

// ---- The stack.

/// POP to memory, whose address must not depend on the stack pointer, which has moved by then.
bool Translator::EmitPopMemory(unsigned index) {
  const Instruction& insn = insns_[index];
  const unsigned size = WordSize(insn);
  if (!Segmented(insn) || insn.base == x86::kRsp || insn.index == x86::kRsp || insn.operand[0].size != size ||
      !CanAddressSegment(insn.segment, OperandOffset(insn), size, true))
    return false;
  LoadSized(kScratch2, EmitStackAccess(index, size, false), size);
  code_.Store(SavedScratch(), kScratch2);
  const Mem to = EmitSegmentAccess(index, kOperand, insn.segment, OperandOffset(insn), size, true);
  code_.Load(kScratch2, SavedScratch());
  StoreSized(to, kScratch2, size);
  EmitMoveStack(static_cast<int32_t>(size));
  return true;
}

bool Translator::EmitPushAll(unsigned index) {
  const auto size = static_cast<int32_t>(WordSize(insns_[index]));
  if (KindOf(x86::kSs) == SegmentKind::kNone) return false;
  const Mem at =
      EmitSegmentAccess(index, kStack, x86::kSs, StackOffset(-8 * size), static_cast<unsigned>(8 * size), true, true);
  for (int32_t gpr = 0; gpr < 8; ++gpr)
    StoreSized({.base = at.base, .disp = at.disp + (7 - gpr) * size}, HostOf(static_cast<unsigned>(gpr)),
               static_cast<unsigned>(size));
  EmitMoveStack(-8 * size);
  return true;
}

bool Translator::EmitPopAll(unsigned index) {
  const auto size = static_cast<int32_t>(WordSize(insns_[index]));
  if (KindOf(x86::kSs) == SegmentKind::kNone) return false;
  const Mem at =
      EmitSegmentAccess(index, kStack, x86::kSs, StackOffset(0), static_cast<unsigned>(8 * size), false, true);
  for (int32_t gpr = 0; gpr < 8; ++gpr)
    if (gpr != x86::kRsp)
      code_.Op(HostOf(static_cast<unsigned>(gpr)), {.base = at.base, .disp = at.disp + (7 - gpr) * size}, 0x8b, false,
               0, size == 2 ? 0x66 : 0);
  EmitMoveStack(8 * size);
  return true;
}

/// ENTER without nesting: what lies at the new top must be writable, too (SDM 2A "ENTER").
bool Translator::EmitEnter(unsigned index) {
  const Instruction& insn = insns_[index];
  const unsigned size = WordSize(insn);
  if (code64() || (insn.immediate2 & 31) != 0 || KindOf(x86::kSs) == SegmentKind::kNone) return false;
  const auto word = static_cast<int32_t>(size), room = static_cast<int32_t>(insn.immediate & 0xffff);
  if (room != 0) EmitSegmentAccess(index, kOperand, x86::kSs, StackOffset(-word - room), size, true);
  const Mem at = EmitSegmentAccess(index, kStack, x86::kSs, StackOffset(-word), size, true);
  StoreSized(at, kHostRbp, size);
  // The frame pointer is as wide as the operand, its value as the stack.
  code_.Lea(kScratch2, {.base = kHostR15, .disp = -word}, false);
  if (stack_size() == 2) code_.Op(kScratch2, kScratch2, 0xb7, false, 1);
  WriteSized(kHostRbp, kScratch2, size);
  EmitMoveStack(-word - room);
  return true;
}

/// XLAT.
bool Translator::EmitTranslate(unsigned index) {
  const Instruction& insn = insns_[index];
  const SegmentOffset offset{.base = x86::kRbx, .address_size = insn.address_size};
  if (code64() || !CanAddressSegment(insn.segment, offset, 1, false)) return false;
  const bool live = live_before_[index] != 0, narrow = insn.address_size == 2;
  code_.Op(kScratch1, kHostRax, 0xb6, false, 1);
  code_.Lea(kScratch2, {.base = kHostRbx, .index = kScratch1}, false);
  if (narrow) code_.Op(kScratch2, kScratch2, 0xb7, false, 1);
  EmitSegmentLinear(insn.segment, narrow, 1, false, false, live, RipOf(index));
  EmitCheckToHost({.size = 1, .write = false, .flags_live = live}, RipOf(index));
  code_.Op(kHostRax, {.base = kScratch1}, 0x8a, false);
  return true;
}

// ---- Code addresses.

/// R10, an offset in the code segment, becomes a code address. Uses R11. Keeps the flags.
void Translator::EmitCodeAddress() {
  if (request_.segment.base != 0)
    code_.Lea(kScratch1, {.base = kScratch1, .disp = static_cast<int32_t>(request_.segment.base)}, false);
  const uint64_t number = request_.rip & kCodeSegmentMask;
  if (number == 0) return;
  code_.LoadImm(kScratch2, number);
  code_.Lea(kScratch1, {.base = kScratch1, .index = kScratch2});
}

/// R10, an offset, and R11, a selector of real-address or virtual-8086 mode, become CS and a code address in R10.
void Translator::EmitFarTarget() {
  StoreSized(SelectorOf(x86::kCs), kScratch2, 2);
  for (int i = 0; i < 2; ++i) code_.Lea(kScratch1, {.base = kScratch1, .index = kScratch2, .scale = 8}, false);
  code_.RotateRight(kScratch2, kScratch2, kCodeSegmentShift);
  code_.Lea(kScratch1, {.base = kScratch1, .index = kScratch2});
  code_.LoadImm(kScratch2, uint64_t{1} << kCodeSegmentShift);
  code_.Lea(kScratch1, {.base = kScratch1, .index = kScratch2});
  LoadSized(kScratch2, SelectorOf(x86::kCs), 2);
  code_.Lea(kScratch2, {.index = kScratch2, .scale = 8}, false);
  code_.Lea(kScratch2, {.base = kScratch2, .index = kScratch2}, false);
  code_.Store(BaseOf(x86::kCs), kScratch2);
}

/// The same of the far pointer in JitContext::saved_pointer.
void Translator::EmitFarPointer() {
  Mem selector = SavedPointer();
  LoadSized(kScratch1, selector, 2);
  selector.disp += 2;
  LoadSized(kScratch2, selector, 2);
  EmitFarTarget();
}

/// JMP, CALL, RET, INT and IRET to another segment in real-address and virtual-8086 mode, with offsets of 16 bits.
bool Translator::EmitFar(unsigned index) {
  const Instruction& insn = insns_[index];
  if (!plain_segments() || !code16() || request_.segment.limit != 0xffff) return false;
  if (insn.mnemonic == ZYDIS_MNEMONIC_INT) return EmitInterrupt(index);
  if (WordSize(insn) != 2) return false;
  if (insn.mnemonic == ZYDIS_MNEMONIC_IRET) return EmitInterruptReturn(index);
  const bool call = insn.mnemonic == ZYDIS_MNEMONIC_CALL;
  if (insn.mnemonic == ZYDIS_MNEMONIC_RET) return EmitFarReturn(index);
  if ((!call && insn.mnemonic != ZYDIS_MNEMONIC_JMP) || insn.operand_count == 0) return false;
  const bool memory = insn.operand[0].kind == OperandKind::kMemory;
  if (!memory && insn.operand[0].kind != OperandKind::kFarPointer) return false;
  if (memory) {
    const SegmentOffset offset = OperandOffset(insn);
    if (!Segmented(insn) || !CanAddressSegment(insn.segment, offset, 4, false)) return false;
    code_.Load(kScratch1, EmitSegmentAccess(index, kOperand, insn.segment, offset, 4, false), false);
    addend_of_ = -1;
    code_.Store(SavedPointer(), kScratch1);
  }
  if (call) {
    const Mem at = EmitSegmentAccess(index, kStack, x86::kSs, StackOffset(-4), 4, true, true);
    LoadSized(kScratch2, SelectorOf(x86::kCs), 2);
    StoreSized({.base = at.base, .disp = at.disp + 2}, kScratch2, 2);
    code_.LoadImm(kScratch2, OffsetOf(NextRip(index)) & 0xffff);
    StoreSized(at, kScratch2, 2);
    EmitMoveStack(-4);
  }
  if (memory) {
    EmitFarPointer();
    EmitLookup(code_, context(), call && PairsCalls());
  } else {
    const uint64_t selector = insn.immediate2, base = selector * 16;
    code_.StoreImm32(BaseOf(x86::kCs), static_cast<uint32_t>(base), true);
    code_.LoadImm(kScratch2, selector);
    StoreSized(SelectorOf(x86::kCs), kScratch2, 2);
    const uint64_t target = (1 + selector) << kCodeSegmentShift | (base + (insn.immediate & 0xffff));
    EmitLinkExit(target, request_.flags, true, call && PairsCalls());
  }
  if (call && PairsCalls()) EmitReturnPoint(index);
  return true;
}

bool Translator::EmitFarReturn(unsigned index) {
  const Instruction& insn = insns_[index];
  const auto extra = insn.opcode == 0xca ? static_cast<int32_t>(insn.immediate & 0xffff) : 0;
  const Mem at = EmitSegmentAccess(index, kStack, x86::kSs, StackOffset(0), 4, false, true);
  LoadSized(kScratch2, {.base = at.base, .disp = at.disp + 2}, 2);
  LoadSized(kScratch1, at, 2);
  addend_of_ = -1;
  EmitMoveStack(4 + extra);
  EmitFarTarget();
  if (PairsCalls())
    code_.Return();
  else
    EmitLookup(code_, context());
  return true;
}

}  // namespace nacre::engine::jit
