#pragma once
// Conversions between nanoseconds and the ticks of a device's clock, exact over the whole range. Any thread.

#include <cstdint>

namespace nacre::devices {

inline constexpr int64_t kNsPerSecond = 1'000'000'000;

/// value * multiplier / divisor without overflow in between, rounded down; divisor > 0, value >= 0.
constexpr uint64_t MulDiv(uint64_t value, uint64_t multiplier, uint64_t divisor) {
  __extension__ using Wide = unsigned __int128;
  return static_cast<uint64_t>(static_cast<Wide>(value) * multiplier / divisor);
}
/// Ticks of a clock of `hz` (at most 10 GHz) that began at time 0.
constexpr uint64_t NsToTicks(int64_t ns, uint64_t hz) {
  if (ns < 0) return 0;
  // Seconds and rest apart: no 128-bit division where guests poll clocks.
  constexpr auto kSecond = static_cast<uint64_t>(kNsPerSecond);
  const auto value = static_cast<uint64_t>(ns);
  return value / kSecond * hz + value % kSecond * hz / kSecond;
}
/// The first nanosecond at which a clock of `hz` has made `ticks` ticks.
constexpr int64_t TicksToNs(uint64_t ticks, uint64_t hz) {
  const uint64_t whole = ticks / hz;
  if (whole > 9'000'000'000) return INT64_MAX;
  return static_cast<int64_t>(whole * kNsPerSecond + (ticks % hz * kNsPerSecond + hz - 1) / hz);
}

}  // namespace nacre::devices
