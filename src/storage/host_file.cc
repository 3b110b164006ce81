#include "storage/host_file.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include <filesystem>

namespace nacre::storage {

Result<Fd> OpenImageFile(const std::string& path, bool read_only) {
  struct stat info {};
  if (stat(path.c_str(), &info) != 0) return FailErrno("disk '{}'", path);
  if (S_ISDIR(info.st_mode)) return Fail("disk '{}': is a directory; give an image file", path);
  // O_NONBLOCK: a FIFO must not hang us. O_EXCL on a block device: fails when it is mounted.
  int flags = O_CLOEXEC | O_NONBLOCK | (read_only ? O_RDONLY : O_RDWR);
  if (S_ISBLK(info.st_mode) && !read_only) flags |= O_EXCL;
  Fd fd(open(path.c_str(), flags));
  if (!fd.valid()) {
    if (errno == EBUSY) return Fail("disk '{}': the device is in use (mounted?)", path);
    if (!read_only && (errno == EACCES || errno == EROFS || errno == EPERM))
      return FailErrno("disk '{}': cannot be written (use readonly or snapshot, or change its permissions)", path);
    return FailErrno("disk '{}'", path);
  }
  if (fcntl(fd.get(), F_SETFL, flags & O_ACCMODE) != 0) return FailErrno("disk '{}'", path);
  if (fstat(fd.get(), &info) != 0) return FailErrno("disk '{}'", path);
  if (!S_ISREG(info.st_mode) && !S_ISBLK(info.st_mode))
    return Fail("disk '{}': is neither a file nor a block device", path);
  NACRE_TRY_STATUS(LockImage(path, fd.get(), read_only));
  return fd;
}

Status LockImage(const std::string& path, int fd, bool read_only) {
  struct flock lock {};
  lock.l_type = read_only ? F_RDLCK : F_WRLCK;
  lock.l_whence = SEEK_SET;
  if (fcntl(fd, F_OFD_SETLK, &lock) == 0) return {};
  if (errno == EAGAIN || errno == EACCES)
    return Fail("disk '{}': in use by another program{}; stop it, or use the disk with snapshot or readonly in both",
                path, read_only ? " that writes it" : "");
  if (errno == EOPNOTSUPP || errno == ENOLCK || errno == EINVAL) return {};  // a file system without locks
  return FailErrno("disk '{}': lock", path);
}

Result<uint64_t> FileBytes(const std::string& path, int fd) {
  struct stat info {};
  if (fstat(fd, &info) != 0) return FailErrno("disk '{}'", path);
  if (!S_ISBLK(info.st_mode)) return static_cast<uint64_t>(info.st_size);
  uint64_t size_bytes = 0;
  if (ioctl(fd, BLKGETSIZE64, &size_bytes) != 0) return FailErrno("disk '{}': size of the device", path);
  if (size_bytes == 0) return Fail("disk '{}': the block device is empty (no medium?)", path);
  return size_bytes;
}

Status ReadAt(const std::string& path, int fd, uint64_t offset, void* bytes, size_t size_bytes) {
  for (size_t done = 0; done < size_bytes;) {
    const ssize_t got =
        pread(fd, static_cast<uint8_t*>(bytes) + done, size_bytes - done, static_cast<off_t>(offset + done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return FailErrno("disk '{}': read at {}", path, offset + done);
    if (got == 0) return Fail("disk '{}': the file ends at {}, before what its tables say", path, offset + done);
    done += static_cast<size_t>(got);
  }
  return {};
}

Status WriteAt(const std::string& path, int fd, uint64_t offset, const void* bytes, size_t size_bytes) {
  for (size_t done = 0; done < size_bytes;) {
    const ssize_t put =
        pwrite(fd, static_cast<const uint8_t*>(bytes) + done, size_bytes - done, static_cast<off_t>(offset + done));
    if (put < 0 && errno == EINTR) continue;
    if (put <= 0) return FailErrno("disk '{}': write at {}", path, offset + done);
    done += static_cast<size_t>(put);
  }
  return {};
}

Status SyncFile(const std::string& path, int fd) {
  if (fdatasync(fd) != 0) return FailErrno("disk '{}': sync", path);
  return {};
}

Status CreateWhole(const std::string& path, const std::function<Status(const std::string&, int)>& fill) {
  if (std::error_code none; std::filesystem::exists(std::filesystem::symlink_status(path, none)))
    return Fail("disk '{}': is there already; choose another name or remove it", path);
  std::string temporary = path + ".XXXXXX";
  Fd fd(mkostemp(temporary.data(), O_CLOEXEC));
  if (!fd.valid()) return FailErrno("disk '{}': cannot be made", path);
  const auto finish = [&]() -> Status {
    const mode_t mask = umask(0);
    umask(mask);
    if (fchmod(fd.get(), 0666 & ~mask) != 0) return FailErrno("disk '{}'", path);
    NACRE_TRY_STATUS(fill(temporary, fd.get()));
    if (fsync(fd.get()) != 0) return FailErrno("disk '{}': sync", path);
    if (renameat2(AT_FDCWD, temporary.c_str(), AT_FDCWD, path.c_str(), RENAME_NOREPLACE) == 0) return {};
    if (errno == EINVAL && link(temporary.c_str(), path.c_str()) == 0) {  // a file system without RENAME_NOREPLACE
      unlink(temporary.c_str());
      return {};
    }
    return FailErrno("disk '{}': cannot be made", path);
  };
  Status made = finish();
  if (!made) {
    unlink(temporary.c_str());
    return made;
  }
  const std::string folder = std::filesystem::absolute(path).parent_path().string();
  if (const Fd directory(open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)); directory.valid())
    fsync(directory.get());
  return {};
}

}  // namespace nacre::storage
