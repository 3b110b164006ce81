#pragma once
// One virtual CPU on the host's KVM. Its local APIC is kept by the host's kernel (KVM's split interrupt chip), so the
// kernel takes interrupts, waits in HLT and for SIPIs, and does the paravirtual calls; what reaches us are ports,
// device memory, some MSRs, ends of level-triggered interrupts, and what a weak KVM cannot emulate, which the reference
// interpreter does (docs/kvm.md).
//
// Threads: as engine::Vcpu says; ioctls come from the vCPU's thread, or from the control thread while it is parked.

#include <pthread.h>
#include "engine/kvm/kvm_api.h"

#include <array>
#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "base/fd.h"
#include "engine/engine.h"
#include "engine/interp/interpreter.h"
#include "engine/kvm/kvm_state.h"

namespace nacre::engine::kvm {

class KvmVm;

class KvmVcpu final : public Vcpu, private ApicKeeper {
 public:
  static Result<std::unique_ptr<KvmVcpu>> Create(KvmVm& vm, const VcpuConfig& config);
  ~KvmVcpu() override;

  ApicKeeper* apic_keeper() override { return this; }
  void Import(const x86::CpuState& state) override;
  void Export(x86::CpuState& state) const override;
  ExitReason Run(uint64_t instruction_budget) override;
  void Request(uint32_t bits) override;
  void ClearRequest(uint32_t bits) override { requests_.fetch_and(~bits); }
  uint32_t pending_requests() const override { return requests_.load(); }
  std::string error() const override { return error_; }
  std::vector<Statistic> Statistics() const override;

 private:
  /// What the interpreter sees of the machine while it helps: the local APIC is the kernel's.
  class AssistHost;

  KvmVcpu(KvmVm& vm, const VcpuConfig& config);
  Status Open();
  Status SetUpCpuid();
  void FindMsrs();

  Status ExportKept(KeptState& state) const override;
  Status ImportKept(const KeptState& state) override;
  Status ExportApic(x86::LocalApicState& state) const;
  Status ImportApic(const x86::LocalApicState& state);

  /// From the kernel's state to state_, and back. False: error_ says why.
  bool Fetch();
  bool Store();
  bool FetchMsrs();
  bool StoreMsrs();
  bool FetchEvents();
  bool StoreEvents();
  bool Call(unsigned long request, void* argument, const char* what);
  bool GetMsr(uint32_t index, uint64_t& value) const;
  bool SetMsr(uint32_t index, uint64_t value) const;
  void SetTscOffset(uint64_t offset);
  bool FetchTscOffset();

  ExitReason Loop();
  /// Lets KVM finish an access whose answer it has not taken yet, so that its state is between instructions.
  bool Complete();
  bool InjectExtInt();
  bool DeliverLint1();
  bool SettleExtInt();
  /// False: leave Run with `reason`.
  bool HandleExit(ExitReason& reason);
  void HandleMsr();
  /// The interpreter executes one instruction. False: leave Run with `reason`.
  bool Assist(ExitReason& reason);
  void NoteAssist();
  bool Fail(std::string text);

  KvmVm& vm_;
  const VcpuConfig config_;
  Fd fd_;
  kvm_run* run_ = nullptr;
  size_t run_bytes_ = 0;
  std::unique_ptr<AssistHost> assist_host_;
  x86::CpuModel assist_model_;  ///< KVM executes what the VM's model masks, and so do we for it
  std::unique_ptr<interp::Interpreter> interpreter_;
  x86::CpuState state_;       ///< as of the last Fetch or Store; MSRs that KVM does not have live here only
  bool in_kernel_ = false;    ///< state_ is older than the kernel's state
  bool incomplete_ = false;   ///< see Complete
  uint64_t components_ = 3;   ///< XCR0 bits of the CPU model
  std::vector<size_t> msrs_;  ///< indices into MsrPlaces that KVM has
  std::vector<uint8_t> xsave_, msr_buffer_;
  kvm_sregs2 sregs_{};  ///< as KVM had them last
  uint64_t cr8_ = 0;    ///< for the next Store, if cr8_written_
  bool cr8_written_ = false;
  int ext_int_ = -1;  ///< given to KVM by KVM_INTERRUPT, perhaps not delivered yet; -1: none
  std::string error_;

  std::atomic<uint32_t> requests_ = 0;
  std::atomic<bool> running_ = false;
  pthread_t thread_{};

  static constexpr unsigned kExitReasons = 64;
  /// The first of MsrPlaces: without these no guest runs; a host may refuse values of the others.
  static constexpr size_t kEssentialMsrs = 10;
  std::array<uint64_t, kExitReasons> exits_{};
  std::vector<uint64_t> assists_;  ///< by mnemonic; 0: undecodable
  uint64_t runs_ = 0, ext_ints_ = 0;
};

}  // namespace nacre::engine::kvm
