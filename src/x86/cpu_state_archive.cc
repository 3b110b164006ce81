#include "x86/cpu_state_archive.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <string>

#include "state/archive.h"
#include "x86/cpu_model.h"
#include "x86/cpu_model_features.h"
#include "x86/cpu_state.h"

namespace nacre::x86 {
namespace {

constexpr size_t kHeaderOffset = 512;  // of the XSAVE area
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

/// An MSR that the model may lack: not written then, and 0 after a load.
void OptionalField(state::Archive& archive, uint16_t id, uint64_t& value, bool there) {
  if (there)
    archive.Field(id, value);
  else if (archive.loading())
    value = 0;
}

void SerializeMsrs(state::Archive& archive, const CpuModel& model, Msrs& msr) {
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
  OptionalField(archive, 11, msr.tsc_aux, model.has_tsc_aux());
  OptionalField(archive, 12, msr.tsc_adjust, model.has_tsc_adjust());
  archive.Field(13, msr.misc_enable);
  OptionalField(archive, 14, msr.spec_ctrl, model.spec_ctrl_mask() != 0);
  archive.Field(15, msr.xss);
  archive.Field(16, msr.mtrr_def_type);
  archive.Array(17, msr.mtrr_fixed);
  archive.Array(18, msr.mtrr_physical);
  archive.Field(19, msr.mcg_status);
}

/// The parts of the XSAVE area that the model has; a load leaves the others as they are after RESET.
void SerializeXsave(state::Archive& archive, const CpuModel& model, XsaveArea& area) {
  uint64_t components = model.xcr0_mask();
  archive.Field(1, components);
  if (components != model.xcr0_mask())
    return archive.Reject(fmt::format("the state has XSAVE components {:#x}, CPU model {} has {:#x}", components,
                                      model.name(), model.xcr0_mask()));
  if (archive.loading()) area = {};
  archive.Bytes(2, {area.bytes, kHeaderOffset});
  // Engines keep the host's components, of which the guest sees the model's.
  std::array<uint8_t, XsaveArea::kAvxOffset - kHeaderOffset> header;
  std::memcpy(header.data(), area.bytes + kHeaderOffset, header.size());
  if (!archive.loading()) StoreLe(header.data(), LoadLe<uint64_t>(header.data()) & components);
  archive.Bytes(3, std::span<uint8_t>(header));
  if (archive.loading()) std::memcpy(area.bytes + kHeaderOffset, header.data(), header.size());
  for (const XsaveComponent& component : kXsaveComponents)
    if (TestBit(components, component.bit))
      archive.Bytes(static_cast<uint16_t>(16 + component.bit), {area.bytes + component.offset, component.bytes});
}

/// A memory type that MTRRs can have (SDM 3A 12.11).
bool IsMtrrType(uint64_t type) { return type <= 1 || (type >= 4 && type <= 6); }

const char* ImpossibleMtrr(const Msrs& msr, unsigned address_bits) {
  for (const uint64_t fixed : msr.mtrr_fixed)
    for (unsigned i = 0; i < 8; ++i)
      if (!IsMtrrType(Bits(fixed, 8 * i, 8))) return "an MTRR has a reserved memory type";
  if ((msr.mtrr_def_type & ~uint64_t{0xcff}) || !IsMtrrType(msr.mtrr_def_type & 0xff))
    return "IA32_MTRR_DEF_TYPE has an impossible value";
  for (unsigned i = 0; i < 16; i += 2) {
    const uint64_t base = msr.mtrr_physical[i], mask = msr.mtrr_physical[i + 1];
    if ((base >> address_bits) || (mask >> address_bits) || (base & 0xf00) || !IsMtrrType(base & 0xff) ||
        (mask & 0x7ff))
      return "an MTRR has reserved bits set";
  }
  return nullptr;
}

/// Why no CPU of the model can hold these MSRs, or nullptr.
const char* ImpossibleMsr(const Msrs& msr, const CpuModel& model) {
  if (msr.efer & ~(model.efer_mask() | efer::kLma)) return "EFER has bits set that the CPU model lacks";
  if (msr.spec_ctrl & ~model.spec_ctrl_mask()) return "SPEC_CTRL has bits set that the CPU model lacks";
  if (msr.xss != 0) return "XSS is set, which no CPU model has";
  if (const char* reason = ImpossibleMtrr(msr, model.physical_address_bits())) return reason;
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
const char* ImpossibleState(CpuState& state, const CpuModel& model) {
  constexpr uint64_t kFlags = 0x3f7fd7;
  if ((state.rflags & ~kFlags) || !(state.rflags & rflags::kFixed1)) return "RFLAGS has impossible bits";
  constexpr uint64_t kCr0 = cr0::kPe | cr0::kMp | cr0::kEm | cr0::kTs | cr0::kEt | cr0::kNe | cr0::kWp | cr0::kAm |
                            cr0::kNw | cr0::kCd | cr0::kPg;
  if (state.cr0 & ~kCr0) return "CR0 has reserved bits set";
  if ((state.cr0 & cr0::kPg) && !(state.cr0 & cr0::kPe)) return "paging without protected mode";
  if ((state.cr0 & cr0::kNw) && !(state.cr0 & cr0::kCd)) return "CR0.NW without CR0.CD";
  if (state.cr4 & ~model.cr4_mask()) return "CR4 has bits set that the CPU model lacks";
  if (state.cr3 >> model.physical_address_bits()) return "CR3 has reserved bits set";
  const bool lma = (state.msr.efer & efer::kLma) != 0;
  const bool lme = (state.msr.efer & efer::kLme) != 0;
  if (lma != (lme && state.paging())) return "EFER.LMA does not follow EFER.LME and CR0.PG";
  if (lma && !(state.cr4 & cr4::kPae)) return "long mode without CR4.PAE";
  if ((state.cr4 & cr4::kPcide) && !lma) return "CR4.PCIDE outside long mode";
  if (state.virtual8086() && (lma || !state.protected_mode())) return "virtual-8086 mode is impossible here";
  if (state.code64() && (state.segment[kCs].attributes & Segment::kDb)) return "CS has both L and D set";
  if ((state.xcr0 & 1) == 0 || (state.xcr0 & ~model.xcr0_mask()) || (state.xcr0 & 6) == 4 ||
      ((state.xcr0 & kAvx512Components) != 0 && (state.xcr0 & kAvx512Enabled) != kAvx512Enabled))
    return "XCR0 has an impossible value";
  if ((state.dr6 >> 32) || (state.dr7 >> 32)) return "DR6 or DR7 has reserved bits set";
  if (state.xsave.mxcsr() & ~0xffffu) return "MXCSR has reserved bits set";
  const uint8_t* header = state.xsave.bytes + kHeaderOffset;
  if (LoadLe<uint64_t>(header) & ~model.xcr0_mask())
    return "the XSAVE header names components that the CPU model lacks";
  for (unsigned i = 8; i < 64; ++i)
    if (header[i] != 0) return "the XSAVE header is not of the standard format";
  return ImpossibleMsr(state.msr, model);
}

}  // namespace

void SerializeModel(state::Archive& archive, const CpuModel& model) {
  constexpr size_t kMostText = 4096;
  std::string own, name = model.name();
  for (const Feature& feature : FeatureTable())
    if (model.HasFeature(feature.leaf, feature.subleaf, feature.reg, feature.bit))
      own += fmt::format("{} ", feature.name);
  std::string features = own;
  archive.Text(1, name, kMostText);
  archive.Text(2, features, kMostText);
  if (!archive.loading() || !archive.ok() || features == own) return;
  const auto printable = [](char c) { return c >= ' ' && c <= '~'; };
  if (!std::ranges::all_of(name, printable) || !std::ranges::all_of(features, printable))
    return archive.Reject("the CPU model's name or features are no text");
  const auto without = [](std::string_view from, std::string_view what) {
    std::string text;
    for (size_t at = 0; at < from.size();) {
      const std::string_view word = from.substr(at, from.find(' ', at) + 1 - at);
      if (word.empty()) break;
      if (!(" " + std::string(what)).contains(" " + std::string(word)))
        text += fmt::format(" {}", word.substr(0, word.size() - 1));
      at += word.size();
    }
    return text.empty() ? std::string(" nothing") : text;
  };
  archive.Reject(fmt::format("the state is of CPU model {}, this VM's is {}: it has beyond it{}, and lacks{}", name,
                             model.name(), without(features, own), without(own, features)));
}

void SerializeCpu(state::Archive& archive, CpuState& state, const CpuModel& model) {
  // A load finds both, or there is nothing to hold the rest against.
  bool has_model = !archive.loading(), has_xsave = has_model;
  archive.Section(23, 1, [&](state::Archive& fields, uint16_t) {
    SerializeModel(fields, model);
    has_model = true;
  });
  archive.Array(1, state.gpr);
  archive.Field(2, state.rip);
  archive.Field(3, state.rflags);
  archive.Section(4, 1, [&](state::Archive& fields, uint16_t) {
    for (unsigned i = 0; i < kSegmentCount; ++i)
      SerializeSegment(fields, static_cast<uint16_t>(i + 1), state.segment[i]);
    SerializeSegment(fields, 7, state.ldtr);
    SerializeSegment(fields, 8, state.tr);
    SerializeTable(fields, 9, state.gdtr);
    SerializeTable(fields, 10, state.idtr);
  });
  archive.Field(5, state.cr0);
  archive.Field(6, state.cr2);
  archive.Field(7, state.cr3);
  archive.Field(8, state.cr4);
  archive.Field(9, state.xcr0);
  archive.Array(10, state.dr);
  archive.Field(11, state.dr6);
  archive.Field(12, state.dr7);
  archive.Array(13, state.pdpte);
  archive.Section(14, 1, [&](state::Archive& fields, uint16_t) { SerializeMsrs(fields, model, state.msr); });
  archive.Field(15, state.tsc_offset);
  archive.Field(16, state.interrupt_shadow);
  archive.Field(17, state.shadow_is_mov_ss);
  archive.Field(18, state.nmi_masked);
  archive.Field(19, state.halted);
  archive.Field(20, state.wait_for_sipi);
  archive.Field(21, state.pending_debug);
  archive.Section(24, 1, [&](state::Archive& fields, uint16_t) {
    SerializeXsave(fields, model, state.xsave);
    has_xsave = true;
  });
  if (!archive.loading() || !archive.ok()) return;
  if (!has_model) return archive.Reject("the state names no CPU model");
  if (!has_xsave) return archive.Reject("the state has no XSAVE area");
  if (const char* reason = ImpossibleState(state, model)) archive.Reject(reason);
}

}  // namespace nacre::x86
