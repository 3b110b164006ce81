#pragma once
// The machine's event loop: timers on guest time, posted work and file descriptors, by epoll. One thread
// calls Run; every callback runs on that thread under the device lock given to Create.
//
// Threads: Post and Stop from any thread, with or without the device lock. NowNs from any thread. All else
// (timers, watches) under the device lock, or before Run starts or after it has returned.

#include <sys/epoll.h>

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "base/clock.h"
#include "base/fd.h"
#include "base/result.h"
#include "base/scheduler.h"

namespace nacre {

class EventLoop;

/// Watches one descriptor until it is destroyed; the callback never runs after that. Does not own the
/// descriptor.
class FdWatch {
 public:
  ~FdWatch();
  FdWatch(const FdWatch&) = delete;
  FdWatch& operator=(const FdWatch&) = delete;
  /// EPOLLIN | EPOLLOUT ...; 0 pauses (errors and hang-ups are not reported either).
  void SetEvents(uint32_t events);

 private:
  friend class EventLoop;
  FdWatch(EventLoop* loop, uint64_t id, int fd, uint32_t events) : loop_(loop), id_(id), fd_(fd), events_(events) {}
  EventLoop* loop_;
  uint64_t id_;
  int fd_;
  uint32_t events_;
};

class EventLoop final : public Scheduler {
 public:
  /// The lock must outlive the loop. Guest time starts at 0 and runs.
  static Result<std::unique_ptr<EventLoop>> Create(std::mutex& device_lock);
  ~EventLoop() override;
  EventLoop(const EventLoop&) = delete;
  EventLoop& operator=(const EventLoop&) = delete;

  int64_t NowNs() const override { return clock_.NowNs(); }
  std::unique_ptr<Timer> CreateTimer(std::function<void()> callback) override;
  void Post(std::function<void()> callback) override;

  /// `callback` gets the ready events, level-triggered. Regular files cannot be watched: they are always
  /// ready.
  Result<std::unique_ptr<FdWatch>> Watch(int fd, uint32_t events, std::function<void(uint32_t events)> callback);

  /// Guest time stands still: timers do not fire; posted work and descriptors go on.
  void Pause();
  void Resume();
  /// Guest time goes on from here (restore of a snapshot).
  void SetNowNs(int64_t now_ns);
  bool paused() const { return clock_.paused(); }

  /// Runs callbacks until Stop. Posted work that is queued when Stop comes still runs. The device lock must
  /// not be held.
  void Run();
  /// Run returns soon; a Stop before Run makes that Run return at once.
  void Stop();
  /// Waits at most `timeout_ms` (-1: no limit) for something, runs it and returns.
  void RunOnce(int timeout_ms);

 private:
  friend class FdWatch;
  class LoopTimer;
  struct TimerState {
    std::function<void()> callback;
    int64_t deadline_ns = 0;
    bool armed = false;
  };
  using WatchCallback = std::function<void(uint32_t)>;

  explicit EventLoop(std::mutex& device_lock) : device_lock_(device_lock) {}
  /// Makes the timer descriptor fire no later than `deadline_ns`.
  void NeedWakeAt(int64_t deadline_ns);
  void SetTimerFd(int64_t deadline_ns);
  void FireTimers();
  void RunPosted();
  void Wake();

  std::mutex& device_lock_;
  GuestClock clock_;
  Fd epoll_;
  Fd timer_fd_;
  Fd event_fd_;
  int64_t wake_ns_;  ///< guest time for which the timer descriptor is set; kNever if it is not
  std::vector<std::shared_ptr<TimerState>> timers_;
  std::vector<std::shared_ptr<TimerState>> due_;  ///< FireTimers's, kept for its memory
  uint64_t next_watch_id_ = 2;
  std::map<uint64_t, std::shared_ptr<WatchCallback>> watches_;
  std::atomic<bool> stop_ = false;
  std::mutex post_mutex_;
  std::deque<std::function<void()>> posted_;
};

}  // namespace nacre
