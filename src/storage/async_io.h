#pragma once
// File I/O that does not block its caller: reads, writes, syncs and allocation on host files. One per
// machine, shared by all its disks. Create picks io_uring, or a few worker threads where the host does not
// permit io_uring.
//
// Threads: every method under the device lock (bus/device.h), which is also held while operations finish. The
// event loop watches event_fd() for reading and calls HandleEvents().

#include <sys/uio.h>

#include <cstdint>
#include <memory>
#include <string_view>

#include "base/result.h"

namespace nacre::storage {

/// One operation. Its owner keeps it and what it points to alive until Finished.
class IoOperation {
 public:
  enum class Kind : uint8_t {
    kRead,      ///< preadv
    kWrite,     ///< pwritev
    kSync,      ///< fdatasync
    kAllocate,  ///< fallocate
  };
  virtual ~IoOperation() = default;
  /// The system call's result: bytes moved (maybe fewer than asked) or 0; or a negative errno.
  virtual void Finished(int64_t result) = 0;

  Kind kind = Kind::kRead;
  int fd = -1;
  int allocate_mode = 0;  ///< FALLOC_FL_*
  uint32_t vector_count = 0;
  const iovec* vectors = nullptr;
  uint64_t offset = 0;
  uint64_t size_bytes = 0;  ///< kAllocate only
};

class AsyncIo {
 public:
  enum class Engine { kBest, kIoUring, kThreads };

  static Result<std::unique_ptr<AsyncIo>> Create(Engine engine = Engine::kBest);
  virtual ~AsyncIo() = default;

  /// Takes an operation in; it starts at Submit at the latest. Operations may run in any order.
  virtual void Queue(IoOperation& operation) = 0;
  /// Starts what is queued. Operations that are done already finish before this returns.
  virtual void Submit() = 0;
  /// Finishes what is done.
  virtual void HandleEvents() = 0;
  /// Blocks until at least one operation has finished; at once when none is queued or running.
  virtual void Wait() = 0;
  virtual int event_fd() const = 0;
  /// "io_uring" or "threads".
  virtual std::string_view engine_name() const = 0;
};

namespace internal {
Result<std::unique_ptr<AsyncIo>> CreateUringIo();
Result<std::unique_ptr<AsyncIo>> CreateThreadIo();
}  // namespace internal

}  // namespace nacre::storage
