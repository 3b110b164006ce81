#pragma once
// A bounded cache of metadata of a qcow2 image, in slices of a cluster or of 64 KiB, whichever is less. A slice that is
// not in the file as it is in memory (dirty) or that is pinned stays; the others go, the one not used for longest
// first. Under the device lock. A Slice pointer is good until the next co_await.

#include <bitset>
#include <list>
#include <unordered_map>

#include "base/bits.h"
#include "storage/image_file.h"

namespace nacre::storage::qcow2 {

class TableCache {
 public:
  static constexpr uint64_t kMaxSliceBytes = 64 * kKiB;
  static constexpr unsigned kBlocks = 128;  ///< a slice remembers which of its blocks are dirty
  struct Slice {
    uint64_t offset = 0;  ///< in the file
    std::unique_ptr<uint8_t[]> bytes;
    std::bitset<kBlocks> dirty;
    unsigned pins = 0;
    bool loading = false;
  };

  TableCache(ImageFile& file, Runner& runner, uint64_t cluster_size, uint64_t capacity_bytes)
      : file_(&file),
        loaded_(runner),
        slice_bytes_(std::min(cluster_size, kMaxSliceBytes)),
        capacity_(std::max<uint64_t>(capacity_bytes / slice_bytes_, 8)) {}

  uint64_t slice_bytes() const { return slice_bytes_; }
  uint64_t capacity() const { return capacity_; }
  /// A block's size; blocks are written as they are.
  uint64_t block_bytes() const { return std::max<uint64_t>(slice_bytes_ / kBlocks, 512); }

  /// The slice at `offset` (aligned to slice_bytes), or null: it has to be loaded.
  Slice* Find(uint64_t offset) {
    if (last_ && last_->offset == offset && !last_->loading) return last_;
    const auto found = slices_.find(offset);
    if (found == slices_.end() || found->second->loading) return nullptr;
    order_.splice(order_.begin(), order_, found->second);
    return last_ = &*found->second;
  }
  /// Null: it cannot be read.
  Task<Slice*> Load(uint64_t offset);
  void MarkDirty(Slice& slice, uint64_t at, uint64_t size_bytes) {
    if (slice.dirty.none()) dirty_.push_back(&slice);
    for (uint64_t block = at / block_bytes(); block <= (at + size_bytes - 1) / block_bytes(); ++block)
      slice.dirty.set(block);
  }
  size_t dirty_count() const { return dirty_.size(); }
  /// The dirty slices with their dirty blocks, from now on clean but pinned until Unpin.
  std::vector<std::pair<Slice*, std::bitset<kBlocks>>> TakeDirty();
  void Unpin(Slice& slice) { --slice.pins; }
  /// Forgets the slices of a cluster that begins to hold something else. False: one of them is in use, which only a
  /// damaged image can bring about.
  bool Drop(uint64_t offset, uint64_t size_bytes);

 private:
  void MakeRoom();

  ImageFile* file_;
  WaitList loaded_;
  const uint64_t slice_bytes_, capacity_;
  std::list<Slice> order_;  // the last used first
  std::unordered_map<uint64_t, std::list<Slice>::iterator> slices_;
  std::vector<Slice*> dirty_;
  Slice* last_ = nullptr;
};

}  // namespace nacre::storage::qcow2
