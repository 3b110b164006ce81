#pragma once
// Coroutines for image formats whose requests take several file operations: Task is an awaitable part of one, Job the
// whole, Runner resumes them. A Task starts at once and runs until it has to wait.
//
// Threads: all of it under the device lock (bus/device.h). Runner never resumes a coroutine from inside another one:
// whatever becomes ready meanwhile waits in a queue, so nothing is re-entered and the stack stays flat.

#include <coroutine>
#include <cstdlib>
#include <deque>
#include <memory>
#include <utility>
#include <vector>

#include "storage/async_io.h"
#include "storage/disk.h"

namespace nacre::storage {

template <typename T>
class [[nodiscard]] Task {
 public:
  struct promise_type {
    T value{};
    std::coroutine_handle<> waiter;
    Task get_return_object() { return Task(std::coroutine_handle<promise_type>::from_promise(*this)); }
    std::suspend_never initial_suspend() noexcept { return {}; }
    struct Final {
      bool await_ready() noexcept { return false; }
      std::coroutine_handle<> await_suspend(std::coroutine_handle<promise_type> self) noexcept {
        return self.promise().waiter ? self.promise().waiter : std::noop_coroutine();
      }
      void await_resume() noexcept {}
    };
    Final final_suspend() noexcept { return {}; }
    void return_value(T result) { value = std::move(result); }
    void unhandled_exception() { std::abort(); }
  };

  Task(Task&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Task& operator=(Task&&) = delete;
  Task(const Task&) = delete;
  /// A task is awaited before it is destroyed.
  ~Task() {
    if (handle_) handle_.destroy();
  }
  bool await_ready() const { return handle_.done(); }
  void await_suspend(std::coroutine_handle<> waiter) { handle_.promise().waiter = waiter; }
  T await_resume() { return std::move(handle_.promise().value); }

 private:
  explicit Task(std::coroutine_handle<promise_type> handle) : handle_(handle) {}
  std::coroutine_handle<promise_type> handle_;
};

/// Runs by itself and frees itself; Runner::Start begins it.
struct Job {
  struct promise_type {
    Job get_return_object() { return {std::coroutine_handle<promise_type>::from_promise(*this)}; }
    std::suspend_always initial_suspend() noexcept { return {}; }
    std::suspend_never final_suspend() noexcept { return {}; }
    void return_void() {}
    void unhandled_exception() { std::abort(); }
  };
  std::coroutine_handle<> handle;
};

class Runner {
 public:
  void Start(Job job) { Resume(job.handle); }
  /// Resumes `handle` now, or after what runs now.
  void Resume(std::coroutine_handle<> handle) {
    ready_.push_back(handle);
    Run();
  }
  void ResumeAll(std::vector<std::coroutine_handle<>>& handles) {
    ready_.insert(ready_.end(), handles.begin(), handles.end());
    handles.clear();
    Run();
  }

 private:
  void Run() {
    if (running_) return;
    running_ = true;
    while (!ready_.empty()) {
      const std::coroutine_handle<> next = ready_.front();
      ready_.pop_front();
      next.resume();
    }
    running_ = false;
  }
  bool running_ = false;
  std::deque<std::coroutine_handle<>> ready_;
};

/// A list of coroutines that wait for something.
class WaitList {
 public:
  explicit WaitList(Runner& runner) : runner_(&runner) {}
  auto operator co_await() {
    struct Awaiter {
      WaitList* list;
      bool await_ready() { return false; }
      void await_suspend(std::coroutine_handle<> handle) { list->waiting_.push_back(handle); }
      void await_resume() {}
    };
    return Awaiter{this};
  }
  void WakeAll() {
    if (!waiting_.empty()) runner_->ResumeAll(waiting_);
  }
  bool empty() const { return waiting_.empty(); }

 private:
  Runner* runner_;
  std::vector<std::coroutine_handle<>> waiting_;
};

/// One coroutine at a time: `co_await mutex.Lock(); ... mutex.Unlock();`
class AsyncMutex {
 public:
  explicit AsyncMutex(Runner& runner) : free_again_(runner) {}
  Task<bool> Lock() {
    while (locked_) co_await free_again_;
    locked_ = true;
    co_return true;
  }
  void Unlock() {
    locked_ = false;
    free_again_.WakeAll();
  }

 private:
  bool locked_ = false;
  WaitList free_again_;
};

/// One file operation; `co_await` gives AsyncIo's result.
class IoAwait : public IoOperation {
 public:
  IoAwait(Runner& runner, AsyncIo& io) : runner_(&runner), io_(&io) {}
  bool await_ready() { return false; }
  void await_suspend(std::coroutine_handle<> waiter) {
    waiter_ = waiter;
    io_->Queue(*this);
  }
  int64_t await_resume() { return result_; }
  void Finished(int64_t result) override {
    result_ = result;
    runner_->Resume(waiter_);
  }

 private:
  Runner* runner_;
  AsyncIo* io_;
  std::coroutine_handle<> waiter_;
  int64_t result_ = 0;
};

/// One request to another disk; `co_await` gives its error or 0.
class DiskAwait : public DiskRequest {
 public:
  DiskAwait(Runner& runner, Disk& disk) : runner_(&runner), disk_(&disk) {}
  bool await_ready() { return false; }
  void await_suspend(std::coroutine_handle<> waiter) {
    waiter_ = waiter;
    disk_->Start(*this);
    disk_->Submit();
  }
  int await_resume() { return error_; }
  void Done(int error) override {
    error_ = error;
    runner_->Resume(waiter_);
  }

 private:
  Runner* runner_;
  Disk* disk_;
  std::coroutine_handle<> waiter_;
  int error_ = 0;
};

}  // namespace nacre::storage
