#pragma once
// Lockstep: every block of the translator is run by the reference interpreter first, on a private copy-on-write view of
// guest memory, and both results are compared. Stops at the first difference with both states in the error text. Slow
// (a few hundred thousand instructions a second); a tool for finding translator bugs, also in whole booting systems.

#include <memory>
#include <string>
#include <vector>

#include "engine/jit/jit_vcpu.h"

namespace nacre::engine::jit {

class JitVcpu::Lockstep {
 public:
  static Result<std::unique_ptr<Lockstep>> Create(const VcpuConfig& config);
  ExitReason Run(JitVcpu& vcpu, uint64_t instruction_budget);

 private:
  /// Devices must not see what the shadow does: an access ends the comparison.
  class NoDevices : public VcpuHost {
   public:
    uint32_t PortRead(uint16_t, unsigned) override { return Touch(); }
    void PortWrite(uint16_t, unsigned, uint32_t) override { Touch(); }
    uint64_t MmioRead(GuestPhys, unsigned) override { return Touch(); }
    void MmioWrite(GuestPhys, unsigned, uint64_t) override { Touch(); }
    bool ReadMsr(uint32_t, uint64_t& value) override { return (value = Touch()) == 0; }
    bool WriteMsr(uint32_t, uint64_t) override { return Touch() == 0; }
    uint64_t ReadCr8() override { return Touch(); }
    void WriteCr8(uint64_t) override { Touch(); }
    int AcknowledgeInterrupt() override { return -1; }
    uint64_t Hypercall(uint64_t, const uint64_t (&)[4], bool) override { return Touch(); }
    bool touched = false;

   private:
    uint32_t Touch() {
      touched = true;
      return 0;
    }
  };

  void RunShadow(const x86::CpuState& start, const Block& block, std::span<const InstructionPlace> places);
  /// Empty when the states agree; `flags_mask`: the arithmetic flags that count.
  static std::string Compare(const x86::CpuState& expected, const x86::CpuState& got, uint64_t flags_mask);
  void FindWrittenPages();
  std::string CompareMemory(const memory::GuestMemory& real);
  std::string Describe(const JitVcpu& vcpu, const Block& block, const x86::CpuState& start) const;

  NoDevices devices_;
  std::unique_ptr<memory::GuestMemory> memory_;
  std::unique_ptr<interp::Interpreter> shadow_;
  std::vector<x86::CpuState> states_;  ///< after 0, 1, ... instructions
  std::vector<uint64_t> written_pages_;
  size_t steps_ = 0;  ///< valid entries of states_ minus one
  uint64_t compared_ = 0;
  bool active_ = false;  ///< lockstep_from has been reached
};

}  // namespace nacre::engine::jit
