#pragma once
// The process of a detached VM (docs/vm-directory.md): `nacre start` executes itself anew, and the new process runs the
// VM until it ends. One thread each.

#include <span>
#include <string>
#include <string_view>

#include "base/result.h"
#include "lifecycle/vm_home.h"

namespace nacre::cli {

/// The hidden command that the new process runs; `words` follow it.
inline constexpr std::string_view kVmProcess = "vm-process";
int VmProcess(std::span<const std::string_view> words);

/// Starts the VM's process and waits until its guest runs; with `snapshot`, the name of one of
/// its own, or the absolute path of another VM's of which it is a live clone, from there. The error is what the
/// process says, which has ended then.
Status StartVm(const lifecycle::Home& home, const lifecycle::VmPaths& vm, const std::string& snapshot = {});

}  // namespace nacre::cli
