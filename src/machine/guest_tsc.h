#pragma once
// The guest's time stamp counter as devices see it: the host's, moved by an offset so that it starts near 0 and stands
// still while the machine is paused, which it is at first. Any thread; Pause, Resume and SetOffset by one at a time.

#include <atomic>

#include "base/scheduler.h"
#include "devices/chipset/apic_types.h"

namespace nacre::machine {

/// The host's time stamp counter.
inline uint64_t HostTsc() { return __builtin_ia32_rdtsc(); }

class HostGuestTsc final : public devices::GuestTsc {
 public:
  HostGuestTsc(const Scheduler& scheduler, uint64_t tsc_khz)
      : scheduler_(scheduler), khz_(static_cast<uint32_t>(tsc_khz)) {}

  uint64_t Read() const override {
    return (paused_.load(std::memory_order_acquire) ? paused_at_.load(std::memory_order_relaxed) : HostTsc()) +
           offset();
  }
  int64_t ToNs(uint64_t tsc) const override {
    // In this order: what passes between the two makes it late, never early.
    const auto ahead = static_cast<int64_t>(tsc - Read());
    const int64_t now_ns = scheduler_.NowNs();
    if (ahead <= 0) return now_ns;
    // ahead * 10^6 / khz; a deadline beyond the range of the clock is never.
    __extension__ using Wide = __int128;
    const Wide ns = now_ns + Wide{ahead} * 1'000'000 / khz_;
    return ns > INT64_MAX ? INT64_MAX : static_cast<int64_t>(ns);
  }
  uint32_t khz() const override { return khz_; }

  uint64_t offset() const { return offset_.load(std::memory_order_relaxed); }
  void SetOffset(uint64_t offset) { offset_.store(offset, std::memory_order_relaxed); }

  /// The host's counter when it was paused.
  uint64_t paused_at() const { return paused_at_.load(std::memory_order_relaxed); }

  void Pause() {
    paused_at_.store(HostTsc(), std::memory_order_relaxed);
    paused_.store(true, std::memory_order_release);
  }
  /// It goes on from where it stood. Returns for how long that was.
  uint64_t Resume() {
    const uint64_t stood_still = HostTsc() - paused_at_.load(std::memory_order_relaxed);
    SetOffset(offset() - stood_still);
    paused_.store(false, std::memory_order_release);
    return stood_still;
  }

 private:
  const Scheduler& scheduler_;
  const uint32_t khz_;
  std::atomic<uint64_t> offset_ = 0, paused_at_ = 0;
  std::atomic<bool> paused_ = true;
};

}  // namespace nacre::machine
