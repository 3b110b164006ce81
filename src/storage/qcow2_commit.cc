// The part of Qcow2Disk that makes metadata durable, in the order of docs/storage.md.

#include <algorithm>
#include <cerrno>

#include "storage/qcow2_disk.h"

namespace nacre::storage {
namespace {

constexpr size_t kMostFreed = 65536;  // clusters that wait for a commit

bool IsFatal(int error) { return error != 0 && error != ENOSPC && error != EDQUOT; }

}  // namespace

/// A damaged image: what stands in memory is not written any more.
Task<int> Qcow2Disk::Flush() {
  if (damaged_ || sync_failed_) co_return EIO;
  if (TablesDirty() || committing_) {
    const int error = co_await Commit();
    co_return error;
  }
  const int error = co_await file_.Sync();
  if (IsFatal(error)) sync_failed_ = true;
  co_return error;
}

/// Everything that is in the tables now is durable afterwards. Callers that come while a commit runs share the next
/// one.
Task<int> Qcow2Disk::Commit() {
  const uint64_t mine = commits_started_ + 1;
  while (committing_) {
    co_await committed_;
    if (commits_finished_ >= mine) co_return commit_error_;
  }
  committing_ = true;
  ++commits_started_;
  commit_error_ = co_await CommitOnce();
  commits_finished_ = commits_started_;
  committing_ = false;
  committed_.WakeAll();
  co_return commit_error_;
}

Task<int> Qcow2Disk::CommitOnce() {
  if (damaged_ || sync_failed_) co_return EIO;
  // What goes into the file is frozen now: entries that change from here on point to data that the first sync below
  // may miss.
  auto taken = l2_cache_.TakeDirty();
  std::vector<std::pair<uint64_t, std::vector<uint8_t>>> pieces;
  const uint64_t block = l2_cache_.block_bytes();
  for (const auto& [slice, dirty] : taken) {
    for (uint64_t at = 0; at < qcow2::TableCache::kBlocks; ++at) {
      if (!dirty.test(at)) continue;
      uint64_t end = at + 1;
      while (end < qcow2::TableCache::kBlocks && dirty.test(end)) ++end;
      const uint8_t* from = slice->bytes.get();
      pieces.emplace_back(slice->offset + at * block, std::vector<uint8_t>(from + at * block, from + end * block));
      at = end;
    }
  }
  const std::set<uint64_t> l1_dirty = std::exchange(l1_dirty_, {});
  for (const uint64_t index : l1_dirty) {
    std::vector<uint8_t> bytes(8);
    qcow2::StoreBe(bytes.data(), l1_[index]);
    pieces.emplace_back(header_.l1_offset + index * 8, std::move(bytes));
  }
  std::vector<Freed> freed = std::exchange(freed_, {});
  std::set<uint64_t> table = refcounts_.TakeTable();

  int error = co_await refcounts_.WriteBlocks();
  if (error == 0) {
    error = co_await file_.Sync();
    if (IsFatal(error)) sync_failed_ = true;
  }
  if (error == 0 && !table.empty()) {
    error = co_await refcounts_.WriteTable(table);
    if (error == 0) {
      error = co_await file_.Sync();
      if (IsFatal(error)) sync_failed_ = true;
    }
  }
  if (error != 0) refcounts_.KeepTable(std::move(table));
  if (error == 0 && !pieces.empty()) {
    error = co_await WriteTables(std::move(pieces));
    if (error == 0) {
      error = co_await file_.Sync();
      if (IsFatal(error)) sync_failed_ = true;
    }
  }
  for (auto& [slice, dirty] : taken) {
    if (error != 0) l2_cache_.MarkDirty(*slice, 0, l2_cache_.slice_bytes());
    l2_cache_.Unpin(*slice);
  }
  if (error != 0) {
    l1_dirty_.insert(l1_dirty.begin(), l1_dirty.end());
    freed_.insert(freed_.end(), freed.begin(), freed.end());
    co_return error;
  }
  if (!freed.empty()) waste_.push_back({next_number_, std::move(freed)});
  ReleaseSoon();
  co_return 0;
}

Task<int> Qcow2Disk::WriteTables(std::vector<std::pair<uint64_t, std::vector<uint8_t>>> pieces) {
  int result = 0;
  std::deque<Task<int>> writes;
  for (const auto& [offset, bytes] : pieces) {
    writes.push_back(file_.WriteBytes(offset, bytes.data(), bytes.size()));
    if (writes.size() < 128) continue;
    Task<int> oldest = std::move(writes.front());
    writes.pop_front();
    const int error = co_await oldest;
    if (error != 0) result = error;
  }
  for (Task<int>& write : writes) {
    const int error = co_await write;
    if (error != 0) result = error;
  }
  co_return result;
}

/// Keeps what waits for a commit bounded.
Task<int> Qcow2Disk::CommitIfMuch() {
  if (l2_cache_.dirty_count() <= l2_cache_.capacity() / 2 && freed_.size() <= kMostFreed) co_return 0;
  const int error = co_await Commit();
  co_return error;
}

/// Requests that were there before the commit may still read or write the clusters that it freed.
void Qcow2Disk::ReleaseSoon() {
  if (releasing_ || waste_.empty() || damaged_ || waste_.front().before > OldestRequest()) return;
  releasing_ = true;
  runner_.Start(RunInBackground(&Qcow2Disk::ReleaseWaste));
}

Task<int> Qcow2Disk::ReleaseWaste() {
  while (!waste_.empty() && !damaged_ && waste_.front().before <= OldestRequest()) {
    Waste waste = std::move(waste_.front());
    waste_.pop_front();
    for (const bool punch : {true, false}) {
      std::vector<uint64_t> clusters;
      for (const Freed& freed : waste.clusters)
        if (freed.punch == punch) clusters.push_back(freed.cluster);
      const int error = co_await refcounts_.Release(std::move(clusters), punch);
      if (error == EUCLEAN) Damaged();
    }
  }
  releasing_ = false;
  co_return 0;
}

/// `count` clusters that follow each other.
Task<int> Qcow2Disk::AllocateTogether(uint64_t count, qcow2::Run& run) {
  run = {};
  while (run.count < count) {
    qcow2::Run more;
    const int error = co_await refcounts_.Allocate(count - run.count, more);
    if (error != 0) co_return error;
    if (run.count > 0 && more.first == run.first + run.count) {
      run.count += more.count;
      continue;
    }
    std::vector<uint64_t> apart;  // a refcount block came between, or there was a small gap: the next place is larger
    for (uint64_t i = 0; i < run.count; ++i) apart.push_back(run.first + i);
    run = more;
    // Kept as counted until the image is closed: else they would be found again.
    for (const uint64_t cluster : apart) freed_.push_back({cluster, false});
  }
  co_return 0;
}

Task<int> Qcow2Disk::ResizeTask(uint64_t size_bytes, uint64_t) {
  const uint64_t needed = (size_bytes + geometry_.l2_span() - 1) / geometry_.l2_span();
  uint64_t l1_offset = header_.l1_offset;
  uint64_t l1_size = std::max<uint64_t>(l1_.size(), needed);
  if (l1_size * 8 > qcow2::kMaxL1Bytes) co_return EFBIG;
  int error = co_await Commit();
  if (error != 0) co_return error;
  if (needed > l1_.size()) {
    const uint64_t clusters = (needed * 8 + geometry_.cluster_size() - 1) >> geometry_.cluster_bits;
    qcow2::Run run;
    error = co_await AllocateTogether(clusters, run);
    if (error != 0) co_return error;
    std::vector<uint8_t> bytes(clusters << geometry_.cluster_bits);
    for (size_t i = 0; i < l1_.size(); ++i) qcow2::StoreBe(&bytes[i * 8], l1_[i]);
    l1_offset = run.first << geometry_.cluster_bits;
    error = co_await file_.WriteBytes(l1_offset, bytes.data(), bytes.size());
    const uint64_t old_clusters = (l1_.size() * 8 + geometry_.cluster_size() - 1) >> geometry_.cluster_bits;
    for (uint64_t i = 0; i < old_clusters; ++i)
      freed_.push_back({(header_.l1_offset >> geometry_.cluster_bits) + i, false});
  }
  // Refcounts and the new table first, then the header in one sector, then the old table is free.
  std::vector<Freed> freed = std::exchange(freed_, {});
  if (error == 0) error = co_await CommitOnce();
  if (error != 0) co_return error;
  std::array<uint8_t, 24> field;
  qcow2::StoreBe(&field[0], size_bytes);
  qcow2::StoreBe(&field[8], header_.crypt_method);
  qcow2::StoreBe(&field[12], static_cast<uint32_t>(l1_size));
  qcow2::StoreBe(&field[16], l1_offset);
  error = co_await file_.WriteBytes(qcow2::kFieldSize, field.data(), field.size());
  if (error == 0) error = co_await file_.Sync();
  freed_ = std::move(freed);
  co_return error;
}

Status Qcow2Disk::Resize(uint64_t size_bytes) {
  if (const int error = Block(&Qcow2Disk::ResizeTask, size_bytes, 0); error != 0) {
    errno = error;
    return FailErrno("disk '{}': cannot get another size", path_);
  }
  return {};
}

/// With no request running.
Task<int> Qcow2Disk::Close() {
  if (damaged_ || sync_failed_) co_return EIO;
  int error = 0;
  releasing_ = true;  // here, not in the background: what it changes is written below
  if (TablesDirty()) error = co_await Commit();
  if (error == 0)
    error = co_await ReleaseWaste();
  else
    releasing_ = false;
  if (error == 0) error = co_await refcounts_.WriteBlocks();
  if (error == 0) error = co_await file_.Sync();
  commit_error_ = error;
  co_return error;
}

}  // namespace nacre::storage
