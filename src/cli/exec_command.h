#pragma once
// `nacre exec`: a program in a running guest, its output and its exit status passed on. docs/cli.md.

#include <span>
#include <string_view>

namespace nacre::cli {

/// `words`: what follows `nacre exec`.
int ExecCommand(std::span<const std::string_view> words);

}  // namespace nacre::cli
