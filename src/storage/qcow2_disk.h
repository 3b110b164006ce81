#pragma once
// A qcow2 image as a disk: read, written, discarded, with or without a backing image below it. OpenImage (image.h)
// makes it; docs/storage.md has the design. Everything under the device lock.
//
// Writes go to the file at once. What says where they are (L2 and L1 tables) stays in memory until a flush, or until
// too much of it is dirty, and is then committed: (1) refcounts and all data are made durable, (2) the tables are
// written and made durable, (3) clusters that nothing refers to any more become free. A crash between any two writes
// leaves an image whose only fault may be leaked clusters.

#include <array>
#include <deque>
#include <map>
#include <set>

#include "storage/qcow2_refcounts.h"

namespace nacre::storage {

class Qcow2Disk final : public Disk {
 public:
  struct Parts {
    std::string path;
    Fd fd;
    qcow2::Header header;
    std::unique_ptr<Disk> backing;  ///< null: none
    bool read_only = false;
  };
  /// Reads the tables. `parts.header` is what ParseHeader made of the file and CheckFeatures found possible.
  static Result<std::unique_ptr<Qcow2Disk>> Create(Parts parts, std::shared_ptr<AsyncIo> io);
  ~Qcow2Disk() override;

  void Start(DiskRequest& request) override;
  void Submit() override;
  void Drain() override;

  const qcow2::Header& header() const { return header_; }
  int fd() const { return file_.fd(); }
  Disk* backing() const { return backing_.get(); }
  /// Before the first request.
  void SetBacking(std::unique_ptr<Disk> backing) { backing_ = std::move(backing); }
  /// Drains, writes and syncs everything, gives freed clusters back. Later writes are answered with EROFS: the image
  /// becomes a backing file.
  Status Freeze();
  /// What a whole range is made of, without reading data: the first run's length and whether this image itself holds
  /// it (data or zeros), not the backing file. Blocks. For commit and convert.
  struct Extent {
    uint64_t size_bytes = 0;
    enum class Kind : uint8_t { kBacking, kZero, kData } kind = Kind::kBacking;
  };
  Result<Extent> ExtentAt(uint64_t offset);
  /// Allocates [offset, offset + size_bytes) where nothing is yet, without writing data. Blocks.
  Status Preallocate(uint64_t offset, uint64_t size_bytes);
  /// Writes another size into the header, with a larger L1 table if it takes one. Nothing else may be done with the
  /// disk afterwards. Blocks.
  Status Resize(uint64_t size_bytes);

 private:
  using Entry = qcow2::Entry;
  struct Segment {
    enum class Kind : uint8_t { kData, kZero, kBacking, kCompressed } kind = Kind::kZero;
    uint64_t size_bytes = 0;
    uint64_t host = 0;  ///< kData: where in the file; kCompressed: the descriptor
  };
  struct Freed {
    uint64_t cluster;
    bool punch;
  };
  struct Waste {      ///< clusters without references, kept until requests that may still use them are done
    uint64_t before;  ///< the first request's number that cannot know them
    std::vector<Freed> clusters;
  };
  struct LockedRange {
    uint64_t first, last;
  };
  /// How much of the cluster around a write is filled with what was there.
  struct Fill {
    uint64_t head = 0, tail = 0;
  };
  struct Plan {
    uint64_t first = 0, count = 0;  ///< guest clusters
    uint64_t size_bytes = 0;        ///< of the write
    uint64_t host = 0;              ///< not 0: the cluster keeps its place
    Fill fill;
    bool head_zero = false, tail_zero = false;  ///< what it is filled with is zeros
  };

  Qcow2Disk(Parts parts, std::vector<uint64_t> l1, std::vector<uint64_t> refcount_table, std::vector<uint64_t> fixed,
            uint64_t file_bytes, std::shared_ptr<AsyncIo> io);

  // qcow2_disk.cc: requests and reading
  Job Run(DiskRequest* request);
  Job RunInBackground(Task<int> (Qcow2Disk::*work)());
  Task<int> Dispatch(DiskRequest& request);
  int Block(Task<int> (Qcow2Disk::*work)(uint64_t, uint64_t), uint64_t offset, uint64_t size_bytes);
  Job RunBlocked(Task<int> (Qcow2Disk::*work)(uint64_t, uint64_t), uint64_t offset, uint64_t size_bytes, int* error);
  Task<int> Read(uint64_t offset, uint64_t size_bytes, std::span<const iovec> vectors);
  Task<int> ReadSegment(Segment segment, uint64_t offset, std::span<const iovec> vectors);
  Task<int> ReadPart(Segment segment, uint64_t offset, std::vector<iovec> vectors);
  Task<int> ReadBacking(uint64_t offset, std::span<const iovec> vectors, uint64_t size_bytes);
  Task<int> ReadCompressed(uint64_t descriptor, uint64_t skip, std::span<const iovec> vectors);
  Task<int> Map(uint64_t offset, uint64_t size_bytes, Segment& segment);
  int SegmentAt(const uint8_t* table, uint64_t offset, uint64_t size_bytes, Segment& segment);
  bool UnitSegment(const Entry& entry, uint64_t in_cluster, Segment& segment) const;
  Task<int> MapExtent(uint64_t offset, uint64_t size_bytes);

