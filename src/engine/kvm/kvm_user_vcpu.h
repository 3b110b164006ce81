#pragma once
// One virtual CPU on a KVM that emulates guest kernels (docs/kvm.md, "A weak KVM"): the reference interpreter executes
// kernel mode, and user mode in short stays; long stays of ordinary 64-bit user mode run on KVM. There the guest has an
// interrupt descriptor table without entries and no SYSCALL, so that every way out of user mode is a triple fault for
// KVM, which comes back with the registers of before, and the interpreter executes that instruction as the guest's real
// tables say. KVM delivers nothing and keeps no local APIC.
//
// Threads: as engine::Vcpu says.

#include <pthread.h>
#include "engine/kvm/kvm_api.h"

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "base/fd.h"
#include "engine/engine.h"
#include "engine/interp/interpreter.h"
#include "engine/vcpu_group.h"

namespace nacre::engine::kvm {

class KvmVm;

class KvmUserVcpu final : public Vcpu, private interp::StateListener {
 public:
  /// `interpreted_first`: instructions of a stay in user mode, and after each return from KVM, before KVM is used.
  static Result<std::unique_ptr<KvmUserVcpu>> Create(KvmVm& vm, VcpuGroup& group, const VcpuConfig& config,
                                                     uint64_t interpreted_first);
  ~KvmUserVcpu() override;

  void Import(const x86::CpuState& state) override;
  void Export(x86::CpuState& state) const override { state = state_; }
  ExitReason Run(uint64_t instruction_budget) override;
  void Request(uint32_t bits) override;
  void ClearRequest(uint32_t bits) override { requests_.fetch_and(~bits); }
  uint32_t pending_requests() const override { return requests_.load(); }
  std::string error() const override { return error_; }
  std::vector<Statistic> Statistics() const override;

 private:
  KvmUserVcpu(KvmVm& vm, VcpuGroup& group, const VcpuConfig& config, uint64_t interpreted_first);
  Status Open();

  void OnAddressSpace(uint16_t pcid, bool keep) override;
  void OnTlbFlush(bool) override { stale_ = true; }
  void OnTlbFlushPcid(uint16_t) override { stale_ = true; }
  void OnTlbFlushPage(GuestVirt) override { stale_ = true; }
  void OnTlbFlushPcidPage(uint16_t, GuestVirt) override { stale_ = true; }

  ExitReason RunEntered(uint64_t instruction_budget);
  bool Take(uint32_t bit) { return (requests_.fetch_and(~bit) & bit) != 0; }
  /// Looks at what was requested. True: leave Run for `reason`.
  bool Serve(uint32_t requests, ExitReason& reason);
  /// Whether KVM runs this state as a CPU would.
  bool Ordinary() const;
  /// A stay on KVM. The state is then before an instruction that the interpreter is to execute, or anywhere. False:
  /// error_.
  bool RunOnKvm();
  bool Store();
  bool Fetch();
  /// Answers an access, or notes why the stay is over and clears `more`. False: error_.
  bool HandleExit(bool& more);
  /// To the start of the instruction that ended the stay, or behind it with its trap pending.
  void Rewind(bool trap);
  bool SeesHostsXcr0() const;
  bool SeesSyscallTrap() const;
  void NoteLeft();
  bool Call(unsigned long request, void* argument, const char* what);
  bool Fail(std::string text);

  KvmVm& vm_;
  VcpuGroupMember member_;
  VcpuConfig config_;
  const uint64_t interpreted_first_;
  interp::Interpreter interpreter_;
  Fd fd_;
  kvm_run* run_ = nullptr;
  size_t run_bytes_ = 0;
  x86::CpuState state_;
  kvm_sregs2 sregs_{};
  uint64_t components_ = 3;  ///< XCR0 bits of the CPU model
  uint64_t host_xcr0_ = 0;
  uint64_t kvm_xcr0_ = 1;    ///< as KVM has it
  uint64_t user_since_ = 0;  ///< interpreter's retired instructions when it last was in kernel mode or left KVM
  bool stale_ = true;        ///< KVM may hold translations that the guest has withdrawn
  bool fault_ = false;       ///< the last stay ended before an instruction for the interpreter
  uint32_t left_by_ = KVM_EXIT_INTR;
  std::vector<uint8_t> xsave_;
  std::string error_;

  std::atomic<uint32_t> requests_ = 0;
  std::atomic<bool> on_kvm_ = false;
  pthread_t thread_{};

  uint64_t stays_ = 0, kicks_ = 0, empty_ = 0, flushes_ = 0, interrupts_ = 0, accesses_ = 0;
  std::vector<uint64_t> left_;  ///< instructions that ended a stay, by mnemonic; 0: undecodable
};

}  // namespace nacre::engine::kvm
