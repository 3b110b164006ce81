#include "lifecycle/vm_log.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/write_all.h"

namespace nacre::lifecycle {

std::filesystem::path OlderLog(const std::filesystem::path& path) { return path.string() + ".1"; }

Result<BoundedLog> BoundedLog::Open(const std::filesystem::path& path, uint64_t max_bytes) {
  BoundedLog log(path, max_bytes);
  NACRE_TRY_STATUS(log.Reopen());
  return log;
}

Status BoundedLog::Reopen() {
  Fd file(open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600));
  struct stat info {};
  if (!file.valid() || fstat(file.get(), &info) != 0) return FailErrno("{}", path_.string());
  size_ = static_cast<uint64_t>(info.st_size);
  file_ = std::move(file);
  return {};
}

void BoundedLog::Turn() {
  rename(path_.c_str(), OlderLog(path_).c_str());
  // Else the old one is written to, whatever its name is.
  static_cast<void>(Reopen());
  size_ = 0;
}

bool BoundedLog::TurnIfFull() {
  struct stat info {};
  if (fstat(file_.get(), &info) == 0) size_ = static_cast<uint64_t>(info.st_size);
  if (size_ <= max_bytes_) return false;
  Turn();
  return true;
}

void BoundedLog::Write(std::string_view bytes) {
  if (size_ != 0 && size_ + bytes.size() > max_bytes_) Turn();
  size_ += bytes.size();
  static_cast<void>(WriteAll(file_.get(), bytes));  // there is nowhere to tell of a log that cannot be written
}

}  // namespace nacre::lifecycle
