#pragma once
// Executes one x87, MMX, SSE, AVX, AES, SHA, ... instruction, or one of the FXSAVE/XSAVE family, on a CpuState. Most
// are run on the host CPU itself by a small generated thunk with the operands placed in registers and a buffer, and are
// therefore bit-exact. Called by the interpreter for instructions with kInsnX87, kInsnVector or of that family, after
// it has checked that the CPU model has the instruction. One thread per VectorUnit.

#include <cstdint>
#include <memory>

#include "x86/cpu_model.h"
#include "x86/cpu_state.h"
#include "x86/instruction.h"

namespace nacre::engine::interp {

/// Guest memory as the instruction sees it: segmentation, canonical checks and paging included. False: the fault has
/// been recorded by the implementation and the instruction must be abandoned with nothing changed.
class OperandMemory {
 public:
  virtual ~OperandMemory() = default;
  /// `offset` is the effective address within `segment` (already truncated to the address size).
  virtual bool Read(x86::SegmentIndex segment, uint64_t offset, void* to, unsigned size) = 0;
  virtual bool Write(x86::SegmentIndex segment, uint64_t offset, const void* from, unsigned size) = 0;
  /// Faults now if a write of the range would fault; changes nothing but A/D bits.
  virtual bool ProbeWrite(x86::SegmentIndex segment, uint64_t offset, unsigned size) = 0;
};

enum class VectorResult : uint8_t {
  kOk,
  kMemoryFault,  ///< recorded by OperandMemory
  kInvalidOpcode,
  kDeviceNotAvailable,
  kGeneralProtection /* error code 0 */,
  kX87Error,
  kSimdError
};

class VectorUnit {
 public:
  explicit VectorUnit(const x86::CpuModel& model);
  ~VectorUnit();
  /// Whether the instruction belongs here (vector, x87, MMX, FXSAVE/XSAVE family, EMMS, LDMXCSR, VZEROUPPER, XGETBV is
  /// not).
  static bool Handles(const x86::Instruction& instruction);
  /// `offset`: the memory operand's effective address (0 without; for VSIB: base + displacement only). Updates
  /// registers, arithmetic flags, XMM/x87 state; RIP is the caller's. REP-less by nature.
  VectorResult Execute(x86::CpuState& state, const x86::Instruction& instruction, uint64_t offset,
                       OperandMemory& memory);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace nacre::engine::interp
