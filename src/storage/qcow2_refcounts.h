#pragma once
// The refcounts of a qcow2 image's clusters, and the allocation of clusters by them. Under the device lock.
//
// What a crash may find in the file (docs/storage.md): increments may be written at any time, since a cluster that is
// counted and not referenced is a leak; a decrement is made only when nothing in the file refers to the cluster any
// more. So a dirty block may be written whenever it suits. A new block is written before the table points to it.

#include <map>
#include <optional>
#include <set>

#include "storage/qcow2_cache.h"
#include "storage/qcow2_format.h"

namespace nacre::storage::qcow2 {

struct Run {
  uint64_t first = 0, count = 0;  ///< clusters
  bool zeroed = false;            ///< never written since the file grew over them: they read as zeros
};

class Refcounts {
 public:
  /// `fixed`: clusters, sorted, that hold the header and tables and are never given out, whatever their refcounts say.
  Refcounts(ImageFile& file, Runner& runner, const Header& header, std::vector<uint64_t> table,
            std::vector<uint64_t> fixed, uint64_t file_bytes);

  /// Up to `want` consecutive free clusters, at least one, with refcounts of 1. An errno: EUCLEAN: the image is
  /// damaged.
  Task<int> Allocate(uint64_t want, Run& run);
  /// One reference less to each; what has none left can be allocated again. `punch`: its space goes back to the host.
  Task<int> Release(std::vector<uint64_t> clusters, bool punch);
  /// -1: it cannot be read.
  Task<int64_t> Count(uint64_t cluster);

  bool Fixed(uint64_t first, uint64_t count) const;
  /// Clusters from here on have never been written.
  uint64_t end_cluster() const { return end_cluster_; }
  bool table_dirty() const { return !dirty_table_.empty(); }
  bool blocks_dirty() const { return cache_.dirty_count() > 0; }
  Task<int> WriteBlocks();
  /// The table's entries that changed. Take them, WriteBlocks, sync, and only then WriteTable them: by then the blocks
  /// that they point to are in the file. KeepTable: it failed before that.
  std::set<uint64_t> TakeTable() { return std::exchange(dirty_table_, {}); }
  Task<int> WriteTable(std::set<uint64_t> entries);
  void KeepTable(std::set<uint64_t> entries) { dirty_table_.merge(entries); }

 private:
  static constexpr size_t kMaxFreeRuns = 16384;

  struct Place {
    uint64_t slice_offset;
    uint64_t index;    ///< in the slice
    uint64_t entries;  ///< left in the slice, this one too
  };
  /// Where the refcount of a cluster stands; nothing: no block counts it (refcount 0).
  std::optional<Place> Find(uint64_t cluster) const;
  bool BlockIsPossible(uint64_t table_entry) const;
  Task<TableCache::Slice*> LoadSlice(uint64_t offset);
  Task<int> AllocateLocked(uint64_t want, Run& run);
  Task<int> DropReference(uint64_t cluster);
  Task<int> AddBlock();
  Task<int> GrowTable();
  void AddFree(uint64_t cluster);
  void Set(TableCache::Slice& slice, uint64_t index, uint64_t value);

  ImageFile* file_;
  const Geometry geometry_;
  TableCache cache_;
  AsyncMutex allocating_, writing_;
  std::vector<uint64_t> table_;  // offsets of blocks, host byte order
  uint64_t table_offset_;
  std::set<uint64_t> dirty_table_;  // indices
  std::vector<uint64_t> fixed_;
  uint64_t cursor_ = 1;  // the search for free clusters goes on here
  uint64_t end_cluster_;
  std::map<uint64_t, uint64_t> free_;  // below the cursor: first -> count
};

}  // namespace nacre::storage::qcow2
