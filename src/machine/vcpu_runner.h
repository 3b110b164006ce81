#pragma once
// The host thread of one virtual CPU: runs the engine, sleeps while the guest has halted, goes through INIT and SIPI,
// and parks when the machine pauses, resets or ends.
//
// Threads: Request, ClearRequest, Init and StartUp from any thread, with or without the device lock. Park, Resume and
// the state by one control thread, never under the device lock (a vCPU that is about to park may be waiting for it).

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "base/wake_counter.h"
#include "engine/engine.h"

namespace nacre::machine {

/// Told and asked on the vCPU's thread, without a lock.
class VcpuEvents {
 public:
  virtual ~VcpuEvents() = default;
  /// After these two the thread parks by itself.
  virtual void OnShutdown(unsigned index) = 0;
  virtual void OnEngineError(unsigned index, std::string error) = 0;
  /// The guest has halted. True: a paravirtual kick ends the halt at once.
  virtual bool TakeKick(unsigned index) = 0;
  /// The thread is about to sleep because the guest has halted.
  virtual void OnSleep(unsigned index) = 0;
  /// It goes on. True: its TLB must be flushed before it runs guest code.
  virtual bool OnWake(unsigned index) = 0;
};

class VcpuRunner {
 public:
  /// The thread starts parked.
  VcpuRunner(unsigned index, std::unique_ptr<engine::Vcpu> vcpu, VcpuEvents& events);
  /// Parks and ends the thread.
  ~VcpuRunner();
  VcpuRunner(const VcpuRunner&) = delete;
  VcpuRunner& operator=(const VcpuRunner&) = delete;

  void Request(uint32_t bits);
  void ClearRequest(uint32_t bits) { vcpu_->ClearRequest(bits); }
  /// An INIT. From now on, whatever the thread is at, the next SIPI counts and those before it do not.
  void Init();
  /// A SIPI; ignored unless an INIT came and no SIPI since.
  void StartUp(uint8_t vector);

  /// A CPU that sleeps looks again at whether it may go on.
  void Wake();

  /// Returns when the thread is at an instruction boundary and stays there. `wait` false: only asks.
  void Park(bool wait = true);
  void Resume();

  /// While parked: what the CPU goes on with.
  x86::CpuState& state() { return state_; }
  /// While parked.
  engine::Vcpu& vcpu() { return *vcpu_; }
  /// How often Run left, by reason, and how often the thread slept; while parked.
  std::vector<engine::Statistic> Statistics() const;

 private:
  enum class Command : uint8_t { kPark, kRun, kQuit };
  static constexpr int kNoSipi = -1;

  void ThreadMain();
  void RunUntilAsked();
  /// False: asked to park.
  bool WaitForSipi();
  void OnInit();
  /// Leaving: an INIT and a SIPI that have come become part of the state.
  void SettleInit();
  bool TakeSipi();
  void Sleep(uint32_t since);
  void SleepUntilAsked();
  bool asked() const { return asked_.load(std::memory_order_acquire); }

  const unsigned index_;
  std::unique_ptr<engine::Vcpu> vcpu_;
  VcpuEvents& events_;
  alignas(64) x86::CpuState state_;

  std::mutex mutex_;
  std::condition_variable changed_;
  Command command_ = Command::kPark;
  bool parked_ = false;  ///< the thread waits for a command, and has not seen one that it must carry out

  std::atomic<bool> asked_ = false;  ///< command_ is not kRun: leave the engine
  WakeCounter wakes_;                ///< counts everything that a sleeping CPU must look at
  std::atomic<bool> accepts_sipi_ = false;
  std::atomic<int> sipi_ = kNoSipi;  ///< accepted, not yet acted on
  uint64_t runs_ = 0, halts_ = 0;
  std::thread thread_;  ///< last: it uses the rest
};

}  // namespace nacre::machine
