#include "storage/qcow2_refcounts.h"

#include <algorithm>
#include <cerrno>

namespace nacre::storage::qcow2 {

namespace {
constexpr uint64_t kCacheBytes = 4 * kMiB;
}

Refcounts::Refcounts(ImageFile& file, Runner& runner, const Header& header, std::vector<uint64_t> table,
                     std::vector<uint64_t> fixed, uint64_t file_bytes)
    : file_(&file),
      geometry_(header.geometry),
      cache_(file, runner, header.geometry.cluster_size(), kCacheBytes),
      allocating_(runner),
      writing_(runner),
      table_(std::move(table)),
      table_offset_(header.refcount_table_offset),
      fixed_(std::move(fixed)),
      end_cluster_(AlignUp(file_bytes, geometry_.cluster_size()) >> geometry_.cluster_bits) {}

bool Refcounts::Fixed(uint64_t first, uint64_t count) const {
  const auto found = std::ranges::lower_bound(fixed_, first);
  return found != fixed_.end() && *found < first + count;
}

std::optional<Refcounts::Place> Refcounts::Find(uint64_t cluster) const {
  const uint64_t per_block = geometry_.refcount_block_entries();
  const uint64_t block = cluster / per_block;
  if (block >= table_.size() || table_[block] == 0) return std::nullopt;
  const uint64_t per_slice = cache_.slice_bytes() * 8 >> geometry_.refcount_order;
  const uint64_t index = cluster % per_block;
  return Place{table_[block] + index / per_slice * cache_.slice_bytes(), index % per_slice,
               per_slice - index % per_slice};
}

bool Refcounts::BlockIsPossible(uint64_t table_entry) const {
  return table_entry % geometry_.cluster_size() == 0 && table_entry >> geometry_.cluster_bits < end_cluster_;
}

Task<TableCache::Slice*> Refcounts::LoadSlice(uint64_t offset) {
  if (!BlockIsPossible(AlignDown(offset, geometry_.cluster_size()))) co_return nullptr;
  if (TableCache::Slice* slice = cache_.Find(offset)) co_return slice;
  TableCache::Slice* slice = co_await cache_.Load(offset);
  co_return slice;
}

void Refcounts::Set(TableCache::Slice& slice, uint64_t index, uint64_t value) {
  StoreRefcount(slice.bytes.get(), geometry_.refcount_order, index, value);
  cache_.MarkDirty(slice, (index << geometry_.refcount_order) / 8, 1);
}

Task<int64_t> Refcounts::Count(uint64_t cluster) {
  const auto place = Find(cluster);
  if (!place) co_return 0;
  TableCache::Slice* slice = co_await LoadSlice(place->slice_offset);
  if (!slice) co_return -1;
  const uint64_t count = LoadRefcount(slice->bytes.get(), geometry_.refcount_order, place->index);
  co_return static_cast<int64_t>(std::min<uint64_t>(count, INT64_MAX));
}

Task<int> Refcounts::Allocate(uint64_t want, Run& run) {
  co_await allocating_.Lock();
  const int error = co_await AllocateLocked(want, run);
  allocating_.Unlock();
  co_return error;
}

Task<int> Refcounts::AllocateLocked(uint64_t want, Run& run) {
  while (true) {
    uint64_t first = cursor_, limit = want;
    const bool again = !free_.empty();
    if (again) {
      first = free_.begin()->first;
      limit = std::min(want, free_.begin()->second);
    }
    const auto place = Find(first);
    if (!place && again) {
      free_.erase(free_.begin());
      continue;
    }
    if (!place) {
      const int error = co_await AddBlock();
      if (error != 0) co_return error;
      continue;
    }
    TableCache::Slice* slice = co_await LoadSlice(place->slice_offset);
    if (!slice) co_return EUCLEAN;
    if (again && (free_.empty() || free_.begin()->first != first)) continue;  // more became free meanwhile
    limit = std::min(limit, place->entries);
    const auto is_free = [&](uint64_t i) {
      return LoadRefcount(slice->bytes.get(), geometry_.refcount_order, place->index + i) == 0;
    };
    uint64_t skip = 0;
    if (!again)
      while (skip < place->entries && !is_free(skip)) ++skip;
    uint64_t count = 0;
    if (!again) limit = std::min(want, place->entries - skip);
    while (count < limit && is_free(skip + count)) ++count;
    if (again) {  // what is not free after all has been taken by a damaged image's other reference
      const uint64_t left = free_.begin()->second;
      const uint64_t gone = std::max<uint64_t>(count, 1);
      free_.erase(free_.begin());
      if (left > gone) free_[first + gone] = left - gone;
    } else {
      cursor_ += skip + count;
    }
    if (count == 0) continue;
    first += skip;
    if ((first + count) << geometry_.cluster_bits > kOffsetMask) co_return EFBIG;
    if (Fixed(first, count)) co_return EUCLEAN;
    for (uint64_t i = 0; i < count; ++i) Set(*slice, place->index + skip + i, 1);
    run = {first, count, first >= end_cluster_};
    end_cluster_ = std::max(end_cluster_, first + count);
    co_return 0;
  }
}

/// The clusters from the cursor on have no block: its first one becomes that block and counts itself.
Task<int> Refcounts::AddBlock() {
  const uint64_t per_block = geometry_.refcount_block_entries();
  const uint64_t block = cursor_ / per_block;
  if (block >= table_.size()) {
    const int error = co_await GrowTable();
    co_return error;
  }
  const uint64_t cluster = cursor_;
  const uint64_t offset = cluster << geometry_.cluster_bits;
  if (offset > kOffsetMask) co_return EFBIG;
  if (Fixed(cluster, 1) || !cache_.Drop(offset, geometry_.cluster_size())) co_return EUCLEAN;
  const int error = co_await file_->WriteZeros(offset, geometry_.cluster_size());
  if (error != 0) co_return error;
  end_cluster_ = std::max(end_cluster_, cluster + 1);
  const uint64_t index = cluster % per_block;
  const uint64_t per_slice = cache_.slice_bytes() * 8 >> geometry_.refcount_order;
  TableCache::Slice* slice = co_await LoadSlice(offset + index / per_slice * cache_.slice_bytes());
  if (!slice) co_return EIO;
  Set(*slice, index % per_slice, 1);
  table_[block] = offset;
  dirty_table_.insert(block);
  ++cursor_;
  co_return 0;
}

/// The cursor has reached the end of what the table can count: a larger table and the blocks that count it go there,
/// and the header turns to it when it is complete.
Task<int> Refcounts::GrowTable() {
  const uint64_t cluster_size = geometry_.cluster_size();
  const uint64_t per_block = geometry_.refcount_block_entries();
  const uint64_t old_clusters = table_.size() * 8 / cluster_size;
  const uint64_t table_clusters = old_clusters * 2;
  if (table_clusters * cluster_size > std::max(kMaxRefcountTableBytes, cluster_size)) co_return EFBIG;
  const uint64_t start = std::max(cursor_, end_cluster_);
  const uint64_t first_block = start / per_block;
  uint64_t blocks = 1;
  while (start + blocks + table_clusters > (first_block + blocks) * per_block) ++blocks;
  std::vector<uint64_t> table = table_;
  table.resize(table_clusters * cluster_size / 8);
  if (first_block + blocks > table.size() || (start + blocks + table_clusters) << geometry_.cluster_bits > kOffsetMask)
    co_return EFBIG;
  int error = 0;
  std::vector<uint8_t> bytes(cluster_size);
  for (uint64_t i = 0; i < blocks && error == 0; ++i) {
    std::ranges::fill(bytes, 0);
    const uint64_t base = (first_block + i) * per_block;
    for (uint64_t c = std::max(base, start); c < std::min(base + per_block, start + blocks + table_clusters); ++c)
      StoreRefcount(bytes.data(), geometry_.refcount_order, c - base, 1);
    const uint64_t offset = (start + i) << geometry_.cluster_bits;
    if (!cache_.Drop(offset, cluster_size)) co_return EUCLEAN;
    error = co_await file_->WriteBytes(offset, bytes.data(), cluster_size);
    table[first_block + i] = offset;
  }
  const uint64_t table_offset = (start + blocks) << geometry_.cluster_bits;
  std::vector<uint8_t> table_bytes(table.size() * 8);
  for (size_t i = 0; i < table.size(); ++i) StoreBe(&table_bytes[i * 8], table[i]);
  if (error == 0) error = co_await file_->WriteBytes(table_offset, table_bytes.data(), table_bytes.size());
  if (error == 0) error = co_await WriteBlocks();  // the new table also points to blocks that were new before
  if (error == 0) error = co_await file_->Sync();
  std::array<uint8_t, 12> field;
  StoreBe(&field[0], table_offset);
  StoreBe(&field[8], static_cast<uint32_t>(table_clusters));
  if (error == 0) error = co_await file_->WriteBytes(kFieldRefcountTable, field.data(), field.size());
  if (error == 0) error = co_await file_->Sync();
  if (error != 0) co_return error;
  const uint64_t old_first = table_offset_ >> geometry_.cluster_bits;
  table_ = std::move(table);
  table_offset_ = table_offset;
  dirty_table_.clear();
  end_cluster_ = std::max(end_cluster_, start + blocks + table_clusters);
  std::vector<uint64_t> old;
  for (uint64_t i = 0; i < old_clusters; ++i) old.push_back(old_first + i);
  // It stays unused until the image is opened again.
  error = co_await Release(std::move(old), true);
  free_.erase(free_.lower_bound(old_first), free_.lower_bound(old_first + old_clusters));
  co_return error;
}

void Refcounts::AddFree(uint64_t cluster) {
  if (cluster >= cursor_ || Fixed(cluster, 1)) return;  // the cursor finds it
  auto next = free_.lower_bound(cluster);
  if (next != free_.begin()) {
    auto before = std::prev(next);
    if (before->first + before->second == cluster) {
      ++before->second;
      if (next != free_.end() && next->first == cluster + 1) {
        before->second += next->second;
        free_.erase(next);
      }
      return;
    }
  }
  if (next != free_.end() && next->first == cluster + 1) {
    const uint64_t count = next->second + 1;
    free_.erase(next);
    free_[cluster] = count;
    return;
  }
  if (free_.size() < kMaxFreeRuns) free_[cluster] = 1;  // beyond: found again when the image is opened next
}

Task<int> Refcounts::Release(std::vector<uint64_t> clusters, bool punch) {
  std::ranges::sort(clusters);
  // Holes first: as long as the counts stand nobody else gets these clusters.
  uint64_t first = 0, count = 0;
  for (size_t i = 0; punch && i <= clusters.size(); ++i) {
    int64_t references = 0;
    if (i < clusters.size()) references = co_await Count(clusters[i]);
    if (references == 1 && count > 0 && clusters[i] == first + count) {
      ++count;
      continue;
    }
    if (count > 0) co_await file_->Punch(first << geometry_.cluster_bits, count << geometry_.cluster_bits);
    count = references == 1 ? 1 : 0;
    if (count > 0) first = clusters[i];
  }
  int result = 0;
  for (const uint64_t cluster : clusters) {
    int error = co_await DropReference(cluster);
    if (error == 0 && cache_.dirty_count() > cache_.capacity()) error = co_await WriteBlocks();
    if (error != 0) result = error;
  }
  co_return result;
}

Task<int> Refcounts::DropReference(uint64_t cluster) {
  const auto place = Find(cluster);
  if (!place) co_return EUCLEAN;
  TableCache::Slice* slice = co_await LoadSlice(place->slice_offset);
  if (!slice) co_return EUCLEAN;
  const uint64_t present = LoadRefcount(slice->bytes.get(), geometry_.refcount_order, place->index);
  if (present == 0) co_return EUCLEAN;
  Set(*slice, place->index, present - 1);
  if (present == 1) {
    const auto fixed = std::ranges::lower_bound(fixed_, cluster);  // a table that is none any more
    if (fixed != fixed_.end() && *fixed == cluster) fixed_.erase(fixed);
    AddFree(cluster);
  }
  co_return 0;
}

Task<int> Refcounts::WriteBlocks() {
  co_await writing_.Lock();
  auto taken = cache_.TakeDirty();
  int result = 0;
  std::vector<Task<int>> writes;
  for (auto& [slice, dirty] : taken) {
    for (uint64_t block = 0; block < TableCache::kBlocks; ++block) {
      if (!dirty.test(block)) continue;
      uint64_t end = block + 1;
      while (end < TableCache::kBlocks && dirty.test(end)) ++end;
      writes.push_back(file_->WriteBytes(slice->offset + block * cache_.block_bytes(),
                                         slice->bytes.get() + block * cache_.block_bytes(),
                                         (end - block) * cache_.block_bytes()));
      block = end;
    }
  }
  for (Task<int>& write : writes) {
    const int error = co_await write;
    if (error != 0) result = error;
  }
  for (auto& [slice, dirty] : taken) {
    if (result != 0) cache_.MarkDirty(*slice, 0, cache_.slice_bytes());
    cache_.Unpin(*slice);
  }
  writing_.Unlock();
  co_return result;
}

Task<int> Refcounts::WriteTable(std::set<uint64_t> entries) {
  const uint64_t offset = table_offset_;
  for (const uint64_t index : entries) {
    std::array<uint8_t, 8> bytes;
    StoreBe(bytes.data(), table_[index]);
    const int error = co_await file_->WriteBytes(offset + index * 8, bytes.data(), bytes.size());
    if (error != 0) co_return error;
  }
  co_return 0;
}

}  // namespace nacre::storage::qcow2
