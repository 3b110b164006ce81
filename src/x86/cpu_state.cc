#include "x86/cpu_state.h"

#include "state/archive.h"

namespace nacre::x86 {
namespace {

constexpr uint32_t kReset = Segment::kP | Segment::kS | 3;  // read/write data, accessed
constexpr uint32_t kSegmentAttributes = 0xf0ff | Segment::kUnusable;

bool Canonical(uint64_t address) { return SignExtend(address, 48) == address; }

void SerializeSegment(state::Archive& archive, uint16_t id, Segment& segment) {
  archive.Section(id, 1, [&](state::Archive& fields, uint16_t) {
    fields.Field(1, segment.base);
    fields.Field(2, segment.limit);
    fields.Field(3, segment.attributes);
    fields.Field(4, segment.selector);
    if (fields.loading() && (segment.attributes & ~kSegmentAttributes)) fields.Reject("impossible segment attributes");
    if (fields.loading() && !Canonical(segment.base)) fields.Reject("a segment base is not canonical");
  });
}

void SerializeTable(state::Archive& archive, uint16_t id, DescriptorTable& table) {
  archive.Section(id, 1, [&](state::Archive& fields, uint16_t) {
    fields.Field(1, table.base);
    fields.Field(2, table.limit);
    if (fields.loading() && !Canonical(table.base)) fields.Reject("a descriptor table's base is not canonical");
  });
}

void SerializeMsrs(state::Archive& archive, Msrs& msr) {
  archive.Field(1, msr.efer);
  archive.Field(2, msr.star);
  archive.Field(3, msr.lstar);
  archive.Field(4, msr.cstar);
  archive.Field(5, msr.sfmask);
  archive.Field(6, msr.kernel_gs_base);
  archive.Field(7, msr.sysenter_cs);
  archive.Field(8, msr.sysenter_esp);
  archive.Field(9, msr.sysenter_eip);
  archive.Field(10, msr.pat);
  archive.Field(11, msr.tsc_aux);
  archive.Field(12, msr.tsc_adjust);
  archive.Field(13, msr.misc_enable);
  archive.Field(14, msr.spec_ctrl);
  archive.Field(15, msr.xss);
  archive.Field(16, msr.mtrr_def_type);
  archive.Array(17, msr.mtrr_fixed);
  archive.Array(18, msr.mtrr_physical);
  archive.Field(19, msr.mcg_status);
}

/// Why no CPU can hold these MSRs, or nullptr.
const char* ImpossibleMsr(const Msrs& msr) {
  if (msr.efer & ~(efer::kSce | efer::kLme | efer::kLma | efer::kNxe)) return "EFER has reserved bits set";
  for (unsigned i = 0; i < 8; ++i) {
    const uint64_t type = Bits(msr.pat, 8 * i, 8);
    if (type > 7 || type == 2 || type == 3) return "PAT has a reserved memory type";
  }
  for (uint64_t address : {msr.lstar, msr.cstar, msr.kernel_gs_base, msr.sysenter_esp, msr.sysenter_eip})
    if (!Canonical(address)) return "an MSR holds an address that is not canonical";
  if (msr.tsc_aux >> 32) return "TSC_AUX has reserved bits set";
  return nullptr;
}

/// The same for the rest (SDM 3A 2.3, 2.5, 2.6; SDM 1 13.3).
const char* ImpossibleState(CpuState& state) {
  constexpr uint64_t kFlags = 0x3f7fd7;
  if ((state.rflags & ~kFlags) || !(state.rflags & rflags::kFixed1)) return "RFLAGS has impossible bits";
  constexpr uint64_t kCr0 = cr0::kPe | cr0::kMp | cr0::kEm | cr0::kTs | cr0::kEt | cr0::kNe | cr0::kWp | cr0::kAm |
                            cr0::kNw | cr0::kCd | cr0::kPg;
  if (state.cr0 & ~kCr0) return "CR0 has reserved bits set";
  if ((state.cr0 & cr0::kPg) && !(state.cr0 & cr0::kPe)) return "paging without protected mode";
  if ((state.cr0 & cr0::kNw) && !(state.cr0 & cr0::kCd)) return "CR0.NW without CR0.CD";
  constexpr uint64_t kCr4 = 0x7fff | cr4::kFsGsBase | cr4::kPcide | cr4::kOsXsave | cr4::kSmep | cr4::kSmap | cr4::kPke;
  if (state.cr4 & ~kCr4) return "CR4 has reserved bits set";
  if (state.cr3 >> 52) return "CR3 has reserved bits set";
  const bool lma = (state.msr.efer & efer::kLma) != 0;
  const bool lme = (state.msr.efer & efer::kLme) != 0;
  if (lma != (lme && state.paging())) return "EFER.LMA does not follow EFER.LME and CR0.PG";
  if (lma && !(state.cr4 & cr4::kPae)) return "long mode without CR4.PAE";
  if ((state.cr4 & cr4::kPcide) && !lma) return "CR4.PCIDE outside long mode";
  if (state.virtual8086() && (lma || !state.protected_mode())) return "virtual-8086 mode is impossible here";
  if (state.code64() && (state.segment[kCs].attributes & Segment::kDb)) return "CS has both L and D set";
  if ((state.xcr0 & 1) == 0 || (state.xcr0 & ~uint64_t{0x2e7}) || (state.xcr0 & 6) == 4 ||
      ((state.xcr0 & kAvx512Components) != 0 && (state.xcr0 & kAvx512Enabled) != kAvx512Enabled))
    return "XCR0 has an impossible value";
  if ((state.dr6 >> 32) || (state.dr7 >> 32)) return "DR6 or DR7 has reserved bits set";
  if (state.xsave.mxcsr() & ~0xffffu) return "MXCSR has reserved bits set";
  const uint8_t* header = state.xsave.bytes + 512;
  if (LoadLe<uint64_t>(header) & ~uint64_t{0x2e7}) return "the XSAVE header names unknown components";
  for (unsigned i = 8; i < 64; ++i)
    if (header[i] != 0) return "the XSAVE header is not of the standard format";
  return ImpossibleMsr(state.msr);
}

/// What RESET and INIT do alike (SDM 3A table 10-1).
void ResetCommon(CpuState& state) {
  for (uint64_t& reg : state.gpr) reg = 0;
  state.gpr[kRdx] = 0x600;  // family 6
  state.rip = 0xfff0;
  state.rflags = rflags::kFixed1;
  for (Segment& segment : state.segment) segment = {0, 0xffff, kReset, 0};
  state.segment[kCs] = {0xffff0000, 0xffff, kReset, 0xf000};
  state.ldtr = {0, 0xffff, Segment::kP | 2, 0};
  state.tr = {0, 0xffff, Segment::kP | 11, 0};
  state.gdtr = state.idtr = {0, 0xffff};
  state.cr2 = state.cr3 = state.cr4 = 0;
  for (uint64_t& reg : state.dr) reg = 0;
  state.dr6 = 0xffff0ff0;
  state.dr7 = 0x400;
  for (uint64_t& entry : state.pdpte) entry = 0;
  state.msr.efer = 0;
  state.interrupt_shadow = state.shadow_is_mov_ss = state.nmi_masked = false;
  state.halted = state.wait_for_sipi = state.pending_debug = false;
}

}  // namespace

void CpuState::Serialize(state::Archive& archive) {
  archive.Array(1, gpr);
  archive.Field(2, rip);
  archive.Field(3, rflags);
  archive.Section(4, 1, [this](state::Archive& fields, uint16_t) {
    for (unsigned i = 0; i < kSegmentCount; ++i) SerializeSegment(fields, static_cast<uint16_t>(i + 1), segment[i]);
    SerializeSegment(fields, 7, ldtr);
    SerializeSegment(fields, 8, tr);
    SerializeTable(fields, 9, gdtr);
    SerializeTable(fields, 10, idtr);
  });
  archive.Field(5, cr0);
  archive.Field(6, cr2);
  archive.Field(7, cr3);
  archive.Field(8, cr4);
  archive.Field(9, xcr0);
  archive.Array(10, dr);
  archive.Field(11, dr6);
  archive.Field(12, dr7);
  archive.Array(13, pdpte);
  archive.Section(14, 1, [this](state::Archive& fields, uint16_t) { SerializeMsrs(fields, msr); });
  archive.Field(15, tsc_offset);
  archive.Field(16, interrupt_shadow);
  archive.Field(17, shadow_is_mov_ss);
  archive.Field(18, nmi_masked);
  archive.Field(19, halted);
  archive.Field(20, wait_for_sipi);
  archive.Field(21, pending_debug);
  archive.Bytes(22, xsave.bytes);
  if (!archive.loading() || !archive.ok()) return;
  if (const char* reason = ImpossibleState(*this)) archive.Reject(reason);
}

void ResetCpuState(CpuState& state) {
  state = CpuState{};
  ResetCommon(state);
  state.cr0 = cr0::kCd | cr0::kNw | cr0::kEt;
  state.xsave.fcw() = 0x40;
  state.xsave.ftw() = 0xff;  // full tag word 5555h: eight zeros
  state.xsave.mxcsr() = 0x1f80;
}

void InitCpuState(CpuState& state, bool bootstrap_processor) {
  const uint64_t cache_bits = state.cr0 & (cr0::kCd | cr0::kNw);
  ResetCommon(state);
  state.cr0 = cache_bits | cr0::kEt;
  state.wait_for_sipi = !bootstrap_processor;
}

}  // namespace nacre::x86
