#pragma once
// The program `nacre`: finds the subcommand and runs it. One thread, the process's main one.

#include <span>
#include <string_view>

namespace nacre::cli {

/// Exit statuses of the contract (docs/cli.md).
inline constexpr int kExitDone = 0, kExitFailed = 1, kExitUsage = 2, kExitGuestCrashed = 3, kExitTimeout = 124;

/// `words`: the command line without the program's name. Returns the exit status.
int Main(std::span<const std::string_view> words);

/// `nacre run`; `words` follow "run".
int RunCommand(std::span<const std::string_view> words);

}  // namespace nacre::cli
