#include "lifecycle/snapshot_disks.h"

#include <stdio.h>
#include <unistd.h>

#include <algorithm>

#include "lifecycle/vm_config.h"
#include "lifecycle/vm_files.h"
#include "lifecycle/vm_layers.h"
#include "machine/snapshot_files.h"

namespace nacre::lifecycle {

namespace fs = std::filesystem;

namespace {

struct Change {
  fs::path disk, draft;
};

Status CheckSameDisks(const std::string& snapshot, const machine::MachineConfig& saved,
                      const machine::MachineConfig& present) {
  bool same = saved.disks.size() == present.disks.size();
  for (size_t i = 0; same && i < saved.disks.size(); ++i) {
    const auto &then = saved.disks[i], &now = present.disks[i];
    same = !then.read_only == now.is_own() && then.bus == now.bus;
  }
  if (same) return {};
  return Fail("{}: the VM's disks in vm.toml are not those that it had when the snapshot was taken", snapshot);
}

Result<Change> PrepareDisk(const Home& home, const fs::path& frozen, const fs::path& disk) {
  const auto layer = NACRE_TRY(LayerBelow(frozen));
  if (!layer) return Fail("{}: stands on no frozen disk", frozen.string());
  const Change change{disk, disk.parent_path() / fmt::format(".{}.{}.tmp", disk.filename().string(), NewUuid())};
  NACRE_TRY_STATUS(MakeOverlay(home, change.draft, *layer));
  return change;
}

}  // namespace

Status UseFrozenDisks(const Home& home, const std::string& snapshot, machine::MachineConfig& saved,
                      const machine::MachineConfig& present) {
  NACRE_TRY_STATUS(CheckSameDisks(snapshot, saved, present));
  const LayersGuard guard = NACRE_TRY(LayersGuard::Take(home));
  std::vector<Change> changes;
  Status status;
  for (size_t i = 0; status && i < saved.disks.size(); ++i) {
    if (!present.disks[i].is_own()) continue;
    auto change = PrepareDisk(home, fs::path(snapshot) / machine::SnapshotDiskName(i), present.disks[i].path);
    status = change ? Status() : std::unexpected(change.error());
    if (change) changes.push_back(std::move(*change));
    saved.disks[i] = present.disks[i];
  }
  for (const Change& change : changes) {
    if (status && rename(change.draft.c_str(), change.disk.c_str()) != 0)
      status = FailErrno("{}", change.disk.string());
    if (status) status = SyncFolder(change.disk.parent_path());
    unlink(change.draft.c_str());
  }
  NACRE_TRY_STATUS(status);
  // What is not known to be free stays.
  if (!changes.empty()) static_cast<void>(RemoveUnusedLayers(home, guard));
  return {};
}

Status UsePresentDisks(const std::string& snapshot, machine::MachineConfig& saved,
                       const machine::MachineConfig& present) {
  NACRE_TRY_STATUS(CheckSameDisks(snapshot, saved, present));
  for (size_t i = 0; i < saved.disks.size(); ++i)
    if (present.disks[i].is_own()) saved.disks[i] = present.disks[i];
  return {};
}

void UsePresentFiles(machine::MachineConfig& saved, const machine::MachineConfig& present) {
  const auto use = [](std::string& then, const std::string& now) {
    if (!then.empty() && !now.empty()) then = now;
  };
  use(saved.kernel, present.kernel);
  if (saved.initrds.size() == present.initrds.size()) saved.initrds = present.initrds;
  if (saved.firmware.starts_with('/') && present.firmware.starts_with('/')) saved.firmware = present.firmware;
  use(saved.firmware_variables, present.firmware_variables);
  if (saved.serial.kind == present.serial.kind) use(saved.serial.path, present.serial.path);
  if (saved.console.kind == present.console.kind) use(saved.console.path, present.console.path);
  for (size_t i = 0; i < std::min(saved.floppies.size(), present.floppies.size()); ++i)
    use(saved.floppies[i].path, present.floppies[i].path);
  for (size_t i = 0; i < std::min(saved.networks.size(), present.networks.size()); ++i) {
    saved.networks[i].mac = present.networks[i].mac;
    saved.networks[i].forwards = present.networks[i].forwards;
  }
  if (saved.has_screen()) saved.display.vnc = present.display.vnc;
}

}  // namespace nacre::lifecycle
