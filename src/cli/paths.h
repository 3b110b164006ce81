#pragma once
// Where Nacre's own files are: below NACRE_HOME if that is set, else beside the program (an unpacked source tree). Any
// thread.

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"

namespace nacre::cli {

/// The root of the source tree that the running program was built in, if it lies in one.
std::optional<std::filesystem::path> SourceTree();

/// A prepared guest: a kernel, its initrd and its command line.
struct PreparedGuest {
  std::filesystem::path kernel, initrd;
  std::string command_line;
};

/// The folders that may hold guests, the preferred one first.
std::vector<std::filesystem::path> GuestFolders();
/// Finds the default guest, or has the source tree's script prepare it (which fetches Debian packages and speaks on
/// standard error).
Result<PreparedGuest> DefaultGuest();

}  // namespace nacre::cli
