#include "storage/image_file.h"

#include <fcntl.h>
#include <linux/falloc.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "base/bits.h"

namespace nacre::storage {
namespace {

alignas(kPageSize) const std::array<uint8_t, 64 * kKiB> kZeroes{};
constexpr size_t kMostVectors = 1024;  // IOV_MAX

uint64_t SizeOf(std::span<const iovec> vectors) {
  uint64_t size_bytes = 0;
  for (const iovec& vector : vectors) size_bytes += vector.iov_len;
  return size_bytes;
}

}  // namespace

std::vector<iovec> SliceVectors(std::span<const iovec> vectors, uint64_t skip, uint64_t size_bytes) {
  std::vector<iovec> slice;
  for (const iovec& vector : vectors) {
    if (size_bytes == 0) break;
    if (skip >= vector.iov_len) {
      skip -= vector.iov_len;
      continue;
    }
    const uint64_t piece = std::min<uint64_t>(vector.iov_len - skip, size_bytes);
    slice.push_back({static_cast<uint8_t*>(vector.iov_base) + skip, piece});
    size_bytes -= piece;
    skip = 0;
  }
  return slice;
}

std::vector<iovec> ZeroVectors(uint64_t size_bytes) {
  std::vector<iovec> vectors;
  while (size_bytes > 0) {
    const uint64_t piece = std::min<uint64_t>(size_bytes, kZeroes.size());
    vectors.push_back({const_cast<uint8_t*>(kZeroes.data()), piece});
    size_bytes -= piece;
  }
  return vectors;
}

void FillWithZeros(std::span<const iovec> vectors) {
  for (const iovec& vector : vectors) std::memset(vector.iov_base, 0, vector.iov_len);
}

Task<int> ImageFile::Move(IoOperation::Kind kind, uint64_t offset, std::span<const iovec> vectors) {
  uint64_t left = SizeOf(vectors);
  std::vector<iovec> rest;
  while (left > 0) {
    IoAwait operation(*runner_, *io_);
    operation.kind = kind;
    operation.fd = fd_.get();
    operation.offset = offset;
    operation.vectors = vectors.data();
    operation.vector_count = static_cast<uint32_t>(std::min(vectors.size(), kMostVectors));
    const int64_t result = co_await operation;
    if (result == -EINTR || result == -EAGAIN) continue;
    if (result < 0) co_return static_cast<int>(-result);
    if (result == 0) {
      if (kind == IoOperation::Kind::kWrite) co_return EIO;
      FillWithZeros(vectors);  // behind the end of the file
      co_return 0;
    }
    left -= static_cast<uint64_t>(result);
    offset += static_cast<uint64_t>(result);
    if (left == 0) break;
    std::vector<iovec> next = SliceVectors(vectors, static_cast<uint64_t>(result), left);
    rest = std::move(next);
    vectors = rest;
  }
  co_return 0;
}

Task<int> ImageFile::Read(uint64_t offset, std::span<const iovec> vectors) {
  return Move(IoOperation::Kind::kRead, offset, vectors);
}

Task<int> ImageFile::Write(uint64_t offset, std::span<const iovec> vectors) {
  return Move(IoOperation::Kind::kWrite, offset, vectors);
}

Task<int> ImageFile::WriteBytes(uint64_t offset, const void* bytes, uint64_t size_bytes) {
  const iovec vector{const_cast<void*>(bytes), size_bytes};
  const int error = co_await Move(IoOperation::Kind::kWrite, offset, std::span(&vector, 1));
  co_return error;
}

Task<int> ImageFile::WriteZeros(uint64_t offset, uint64_t size_bytes) {
  const std::vector<iovec> vectors = ZeroVectors(size_bytes);
  const int error = co_await Move(IoOperation::Kind::kWrite, offset, vectors);
  co_return error;
}

Task<int> ImageFile::Sync() {
  while (true) {
    IoAwait operation(*runner_, *io_);
    operation.kind = IoOperation::Kind::kSync;
    operation.fd = fd_.get();
    const int64_t result = co_await operation;
    if (result != -EINTR && result != -EAGAIN) co_return static_cast<int>(-result);
  }
}

Task<int> ImageFile::Punch(uint64_t offset, uint64_t size_bytes) {
  IoAwait operation(*runner_, *io_);
  operation.kind = IoOperation::Kind::kAllocate;
  operation.fd = fd_.get();
  operation.allocate_mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
  operation.offset = offset;
  operation.size_bytes = size_bytes;
  const int64_t result = co_await operation;
  co_return static_cast<int>(result < 0 ? -result : 0);
}

}  // namespace nacre::storage
