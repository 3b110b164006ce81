#pragma once
// What a disk device (virtio-blk, later IDE, AHCI, NVMe) knows of its medium: so many bytes, read and written
// without blocking, straight from and to guest RAM. Image formats implement it (raw_disk.h, snapshot_disk.h).
//
// Threads: every method, and DiskRequest::Done, under the device lock (bus/device.h).

#include <sys/uio.h>

#include <cstdint>
#include <vector>

namespace nacre::storage {

inline constexpr uint64_t kSectorSize = 512;

/// One request. Its owner keeps it alive until Done, and may use it again then.
class DiskRequest {
 public:
  enum class Kind : uint8_t {
    kRead,
    kWrite,
    kFlush,        ///< every write that is done before the flush starts survives a loss of power
    kDiscard,      ///< the content is no longer needed: a hint
    kWriteZeroes,  ///< the range reads as zeros afterwards
  };
  virtual ~DiskRequest() = default;
  /// 0, or an errno: EINVAL for a range outside the disk or misaligned, EROFS, EIO, ENOSPC, ...
  virtual void Done(int error) = 0;

  Kind kind = Kind::kRead;
  bool unmap = false;  ///< kWriteZeroes: the space may be given back
  uint64_t offset = 0;
  uint64_t size_bytes = 0;     ///< offset and size in whole sectors
  std::vector<iovec> vectors;  ///< read and write: exactly size_bytes, at most 1024 entries
};

class Disk {
 public:
  virtual ~Disk() = default;
  uint64_t size_bytes() const { return size_bytes_; }
  bool read_only() const { return read_only_; }

  /// Takes a request in. Done is never called from inside.
  virtual void Start(DiskRequest& request) = 0;
  /// Starts what was taken in; requests may be Done before it returns.
  virtual void Submit() = 0;
  /// Blocks until every request is Done (reset, snapshot).
  virtual void Drain() = 0;

 protected:
  Disk(uint64_t size_bytes, bool read_only) : size_bytes_(size_bytes), read_only_(read_only) {}
  /// 0 or the errno for a request that cannot be carried out on this disk.
  int Check(const DiskRequest& request) const;

 private:
  const uint64_t size_bytes_;
  const bool read_only_;
};

}  // namespace nacre::storage
