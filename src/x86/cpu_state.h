#pragma once
// The whole architectural state of one virtual CPU, defined by the manual (Intel SDM vol. 3A ch. 2, AMD APM vol. 2
// ch. 1-3), not by an engine. Every engine runs a vCPU from one such state to another and can import and export it
// at any instruction boundary. The local APIC is a device and has its own state.
//
// The layout is used by generated code through offsetof: plain standard layout, no virtuals.

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "base/bits.h"

namespace nacre::x86 {

enum Gpr : uint8_t { kRax, kRcx, kRdx, kRbx, kRsp, kRbp, kRsi, kRdi, kR8, kR9, kR10, kR11, kR12, kR13, kR14, kR15 };
enum SegmentIndex : uint8_t { kEs, kCs, kSs, kDs, kFs, kGs, kSegmentCount };

namespace rflags {
inline constexpr uint64_t kCf = Bit(0), kFixed1 = Bit(1), kPf = Bit(2), kAf = Bit(4), kZf = Bit(6), kSf = Bit(7),
                          kTf = Bit(8), kIf = Bit(9), kDf = Bit(10), kOf = Bit(11), kIoplMask = Bit(12) | Bit(13),
                          kNt = Bit(14), kRf = Bit(16), kVm = Bit(17), kAc = Bit(18), kVif = Bit(19), kVip = Bit(20),
                          kId = Bit(21);
inline constexpr uint64_t kArithmetic = kCf | kPf | kAf | kZf | kSf | kOf;
inline constexpr unsigned kIoplShift = 12;
}  // namespace rflags

namespace cr0 {
inline constexpr uint64_t kPe = Bit(0), kMp = Bit(1), kEm = Bit(2), kTs = Bit(3), kEt = Bit(4), kNe = Bit(5),
                          kWp = Bit(16), kAm = Bit(18), kNw = Bit(29), kCd = Bit(30), kPg = Bit(31);
}
namespace cr4 {
inline constexpr uint64_t kVme = Bit(0), kPvi = Bit(1), kTsd = Bit(2), kDe = Bit(3), kPse = Bit(4), kPae = Bit(5),
                          kMce = Bit(6), kPge = Bit(7), kPce = Bit(8), kOsFxsr = Bit(9), kOsXmmExcpt = Bit(10),
                          kUmip = Bit(11), kLa57 = Bit(12), kFsGsBase = Bit(16), kPcide = Bit(17), kOsXsave = Bit(18),
                          kSmep = Bit(20), kSmap = Bit(21), kPke = Bit(22);
}
namespace efer {
inline constexpr uint64_t kSce = Bit(0), kLme = Bit(8), kLma = Bit(10), kNxe = Bit(11);
}

/// Exception vectors (SDM 3A table 6-1).
enum Vector : uint8_t {
  kDivideError = 0,
  kDebug = 1,
  kNmi = 2,
  kBreakpoint = 3,
  kOverflow = 4,
  kBoundRange = 5,
  kInvalidOpcode = 6,
  kDeviceNotAvailable = 7,
  kDoubleFault = 8,
  kInvalidTss = 10,
  kSegmentNotPresent = 11,
  kStackFault = 12,
  kGeneralProtection = 13,
  kPageFault = 14,
  kX87Error = 16,
  kAlignmentCheck = 17,
  kMachineCheck = 18,
  kSimdError = 19,
  kControlProtection = 21
};

/// A segment register with its hidden part. `attributes` holds descriptor bits 40-47 in bits 0-7 (type, S, DPL, P)
/// and bits 52-55 in bits 12-15 (AVL, L, D/B, G), as VMX's access-rights field does; kUnusable marks a null selector.
struct Segment {
  static constexpr uint32_t kTypeMask = 0xf, kS = 1 << 4, kDplMask = 3 << 5, kP = 1 << 7, kAvl = 1 << 12, kL = 1 << 13,
                            kDb = 1 << 14, kG = 1 << 15, kUnusable = 1 << 16;
  uint64_t base = 0;
  uint32_t limit = 0;  ///< in bytes, the last valid offset: granularity is already applied
  uint32_t attributes = 0;
  uint16_t selector = 0;

  constexpr unsigned type() const { return attributes & kTypeMask; }
  constexpr unsigned dpl() const { return (attributes & kDplMask) >> 5; }
  constexpr bool present() const { return (attributes & kP) != 0; }
  constexpr bool big() const { return (attributes & kDb) != 0; }
  constexpr bool unusable() const { return (attributes & kUnusable) != 0; }
};

struct DescriptorTable {
  uint64_t base = 0;
  uint16_t limit = 0;
};

/// The XSAVE area in *standard* format with Intel's offsets (SDM 1 13.4): x87/SSE at 0, header at 512, AVX 576, opmask
/// 1088, ZMM_Hi256 1152, Hi16_ZMM 1664, PKRU 2688. Guests see these offsets (CPUID leaf 0DH) on every host. A host may
/// have others (AMD's CPUs have the opmasks at 832), so its own XSAVE must not write components above AVX here: engines
/// move those register by register. All components are always valid here (XINUSE tracking is the engine's business).
struct alignas(64) XsaveArea {
  static constexpr size_t kSize = 2752;
  static constexpr size_t kAvxOffset = 576, kOpmaskOffset = 1088, kZmmHi256Offset = 1152, kHi16ZmmOffset = 1664,
                          kPkruOffset = 2688;
  uint8_t bytes[kSize] = {};

