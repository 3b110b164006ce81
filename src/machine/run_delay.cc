#include "machine/run_delay.h"

#include <fcntl.h>
#include <unistd.h>

#include <charconv>
#include <ctime>

namespace nacre::machine {

namespace {

int64_t MonotonicNs() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
}

}  // namespace

uint64_t RunDelay::Total() const {
  char text[96];
  const ssize_t size = file_->valid() ? pread(file_->get(), text, sizeof text, 0) : 0;
  if (size <= 0) return last_total_;
  const char* end = text + size;
  const char* at = text;
  while (at < end && *at != ' ') ++at;
  uint64_t total = 0;
  return at < end && std::from_chars(at + 1, end, total).ec == std::errc{} ? total : last_total_;
}

uint64_t RunDelay::TakeNs() {
  const int64_t now_ns = MonotonicNs();
  if (file_ && now_ns - last_ns_ < kIntervalNs) return 0;
  last_ns_ = now_ns;
  const bool first = !file_;
  if (first) file_ = Fd(open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC));
  const uint64_t total = Total();
  const uint64_t delay = first || total < last_total_ ? 0 : total - last_total_;
  last_total_ = total;
  return delay;
}

}  // namespace nacre::machine
