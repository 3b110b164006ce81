#include "boot/boot_file.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>

#include "base/bits.h"
#include "base/fd.h"

namespace nacre::boot {

namespace {

constexpr int kPipeWaitMs = 10000;

/// A pipe (`--initrd <(command)`) may be slow to begin, but one that nobody writes to must not hold up the start.
Status AwaitPipe(const std::string& path, int fd) {
  pollfd wait{.fd = fd, .events = POLLIN, .revents = 0};
  int ready = 0;
  do ready = poll(&wait, 1, kPipeWaitMs);
  while (ready < 0 && errno == EINTR);
  if (ready < 0) return FailErrno("{}", path);
  if (ready == 0) return Fail("{}: a pipe into which nobody has written for {} s", path, kPipeWaitMs / 1000);
  return {};
}

}  // namespace

Result<std::vector<uint8_t>> ReadBootFile(const std::string& path, uint64_t max_bytes) {
  const Fd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd.valid()) return FailErrno("{}", path);
  struct stat info {};
  if (fstat(fd.get(), &info) != 0) return FailErrno("{}", path);
  if (S_ISDIR(info.st_mode)) return Fail("{}: is a directory; give a file", path);
  if (S_ISCHR(info.st_mode) || S_ISSOCK(info.st_mode)) return Fail("{}: is a device or a socket; give a file", path);
  const uint64_t known_size = S_ISREG(info.st_mode) ? static_cast<uint64_t>(info.st_size) : 0;
  if (known_size > max_bytes) return Fail("{}: {} bytes, at most {} fit here", path, known_size, max_bytes);

  std::vector<uint8_t> bytes;
  uint64_t used = 0;
  for (;;) {
    // One byte more than is known, so that end of file is seen without growing.
    const uint64_t want = used < known_size + 1 ? known_size + 1 : used + std::max<uint64_t>(used, 64 * kKiB);
    bytes.resize(std::min(want, max_bytes + 1));
    if (S_ISFIFO(info.st_mode)) NACRE_TRY_STATUS(AwaitPipe(path, fd.get()));
    const ssize_t got = read(fd.get(), bytes.data() + used, bytes.size() - used);
    if (got < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (got < 0) return FailErrno("{}", path);
    if (got == 0) break;
    used += static_cast<uint64_t>(got);
    if (used > max_bytes) return Fail("{}: at most {} bytes fit here", path, max_bytes);
  }
  if (used == 0) return Fail("{}: the file is empty", path);
  bytes.resize(used);
  return bytes;
}

}  // namespace nacre::boot
