#pragma once
// The vCPUs of one machine as threads that can be brought to a safepoint: a place between guest instructions where
// nothing that the thread has cached of guest memory is in use. Two needs: work that must be done to a vCPU before
// another one goes on (a page becomes code: its write rights must be gone everywhere), and instructions that must be
// atomic although the host cannot do them so (LOCK across pages).
//
// A member holds its gate while it runs guest code and gives it up while it sleeps or waits here; whoever holds a
// member's gate may do its work for it. So nobody waits for a vCPU that has halted, and two that wait for each other
// serve each other.

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "engine/engine.h"

namespace nacre::engine {

class VcpuGroup;

/// What a member does for others: called under its gate, on its own thread or on that of the one who asked.
class SafepointWork {
 public:
  virtual ~SafepointWork() = default;
  virtual void OnSafepointWork(uint64_t argument) = 0;
};

class VcpuGroupMember : public ExclusiveSection {
 public:
  /// `vcpu` gets kRequestEngine when something is asked of it; it answers with Safepoint.
  VcpuGroupMember(VcpuGroup& group, Vcpu& vcpu, SafepointWork* work);
  ~VcpuGroupMember() override;
  VcpuGroupMember(const VcpuGroupMember&) = delete;
  VcpuGroupMember& operator=(const VcpuGroupMember&) = delete;

  /// Around Vcpu::Run, and around anything else on the vCPU's thread that uses what OnSafepointWork changes.
  void Enter() { gate_.lock(); }
  void Leave() { gate_.unlock(); }
  /// On kRequestEngine, between instructions: does what others asked, and lets exclusive sections pass.
  void Safepoint();

  /// Entered, on the own thread, between instructions or in the interpreter: has `argument` done by the other members
  /// of `mask` (bit: Vcpu index) and returns when all are. Milliseconds when the host does not run them.
  void AskOthers(uint64_t mask, uint64_t argument);

  /// Entered, on the own thread: until EndExclusive no other member runs guest code.
  void BeginExclusive() override;
  void EndExclusive() override;

 private:
  friend class VcpuGroup;
  void DoWork();  ///< under the gate

  VcpuGroup& group_;
  Vcpu& vcpu_;
  SafepointWork* work_;
  unsigned index_ = 0;
  std::mutex gate_;
  std::mutex mail_mutex_;
  std::vector<uint64_t> mail_;
  uint64_t posted_ = 0;             ///< under mail_mutex_
  std::atomic<uint64_t> done_ = 0;  ///< of posted_
};

/// Members join while no vCPU runs.
class VcpuGroup {
 public:
  static constexpr unsigned kMaxMembers = 64;
  unsigned size() const { return static_cast<unsigned>(members_.size()); }

 private:
  friend class VcpuGroupMember;
  std::vector<VcpuGroupMember*> members_;
  std::mutex exclusive_mutex_;  ///< held by the one member that is in, or waits for, an exclusive section
};

}  // namespace nacre::engine
