#pragma once
// The commands on VMs that are directories: create, start, stop, kill, rm, ls, inspect, logs, console, stats. One
// thread, the process's main one.

#include <optional>
#include <span>
#include <string_view>

namespace nacre::cli {

/// The exit status if words[0] is one of them.
std::optional<int> VmCommand(std::span<const std::string_view> words);
/// `nacre doctor --vms`; the words behind `doctor`.
int VmDoctor(std::span<const std::string_view> words);
/// Their names and what each does, for `nacre help`.
std::string_view VmCommandHelp();

}  // namespace nacre::cli
