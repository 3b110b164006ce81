#pragma once
// The reference interpreter: one instruction at a time on an x86::CpuState, complete, exact and plain. It is an engine
// (interp_engine.h) and the fallback of the others, which keep a CpuState and call Step for whatever they do not do
// themselves. One thread (the vCPU's).

#include <cstdint>
#include <memory>

#include "engine/engine.h"
#include "x86/cpu_state.h"

namespace nacre::engine::interp {

enum class StepResult : uint8_t {
  kOk,        ///< an instruction (or some iterations of a REP) retired, or a fault was delivered
  kHalted,    ///< HLT: state.halted is set
  kShutdown,  ///< triple fault
};

/// Told when the guest does something that invalidates what an engine caches of translations (SDM 3A 4.10.4). Called
/// before Step returns, on the vCPU's thread, with the new values in the state. PCIDs are 0 while CR4.PCIDE is clear.
class StateListener {
 public:
  virtual ~StateListener() = default;
  /// CR3 was loaded: from now on translations are those of `pcid`. `keep`: cached ones of that PCID stay valid; else
  /// only those of global pages.
  virtual void OnAddressSpace(uint16_t pcid, bool keep) = 0;
  /// Every cached translation of every PCID is stale; `include_global` false: those of global pages may stay.
  virtual void OnTlbFlush(bool include_global) = 0;
  /// Those of one PCID, but for global pages.
  virtual void OnTlbFlushPcid(uint16_t pcid) = 0;
  /// Those of the page at `address`, or of the large page that holds it: the present PCID's, and global ones.
  virtual void OnTlbFlushPage(GuestVirt address) = 0;
  /// ... of one PCID, global ones or not.
  virtual void OnTlbFlushPcidPage(uint16_t pcid, GuestVirt address) = 0;
};

class Interpreter {
 public:
  Interpreter(const VcpuConfig& config, StateListener* listener);
  ~Interpreter();

  /// Executes the instruction at CS:RIP, faults delivered through the IDT. Clears the interrupt shadow as the manual
  /// says (a shadow set by this very instruction stays).
  StepResult Step(x86::CpuState& state);

  /// Delivers an event before the next instruction. Wakes a halted CPU.
  StepResult InjectInterrupt(x86::CpuState& state, uint8_t vector);
  StepResult InjectNmi(x86::CpuState& state);
  /// A fault that an engine found itself, at state.rip. #PF: cr2 is given. error_code is ignored for vectors without.
  StepResult InjectException(x86::CpuState& state, uint8_t vector, uint32_t error_code = 0, uint64_t cr2 = 0);

  /// RDMSR and WRMSR without the instruction, for an engine that met one. False: #GP(0), and nothing is changed.
  bool ReadMsr(x86::CpuState& state, uint32_t index, uint64_t& value);
  bool WriteMsr(x86::CpuState& state, uint32_t index, uint64_t value);

  /// Forgets its own cached translations (after an import, or when another party changed page tables' meaning).
  void FlushTlb();
  /// Forgets cached decoded instructions of one physical page, or of all.
  void FlushDecoded();

  uint64_t retired() const;  ///< instructions retired by Step

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace nacre::engine::interp
