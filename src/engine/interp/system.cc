// SYSCALL and SYSENTER with their returns, SWAPGS, FS/GS bases, MSR and TSC access, CPUID, random numbers, hypercalls,
// cache control, fences, and what does nothing.

#include <sys/random.h>

#include <atomic>

#include "engine/interp/handlers.h"

namespace nacre::engine::interp {

using x86::Segment;
namespace rf = x86::rflags;
namespace efer = x86::efer;

namespace {

constexpr uint32_t kFlatCode = Segment::kP | Segment::kS | 0xb | Segment::kG;
constexpr uint32_t kFlatData = Segment::kP | Segment::kS | 3 | Segment::kG | Segment::kDb;

void SetFlat(Core& c, x86::SegmentIndex index, uint64_t selector, uint32_t attributes, unsigned dpl) {
  Segment& segment = c.state->segment[index];
  segment.selector = static_cast<uint16_t>(selector);
  segment.base = 0;
  segment.limit = 0xffffffff;
  segment.attributes = attributes | (dpl << 5);
}

/// SYSCALL exists in 64-bit mode; AMD's CPUs have it in the other protected modes as well (AMD APM 3 "SYSCALL").
bool SyscallExists(const Core& c) {
  if (!(c.state->msr.efer & efer::kSce) || !c.state->protected_mode()) return false;
  return c.code64 || (c.amd && !c.state->virtual8086());
}

bool Syscall(Core& c, const Decoded&) {
  if (!SyscallExists(c)) return c.Ud();
  x86::CpuState& s = *c.state;
  const uint64_t selector = (s.msr.star >> 32) & 0xfffc;
  c.trap_by_new_tf = true;
  if (s.long_mode_active()) {
    const uint64_t target = c.code64 ? s.msr.lstar : s.msr.cstar;
    s.gpr[x86::kRcx] = c.next_rip;
    s.gpr[x86::kR11] = s.rflags & ~rf::kRf;
    s.rflags = (s.rflags & ~(s.msr.sfmask | rf::kRf)) | rf::kFixed1;
    SetFlat(c, x86::kCs, selector, kFlatCode | Segment::kL, 0);
    c.next_rip = target;
  } else {
    s.gpr[x86::kRcx] = c.next_rip & 0xffffffff;
    s.rflags &= ~(rf::kIf | rf::kVm | rf::kRf);
    SetFlat(c, x86::kCs, selector, kFlatCode | Segment::kDb, 0);
    c.next_rip = s.msr.star & 0xffffffff;
  }
  SetFlat(c, x86::kSs, selector + 8, kFlatData, 0);
  return true;
}

bool Sysret(Core& c, const Decoded& d) {
  if (!SyscallExists(c)) return c.Ud();
  INTERP_TRY(c.Privileged());
  x86::CpuState& s = *c.state;
  const uint64_t selector = (s.msr.star >> 48) & 0xffff;
  const uint64_t target = s.gpr[x86::kRcx];
  c.trap_by_new_tf = true;
  if (s.long_mode_active()) {
    const bool to64 = d.operand_size == 8;
    if (to64 && !Core::Canonical(target)) return c.Gp();
    constexpr uint64_t kFlags = 0x3c7fd7 & ~(rf::kRf | rf::kVm);
    s.rflags = (s.gpr[x86::kR11] & kFlags) | rf::kFixed1;
    SetFlat(c, x86::kCs, ((to64 ? selector + 16 : selector) | 3), kFlatCode | (to64 ? Segment::kL : Segment::kDb), 3);
    c.next_rip = to64 ? target : target & 0xffffffff;
  } else {
    s.rflags |= rf::kIf;
    SetFlat(c, x86::kCs, selector | 3, kFlatCode | Segment::kDb, 3);
    c.next_rip = target & 0xffffffff;
  }
  SetFlat(c, x86::kSs, (selector + 8) | 3, kFlatData, 3);
  return true;
}

bool Sysenter(Core& c, const Decoded&) {
  x86::CpuState& s = *c.state;
  if (c.amd && s.long_mode_active()) return c.Ud();
  if (!s.protected_mode() || (s.msr.sysenter_cs & 0xfffc) == 0) return c.Gp();
  const uint64_t selector = s.msr.sysenter_cs & 0xfffc;
  const bool long_mode = s.long_mode_active();
  s.rflags &= ~(rf::kVm | rf::kIf | rf::kRf);
  SetFlat(c, x86::kCs, selector, kFlatCode | (long_mode ? Segment::kL : Segment::kDb), 0);
  SetFlat(c, x86::kSs, selector + 8, kFlatData, 0);
  s.gpr[x86::kRsp] = long_mode ? s.msr.sysenter_esp : s.msr.sysenter_esp & 0xffffffff;
  c.next_rip = long_mode ? s.msr.sysenter_eip : s.msr.sysenter_eip & 0xffffffff;
  return true;
}

bool Sysexit(Core& c, const Decoded& d) {
  x86::CpuState& s = *c.state;
  if (c.amd && s.long_mode_active()) return c.Ud();
  if (!s.protected_mode() || s.cpl() != 0 || (s.msr.sysenter_cs & 0xfffc) == 0) return c.Gp();
  const bool to64 = c.code64 && d.operand_size == 8;
  const uint64_t rip = s.gpr[x86::kRdx], rsp = s.gpr[x86::kRcx];
  if (to64 && (!Core::Canonical(rip) || !Core::Canonical(rsp))) return c.Gp();
  const uint64_t selector = (s.msr.sysenter_cs & 0xfffc) + (to64 ? 32 : 16);
  SetFlat(c, x86::kCs, selector | 3, kFlatCode | (to64 ? Segment::kL : Segment::kDb), 3);
  SetFlat(c, x86::kSs, (selector + 8) | 3, kFlatData, 3);
  s.gpr[x86::kRsp] = to64 ? rsp : rsp & 0xffffffff;
  c.next_rip = to64 ? rip : rip & 0xffffffff;
  return true;
}

bool Swapgs(Core& c, const Decoded&) {
  if (!c.code64) return c.Ud();
  INTERP_TRY(c.Privileged());
  std::swap(c.state->segment[x86::kGs].base, c.state->msr.kernel_gs_base);
  return true;
}

template <x86::SegmentIndex kIndex, bool kWrite>
bool SegmentBase(Core& c, const Decoded& d) {
  if (!c.code64 || !(c.state->cr4 & x86::cr4::kFsGsBase)) return c.Ud();
  const x86::Operand& reg = d.insn.operand[0];
  uint64_t& base = c.state->segment[kIndex].base;
  if (!kWrite) {
    c.WriteGpr(reg.index, reg.size, base);
    return true;
  }
  const uint64_t value = c.ReadGpr(reg.index, reg.size);
  if (!Core::Canonical(value)) return c.Gp();
  base = value;
  return true;
}

// ---- Registers in EDX:EAX.

void SetEdxEax(Core& c, uint64_t value) {
  c.state->gpr[x86::kRax] = value & 0xffffffff;
  c.state->gpr[x86::kRdx] = value >> 32;
}

bool Rdmsr(Core& c, const Decoded&) {
  INTERP_TRY(c.Privileged());
  uint64_t value = 0;
  INTERP_TRY(c.ReadMsr(static_cast<uint32_t>(c.state->gpr[x86::kRcx]), value));
  SetEdxEax(c, value);
  return true;
}
bool Wrmsr(Core& c, const Decoded&) {
  INTERP_TRY(c.Privileged());
  return c.WriteMsr(static_cast<uint32_t>(c.state->gpr[x86::kRcx]),
                    (c.state->gpr[x86::kRdx] << 32) | (c.state->gpr[x86::kRax] & 0xffffffff));
}

bool TscAllowed(Core& c) {
  return (c.state->cr4 & x86::cr4::kTsd) && c.state->cpl() != 0 && c.state->protected_mode() ? c.Gp() : true;
}
bool Rdtsc(Core& c, const Decoded&) {
  INTERP_TRY(TscAllowed(c));
  SetEdxEax(c, c.ReadTsc());
  return true;
}
bool Rdtscp(Core& c, const Decoded&) {
  INTERP_TRY(TscAllowed(c));
  SetEdxEax(c, c.ReadTsc());
  c.state->gpr[x86::kRcx] = c.state->msr.tsc_aux & 0xffffffff;
  return true;
}
bool Rdpid(Core& c, const Decoded& d) {
  c.WriteGpr(d.insn.operand[0].index, c.code64 ? 8 : 4, c.state->msr.tsc_aux & 0xffffffff);
  return true;
}
/// There are no performance counters.
bool Rdpmc(Core& c, const Decoded&) { return c.Gp(); }

bool Cpuid(Core& c, const Decoded&) {
  x86::CpuState& s = *c.state;
  const x86::CpuidResult result = c.config.model->Cpuid(static_cast<uint32_t>(s.gpr[x86::kRax]),
                                                        static_cast<uint32_t>(s.gpr[x86::kRcx]), s, c.config.index);
  s.gpr[x86::kRax] = result.eax;
  s.gpr[x86::kRbx] = result.ebx;
  s.gpr[x86::kRcx] = result.ecx;
  s.gpr[x86::kRdx] = result.edx;
  return true;
}

bool Random(Core& c, const Decoded& d) {
  uint64_t value = 0;
  const bool ok = getrandom(&value, sizeof value, 0) == sizeof value;
  const x86::Operand& reg = d.insn.operand[0];
  c.WriteGpr(reg.index, reg.size, ok ? value : 0);
  c.state->rflags = (c.state->rflags & ~rf::kArithmetic) | (ok ? rf::kCf : 0);
  return true;
}

/// KVM's convention; outside CPL 0 the answer is -EPERM.
bool Hypercall(Core& c, const Decoded&) {
  x86::CpuState& s = *c.state;
  const unsigned size = c.code64 ? 8 : 4;
  uint64_t answer = static_cast<uint64_t>(-1);
  if (s.cpl() == 0) {
    const uint64_t arguments[4] = {c.ReadGpr(x86::kRbx, size), c.ReadGpr(x86::kRcx, size), c.ReadGpr(x86::kRdx, size),
                                   c.ReadGpr(x86::kRsi, size)};
    answer = c.config.host->Hypercall(c.ReadGpr(x86::kRax, size), arguments, c.code64);
  }
  c.WriteGpr(x86::kRax, size, answer);
  return true;
}

// ---- Caches and order.

/// CLFLUSH and its kin fault like a byte read (SDM 2A "CLFLUSH").
bool CacheLine(Core& c, const Decoded& d) {
  MemRef ref;
  return c.TranslateSegment(c.OperandSegment(d), c.EffectiveAddress(d), 1, x86::Access::kRead, ref);
}

bool Clzero(Core& c, const Decoded& d) {
  static constexpr uint8_t kZero[64] = {};
  const uint64_t address = MaskToSize(c.state->gpr[x86::kRax], d.insn.address_size) & ~uint64_t{63};
  return c.Write(static_cast<x86::SegmentIndex>(d.string_segment), address, kZero, 64);
}

bool Fence(Core&, const Decoded&) {
  std::atomic_thread_fence(std::memory_order_seq_cst);
  return true;
}

bool Nothing(Core&, const Decoded&) { return true; }

/// MONITOR and MWAIT as a hint that is not taken.
bool PrivilegedNothing(Core& c, const Decoded&) { return c.state->cpl() == 0 ? true : c.Ud(); }

}  // namespace

void RegisterSystem(HandlerTable& t) {
  t.Set(ZYDIS_MNEMONIC_SYSCALL, Syscall);
  t.Set(ZYDIS_MNEMONIC_SYSRET, Sysret);
  t.Set(ZYDIS_MNEMONIC_SYSENTER, Sysenter);
  t.Set(ZYDIS_MNEMONIC_SYSEXIT, Sysexit);
  t.Set(ZYDIS_MNEMONIC_SWAPGS, Swapgs);
  t.Set(ZYDIS_MNEMONIC_RDFSBASE, SegmentBase<x86::kFs, false>);
  t.Set(ZYDIS_MNEMONIC_RDGSBASE, SegmentBase<x86::kGs, false>);
  t.Set(ZYDIS_MNEMONIC_WRFSBASE, SegmentBase<x86::kFs, true>);
  t.Set(ZYDIS_MNEMONIC_WRGSBASE, SegmentBase<x86::kGs, true>);
  t.Set(ZYDIS_MNEMONIC_RDMSR, Rdmsr);
  t.Set(ZYDIS_MNEMONIC_WRMSR, Wrmsr);
  t.Set(ZYDIS_MNEMONIC_RDTSC, Rdtsc);
  t.Set(ZYDIS_MNEMONIC_RDTSCP, Rdtscp);
  t.Set(ZYDIS_MNEMONIC_RDPID, Rdpid);
  t.Set(ZYDIS_MNEMONIC_RDPMC, Rdpmc);
  t.Set(ZYDIS_MNEMONIC_CPUID, Cpuid);
  t.Set(ZYDIS_MNEMONIC_RDRAND, Random);
  t.Set(ZYDIS_MNEMONIC_RDSEED, Random);
  t.Set(ZYDIS_MNEMONIC_VMCALL, Hypercall);
  t.Set(ZYDIS_MNEMONIC_VMMCALL, Hypercall);
}

void RegisterMisc(HandlerTable& t) {
  for (ZydisMnemonic mnemonic : {ZYDIS_MNEMONIC_CLFLUSH, ZYDIS_MNEMONIC_CLFLUSHOPT, ZYDIS_MNEMONIC_CLWB})
    t.Set(mnemonic, CacheLine);
  t.Set(ZYDIS_MNEMONIC_CLZERO, Clzero);
  for (ZydisMnemonic mnemonic :
       {ZYDIS_MNEMONIC_MFENCE, ZYDIS_MNEMONIC_LFENCE, ZYDIS_MNEMONIC_SFENCE, ZYDIS_MNEMONIC_SERIALIZE})
    t.Set(mnemonic, Fence);
  for (ZydisMnemonic mnemonic : {ZYDIS_MNEMONIC_MONITOR, ZYDIS_MNEMONIC_MWAIT}) t.Set(mnemonic, PrivilegedNothing);
  for (ZydisMnemonic mnemonic :
       {ZYDIS_MNEMONIC_NOP, ZYDIS_MNEMONIC_PAUSE, ZYDIS_MNEMONIC_PREFETCH, ZYDIS_MNEMONIC_PREFETCHNTA,
        ZYDIS_MNEMONIC_PREFETCHT0, ZYDIS_MNEMONIC_PREFETCHT1, ZYDIS_MNEMONIC_PREFETCHT2, ZYDIS_MNEMONIC_PREFETCHW,
        ZYDIS_MNEMONIC_PREFETCHWT1, ZYDIS_MNEMONIC_ENDBR32, ZYDIS_MNEMONIC_ENDBR64, ZYDIS_MNEMONIC_CLDEMOTE})
    t.Set(mnemonic, Nothing);
  for (ZydisMnemonic mnemonic : {ZYDIS_MNEMONIC_UD0, ZYDIS_MNEMONIC_UD1, ZYDIS_MNEMONIC_UD2})
    t.Set(mnemonic, InvalidOpcode);
}

}  // namespace nacre::engine::interp
