#include "lifecycle/vm_lock.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <chrono>

namespace nacre::lifecycle {

namespace {

struct flock WholeFile(short type) {
  struct flock lock {};
  lock.l_type = type;
  lock.l_whence = SEEK_SET;
  return lock;
}

pid_t ReadPid(int fd) {
  char digits[16];
  const ssize_t got = pread(fd, digits, sizeof(digits), 0);
  pid_t pid = 0;
  if (got > 0) std::from_chars(digits, digits + got, pid);
  return pid;
}

bool IsAt(int fd, const std::filesystem::path& path) {
  struct stat open_one {
  }, named{};
  return fstat(fd, &open_one) == 0 && stat(path.c_str(), &named) == 0 && open_one.st_ino == named.st_ino &&
         open_one.st_dev == named.st_dev;
}

}  // namespace

Result<VmLock> VmLock::Take(const std::filesystem::path& path) {
  if (mkdir(path.parent_path().c_str(), 0700) != 0 && errno != EEXIST)
    return FailErrno("{}", path.parent_path().string());
  for (;;) {
    Fd file(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (!file.valid()) return FailErrno("{}", path.string());
    struct flock lock = WholeFile(F_WRLCK);
    if (fcntl(file.get(), F_OFD_SETLK, &lock) != 0) {
      if (errno != EAGAIN && errno != EACCES) return FailErrno("{}: cannot be locked", path.string());
      const pid_t pid = ReadPid(file.get());
      return std::unexpected(Error{pid > 0 ? fmt::format("process {} has it", pid) : "another process has it", EBUSY});
    }
    // The directory may have been renamed or removed meanwhile by who held the lock.
    if (!IsAt(file.get(), path)) continue;
    const std::string pid = fmt::format("{}\n", getpid());
    if (ftruncate(file.get(), 0) != 0 || pwrite(file.get(), pid.data(), pid.size(), 0) < 0)
      return FailErrno("{}", path.string());
    return VmLock(std::move(file));
  }
}

std::optional<LockHolder> HolderOf(const std::filesystem::path& path) {
  const Fd file(open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW));
  if (!file.valid()) return std::nullopt;
  struct flock lock = WholeFile(F_WRLCK);
  if (fcntl(file.get(), F_OFD_GETLK, &lock) != 0 || lock.l_type == F_UNLCK) return std::nullopt;
  return LockHolder{ReadPid(file.get())};
}

bool WaitForLock(const std::filesystem::path& path, int64_t timeout_ms) {
  using Clock = std::chrono::steady_clock;
  const auto deadline = Clock::now() + std::chrono::milliseconds(timeout_ms);
  for (;;) {
    const auto holder = HolderOf(path);
    if (!holder) return true;
    const int64_t left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now()).count();
    if (left <= 0) return false;
    // The process's end wakes at once; a number that is not said yet or is no longer its own only makes this look
    // again.
    const Fd process(holder->pid > 0 ? static_cast<int>(syscall(SYS_pidfd_open, holder->pid, 0)) : -1);
    pollfd fd{process.get(), POLLIN, 0};
    constexpr int64_t kLookAgainMs = 50;
    if (poll(&fd, process.valid() ? 1 : 0,
             static_cast<int>(std::min<int64_t>(left, process.valid() ? 1000 : kLookAgainMs))) > 0) {
      // The end is told a little before the files are closed.
      poll(nullptr, 0, static_cast<int>(std::min<int64_t>(left, 5)));
    }
  }
}

}  // namespace nacre::lifecycle
