#pragma once
// How long a thread was ready to run while the host ran others: the second number of /proc/thread-self/schedstat (Linux
// Documentation/scheduler/sched-stats.rst). Zero for ever where the host does not count it. One thread.

#include <cstdint>
#include <optional>

#include "base/fd.h"

namespace nacre::machine {

class RunDelay {
 public:
  /// On the thread in question: what came since the last call, in ns; 0 too when that was less than kInterval ago.
  uint64_t TakeNs();

 private:
  static constexpr int64_t kIntervalNs = 10'000'000;  ///< a read costs a microsecond
  uint64_t Total() const;

  std::optional<Fd> file_;  ///< opened at the first call
  int64_t last_ns_ = 0;
  uint64_t last_total_ = 0;
};

}  // namespace nacre::machine
