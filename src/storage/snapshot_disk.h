#pragma once
// A throw-away layer over another disk: writes go to an unlinked temporary file, reads see them, and when the
// disk is destroyed they are gone. The disk below is never written (open it read-only). The temporary file is
// sparse; a bitmap with a bit per sector says which sectors it holds, so that no write ever has to copy what
// surrounds it.

#include <bitset>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/bits.h"
#include "base/result.h"
#include "storage/disk.h"
#include "storage/raw_disk.h"

namespace nacre::storage {

/// A set of sectors; memory grows with what was written: 4 KiB for each 16 MiB of mixed content.
class SectorSet {
 public:
  bool Contains(uint64_t sector) const;
  void Add(uint64_t first, uint64_t count);
  /// How many sectors from `first` on, at most `count`, are all inside or all outside the set.
  uint64_t RunLength(uint64_t first, uint64_t count) const;

 private:
  static constexpr uint64_t kChunkSectors = 32768;
  struct Chunk {
    bool full = false;
    std::unique_ptr<std::bitset<kChunkSectors>> bits;  // null: all or none, as `full` says
  };
  const Chunk* Find(uint64_t sector) const {
    const auto found = chunks_.find(sector / kChunkSectors);
    return found == chunks_.end() ? nullptr : &found->second;
  }
  std::unordered_map<uint64_t, Chunk> chunks_;  // absent: none
};

class SnapshotDisk : public Disk {
 public:
  /// The temporary file goes to `directory`, or to TMPDIR, or to /var/tmp.
  static Result<std::unique_ptr<SnapshotDisk>> Create(std::unique_ptr<Disk> below, std::shared_ptr<AsyncIo> io,
                                                      const std::string& directory = "");
  ~SnapshotDisk() override;

  void Start(DiskRequest& request) override;
  void Submit() override;
  void Drain() override;

 private:
  class Part;
  struct Whole;

  SnapshotDisk(std::unique_ptr<Disk> below, std::unique_ptr<Disk> overlay);
  void StartRead(Whole& whole);
  void StartPart(Whole& whole, Disk& disk, uint64_t offset, uint64_t size_bytes);
  void PartDone(Part& part, int error);
  void Finish(Whole& whole);

  std::unique_ptr<Disk> below_;
  std::unique_ptr<Disk> overlay_;
  SectorSet written_;
  std::vector<std::unique_ptr<Part>> parts_;
  std::vector<Part*> free_parts_;
  std::vector<std::unique_ptr<Whole>> wholes_;
  std::vector<Whole*> free_wholes_;
  std::vector<std::pair<DiskRequest*, int>> refused_;
};

}  // namespace nacre::storage
