#include "base/event_loop.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <thread>

namespace nacre {
namespace {

constexpr int64_t kMillisecond = 1'000'000;

class EventLoopTest : public testing::Test {
 protected:
  EventLoopTest() : loop_(*EventLoop::Create(lock_)) {}
  /// Runs the loop until `done` or far too long.
  void RunUntil(const std::function<bool()>& done) {
    for (int i = 0; i < 1000 && !done(); ++i) loop_->RunOnce(10);
  }
  std::mutex lock_;
  std::unique_ptr<EventLoop> loop_;
};

TEST_F(EventLoopTest, TimersFireInTheOrderOfTheirDeadlines) {
  std::string order;
  const auto late = loop_->CreateTimer([&] { order += 'b'; });
  const auto early = loop_->CreateTimer([&] { order += 'a'; });
  const int64_t now = loop_->NowNs();
  late->Arm(now + 2 * kMillisecond);
  early->Arm(now + kMillisecond);
  RunUntil([&] { return order.size() == 2; });
  EXPECT_EQ(order, "ab");
  EXPECT_FALSE(late->armed());
}

TEST_F(EventLoopTest, ATimerNeverFiresBeforeItsDeadline) {
  int64_t fired_at = 0;
  const auto timer = loop_->CreateTimer([&] { fired_at = loop_->NowNs(); });
  const int64_t deadline = loop_->NowNs() + 3 * kMillisecond;
  timer->Arm(deadline);
  RunUntil([&] { return fired_at != 0; });
  EXPECT_GE(fired_at, deadline);
}

TEST_F(EventLoopTest, ACancelledOrDestroyedTimerDoesNotFire) {
  int fired = 0;
  const auto cancelled = loop_->CreateTimer([&] { ++fired; });
  auto destroyed = loop_->CreateTimer([&] { ++fired; });
  bool done = false;
  const auto last = loop_->CreateTimer([&] { done = true; });
  const int64_t now = loop_->NowNs();
  cancelled->Arm(now);
  destroyed->Arm(now);
  last->Arm(now + kMillisecond);
  cancelled->Cancel();
  destroyed.reset();
  RunUntil([&] { return done; });
  EXPECT_EQ(fired, 0);
}

TEST_F(EventLoopTest, ATimerMayDestroyItselfAndAnotherOneThatIsDue) {
  std::unique_ptr<Timer> first, second;
  int fired = 0;
  first = loop_->CreateTimer([&] {
    ++fired;
    second.reset();
    first.reset();
  });
  second = loop_->CreateTimer([&] { fired += 100; });
  first->Arm(0);
  second->Arm(1);
  RunUntil([&] { return fired != 0; });
  loop_->RunOnce(0);
  EXPECT_EQ(fired, 1);
}

TEST_F(EventLoopTest, TimersStandStillWhilePaused) {
  bool fired = false;
  const auto timer = loop_->CreateTimer([&] { fired = true; });
  timer->Arm(loop_->NowNs() + kMillisecond);
  loop_->Pause();
  const int64_t frozen = loop_->NowNs();
  bool posted = false;
  loop_->Post([&] { posted = true; });
  RunUntil([&] { return posted; });
  loop_->RunOnce(5);
  EXPECT_FALSE(fired);
  EXPECT_EQ(loop_->NowNs(), frozen);
  loop_->Resume();
  RunUntil([&] { return fired; });
  EXPECT_TRUE(fired);
}

TEST_F(EventLoopTest, GuestTimeCanGoOnFromASnapshot) {
  loop_->Pause();
  loop_->SetNowNs(1'000'000 * kMillisecond);
  EXPECT_EQ(loop_->NowNs(), 1'000'000 * kMillisecond);
  loop_->Resume();
  EXPECT_GE(loop_->NowNs(), 1'000'000 * kMillisecond);
  EXPECT_LT(loop_->NowNs(), 2'000'000 * kMillisecond);
}

TEST_F(EventLoopTest, WatchesReportInputAndCanBePaused) {
  int fds[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
  const Fd a(fds[0]), b(fds[1]);
  std::string got;
  auto watch = loop_->Watch(a.get(), EPOLLIN, [&](uint32_t events) {
    EXPECT_NE(events & EPOLLIN, 0u);
    char byte = 0;
    ASSERT_EQ(::read(a.get(), &byte, 1), 1);
    got += byte;
  });
  ASSERT_TRUE(watch);
  ASSERT_EQ(::write(b.get(), "xy", 2), 2);
  RunUntil([&] { return got.size() == 1; });
  (*watch)->SetEvents(0);
  loop_->RunOnce(2);
  EXPECT_EQ(got, "x");
  (*watch)->SetEvents(EPOLLIN);
  RunUntil([&] { return got.size() == 2; });
  EXPECT_EQ(got, "xy");
}

TEST_F(EventLoopTest, CallbacksRunUnderTheDeviceLockAndStopEndsRun) {
  bool held = false;
  std::thread poster([&] {
    loop_->Post([&] {
      std::thread([&] { held = !lock_.try_lock(); }).join();
      loop_->Stop();
    });
  });
  loop_->Run();
  poster.join();
  EXPECT_TRUE(held);
  EXPECT_TRUE(lock_.try_lock());
  lock_.unlock();
}

TEST_F(EventLoopTest, AStopBeforeRunIsNotLost) {
  loop_->Stop();
  loop_->Run();
}

TEST_F(EventLoopTest, ARegularFileCannotBeWatched) {
  const Fd file(::open("/proc/self/exe", O_RDONLY | O_CLOEXEC));
  const auto watch = loop_->Watch(file.get(), EPOLLIN, [](uint32_t) {});
  EXPECT_FALSE(watch);
}

}  // namespace
}  // namespace nacre
