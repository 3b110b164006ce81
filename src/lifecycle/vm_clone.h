#pragma once
// Clones of a stopped VM: immediate, for their disks are overlays on what the VM's disks hold now. Any thread.

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

}  // namespace nacre::lifecycle
