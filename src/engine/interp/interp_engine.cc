#include "engine/interp/interp_engine.h"

#include <atomic>

#include "engine/dirty_flags.h"
#include "engine/interp/interpreter.h"
#include "engine/vcpu_group.h"

namespace nacre::engine::interp {

namespace {

class InterpVcpu final : public Vcpu {
 public:
  InterpVcpu(const VcpuConfig& config, VcpuGroup& group)
      : member_(group, *this, nullptr), config_(WithExclusive(config, member_)), interpreter_(config_, nullptr) {}

  void Import(const x86::CpuState& state) override {
    state_ = state;
    interpreter_.FlushTlb();
  }
  void Export(x86::CpuState& state) const override { state = state_; }

  ExitReason Run(uint64_t instruction_budget) override {
    member_.Enter();
    const ExitReason reason = RunEntered(instruction_budget);
    member_.Leave();
    return reason;
  }

  void Request(uint32_t bits) override { requests_.fetch_or(bits, std::memory_order_acq_rel); }
  void ClearRequest(uint32_t bits) override { requests_.fetch_and(~bits, std::memory_order_acq_rel); }
  uint32_t pending_requests() const override { return requests_.load(std::memory_order_acquire); }
  std::string error() const override { return {}; }
  std::vector<Statistic> Statistics() const override {
    return {{"instructions retired", interpreter_.retired()}, {"interrupts delivered", interrupts_}, {"steps", steps_}};
  }

 private:
  static VcpuConfig WithExclusive(VcpuConfig config, ExclusiveSection& exclusive) {
    config.exclusive = &exclusive;
    return config;
  }

  bool Take(uint32_t bit) { return (requests_.fetch_and(~bit, std::memory_order_acq_rel) & bit) != 0; }

  ExitReason RunEntered(uint64_t instruction_budget) {
    const uint64_t end = instruction_budget == 0 ? ~uint64_t{0} : interpreter_.retired() + instruction_budget;
    for (;;) {
      if (const uint32_t requests = requests_.load(std::memory_order_acquire); requests != 0) [[unlikely]] {
        ExitReason reason;
        if (Serve(requests, reason)) return reason;
      }
      if (state_.halted) {
        // Between the look at the requests and here nothing is lost: who sets one wakes the caller's wait.
        return ExitReason::kHalted;
      }
      switch (interpreter_.Step(state_)) {
        case StepResult::kOk:
          break;
        case StepResult::kHalted:
          continue;  // an interrupt may be pending already
        case StepResult::kShutdown:
          return ExitReason::kShutdown;
      }
      ++steps_;
      if (interpreter_.retired() >= end) [[unlikely]]
        return ExitReason::kBudget;
    }
  }

  /// Looks at what was requested. True: leave Run for `reason`.
  bool Serve(uint32_t requests, ExitReason& reason) {
    if ((requests & kRequestStop) && Take(kRequestStop)) {
      reason = ExitReason::kStop;
      return true;
    }
    if ((requests & kRequestInit) && Take(kRequestInit)) {
      reason = ExitReason::kInit;
      return true;
    }
    if (requests & kRequestEngine) {
      Take(kRequestEngine);
      member_.Safepoint();
    }
    if ((requests & kRequestTlbFlush) && Take(kRequestTlbFlush)) interpreter_.FlushTlb();
    if ((requests & kRequestUnhalt) && Take(kRequestUnhalt)) state_.halted = false;
    StepResult result = StepResult::kOk;
    const bool mov_ss = state_.interrupt_shadow && state_.shadow_is_mov_ss;
    if ((requests & kRequestNmi) && !state_.nmi_masked && !mov_ss && Take(kRequestNmi)) {
      ++interrupts_;
      result = interpreter_.InjectNmi(state_);
    } else if ((requests & kRequestInterrupt) && (state_.rflags & x86::rflags::kIf) && !state_.interrupt_shadow) {
      if (const int vector = config_.host->AcknowledgeInterrupt(); vector >= 0) {
        ++interrupts_;
        result = interpreter_.InjectInterrupt(state_, static_cast<uint8_t>(vector));
      }
    }
    reason = ExitReason::kShutdown;
    return result == StepResult::kShutdown;
  }

  VcpuGroupMember member_;
  VcpuConfig config_;
  Interpreter interpreter_;
  x86::CpuState state_;
  std::atomic<uint32_t> requests_{0};
  uint64_t interrupts_ = 0;
  uint64_t steps_ = 0;
};

class InterpEngine final : public Engine {
 public:
  std::string_view name() const override { return "interp"; }
  Result<std::unique_ptr<Vcpu>> CreateVcpu(const VcpuConfig& config) override {
    if (group_.size() == VcpuGroup::kMaxMembers)
      return Fail("an engine runs at most {} virtual CPUs", VcpuGroup::kMaxMembers);
    auto vcpu = std::make_unique<InterpVcpu>(config, group_);
    memory_ = config.memory;
    vcpus_.push_back(vcpu.get());
    return vcpu;
  }
  Result<std::unique_ptr<DirtyLog>> StartDirtyLog() override { return StartDirtyFlags(*memory_, vcpus_); }
  std::vector<Statistic> Statistics() const override { return {}; }

 private:
  VcpuGroup group_;
  memory::GuestMemory* memory_ = nullptr;
  std::vector<Vcpu*> vcpus_;
};

}  // namespace

std::unique_ptr<Engine> CreateInterpEngine() { return std::make_unique<InterpEngine>(); }

}  // namespace nacre::engine::interp