  uint16_t& fcw() { return *reinterpret_cast<uint16_t*>(bytes + 0); }
  uint16_t& fsw() { return *reinterpret_cast<uint16_t*>(bytes + 2); }
  uint8_t& ftw() { return bytes[4]; }  ///< abridged: bit i set = physical register i not empty
  uint32_t& mxcsr() { return *reinterpret_cast<uint32_t*>(bytes + 24); }
  uint8_t* st(unsigned i) { return bytes + 32 + 16 * i; }    ///< 10 bytes, relative to TOP
  uint8_t* xmm(unsigned i) { return bytes + 160 + 16 * i; }  ///< low 128 bits
  uint8_t* ymm_high(unsigned i) { return bytes + kAvxOffset + 16 * i; }
  uint8_t* zmm_high(unsigned i) { return bytes + kZmmHi256Offset + 32 * i; }   ///< bits 256 to 511 of ZMM0 to ZMM15
  uint8_t* zmm(unsigned i) { return bytes + kHi16ZmmOffset + 64 * (i - 16); }  ///< ZMM16 to ZMM31, whole
  uint8_t* opmask(unsigned i) { return bytes + kOpmaskOffset + 8 * i; }
};

/// The state components above SSE that CpuState has: XCR0 bit and place in XsaveArea.
struct XsaveComponent {
  unsigned bit;
  uint32_t offset;
  uint32_t bytes;
};
inline constexpr XsaveComponent kXsaveComponents[] = {{2, XsaveArea::kAvxOffset, 256},
                                                      {5, XsaveArea::kOpmaskOffset, 64},
                                                      {6, XsaveArea::kZmmHi256Offset, 512},
                                                      {7, XsaveArea::kHi16ZmmOffset, 1024},
                                                      {9, XsaveArea::kPkruOffset, 8}};
inline constexpr uint64_t kAvx512Components = 0xe0;  ///< XCR0: opmask, ZMM_Hi256, Hi16_ZMM
inline constexpr uint64_t kAvx512Enabled = 0xe6;     ///< XCR0: all that EVEX and opmask instructions need

/// Model-specific registers that belong to the CPU itself. x2APIC, TSC-deadline and paravirtual MSRs belong to devices.
struct Msrs {
  uint64_t efer = 0;
  uint64_t star = 0, lstar = 0, cstar = 0, sfmask = 0;
  uint64_t kernel_gs_base = 0;
  uint64_t sysenter_cs = 0, sysenter_esp = 0, sysenter_eip = 0;
  uint64_t pat = 0x0007040600070406;
  uint64_t tsc_aux = 0;
  uint64_t tsc_adjust = 0;
  uint64_t misc_enable = 1;
  uint64_t spec_ctrl = 0;
  uint64_t xss = 0;
  uint64_t mtrr_def_type = 0;
  uint64_t mtrr_fixed[11] = {};
  uint64_t mtrr_physical[16] = {};  ///< base, mask pairs
  uint64_t mcg_status = 0;
};

struct CpuState {
  uint64_t gpr[16] = {};
  uint64_t rip = 0;
  uint64_t rflags = rflags::kFixed1;
  Segment segment[kSegmentCount];
  Segment ldtr, tr;
  DescriptorTable gdtr, idtr;
  uint64_t cr0 = 0, cr2 = 0, cr3 = 0, cr4 = 0;
  uint64_t xcr0 = 1;
  uint64_t dr[4] = {};
  uint64_t dr6 = 0xffff0ff0, dr7 = 0x400;
  uint64_t pdpte[4] = {};  ///< PAE page-directory pointers, loaded by MOV CR3 (SDM 3A 4.4.1)
  Msrs msr;
  uint64_t tsc_offset = 0;  ///< guest TSC = host TSC + tsc_offset while running

  // What is between instructions (SDM 3A 6.7, 6.8).
  bool interrupt_shadow = false;  ///< STI or MOV SS: no interrupt before the next instruction has retired
  bool shadow_is_mov_ss = false;  ///< ... and no debug trap either
  bool nmi_masked = false;        ///< between an NMI and the next IRET
  bool halted = false;            ///< HLT executed, waiting for an interrupt
  bool wait_for_sipi = false;     ///< an application processor after INIT
  bool pending_debug = false;     ///< a #DB trap (bits already in dr6) to deliver before the next instruction

  alignas(64) XsaveArea xsave;

  unsigned cpl() const { return segment[kSs].dpl(); }
  bool long_mode_active() const { return (msr.efer & efer::kLma) != 0; }
  bool code64() const { return long_mode_active() && (segment[kCs].attributes & Segment::kL) != 0; }
  bool protected_mode() const { return (cr0 & cr0::kPe) != 0; }
  bool paging() const { return (cr0 & cr0::kPg) != 0; }
  bool virtual8086() const { return (rflags & rflags::kVm) != 0; }
};

static_assert(std::is_standard_layout_v<CpuState>);

/// Power-on / RESET state (SDM 3A table 9-1): real mode, CS base 0xffff0000, IP 0xfff0.
void ResetCpuState(CpuState& state);
/// INIT keeps the caches, FPU, MSRs and TSC (SDM 3A table 9-1); an application processor then waits for SIPI.
void InitCpuState(CpuState& state, bool bootstrap_processor);

}  // namespace nacre::x86
