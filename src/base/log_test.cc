#include "base/log.h"

#include <gtest/gtest.h>

#include <string>

namespace nacre {
namespace {

TEST(Log, MessagesAboveTheLevelAreDropped) {
  std::string seen;
  SetLogSink([&](LogLevel, std::string_view text) { seen += fmt::format("[{}]", text); });
  LogWarning("disk {} is full", "a");
  LogInfo("not shown");
  SetLogLevel(LogLevel::kDebug);
  LogDebug("shown");
  SetLogLevel(LogLevel::kWarning);
  SetLogSink({});
  EXPECT_EQ(seen, "[disk a is full][shown]");
}

TEST(Log, AThrottleLetsOnlySoManyThrough) {
  LogThrottle throttle(3);
  int passed = 0;
  for (int i = 0; i < 1000; ++i) passed += throttle.Allow() ? 1 : 0;
  EXPECT_EQ(passed, 3);
}

}  // namespace
}  // namespace nacre
