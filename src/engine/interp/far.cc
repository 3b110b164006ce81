// Far jumps, calls and returns, call gates with stack switch, IRET (SDM 3A 5.8, 6.12; SDM 2A "CALL", "IRET").

#include "engine/interp/handlers.h"

namespace nacre::engine::interp {

using x86::SegmentIndex;
namespace rf = x86::rflags;

namespace {

/// In IA-32e mode a code segment with both L and D is reserved.
bool ReservedCode(const Core& c, const Descriptor& d) {
  return c.state->long_mode_active() && d.long_code() && d.big();
}

bool RealMode(const Core& c) { return !c.state->protected_mode() || c.state->virtual8086(); }

/// A code segment named directly by a far JMP or CALL.
bool CheckDirectCode(Core& c, uint16_t selector, const Descriptor& d) {
  const uint32_t error = selector & 0xfffc;
  const unsigned cpl = c.state->cpl(), rpl = selector & 3;
  if (ReservedCode(c, d)) return c.Gp(error);
  if (d.conforming() ? d.dpl() > cpl : rpl > cpl || d.dpl() != cpl) return c.Gp(error);
  return d.present() ? true : c.Np(error);
}

/// A call gate and the code segment it leads to; `jump`: no change of privilege is allowed.
struct GateTarget {
  uint16_t selector = 0;
  uint64_t offset = 0;
  unsigned size = 4;
  Descriptor code;
};

bool CheckCallGate(Core& c, uint16_t gate_selector, Descriptor& gate, bool jump, GateTarget& target) {
  const uint32_t gate_error = gate_selector & 0xfffc;
  const unsigned cpl = c.state->cpl();
  const bool long_mode = c.state->long_mode_active();
  if (gate.dpl() < cpl || (gate_selector & 3u) > gate.dpl()) return c.Gp(gate_error);
  if (!gate.present()) return c.Np(gate_error);
  if (long_mode) INTERP_TRY(c.ReadDescriptorTop(gate_selector, gate, x86::kGeneralProtection));
  target.size = long_mode ? 8 : gate.type() == kCallGate32 ? 4 : 2;
  target.selector = gate.gate_selector();
  target.offset = long_mode                    ? gate.gate_offset64()
                  : gate.type() == kCallGate32 ? gate.gate_offset()
                                               : gate.gate_offset() & 0xffff;
  if ((target.selector & ~3) == 0) return c.Gp();
  INTERP_TRY(c.ReadDescriptor(target.selector, target.code, x86::kGeneralProtection));
  const uint32_t error = target.selector & 0xfffc;
  if (!target.code.is_code() || target.code.dpl() > cpl) return c.Gp(error);
  if (jump && !target.code.conforming() && target.code.dpl() != cpl) return c.Gp(error);
  if (long_mode && (!target.code.long_code() || target.code.big())) return c.Gp(error);
  if (!target.code.present()) return c.Np(error);
  return c.SetDescriptorBits(target.code, Bit(8));
}

/// System descriptors that a far JMP or CALL may name in this mode.
bool IsCallGate(const Core& c, const Descriptor& d) {
  return d.type() == kCallGate32 || (d.type() == kCallGate16 && !c.state->long_mode_active());
}

bool FarTask(Core& c, uint16_t selector, const Descriptor& d, Core::TaskSource source) {
  const uint32_t error = selector & 0xfffc;
  if (c.state->long_mode_active()) return c.Gp(error);
  const bool gate = d.type() == kTaskGate;
  if (!gate && d.type() != kTss16 && d.type() != kTss32) return c.Gp(error);
  if (d.dpl() < c.state->cpl() || d.dpl() < (selector & 3u)) return c.Gp(error);
  if (!d.present()) return c.Np(error);
  if (gate) return c.TaskGate(d, selector, source, nullptr);
  if (selector & 4) return c.Gp(error);
  return c.TaskSwitch(selector, d, source, nullptr);
}

}  // namespace

bool Core::PushFrame(const uint64_t* values, unsigned count, unsigned size) {
  const uint64_t rsp = state->gpr[x86::kRsp], mask = StackMask();
  for (unsigned i = 1; i <= count; ++i) INTERP_TRY(ProbeWrite(x86::kSs, (rsp - i * size) & mask, size));
  for (unsigned i = 1; i <= count; ++i) INTERP_TRY(WriteSized(x86::kSs, (rsp - i * size) & mask, size, values[i - 1]));
  SetStackPointer(rsp - count * size);
  return true;
}

bool Core::FarJump(uint16_t selector, uint64_t offset, unsigned operand_size) {
  offset = MaskToSize(offset, operand_size);
  if (RealMode(*this)) {
    if (offset > state->segment[x86::kCs].limit) return Gp();
    LoadRealSegment(x86::kCs, selector);
    next_rip = offset;
    return true;
  }
  if ((selector & ~3) == 0) return Gp();
  Descriptor d;
  INTERP_TRY(ReadDescriptor(selector, d, x86::kGeneralProtection));
  const unsigned cpl = state->cpl();
  if (d.code_or_data()) {
    if (!d.is_code()) return Gp(selector & 0xfffc);
    INTERP_TRY(CheckDirectCode(*this, selector, d));
    INTERP_TRY(CheckCodeOffset(d, offset));
    INTERP_TRY(SetDescriptorBits(d, Bit(8)));
    CommitCode(selector, d, cpl);
    next_rip = offset;
    return true;
  }
  if (!IsCallGate(*this, d)) return FarTask(*this, selector, d, TaskSource::kJump);
  GateTarget target;
  INTERP_TRY(CheckCallGate(*this, selector, d, true, target));
  INTERP_TRY(CheckCodeOffset(target.code, target.offset));
  CommitCode(target.selector, target.code, cpl);
  next_rip = target.offset;
  return true;
}

/// The stack of an inner level out of the TSS (SDM 3A 7.2.1, 7.7).
bool Core::TssStack(unsigned cpl, uint16_t& selector, uint64_t& pointer) {
  const uint32_t error = state->tr.selector & 0xfffc;
  if (state->long_mode_active()) {
    const uint32_t at = 4 + cpl * 8;
    if (at + 7 > state->tr.limit) return Ts(error);
    selector = static_cast<uint16_t>(cpl);  // a null selector
    return SystemRead(state->tr.base + at, &pointer, 8);
  }
  const bool wide = state->tr.type() == kTss32Busy || state->tr.type() == kTss32;
  const uint32_t at = wide ? 4 + cpl * 8 : 2 + cpl * 4;
  if (at + (wide ? 5 : 3) > state->tr.limit) return Ts(error);
  pointer = 0;
  INTERP_TRY(SystemRead(state->tr.base + at, &pointer, wide ? 4 : 2));
  return SystemRead(state->tr.base + at + (wide ? 4 : 2), &selector, 2);
}

bool Core::SwitchStack(unsigned cpl, StackSwitch& change) {
  uint16_t selector;
  uint64_t pointer;
  INTERP_TRY(TssStack(cpl, selector, pointer));
  if (state->long_mode_active()) {
    change.Begin();
    code64 = true;
    CommitNull(x86::kSs, selector, cpl);
    state->gpr[x86::kRsp] = pointer;
    return Canonical(pointer) ? true : Ss(0);
  }
  Descriptor d;
  INTERP_TRY(CheckStackSegment(selector, cpl, d, x86::kInvalidTss));
  change.Begin();
  CommitSegment(x86::kSs, selector, d);
  // A 16-bit stack still gets the whole ESP of a 32-bit TSS.
  state->gpr[x86::kRsp] = pointer;
  return true;
}

bool Core::FarCall(uint16_t selector, uint64_t offset, unsigned operand_size) {
  offset = MaskToSize(offset, operand_size);
  const uint64_t old_cs = state->segment[x86::kCs].selector;
  uint64_t frame[40] = {old_cs, next_rip};
  if (RealMode(*this)) {
    if (offset > state->segment[x86::kCs].limit) return Gp();
    INTERP_TRY(PushFrame(frame, 2, operand_size));
    LoadRealSegment(x86::kCs, selector);
    next_rip = offset;
    return true;
  }
  if ((selector & ~3) == 0) return Gp();
  Descriptor d;
  INTERP_TRY(ReadDescriptor(selector, d, x86::kGeneralProtection));
  const unsigned cpl = state->cpl();
  if (d.code_or_data()) {
    if (!d.is_code()) return Gp(selector & 0xfffc);
    INTERP_TRY(CheckDirectCode(*this, selector, d));
    INTERP_TRY(CheckCodeOffset(d, offset));
    INTERP_TRY(SetDescriptorBits(d, Bit(8)));
    INTERP_TRY(PushFrame(frame, 2, operand_size));
    CommitCode(selector, d, cpl);
    next_rip = offset;
    return true;
  }
  if (!IsCallGate(*this, d)) return FarTask(*this, selector, d, TaskSource::kCall);
  GateTarget target;
  INTERP_TRY(CheckCallGate(*this, selector, d, false, target));
  INTERP_TRY(CheckCodeOffset(target.code, target.offset));
  if (target.code.conforming() || target.code.dpl() == cpl) {
    // In IA-32e mode the gate's 64-bit frame goes to the 64-bit view of the stack.
    StackSwitch change(*this);
    change.Begin();
    if (state->long_mode_active()) code64 = true;
    INTERP_TRY(PushFrame(frame, 2, target.size));
    change.Commit();
    CommitCode(target.selector, target.code, cpl);
    next_rip = target.offset;
    return true;
  }
  return CallInner(d, target.code, target.selector, target.offset, target.size);
}

/// CALL through a gate to an inner level: its stack, the caller's SS:ESP, parameters, return address.
bool Core::CallInner(const Descriptor& gate, const Descriptor& code, uint16_t selector, uint64_t offset,
                     unsigned size) {
  const unsigned inner = code.dpl();
  const unsigned parameters = state->long_mode_active() ? 0 : gate.high & 31;
  uint64_t frame[40];
  unsigned count = 0;
  frame[count++] = state->segment[x86::kSs].selector;
  frame[count++] = state->gpr[x86::kRsp];
  for (unsigned i = 0; i < parameters; ++i) {
    // The parameter furthest from the top of the stack is pushed first.
    INTERP_TRY(Peek(size, (parameters - 1 - i) * size, frame[count]));
    ++count;
  }
  frame[count++] = state->segment[x86::kCs].selector;
  frame[count++] = next_rip;
  StackSwitch change(*this);
  INTERP_TRY(SwitchStack(inner, change));
  {
    ModeScope scope(*this, inner);
    const uint32_t error = state->segment[x86::kSs].selector & 0xfffc;
    if (!PushFrame(frame, count, size)) {
      if (fault.vector == x86::kStackFault) fault.error |= error;
      return false;
    }
  }
  change.Commit();
  CommitCode(selector, code, inner);
  next_rip = offset;
  return true;
}

/// The code segment that RET or IRET goes back to.
bool Core::CheckReturnCode(uint16_t selector, Descriptor& d) {
  if ((selector & ~3) == 0) return Gp();
  INTERP_TRY(ReadDescriptor(selector, d, x86::kGeneralProtection));
  const uint32_t error = selector & 0xfffc;
  const unsigned rpl = selector & 3;
  if (!d.is_code() || rpl < state->cpl() || ReservedCode(*this, d)) return Gp(error);
  if (d.conforming() ? d.dpl() > rpl : d.dpl() != rpl) return Gp(error);
  if (!d.present()) return Np(error);
  return SetDescriptorBits(d, Bit(8));
}

/// Back to CS:RIP with SS:RSP out of the frame; every check comes first.
bool Core::ReturnWithStack(uint16_t cs, const Descriptor& code, uint64_t rip, uint16_t ss, uint64_t rsp) {
  const unsigned cpl = cs & 3;
  const bool to64 = state->long_mode_active() && code.long_code();
  Descriptor stack;
  const bool null = (ss & ~3) == 0;
  if (null) {
    if (!to64 || cpl == 3 || (ss & 3u) != cpl) return Gp();
  } else {
    INTERP_TRY(CheckStackSegment(ss, cpl, stack, x86::kGeneralProtection));
  }
  INTERP_TRY(CheckCodeOffset(code, rip));
  const bool outer = cpl > state->cpl();
  CommitCode(cs, code, cpl);
  if (null)
    CommitNull(x86::kSs, ss, cpl);
  else
    CommitSegment(x86::kSs, ss, stack);
  code64 = to64;
  SetStackPointer(rsp);
  if (outer) DropInaccessibleSegments(cpl);
  next_rip = rip;
  return true;
}

bool Core::FarReturn(unsigned size, unsigned release) {
  uint64_t rip, cs_value;
  INTERP_TRY(Peek(size, 0, rip));
  INTERP_TRY(Peek(size, size, cs_value));
  const auto cs = static_cast<uint16_t>(cs_value);
  if (RealMode(*this)) {
    if (rip > state->segment[x86::kCs].limit) return Gp();
    Release(2 * size + release);
    LoadRealSegment(x86::kCs, cs);
    next_rip = rip;
    return true;
  }
  Descriptor code;
  INTERP_TRY(CheckReturnCode(cs, code));
  if ((cs & 3u) == state->cpl()) {
    INTERP_TRY(CheckCodeOffset(code, rip));
    Release(2 * size + release);
    CommitCode(cs, code, cs & 3);
    next_rip = rip;
    return true;
  }
  uint64_t rsp, ss;
  INTERP_TRY(Peek(size, 2 * size + release, rsp));
  INTERP_TRY(Peek(size, 3 * size + release, ss));
  return ReturnWithStack(cs, code, rip, static_cast<uint16_t>(ss), rsp + release);
}

/// What IRET may change of RFLAGS at privilege level `cpl` (SDM 2A "IRET").
void Core::ReturnFlags(uint64_t value, unsigned size, unsigned cpl) {
  uint64_t changeable = rf::kArithmetic | rf::kTf | rf::kDf | rf::kNt;
  if (size > 2) changeable |= rf::kRf | rf::kAc | rf::kId;
  if (cpl <= iopl()) changeable |= rf::kIf;
  if (cpl == 0) changeable |= rf::kIoplMask | (size > 2 ? rf::kVif | rf::kVip : 0);
  WriteFlags(value, changeable);
  keep_rf = size > 2;
}

bool Core::ReturnToVirtual8086(uint64_t rip, uint16_t cs, uint64_t flags) {
  uint64_t values[6];  // ESP SS ES DS FS GS
  for (unsigned i = 0; i < 6; ++i) INTERP_TRY(Peek(4, 12 + i * 4, values[i]));
  if (rip > 0xffff) return Gp();
  state->rflags = (flags & (rf::kArithmetic | rf::kTf | rf::kIf | rf::kDf | rf::kIoplMask | rf::kNt | rf::kRf |
                            rf::kAc | rf::kVif | rf::kVip | rf::kId)) |
                  rf::kVm | rf::kFixed1;
  SetVirtual8086Segment(x86::kCs, cs);
  SetVirtual8086Segment(x86::kSs, static_cast<uint16_t>(values[1]));
  SetVirtual8086Segment(x86::kEs, static_cast<uint16_t>(values[2]));
  SetVirtual8086Segment(x86::kDs, static_cast<uint16_t>(values[3]));
  SetVirtual8086Segment(x86::kFs, static_cast<uint16_t>(values[4]));
  SetVirtual8086Segment(x86::kGs, static_cast<uint16_t>(values[5]));
  state->gpr[x86::kRsp] = values[0];
  next_rip = rip;
  keep_rf = true;
  return true;
}

bool Core::InterruptReturn(unsigned size) {
  const bool real = !state->protected_mode();
  if (state->virtual8086() && iopl() < 3) return Gp();
  if (!real && !state->virtual8086() && (state->rflags & rf::kNt)) {
    if (state->long_mode_active()) return Gp();
    return TaskReturn();
  }
  uint64_t rip, cs_value, flags;
  INTERP_TRY(Peek(size, 0, rip));
  INTERP_TRY(Peek(size, size, cs_value));
  INTERP_TRY(Peek(size, 2 * size, flags));
  const auto cs = static_cast<uint16_t>(cs_value);
  if (real || state->virtual8086()) {
    if (rip > state->segment[x86::kCs].limit) return Gp();
    Release(3 * size);
    LoadRealSegment(x86::kCs, cs);
    uint64_t changeable = rf::kArithmetic | rf::kTf | rf::kIf | rf::kDf | rf::kNt;
    if (real) changeable |= rf::kIoplMask;
    if (size > 2) changeable |= rf::kRf | rf::kAc | rf::kId;
    WriteFlags(flags, changeable);
    keep_rf = size > 2;
    next_rip = rip;
    return true;
  }
  const unsigned cpl = state->cpl();
  if ((flags & rf::kVm) && cpl == 0 && size == 4 && !state->long_mode_active())
    return ReturnToVirtual8086(rip, cs, flags);
  Descriptor code;
  INTERP_TRY(CheckReturnCode(cs, code));
  if (code64 || (cs & 3u) > cpl) {
    uint64_t rsp, ss;
    INTERP_TRY(Peek(size, 3 * size, rsp));
    INTERP_TRY(Peek(size, 4 * size, ss));
    const unsigned old_iopl_cpl = cpl;
    INTERP_TRY(ReturnWithStack(cs, code, rip, static_cast<uint16_t>(ss), rsp));
    ReturnFlags(flags, size, old_iopl_cpl);
    return true;
  }
  INTERP_TRY(CheckCodeOffset(code, rip));
  Release(3 * size);
  CommitCode(cs, code, cpl);
  ReturnFlags(flags, size, cpl);
  next_rip = rip;
  return true;
}

namespace {

bool Iret(Core& c, const Decoded& d) {
  INTERP_TRY(c.InterruptReturn(d.operand_size));
  c.state->nmi_masked = false;
  return true;
}

}  // namespace

void RegisterFar(HandlerTable& t) {
  t.Set(ZYDIS_MNEMONIC_IRET, Iret);
  t.Set(ZYDIS_MNEMONIC_IRETD, Iret);
  t.Set(ZYDIS_MNEMONIC_IRETQ, Iret);
}

}  // namespace nacre::engine::interp
