// AsyncIo over a few worker threads and plain system calls, for hosts that do not permit io_uring.

#include <fcntl.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <vector>

#include "base/fd.h"
#include "storage/async_io.h"

namespace nacre::storage {
namespace {

constexpr unsigned kThreads = 4;

int64_t Run(const IoOperation& operation) {
  const auto offset = static_cast<off_t>(operation.offset);
  int64_t result = 0;
  do {
    switch (operation.kind) {
      case IoOperation::Kind::kRead:
        result = preadv(operation.fd, operation.vectors, static_cast<int>(operation.vector_count), offset);
        break;
      case IoOperation::Kind::kWrite:
        result = pwritev(operation.fd, operation.vectors, static_cast<int>(operation.vector_count), offset);
        break;
      case IoOperation::Kind::kSync:
        result = fdatasync(operation.fd);
        break;
      case IoOperation::Kind::kAllocate:
        result = fallocate(operation.fd, operation.allocate_mode, offset, static_cast<off_t>(operation.size_bytes));
        break;
    }
  } while (result < 0 && errno == EINTR);
  return result < 0 ? -errno : result;
}

class ThreadIo : public AsyncIo {
 public:
  explicit ThreadIo(Fd event_fd) : event_fd_(std::move(event_fd)) {
    for (unsigned i = 0; i < kThreads; ++i) threads_.emplace_back([this] { Work(); });
  }

  ~ThreadIo() override {
    while (unfinished_ > 0) Wait();
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    work_ready_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  void Queue(IoOperation& operation) override {
    queued_.push_back(&operation);
    ++unfinished_;
  }

  void Submit() override {
    if (queued_.empty()) return;
    const bool many = queued_.size() > 1;
    {
      const std::lock_guard lock(mutex_);
      work_.insert(work_.end(), queued_.begin(), queued_.end());
    }
    queued_.clear();
    many ? work_ready_.notify_all() : work_ready_.notify_one();
  }

  void HandleEvents() override {
    uint64_t count;
    [[maybe_unused]] const ssize_t got = ::read(event_fd_.get(), &count, sizeof(count));
    Finish();
    Submit();
  }

  void Wait() override {
    Submit();
    if (unfinished_ == 0) return;
    {
      std::unique_lock lock(mutex_);
      work_done_.wait(lock, [this] { return !done_.empty(); });
    }
    Finish();
    Submit();
  }

  int event_fd() const override { return event_fd_.get(); }
  std::string_view engine_name() const override { return "threads"; }

 private:
  struct Done {
    IoOperation* operation;
    int64_t result;
  };

  void Finish() {
    std::vector<Done> done;
    {
      const std::lock_guard lock(mutex_);
      done.swap(done_);
    }
    for (const Done& entry : done) {
      --unfinished_;
      entry.operation->Finished(entry.result);
    }
  }

  void Work() {
    std::unique_lock lock(mutex_);
    while (true) {
      work_ready_.wait(lock, [this] { return stopping_ || !work_.empty(); });
      if (work_.empty()) return;
      IoOperation* operation = work_.front();
      work_.pop_front();
      lock.unlock();
      const int64_t result = Run(*operation);
      lock.lock();
      done_.push_back({operation, result});
      if (done_.size() > 1) continue;  // who takes the first takes them all
      work_done_.notify_all();
      const uint64_t one = 1;
      [[maybe_unused]] const ssize_t put = ::write(event_fd_.get(), &one, sizeof(one));
    }
  }

  Fd event_fd_;
  std::vector<IoOperation*> queued_;
  unsigned unfinished_ = 0;

  std::mutex mutex_;  // guards what follows
  std::condition_variable work_ready_;
  std::condition_variable work_done_;
  std::deque<IoOperation*> work_;
  std::vector<Done> done_;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace

Result<std::unique_ptr<AsyncIo>> internal::CreateThreadIo() {
  Fd event_fd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!event_fd.valid()) return FailErrno("eventfd");
  return std::make_unique<ThreadIo>(std::move(event_fd));
}

}  // namespace nacre::storage
