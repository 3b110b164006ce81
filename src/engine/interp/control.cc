// Control and debug registers, descriptor-table registers, TLB instructions (SDM 3A ch. 2, 3B 17.2).

#include "engine/interp/handlers.h"

namespace nacre::engine::interp {

using x86::Segment;
namespace cr0 = x86::cr0;
namespace cr4 = x86::cr4;
namespace efer = x86::efer;
namespace rf = x86::rflags;

bool Core::WriteCr0(uint64_t value) {
  x86::CpuState& s = *state;
  if (value >> 32) return Gp();
  constexpr uint64_t kKnown = cr0::kPe | cr0::kMp | cr0::kEm | cr0::kTs | cr0::kEt | cr0::kNe | cr0::kWp | cr0::kAm |
                              cr0::kNw | cr0::kCd | cr0::kPg;
  value = (value & kKnown) | cr0::kEt;
  const uint64_t changed = value ^ s.cr0;
  const bool paging = value & cr0::kPg;
  if (paging && !(value & cr0::kPe)) return Gp();
  if ((value & cr0::kNw) && !(value & cr0::kCd)) return Gp();
  if (!paging && ((s.cr4 & cr4::kPcide) || code64)) return Gp();
  const bool starts_paging = paging && (changed & cr0::kPg);
  const bool to_long = starts_paging && (s.msr.efer & efer::kLme);
  if (to_long) {
    const bool tss16 = !s.tr.unusable() && (s.tr.type() == kTss16 || s.tr.type() == kTss16Busy);
    if (!(s.cr4 & cr4::kPae) || (s.segment[x86::kCs].attributes & Segment::kL) || tss16) return Gp();
  }
  if (paging && !to_long && !s.long_mode_active() && (s.cr4 & cr4::kPae) &&
      (changed & (cr0::kPg | cr0::kCd | cr0::kNw)) &&
      !x86::LoadPdptes(*config.memory, s, s.cr3, config.model->physical_address_bits()))
    return Gp();
  if (to_long) s.msr.efer |= efer::kLma;
  if (!paging) s.msr.efer &= ~efer::kLma;
  s.cr0 = value;
  if (changed & (cr0::kPg | cr0::kWp | cr0::kPe)) NotifyFlush(true);
  return true;
}

bool Core::WriteCr3(uint64_t value) {
  x86::CpuState& s = *state;
  bool keep = false;
  if (s.long_mode_active()) {
    keep = (s.cr4 & cr4::kPcide) && (value & Bit(63));
    if (keep) value &= ~Bit(63);
    if (value >> config.model->physical_address_bits()) return Gp();
  } else {
    value &= 0xffffffff;
    if (s.paging() && (s.cr4 & cr4::kPae) &&
        !x86::LoadPdptes(*config.memory, s, value, config.model->physical_address_bits()))
      return Gp();
  }
  s.cr3 = value;
  // Our own TLB knows no PCIDs: bit 63 ("keep what this PCID has") is a permission that is not used.
  FlushTlb();
  if (listener) listener->OnAddressSpace(pcid(), keep);
  return true;
}

bool Core::WriteCr4(uint64_t value) {
  x86::CpuState& s = *state;
  if (value & ~config.model->cr4_mask()) return Gp();
  const uint64_t changed = value ^ s.cr4;
  if (s.long_mode_active() && !(value & cr4::kPae)) return Gp();
  if ((changed & value & cr4::kPcide) && (!s.long_mode_active() || (s.cr3 & 0xfff) != 0)) return Gp();
  constexpr uint64_t kPaging = cr4::kPae | cr4::kPge | cr4::kPse | cr4::kSmep | cr4::kPcide | cr4::kSmap;
  if (s.paging() && !s.long_mode_active() && (value & cr4::kPae) &&
      (changed & (cr4::kPae | cr4::kPge | cr4::kPse | cr4::kSmep)) &&
      !x86::LoadPdptes(*config.memory, s, s.cr3, config.model->physical_address_bits()))
    return Gp();
  s.cr4 = value;
  if (changed & kPaging) NotifyFlush(true);
  return true;
}

namespace {

/// General registers of MOV CR and MOV DR are 64 bits wide in 64-bit mode, 32 elsewhere, whatever the prefixes.
unsigned RegisterSize(const Core& c) { return c.code64 ? 8 : 4; }

}  // namespace

bool MovToControl(Core& c, const Decoded& d) {
  const unsigned number = d.insn.operand[0].index;
  if (number != 0 && number != 2 && number != 3 && number != 4 && number != 8) return c.Ud();
  INTERP_TRY(c.Privileged());
  const uint64_t value = c.ReadGpr(d.insn.operand[1].index, RegisterSize(c));
  switch (number) {
    case 0:
      return c.WriteCr0(value);
    case 2:
      c.state->cr2 = value;
      return true;
    case 3:
      return c.WriteCr3(value);
    case 4:
      return c.WriteCr4(value);
    default:
      if (value > 15) return c.Gp();
      c.config.host->WriteCr8(value);
      return true;
  }
}

bool MovFromControl(Core& c, const Decoded& d) {
  uint64_t value;
  const unsigned number = d.insn.operand[1].index;
  if (number != 0 && number != 2 && number != 3 && number != 4 && number != 8) return c.Ud();
  INTERP_TRY(c.Privileged());
  switch (number) {
    case 0:
      value = c.state->cr0;
      break;
    case 2:
      value = c.state->cr2;
      break;
    case 3:
      value = c.state->cr3;
      break;
    case 4:
      value = c.state->cr4;
      break;
    default:
      value = c.config.host->ReadCr8();
      break;
  }
  c.WriteGpr(d.insn.operand[0].index, RegisterSize(c), value);
  return true;
}

namespace {

constexpr uint64_t kDr6Fixed = 0xffff0ff0, kDr6Known = 0xe00f, kDr7Known = 0xffff23ff, kDr7Fixed = 0x400;

/// What MOV DR checks in both directions; maps DR4 and DR5 to DR6 and DR7 (SDM 3B 17.2.2).
bool DebugRegister(Core& c, unsigned& number) {
  if (number > 7) return c.Ud();
  if (number == 4 || number == 5) {
    if (c.state->cr4 & cr4::kDe) return c.Ud();
    number += 2;
  }
  INTERP_TRY(c.Privileged());
  if (c.state->dr7 & Bit(13)) {  // GD
    c.state->dr6 |= Bit(13);     // BD
    return c.Fault(x86::kDebug);
  }
  return true;
}

}  // namespace

bool MovToDebug(Core& c, const Decoded& d) {
  unsigned number = d.insn.operand[0].index;
  INTERP_TRY(DebugRegister(c, number));
  const uint64_t value = c.ReadGpr(d.insn.operand[1].index, RegisterSize(c));
  if (number < 4) {
    c.state->dr[number] = value;
    return true;
  }
  if (value >> 32) return c.Gp();
  if (number == 6)
    c.state->dr6 = (value & kDr6Known) | kDr6Fixed;
  else
    c.state->dr7 = (value & kDr7Known) | kDr7Fixed;
  return true;
}

bool MovFromDebug(Core& c, const Decoded& d) {
  unsigned number = d.insn.operand[1].index;
  INTERP_TRY(DebugRegister(c, number));
  const uint64_t value = number < 4 ? c.state->dr[number] : number == 6 ? c.state->dr6 : c.state->dr7;
  c.WriteGpr(d.insn.operand[0].index, RegisterSize(c), value);
  return true;
}

namespace {

bool Clts(Core& c, const Decoded&) {
  INTERP_TRY(c.Privileged());
  c.state->cr0 &= ~cr0::kTs;
  return true;
}

bool UserModePrevented(Core& c) { return (c.state->cr4 & cr4::kUmip) && c.state->cpl() != 0 ? c.Gp() : true; }

bool Smsw(Core& c, const Decoded& d) {
  INTERP_TRY(UserModePrevented(c));
  if (d.insn.operand[0].kind == x86::OperandKind::kMemory)
    return c.StoreOperand<uint16_t>(d, 0, static_cast<uint16_t>(c.state->cr0));
  c.WriteGpr(d.insn.operand[0].index, d.insn.operand[0].size, c.state->cr0);
  return true;
}

bool Lmsw(Core& c, const Decoded& d) {
  INTERP_TRY(c.Privileged());
  uint16_t value;
  INTERP_TRY(c.LoadOperand<uint16_t>(d, 0, value));
  // PE MP EM TS; PE can be set but not cleared.
  const uint64_t low = (value & 0xf) | (c.state->cr0 & cr0::kPe);
  return c.WriteCr0((c.state->cr0 & ~uint64_t{0xf}) | low);
}

template <x86::DescriptorTable x86::CpuState::*kTable>
bool LoadTable(Core& c, const Decoded& d) {
  INTERP_TRY(c.Privileged());
  uint8_t bytes[10] = {};
  const unsigned base_size = c.code64 ? 8 : 4;
  INTERP_TRY(c.Read(c.OperandSegment(d), c.EffectiveAddress(d), bytes, 2 + base_size));
  uint64_t base = 0;
  std::memcpy(&base, bytes + 2, base_size);
  if (!c.code64 && d.operand_size == 2) base &= 0xffffff;
  if (!Core::Canonical(base) && c.code64) return c.Gp();
  (c.state->*kTable).limit = LoadLe<uint16_t>(bytes);
  (c.state->*kTable).base = base;
  return true;
}

template <x86::DescriptorTable x86::CpuState::*kTable>
bool StoreTable(Core& c, const Decoded& d) {
  INTERP_TRY(UserModePrevented(c));
  uint8_t bytes[10];
  StoreLe<uint16_t>(bytes, (c.state->*kTable).limit);
  StoreLe<uint64_t>(bytes + 2, (c.state->*kTable).base);
  return c.Write(c.OperandSegment(d), c.EffectiveAddress(d), bytes, c.code64 ? 10 : 6);
}

bool Invlpg(Core& c, const Decoded& d) {
  INTERP_TRY(c.Privileged());
  uint64_t linear = c.EffectiveAddress(d);
  if (c.code64) {
    if (d.insn.segment >= x86::kFs) linear += c.state->segment[d.insn.segment].base;
    if (!Core::Canonical(linear)) return true;  // a NOP (SDM 2A "INVLPG")
  } else {
    linear = (linear + c.state->segment[d.insn.segment].base) & 0xffffffff;
  }
  c.FlushTlbPage(linear);
  if (c.listener) c.listener->OnTlbFlushPage(GuestVirt(linear));
  return true;
}

bool Invpcid(Core& c, const Decoded& d) {
  INTERP_TRY(c.Privileged());
  const uint64_t type = c.ReadGpr(d.insn.operand[0].index, c.code64 ? 8 : 4);
  uint64_t descriptor[2];
  INTERP_TRY(c.Read(c.OperandSegment(d), c.EffectiveAddress(d), descriptor, 16));
  const uint64_t pcid = descriptor[0], linear = descriptor[1];
  if (type > 3) return c.Gp();
  if (type < 2 && (pcid >> 12) != 0) return c.Gp();
  if (type < 2 && pcid != 0 && !(c.state->cr4 & cr4::kPcide)) return c.Gp();
  if (type == 0 && !Core::Canonical(linear)) return c.Gp();
  const auto of = static_cast<uint16_t>(pcid);
  switch (type) {
    case 0:
      if (pcid == c.pcid()) c.FlushTlbPage(linear);
      if (c.listener) c.listener->OnTlbFlushPcidPage(of, GuestVirt(linear));
      return true;
    case 1:
      if (pcid == c.pcid()) c.FlushTlb();
      if (c.listener) c.listener->OnTlbFlushPcid(of);
      return true;
    default:
      c.NotifyFlush(type == 2);
      return true;
  }
}

bool WriteBack(Core& c, const Decoded&) { return c.Privileged(); }

bool Halt(Core& c, const Decoded&) {
  INTERP_TRY(c.Privileged());
  c.halt = true;
  return true;
}

// ---- XCR0.

bool Xgetbv(Core& c, const Decoded&) {
  if (!(c.state->cr4 & cr4::kOsXsave)) return c.Ud();
  const auto index = static_cast<uint32_t>(c.state->gpr[x86::kRcx]);
  // Index 1 (XINUSE) exists with XSAVEC's CPUID bit; every component counts as in use.
  if (index > 1 || (index == 1 && !c.config.model->HasFeature(0xd, 1, 'a', 2))) return c.Gp();
  c.state->gpr[x86::kRax] = c.state->xcr0 & 0xffffffff;
  c.state->gpr[x86::kRdx] = c.state->xcr0 >> 32;
  return true;
}

bool Xsetbv(Core& c, const Decoded&) {
  if (!(c.state->cr4 & cr4::kOsXsave)) return c.Ud();
  INTERP_TRY(c.Privileged());
  const uint64_t value = (c.state->gpr[x86::kRdx] << 32) | (c.state->gpr[x86::kRax] & 0xffffffff);
  constexpr uint64_t kX87 = 1, kSse = 2, kAvx = 4, kAvx512 = 0xe0;
  if (static_cast<uint32_t>(c.state->gpr[x86::kRcx]) != 0 || (value & ~c.config.model->xcr0_mask())) return c.Gp();
  if (!(value & kX87) || ((value & kAvx) && !(value & kSse))) return c.Gp();
  if ((value & kAvx512) && ((value & kAvx512) != kAvx512 || !(value & kAvx))) return c.Gp();
  c.state->xcr0 = value;
  return true;
}

}  // namespace

void RegisterControl(HandlerTable& t) {
  t.Set(ZYDIS_MNEMONIC_CLTS, Clts);
  t.Set(ZYDIS_MNEMONIC_SMSW, Smsw);
  t.Set(ZYDIS_MNEMONIC_LMSW, Lmsw);
  t.Set(ZYDIS_MNEMONIC_LGDT, LoadTable<&x86::CpuState::gdtr>);
  t.Set(ZYDIS_MNEMONIC_LIDT, LoadTable<&x86::CpuState::idtr>);
  t.Set(ZYDIS_MNEMONIC_SGDT, StoreTable<&x86::CpuState::gdtr>);
  t.Set(ZYDIS_MNEMONIC_SIDT, StoreTable<&x86::CpuState::idtr>);
  t.Set(ZYDIS_MNEMONIC_INVLPG, Invlpg);
  t.Set(ZYDIS_MNEMONIC_INVPCID, Invpcid);
  t.Set(ZYDIS_MNEMONIC_INVD, WriteBack);
  t.Set(ZYDIS_MNEMONIC_WBINVD, WriteBack);
  t.Set(ZYDIS_MNEMONIC_HLT, Halt);
  t.Set(ZYDIS_MNEMONIC_XGETBV, Xgetbv);
  t.Set(ZYDIS_MNEMONIC_XSETBV, Xsetbv);
}

}  // namespace nacre::engine::interp
