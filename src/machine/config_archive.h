#pragma once
// A machine's configuration in a snapshot: what makes the guest's hardware, and where its disks and screen lead on the
// host. How the machine is run (engine options, time limit, debugging) is not part of it. One thread.

#include "machine/machine_config.h"

namespace nacre::state {
class Archive;
}

namespace nacre::machine {

void SerializeConfig(state::Archive& archive, MachineConfig& config);

}  // namespace nacre::machine
