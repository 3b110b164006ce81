#include "storage/qcow2_cache.h"

namespace nacre::storage::qcow2 {

void TableCache::MakeRoom() {
  auto candidate = order_.end();
  while (order_.size() >= capacity_ && candidate != order_.begin()) {
    --candidate;
    if (candidate->loading || candidate->pins > 0 || candidate->dirty.any()) continue;
    if (last_ == &*candidate) last_ = nullptr;
    slices_.erase(candidate->offset);
    candidate = order_.erase(candidate);
  }
}

Task<TableCache::Slice*> TableCache::Load(uint64_t offset) {
  while (true) {
    if (Slice* slice = Find(offset)) co_return slice;
    if (!slices_.contains(offset)) break;
    co_await loaded_;
  }
  MakeRoom();
  order_.emplace_front();
  order_.front().offset = offset;
  order_.front().bytes = std::make_unique<uint8_t[]>(slice_bytes_);
  order_.front().loading = true;
  const auto place = order_.begin();
  slices_[offset] = place;
  const iovec vector{place->bytes.get(), slice_bytes_};
  const int error = co_await file_->Read(offset, std::span(&vector, 1));
  place->loading = false;
  loaded_.WakeAll();
  if (error == 0) co_return &*place;
  slices_.erase(offset);
  order_.erase(place);
  co_return nullptr;
}

std::vector<std::pair<TableCache::Slice*, std::bitset<TableCache::kBlocks>>> TableCache::TakeDirty() {
  std::vector<std::pair<Slice*, std::bitset<kBlocks>>> taken;
  taken.reserve(dirty_.size());
  for (Slice* slice : dirty_) {
    taken.emplace_back(slice, slice->dirty);
    slice->dirty.reset();
    ++slice->pins;
  }
  dirty_.clear();
  return taken;
}

bool TableCache::Drop(uint64_t offset, uint64_t size_bytes) {
  for (uint64_t at = offset; at < offset + size_bytes; at += slice_bytes_) {
    const auto found = slices_.find(at);
    if (found == slices_.end()) continue;
    if (found->second->dirty.any() || found->second->pins > 0 || found->second->loading) return false;
    if (last_ == &*found->second) last_ = nullptr;
    order_.erase(found->second);
    slices_.erase(found);
  }
  return true;
}

}  // namespace nacre::storage::qcow2
