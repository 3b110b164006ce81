#include "engine/kvm/kvm_state.h"

#include <cpuid.h>

#include <algorithm>
#include <cstring>

namespace nacre::engine::kvm {

using x86::CpuState;
using x86::LocalApicState;
using x86::Segment;
using x86::XsaveArea;

namespace {

/// Places in KVM's legacy region (SDM 1 13.4.1) and header.
constexpr size_t kLegacyBytes = 512, kXstateBv = 512, kMxcsr = 24;
constexpr uint32_t kInitialMxcsr = 0x1f80;
constexpr uint16_t kInitialFcw = 0x37f;

kvm_segment ToKvm(const Segment& from) {
  kvm_segment to{};
  to.base = from.base;
  to.limit = from.limit;
  to.selector = from.selector;
  to.type = from.attributes & Segment::kTypeMask;
  to.s = (from.attributes & Segment::kS) != 0;
  to.dpl = static_cast<uint8_t>(from.dpl());
  to.present = from.present();
  to.avl = (from.attributes & Segment::kAvl) != 0;
  to.l = (from.attributes & Segment::kL) != 0;
  to.db = from.big();
  to.g = (from.attributes & Segment::kG) != 0;
  to.unusable = from.unusable();
  return to;
}

Segment FromKvm(const kvm_segment& from) {
  Segment to;
  to.base = from.base;
  to.limit = from.limit;
  to.selector = from.selector;
  const auto flag = [](uint8_t value, uint32_t bit) { return value ? bit : 0; };
  to.attributes = (from.type & Segment::kTypeMask) | flag(from.s, Segment::kS) | (from.dpl & 3u) << 5 |
                  flag(from.present, Segment::kP) | flag(from.avl, Segment::kAvl) | flag(from.l, Segment::kL) |
                  flag(from.db, Segment::kDb) | flag(from.g, Segment::kG) | flag(from.unusable, Segment::kUnusable);
  return to;
}

uint32_t Word(const kvm_lapic_state& registers, unsigned number) {
  uint32_t value;
  std::memcpy(&value, registers.regs + 16 * number, sizeof value);
  return value;
}

void SetWord(kvm_lapic_state& registers, unsigned number, uint32_t value) {
  std::memcpy(registers.regs + 16 * number, &value, sizeof value);
}

// Register numbers: offset in the page >> 4 (SDM 3A table 11-1).
constexpr unsigned kId = 0x02, kVersion = 0x03, kTpr = 0x08, kLdr = 0x0d, kDfr = 0x0e, kSvr = 0x0f, kIsr = 0x10,
                   kTmr = 0x18, kIrr = 0x20, kEsr = 0x28, kIcrLow = 0x30, kIcrHigh = 0x31, kInitialCount = 0x38,
                   kCurrentCount = 0x39, kDivide = 0x3e;
/// By LocalApicState::Lvt.
constexpr unsigned kLvt[LocalApicState::kLvtCount] = {0x32, 0x33, 0x34, 0x35, 0x36, 0x37};
constexpr uint32_t kVersionValue = 0x00050014;  // as our own model's
constexpr uint64_t kX2ApicEnabled = 1 << 10;

}  // namespace

void ToKvm(const CpuState& state, kvm_regs& regs) {
  const uint64_t* gpr = state.gpr;
  regs.rax = gpr[x86::kRax];
  regs.rbx = gpr[x86::kRbx];
  regs.rcx = gpr[x86::kRcx];
  regs.rdx = gpr[x86::kRdx];
  regs.rsi = gpr[x86::kRsi];
  regs.rdi = gpr[x86::kRdi];
  regs.rsp = gpr[x86::kRsp];
  regs.rbp = gpr[x86::kRbp];
  regs.r8 = gpr[x86::kR8];
  regs.r9 = gpr[x86::kR9];
  regs.r10 = gpr[x86::kR10];
  regs.r11 = gpr[x86::kR11];
  regs.r12 = gpr[x86::kR12];
  regs.r13 = gpr[x86::kR13];
  regs.r14 = gpr[x86::kR14];
  regs.r15 = gpr[x86::kR15];
  regs.rip = state.rip;
  regs.rflags = state.rflags;
}

void FromKvm(const kvm_regs& regs, CpuState& state) {
  uint64_t* gpr = state.gpr;
  gpr[x86::kRax] = regs.rax;
  gpr[x86::kRbx] = regs.rbx;
  gpr[x86::kRcx] = regs.rcx;
  gpr[x86::kRdx] = regs.rdx;
  gpr[x86::kRsi] = regs.rsi;
  gpr[x86::kRdi] = regs.rdi;
  gpr[x86::kRsp] = regs.rsp;
  gpr[x86::kRbp] = regs.rbp;
  gpr[x86::kR8] = regs.r8;
  gpr[x86::kR9] = regs.r9;
  gpr[x86::kR10] = regs.r10;
  gpr[x86::kR11] = regs.r11;
  gpr[x86::kR12] = regs.r12;
  gpr[x86::kR13] = regs.r13;
  gpr[x86::kR14] = regs.r14;
  gpr[x86::kR15] = regs.r15;
  state.rip = regs.rip;
  state.rflags = regs.rflags | x86::rflags::kFixed1;
}

void ToKvm(const CpuState& state, kvm_sregs2& sregs) {
  sregs.es = ToKvm(state.segment[x86::kEs]);
  sregs.cs = ToKvm(state.segment[x86::kCs]);
  sregs.ss = ToKvm(state.segment[x86::kSs]);
  sregs.ds = ToKvm(state.segment[x86::kDs]);
  sregs.fs = ToKvm(state.segment[x86::kFs]);
  sregs.gs = ToKvm(state.segment[x86::kGs]);
  sregs.ldt = ToKvm(state.ldtr);
  sregs.tr = ToKvm(state.tr);
  sregs.gdt.base = state.gdtr.base;
  sregs.gdt.limit = state.gdtr.limit;
  sregs.idt.base = state.idtr.base;
  sregs.idt.limit = state.idtr.limit;
  sregs.cr0 = state.cr0;
  sregs.cr2 = state.cr2;
  sregs.cr3 = state.cr3;
  sregs.cr4 = state.cr4;
  sregs.efer = state.msr.efer;
  const bool pae = state.paging() && (state.cr4 & x86::cr4::kPae) && !state.long_mode_active();
  sregs.flags = pae ? KVM_SREGS2_FLAGS_PDPTRS_VALID : 0;
  std::copy_n(state.pdpte, 4, sregs.pdptrs);
}

void FromKvm(const kvm_sregs2& sregs, CpuState& state) {
  state.segment[x86::kEs] = FromKvm(sregs.es);
  state.segment[x86::kCs] = FromKvm(sregs.cs);
  state.segment[x86::kSs] = FromKvm(sregs.ss);
  state.segment[x86::kDs] = FromKvm(sregs.ds);
  state.segment[x86::kFs] = FromKvm(sregs.fs);
  state.segment[x86::kGs] = FromKvm(sregs.gs);
  state.ldtr = FromKvm(sregs.ldt);
  state.tr = FromKvm(sregs.tr);
  state.gdtr = {sregs.gdt.base, sregs.gdt.limit};
  state.idtr = {sregs.idt.base, sregs.idt.limit};
  state.cr0 = sregs.cr0;
  state.cr2 = sregs.cr2;
  state.cr3 = sregs.cr3;
  state.cr4 = sregs.cr4;
  state.msr.efer = sregs.efer;
  if (sregs.flags & KVM_SREGS2_FLAGS_PDPTRS_VALID) std::copy_n(sregs.pdptrs, 4, state.pdpte);
}

void ToKvm(const CpuState& state, kvm_debugregs& registers) {
  registers = {};
  std::copy_n(state.dr, 4, registers.db);
  registers.dr6 = state.dr6;
  registers.dr7 = state.dr7;
}

void FromKvm(const kvm_debugregs& registers, CpuState& state) {
  std::copy_n(registers.db, 4, state.dr);
  state.dr6 = registers.dr6;
  state.dr7 = registers.dr7;
}

const HostXsaveLayout& HostXsave() {
  static const HostXsaveLayout layout = [] {
    HostXsaveLayout found;
    for (const x86::XsaveComponent& component : x86::kXsaveComponents) {
      unsigned bytes = 0, offset = 0, c = 0, d = 0;
      if (!__get_cpuid_count(0xd, component.bit, &bytes, &offset, &c, &d) || bytes < component.bytes) offset = 0;
      found.places.push_back({component, offset});
      if (offset != 0) found.bytes = std::max(found.bytes, offset + component.bytes);
    }
    return found;
  }();
  return layout;
}

void ToKvm(const CpuState& state, uint64_t components, uint8_t* area) {
  const XsaveArea& from = state.xsave;
  std::memcpy(area, from.bytes, kLegacyBytes);
  std::memset(area + kLegacyBytes, 0, 64);
  uint64_t present = 3;
  for (const auto& [component, offset] : HostXsave().places) {
    if (offset == 0 || !(components >> component.bit & 1)) continue;
    std::memcpy(area + offset, from.bytes + component.offset, component.bytes);
    present |= uint64_t{1} << component.bit;
  }
  std::memcpy(area + kXstateBv, &present, sizeof present);
}

void FromKvm(const uint8_t* area, uint64_t components, CpuState& state) {
  uint64_t present;
  std::memcpy(&present, area + kXstateBv, sizeof present);
  XsaveArea& to = state.xsave;
  to = {};
  to.fcw() = kInitialFcw;
  // x87: 0 to 23 and 32 to 159; MXCSR is there always; XMM: 160 to 415 (SDM 1 13.5.1, 13.5.2).
  if (present & 1) {
    std::memcpy(to.bytes, area, kMxcsr);
    std::memcpy(to.bytes + 32, area + 32, 128);
  }
  std::memcpy(to.bytes + kMxcsr, area + kMxcsr, 4);
  if (to.mxcsr() == 0 && !(present & 6)) to.mxcsr() = kInitialMxcsr;
  if (present & 2) std::memcpy(to.bytes + 160, area + 160, 256);
  for (const auto& [component, offset] : HostXsave().places) {
    const uint64_t bit = uint64_t{1} << component.bit;
    if (offset != 0 && (components & present & bit))
      std::memcpy(to.bytes + component.offset, area + offset, component.bytes);
  }
}

std::vector<MsrPlace> MsrPlaces(x86::Msrs& msrs) {
  std::vector<MsrPlace> places = {
      {0xc0000081, &msrs.star},     {0xc0000082, &msrs.lstar},          {0xc0000083, &msrs.cstar},
      {0xc0000084, &msrs.sfmask},   {0xc0000102, &msrs.kernel_gs_base}, {0x174, &msrs.sysenter_cs},
      {0x175, &msrs.sysenter_esp},  {0x176, &msrs.sysenter_eip},        {0x277, &msrs.pat},
      {0xc0000103, &msrs.tsc_aux},  {0x3b, &msrs.tsc_adjust},           {0x1a0, &msrs.misc_enable},
      {0x48, &msrs.spec_ctrl},      {0x2ff, &msrs.mtrr_def_type},       {0x250, &msrs.mtrr_fixed[0]},
      {0x258, &msrs.mtrr_fixed[1]}, {0x259, &msrs.mtrr_fixed[2]},       {0x17a, &msrs.mcg_status}};
  for (uint32_t i = 0; i < 8; ++i) places.push_back({0x268 + i, &msrs.mtrr_fixed[3 + i]});
  for (uint32_t i = 0; i < 16; ++i) places.push_back({0x200 + i, &msrs.mtrr_physical[i]});
  return places;
}

void ToKvm(const LocalApicState& state, kvm_lapic_state& registers) {
  const bool x2apic = (state.apic_base & kX2ApicEnabled) != 0;
  std::memset(&registers, 0, sizeof registers);
  SetWord(registers, kId, x2apic ? state.id : state.id << 24);
  SetWord(registers, kVersion, kVersionValue);
  SetWord(registers, kTpr, state.tpr);
  SetWord(registers, kLdr, state.ldr);
  SetWord(registers, kDfr, state.dfr);
  SetWord(registers, kSvr, state.svr);
  for (unsigned i = 0; i < 8; ++i) {
    SetWord(registers, kIsr + i, state.isr[i]);
    SetWord(registers, kTmr + i, state.tmr[i]);
    SetWord(registers, kIrr + i, state.irr[i]);
  }
  SetWord(registers, kEsr, state.esr);
  SetWord(registers, kIcrLow, state.icr_low);
  SetWord(registers, kIcrHigh, state.icr_high);
  for (unsigned i = 0; i < LocalApicState::kLvtCount; ++i) SetWord(registers, kLvt[i], state.lvt[i]);
  SetWord(registers, kInitialCount, state.initial_count);
  SetWord(registers, kCurrentCount, state.current_count);
  SetWord(registers, kDivide, state.divide);
}

void FromKvm(const kvm_lapic_state& registers, bool x2apic, LocalApicState& state) {
  const uint32_t id = Word(registers, kId);
  state.id = x2apic ? id : id >> 24;
  state.tpr = Word(registers, kTpr);
  state.ldr = Word(registers, kLdr);
  state.dfr = x2apic ? 0xffffffff : Word(registers, kDfr);
  state.svr = Word(registers, kSvr) & 0x1ff;
  for (unsigned i = 0; i < 8; ++i) {
    state.isr[i] = Word(registers, kIsr + i);
    state.tmr[i] = Word(registers, kTmr + i);
    state.irr[i] = Word(registers, kIrr + i);
  }
  state.esr = Word(registers, kEsr);
  state.icr_low = Word(registers, kIcrLow) & ~(1u << 12);  // sent already
  state.icr_high = Word(registers, kIcrHigh);
  for (unsigned i = 0; i < LocalApicState::kLvtCount; ++i) state.lvt[i] = Word(registers, kLvt[i]);
  state.initial_count = Word(registers, kInitialCount);
  state.current_count = Word(registers, kCurrentCount);
  state.divide = Word(registers, kDivide);
}

}  // namespace nacre::engine::kvm
