// The part of Qcow2Disk that changes what the guest sees: writes, zeros, discards. Tables change only in memory here;
// qcow2_commit.cc brings them into the file.

#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "storage/qcow2_disk.h"

namespace nacre::storage {

using qcow2::Entry;

namespace {

constexpr size_t kMostParts = 32;
constexpr uint64_t kMostBounceBytes = 64 * kMiB;
constexpr uint64_t kZeroPieceBytes = 2 * kMiB;

uint32_t UnitMask(uint64_t first, uint64_t last) {
  return static_cast<uint32_t>((Bit(static_cast<unsigned>(last) + 1) - 1) & ~(Bit(static_cast<unsigned>(first)) - 1));
}

}  // namespace

bool Qcow2Disk::InPlace(const Entry& entry, uint64_t in_cluster, uint64_t size_bytes) const {
  if (entry.compressed || !entry.copied || entry.host == 0) return false;
  const uint64_t unit = geometry_.unit_size();
  const uint32_t touched = UnitMask(in_cluster / unit, (in_cluster + size_bytes - 1) / unit);
  return (entry.data & touched) == touched;
}

bool Qcow2Disk::Locked(uint64_t first, uint64_t last) const {
  return std::ranges::any_of(locked_, [&](const LockedRange& r) { return r.first <= last && first <= r.last; });
}

void Qcow2Disk::Unlock(uint64_t first) {
  std::erase_if(locked_, [first](const LockedRange& r) { return r.first == first; });
  unlocked_.WakeAll();
}

void Qcow2Disk::StoreEntry(qcow2::TableCache::Slice& slice, uint64_t offset, const Entry& entry) {
  uint8_t* bytes = EntryAt(slice, offset);
  qcow2::EncodeEntry(geometry_, entry, bytes);
  l2_cache_.MarkDirty(slice, static_cast<uint64_t>(bytes - slice.bytes.get()), geometry_.entry_bytes());
}

/// The entry's clusters lose a reference once the tables that no longer name them are durable.
void Qcow2Disk::Free(const Entry& entry, bool punch) {
  if (!entry.compressed) {
    if (entry.host != 0) freed_.push_back({entry.host >> geometry_.cluster_bits, punch});
    return;
  }
  const qcow2::CompressedRange range = qcow2::DecodeCompressed(geometry_, entry.descriptor);
  const uint64_t last = (range.offset + range.size_bytes - 1) >> geometry_.cluster_bits;
  for (uint64_t c = range.offset >> geometry_.cluster_bits; c <= last; ++c) freed_.push_back({c, punch});
}

Task<int> Qcow2Disk::WritePart(uint64_t host, std::vector<iovec> vectors) {
  const int error = co_await file_.Write(host, vectors);
  co_return error;
}

Task<int> Qcow2Disk::Write(uint64_t offset, uint64_t size_bytes, std::span<const iovec> vectors) {
  const uint64_t cluster_size = geometry_.cluster_size();
  std::deque<Task<int>> parts;
  int result = 0;
  for (uint64_t done = 0; done < size_bytes && result == 0;) {
    const uint64_t at = offset + done;
    const SliceAt found = co_await LoadSlice(at);
    if (found.error != 0) {
      result = found.error;
      break;
    }
    // As far as clusters are there already, are ours alone and follow each other in the file.
    uint64_t host = 0, run = 0;
    const uint64_t limit = std::min(size_bytes - done, AlignDown(at, SliceSpan()) + SliceSpan() - at);
    while (found.slice && run < limit) {
      const uint64_t in_cluster = (at + run) % cluster_size;
      const uint64_t piece = std::min(cluster_size - in_cluster, limit - run);
      const auto entry = ReadEntry(EntryAt(*found.slice, at + run));
      if (!entry) {
        result = Damaged();
        break;
      }
      if (!InPlace(*entry, in_cluster, piece)) break;
      if (run == 0) host = entry->host + in_cluster;
      if (entry->host + in_cluster != host + run) break;
      run += piece;
    }
    if (result != 0) break;
    if (run == size_bytes) {
      result = co_await file_.Write(host, vectors);
      co_return result;
    }
    if (run > 0) {
      parts.push_back(WritePart(host, SliceVectors(vectors, done, run)));
      if (parts.size() >= kMostParts) {
        Task<int> oldest = std::move(parts.front());
        parts.pop_front();
        result = co_await oldest;
      }
    } else {
      result = co_await WriteNew(at, size_bytes - done, vectors, done, run);
    }
    done += run;
  }
  for (Task<int>& part : parts) {
    const int error = co_await part;
    if (result == 0) result = error;
  }
  co_return result;
}

/// Writes the start of a range whose first cluster has no place yet, or not one of its own. `written` may be 0 without
/// an error: somebody else was at it, look again.
Task<int> Qcow2Disk::WriteNew(uint64_t offset, uint64_t size_bytes, std::span<const iovec> vectors, uint64_t skip,
                              uint64_t& written) {
  written = 0;
  int error = co_await EnsureTable(offset);
  if (error != 0) co_return error;
  const SliceAt found = co_await LoadSlice(offset);
  if (found.error != 0) co_return found.error;
  Plan plan;
  error = MakePlan(*found.slice, offset, size_bytes, plan);
  if (error == EAGAIN) {
    co_await unlocked_;
    co_return 0;
  }
  if (error != 0 || plan.count == 0) co_return error;
  locked_.push_back({plan.first, plan.first + plan.count - 1});
  qcow2::Run run{plan.host >> geometry_.cluster_bits, 1, false};
  if (plan.host == 0) error = co_await refcounts_.Allocate(plan.count, run);
  if (error == EUCLEAN) error = Damaged();
  if (error == 0) {
    if (run.count < plan.count) {
      plan.count = run.count;
      plan.size_bytes = (run.count << geometry_.cluster_bits) - offset % geometry_.cluster_size();
      plan.fill.tail = 0;
    }
    error = co_await WritePlanned(offset, plan, run, SliceVectors(vectors, skip, plan.size_bytes));
    if (error == 0) error = co_await RecordWrite(offset, plan, run.first << geometry_.cluster_bits);
    if (error != 0 && plan.host == 0) {
      std::vector<uint64_t> clusters;
      for (uint64_t i = 0; i < run.count; ++i) clusters.push_back(run.first + i);
      co_await refcounts_.Release(std::move(clusters), false);
    }
  }
  Unlock(plan.first);
  if (error != 0) co_return error;
  written = plan.size_bytes;
  error = co_await CommitIfMuch();
  co_return error;
}

/// 0 with a count of 0: the first cluster is no longer new. EAGAIN: it is locked.
int Qcow2Disk::MakePlan(qcow2::TableCache::Slice& slice, uint64_t offset, uint64_t size_bytes, Plan& plan) {
  const uint64_t cluster_size = geometry_.cluster_size(), unit = geometry_.unit_size();
  const uint64_t in_cluster = offset % cluster_size;
  const uint64_t slice_end = AlignDown(offset, SliceSpan()) + SliceSpan();
  plan = {};
  plan.first = offset >> geometry_.cluster_bits;
  if (Locked(plan.first, plan.first)) return EAGAIN;
  const auto first = ReadEntry(EntryAt(slice, offset));
  if (!first) return Damaged();
  const uint64_t in_first = std::min(cluster_size - in_cluster, size_bytes);
  if (InPlace(*first, in_cluster, in_first)) return 0;
  const auto keeps = [](const Entry& e) { return !e.compressed && e.copied && e.host != 0; };
  const auto zero_around = [&](const Entry& e, uint64_t at) { return !e.compressed && e.data == 0 && !BackingHas(at); };
  const auto has_unit = [&](const Entry& e, uint64_t at) {
    return TestBit(e.data, static_cast<unsigned>(at % cluster_size / unit));
  };
  Entry last = *first;
  plan.count = 1;
  plan.size_bytes = in_first;
  if (keeps(*first)) {
    plan.host = first->host;
  } else {
    for (uint64_t at = AlignDown(offset, cluster_size) + cluster_size; at < std::min(offset + size_bytes, slice_end);
         at += cluster_size) {
      const uint64_t cluster = at >> geometry_.cluster_bits;
      const auto next = ReadEntry(EntryAt(slice, at));
      if (!next || keeps(*next) || Locked(cluster, cluster)) break;
      ++plan.count;
      plan.size_bytes = std::min(size_bytes, at + cluster_size - offset);
      last = *next;
    }
  }
  // A cluster that moves takes all its data along; one that stays fills up the units that become data.
  const auto moves = [&](const Entry& e) { return plan.host == 0 && (e.compressed || e.data != 0); };
  if (moves(*first))
    plan.fill.head = in_cluster;
  else if (!has_unit(*first, offset) || plan.host == 0)
    plan.fill.head = in_cluster % unit;
  const uint64_t end = offset + plan.size_bytes;
  if (end % cluster_size != 0) {
    if (moves(last))
      plan.fill.tail = cluster_size - end % cluster_size;
    else if (!has_unit(last, end - 1) || plan.host == 0)
      plan.fill.tail = end % unit == 0 ? 0 : unit - end % unit;
  }
  plan.head_zero = zero_around(*first, offset - plan.fill.head);
  plan.tail_zero = zero_around(last, end);
  return 0;
}

Task<int> Qcow2Disk::WritePlanned(uint64_t offset, Plan plan, qcow2::Run run, std::vector<iovec> vectors) {
  const uint64_t end = offset + plan.size_bytes;
  uint64_t head = plan.fill.head, tail = plan.fill.tail;
  if (run.zeroed && plan.head_zero) head = 0;
  if (run.zeroed && plan.tail_zero) tail = 0;
  const uint64_t bounce = (plan.head_zero ? 0 : head) + (plan.tail_zero ? 0 : tail);
  while (bounce_bytes_ > 0 && bounce_bytes_ + bounce > kMostBounceBytes) co_await bounce_free_;
  bounce_bytes_ += bounce;
  std::vector<uint8_t> buffer(bounce);
  int error = 0;
  std::vector<iovec> before, after;
  if (plan.head_zero) {
    before = ZeroVectors(head);
  } else if (head > 0) {
    before.push_back({buffer.data(), head});
    error = co_await Read(offset - head, head, before);
  }
  if (plan.tail_zero) {
    after = ZeroVectors(tail);
  } else if (tail > 0) {
    after.push_back({buffer.data() + bounce - tail, tail});
    const uint64_t inside = end >= size_bytes() ? 0 : std::min(tail, size_bytes() - end);
    const std::vector<iovec> readable = SliceVectors(after, 0, inside);
    if (error == 0 && inside > 0) error = co_await Read(end, inside, readable);
  }
  vectors.insert(vectors.begin(), before.begin(), before.end());
  vectors.insert(vectors.end(), after.begin(), after.end());
  const uint64_t host = (run.first << geometry_.cluster_bits) + offset % geometry_.cluster_size() - head;
  if (error == 0) error = co_await file_.Write(host, vectors);
  bounce_bytes_ -= bounce;
  bounce_free_.WakeAll();
  co_return error;
}

/// The data is in the file: the tables (in memory) turn to it.
Task<int> Qcow2Disk::RecordWrite(uint64_t offset, Plan plan, uint64_t host) {
  const SliceAt found = co_await LoadSlice(offset);
  if (found.error != 0) co_return found.error;
  const uint64_t cluster_size = geometry_.cluster_size(), unit = geometry_.unit_size();
  const uint64_t start = offset - plan.fill.head, end = offset + plan.size_bytes + plan.fill.tail;
  for (uint64_t i = 0; i < plan.count; ++i) {
    const uint64_t cluster = (plan.first + i) << geometry_.cluster_bits;
    const uint64_t from = std::max(start, cluster) - cluster;
    const uint64_t to = std::min(end, cluster + cluster_size) - cluster;
    const auto old = ReadEntry(EntryAt(*found.slice, cluster));
    if (!old) co_return Damaged();
    const uint32_t units = UnitMask(from / unit, (to - 1) / unit);
    Entry entry;
    entry.host = host + i * cluster_size;
    entry.copied = true;
    if (plan.host != 0) entry.data = old->data;
    entry.data |= units;
    entry.zero = old->zero & ~units;
    StoreEntry(*found.slice, cluster, entry);
    if (plan.host == 0) Free(*old, false);
  }
  co_return 0;
}

/// Makes the L2 table for `offset` exist and belong to the active disk alone.
Task<int> Qcow2Disk::EnsureTable(uint64_t offset) {
  const uint64_t index = offset / geometry_.l2_span();
  while (true) {
    bool present = false;
    if (FindSlice(offset, present).error != 0) co_return Damaged();
    if (present && (l1_[index] & qcow2::kCopied)) co_return 0;
    if (!tables_.contains(index)) break;
    co_await unlocked_;
  }
  tables_.insert(index);
  const int error = co_await NewTable(index);
  tables_.erase(index);
  unlocked_.WakeAll();
  co_return error;
}

Task<int> Qcow2Disk::NewTable(uint64_t index) {
  const uint64_t cluster_size = geometry_.cluster_size();
  const uint64_t old = l1_[index] & qcow2::kOffsetMask;
  qcow2::Run run;
  int error = co_await refcounts_.Allocate(1, run);
  if (error == EUCLEAN) error = Damaged();
  if (error != 0) co_return error;
  const uint64_t offset = run.first << geometry_.cluster_bits;
  if (!l2_cache_.Drop(offset, cluster_size)) co_return Damaged();
  if (old == 0) {
    error = co_await file_.WriteZeros(offset, cluster_size);
  } else {
    std::vector<uint8_t> bytes(cluster_size);
    const iovec vector{bytes.data(), bytes.size()};
    error = co_await file_.Read(old, std::span(&vector, 1));
    const int64_t count = co_await refcounts_.Count(old >> geometry_.cluster_bits);
    if (count > 1) {  // both tables name the clusters now: neither owns them
      for (uint64_t at = 0; at < cluster_size; at += geometry_.entry_bytes()) bytes[at] &= 0x7f;
    }
    if (error == 0) error = co_await file_.WriteBytes(offset, bytes.data(), bytes.size());
  }
  if (error != 0) {
    std::vector<uint64_t> clusters(1, run.first);
    co_await refcounts_.Release(std::move(clusters), false);
    co_return error;
  }
  l1_[index] = offset | qcow2::kCopied;
  l1_dirty_.insert(index);
  if (old != 0) freed_.push_back({old >> geometry_.cluster_bits, false});
  co_return 0;
}

Task<int> Qcow2Disk::Zero(uint64_t offset, uint64_t size_bytes, DiskRequest::Kind kind, bool unmap) {
  const bool discard = kind == DiskRequest::Kind::kDiscard;
  const uint64_t end = offset + size_bytes;
  int error = 0;
  if (geometry_.version < 3 && backing_) {  // no entry says "zeros"
    if (!discard) error = co_await ZeroByWriting(offset, size_bytes);
    co_return error;
  }
  const uint64_t cluster_size = geometry_.cluster_size();
  const uint64_t from = AlignUp(offset, cluster_size);
  const uint64_t to = end == this->size_bytes() ? AlignUp(end, cluster_size) : AlignDown(end, cluster_size);
  if (from >= to) {
    if (!discard) error = co_await ZeroByWriting(offset, size_bytes);
    co_return error;
  }
  if (!discard && from > offset) error = co_await ZeroByWriting(offset, from - offset);
  if (error == 0 && !discard && to < end) error = co_await ZeroByWriting(to, end - to);
  for (uint64_t at = from; at < to && error == 0;) {
    uint64_t done = 0;
    error = co_await ZeroSlice(at, to - at, kind, unmap, done);
    at += done;
    if (error == 0) error = co_await CommitIfMuch();
  }
  co_return error;
}

Task<int> Qcow2Disk::ZeroByWriting(uint64_t offset, uint64_t size_bytes) {
  for (uint64_t done = 0; done < size_bytes;) {
    Segment segment;
    int error = co_await Map(offset + done, std::min(size_bytes - done, kZeroPieceBytes), segment);
    const bool empty = segment.kind == Segment::Kind::kBacking && !BackingHas(offset + done);
    if (error == 0 && segment.kind != Segment::Kind::kZero && !empty) {
      const std::vector<iovec> zeros = ZeroVectors(segment.size_bytes);
      error = co_await Write(offset + done, segment.size_bytes, zeros);
    }
    if (error != 0) co_return error;
    done += segment.size_bytes;
  }
  co_return 0;
}

/// Whole clusters of one L2 slice. `done` may be 0 without an error: somebody else was at it, look again.
Task<int> Qcow2Disk::ZeroSlice(uint64_t offset, uint64_t size_bytes, DiskRequest::Kind kind, bool unmap,
                               uint64_t& done) {
  const uint64_t span = geometry_.l2_span();
  const bool discard = kind == DiskRequest::Kind::kDiscard;
  bool present = false;
  if (FindSlice(offset, present).error != 0) co_return Damaged();
  if (!present && (discard || !BackingHas(offset))) {
    done = std::min(size_bytes, AlignDown(offset, span) + span - offset);
    co_return 0;
  }
  const int error = co_await EnsureTable(offset);
  if (error != 0) co_return error;
  const SliceAt found = co_await LoadSlice(offset);
  if (found.error != 0) co_return found.error;
  const uint64_t end = std::min(offset + size_bytes, AlignDown(offset, SliceSpan()) + SliceSpan());
  if (Locked(offset >> geometry_.cluster_bits, (end - 1) >> geometry_.cluster_bits)) {
    co_await unlocked_;
    co_return 0;
  }
  for (uint64_t at = offset; at < end; at += geometry_.cluster_size()) {
    const auto old = ReadEntry(EntryAt(*found.slice, at));
    if (!old) co_return Damaged();
    const Entry entry = Zeroed(*old, at, discard, unmap);
    if (entry == *old) continue;
    StoreEntry(*found.slice, at, entry);
    if (entry.host == 0) Free(*old, discard || unmap);
  }
  done = end - offset;
  co_return 0;
}

/// What an entry becomes when its cluster is zeroed or discarded.
Entry Qcow2Disk::Zeroed(const Entry& old, uint64_t offset, bool discard, bool unmap) const {
  const bool nothing = !old.compressed && old.host == 0 && old.zero == 0;
  if (nothing && (discard || !BackingHas(offset))) return old;
  Entry entry;
  if (geometry_.version >= 3 && (backing_ || !discard)) entry.zero = geometry_.all_units();
  if (!discard && !unmap && geometry_.version >= 3 && old.copied) {  // the place stays reserved
    entry.host = old.host;
    entry.copied = true;
  }
  return entry;
}

/// Gives clusters that are nowhere yet a place, without data. Only for disks without a backing image.
Task<int> Qcow2Disk::PreallocateTask(uint64_t offset, uint64_t size_bytes) {
  const uint64_t cluster_size = geometry_.cluster_size();
  for (uint64_t at = AlignDown(offset, cluster_size); at < offset + size_bytes;) {
    int error = co_await EnsureTable(at);
    if (error != 0) co_return error;
    const SliceAt found = co_await LoadSlice(at);
    if (found.error != 0) co_return found.error;
    const uint64_t limit = std::min(offset + size_bytes, AlignDown(at, SliceSpan()) + SliceSpan());
    Plan plan;
    plan.first = at >> geometry_.cluster_bits;
    uint64_t taken = 0;  // clusters that are there already
    for (uint64_t next = at; next < limit; next += cluster_size) {
      const auto entry = ReadEntry(EntryAt(*found.slice, next));
      if (!entry) co_return Damaged();
      const bool is_new = !entry->compressed && entry->host == 0;
      if (!is_new && plan.count > 0) break;
      is_new ? ++plan.count : ++taken;
      if (!is_new) break;
    }
    if (plan.count == 0) {
      at += taken * cluster_size;
      continue;
    }
    qcow2::Run run;
    error = co_await refcounts_.Allocate(plan.count, run);
    if (error == 0 && !run.zeroed) {
      error = co_await file_.WriteZeros(run.first << geometry_.cluster_bits, run.count << geometry_.cluster_bits);
    }
    if (error != 0) co_return error;
    plan.count = run.count;
    plan.size_bytes = run.count << geometry_.cluster_bits;
    error = co_await RecordWrite(at, plan, run.first << geometry_.cluster_bits);
    if (error == 0) error = co_await CommitIfMuch();
    if (error != 0) co_return error;
    at += plan.size_bytes;
  }
  const uint64_t end = refcounts_.end_cluster() << geometry_.cluster_bits;
  if (ftruncate(file_.fd(), static_cast<off_t>(end)) != 0) co_return errno;
  co_return 0;
}

}  // namespace nacre::storage
