#pragma once
// `nacre disk`: makes, describes, checks, resizes, converts and commits disk images. One thread, the process's main
// one.

#include <span>
#include <string_view>

namespace nacre::cli {

/// The words behind `disk`. The exit status.
int DiskCommand(std::span<const std::string_view> words);

}  // namespace nacre::cli
