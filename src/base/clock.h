#pragma once
// Host and guest time. Guest time is host monotonic time minus the spans in which the machine stood still.
// Any thread.

#include <atomic>
#include <cstdint>

namespace nacre {

/// CLOCK_MONOTONIC in nanoseconds.
int64_t HostMonotonicNs();
/// CLOCK_REALTIME (UTC) in nanoseconds since 1970.
int64_t HostRealtimeNs();

/// Universal time as the machine shows it to clocks of the guest (RTC, paravirtual). Any thread.
class WallClock {
 public:
  virtual ~WallClock() = default;
  /// Nanoseconds since 1970-01-01 UTC.
  virtual int64_t UtcNs() const = 0;
};
class HostWallClock final : public WallClock {
 public:
  int64_t UtcNs() const override { return HostRealtimeNs(); }
};

/// Starts at 0, running.
class GuestClock {
 public:
  GuestClock() { Resume(0); }
  int64_t NowNs() const {
    const int64_t state = state_.load(std::memory_order_acquire);
    return (state & kPaused) ? state >> 1 : HostMonotonicNs() - (state >> 1);
  }
  bool paused() const { return (state_.load(std::memory_order_acquire) & kPaused) != 0; }
  /// Host monotonic time at which `guest_ns` is reached while the clock runs on.
  int64_t ToHostNs(int64_t guest_ns) const;
  /// Pause, Resume and Set are called by one thread at a time (the machine's).
  void Pause();
  void Resume();
  /// Guest time goes on from `now_ns` (restore); running or paused stays as it is.
  void Set(int64_t now_ns);

 private:
  static constexpr int64_t kPaused = 1;
  void Resume(int64_t now_ns);
  /// One word, so that readers never see half a change: bit 0 paused; above it the frozen guest time, or
  /// while running the host time of guest time 0.
  std::atomic<int64_t> state_{0};
};

}  // namespace nacre
