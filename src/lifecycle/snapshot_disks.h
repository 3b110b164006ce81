#pragma once
// The disks of a VM's snapshots (docs/snapshots.md): empty images on the layers that were frozen at the instant. One
// thread.

#include <filesystem>
#include <string>

#include "base/result.h"
#include "lifecycle/vm_home.h"
#include "machine/machine_config.h"

namespace nacre::lifecycle {

/// Each disk of the VM that can be written becomes a new, empty image on the layer that the snapshot's stands on; what
/// was written to it after the snapshot is given up, and layers that nothing stands on any more are removed. `saved` is
/// the snapshot's configuration, `present` the VM's; they must have the same such disks. The caller has the VM's lock.
Status UseFrozenDisks(const Home& home, const std::string& snapshot, machine::MachineConfig& saved,
                      const machine::MachineConfig& present);

/// The VM's disks stay as they are: those of a clone.
Status UsePresentDisks(const std::string& snapshot, machine::MachineConfig& saved,
                       const machine::MachineConfig& present);
/// What a VM has of its own and the guest does not see, and its networks' addresses and forwards, which are the VM's
/// present ones.
void UsePresentFiles(machine::MachineConfig& saved, const machine::MachineConfig& present);

}  // namespace nacre::lifecycle
