#pragma once
// Image files of the host: opened with care, locked, replaced as a whole. Any thread.

#include <functional>
#include <string>

#include "base/fd.h"
#include "base/result.h"

namespace nacre::storage {

/// Opens an image file or block device and takes its lock (LockImage).
Result<Fd> OpenImageFile(const std::string& path, bool read_only);
/// An open file description lock (fcntl(2)) over the whole file: any number of readers or one writer, all programs that
/// take such locks. A second call changes the lock's kind.
Status LockImage(const std::string& path, int fd, bool read_only);
/// Bytes of the file or block device.
Result<uint64_t> FileBytes(const std::string& path, int fd);
Status ReadAt(const std::string& path, int fd, uint64_t offset, void* bytes, size_t size_bytes);
Status WriteAt(const std::string& path, int fd, uint64_t offset, const void* bytes, size_t size_bytes);
/// fdatasync.
Status SyncFile(const std::string& path, int fd);

/// Makes `path`, which must not be there yet, as a whole or not at all: `fill` writes a temporary file beside it (its
/// name and descriptor), which is synced and then gets the name.
Status CreateWhole(const std::string& path, const std::function<Status(const std::string& temporary, int fd)>& fill);

}  // namespace nacre::storage
