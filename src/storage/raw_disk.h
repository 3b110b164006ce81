#pragma once
// A disk whose image is the bytes themselves: a file or a block device. Writes go to the host's page cache, a
// flush is fdatasync. The file is locked while it is open (host_file.h). Image files of users are opened by OpenImage
// (image.h), which knows the other formats too.

#include <memory>
#include <string>

#include "base/fd.h"
#include "base/result.h"
#include "storage/async_io.h"
#include "storage/disk.h"

namespace nacre::storage {

struct RawDiskOptions {
  std::string path;
  bool read_only = false;
  /// The user said format=raw: do not refuse a file that looks like another format.
  bool format_given = false;
};

class RawDisk : public Disk {
 public:
  static Result<std::unique_ptr<RawDisk>> Open(const RawDiskOptions& options, std::shared_ptr<AsyncIo> io);
  /// Over an open file that is nobody else's, for overlays and tests.
  static std::unique_ptr<RawDisk> Adopt(Fd fd, uint64_t size_bytes, bool read_only, std::shared_ptr<AsyncIo> io);
  ~RawDisk() override;

  void Start(DiskRequest& request) override;
  void Submit() override;
  void Drain() override;
  int fd() const { return fd_.get(); }

 private:
  class Operation;

  RawDisk(Fd fd, uint64_t size_bytes, bool read_only, std::shared_ptr<AsyncIo> io);
  void Finish(Operation& operation, int error);

  Fd fd_;
  std::shared_ptr<AsyncIo> io_;
  std::vector<std::unique_ptr<Operation>> operations_;  // all there are
  std::vector<Operation*> free_;
  std::vector<std::pair<DiskRequest*, int>> refused_;  // Done at the next Submit
};

}  // namespace nacre::storage
