// Delivery of exceptions and interrupts: real mode's vector table, protected mode's gates with stack switch and tasks,
// IA-32e mode's with IST; nested faults to double fault and shutdown (SDM 3A ch. 6, table 6-5).

#include "engine/interp/handlers.h"

namespace nacre::engine::interp {

using x86::SegmentIndex;
namespace rf = x86::rflags;

namespace {

bool Contributory(uint8_t vector) {
  return vector == x86::kDivideError || (vector >= x86::kInvalidTss && vector <= x86::kGeneralProtection) ||
         vector == x86::kControlProtection;
}

/// The error code that names an IDT entry; EXT is added by Core::FaultCode.
uint32_t IdtError(uint8_t vector) { return vector * 8u + 2; }

bool DeliverReal(Core& c, const Event& event) {
  x86::CpuState& s = *c.state;
  if (event.vector * 4u + 3 > s.idtr.limit) return c.Gp(IdtError(event.vector));
  uint16_t entry[2];
  INTERP_TRY(c.SystemRead(s.idtr.base + event.vector * 4u, entry, 4));
  const uint64_t flags = s.rflags | (event.set_rf ? rf::kRf : 0);
  const uint64_t frame[3] = {flags, s.segment[x86::kCs].selector, event.return_rip};
  INTERP_TRY(c.PushFrame(frame, 3, 2));
  s.rflags &= ~(rf::kIf | rf::kTf | rf::kAc | rf::kRf);
  c.LoadRealSegment(x86::kCs, entry[1]);
  s.rip = entry[0];
  return true;
}

struct Gate {
  Descriptor descriptor;
  bool interrupt = false;  ///< clears IF
  unsigned size = 4;       ///< of what is pushed
  uint16_t selector = 0;
  uint64_t offset = 0;
};

bool ReadGate(Core& c, const Event& event, Gate& gate) {
  const x86::CpuState& s = *c.state;
  const bool long_mode = s.long_mode_active();
  const uint32_t error = IdtError(event.vector);
  const unsigned bytes = long_mode ? 16 : 8;
  if (event.vector * bytes + bytes - 1 > s.idtr.limit) return c.Gp(error);
  INTERP_TRY(c.SystemRead(s.idtr.base + event.vector * bytes, &gate.descriptor.low, bytes));
  const Descriptor& d = gate.descriptor;
  const unsigned type = d.type();
  const bool known = type == kInterruptGate32 || type == kTrapGate32 ||
                     (!long_mode && (type == kTaskGate || type == kInterruptGate16 || type == kTrapGate16));
  if (d.code_or_data() || !known) return c.Gp(error);
  if (event.kind == Event::Kind::kSoftware && d.dpl() < s.cpl()) return c.Gp(error);
  if (!d.present()) return c.Np(error);
  gate.interrupt = type == kInterruptGate32 || type == kInterruptGate16;
  gate.size = long_mode ? 8 : (type & 8) ? 4 : 2;
  gate.selector = d.gate_selector();
  gate.offset = long_mode ? d.gate_offset64() : (type & 8) ? d.gate_offset() : d.gate_offset() & 0xffff;
  return true;
}

bool ReadHandlerCode(Core& c, const Gate& gate, Descriptor& code) {
  if ((gate.selector & ~3) == 0) return c.Gp();
  INTERP_TRY(c.ReadDescriptor(gate.selector, code, x86::kGeneralProtection));
  const uint32_t error = gate.selector & 0xfffc;
  if (!code.is_code() || code.dpl() > c.state->cpl()) return c.Gp(error);
  if (c.state->long_mode_active() && (!code.long_code() || code.big())) return c.Gp(error);
  if (!code.present()) return c.Np(error);
  return c.SetDescriptorBits(code, Bit(8));
}

/// IA-32e mode's stack: IST, the inner level's, or the present one; always 16-byte aligned and 64 bits wide.
bool SwitchLongStack(Core& c, const Gate& gate, unsigned level, StackSwitch& change) {
  x86::CpuState& s = *c.state;
  const unsigned ist = gate.descriptor.high & 7;
  const bool inner = level != s.cpl();
  uint64_t pointer = s.gpr[x86::kRsp];
  if (ist != 0) {
    const uint32_t at = 0x24 + (ist - 1) * 8;
    if (at + 7 > s.tr.limit) return c.Ts(s.tr.selector & 0xfffc);
    INTERP_TRY(c.SystemRead(s.tr.base + at, &pointer, 8));
  } else if (inner) {
    uint16_t selector;
    INTERP_TRY(c.TssStack(level, selector, pointer));
  }
  change.Begin();
  c.code64 = true;
  if (inner) c.CommitNull(x86::kSs, static_cast<uint16_t>(level), level);
  if (!Core::Canonical(pointer)) return c.Ss();
  s.gpr[x86::kRsp] = pointer & ~uint64_t{15};
  return true;
}

void ClearDataSegments(Core& c) {
  for (SegmentIndex index : {x86::kEs, x86::kDs, x86::kFs, x86::kGs}) c.CommitNull(index, 0, 0);
}

bool DeliverThroughGate(Core& c, const Event& event, const Gate& gate) {
  x86::CpuState& s = *c.state;
  Descriptor code;
  INTERP_TRY(ReadHandlerCode(c, gate, code));
  const bool long_mode = s.long_mode_active();
  const bool from_virtual = s.virtual8086();
  const unsigned cpl = s.cpl();
  const unsigned level = code.conforming() ? cpl : code.dpl();
  if (from_virtual && level != 0) return c.Gp(gate.selector & 0xfffc);
  INTERP_TRY(c.CheckCodeOffset(code, gate.offset));
  const bool inner = level < cpl;

  uint64_t frame[10];
  unsigned count = 0;
  if (from_virtual)
    for (SegmentIndex index : {x86::kGs, x86::kFs, x86::kDs, x86::kEs}) frame[count++] = s.segment[index].selector;
  if (inner || long_mode) {
    frame[count++] = s.segment[x86::kSs].selector;
    frame[count++] = s.gpr[x86::kRsp];
  }
  frame[count++] = s.rflags | (event.set_rf ? rf::kRf : 0);
  frame[count++] = s.segment[x86::kCs].selector;
  frame[count++] = event.return_rip;
  if (event.has_error) frame[count++] = event.error;

  StackSwitch change(c);
  if (long_mode) {
    INTERP_TRY(SwitchLongStack(c, gate, level, change));
  } else if (inner) {
    INTERP_TRY(c.SwitchStack(level, change));
  } else {
    change.Begin();
  }
  {
    ModeScope scope(c, level);
    // Virtual-8086 mode's segments are left only after the frame is written: the flag decides how SS is checked.
    const uint64_t flags = s.rflags;
    s.rflags &= ~rf::kVm;
    if (!c.PushFrame(frame, count, gate.size)) {
      s.rflags = flags;
      if (inner && c.fault.vector == x86::kStackFault) c.fault.error |= s.segment[x86::kSs].selector & 0xfffc;
      return false;
    }
  }
  change.Commit();
  c.CommitCode(gate.selector, code, level);
  if (from_virtual) ClearDataSegments(c);
  s.rflags &= ~(rf::kTf | rf::kNt | rf::kRf | rf::kVm | (gate.interrupt ? rf::kIf : 0));
  s.rip = gate.offset;
  return true;
}

}  // namespace

bool Core::DeliverOnce(const Event& event) {
  external = event.kind != Event::Kind::kSoftware;
  bool ok;
  if (!state->protected_mode()) {
    ok = DeliverReal(*this, event);
  } else {
    Gate gate;
    ok = ReadGate(*this, event, gate);
    if (ok && gate.descriptor.type() == kTaskGate) {
      ok = TaskGate(gate.descriptor, 0, TaskSource::kEvent, &event);
      if (ok) state->rip = next_rip;
    } else if (ok) {
      ok = DeliverThroughGate(*this, event, gate);
    }
  }
  external = false;
  return ok;
}

StepResult Core::DeliverFault() {
  Event event;
  event.vector = fault.vector;
  event.has_error = fault.has_error;
  event.error = fault.error;
  event.return_rip = state->rip;
  // Faults push RF set; #DB, traps and what came in between instructions do not (SDM 3B 17.3.1.1).
  event.set_rf = !fault.trap && fault.vector != x86::kDebug;
  if (fault.vector == x86::kPageFault) state->cr2 = fault.cr2;
  return DeliverEvent(event);
}

StepResult Core::DeliverEvent(Event event) {
  state->interrupt_shadow = state->shadow_is_mov_ss = false;
  // Benign and other faults may follow each other without end (#PF pushing for #AC, which pushes for #PF, ...), and on
  // hardware do. Here the loop goes through the caller, who sees requests: the instruction faults again.
  constexpr unsigned kMostInOneStep = 64;
  for (unsigned delivered = 0; delivered < kMostInOneStep; ++delivered) {
    if (event.vector == x86::kDebug && event.kind == Event::Kind::kException) state->dr7 &= ~Bit(13);  // GD
    if (DeliverOnce(event)) {
      UpdateAccessMode();
      if (task_trap) {  // the T bit of a task that took the event: #DB before its first instruction
        task_trap = false;
        state->dr6 |= Bit(15);
        state->pending_debug = true;
      }
      return StepResult::kOk;
    }
    if (fault.vector == x86::kPageFault) state->cr2 = fault.cr2;
    const bool exception = event.kind == Event::Kind::kException;
    if (exception && event.vector == x86::kDoubleFault) return StepResult::kShutdown;
    const bool second_serious = Contributory(fault.vector) || fault.vector == x86::kPageFault;
    const bool doubled = exception && ((Contributory(event.vector) && Contributory(fault.vector)) ||
                                       (event.vector == x86::kPageFault && second_serious));
    Event next;
    next.vector = doubled ? static_cast<uint8_t>(x86::kDoubleFault) : fault.vector;
    next.has_error = doubled || fault.has_error;
    next.error = doubled ? 0 : fault.error;
    next.return_rip = state->rip;
    next.set_rf = true;
    event = next;
    UpdateAccessMode();
  }
  return StepResult::kOk;
}

bool Core::SoftwareInterrupt(uint8_t vector) {
  Event event;
  event.vector = vector;
  event.kind = Event::Kind::kSoftware;
  event.return_rip = next_rip;
  INTERP_TRY(DeliverOnce(event));
  next_rip = state->rip;
  no_trap = true;
  return true;
}

namespace {

bool Int(Core& c, const Decoded& d) {
  if (c.state->virtual8086() && c.iopl() < 3) return c.Gp();
  return c.SoftwareInterrupt(static_cast<uint8_t>(d.insn.immediate));
}
bool Int3(Core& c, const Decoded&) { return c.SoftwareInterrupt(x86::kBreakpoint); }
bool Into(Core& c, const Decoded&) { return !(c.state->rflags & rf::kOf) || c.SoftwareInterrupt(x86::kOverflow); }

/// INT1 is a #DB trap that asks no gate's DPL and leaves DR6 alone.
bool Int1(Core& c, const Decoded&) {
  Event event;
  event.vector = x86::kDebug;
  event.return_rip = c.next_rip;
  c.state->dr7 &= ~Bit(13);
  INTERP_TRY(c.DeliverOnce(event));
  c.next_rip = c.state->rip;
  c.no_trap = true;
  return true;
}

bool Bound(Core& c, const Decoded& d) {
  const unsigned size = d.operand_size;
  uint8_t bytes[8] = {};
  INTERP_TRY(c.Read(c.OperandSegment(d), c.EffectiveAddress(d), bytes, size * 2));
  uint64_t low = 0, high = 0;
  std::memcpy(&low, bytes, size);
  std::memcpy(&high, bytes + size, size);
  const auto index = static_cast<int64_t>(SignExtend(c.ReadGpr(d.insn.operand[0].index, size), size * 8));
  const bool inside = index >= static_cast<int64_t>(SignExtend(low, size * 8)) &&
                      index <= static_cast<int64_t>(SignExtend(high, size * 8));
  return inside ? true : c.Fault(x86::kBoundRange);
}

}  // namespace

void RegisterInterrupts(HandlerTable& t) {
  t.Set(ZYDIS_MNEMONIC_INT, Int);
  t.Set(ZYDIS_MNEMONIC_INT3, Int3);
  t.Set(ZYDIS_MNEMONIC_INTO, Into);
  t.Set(ZYDIS_MNEMONIC_INT1, Int1);
  t.Set(ZYDIS_MNEMONIC_BOUND, Bound);
}

}  // namespace nacre::engine::interp
