// Descriptors and segment registers (SDM 3A ch. 3 and 5), LAR LSL VERR VERW ARPL, LLDT LTR.

#include "engine/interp/handlers.h"

namespace nacre::engine::interp {

using x86::Segment;
using x86::SegmentIndex;
namespace rf = x86::rflags;

bool Core::TryDescriptor(uint16_t selector, Descriptor& descriptor, bool& outside) {
  uint64_t base = state->gdtr.base;
  uint32_t limit = state->gdtr.limit;
  outside = (selector & ~3) == 0;
  if (selector & 4) {
    base = state->ldtr.base;
    limit = state->ldtr.limit;
    outside = state->ldtr.unusable();
  }
  const uint32_t at = selector & ~7u;
  if (outside || at + 7 > limit) {
    outside = true;
    return true;
  }
  descriptor = {};
  descriptor.address = base + at;
  return SystemRead(descriptor.address, &descriptor.low, 8);
}

bool Core::ReadDescriptor(uint16_t selector, Descriptor& descriptor, uint8_t fault_vector) {
  bool outside;
  INTERP_TRY(TryDescriptor(selector, descriptor, outside));
  return outside ? FaultCode(fault_vector, selector & 0xfffc) : true;
}

/// The upper half of a 16-byte system descriptor of IA-32e mode; `descriptor` holds the lower.
bool Core::ReadDescriptorTop(uint16_t selector, Descriptor& descriptor, uint8_t fault_vector) {
  const uint32_t limit = selector & 4 ? state->ldtr.limit : state->gdtr.limit;
  if ((selector & ~7u) + 15 > limit) return FaultCode(fault_vector, selector & 0xfffc);
  INTERP_TRY(SystemRead(descriptor.address + 8, &descriptor.upper, 8));
  // The type field of the upper half must be zero (SDM 3A 5.8.3.1, 7.2.3).
  return (descriptor.upper_high & 0x1f00) == 0 ? true : FaultCode(fault_vector, selector & 0xfffc);
}

bool Core::SetDescriptorBits(Descriptor& descriptor, uint32_t high_bits) {
  if ((descriptor.high & high_bits) == high_bits) return true;
  const uint32_t high = descriptor.high | high_bits;
  const auto access = static_cast<uint8_t>(high >> 8);
  INTERP_TRY(SystemWrite(descriptor.address + 5, &access, 1));
  descriptor.high = high;
  return true;
}

void Core::CommitSegment(SegmentIndex index, uint16_t selector, const Descriptor& descriptor) {
  Segment& segment = state->segment[index];
  segment.selector = selector;
  segment.base = descriptor.base();
  segment.limit = descriptor.limit();
  segment.attributes = descriptor.attributes();
}

void Core::CommitCode(uint16_t selector, const Descriptor& descriptor, unsigned cpl) {
  CommitSegment(x86::kCs, static_cast<uint16_t>((selector & ~3) | cpl), descriptor);
}

void Core::CommitNull(SegmentIndex index, uint16_t selector, unsigned dpl) {
  Segment& segment = state->segment[index];
  segment = Segment{};
  segment.selector = selector;
  segment.attributes = Segment::kUnusable | (dpl << 5);
  if (index == x86::kSs) segment.attributes |= Segment::kDb;
}

void Core::LoadRealSegment(SegmentIndex index, uint16_t selector) {
  if (state->virtual8086()) {
    SetVirtual8086Segment(index, selector);
    return;
  }
  Segment& segment = state->segment[index];
  segment.selector = selector;
  segment.base = uint64_t{selector} << 4;
  // Limits and the B bit stay as they are ("unreal mode"); a new CS is an ordinary 16-bit one again.
  if (index == x86::kCs) {
    segment.limit = 0xffff;
    segment.attributes = Segment::kP | Segment::kS | 0xb;
  } else {
    segment.attributes =
        (segment.attributes & (Segment::kDb | Segment::kG | Segment::kAvl)) | Segment::kP | Segment::kS | 3;
  }
}

void Core::SetVirtual8086Segment(SegmentIndex index, uint16_t selector) {
  Segment& segment = state->segment[index];
  segment.selector = selector;
  segment.base = uint64_t{selector} << 4;
  segment.limit = 0xffff;
  segment.attributes = Segment::kP | Segment::kS | 3 | (3 << 5);
}

/// SS is where CPL lives.
void Core::SetCpl(unsigned cpl) {
  Segment& ss = state->segment[x86::kSs];
  ss.attributes = (ss.attributes & ~Segment::kDplMask) | (cpl << 5);
}

/// On a return to an outer level data segments that it may not use become null (SDM 3A 5.8.6).
void Core::DropInaccessibleSegments(unsigned cpl) {
  for (SegmentIndex index : {x86::kEs, x86::kDs, x86::kFs, x86::kGs}) {
    Segment& segment = state->segment[index];
    const bool conforming_code = (segment.type() & 0xc) == 0xc;
    if (segment.unusable() || conforming_code || segment.dpl() >= cpl) continue;
    segment.selector = 0;
    segment.attributes = Segment::kUnusable;
  }
}

/// SS for privilege level `cpl`: writable data with RPL = DPL = cpl.
bool Core::CheckStackSegment(uint16_t selector, unsigned cpl, Descriptor& descriptor, uint8_t fault_vector) {
  if ((selector & ~3) == 0) return FaultCode(fault_vector, 0);
  INTERP_TRY(ReadDescriptor(selector, descriptor, fault_vector));
  const uint32_t error = selector & 0xfffc;
  if ((selector & 3u) != cpl || !descriptor.writable() || descriptor.dpl() != cpl)
    return FaultCode(fault_vector, error);
  if (!descriptor.present()) return Ss(error);
  return SetDescriptorBits(descriptor, Bit(8));
}

bool Core::LoadSegment(SegmentIndex index, uint16_t selector) {
  if (!state->protected_mode() || state->virtual8086()) {
    LoadRealSegment(index, selector);
    return true;
  }
  const unsigned cpl = state->cpl(), rpl = selector & 3;
  const uint32_t error = selector & 0xfffc;
  Descriptor descriptor;
  if (index == x86::kSs) {
    if (error == 0) {
      if (!code64 || cpl == 3 || rpl != cpl) return Gp();
      CommitNull(index, selector, cpl);
      return true;
    }
    INTERP_TRY(CheckStackSegment(selector, cpl, descriptor, x86::kGeneralProtection));
  } else {
    if (error == 0) {
      CommitNull(index, selector, 0);
      return true;
    }
    INTERP_TRY(ReadDescriptor(selector, descriptor, x86::kGeneralProtection));
    if (!descriptor.code_or_data() || !descriptor.readable()) return Gp(error);
    const bool any_level = descriptor.is_code() && descriptor.conforming();
    if (!any_level && (rpl > descriptor.dpl() || cpl > descriptor.dpl())) return Gp(error);
    if (!descriptor.present()) return Np(error);
    INTERP_TRY(SetDescriptorBits(descriptor, Bit(8)));
  }
  CommitSegment(index, selector, descriptor);
  return true;
}

bool Core::CheckCodeOffset(const Descriptor& descriptor, uint64_t offset) {
  const bool long_code = state->long_mode_active() && descriptor.long_code();
  if (long_code ? Canonical(offset) : offset <= descriptor.limit()) return true;
  return Gp();
}

bool MovToSegment(Core& c, const Decoded& d) {
  const auto index = static_cast<SegmentIndex>(d.insn.operand[0].index);
  if (index == x86::kCs) return c.Ud();
  uint16_t selector;
  INTERP_TRY(c.LoadOperand<uint16_t>(d, 1, selector));
  INTERP_TRY(c.LoadSegment(index, selector));
  if (index == x86::kSs) c.shadow_mov_ss = true;
  return true;
}

namespace {

/// Selectors go to memory as 16 bits, to registers zero-extended to the operand size.
bool StoreSelector(Core& c, const Decoded& d, uint64_t value) {
  if (d.insn.operand[0].kind == x86::OperandKind::kMemory)
    return c.StoreOperand<uint16_t>(d, 0, static_cast<uint16_t>(value));
  c.WriteGpr(d.insn.operand[0].index, d.insn.operand[0].size, value);
  return true;
}

}  // namespace

bool MovFromSegment(Core& c, const Decoded& d) {
  return StoreSelector(c, d, c.state->segment[d.insn.operand[1].index].selector);
}

namespace {

template <SegmentIndex kIndex>
bool LoadPointer(Core& c, const Decoded& d) {
  uint8_t bytes[10] = {};
  INTERP_TRY(c.Read(c.OperandSegment(d), c.EffectiveAddress(d), bytes, d.operand_size + 2u));
  uint64_t offset = 0;
  uint16_t selector;
  std::memcpy(&offset, bytes, d.operand_size);
  std::memcpy(&selector, bytes + d.operand_size, 2);
  INTERP_TRY(c.LoadSegment(kIndex, selector));
  c.WriteGpr(d.insn.operand[0].index, d.operand_size, offset);
  return true;
}

/// The protected-mode instructions are not recognised in real and virtual-8086 mode.
bool RequireProtected(Core& c) { return c.state->protected_mode() && !c.state->virtual8086() ? true : c.Ud(); }

bool SystemTypeIsValid(const Core& c, unsigned type, bool gates) {
  if (c.state->long_mode_active())
    return type == kLdt || type == kTss32 || type == kTss32Busy || (gates && type == kCallGate32);
  switch (type) {
    case kTss16:
    case kLdt:
    case kTss16Busy:
    case kTss32:
    case kTss32Busy:
      return true;
    case kCallGate16:
    case kTaskGate:
    case kCallGate32:
      return gates;
    default:
      return false;
  }
}

/// What LAR, LSL, VERR and VERW share: ok false means ZF clear.
bool Inspect(Core& c, uint16_t selector, Descriptor& descriptor, bool& ok) {
  bool outside;
  INTERP_TRY(c.TryDescriptor(selector, descriptor, outside));
  ok = !outside;
  if (!ok) return true;
  const bool any_level = descriptor.is_code() && descriptor.conforming();
  const unsigned rpl = selector & 3;
  if (!any_level && (c.state->cpl() > descriptor.dpl() || rpl > descriptor.dpl())) ok = false;
  return true;
}

void SetZf(Core& c, bool on) { c.state->rflags = on ? c.state->rflags | rf::kZf : c.state->rflags & ~rf::kZf; }

template <bool kLimit>
bool LarLsl(Core& c, const Decoded& d) {
  INTERP_TRY(RequireProtected(c));
  uint16_t selector;
  INTERP_TRY(c.LoadOperand<uint16_t>(d, 1, selector));
  Descriptor descriptor;
  bool ok;
  INTERP_TRY(Inspect(c, selector, descriptor, ok));
  ok = ok && (descriptor.code_or_data() || SystemTypeIsValid(c, descriptor.type(), !kLimit));
  if (ok) c.WriteGpr(d.insn.operand[0].index, d.operand_size, kLimit ? descriptor.limit() : descriptor.high & 0xffff00);
  SetZf(c, ok);
  return true;
}

template <bool kWrite>
bool Verify(Core& c, const Decoded& d) {
  INTERP_TRY(RequireProtected(c));
  uint16_t selector;
  INTERP_TRY(c.LoadOperand<uint16_t>(d, 0, selector));
  Descriptor descriptor;
  bool ok;
  INTERP_TRY(Inspect(c, selector, descriptor, ok));
  SetZf(c, ok && descriptor.code_or_data() && (kWrite ? descriptor.writable() : descriptor.readable()));
  return true;
}

bool Arpl(Core& c, const Decoded& d) {
  INTERP_TRY(RequireProtected(c));
  const uint16_t rpl = c.ReadReg<uint16_t>(d.reg[1]) & 3;
  uint16_t value;
  INTERP_TRY(c.LoadOperand<uint16_t>(d, 0, value));
  const bool raised = (value & 3) < rpl;
  // Memory is written only where something changes.
  if (raised) INTERP_TRY(c.StoreOperand<uint16_t>(d, 0, static_cast<uint16_t>((value & ~3) | rpl)));
  SetZf(c, raised);
  return true;
}

/// LLDT and LTR read a system descriptor, 16 bytes long in IA-32e mode.
bool ReadSystemSegment(Core& c, uint16_t selector, Descriptor& descriptor) {
  if (selector & 4) return c.Gp(selector & 0xfffc);
  INTERP_TRY(c.ReadDescriptor(selector, descriptor, x86::kGeneralProtection));
  if (descriptor.code_or_data()) return c.Gp(selector & 0xfffc);
  if (c.state->long_mode_active()) {
    INTERP_TRY(c.ReadDescriptorTop(selector, descriptor, x86::kGeneralProtection));
    if (!Core::Canonical(descriptor.base64())) return c.Gp(selector & 0xfffc);
  }
  return true;
}

void CommitSystemSegment(const Core& c, Segment& segment, uint16_t selector, const Descriptor& descriptor) {
  segment.selector = selector;
  segment.base = c.state->long_mode_active() ? descriptor.base64() : descriptor.base();
  segment.limit = descriptor.limit();
  segment.attributes = descriptor.attributes();
}

bool Lldt(Core& c, const Decoded& d) {
  INTERP_TRY(RequireProtected(c));
  INTERP_TRY(c.Privileged());
  uint16_t selector;
  INTERP_TRY(c.LoadOperand<uint16_t>(d, 0, selector));
  if ((selector & ~3) == 0) {
    c.state->ldtr = Segment{};
    c.state->ldtr.selector = selector;
    c.state->ldtr.attributes = Segment::kUnusable;
    return true;
  }
  Descriptor descriptor;
  INTERP_TRY(ReadSystemSegment(c, selector, descriptor));
  if (descriptor.type() != kLdt) return c.Gp(selector & 0xfffc);
  if (!descriptor.present()) return c.Np(selector & 0xfffc);
  CommitSystemSegment(c, c.state->ldtr, selector, descriptor);
  return true;
}

bool Ltr(Core& c, const Decoded& d) {
  INTERP_TRY(RequireProtected(c));
  INTERP_TRY(c.Privileged());
  uint16_t selector;
  INTERP_TRY(c.LoadOperand<uint16_t>(d, 0, selector));
  if ((selector & ~3) == 0) return c.Gp();
  Descriptor descriptor;
  INTERP_TRY(ReadSystemSegment(c, selector, descriptor));
  const bool available = descriptor.type() == kTss32 || (descriptor.type() == kTss16 && !c.state->long_mode_active());
  if (!available) return c.Gp(selector & 0xfffc);
  if (!descriptor.present()) return c.Np(selector & 0xfffc);
  INTERP_TRY(c.SetDescriptorBits(descriptor, Bit(9)));  // busy
  CommitSystemSegment(c, c.state->tr, selector, descriptor);
  return true;
}

bool StoreTaskOrLdt(Core& c, const Decoded& d, uint16_t selector) {
  INTERP_TRY(RequireProtected(c));
  if ((c.state->cr4 & x86::cr4::kUmip) && c.state->cpl() != 0) return c.Gp();
  return StoreSelector(c, d, selector);
}
bool Sldt(Core& c, const Decoded& d) { return StoreTaskOrLdt(c, d, c.state->ldtr.selector); }
bool Str(Core& c, const Decoded& d) { return StoreTaskOrLdt(c, d, c.state->tr.selector); }

}  // namespace

void RegisterSegments(HandlerTable& t) {
  t.Set(ZYDIS_MNEMONIC_LES, LoadPointer<x86::kEs>);
  t.Set(ZYDIS_MNEMONIC_LDS, LoadPointer<x86::kDs>);
  t.Set(ZYDIS_MNEMONIC_LSS, LoadPointer<x86::kSs>);
  t.Set(ZYDIS_MNEMONIC_LFS, LoadPointer<x86::kFs>);
  t.Set(ZYDIS_MNEMONIC_LGS, LoadPointer<x86::kGs>);
  t.Set(ZYDIS_MNEMONIC_LAR, LarLsl<false>);
  t.Set(ZYDIS_MNEMONIC_LSL, LarLsl<true>);
  t.Set(ZYDIS_MNEMONIC_VERR, Verify<false>);
  t.Set(ZYDIS_MNEMONIC_VERW, Verify<true>);
  t.Set(ZYDIS_MNEMONIC_ARPL, Arpl);
  t.Set(ZYDIS_MNEMONIC_LLDT, Lldt);
  t.Set(ZYDIS_MNEMONIC_LTR, Ltr);
  t.Set(ZYDIS_MNEMONIC_SLDT, Sldt);
  t.Set(ZYDIS_MNEMONIC_STR, Str);
}

}  // namespace nacre::engine::interp
