#pragma once
// The commands that steer a running VM through its control socket: engine, pause, resume, control. One thread.

#include <optional>
#include <span>
#include <string_view>

namespace nacre::cli {

/// `words` begin with the command. Returns the exit status, nothing if the command is another.
std::optional<int> ControlCommand(std::span<const std::string_view> words);

}  // namespace nacre::cli
