#pragma once
// VMs made and removed: each is there whole or not at all, also after a crash. Any thread.

#include <functional>
#include <string>
#include <vector>

#include "base/result.h"
#include "lifecycle/vm_config.h"
#include "lifecycle/vm_home.h"

namespace nacre::lifecycle {

struct NewVm {
  std::string name;
  /// Paths are absolute. Kernel and initrds are copied into the VM's directory unless they are an image's; each disk
  /// that can be written to becomes the source of the VM's own; what is read only stays where it is.
  VmConfig config;
  /// Of the first disk, which grows to it, or of an empty one where there is no disk; 0: as it is.
  uint64_t disk_bytes = 0;
  /// Where it is set, it makes the files of all disks, by their numbers: qcow2 images, and discs as they are.
  std::function<Status(size_t disk, const std::string& path)> fill_disk = {};
};

/// Makes the directory; gives the UUID, and MAC addresses where none are given.
Status CreateVm(const Home& home, NewVm vm);

/// Takes away all that is the VM's. It must not run.
Status RemoveVm(const Home& home, const VmPaths& vm);

/// What unfinished creations and removals left in vms/; nobody works on it any more.
std::vector<std::filesystem::path> Leftovers(const Home& home);
/// Removes it, as far as it can be removed; also called by CreateVm and RemoveVm.
void RemoveLeftovers(const Home& home);

}  // namespace nacre::lifecycle
