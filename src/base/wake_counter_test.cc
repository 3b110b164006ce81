#include "base/wake_counter.h"

#include <gtest/gtest.h>

#include <thread>

namespace nacre {
namespace {

TEST(WakeCounter, DoesNotSleepOnACountThatIsOver) {
  WakeCounter counter;
  const uint32_t seen = counter.now();
  counter.Wake();
  counter.Wait(seen);
  EXPECT_NE(counter.now(), seen);
}

TEST(WakeCounter, TwoThreadsWakeEachOther) {
  constexpr unsigned kRounds = 20000;
  WakeCounter ping, pong;
  std::thread other([&] {
    for (unsigned i = 0; i < kRounds; ++i) {
      ping.Wait(i);
      pong.Wake();
    }
  });
  for (unsigned i = 0; i < kRounds; ++i) {
    ping.Wake();
    pong.Wait(i);
  }
  other.join();
  EXPECT_EQ(ping.now(), kRounds);
  EXPECT_EQ(pong.now(), kRounds);
}

}  // namespace
}  // namespace nacre
