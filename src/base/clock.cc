#include "base/clock.h"

#include <ctime>
#include <limits>

namespace nacre {
namespace {

int64_t ReadClock(clockid_t id) {
  timespec time{};
  clock_gettime(id, &time);
  return int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}

}  // namespace

int64_t HostMonotonicNs() { return ReadClock(CLOCK_MONOTONIC); }
int64_t HostRealtimeNs() { return ReadClock(CLOCK_REALTIME); }

int64_t GuestClock::ToHostNs(int64_t guest_ns) const {
  const int64_t state = state_.load(std::memory_order_acquire);
  if (state & kPaused) return std::numeric_limits<int64_t>::max();
  int64_t host_ns = 0;
  if (__builtin_add_overflow(guest_ns, state >> 1, &host_ns)) return std::numeric_limits<int64_t>::max();
  return host_ns;
}

void GuestClock::Pause() {
  if (!paused())
    state_.store(static_cast<int64_t>(static_cast<uint64_t>(NowNs()) << 1) | kPaused, std::memory_order_release);
}

void GuestClock::Resume() {
  if (paused()) Resume(NowNs());
}

void GuestClock::Resume(int64_t now_ns) {
  state_.store(static_cast<int64_t>(static_cast<uint64_t>(HostMonotonicNs() - now_ns) << 1), std::memory_order_release);
}

void GuestClock::Set(int64_t now_ns) {
  if (paused()) {
    state_.store(static_cast<int64_t>(static_cast<uint64_t>(now_ns) << 1) | kPaused, std::memory_order_release);
  } else {
    Resume(now_ns);
  }
}

}  // namespace nacre
