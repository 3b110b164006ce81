#pragma once
// What is wrong with the VMs below $NACRE_HOME, and the mending of what a crash left. Any thread.

#include <string>
#include <vector>

#include "base/result.h"
#include "lifecycle/vm_home.h"

namespace nacre::lifecycle {

struct VmProblem {
  std::string where;      ///< a VM's name or a file
  std::string what;       ///< a sentence for people: what it is, and what to do where it cannot be mended
  bool mendable = false;  ///< by MendVms, which loses nothing that anybody wants
  bool mended = false;
};

/// Looks at every VM, and with `mend` mends what can be. What belongs to a running VM is left alone.
std::vector<VmProblem> ExamineVms(const Home& home, bool mend);

}  // namespace nacre::lifecycle
