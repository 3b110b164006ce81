#include "storage/qcow2_disk.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace nacre::storage {

using qcow2::Entry;
using qcow2::Geometry;

namespace {

constexpr uint64_t kL2CacheBytes = 8 * kMiB;
constexpr size_t kMostParts = 32;  // of one request in flight

/// A table of big-endian words at `offset`; what lies behind the end of the file is 0.
Result<std::vector<uint64_t>> ReadTable(const std::string& path, int fd, uint64_t offset, uint64_t count) {
  std::vector<uint64_t> table(count);
  auto* bytes = reinterpret_cast<uint8_t*>(table.data());
  uint64_t done = 0;
  while (done < count * 8) {
    const ssize_t got = pread(fd, bytes + done, count * 8 - done, static_cast<off_t>(offset + done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return FailErrno("disk '{}': read", path);
    if (got == 0) break;
    done += static_cast<uint64_t>(got);
  }
  for (uint64_t& entry : table) entry = qcow2::LoadBe<uint64_t>(&entry);
  return table;
}

/// The clusters of header and tables, sorted. Fails when refcount blocks are shared: nothing can be allocated by them.
Result<std::vector<uint64_t>> FixedClusters(const qcow2::Header& header, const std::vector<uint64_t>& l1,
                                            const std::vector<uint64_t>& refcount_table) {
  const Geometry& g = header.geometry;
  std::vector<uint64_t> fixed{0};
  const auto add = [&](uint64_t offset, uint64_t size_bytes) {
    const uint64_t first = offset >> g.cluster_bits;
    const uint64_t last = (offset + size_bytes - 1) >> g.cluster_bits;
    for (uint64_t c = first; size_bytes > 0 && c <= last; ++c) fixed.push_back(c);
  };
  for (const uint64_t block : refcount_table)
    if (block != 0) add(block, 1);
  std::ranges::sort(fixed);
  if (std::ranges::adjacent_find(fixed) != fixed.end())
    return Fail("the refcount table is damaged; mend the image with `nacre disk check --repair`");
  add(header.l1_offset, uint64_t{header.l1_size} * 8);
  add(header.refcount_table_offset, uint64_t{header.refcount_table_clusters} << g.cluster_bits);
  for (const uint64_t entry : l1)
    if ((entry & qcow2::kOffsetMask) != 0) add(entry & qcow2::kOffsetMask, 1);
  std::ranges::sort(fixed);
  fixed.erase(std::unique(fixed.begin(), fixed.end()), fixed.end());
  return fixed;
}

}  // namespace

Result<std::unique_ptr<Qcow2Disk>> Qcow2Disk::Create(Parts parts, std::shared_ptr<AsyncIo> io) {
  struct stat info {};
  if (fstat(parts.fd.get(), &info) != 0) return FailErrno("disk '{}'", parts.path);
  const auto file_bytes = static_cast<uint64_t>(info.st_size);
  const qcow2::Header& h = parts.header;
  if (h.l1_offset > file_bytes || (!parts.read_only && h.refcount_table_offset >= file_bytes))
    return Fail("disk '{}': its tables lie behind the end of the file: is it cut off?", parts.path);
  auto l1 = NACRE_TRY(ReadTable(parts.path, parts.fd.get(), h.l1_offset, h.l1_size));
  std::vector<uint64_t> refcount_table, fixed;
  if (!parts.read_only) {
    const uint64_t entries = (uint64_t{h.refcount_table_clusters} << h.geometry.cluster_bits) / 8;
    refcount_table = NACRE_TRY(ReadTable(parts.path, parts.fd.get(), h.refcount_table_offset, entries));
    auto found = FixedClusters(h, l1, refcount_table);
    if (!found) return Context(found.error(), "disk '{}'", parts.path);
    fixed = std::move(*found);
  }
  return std::unique_ptr<Qcow2Disk>(new Qcow2Disk(std::move(parts), std::move(l1), std::move(refcount_table),
                                                  std::move(fixed), file_bytes, std::move(io)));
}

Qcow2Disk::Qcow2Disk(Parts parts, std::vector<uint64_t> l1, std::vector<uint64_t> refcount_table,
                     std::vector<uint64_t> fixed, uint64_t file_bytes, std::shared_ptr<AsyncIo> io)
    : Disk(AlignDown(parts.header.size_bytes, kSectorSize), parts.read_only),
      path_(std::move(parts.path)),
      header_(std::move(parts.header)),
      geometry_(header_.geometry),
      backing_(std::move(parts.backing)),
      io_(io),
      file_(std::move(parts.fd), runner_, std::move(io)),
      l1_(std::move(l1)),
      l2_cache_(file_, runner_, geometry_.cluster_size(), kL2CacheBytes),
      refcounts_(file_, runner_, header_, std::move(refcount_table), std::move(fixed), file_bytes),
      unlocked_(runner_),
      bounce_free_(runner_),
      committed_(runner_),
      decompressing_(runner_) {}

Qcow2Disk::~Qcow2Disk() {
  Drain();
  if (!read_only() && !frozen_) {
    runner_.Start(RunInBackground(&Qcow2Disk::Close));
    Drain();
  }
}

void Qcow2Disk::Start(DiskRequest& request) {
  ++jobs_;
  pending_.push_back(&request);
}

void Qcow2Disk::Submit() {
  while (!pending_.empty()) {
    const auto pending = std::exchange(pending_, {});
    for (DiskRequest* request : pending) runner_.Start(Run(request));
  }
  io_->Submit();
}

void Qcow2Disk::Drain() {
  Submit();
  while (jobs_ > 0) {
    io_->Wait();
    Submit();
  }
}

Job Qcow2Disk::Run(DiskRequest* request) {
  const uint64_t number = next_number_++;
  running_.insert(number);
  const int error = co_await Dispatch(*request);
  running_.erase(number);
  ReleaseSoon();
  --jobs_;
  request->Done(error);
}

Job Qcow2Disk::RunInBackground(Task<int> (Qcow2Disk::*work)()) {
  ++jobs_;
  co_await (this->*work)();
  --jobs_;
}

Job Qcow2Disk::RunBlocked(Task<int> (Qcow2Disk::*work)(uint64_t, uint64_t), uint64_t offset, uint64_t size_bytes,
                          int* error) {
  ++jobs_;
  *error = co_await (this->*work)(offset, size_bytes);
  --jobs_;
}

int Qcow2Disk::Block(Task<int> (Qcow2Disk::*work)(uint64_t, uint64_t), uint64_t offset, uint64_t size_bytes) {
  int error = 0;
  runner_.Start(RunBlocked(work, offset, size_bytes, &error));
  Drain();
  return error;
}

Task<int> Qcow2Disk::Dispatch(DiskRequest& request) {
  int error = Check(request);
  const bool changes = request.kind != DiskRequest::Kind::kRead && request.kind != DiskRequest::Kind::kFlush;
  if (error == 0 && changes && frozen_) error = EROFS;
  if (error == 0 && changes && (damaged_ || sync_failed_)) error = EIO;
  if (error != 0) co_return error;
  if (request.kind == DiskRequest::Kind::kFlush) {
    if (read_only() || frozen_) co_return 0;
    error = co_await Flush();
    co_return error;
  }
  if (request.size_bytes == 0) co_return 0;
  switch (request.kind) {
    case DiskRequest::Kind::kRead:
      error = co_await Read(request.offset, request.size_bytes, request.vectors);
      break;
    case DiskRequest::Kind::kWrite:
      error = co_await Write(request.offset, request.size_bytes, request.vectors);
      break;
    default:
      error = co_await Zero(request.offset, request.size_bytes, request.kind, request.unmap);
      break;
  }
  co_return error;
}

/// The image contradicts itself: nothing is written to it any more.
int Qcow2Disk::Damaged() {
  damaged_ = true;
  if (!marked_ && !read_only() && !frozen_) {
    marked_ = true;
    runner_.Start(RunInBackground(&Qcow2Disk::MarkCorrupt));
  }
  return EIO;
}

Task<int> Qcow2Disk::MarkCorrupt() {
  if (header_.version < 3) co_return 0;
  header_.incompatible |= qcow2::kCorrupt;
  std::array<uint8_t, 8> bytes;
  qcow2::StoreBe(bytes.data(), header_.incompatible);
  const int error = co_await file_.WriteBytes(qcow2::kFieldIncompatible, bytes.data(), bytes.size());
  co_return error;
}

Qcow2Disk::SliceAt Qcow2Disk::FindSlice(uint64_t offset, bool& present) const {
  const uint64_t index = offset / geometry_.l2_span();
  present = false;
  if (index >= l1_.size()) return {nullptr, EIO};
  const uint64_t entry = l1_[index];
  const uint64_t table = entry & qcow2::kOffsetMask;
  if (table == 0) return {};
  if ((entry & ~(qcow2::kOffsetMask | qcow2::kCopied)) != 0 || table % geometry_.cluster_size() != 0 ||
      table >> geometry_.cluster_bits >= refcounts_.end_cluster())
    return {nullptr, EIO};
  present = true;
  return {l2_cache_.Find(table + offset % geometry_.l2_span() / SliceSpan() * l2_cache_.slice_bytes()), 0};
}

Task<Qcow2Disk::SliceAt> Qcow2Disk::LoadSlice(uint64_t offset) {
  bool present = false;
  SliceAt at = FindSlice(offset, present);
  if (at.error != 0) {
    at.error = Damaged();
    co_return at;
  }
  if (!present || at.slice) co_return at;
  const uint64_t table = l1_[offset / geometry_.l2_span()] & qcow2::kOffsetMask;
  const uint64_t place = table + offset % geometry_.l2_span() / SliceSpan() * l2_cache_.slice_bytes();
  at.slice = co_await l2_cache_.Load(place);
  if (!at.slice) at.error = EIO;
  co_return at;
}

Result<Entry> Qcow2Disk::ReadEntry(const uint8_t* bytes) const {
  const Entry entry = qcow2::DecodeEntry(geometry_, bytes);
  bool valid = qcow2::EntryIsValid(geometry_, entry, bytes);
  if (entry.compressed) {
    const uint64_t first = qcow2::DecodeCompressed(geometry_, entry.descriptor).offset >> geometry_.cluster_bits;
    valid = valid && first < refcounts_.end_cluster();
  } else if (entry.host != 0) {
    const uint64_t cluster = entry.host >> geometry_.cluster_bits;
    valid = valid && cluster < refcounts_.end_cluster() && !refcounts_.Fixed(cluster, 1);
  }
  if (!valid) return std::unexpected(Error{.message = {}, .code = EIO});
  return entry;
}

/// What unit `in_cluster` of the cluster belongs to, and how far that goes within the cluster.
bool Qcow2Disk::UnitSegment(const Entry& entry, uint64_t in_cluster, Segment& segment) const {
  if (entry.compressed) {
    segment = {Segment::Kind::kCompressed, geometry_.cluster_size() - in_cluster, entry.descriptor};
    return true;
  }
  const uint64_t unit_size = geometry_.unit_size();
  const auto kind = [&](uint64_t unit) {
    if (TestBit(entry.data, static_cast<unsigned>(unit))) return Segment::Kind::kData;
    return TestBit(entry.zero, static_cast<unsigned>(unit)) ? Segment::Kind::kZero : Segment::Kind::kBacking;
  };
  const uint64_t first = in_cluster / unit_size;
  uint64_t end = first + 1;
  while (end < geometry_.units() && kind(end) == kind(first)) ++end;
  segment = {kind(first), end * unit_size - in_cluster, entry.host + in_cluster};
  return false;
}

int Qcow2Disk::SegmentAt(const uint8_t* table, uint64_t offset, uint64_t size_bytes, Segment& segment) {
  const uint64_t cluster_size = geometry_.cluster_size();
  const uint64_t slice_end = AlignDown(offset, SliceSpan()) + SliceSpan();
  bool first = true;
  uint64_t at = offset;
  const uint64_t end = std::min(offset + size_bytes, slice_end);
  while (at < end) {
    const uint8_t* bytes = table + at % SliceSpan() / cluster_size * geometry_.entry_bytes();
    const auto entry = ReadEntry(bytes);
    if (!entry) return first ? EIO : 0;
    Segment next;
    const bool whole = UnitSegment(*entry, at % cluster_size, next);
    if (first) {
      segment = next;
    } else {
      const bool joins = next.kind == segment.kind && !whole &&
                         (next.kind != Segment::Kind::kData || next.host == segment.host + segment.size_bytes);
      if (!joins) break;
      segment.size_bytes += next.size_bytes;
    }
    first = false;
    if (whole) break;
    at += next.size_bytes;
  }
  segment.size_bytes = std::min(segment.size_bytes, size_bytes);
  return 0;
}

/// The first piece of a range that is all in one place.
Task<int> Qcow2Disk::Map(uint64_t offset, uint64_t size_bytes, Segment& segment) {
  const SliceAt at = co_await LoadSlice(offset);
  if (at.error != 0) co_return at.error;
  if (!at.slice) {
    const uint64_t table_end = AlignDown(offset, geometry_.l2_span()) + geometry_.l2_span();
    segment = {Segment::Kind::kBacking, std::min(size_bytes, table_end - offset), 0};
  } else if (SegmentAt(at.slice->bytes.get(), offset, size_bytes, segment) != 0) {
    co_return Damaged();
  }
  co_return 0;
}

Task<int> Qcow2Disk::Read(uint64_t offset, uint64_t size_bytes, std::span<const iovec> vectors) {
  std::deque<Task<int>> parts;
  int result = 0;
  for (uint64_t done = 0; done < size_bytes;) {
    Segment segment;
    int error = co_await Map(offset + done, size_bytes - done, segment);
    if (error == 0 && segment.size_bytes == size_bytes) {
      error = co_await ReadSegment(segment, offset, vectors);
      co_return error;
    }
    if (error != 0) {
      result = error;
      break;
    }
    parts.push_back(ReadPart(segment, offset + done, SliceVectors(vectors, done, segment.size_bytes)));
    done += segment.size_bytes;
    if (parts.size() < kMostParts) continue;
    Task<int> oldest = std::move(parts.front());
    parts.pop_front();
    error = co_await oldest;
    if (error != 0) result = error;
  }
  for (Task<int>& part : parts) {
    const int error = co_await part;
    if (error != 0) result = error;
  }
  co_return result;
}

Task<int> Qcow2Disk::ReadPart(Segment segment, uint64_t offset, std::vector<iovec> vectors) {
  const int error = co_await ReadSegment(segment, offset, vectors);
  co_return error;
}

Task<int> Qcow2Disk::ReadSegment(Segment segment, uint64_t offset, std::span<const iovec> vectors) {
  int error = 0;
  switch (segment.kind) {
    case Segment::Kind::kData:
      error = co_await file_.Read(segment.host, vectors);
      break;
    case Segment::Kind::kZero:
      FillWithZeros(vectors);
      break;
    case Segment::Kind::kBacking:
      if (backing_)
        error = co_await ReadBacking(offset, vectors, segment.size_bytes);
      else
        FillWithZeros(vectors);
      break;
    case Segment::Kind::kCompressed:
      error = co_await ReadCompressed(segment.host, offset % geometry_.cluster_size(), vectors);
      break;
  }
  co_return error;
}

Task<int> Qcow2Disk::ReadBacking(uint64_t offset, std::span<const iovec> vectors, uint64_t size_bytes) {
  const uint64_t end = backing_->size_bytes();
  const uint64_t inside = offset >= end ? 0 : std::min(size_bytes, end - offset);
  if (inside < size_bytes) FillWithZeros(SliceVectors(vectors, inside, size_bytes - inside));
  // A bounce buffer beside guest memory may add vectors to the most that a request has.
  uint64_t done = 0;
  while (done < inside) {
    DiskAwait request(runner_, *backing_);
    request.kind = DiskRequest::Kind::kRead;
    request.offset = offset + done;
    request.vectors = SliceVectors(vectors, done, inside - done);
    if (request.vectors.size() > 1024) request.vectors.resize(1024);
    for (const iovec& vector : request.vectors) request.size_bytes += vector.iov_len;
    const uint64_t odd = request.size_bytes % kSectorSize;
    if (odd != 0) {
      request.size_bytes -= odd;
      request.vectors = SliceVectors(vectors, done, request.size_bytes);
    }
    if (request.size_bytes == 0) co_return EINVAL;
    const int error = co_await request;
    if (error != 0) co_return error;
    done += request.size_bytes;
  }
  co_return 0;
}

Task<int> Qcow2Disk::ReadCompressed(uint64_t descriptor, uint64_t skip, std::span<const iovec> vectors) {
  co_await decompressing_.Lock();
  int error = 0;
  if (decompressed_descriptor_ != descriptor) {
    const qcow2::CompressedRange range = qcow2::DecodeCompressed(geometry_, descriptor);
    std::vector<uint8_t> packed(range.size_bytes);
    decompressed_.resize(geometry_.cluster_size());
    decompressed_descriptor_ = ~uint64_t{0};
    const iovec vector{packed.data(), packed.size()};
    error = co_await file_.Read(range.offset, std::span(&vector, 1));
    if (error == 0 && !qcow2::Decompress(header_.compression_type, packed, decompressed_)) error = EIO;
    if (error == 0) decompressed_descriptor_ = descriptor;
  }
  if (error == 0) {
    const uint8_t* from = decompressed_.data() + skip;
    for (const iovec& vector : vectors) {
      std::memcpy(vector.iov_base, from, vector.iov_len);
      from += vector.iov_len;
    }
  }
  decompressing_.Unlock();
  co_return error;
}

Task<int> Qcow2Disk::MapExtent(uint64_t offset, uint64_t size_bytes) {
  Segment segment;
  const int error = co_await Map(offset, size_bytes, segment);
  if (error != 0) co_return error;
  extent_.size_bytes = segment.size_bytes;
  extent_.kind = segment.kind == Segment::Kind::kBacking ? Extent::Kind::kBacking
                 : segment.kind == Segment::Kind::kZero  ? Extent::Kind::kZero
                                                         : Extent::Kind::kData;
  co_return 0;
}

Result<Qcow2Disk::Extent> Qcow2Disk::ExtentAt(uint64_t offset) {
  if (offset >= size_bytes()) return Fail("disk '{}': {} is behind its end", path_, offset);
  if (const int error = Block(&Qcow2Disk::MapExtent, offset, size_bytes() - offset); error != 0) {
    errno = error;
    return FailErrno("disk '{}': its tables at {}", path_, offset);
  }
  return extent_;
}

Status Qcow2Disk::Preallocate(uint64_t offset, uint64_t size_bytes) {
  if (const int error = Block(&Qcow2Disk::PreallocateTask, offset, size_bytes); error != 0) {
    errno = error;
    return FailErrno("disk '{}': allocation", path_);
  }
  return {};
}

Status Qcow2Disk::Freeze() {
  Drain();
  if (read_only() || frozen_) return {};
  runner_.Start(RunInBackground(&Qcow2Disk::Close));
  Drain();
  if (commit_error_ != 0 || TablesDirty()) {
    errno = commit_error_ != 0 ? commit_error_ : EIO;
    return FailErrno("disk '{}': cannot be written out", path_);
  }
  frozen_ = true;
  return {};
}

}  // namespace nacre::storage
