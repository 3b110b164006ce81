#pragma once
// The methods of the control socket that ask the guest agent. Threads: as control/vm.h.

#include "control/commands.h"

namespace nacre::control {

/// Of what one request carries to a program or a file of the guest, so that it fits a line as Base64.
inline constexpr size_t kMaxInputBytes = 45 * 1024;
/// Of what one answer brings back.
inline constexpr size_t kMaxOutputBytes = 256 * 1024;

std::span<const Command> AgentCommands();

}  // namespace nacre::control
