#pragma once
// An image's file for coroutines: whole reads and writes, however often the host moves only a part. Under the device
// lock, as AsyncIo.

#include <span>

#include "base/fd.h"
#include "storage/coroutine.h"

namespace nacre::storage {

/// Bytes [skip, skip + size) of `vectors`.
std::vector<iovec> SliceVectors(std::span<const iovec> vectors, uint64_t skip, uint64_t size_bytes);
/// `size_bytes` of zeros, in as few entries as there can be: a 64 KiB buffer again and again.
std::vector<iovec> ZeroVectors(uint64_t size_bytes);
void FillWithZeros(std::span<const iovec> vectors);

class ImageFile {
 public:
  ImageFile(Fd fd, Runner& runner, std::shared_ptr<AsyncIo> io)
      : fd_(std::move(fd)), runner_(&runner), io_(std::move(io)) {}

  int fd() const { return fd_.get(); }
  AsyncIo& io() { return *io_; }
  // Each gives 0 or an errno. The vectors stay until the task is done.
  /// What lies behind the end of the file reads as zeros.
  Task<int> Read(uint64_t offset, std::span<const iovec> vectors);
  Task<int> Write(uint64_t offset, std::span<const iovec> vectors);
  Task<int> WriteBytes(uint64_t offset, const void* bytes, uint64_t size_bytes);
  Task<int> WriteZeros(uint64_t offset, uint64_t size_bytes);
  Task<int> Sync();
  /// Gives the space back; what fails is not told, it is only a hint.
  Task<int> Punch(uint64_t offset, uint64_t size_bytes);

 private:
  Task<int> Move(IoOperation::Kind kind, uint64_t offset, std::span<const iovec> vectors);

  Fd fd_;
  Runner* runner_;
  std::shared_ptr<AsyncIo> io_;
};

}  // namespace nacre::storage
