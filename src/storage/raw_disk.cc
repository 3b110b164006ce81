#include "storage/raw_disk.h"

#include <fcntl.h>
#include <linux/falloc.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "base/bits.h"
#include "base/check.h"
#include "storage/host_file.h"

namespace nacre::storage {
namespace {

alignas(kPageSize) const std::array<uint8_t, 64 * kKiB> kZeroes{};
constexpr unsigned kZeroVectors = 64;

Result<uint64_t> SizeOf(const std::string& path, int fd) {
  const uint64_t size_bytes = NACRE_TRY(FileBytes(path, fd));
  if (size_bytes == 0) return Fail("disk '{}': the file is empty; make an image with `truncate -s 10G {}`", path, path);
  if (size_bytes % kSectorSize != 0)
    return Fail(
        "disk '{}': {} bytes are not a whole number of 512-byte sectors: is the file truncated, or no raw "
        "image? "
        "To use it as it is, pad it with `truncate -s %512 {}`",
        path, size_bytes, path);
  return size_bytes;
}

/// A disk in another format, used as raw, would be destroyed at the first write.
Status RefuseOtherFormat(const std::string& path, int fd) {
  char magic[4] = {};
  if (pread(fd, magic, sizeof(magic), 0) != sizeof(magic)) return {};
  const std::string_view start(magic, sizeof(magic));
  const char* format = start == "QFI\xfb" ? "qcow2" : start == "KDMV" ? "VMDK" : start == "vhdx" ? "VHDX" : nullptr;
  if (!format) return {};
  return Fail("disk '{}': is a {} image, not a raw one; if it is meant as raw, say format=raw", path, format);
}

}  // namespace

/// One request on its way, with what a retry needs.
class RawDisk::Operation : public IoOperation {
 public:
  explicit Operation(RawDisk* disk) : disk_(disk) {}

  DiskRequest* request = nullptr;

  void Begin() {
    done_bytes_ = 0;
    fd = disk_->fd_.get();
    offset = request->offset;
    switch (request->kind) {
      case DiskRequest::Kind::kRead:
      case DiskRequest::Kind::kWrite:
        kind = request->kind == DiskRequest::Kind::kRead ? Kind::kRead : Kind::kWrite;
        vectors = request->vectors.data();
        vector_count = static_cast<uint32_t>(request->vectors.size());
        break;
      case DiskRequest::Kind::kFlush:
        kind = Kind::kSync;
        break;
      case DiskRequest::Kind::kDiscard:
        Allocate(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE);
        break;
      case DiskRequest::Kind::kWriteZeroes:
        Allocate(request->unmap ? FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
                                : FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE);
        break;
    }
    disk_->io_->Queue(*this);
  }

  void Finished(int64_t result) override {
    if (result == -EINTR || result == -EAGAIN) return Again();
    if (kind == Kind::kAllocate && result < 0) return AllocateFailed(static_cast<int>(-result));
    if (result < 0) return disk_->Finish(*this, static_cast<int>(-result));
    if (kind == Kind::kSync || kind == Kind::kAllocate) return disk_->Finish(*this, 0);
    done_bytes_ += static_cast<uint64_t>(result);
    if (done_bytes_ >= request->size_bytes) return disk_->Finish(*this, 0);
    if (result == 0) return disk_->Finish(*this, EIO);  // the image became shorter while it was in use
    offset = request->offset + done_bytes_;
    if (request->kind == DiskRequest::Kind::kWriteZeroes)
      PointToZeroes();
    else
      SkipDone();
    Again();
  }

