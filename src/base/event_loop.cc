#include "base/event_loop.h"

#include <sys/eventfd.h>
#include <sys/timerfd.h>

#include <algorithm>
#include <array>
#include <limits>

#include "base/check.h"

namespace nacre {
namespace {

constexpr int64_t kNever = std::numeric_limits<int64_t>::max();
constexpr uint64_t kTimerId = 0;
constexpr uint64_t kEventId = 1;

}  // namespace

class EventLoop::LoopTimer final : public Timer {
 public:
  LoopTimer(EventLoop* loop, std::function<void()> callback)
      : loop_(loop), state_(std::make_shared<TimerState>(std::move(callback))) {
    loop_->timers_.push_back(state_);
  }
  ~LoopTimer() override {
    state_->armed = false;
    std::erase(loop_->timers_, state_);
  }
  void Arm(int64_t deadline_ns) override {
    state_->deadline_ns = deadline_ns;
    state_->armed = true;
    loop_->NeedWakeAt(deadline_ns);
  }
  // The descriptor stays set: a wake for nothing costs less than a system call for every cancelled timer.
  void Cancel() override { state_->armed = false; }
  bool armed() const override { return state_->armed; }

 private:
  EventLoop* loop_;
  std::shared_ptr<TimerState> state_;
};

FdWatch::~FdWatch() {
  if (events_ != 0) epoll_ctl(loop_->epoll_.get(), EPOLL_CTL_DEL, fd_, nullptr);
  loop_->watches_.erase(id_);
}

void FdWatch::SetEvents(uint32_t events) {
  if (events == events_) return;
  epoll_event event{};
  event.events = events;
  event.data.u64 = id_;
  const int operation = events == 0 ? EPOLL_CTL_DEL : events_ == 0 ? EPOLL_CTL_ADD : EPOLL_CTL_MOD;
  epoll_ctl(loop_->epoll_.get(), operation, fd_, &event);
  events_ = events;
}

Result<std::unique_ptr<EventLoop>> EventLoop::Create(std::mutex& device_lock) {
  std::unique_ptr<EventLoop> loop(new EventLoop(device_lock));
  loop->wake_ns_ = kNever;
  loop->epoll_ = Fd(epoll_create1(EPOLL_CLOEXEC));
  loop->timer_fd_ = Fd(timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK));
  loop->event_fd_ = Fd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!loop->epoll_.valid() || !loop->timer_fd_.valid() || !loop->event_fd_.valid())
    return FailErrno("cannot make the event loop's descriptors");
  for (const auto& [fd, id] : {std::pair{loop->timer_fd_.get(), kTimerId}, {loop->event_fd_.get(), kEventId}}) {
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.u64 = id;
    if (epoll_ctl(loop->epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0)
      return FailErrno("cannot watch descriptor {}", fd);
  }
  return loop;
}

EventLoop::~EventLoop() { NACRE_CHECK(timers_.empty() && watches_.empty()); }

std::unique_ptr<Timer> EventLoop::CreateTimer(std::function<void()> callback) {
  return std::make_unique<LoopTimer>(this, std::move(callback));
}

void EventLoop::Post(std::function<void()> callback) {
  bool first = false;
  {
    const std::lock_guard lock(post_mutex_);
    first = posted_.empty();
    posted_.push_back(std::move(callback));
  }
  if (first) Wake();
}

void EventLoop::Wake() {
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = ::write(event_fd_.get(), &one, sizeof one);
}

Result<std::unique_ptr<FdWatch>> EventLoop::Watch(int fd, uint32_t events, std::function<void(uint32_t)> callback) {
  const uint64_t id = next_watch_id_++;
  if (events != 0) {
    epoll_event event{};
    event.events = events;
    event.data.u64 = id;
    if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0) return FailErrno("cannot watch descriptor {}", fd);
  }
  watches_.emplace(id, std::make_shared<WatchCallback>(std::move(callback)));
  return std::unique_ptr<FdWatch>(new FdWatch(this, id, fd, events));
}

void EventLoop::NeedWakeAt(int64_t deadline_ns) {
  if (deadline_ns < wake_ns_ && !clock_.paused()) SetTimerFd(deadline_ns);
}

void EventLoop::SetTimerFd(int64_t deadline_ns) {
  wake_ns_ = deadline_ns;
  itimerspec spec{};  // all zero disarms
  if (deadline_ns != kNever) {
    const int64_t host_ns = std::max<int64_t>(clock_.ToHostNs(deadline_ns), 1);
    spec.it_value.tv_sec = host_ns / 1'000'000'000;
    spec.it_value.tv_nsec = host_ns % 1'000'000'000;
  }
  timerfd_settime(timer_fd_.get(), TFD_TIMER_ABSTIME, &spec, nullptr);
}

void EventLoop::FireTimers() {
  if (clock_.paused()) return;
  // One pass over what is due now: a callback that arms a past deadline again gets its turn in the next
  // round, so that it cannot starve descriptors.
  const int64_t now_ns = clock_.NowNs();
  due_.clear();
  for (const auto& timer : timers_) {
    if (timer->armed && timer->deadline_ns <= now_ns) due_.push_back(timer);
  }
  std::ranges::stable_sort(due_, {}, [](const auto& timer) { return timer->deadline_ns; });
  for (const auto& timer : due_) {
    if (!timer->armed || timer->deadline_ns > now_ns) continue;  // an earlier callback changed it
    timer->armed = false;
    timer->callback();
  }
  due_.clear();
  int64_t next_ns = kNever;
  for (const auto& timer : timers_) {
    if (timer->armed) next_ns = std::min(next_ns, timer->deadline_ns);
  }
  SetTimerFd(next_ns);
}

void EventLoop::RunPosted() {
  std::deque<std::function<void()>> work;
  {
    const std::lock_guard lock(post_mutex_);
    work.swap(posted_);
  }
  for (const auto& callback : work) callback();
}

void EventLoop::Pause() {
  clock_.Pause();
  SetTimerFd(kNever);
}

void EventLoop::Resume() {
  clock_.Resume();
  SetTimerFd(clock_.NowNs());  // one wake sorts out the rest
}

void EventLoop::SetNowNs(int64_t now_ns) {
  clock_.Set(now_ns);
  if (!clock_.paused()) SetTimerFd(now_ns);
}

void EventLoop::RunOnce(int timeout_ms) {
  std::array<epoll_event, 32> events;
  const int count = epoll_wait(epoll_.get(), events.data(), static_cast<int>(events.size()), timeout_ms);
  const std::lock_guard lock(device_lock_);
  for (int i = 0; i < count; ++i) {
    const uint64_t id = events[static_cast<size_t>(i)].data.u64;
    uint64_t ticks = 0;
    if (id == kTimerId) {
      [[maybe_unused]] const ssize_t got = ::read(timer_fd_.get(), &ticks, sizeof ticks);
      FireTimers();
    } else if (id == kEventId) {
      [[maybe_unused]] const ssize_t got = ::read(event_fd_.get(), &ticks, sizeof ticks);
      RunPosted();
    } else if (const auto found = watches_.find(id); found != watches_.end()) {
      // Held here: the callback may destroy its own watch.
      const std::shared_ptr<WatchCallback> callback = found->second;
      (*callback)(events[static_cast<size_t>(i)].events);
    }
  }
}

void EventLoop::Run() {
  while (!stop_.load(std::memory_order_acquire)) RunOnce(-1);
  stop_.store(false, std::memory_order_release);
  const std::lock_guard lock(device_lock_);
  RunPosted();
}

void EventLoop::Stop() {
  stop_.store(true, std::memory_order_release);
  Wake();
}

}  // namespace nacre
