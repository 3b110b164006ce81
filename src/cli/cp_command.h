#pragma once
// `nacre cp`: files and folders into a running guest and out of it. docs/cli.md.

#include <span>
#include <string_view>

namespace nacre::cli {

/// `words`: what follows `nacre cp`.
int CpCommand(std::span<const std::string_view> words);

}  // namespace nacre::cli
