#pragma once
// What a device or back end may know of time: a clock, timers and "do this soon". The machine gives the real
// one (base/event_loop.h); tests give ManualScheduler (base/manual_scheduler.h), so that every device test is
// deterministic. All callbacks run under the machine's device lock (see bus/device.h).

#include <cstdint>
#include <functional>
#include <memory>

namespace nacre {

/// One timer. Destroying it cancels it; its callback never runs after the destructor has returned.
class Timer {
 public:
  virtual ~Timer() = default;
  /// Arms for an absolute time on Scheduler::NowNs's clock; replaces an earlier deadline. Past times fire soon.
  virtual void Arm(int64_t deadline_ns) = 0;
  virtual void Cancel() = 0;
  virtual bool armed() const = 0;
};

class Scheduler {
 public:
  virtual ~Scheduler() = default;
  /// Guest time: nanoseconds since the machine was started, monotonic, standing still while it is paused.
  virtual int64_t NowNs() const = 0;
  virtual std::unique_ptr<Timer> CreateTimer(std::function<void()> callback) = 0;
  /// Runs `callback` soon, on the loop's thread, under the device lock. May be called from any thread.
  virtual void Post(std::function<void()> callback) = 0;
};

}  // namespace nacre
