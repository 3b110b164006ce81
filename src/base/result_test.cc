#include "base/result.h"

#include <gtest/gtest.h>

#include <memory>

namespace nacre {
namespace {

Result<int> Half(int value) {
  if (value % 2 != 0) return Fail("{} is odd", value);
  return value / 2;
}
Result<int> Quarter(int value) {
  const int half = NACRE_TRY(Half(value));
  return NACRE_TRY(Half(half));
}
Status Even(int value) {
  NACRE_TRY(Half(value));
  return {};
}
Status BothEven(int a, int b) {
  NACRE_TRY_STATUS(Even(a));
  NACRE_TRY_STATUS(Even(b));
  return {};
}

TEST(Result, TryPassesValuesAndErrors) {
  EXPECT_EQ(Quarter(8).value(), 2);
  EXPECT_EQ(Quarter(6).error().message, "3 is odd");
  EXPECT_EQ(Quarter(5).error().message, "5 is odd");
  EXPECT_TRUE(BothEven(2, 4).has_value());
  EXPECT_EQ(BothEven(2, 5).error().message, "5 is odd");
}

TEST(Result, FailErrnoKeepsCodeAndText) {
  errno = ENOENT;
  const Result<int> failed = FailErrno("disk '{}'", "a.raw");
  EXPECT_EQ(failed.error().code, ENOENT);
  EXPECT_EQ(failed.error().message, "disk 'a.raw': No such file or directory");
}

TEST(Result, ContextGoesInFrontAndKeepsTheCode) {
  const Result<int> failed = Context(Error{"no space", ENOSPC}, "snapshot {}", 3);
  EXPECT_EQ(failed.error().message, "snapshot 3: no space");
  EXPECT_EQ(failed.error().code, ENOSPC);
}

Result<std::unique_ptr<int>> MoveOnly() { return std::make_unique<int>(5); }
Result<int> UsesMoveOnly() {
  auto value = NACRE_TRY(MoveOnly());
  return *value;
}
TEST(Result, TryMovesMoveOnlyValues) { EXPECT_EQ(UsesMoveOnly().value(), 5); }

}  // namespace
}  // namespace nacre
