#pragma once
// A counter that a thread sleeps on until it moves. As std::atomic::wait, but the sleeper neither spins nor calls
// sched_yield before it sleeps: on a busy host each sched_yield costs a thread a whole turn of its CPU time, and a vCPU
// of an idle guest sleeps hundreds of times a second.

#include <atomic>
#include <cstdint>

namespace nacre {

class WakeCounter {
 public:
  uint32_t now() const { return count_.load(std::memory_order_acquire); }
  /// Any thread.
  void Wake();
  /// One thread at a time: returns when now() is not `seen`.
  void Wait(uint32_t seen);

 private:
  std::atomic<uint32_t> count_ = 0;
  std::atomic<bool> sleeping_ = false;
};

}  // namespace nacre
