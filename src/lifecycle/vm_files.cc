#include "lifecycle/vm_files.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <vector>

#include "base/fd.h"
#include "base/write_all.h"

namespace nacre::lifecycle {

namespace fs = std::filesystem;

namespace {

/// The bytes from `start` to `end`, which are no hole.
Status CopyRange(int from, int to, off_t start, off_t end, const std::string& name) {
  bool by_kernel = true;
  std::vector<char> buffer;
  while (start < end) {
    if (by_kernel) {
      off_t in = start, out = start;
      const ssize_t done = copy_file_range(from, &in, to, &out, static_cast<size_t>(end - start), 0);
      if (done > 0) {
        start += done;
        continue;
      }
      if (done < 0 && errno == ENOSPC) return FailErrno("{}", name);
      by_kernel = false;  // other file systems, old kernels
      buffer.resize(1 << 20);
    }
    const ssize_t got =
        pread(from, buffer.data(), std::min<size_t>(buffer.size(), static_cast<size_t>(end - start)), start);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return FailErrno("{}: cannot be read", name);
    if (got == 0) return Fail("{}: became shorter while it was copied", name);
    if (pwrite(to, buffer.data(), static_cast<size_t>(got), start) != got) return FailErrno("{}: its copy", name);
    start += got;
  }
  return {};
}

}  // namespace

Status WriteAtomically(const fs::path& path, std::string_view content, unsigned mode) {
  const std::string draft =
      fmt::format("{}/.{}.{}.tmp", path.parent_path().string(), path.filename().string(), getpid());
  const Fd file(open(draft.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, mode));
  if (!file.valid()) return FailErrno("{}", path.string());
  Status status = WriteAll(file.get(), content);
  if (!status) status = Context(status.error(), "{}", path.string());
  if (status && fsync(file.get()) != 0) status = FailErrno("{}", path.string());
  if (status && rename(draft.c_str(), path.c_str()) != 0) status = FailErrno("{}", path.string());
  if (!status) {
    unlink(draft.c_str());
    return status;
  }
  return SyncFolder(path.parent_path());
}

Status CopyFile(const fs::path& from, const fs::path& to) {
  const Fd source(open(from.c_str(), O_RDONLY | O_CLOEXEC));
  struct stat info {};
  if (!source.valid() || fstat(source.get(), &info) != 0) return FailErrno("{}", from.string());
  if (!S_ISREG(info.st_mode)) return Fail("{}: is no regular file", from.string());
  const Fd target(open(to.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (!target.valid()) return FailErrno("{}", to.string());
  if (ioctl(target.get(), FICLONE, source.get()) != 0) {
    if (ftruncate(target.get(), info.st_size) != 0) return FailErrno("{}", to.string());
    for (off_t at = 0; at < info.st_size;) {
      const off_t start = lseek(source.get(), at, SEEK_DATA);
      if (start < 0 && errno == ENXIO) break;  // a hole up to the end
      const off_t end = start < 0 ? info.st_size : lseek(source.get(), start, SEEK_HOLE);
      NACRE_TRY_STATUS(CopyRange(source.get(), target.get(), std::max<off_t>(start, at), end < 0 ? info.st_size : end,
                                 from.string()));
      at = end < 0 ? info.st_size : end;
    }
  }
  if (fsync(target.get()) != 0) return FailErrno("{}", to.string());
  return {};
}

Status SyncFolder(const fs::path& folder) {
  const Fd file(open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!file.valid() || fsync(file.get()) != 0) return FailErrno("{}", folder.string());
  return {};
}

Status RenameNew(const fs::path& from, const fs::path& to) {
  if (renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_NOREPLACE) != 0)
    return FailErrno("{}", to.string());
  return SyncFolder(to.parent_path());
}

Status MakeFolders(const fs::path& folder) {
  fs::path made;
  for (const fs::path& part : folder) {
    made /= part;
    if (mkdir(made.c_str(), 0700) != 0 && errno != EEXIST && errno != EISDIR && !fs::is_directory(made))
      return FailErrno("{}", made.string());
  }
  std::error_code error;
  if (!fs::is_directory(folder, error)) return Fail("{}: is no folder", folder.string());
  return {};
}

Status RemoveTree(const fs::path& folder) {
  std::error_code error;
  fs::remove_all(folder, error);
  if (error) return Fail("{}: {}", folder.string(), error.message());
  return {};
}

}  // namespace nacre::lifecycle
