// RDMSR, WRMSR and the model-specific registers that belong to the CPU (SDM 4). All others are the machine's.

#include <x86intrin.h>

#include "engine/interp/handlers.h"

namespace nacre::engine::interp {

namespace efer = x86::efer;

namespace {

enum MsrIndex : uint32_t {
  kTsc = 0x10,
  kPlatformId = 0x17,
  kApicBase = 0x1b,
  kFeatureControl = 0x3a,
  kTscAdjust = 0x3b,
  kSpecCtrl = 0x48,
  kPredCmd = 0x49,
  kUcodeUpdate = 0x79,
  kUcodeRev = 0x8b,
  kPlatformInfo = 0xce,
  kMtrrCap = 0xfe,
  kArchCapabilities = 0x10a,
  kFlushCmd = 0x10b,
  kSysenterCs = 0x174,
  kSysenterEsp = 0x175,
  kSysenterEip = 0x176,
  kMcgCap = 0x179,
  kMcgStatus = 0x17a,
  kMiscEnable = 0x1a0,
  kDebugCtl = 0x1d9,
  kMtrrPhysical = 0x200,
  kMtrrFix64k = 0x250,
  kMtrrFix16k = 0x258,
  kMtrrFix4k = 0x268,
  kPat = 0x277,
  kMtrrDefType = 0x2ff,
  kTscDeadline = 0x6e0,
  kXss = 0xda0,
  kEfer = 0xc0000080,
  kStar,
  kLstar,
  kCstar,
  kSfmask,
  kFsBase = 0xc0000100,
  kGsBase,
  kKernelGsBase,
  kTscAux,
  kAmdSyscfg = 0xc0010010,
  kAmdHwcr = 0xc0010015,
  kAmdPatchLoader = 0xc0010020,
  kAmdDeCfg = 0xc0011029
};

constexpr uint64_t kMtrrCapValue = 8 /* pairs */ | Bit(8) /* fixed */ | Bit(10) /* WC */;
constexpr uint64_t kX2ApicEnable = Bit(10);  // IA32_APIC_BASE.EXTD
constexpr uint64_t kUcodeRevValue = uint64_t{1} << 32;

bool ValidMemoryType(uint64_t type) { return type <= 1 || (type >= 4 && type <= 6); }
bool ValidPat(uint64_t value) {
  for (unsigned i = 0; i < 8; ++i) {
    const uint64_t type = (value >> (i * 8)) & 0xff;
    if (!ValidMemoryType(type) && type != 7) return false;
  }
  return true;
}
bool ValidFixed(uint64_t value) {
  for (unsigned i = 0; i < 8; ++i)
    if (!ValidMemoryType((value >> (i * 8)) & 0xff)) return false;
  return true;
}

uint64_t* FixedMtrr(x86::Msrs& msr, uint32_t index) {
  if (index == kMtrrFix64k) return &msr.mtrr_fixed[0];
  if (index == kMtrrFix16k || index == kMtrrFix16k + 1) return &msr.mtrr_fixed[1 + index - kMtrrFix16k];
  if (index >= kMtrrFix4k && index < kMtrrFix4k + 8) return &msr.mtrr_fixed[3 + index - kMtrrFix4k];
  return nullptr;
}

/// Registers that are plain storage. `canonical`: other addresses are refused.
uint64_t* PlainMsr(x86::CpuState& s, uint32_t index, bool& canonical) {
  canonical = false;
  switch (index) {
    case kSysenterCs:
      return &s.msr.sysenter_cs;
    case kStar:
      return &s.msr.star;
    case kSfmask:
      return &s.msr.sfmask;
    case kMcgStatus:
      return &s.msr.mcg_status;
    default:
      break;
  }
  canonical = true;
  switch (index) {
    case kSysenterEsp:
      return &s.msr.sysenter_esp;
    case kSysenterEip:
      return &s.msr.sysenter_eip;
    case kLstar:
      return &s.msr.lstar;
    case kCstar:
      return &s.msr.cstar;
    case kFsBase:
      return &s.segment[x86::kFs].base;
    case kGsBase:
      return &s.segment[x86::kGs].base;
    case kKernelGsBase:
      return &s.msr.kernel_gs_base;
    default:
      return nullptr;
  }
}

}  // namespace

uint64_t Core::ReadTsc() const { return __rdtsc() + state->tsc_offset; }

bool Core::ReadMsr(uint32_t index, uint64_t& value) {
  x86::CpuState& s = *state;
  bool canonical;
  if (const uint64_t* plain = PlainMsr(s, index, canonical)) {
    value = *plain;
    return true;
  }
  if (const uint64_t* fixed = FixedMtrr(s.msr, index)) {
    value = *fixed;
    return true;
  }
  if (index >= kMtrrPhysical && index < kMtrrPhysical + 16) {
    value = s.msr.mtrr_physical[index - kMtrrPhysical];
    return true;
  }
  switch (index) {
    case kTsc:
      value = ReadTsc();
      return true;
    case kTscAux:
      if (!config.model->has_tsc_aux()) return Gp();
      value = s.msr.tsc_aux;
      return true;
    case kTscAdjust:
      if (!config.model->has_tsc_adjust()) return Gp();
      value = s.msr.tsc_adjust;
      return true;
    case kSpecCtrl:
      if (config.model->spec_ctrl_mask() == 0) return Gp();
      value = s.msr.spec_ctrl;
      return true;
    case kArchCapabilities:
      if (!config.model->HasFeature(7, 0, 'd', 29)) return Gp();
      value = x86::CpuModel::arch_capabilities();
      return true;
    case kPat:
      value = s.msr.pat;
      return true;
    case kMtrrCap:
      value = kMtrrCapValue;
      return true;
    case kMtrrDefType:
      value = s.msr.mtrr_def_type;
      return true;
    case kMiscEnable:
      value = s.msr.misc_enable;
      return true;
    case kXss:
      value = s.msr.xss;
      return true;
    case kEfer:
      value = s.msr.efer;
      return true;
    case kUcodeRev:
      value = amd ? 0x01000000 : kUcodeRevValue;
      return true;
    case kFeatureControl:
      value = 1;
      return true;  // locked, nothing enabled
    case kPlatformId:
    case kPlatformInfo:
    case kMcgCap:
    case kDebugCtl:
      value = 0;
      return true;
    case kAmdSyscfg:
    case kAmdHwcr:
      if (!amd) break;
      value = 0;
      return true;
    case kAmdDeCfg:
      if (!amd) break;
      value = 2;  // LFENCE is serialising
      return true;
    default:
      break;
  }
  if (index == kTscDeadline && !config.model->HasFeature(1, 0, 'c', 24)) return Gp();
  return config.host->ReadMsr(index, value) ? true : Gp();
}

bool Core::WriteEfer(uint64_t value) {
  uint64_t& now = state->msr.efer;
  if (value & ~(config.model->efer_mask() | efer::kLma)) return Gp();
  const uint64_t changed = (value ^ now) & ~efer::kLma;
  if ((changed & efer::kLme) && state->paging()) return Gp();
  now = (value & ~efer::kLma) | (now & efer::kLma);
  if (changed & efer::kNxe) NotifyFlush(true);
  return true;
}

bool Core::WriteMsr(uint32_t index, uint64_t value) {
  x86::CpuState& s = *state;
  bool canonical;
  if (uint64_t* plain = PlainMsr(s, index, canonical)) {
    if (canonical && !Canonical(value)) return Gp();
    if (index == kSfmask) value &= 0xffffffff;
    *plain = value;
    return true;
  }
  if (uint64_t* fixed = FixedMtrr(s.msr, index)) {
    if (!ValidFixed(value)) return Gp();
    *fixed = value;
    return true;
  }
  const uint64_t address_mask = Bit(config.model->physical_address_bits()) - 1;
  if (index >= kMtrrPhysical && index < kMtrrPhysical + 16) {
    const bool mask = (index & 1) != 0;
    if ((value & ~address_mask) || (mask ? value & 0x7ff : (value & 0xf00) || !ValidMemoryType(value & 0xff)))
      return Gp();
    s.msr.mtrr_physical[index - kMtrrPhysical] = value;
    return true;
  }
  switch (index) {
    case kTsc: {
      const uint64_t delta = value - ReadTsc();
      s.tsc_offset += delta;
      if (config.model->has_tsc_adjust()) s.msr.tsc_adjust += delta;
      return true;
    }
    case kTscAux:
      if (!config.model->has_tsc_aux() || (value >> 32)) return Gp();
      s.msr.tsc_aux = value;
      return true;
    case kTscAdjust:
      if (!config.model->has_tsc_adjust()) return Gp();
      s.tsc_offset += value - s.msr.tsc_adjust;
      s.msr.tsc_adjust = value;
      return true;
    case kSpecCtrl:
      if (config.model->spec_ctrl_mask() == 0 || (value & ~config.model->spec_ctrl_mask())) return Gp();
      s.msr.spec_ctrl = value;
      return true;
    case kPredCmd:
      return config.model->HasFeature(7, 0, 'd', 26) && !(value & ~uint64_t{1}) ? true : Gp();
    case kFlushCmd:
      return config.model->HasFeature(7, 0, 'd', 28) && !(value & ~uint64_t{1}) ? true : Gp();
    case kPat:
      if (!ValidPat(value)) return Gp();
      s.msr.pat = value;
      return true;
    case kMtrrDefType:
      if ((value & ~uint64_t{0xcff}) || !ValidMemoryType(value & 0xff)) return Gp();
      s.msr.mtrr_def_type = value;
      return true;
    case kMiscEnable:
      s.msr.misc_enable = value;
      return true;
    case kXss:
      return value == 0 ? true : Gp();
    case kEfer:
      return WriteEfer(value);
    case kUcodeRev:
    case kUcodeUpdate:
      return true;  // ignored: there is no microcode to load
    case kDebugCtl:
      return value == 0 ? true : Gp();
    case kFeatureControl:
    case kMtrrCap:
    case kPlatformId:
    case kPlatformInfo:
    case kMcgCap:
    case kArchCapabilities:
      return Gp();
    case kAmdSyscfg:
    case kAmdHwcr:
    case kAmdPatchLoader:
    case kAmdDeCfg:
      if (amd) return true;
      break;
    default:
      break;
  }
  if ((index == kTscDeadline && !config.model->HasFeature(1, 0, 'c', 24)) ||
      (index == kApicBase && (value & kX2ApicEnable) && !config.model->HasFeature(1, 0, 'c', 21)))
    return Gp();
  return config.host->WriteMsr(index, value) ? true : Gp();
}

}  // namespace nacre::engine::interp
