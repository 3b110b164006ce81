#pragma once
// The snapshots of a VM: directories beside each other (docs/snapshots.md), to look at and to remove. A running VM
// writes them (machine::Machine::RequestSnapshot). Any thread; one process at a time changes them, which who calls sees
// to.

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "base/result.h"

namespace nacre::lifecycle {

struct SnapshotInfo {
  std::string name;
  std::string problem;  ///< why it cannot be restored; the rest is not known then
  std::string parent;   ///< empty: it is whole
  int64_t created_utc_ns = 0;
  uint64_t memory_bytes = 0;  ///< of the guest
  uint64_t stored_bytes = 0;  ///< of them in its own file
  size_t disks = 0;           ///< of the VM's, as they were
};

/// In the order in which they were taken, those with a problem last. Those that are being written are left out.
/// `folder` may be missing.
std::vector<SnapshotInfo> ListSnapshots(const std::filesystem::path& folder);
/// Reads all of its memory, with its parents, all of its state, and the tables of its disks with all below them.
Status VerifySnapshot(const std::filesystem::path& snapshot);
/// What a VM's process that ended in the middle of a snapshot or of a removal has left. The VM does not run.
void RemoveUnfinishedSnapshots(const std::filesystem::path& folder);
/// Those that stand on it take what they need of it first: they stay whole, also when this is interrupted.
Status RemoveSnapshot(const std::filesystem::path& folder, const std::string& name);

}  // namespace nacre::lifecycle
