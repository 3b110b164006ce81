// Near branches, the stack, and the flag instructions.

#include "engine/interp/handlers.h"

namespace nacre::engine::interp {

using x86::Instruction;
using x86::OperandKind;
namespace rf = x86::rflags;

// ---- Stack primitives.

void Core::SetStackPointer(uint64_t value) {
  const uint64_t mask = StackMask();
  uint64_t& rsp = state->gpr[x86::kRsp];
  // A 32-bit stack pointer zero-extends, a 16-bit one leaves the rest.
  rsp = mask == 0xffff ? (rsp & ~mask) | (value & mask) : value & mask;
}

bool Core::Push(unsigned size, uint64_t value) {
  const uint64_t top = (state->gpr[x86::kRsp] - size) & StackMask();
  INTERP_TRY(WriteSized(x86::kSs, top, size, value));
  SetStackPointer(top);
  return true;
}

bool Core::Peek(unsigned size, uint64_t at, uint64_t& value) {
  return ReadSized(x86::kSs, (state->gpr[x86::kRsp] + at) & StackMask(), size, value);
}

bool Core::CheckTarget(uint64_t target) {
  if (code64 ? Canonical(target) : target <= state->segment[x86::kCs].limit) return true;
  return Gp();
}

namespace {

/// Near branches are 64 bits wide in 64-bit mode whatever the prefixes (Intel's behaviour).
unsigned BranchSize(const Decoded& d) { return d.insn.code_size == x86::CodeSize::k64 ? 8 : d.operand_size; }

bool JumpTo(Core& c, const Decoded& d, uint64_t target) {
  target = MaskToSize(target, BranchSize(d));
  INTERP_TRY(c.CheckTarget(target));
  c.next_rip = target;
  return true;
}

bool Relative(Core& c, const Decoded& d) { return JumpTo(c, d, c.next_rip + d.insn.immediate); }

bool Jcc(Core& c, const Decoded& d) { return !Condition(c.state->rflags, d.insn.opcode & 15) || Relative(c, d); }

bool NearTarget(Core& c, const Decoded& d, uint64_t& target) {
  if (d.insn.operand[0].kind == OperandKind::kRelative) {
    target = c.next_rip + d.insn.immediate;
    return true;
  }
  return WithSize(BranchSize(d), [&](auto typed) {
    INTERP_TRY(c.LoadOperand(d, 0, typed));
    target = typed;
    return true;
  });
}

/// The far pointer in memory: offset first, selector after it.
bool LoadFarPointer(Core& c, const Decoded& d, uint16_t& selector, uint64_t& offset) {
  if (d.insn.operand[0].kind == OperandKind::kFarPointer) {
    selector = d.insn.immediate2;
    offset = MaskToSize(d.insn.immediate, d.operand_size);
    return true;
  }
  uint8_t bytes[10] = {};
  INTERP_TRY(c.Read(c.OperandSegment(d), c.EffectiveAddress(d), bytes, d.operand_size + 2u));
  offset = 0;
  std::memcpy(&offset, bytes, d.operand_size);
  std::memcpy(&selector, bytes + d.operand_size, 2);
  return true;
}

bool Jump(Core& c, const Decoded& d) {
  uint64_t target;
  INTERP_TRY(NearTarget(c, d, target));
  return JumpTo(c, d, target);
}
bool JumpFar(Core& c, const Decoded& d) {
  uint16_t selector;
  uint64_t offset;
  INTERP_TRY(LoadFarPointer(c, d, selector, offset));
  return c.FarJump(selector, offset, d.operand_size);
}

bool Call(Core& c, const Decoded& d) {
  uint64_t target;
  INTERP_TRY(NearTarget(c, d, target));
  target = MaskToSize(target, BranchSize(d));
  INTERP_TRY(c.CheckTarget(target));
  INTERP_TRY(c.Push(BranchSize(d), c.next_rip));
  c.next_rip = target;
  return true;
}
bool CallFar(Core& c, const Decoded& d) {
  uint16_t selector;
  uint64_t offset;
  INTERP_TRY(LoadFarPointer(c, d, selector, offset));
  return c.FarCall(selector, offset, d.operand_size);
}

bool Return(Core& c, const Decoded& d) {
  uint64_t target;
  const unsigned size = BranchSize(d);
  INTERP_TRY(c.Peek(size, 0, target));
  INTERP_TRY(c.CheckTarget(target));
  c.Release(size + (d.insn.opcode == 0xc2 ? d.insn.immediate & 0xffff : 0));
  c.next_rip = target;
  return true;
}
bool ReturnFar(Core& c, const Decoded& d) {
  return c.FarReturn(d.operand_size, d.insn.opcode == 0xca ? d.insn.immediate & 0xffff : 0);
}

Handler ResolveJump(const Instruction& insn) {
  if (insn.branch == x86::BranchKind::kFar) return JumpFar;
  return insn.operand[0].kind == OperandKind::kRelative ? Relative : Jump;
}
Handler ResolveCall(const Instruction& insn) { return insn.branch == x86::BranchKind::kFar ? CallFar : Call; }
Handler ResolveReturn(const Instruction& insn) {
  return insn.opcode == 0xca || insn.opcode == 0xcb ? ReturnFar : Return;
}

/// LOOP LOOPE LOOPNE: the counter is as wide as addresses.
template <int kWantZero>
bool Loop(Core& c, const Decoded& d) {
  const uint64_t count = MaskToSize(c.state->gpr[x86::kRcx] - 1, d.insn.address_size);
  const bool zero = c.state->rflags & rf::kZf;
  if (count != 0 && (kWantZero < 0 || zero == (kWantZero != 0))) INTERP_TRY(Relative(c, d));
  c.WriteGpr(x86::kRcx, d.insn.address_size, count);
  return true;
}

bool Jcxz(Core& c, const Decoded& d) { return c.ReadGpr(x86::kRcx, d.insn.address_size) != 0 || Relative(c, d); }

// ---- PUSH, POP and their kin.

bool PushOperand(Core& c, const Decoded& d) {
  const x86::Operand& operand = d.insn.operand[0];
  uint64_t value = 0;
  if (operand.kind == OperandKind::kImmediate) {
    value = d.insn.immediate;
  } else if (operand.register_class == x86::RegisterClass::kSegment) {
    value = c.state->segment[operand.index].selector;
  } else if (operand.kind == OperandKind::kRegister) {
    value = c.state->gpr[operand.index];
  } else {
    INTERP_TRY(c.ReadSized(c.OperandSegment(d), c.EffectiveAddress(d), d.stack_size, value));
  }
  return c.Push(d.stack_size, value);
}

bool PopOperand(Core& c, const Decoded& d) {
  const x86::Operand& operand = d.insn.operand[0];
  uint64_t value;
  INTERP_TRY(c.Peek(d.stack_size, 0, value));
  if (operand.register_class == x86::RegisterClass::kSegment) {
    // The pointer moves by the old stack segment's width, before the new one counts.
    const uint64_t mask = c.StackMask();
    const uint64_t rsp = c.state->gpr[x86::kRsp];
    const auto index = static_cast<x86::SegmentIndex>(operand.index);
    INTERP_TRY(c.LoadSegment(index, static_cast<uint16_t>(value)));
    const uint64_t moved = rsp + d.stack_size;
    c.state->gpr[x86::kRsp] = mask == 0xffff ? (rsp & ~mask) | (moved & mask) : moved & mask;
    if (index == x86::kSs) c.shadow_mov_ss = true;
    return true;
  }
  const uint64_t before = c.state->gpr[x86::kRsp];
  c.Release(d.stack_size);
  if (operand.kind == OperandKind::kRegister) {
    c.WriteGpr(operand.index, d.stack_size, value);
    return true;
  }
  // An address with rSP in it uses the value after the increment (SDM 2B "POP").
  if (c.WriteSized(c.OperandSegment(d), c.EffectiveAddress(d), d.stack_size, value)) return true;
  c.state->gpr[x86::kRsp] = before;
  return false;
}

bool PushAll(Core& c, const Decoded& d) {
  const unsigned size = d.operand_size;
  const uint64_t rsp = c.state->gpr[x86::kRsp], mask = c.StackMask();
  for (unsigned i = 1; i <= 8; ++i) INTERP_TRY(c.ProbeWrite(x86::kSs, (rsp - i * size) & mask, size));
  for (unsigned i = 0; i < 8; ++i)
    INTERP_TRY(c.WriteSized(x86::kSs, (rsp - (i + 1) * size) & mask, size, c.state->gpr[i]));
  c.SetStackPointer(rsp - 8 * size);
  return true;
}

bool PopAll(Core& c, const Decoded& d) {
  const unsigned size = d.operand_size;
  uint64_t values[8];
  for (unsigned i = 0; i < 8; ++i) INTERP_TRY(c.Peek(size, i * size, values[7 - i]));
  for (unsigned i = 0; i < 8; ++i)
    if (i != x86::kRsp) c.WriteGpr(i, size, values[i]);
  c.Release(8 * size);
  return true;
}

bool PushFlags(Core& c, const Decoded& d) {
  if (c.state->virtual8086() && c.iopl() < 3) return c.Gp();
  return c.Push(d.stack_size, c.state->rflags & ~(rf::kRf | rf::kVm));
}

bool PopFlags(Core& c, const Decoded& d) {
  if (c.state->virtual8086() && c.iopl() < 3) return c.Gp();
  uint64_t value;
  INTERP_TRY(c.Peek(d.stack_size, 0, value));
  const unsigned cpl = c.state->cpl();
  uint64_t changeable = rf::kArithmetic | rf::kTf | rf::kDf | rf::kNt;
  if (!c.state->protected_mode() || cpl == 0) changeable |= rf::kIoplMask;
  if (!c.state->protected_mode() || cpl <= c.iopl()) changeable |= rf::kIf;
  if (c.state->virtual8086()) changeable = (changeable | rf::kIf) & ~rf::kIoplMask;
  if (d.stack_size > 2) changeable |= rf::kAc | rf::kId;
  c.WriteFlags(value, changeable);
  c.Release(d.stack_size);
  return true;
}

bool Enter(Core& c, const Decoded& d) {
  const unsigned size = d.stack_size;
  const uint64_t mask = c.StackMask();
  const unsigned level = d.insn.immediate2 & 31;
  const uint64_t rsp = c.state->gpr[x86::kRsp], rbp = c.state->gpr[x86::kRbp];
  const uint64_t frame = rsp - size;
  const unsigned pushes = level == 0 ? 1 : level + 1;
  const uint64_t top = rsp - pushes * size - (d.insn.immediate & 0xffff);
  uint64_t value;
  for (unsigned i = 1; i < level; ++i) INTERP_TRY(c.ReadSized(x86::kSs, (rbp - i * size) & mask, size, value));
  for (unsigned i = 1; i <= pushes; ++i) INTERP_TRY(c.ProbeWrite(x86::kSs, (rsp - i * size) & mask, size));
  INTERP_TRY(c.ProbeWrite(x86::kSs, top & mask, size));
  // Nothing can fault any more. The display is copied pointer by pointer: later reads see earlier pushes.
  INTERP_TRY(c.WriteSized(x86::kSs, frame & mask, size, rbp));
  for (unsigned i = 1; i < level; ++i) {
    INTERP_TRY(c.ReadSized(x86::kSs, (rbp - i * size) & mask, size, value));
    INTERP_TRY(c.WriteSized(x86::kSs, (rsp - (i + 1) * size) & mask, size, value));
  }
  // The frame pointer itself, as wide as the stack.
  value = mask == 0xffff ? (rsp & ~mask) | (frame & mask) : frame & mask;
  if (level > 0) INTERP_TRY(c.WriteSized(x86::kSs, (rsp - pushes * size) & mask, size, value));
  c.WriteGpr(x86::kRbp, size, frame & mask);
  c.SetStackPointer(top);
  return true;
}

bool Leave(Core& c, const Decoded& d) {
  const uint64_t frame = c.state->gpr[x86::kRbp] & c.StackMask();
  uint64_t value;
  INTERP_TRY(c.ReadSized(x86::kSs, frame, d.stack_size, value));
  c.SetStackPointer(frame + d.stack_size);
  c.WriteGpr(x86::kRbp, d.stack_size, value);
  return true;
}

// ---- Flags.

template <uint64_t kClear, uint64_t kSet, uint64_t kFlip>
bool ChangeFlags(Core& c, const Decoded&) {
  c.state->rflags = ((c.state->rflags & ~kClear) | kSet) ^ kFlip;
  return true;
}

/// CLI and STI without VME and PVI: IOPL decides (SDM 2A "CLI", 2B "STI").
bool MayChangeIf(Core& c) {
  if (!c.state->protected_mode()) return true;
  return c.state->cpl() <= c.iopl() ? true : c.Gp();
}
bool Cli(Core& c, const Decoded&) {
  INTERP_TRY(MayChangeIf(c));
  c.state->rflags &= ~rf::kIf;
  return true;
}
bool Sti(Core& c, const Decoded&) {
  INTERP_TRY(MayChangeIf(c));
  if (!(c.state->rflags & rf::kIf)) c.shadow_sti = true;
  c.state->rflags |= rf::kIf;
  return true;
}

constexpr uint64_t kAhFlags = rf::kSf | rf::kZf | rf::kAf | rf::kPf | rf::kCf;
bool Lahf(Core& c, const Decoded&) {
  c.WriteReg<uint8_t>(1, static_cast<uint8_t>((c.state->rflags & kAhFlags) | rf::kFixed1));
  return true;
}
bool Sahf(Core& c, const Decoded&) {
  c.WriteFlags(c.ReadReg<uint8_t>(1), kAhFlags);
  return true;
}
bool Salc(Core& c, const Decoded&) {
  c.WriteReg<uint8_t>(0, c.state->rflags & rf::kCf ? 0xff : 0);
  return true;
}

template <bool kSet>
bool ChangeAc(Core& c, const Decoded&) {
  if (c.state->cpl() != 0) return c.Ud();
  c.state->rflags = kSet ? c.state->rflags | rf::kAc : c.state->rflags & ~rf::kAc;
  return true;
}

}  // namespace

void RegisterFlow(HandlerTable& t) {
  constexpr ZydisMnemonic kJccs[] = {ZYDIS_MNEMONIC_JO, ZYDIS_MNEMONIC_JNO, ZYDIS_MNEMONIC_JB,  ZYDIS_MNEMONIC_JNB,
                                     ZYDIS_MNEMONIC_JZ, ZYDIS_MNEMONIC_JNZ, ZYDIS_MNEMONIC_JBE, ZYDIS_MNEMONIC_JNBE,
                                     ZYDIS_MNEMONIC_JS, ZYDIS_MNEMONIC_JNS, ZYDIS_MNEMONIC_JP,  ZYDIS_MNEMONIC_JNP,
                                     ZYDIS_MNEMONIC_JL, ZYDIS_MNEMONIC_JNL, ZYDIS_MNEMONIC_JLE, ZYDIS_MNEMONIC_JNLE};
  for (ZydisMnemonic mnemonic : kJccs) t.Set(mnemonic, Jcc);
  t.Set(ZYDIS_MNEMONIC_JMP, ResolveJump);
  t.Set(ZYDIS_MNEMONIC_CALL, ResolveCall);
  t.Set(ZYDIS_MNEMONIC_RET, ResolveReturn);
  t.Set(ZYDIS_MNEMONIC_LOOP, Loop<-1>);
  t.Set(ZYDIS_MNEMONIC_LOOPE, Loop<1>);
  t.Set(ZYDIS_MNEMONIC_LOOPNE, Loop<0>);
  t.Set(ZYDIS_MNEMONIC_JCXZ, Jcxz);
  t.Set(ZYDIS_MNEMONIC_JECXZ, Jcxz);
  t.Set(ZYDIS_MNEMONIC_JRCXZ, Jcxz);
}

void RegisterStack(HandlerTable& t) {
  t.Set(ZYDIS_MNEMONIC_PUSH, PushOperand);
  t.Set(ZYDIS_MNEMONIC_POP, PopOperand);
  t.Set(ZYDIS_MNEMONIC_PUSHA, PushAll);
  t.Set(ZYDIS_MNEMONIC_PUSHAD, PushAll);
  t.Set(ZYDIS_MNEMONIC_POPA, PopAll);
  t.Set(ZYDIS_MNEMONIC_POPAD, PopAll);
  t.Set(ZYDIS_MNEMONIC_PUSHF, PushFlags);
  t.Set(ZYDIS_MNEMONIC_PUSHFD, PushFlags);
  t.Set(ZYDIS_MNEMONIC_PUSHFQ, PushFlags);
  t.Set(ZYDIS_MNEMONIC_POPF, PopFlags);
  t.Set(ZYDIS_MNEMONIC_POPFD, PopFlags);
  t.Set(ZYDIS_MNEMONIC_POPFQ, PopFlags);
  t.Set(ZYDIS_MNEMONIC_ENTER, Enter);
  t.Set(ZYDIS_MNEMONIC_LEAVE, Leave);
}

void RegisterFlags(HandlerTable& t) {
  t.Set(ZYDIS_MNEMONIC_CLC, ChangeFlags<rf::kCf, 0, 0>);
  t.Set(ZYDIS_MNEMONIC_STC, ChangeFlags<0, rf::kCf, 0>);
  t.Set(ZYDIS_MNEMONIC_CMC, ChangeFlags<0, 0, rf::kCf>);
  t.Set(ZYDIS_MNEMONIC_CLD, ChangeFlags<rf::kDf, 0, 0>);
  t.Set(ZYDIS_MNEMONIC_STD, ChangeFlags<0, rf::kDf, 0>);
  t.Set(ZYDIS_MNEMONIC_CLI, Cli);
  t.Set(ZYDIS_MNEMONIC_STI, Sti);
  t.Set(ZYDIS_MNEMONIC_LAHF, Lahf);
  t.Set(ZYDIS_MNEMONIC_SAHF, Sahf);
  t.Set(ZYDIS_MNEMONIC_SALC, Salc);
  t.Set(ZYDIS_MNEMONIC_STAC, ChangeAc<true>);
  t.Set(ZYDIS_MNEMONIC_CLAC, ChangeAc<false>);
}

}  // namespace nacre::engine::interp
