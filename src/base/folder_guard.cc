#include "base/folder_guard.h"

#include <fcntl.h>
#include <sys/file.h>

#include <cerrno>

namespace nacre {

FolderGuard::FolderGuard(const std::filesystem::path& folder)
    : folder_(open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)) {
  while (folder_.valid() && flock(folder_.get(), LOCK_EX) != 0 && errno == EINTR) {
  }
}

}  // namespace nacre
