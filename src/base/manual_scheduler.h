#pragma once
// A Scheduler for tests: time moves only when the test says so. One thread.

#include <algorithm>
#include <deque>
#include <vector>

#include "base/scheduler.h"

namespace nacre {

class ManualScheduler : public Scheduler {
 public:
  int64_t NowNs() const override { return now_ns_; }
  std::unique_ptr<Timer> CreateTimer(std::function<void()> callback) override {
    auto timer = std::make_unique<ManualTimer>(this, std::move(callback));
    timers_.push_back(timer.get());
    return timer;
  }
  void Post(std::function<void()> callback) override { posted_.push_back(std::move(callback)); }

  /// Moves time forward, firing timers in the order of their deadlines and running posted work.
  void Advance(int64_t ns) {
    const int64_t end = now_ns_ + ns;
    RunPosted();
    while (ManualTimer* next = NextBefore(end)) {
      now_ns_ = std::max(now_ns_, next->deadline_ns_);
      next->armed_ = false;
      next->callback_();
      RunPosted();
    }
    now_ns_ = end;
  }
  void RunPosted() {
    while (!posted_.empty()) {
      auto callback = std::move(posted_.front());
      posted_.pop_front();
      callback();
    }
  }

 private:
  class ManualTimer : public Timer {
   public:
    ManualTimer(ManualScheduler* owner, std::function<void()> callback)
        : owner_(owner), callback_(std::move(callback)) {}
    ~ManualTimer() override { std::erase(owner_->timers_, this); }
    void Arm(int64_t deadline_ns) override {
      deadline_ns_ = deadline_ns;
      armed_ = true;
    }
    void Cancel() override { armed_ = false; }
    bool armed() const override { return armed_; }

    ManualScheduler* owner_;
    std::function<void()> callback_;
    int64_t deadline_ns_ = 0;
    bool armed_ = false;
  };

  ManualTimer* NextBefore(int64_t end_ns) {
    ManualTimer* best = nullptr;
    for (ManualTimer* timer : timers_) {
      if (timer->armed_ && timer->deadline_ns_ <= end_ns && (!best || timer->deadline_ns_ < best->deadline_ns_))
        best = timer;
    }
    return best;
  }

  int64_t now_ns_ = 0;
  std::vector<ManualTimer*> timers_;
  std::deque<std::function<void()>> posted_;
};

}  // namespace nacre
