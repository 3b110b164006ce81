#pragma once
// Inside of VectorUnit: what vector.cc (checks, the way through the thunk), vector_plan.cc (what an instruction needs),
// vector_xsave.cc (FXSAVE and XSAVE families) and vector_masked.cc (masked moves, gathers) share. One thread.

#include <array>
#include <bit>
#include <cstdint>
#include <memory>

#include "engine/interp/thunk.h"
#include "engine/interp/vector.h"

namespace nacre::engine::interp {

/// How an instruction is executed.
enum class VectorKind : uint8_t {
  kInvalid,  ///< what no CPU model has (XOP, 3DNow!, XSAVEC, XSAVES)
  kNative,   ///< by the thunk
  kWait,
  kFxsave,
  kFxrstor,
  kXsave,
  kXsaveopt,
  kXrstor,
  kLdmxcsr,
  kStmxcsr,
  kVzeroupper,
  kVzeroall,
  kMaskedLoad,
  kMaskedStore,      ///< VMASKMOV, VPMASKMOV
  kByteMaskedStore,  ///< MASKMOVDQU, MASKMOVQ
  kGather,           ///< VEX: its mask is a vector
  kOpmaskGather,     ///< EVEX
  kScatter
};

/// Which control register bits guard it (SDM 3A 2.5, 13.1; SDM 2A 2.4).
enum class VectorGuard : uint8_t { kX87, kWait, kMmx, kSse, kVex, kEvex, kFxsave, kXsave };

/// What executing one instruction takes, worked out once.
struct VectorPlan {
  std::array<uint8_t, 15> bytes = {};  ///< the key: the instruction as it stands in memory, and its code size
  uint8_t length = 0;
  x86::CodeSize code_size = x86::CodeSize::k64;

  VectorKind kind = VectorKind::kInvalid;
  VectorGuard guard = VectorGuard::kX87;
  bool x87_state = false;    ///< runs on the x87 image (x87, MMX)
  bool x87_pending = false;  ///< a pending x87 exception comes first
  bool x87_result = false;   ///< a waiting x87 store: an unmasked exception may keep it from storing
  bool memory_read = false, memory_written = false;
  uint16_t memory_bytes = 0;
  uint8_t alignment = 1;       ///< of the linear address, else #GP
  uint8_t element_bytes = 0;   ///< masked moves, gathers and scatters; EVEX: of the operand in memory
  bool masked_memory = false;  ///< only what the writemask selects is accessed
  bool packed_memory = false;  ///< ... and stands side by side (compressed stores, expanding loads)
  GprPlace gpr_place = GprPlace::kNone;
  uint8_t gpr = 0;  ///< the renamed register
  bool gpr_written = false;
  uint16_t implicit_written = 0;  ///< of RAX, RCX, RDX
  uint16_t flags_written = 0;
  uint64_t generation = 0;
  const uint8_t* snippet = nullptr;
};

VectorPlan MakePlan(const x86::Instruction& instruction);

/// One Execute call's surroundings.
struct VectorCall {
  x86::CpuState& state;
  const x86::Instruction& insn;
  uint64_t offset;
  OperandMemory& memory;

  x86::SegmentIndex segment() const { return static_cast<x86::SegmentIndex>(insn.segment); }
  /// Within the segment, cut to the address size.
  uint64_t Offset(uint64_t value) const { return MaskToSize(value, insn.address_size); }
  bool Read(uint64_t at, void* to, unsigned size) const {
    return memory.Read(segment(), Offset(offset + at), to, size);
  }
  bool Write(uint64_t at, const void* from, unsigned size) const {
    return memory.Write(segment(), Offset(offset + at), from, size);
  }
  bool Probe(uint64_t at, unsigned size) const { return memory.ProbeWrite(segment(), Offset(offset + at), size); }
  /// Outside 64-bit code there are 8 vector registers.
  unsigned vector_registers() const { return insn.code_size == x86::CodeSize::k64 ? 16 : 8; }
  bool Aligned(unsigned alignment) const;
};

class VectorUnit::Impl {
 public:
  VectorResult Execute(const VectorCall& call);

