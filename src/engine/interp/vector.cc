#include "engine/interp/vector.h"

#include <cstring>

#include "base/bits.h"
#include "base/check.h"
#include "engine/interp/vector_impl.h"

namespace nacre::engine::interp {

using x86::CpuState;
using x86::Instruction;

namespace {

constexpr uint64_t MaskBits(unsigned count) { return count >= 64 ? ~uint64_t{0} : Bit(count) - 1; }

bool BelongsToSaveFamily(const Instruction& insn) {
  switch (insn.zydis_mnemonic()) {
    case ZYDIS_MNEMONIC_FWAIT:
    case ZYDIS_MNEMONIC_FXSAVE:
    case ZYDIS_MNEMONIC_FXSAVE64:
    case ZYDIS_MNEMONIC_FXRSTOR:
    case ZYDIS_MNEMONIC_FXRSTOR64:
    case ZYDIS_MNEMONIC_XSAVE:
    case ZYDIS_MNEMONIC_XSAVE64:
    case ZYDIS_MNEMONIC_XSAVEOPT:
    case ZYDIS_MNEMONIC_XSAVEOPT64:
    case ZYDIS_MNEMONIC_XSAVEC:
    case ZYDIS_MNEMONIC_XSAVEC64:
    case ZYDIS_MNEMONIC_XSAVES:
    case ZYDIS_MNEMONIC_XSAVES64:
    case ZYDIS_MNEMONIC_XRSTOR:
    case ZYDIS_MNEMONIC_XRSTOR64:
    case ZYDIS_MNEMONIC_XRSTORS:
    case ZYDIS_MNEMONIC_XRSTORS64:
      return true;
    default:
      return false;
  }
}

// The #UD and #NM checks (SDM 3A tables 2-2, 13-1; SDM 2A 2.4 "Exceptions type 1-8").
VectorResult CheckGuard(const CpuState& state, VectorGuard guard) {
  const bool em = (state.cr0 & x86::cr0::kEm) != 0;
  const bool ts = (state.cr0 & x86::cr0::kTs) != 0;
  switch (guard) {
    case VectorGuard::kX87:
      return em || ts ? VectorResult::kDeviceNotAvailable : VectorResult::kOk;
    case VectorGuard::kWait:
      return ts && (state.cr0 & x86::cr0::kMp) != 0 ? VectorResult::kDeviceNotAvailable : VectorResult::kOk;
    case VectorGuard::kFxsave:
      return em || ts ? VectorResult::kDeviceNotAvailable : VectorResult::kOk;
    case VectorGuard::kMmx:
      if (em) return VectorResult::kInvalidOpcode;
      break;
    case VectorGuard::kSse:
      if (em || (state.cr4 & x86::cr4::kOsFxsr) == 0) return VectorResult::kInvalidOpcode;
      break;
    case VectorGuard::kVex:
      if (!state.protected_mode() || state.virtual8086() || (state.cr4 & x86::cr4::kOsXsave) == 0 ||
          (state.xcr0 & 6) != 6)
        return VectorResult::kInvalidOpcode;
      break;
    case VectorGuard::kEvex:
      if (!state.protected_mode() || state.virtual8086() || (state.cr4 & x86::cr4::kOsXsave) == 0 ||
          (state.xcr0 & x86::kAvx512Enabled) != x86::kAvx512Enabled)
        return VectorResult::kInvalidOpcode;
      break;
    case VectorGuard::kXsave:
      if ((state.cr4 & x86::cr4::kOsXsave) == 0) return VectorResult::kInvalidOpcode;
      break;
  }
  return ts ? VectorResult::kDeviceNotAvailable : VectorResult::kOk;
}

}  // namespace

Ymm LoadYmm(CpuState& state, unsigned index) {
  Ymm value;
  std::memcpy(value.data(), state.xsave.xmm(index), 16);
  std::memcpy(value.data() + 16, state.xsave.ymm_high(index), 16);
  return value;
}

void StoreYmm(CpuState& state, unsigned index, const Ymm& value) {
  std::memcpy(state.xsave.xmm(index), value.data(), 16);
  std::memcpy(state.xsave.ymm_high(index), value.data() + 16, 16);
  std::memset(state.xsave.zmm_high(index), 0, 32);
}

Zmm LoadZmm(CpuState& state, unsigned index) {
  Zmm value;
  if (index >= 16) {
    std::memcpy(value.data(), state.xsave.zmm(index), 64);
    return value;
  }
  std::memcpy(value.data(), state.xsave.xmm(index), 16);
  std::memcpy(value.data() + 16, state.xsave.ymm_high(index), 16);
  std::memcpy(value.data() + 32, state.xsave.zmm_high(index), 32);
  return value;
}

void StoreZmm(CpuState& state, unsigned index, const Zmm& value) {
  if (index >= 16) {
    std::memcpy(state.xsave.zmm(index), value.data(), 64);
    return;
  }
  std::memcpy(state.xsave.xmm(index), value.data(), 16);
  std::memcpy(state.xsave.ymm_high(index), value.data() + 16, 16);
  std::memcpy(state.xsave.zmm_high(index), value.data() + 32, 32);
}

bool VectorCall::Aligned(unsigned alignment) const {
  // In 64-bit mode only FS and GS have a base (SDM 3A 3.4.4).
  const bool flat = state.code64() && insn.segment != x86::kFs && insn.segment != x86::kGs;
  const uint64_t linear = Offset(offset) + (flat ? 0 : state.segment[insn.segment].base);
  return (linear & (alignment - 1)) == 0;
}

VectorUnit::VectorUnit(const x86::CpuModel&) : impl_(std::make_unique<Impl>()) {}
VectorUnit::~VectorUnit() = default;

bool VectorUnit::Handles(const Instruction& insn) {
  return insn.has(x86::kInsnX87) || insn.has(x86::kInsnVector) || BelongsToSaveFamily(insn);
}

VectorResult VectorUnit::Execute(CpuState& state, const Instruction& insn, uint64_t offset, OperandMemory& memory) {
  return impl_->Execute({state, insn, offset, memory});
}

const VectorPlan& VectorUnit::Impl::PlanFor(const Instruction& insn) {
  uint64_t low = 0, high = 0;
  std::memcpy(&low, insn.bytes, 8);
  std::memcpy(&high, insn.bytes + 7, 8);
  const uint64_t hash = (low ^ (high << 17) ^ (high >> 31)) * 0x9e3779b97f4a7c15;
  VectorPlan& plan = plans_[hash >> 54];
  static_assert(kPlans == 1 << 10);
  const bool hit = plan.length == insn.length && plan.code_size == insn.code_size &&
                   std::memcmp(plan.bytes.data(), insn.bytes, insn.length) == 0;
  if (!hit) plan = MakePlan(insn);
  const bool thunk = plan.kind == VectorKind::kNative || plan.kind == VectorKind::kByteMaskedStore;
  if (thunk && plan.generation != thunk_.generation()) {
    plan.snippet = thunk_.Snippet(Canonicalize(insn, plan.gpr_place));
    plan.generation = thunk_.generation();
  }
  return plan;
}

VectorResult VectorUnit::Impl::Execute(const VectorCall& call) {
  const VectorPlan& plan = PlanFor(call.insn);
  if (plan.kind == VectorKind::kInvalid) return VectorResult::kInvalidOpcode;
  CpuState& state = call.state;
  if (const VectorResult guard = CheckGuard(state, plan.guard); guard != VectorResult::kOk) return guard;
  // A pending x87 exception. Without CR0.NE the CPU asserts FERR# and goes on if IGNNE# is asserted (SDM 1 8.7), as
  // it is on this board.
  const bool pending = plan.x87_pending && (state.xsave.fsw() & kFswEs) != 0;
  if (pending && (state.cr0 & x86::cr0::kNe) != 0) return VectorResult::kX87Error;
  state.xsave.mxcsr() &= kMxcsrMask;
  return Dispatch(call, plan);
}

VectorResult VectorUnit::Impl::Dispatch(const VectorCall& call, const VectorPlan& plan) {
  switch (plan.kind) {
    case VectorKind::kInvalid:
      return VectorResult::kInvalidOpcode;
    case VectorKind::kNative:
      return Native(call, plan);
    case VectorKind::kWait:
      return VectorResult::kOk;
    case VectorKind::kFxsave:
      return Fxsave(call);
    case VectorKind::kFxrstor:
      return Fxrstor(call);
    case VectorKind::kXsave:
      return Xsave(call, false);
    case VectorKind::kXsaveopt:
      return Xsave(call, true);
    case VectorKind::kXrstor:
      return Xrstor(call);
    case VectorKind::kLdmxcsr:
      return Ldmxcsr(call);
    case VectorKind::kStmxcsr:
      return call.Write(0, &call.state.xsave.mxcsr(), 4) ? VectorResult::kOk : VectorResult::kMemoryFault;
    case VectorKind::kVzeroupper:
      return ZeroUpper(call, false);
    case VectorKind::kVzeroall:
      return ZeroUpper(call, true);
    case VectorKind::kMaskedLoad:
      return MaskedLoad(call, plan);
    case VectorKind::kMaskedStore:
      return MaskedStore(call, plan);
    case VectorKind::kByteMaskedStore:
      return ByteMaskedStore(call, plan);
    case VectorKind::kGather:
      return Gather(call, plan);
    case VectorKind::kOpmaskGather:
      return OpmaskGather(call, plan);
    case VectorKind::kScatter:
      return Scatter(call, plan);
  }
  return VectorResult::kInvalidOpcode;
}

VectorResult VectorUnit::Impl::Native(const VectorCall& call, const VectorPlan& plan) {
  if (plan.masked_memory) return NativeMasked(call, plan);
  if (plan.memory_bytes != 0) {
    NACRE_CHECK(plan.memory_bytes <= sizeof(ThunkContext::memory));
    if (plan.alignment > 1 && !call.Aligned(plan.alignment)) return VectorResult::kGeneralProtection;
    if (plan.memory_written && !call.Probe(0, plan.memory_bytes)) return VectorResult::kMemoryFault;
    if (plan.memory_read && !call.Read(0, thunk_.context().memory, plan.memory_bytes))
      return VectorResult::kMemoryFault;
  }
  return plan.x87_state ? NativeX87(call, plan) : NativeVector(call, plan, 0);
}

// Elements that the writemask excludes are neither read nor written (SDM 2A 2.7.3); the instruction itself finds zeros
// in their place, and does not look at them.
VectorResult VectorUnit::Impl::NativeMasked(const VectorCall& call, const VectorPlan& plan) {
  if (plan.alignment > 1 && !call.Aligned(plan.alignment)) return VectorResult::kGeneralProtection;
  const Instruction& insn = call.insn;
  const unsigned size = plan.element_bytes, count = plan.memory_bytes / size;
  NACRE_CHECK(count >= 1 && count <= 64 && plan.memory_bytes <= sizeof(ThunkContext::memory));
  const uint64_t mask = LoadLe<uint64_t>(call.state.xsave.opmask(insn.opmask)) & MaskBits(insn.opmask_bits);
  uint64_t elements = 0;
  if (plan.packed_memory)
    elements = MaskBits(static_cast<unsigned>(std::popcount(mask)));
  else
    for (unsigned i = 0; i < insn.opmask_bits; ++i)
      if (TestBit(mask, i)) elements |= Bit(i % count);
  uint8_t* const bounce = thunk_.context().memory;
  if (plan.memory_written &&
      !ForEachRun(elements, size, [&](unsigned at, unsigned bytes) { return call.Probe(at, bytes); }))
    return VectorResult::kMemoryFault;
  if (plan.memory_read) {
    std::memset(bounce, 0, plan.memory_bytes);
    if (!ForEachRun(elements, size, [&](unsigned at, unsigned bytes) { return call.Read(at, bounce + at, bytes); }))
      return VectorResult::kMemoryFault;
  }
  return NativeVector(call, plan, elements);
}

void VectorUnit::Impl::LoadGprs(const VectorCall& call, const VectorPlan& plan) {
  ThunkContext& context = thunk_.context();
  const uint64_t* gpr = call.state.gpr;
  context.rax = plan.gpr_place == GprPlace::kNone ? gpr[x86::kRax] : gpr[plan.gpr];
  context.rcx = gpr[x86::kRcx];
  context.rdx = gpr[x86::kRdx];
}

void VectorUnit::Impl::StoreGprs(const VectorCall& call, const VectorPlan& plan) {
  const ThunkContext& context = thunk_.context();
  uint64_t* gpr = call.state.gpr;
  if (plan.gpr_written) gpr[plan.gpr] = context.rax;
  if ((plan.implicit_written & (1u << x86::kRax)) != 0) gpr[x86::kRax] = context.rax;
  if ((plan.implicit_written & (1u << x86::kRcx)) != 0) gpr[x86::kRcx] = context.rcx;
  if ((plan.implicit_written & (1u << x86::kRdx)) != 0) gpr[x86::kRdx] = context.rdx;
}

VectorResult VectorUnit::Impl::NativeVector(const VectorCall& call, const VectorPlan& plan, uint64_t elements) {
  CpuState& state = call.state;
  ThunkContext& context = thunk_.context();
  LoadGprs(call, plan);
  const bool vex = plan.guard == VectorGuard::kVex;
  const bool avx512 =
      plan.guard == VectorGuard::kEvex || (vex && (state.xcr0 & x86::kAvx512Enabled) == x86::kAvx512Enabled);
  if (!thunk_.RunVector(state.xsave, plan.snippet, avx512)) {
    // SIGILL: the host lacks what the CPU model promises. An unmasked SIMD exception is #UD without CR4.OSXMMEXCPT.
    const bool simd = context.fault_signal == SIGFPE && (state.cr4 & x86::cr4::kOsXmmExcpt) != 0;
    return simd ? VectorResult::kSimdError : VectorResult::kInvalidOpcode;
  }
  StoreGprs(call, plan);
  if (plan.flags_written != 0)
    state.rflags = (state.rflags & ~uint64_t{plan.flags_written}) | (context.flags & plan.flags_written);
  if (!plan.memory_written) return VectorResult::kOk;
  const auto write = [&](unsigned at, unsigned bytes) { return call.Write(at, context.memory + at, bytes); };
  const bool stored =
      plan.masked_memory ? ForEachRun(elements, plan.element_bytes, write) : write(0, plan.memory_bytes);
  return stored ? VectorResult::kOk : VectorResult::kMemoryFault;
}

VectorResult VectorUnit::Impl::NativeX87(const VectorCall& call, const VectorPlan& plan) {
  CpuState& state = call.state;
  ThunkContext& context = thunk_.context();
  LoadGprs(call, plan);
  context.flags = (state.rflags & x86::rflags::kArithmetic) | x86::rflags::kFixed1;
  // CR0.NE clear and an exception pending: go on as if it were masked.
  const uint16_t guest_fcw = state.xsave.fcw();
  const bool ignoring = plan.x87_pending && (state.xsave.fsw() & kFswEs) != 0;
  if (ignoring) {
    state.xsave.fcw() |= kFcwMasks;
    state.xsave.fsw() &= static_cast<uint16_t>(~(kFswEs | kFswBusy));
  }
  const bool ran = thunk_.RunX87(state.xsave, plan.snippet);
  if (!ran) {
    if (ignoring) state.xsave.fcw() = guest_fcw;
    if (context.fault_signal != SIGFPE) return VectorResult::kInvalidOpcode;
    if ((state.xsave.fsw() & kFswEs) != 0) return VectorResult::kX87Error;
    // A SIMD exception of an instruction on both kinds of registers: MXCSR's flags stay.
    std::memcpy(&state.xsave.mxcsr(), context.fx + 24, 4);
    return (state.cr4 & x86::cr4::kOsXmmExcpt) != 0 ? VectorResult::kSimdError : VectorResult::kInvalidOpcode;
  }
  const bool written = plan.memory_written && !(plan.x87_result && StoredNothing(call, plan));
  if (written && !call.Write(0, context.memory, plan.memory_bytes)) {
    if (ignoring) state.xsave.fcw() = guest_fcw;
    return VectorResult::kMemoryFault;
  }
  const uint16_t fcw_before = state.xsave.fcw();
  CommitX87(state);
  StoreGprs(call, plan);
  state.rflags = (state.rflags & ~x86::rflags::kArithmetic) | (context.flags & x86::rflags::kArithmetic);
  if (ignoring && state.xsave.fcw() == fcw_before) {
    state.xsave.fcw() = guest_fcw;
    NormalizeX87(state);
  }
  return VectorResult::kOk;
}

// An unmasked exception may keep a store from happening (SDM 1 8.5: invalid operand, overflow, underflow) or not
// (precision). Nothing is committed yet, so a second run over other bytes tells.
bool VectorUnit::Impl::StoredNothing(const VectorCall& call, const VectorPlan& plan) {
  ThunkContext& context = thunk_.context();
  if ((LoadLe<uint16_t>(context.fx + 2) & kFswEs) == 0) return false;
  uint8_t first[16];
  NACRE_CHECK(plan.memory_bytes <= sizeof(first));
  std::memcpy(first, context.memory, plan.memory_bytes);
  for (unsigned i = 0; i < plan.memory_bytes; ++i) context.memory[i] = static_cast<uint8_t>(~first[i]);
  LoadGprs(call, plan);
  thunk_.RunX87(call.state.xsave, plan.snippet);
  return std::memcmp(first, context.memory, plan.memory_bytes) != 0;
}

void VectorUnit::Impl::CommitX87(CpuState& state) {
  // All but the error pointers, kept at zero, and the MXCSR mask.
  const uint8_t* fx = thunk_.context().fx;
  uint8_t* area = state.xsave.bytes;
  std::memcpy(area, fx, 24);
  std::memcpy(area + 24, fx + 24, 4);
  std::memcpy(area + 32, fx + 32, 128 + 256);
}

void VectorUnit::Impl::NormalizeX87(CpuState& state) {
  if (thunk_.RunX87(state.xsave, thunk_.Snippet(CanonicalBytes{}))) CommitX87(state);
}

}  // namespace nacre::engine::interp
