#pragma once
// The lock of a VM's directory: held by the process that runs the VM, or by a command that changes the directory. It is
// an open file description lock (fcntl(2)), so the kernel frees it when its holder ends, however it ends. Any thread.

#include <sys/types.h>

#include <filesystem>
#include <optional>

#include "base/fd.h"
#include "base/folder_guard.h"
#include "base/result.h"

namespace nacre::lifecycle {

class VmLock {
 public:
  /// Takes it without waiting and writes this process's number into the file, which is made, with its folder, where it
  /// is missing. Error code EBUSY: another one holds it, and the text says which process; ENOENT: the VM's directory is
  /// not there.
  static Result<VmLock> Take(const std::filesystem::path& path);
  VmLock(VmLock&&) = default;
  VmLock& operator=(VmLock&&) = default;

 private:
  explicit VmLock(Fd file) : file_(std::move(file)) {}
  Fd file_;
};

struct LockHolder {
  pid_t pid = 0;  ///< 0: it has not said so yet
};
/// Who holds the lock, which is not touched. Nothing: nobody does.
std::optional<LockHolder> HolderOf(const std::filesystem::path& path);

/// Waits until nobody holds the lock, or until the time is over: false.
bool WaitForLock(const std::filesystem::path& path, int64_t timeout_ms);

}  // namespace nacre::lifecycle