  // The L2 slice that maps `offset`. No table: 0 and a null slice.
  struct SliceAt {
    qcow2::TableCache::Slice* slice = nullptr;
    int error = 0;
  };
  SliceAt FindSlice(uint64_t offset, bool& present) const;
  Task<SliceAt> LoadSlice(uint64_t offset);
  uint64_t SliceSpan() const { return l2_cache_.slice_bytes() / geometry_.entry_bytes() << geometry_.cluster_bits; }
  uint8_t* EntryAt(qcow2::TableCache::Slice& slice, uint64_t offset) const {
    return slice.bytes.get() + offset % SliceSpan() / geometry_.cluster_size() * geometry_.entry_bytes();
  }
  Result<Entry> ReadEntry(const uint8_t* bytes) const;
  int Damaged();
  Task<int> MarkCorrupt();

  // qcow2_write.cc
  Task<int> Write(uint64_t offset, uint64_t size_bytes, std::span<const iovec> vectors);
  Task<int> WritePart(uint64_t host, std::vector<iovec> vectors);
  Task<int> WriteNew(uint64_t offset, uint64_t size_bytes, std::span<const iovec> vectors, uint64_t skip,
                     uint64_t& written);
  Task<int> WritePlanned(uint64_t offset, Plan plan, qcow2::Run run, std::vector<iovec> vectors);
  Task<int> RecordWrite(uint64_t offset, Plan plan, uint64_t host);
  int MakePlan(qcow2::TableCache::Slice& slice, uint64_t offset, uint64_t size_bytes, Plan& plan);
  bool InPlace(const Entry& entry, uint64_t in_cluster, uint64_t size_bytes) const;
  Task<int> EnsureTable(uint64_t offset);
  Task<int> NewTable(uint64_t index);
  Task<int> Zero(uint64_t offset, uint64_t size_bytes, DiskRequest::Kind kind, bool unmap);
  Task<int> ZeroByWriting(uint64_t offset, uint64_t size_bytes);
  Task<int> ZeroSlice(uint64_t offset, uint64_t size_bytes, DiskRequest::Kind kind, bool unmap, uint64_t& done);
  Entry Zeroed(const Entry& old, uint64_t offset, bool discard, bool unmap) const;
  bool BackingHas(uint64_t offset) const { return backing_ && offset < backing_->size_bytes(); }
  Task<int> PreallocateTask(uint64_t offset, uint64_t size_bytes);
  Task<int> ResizeTask(uint64_t size_bytes, uint64_t unused);
  Task<int> AllocateTogether(uint64_t count, qcow2::Run& run);
  void StoreEntry(qcow2::TableCache::Slice& slice, uint64_t offset, const Entry& entry);
  void Free(const Entry& entry, bool punch);
  bool Locked(uint64_t first, uint64_t last) const;
  void Unlock(uint64_t first);

  // qcow2_commit.cc
  Task<int> Flush();
  Task<int> Commit();
  Task<int> CommitOnce();
  Task<int> WriteTables(std::vector<std::pair<uint64_t, std::vector<uint8_t>>> pieces);
  Task<int> CommitIfMuch();
  bool TablesDirty() const { return l2_cache_.dirty_count() > 0 || !l1_dirty_.empty() || !freed_.empty(); }
  Task<int> ReleaseWaste();
  Task<int> Close();
  void ReleaseSoon();
  uint64_t OldestRequest() const { return running_.empty() ? next_number_ : *running_.begin(); }

  const std::string path_;
  qcow2::Header header_;
  const qcow2::Geometry geometry_;
  std::unique_ptr<Disk> backing_;
  std::shared_ptr<AsyncIo> io_;
  Runner runner_;
  ImageFile file_;
  std::vector<uint64_t> l1_;
  mutable qcow2::TableCache l2_cache_;
  qcow2::Refcounts refcounts_;

  std::vector<DiskRequest*> pending_;
  unsigned jobs_ = 0;
  std::set<uint64_t> running_;  ///< numbers of requests
  uint64_t next_number_ = 0;
  bool frozen_ = false, damaged_ = false, sync_failed_ = false, marked_ = false;

  std::vector<LockedRange> locked_;  ///< guest clusters whose entries somebody is about to change
  std::set<uint64_t> tables_;        ///< L1 entries that somebody is about to change
  WaitList unlocked_;
  uint64_t bounce_bytes_ = 0;
  WaitList bounce_free_;

  std::set<uint64_t> l1_dirty_;
  std::vector<Freed> freed_;  ///< since the last commit
  std::deque<Waste> waste_;
  bool releasing_ = false;
  bool committing_ = false;
  uint64_t commits_started_ = 0, commits_finished_ = 0;
  int commit_error_ = 0;
  WaitList committed_;

  AsyncMutex decompressing_;
  uint64_t decompressed_descriptor_ = ~uint64_t{0};
  std::vector<uint8_t> decompressed_;
  Extent extent_;
};

}  // namespace nacre::storage
