#pragma once
// What `nacre run` and the process of a detached VM share. One thread.

#include <string>

#include "base/result.h"
#include "cli/run_options.h"
#include "lifecycle/vm_image.h"
#include "machine/machine_config.h"

namespace nacre::cli {

/// Kernel, initrd and command line of the guest that `make run` prepares; it is prepared if it is not there.
Status UseDefaultGuest(RunOptions& options);

/// What an image has goes before what the options say more; `options` then starts it. The disk is the image's file:
/// nobody may write to it.
Status UseImage(const lifecycle::Image& image, RunOptions& options);

/// Who asks for KVM by name is told before anything else what it lacks here.
Status CheckKvm(const machine::MachineConfig& config);

struct Ending {
  int status = 0;    ///< of the contract (docs/cli.md)
  std::string text;  ///< what the user should know; may be empty
};
/// `signal_number`: the one that asked to stop, or 0.
Ending EndingOf(const machine::RunResult& result, int signal_number);

}  // namespace nacre::cli
