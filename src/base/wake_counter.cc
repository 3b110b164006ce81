#include "base/wake_counter.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace nacre {

static_assert(sizeof(std::atomic<uint32_t>) == 4);

// Either the sleeper's futex call sees the new count, or Wake, which counts first, sees the sleeper.
void WakeCounter::Wake() {
  count_.fetch_add(1);
  if (sleeping_.load()) syscall(SYS_futex, &count_, FUTEX_WAKE_PRIVATE, 1, nullptr, nullptr, 0);
}

void WakeCounter::Wait(uint32_t seen) {
  sleeping_.store(true);
  // Returns at once when the count is another one, and sometimes for a signal.
  while (count_.load() == seen) syscall(SYS_futex, &count_, FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0);
  sleeping_.store(false);
}

}  // namespace nacre