 private:
  static constexpr size_t kPlans = 1024;

  const VectorPlan& PlanFor(const x86::Instruction& insn);
  VectorResult Dispatch(const VectorCall& call, const VectorPlan& plan);
  VectorResult Native(const VectorCall& call, const VectorPlan& plan);
  VectorResult NativeMasked(const VectorCall& call, const VectorPlan& plan);
  /// Stores `elements` of plan.element_bytes each of the operand in memory; all at once where there are none.
  VectorResult NativeVector(const VectorCall& call, const VectorPlan& plan, uint64_t elements);
  VectorResult NativeX87(const VectorCall& call, const VectorPlan& plan);
  bool StoredNothing(const VectorCall& call, const VectorPlan& plan);
  void LoadGprs(const VectorCall& call, const VectorPlan& plan);
  void StoreGprs(const VectorCall& call, const VectorPlan& plan);
  /// Takes the thunk's x87 outcome into the state.
  void CommitX87(x86::CpuState& state);
  /// Lets the host work out ES, B and reserved bits of a newly loaded x87 image.
  void NormalizeX87(x86::CpuState& state);

  VectorResult Fxsave(const VectorCall& call);
  VectorResult Fxrstor(const VectorCall& call);
  VectorResult Xsave(const VectorCall& call, bool optimized);
  VectorResult Xrstor(const VectorCall& call);
  VectorResult Ldmxcsr(const VectorCall& call);
  VectorResult ZeroUpper(const VectorCall& call, bool all);

  VectorResult MaskedLoad(const VectorCall& call, const VectorPlan& plan);
  VectorResult MaskedStore(const VectorCall& call, const VectorPlan& plan);
  VectorResult ByteMaskedStore(const VectorCall& call, const VectorPlan& plan);
  VectorResult Gather(const VectorCall& call, const VectorPlan& plan);
  VectorResult OpmaskGather(const VectorCall& call, const VectorPlan& plan);
  VectorResult Scatter(const VectorCall& call, const VectorPlan& plan);

  ThunkRunner thunk_;
  std::array<VectorPlan, kPlans> plans_ = {};
};

// --- registers -------------------------------------------------------------------------------------------------------

using Ymm = std::array<uint8_t, 32>;
Ymm LoadYmm(x86::CpuState& state, unsigned index);
void StoreYmm(x86::CpuState& state, unsigned index, const Ymm& value);  ///< and zeroes what is above, as VEX does

using Zmm = std::array<uint8_t, 64>;
Zmm LoadZmm(x86::CpuState& state, unsigned index);
void StoreZmm(x86::CpuState& state, unsigned index, const Zmm& value);

/// `operation(first, bytes)` for each run of set bits in `elements`, as bytes of elements of `element_bytes`; stops at,
/// and returns, false.
template <typename Operation>
bool ForEachRun(uint64_t elements, unsigned element_bytes, Operation&& operation) {
  while (elements != 0) {
    const auto first = static_cast<unsigned>(std::countr_zero(elements));
    const auto count = static_cast<unsigned>(std::countr_one(elements >> first));
    if (!operation(first * element_bytes, count * element_bytes)) return false;
    if (first + count >= 64) return true;
    elements &= ~uint64_t{0} << (first + count);
  }
  return true;
}

inline constexpr uint32_t kMxcsrMask = 0xffff;  ///< what FXSAVE reports and LDMXCSR accepts
inline constexpr uint32_t kMxcsrInit = 0x1f80;
inline constexpr uint16_t kFswEs = 0x80, kFswBusy = 0x8000, kFcwMasks = 0x3f, kFcwInit = 0x37f;

}  // namespace nacre::engine::interp
