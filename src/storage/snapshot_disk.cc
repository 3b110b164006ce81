#include "storage/snapshot_disk.h"

#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "base/check.h"

namespace nacre::storage {

bool SectorSet::Contains(uint64_t sector) const {
  const Chunk* chunk = Find(sector);
  if (!chunk) return false;
  return chunk->bits ? chunk->bits->test(sector % kChunkSectors) : chunk->full;
}

void SectorSet::Add(uint64_t first, uint64_t count) {
  while (count > 0) {
    Chunk& chunk = chunks_[first / kChunkSectors];
    const uint64_t at = first % kChunkSectors;
    const uint64_t piece = std::min(count, kChunkSectors - at);
    first += piece;
    count -= piece;
    if (chunk.full) continue;
    if (piece == kChunkSectors) {
      chunk.bits.reset();
      chunk.full = true;
      continue;
    }
    if (!chunk.bits) chunk.bits = std::make_unique<std::bitset<kChunkSectors>>();
    for (uint64_t i = at; i < at + piece; ++i) chunk.bits->set(i);
  }
}

uint64_t SectorSet::RunLength(uint64_t first, uint64_t count) const {
  const bool inside = Contains(first);
  uint64_t run = 1;
  while (run < count) {
    const uint64_t sector = first + run;
    const Chunk* chunk = Find(sector);
    if (!chunk || !chunk->bits) {
      if ((chunk && chunk->full) != inside) break;
      run += kChunkSectors - sector % kChunkSectors;
      continue;
    }
    if (chunk->bits->test(sector % kChunkSectors) != inside) break;
    ++run;
  }
  return std::min(run, count);
}

/// The caller's request while its parts run.
struct SnapshotDisk::Whole {
  DiskRequest* request = nullptr;
  unsigned parts = 0;
  int error = 0;
};

class SnapshotDisk::Part : public DiskRequest {
 public:
  explicit Part(SnapshotDisk* disk) : disk_(disk) {}
  void Done(int error) override { disk_->PartDone(*this, error); }
  Whole* whole = nullptr;

 private:
  SnapshotDisk* disk_;
};

namespace {

Result<Fd> MakeTemporary(const std::string& wanted) {
  const char* from_environment = getenv("TMPDIR");
  const std::string directory = !wanted.empty()                         ? wanted
                                : from_environment && *from_environment ? from_environment
                                                                        : "/var/tmp";
  Fd fd(open(directory.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  if (fd.valid()) return fd;
  std::string name = directory + "/nacre-snapshot-XXXXXX";  // a file system without O_TMPFILE
  fd = Fd(mkostemp(name.data(), O_CLOEXEC));
  if (!fd.valid()) return FailErrno("snapshot: no temporary file in '{}' (set TMPDIR)", directory);
  unlink(name.c_str());
  return fd;
}

}  // namespace

Result<std::unique_ptr<SnapshotDisk>> SnapshotDisk::Create(std::unique_ptr<Disk> below, std::shared_ptr<AsyncIo> io,
                                                           const std::string& directory) {
  Fd fd = NACRE_TRY(MakeTemporary(directory));
  if (ftruncate(fd.get(), static_cast<off_t>(below->size_bytes())) != 0)
    return FailErrno("snapshot: temporary file of {} bytes (set TMPDIR to a larger file system)", below->size_bytes());
  auto overlay = RawDisk::Adopt(std::move(fd), below->size_bytes(), false, std::move(io));
  return std::unique_ptr<SnapshotDisk>(new SnapshotDisk(std::move(below), std::move(overlay)));
}

SnapshotDisk::SnapshotDisk(std::unique_ptr<Disk> below, std::unique_ptr<Disk> overlay)
    : Disk(below->size_bytes(), false), below_(std::move(below)), overlay_(std::move(overlay)) {}

SnapshotDisk::~SnapshotDisk() { Drain(); }

void SnapshotDisk::Start(DiskRequest& request) {
  const int error = Check(request);
  const bool nothing = request.size_bytes == 0;
  if (error != 0 || nothing || request.kind == DiskRequest::Kind::kFlush) {  // nothing here outlives the process
    refused_.emplace_back(&request, error);
    return;
  }
  if (free_wholes_.empty()) {
    wholes_.push_back(std::make_unique<Whole>());
    free_wholes_.push_back(wholes_.back().get());
  }
  Whole& whole = *free_wholes_.back();
  free_wholes_.pop_back();
  whole = {.request = &request};
  if (request.kind == DiskRequest::Kind::kRead)
    StartRead(whole);
  else
    StartPart(whole, *overlay_, request.offset, request.size_bytes);
}

void SnapshotDisk::StartRead(Whole& whole) {
  uint64_t sector = whole.request->offset / kSectorSize;
  uint64_t left = whole.request->size_bytes / kSectorSize;
  while (left > 0) {
    const uint64_t run = written_.RunLength(sector, left);
    StartPart(whole, written_.Contains(sector) ? *overlay_ : *below_, sector * kSectorSize, run * kSectorSize);
    sector += run;
    left -= run;
  }
}

void SnapshotDisk::StartPart(Whole& whole, Disk& disk, uint64_t offset, uint64_t size_bytes) {
  if (free_parts_.empty()) {
    parts_.push_back(std::make_unique<Part>(this));
    free_parts_.push_back(parts_.back().get());
  }
  Part& part = *free_parts_.back();
  free_parts_.pop_back();
  ++whole.parts;
  part.whole = &whole;
  part.kind = whole.request->kind;
  // The hole of a discard reads as zeros where the overlay held data; elsewhere the disk below shows through
  // again.
  part.unmap = whole.request->unmap;
  part.offset = offset;
  part.size_bytes = size_bytes;
  part.vectors.clear();
  uint64_t skip = offset - whole.request->offset;
  uint64_t left = size_bytes;
  for (const iovec& vector : whole.request->vectors) {
    if (left == 0) break;
    if (skip >= vector.iov_len) {
      skip -= vector.iov_len;
      continue;
    }
    const uint64_t piece = std::min<uint64_t>(vector.iov_len - skip, left);
    part.vectors.push_back({static_cast<uint8_t*>(vector.iov_base) + skip, piece});
    left -= piece;
    skip = 0;
  }
  disk.Start(part);
}

void SnapshotDisk::PartDone(Part& part, int error) {
  Whole& whole = *part.whole;
  if (error == 0 && (part.kind == DiskRequest::Kind::kWrite || part.kind == DiskRequest::Kind::kWriteZeroes))
    written_.Add(part.offset / kSectorSize, part.size_bytes / kSectorSize);
  if (whole.error == 0) whole.error = error;
  free_parts_.push_back(&part);
  if (--whole.parts == 0) Finish(whole);
}

void SnapshotDisk::Finish(Whole& whole) {
  DiskRequest* request = whole.request;
  const int error = whole.error;
  free_wholes_.push_back(&whole);
  request->Done(error);
}

void SnapshotDisk::Submit() {
  below_->Submit();
  overlay_->Submit();
  while (!refused_.empty()) {
    auto refused = std::exchange(refused_, {});
    for (auto [request, error] : refused) request->Done(error);
  }
}

void SnapshotDisk::Drain() {
  Submit();
  below_->Drain();
  overlay_->Drain();
  Submit();
}

}  // namespace nacre::storage
