#pragma once
// Runs a case's instruction on the bare host CPU, in this process: registers are loaded by generated code, memory
// operands lie at the layout's fixed addresses, exceptions come back through signals. One instance, one thread.

#include <memory>
#include <string>

#include "base/result.h"
#include "engine/difftest/test_case.h"
#include "engine/host_faults.h"

namespace nacre::engine::difftest {

class HostCpu : private HostFaultHandler {
 public:
  /// Fails where the host does not let us map the fixed addresses.
  static Result<std::unique_ptr<HostCpu>> Create();
  ~HostCpu() override;

  /// `data` is copied in and out; so the case's own stays.
  void Run(const TestCase& test, Outcome& outcome);

  bool has_gs_base() const { return use_gs_; }  ///< GS-relative cases are possible
  bool has_avx() const { return (xsave_mask_ & 4) != 0; }
  bool has_avx512() const { return (xsave_mask_ & x86::kAvx512Components) != 0; }
  bool has_compat() const { return compat_; }  ///< 32-bit code is possible

 private:
  HostCpu() = default;
  bool OnHostFault(int signal, const siginfo_t& info, ucontext_t& context) override;
  Status Map();
  void FindComponents();
  void PlaceCode(const TestCase& test);
  void RemoveCode(const TestCase& test);

  HostFaultRange range_;
  SignalStack stack_;
  bool use_gs_ = false;
  bool compat_ = false;
  uint32_t xsave_mask_ = 3;
  uint32_t component_offset_[8] = {};  ///< in the host's own XSAVE area, by XCR0 bit
  bool stopped_ = false;               ///< by a signal
  int trap_ = 0;
  uint64_t error_ = 0, cr2_ = 0, fault_rip_ = 0;
  uint16_t fault_cs_ = 0;
};

}  // namespace nacre::engine::difftest