 private:
  void Allocate(int mode) {
    kind = Kind::kAllocate;
    allocate_mode = mode;
    size_bytes = request->size_bytes;
  }
  void Again() {
    disk_->io_->Queue(*this);
    disk_->io_->Submit();
  }
  void AllocateFailed(int error) {
    if (error != EOPNOTSUPP && error != ENOSYS) return disk_->Finish(*this, error);
    if (request->kind == DiskRequest::Kind::kDiscard) return disk_->Finish(*this, 0);  // only a hint
    kind = Kind::kWrite;
    PointToZeroes();
    Again();
  }
  void PointToZeroes() {
    rest_.clear();
    uint64_t left = request->size_bytes - done_bytes_;
    while (left > 0 && rest_.size() < kZeroVectors) {
      const uint64_t piece = std::min<uint64_t>(left, kZeroes.size());
      rest_.push_back({const_cast<uint8_t*>(kZeroes.data()), piece});
      left -= piece;
    }
    UseRest();
  }
  void SkipDone() {
    rest_.clear();
    uint64_t skip = done_bytes_;
    for (const iovec& vector : request->vectors) {
      const uint64_t gone = std::min<uint64_t>(skip, vector.iov_len);
      skip -= gone;
      if (gone < vector.iov_len)
        rest_.push_back({static_cast<uint8_t*>(vector.iov_base) + gone, vector.iov_len - gone});
    }
    UseRest();
  }
  void UseRest() {
    vectors = rest_.data();
    vector_count = static_cast<uint32_t>(rest_.size());
  }

  RawDisk* disk_;
  uint64_t done_bytes_ = 0;
  std::vector<iovec> rest_;
};

Result<std::unique_ptr<RawDisk>> RawDisk::Open(const RawDiskOptions& options, std::shared_ptr<AsyncIo> io) {
  Fd fd = NACRE_TRY(OpenImageFile(options.path, options.read_only));
  const uint64_t size_bytes = NACRE_TRY(SizeOf(options.path, fd.get()));
  if (!options.format_given) NACRE_TRY_STATUS(RefuseOtherFormat(options.path, fd.get()));
  return Adopt(std::move(fd), size_bytes, options.read_only, std::move(io));
}

std::unique_ptr<RawDisk> RawDisk::Adopt(Fd fd, uint64_t size_bytes, bool read_only, std::shared_ptr<AsyncIo> io) {
  return std::unique_ptr<RawDisk>(new RawDisk(std::move(fd), size_bytes, read_only, std::move(io)));
}

RawDisk::RawDisk(Fd fd, uint64_t size_bytes, bool read_only, std::shared_ptr<AsyncIo> io)
    : Disk(size_bytes, read_only), fd_(std::move(fd)), io_(std::move(io)) {}

RawDisk::~RawDisk() { Drain(); }

void RawDisk::Start(DiskRequest& request) {
  const int error = Check(request);
  const bool moves_data = request.kind == DiskRequest::Kind::kRead || request.kind == DiskRequest::Kind::kWrite;
  const bool nothing = request.kind != DiskRequest::Kind::kFlush && request.size_bytes == 0;
  const bool flush_of_reader = request.kind == DiskRequest::Kind::kFlush && read_only();
  if (error != 0 || nothing || flush_of_reader) {
    refused_.emplace_back(&request, error);
    return;
  }
  NACRE_CHECK(!moves_data || (!request.vectors.empty() && request.vectors.size() <= 1024));
  if (free_.empty()) {
    operations_.push_back(std::make_unique<Operation>(this));
    free_.push_back(operations_.back().get());
  }
  Operation* operation = free_.back();
  free_.pop_back();
  operation->request = &request;
  operation->Begin();
}

void RawDisk::Submit() {
  io_->Submit();
  while (!refused_.empty()) {
    auto refused = std::exchange(refused_, {});
    for (auto [request, error] : refused) request->Done(error);
  }
}

void RawDisk::Drain() {
  Submit();
  while (free_.size() != operations_.size()) io_->Wait();
  Submit();
}

void RawDisk::Finish(Operation& operation, int error) {
  DiskRequest* request = std::exchange(operation.request, nullptr);
  free_.push_back(&operation);
  request->Done(error);
}

}  // namespace nacre::storage
