#pragma once
// Work on a folder that only one process does at a time. Any thread.

#include <filesystem>

#include "base/fd.h"

namespace nacre {

/// While it lives, no other process (and no other guard in this one) has one of the same folder; waits for that. For
/// short work. A folder that is not there is guarded against nobody.
class FolderGuard {
 public:
  explicit FolderGuard(const std::filesystem::path& folder);

 private:
  Fd folder_;
};

}  // namespace nacre
