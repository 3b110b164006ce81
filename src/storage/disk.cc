#include "storage/disk.h"

#include <cerrno>

namespace nacre::storage {

int Disk::Check(const DiskRequest& request) const {
  if (request.kind == DiskRequest::Kind::kFlush) return 0;
  if (request.offset % kSectorSize != 0 || request.size_bytes % kSectorSize != 0) return EINVAL;
  if (request.offset > size_bytes_ || request.size_bytes > size_bytes_ - request.offset) return EINVAL;
  if (request.kind != DiskRequest::Kind::kRead && read_only_) return EROFS;
  return 0;
}

}  // namespace nacre::storage
