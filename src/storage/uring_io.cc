// AsyncIo over io_uring(7).

#include <liburing.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <deque>

#include "base/check.h"
#include "base/fd.h"
#include "storage/async_io.h"

namespace nacre::storage {
namespace {

constexpr unsigned kEntries = 256;

class UringIo : public AsyncIo {
 public:
  explicit UringIo(Fd event_fd) : event_fd_(std::move(event_fd)) {}
  ~UringIo() override {
    if (!ready_) return;
    while (running_ > 0 || !backlog_.empty()) Wait();
    io_uring_queue_exit(&ring_);
  }

  Status Open() {
    const int error = io_uring_queue_init(kEntries, &ring_, IORING_SETUP_CLAMP);
    if (error < 0) {
      errno = -error;
      return FailErrno("io_uring");
    }
    ready_ = true;
    io_uring_probe* probe = io_uring_get_probe_ring(&ring_);
    const bool complete = probe && io_uring_opcode_supported(probe, IORING_OP_FALLOCATE) != 0;
    if (probe) io_uring_free_probe(probe);
    if (!complete) return Fail("io_uring: the kernel is too old (no fallocate)");
    if (const int failed = io_uring_register_eventfd(&ring_, event_fd_.get()); failed < 0) {
      errno = -failed;
      return FailErrno("io_uring: eventfd");
    }
    return {};
  }

  void Queue(IoOperation& operation) override {
    if (backlog_.empty() && Prepare(operation)) return;
    backlog_.push_back(&operation);
  }

  void Submit() override {
    if (in_submit_) return;  // an operation that finished queued another: the loop below takes it
    in_submit_ = true;
    do {
      // What completes inside the system call is harvested here and needs no wake-up of the event loop; what
      // comes after the flag is cleared raises the event.
      io_uring_cq_eventfd_toggle(&ring_, false);
      const int submitted = io_uring_submit(&ring_);
      io_uring_cq_eventfd_toggle(&ring_, true);
      Harvest();
      Refill();
      if (submitted < 0 && submitted != -EINTR && submitted != -EAGAIN && submitted != -EBUSY) break;
    } while (io_uring_sq_ready(&ring_) > 0);
    in_submit_ = false;
  }

  void HandleEvents() override {
    uint64_t count;
    [[maybe_unused]] const ssize_t got = ::read(event_fd_.get(), &count, sizeof(count));
    Harvest();
    Refill();
    Submit();
  }

  void Wait() override {
    Submit();
    if (running_ == 0) return;
    const uint64_t before = finished_;
    while (finished_ == before && running_ > 0) {
      const int result = io_uring_submit_and_wait(&ring_, 1);
      NACRE_CHECK(result >= 0 || result == -EINTR || result == -EAGAIN || result == -EBUSY);
      Harvest();
      Refill();
    }
    Submit();
  }

  int event_fd() const override { return event_fd_.get(); }
  std::string_view engine_name() const override { return "io_uring"; }

 private:
  bool Prepare(IoOperation& operation) {
    io_uring_sqe* entry = io_uring_get_sqe(&ring_);
    if (!entry) return false;
    switch (operation.kind) {
      case IoOperation::Kind::kRead:
        io_uring_prep_readv(entry, operation.fd, operation.vectors, operation.vector_count, operation.offset);
        break;
      case IoOperation::Kind::kWrite:
        io_uring_prep_writev(entry, operation.fd, operation.vectors, operation.vector_count, operation.offset);
        break;
      case IoOperation::Kind::kSync:
        io_uring_prep_fsync(entry, operation.fd, IORING_FSYNC_DATASYNC);
        break;
      case IoOperation::Kind::kAllocate:
        io_uring_prep_fallocate(entry, operation.fd, operation.allocate_mode, static_cast<off_t>(operation.offset),
                                static_cast<off_t>(operation.size_bytes));
        break;
    }
    io_uring_sqe_set_data(entry, &operation);
    ++running_;
    return true;
  }

  void Harvest() {
    io_uring_cqe* entry = nullptr;
    while (io_uring_peek_cqe(&ring_, &entry) == 0) {
      auto* operation = static_cast<IoOperation*>(io_uring_cqe_get_data(entry));
      const int64_t result = entry->res;
      io_uring_cqe_seen(&ring_, entry);
      --running_;
      ++finished_;
      operation->Finished(result);
    }
  }

  void Refill() {
    while (!backlog_.empty() && Prepare(*backlog_.front())) backlog_.pop_front();
  }

  Fd event_fd_;
  io_uring ring_{};
  bool ready_ = false;
  bool in_submit_ = false;
  unsigned running_ = 0;
  uint64_t finished_ = 0;
  std::deque<IoOperation*> backlog_;  // taken in while the submission ring was full
};

}  // namespace

Result<std::unique_ptr<AsyncIo>> internal::CreateUringIo() {
  Fd event_fd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!event_fd.valid()) return FailErrno("eventfd");
  auto io = std::make_unique<UringIo>(std::move(event_fd));
  NACRE_TRY_STATUS(io->Open());
  return io;
}

}  // namespace nacre::storage
