#pragma once
// Clones of a stopped VM: immediate, for their disks are overlays on what the VM's disks hold now. Any thread.

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "base/result.h"
#include "lifecycle/vm_home.h"

namespace nacre::lifecycle {

/// Makes a VM of each name, with a UUID and MAC addresses of its own. The first failure ends it; those made before
/// stay. `made` is called with each name.
Status CloneVm(const Home& home, const VmPaths& source, const std::vector<std::string>& names,
               const std::function<void(const std::string&)>& made);

struct LiveClones {
  /// Makes the running VM write its state into a new directory.
  std::function<Status(const std::filesystem::path& seed)> fork;
  /// Starts the new VM from there; may go on after it has returned.
  std::function<void(const VmPaths& vm, const std::filesystem::path& seed)> start;
  /// Waits for those that were started; the seed goes afterwards.
  std::function<Status()> wait;
};
/// As CloneVm, of a running VM, which goes on beside its clones: they go on from the same instant. Forwarded ports and
/// addresses of VNC stay with the first one.
Status CloneRunningVm(const Home& home, const VmPaths& source, const std::vector<std::string>& names,
                      const LiveClones& how);

}  // namespace nacre::lifecycle
