#include "lifecycle/vm_clone.h"

#include <unistd.h>

#include <map>

#include "lifecycle/vm_create.h"
#include "lifecycle/vm_draft.h"
#include "lifecycle/vm_files.h"
#include "lifecycle/vm_layers.h"
#include "lifecycle/vm_toml.h"
#include "machine/snapshot_files.h"

namespace nacre::lifecycle {

namespace fs = std::filesystem;

namespace {

class Cloning {
 public:
  Cloning(const Home& home, const VmPaths& source) : home_(home), source_(source) {}

  /// What all clones stand on.
  Status Prepare(const LayersGuard& guard) {
    config_ = NACRE_TRY(ReadVmToml(source_.toml().string()));
    for (const auto& floppy : config_.machine.floppies)
      if (!floppy.read_only) NACRE_TRY_STATUS(CheckInside("floppy.file", floppy.path));
    for (const auto& disk : config_.machine.disks) {
      if (!disk.is_own()) continue;
      NACRE_TRY_STATUS(CheckInside("disk.file", disk.path));
      const fs::path path = PathOf(disk.path);
      const auto format = disk.format ? *disk.format : NACRE_TRY(storage::ProbeFormat(path.string()));
      // A raw disk is copied; its blocks are shared where the file system can.
      if (format == storage::ImageFormat::kQcow2) layers_[disk.path] = NACRE_TRY(FreezeDisk(home_, path, guard));
    }
    return {};
  }

  /// The same for a VM that runs.
  Status CheckLive() {
    config_ = NACRE_TRY(ReadVmToml(source_.toml().string()));
    for (const auto& floppy : config_.machine.floppies)
      if (!floppy.read_only)
        return Fail(
            "{}: its diskette {} can be written, and is not in the state of a running VM: make it read-only, or "
            "clone the VM while it is stopped",
            source_.name(), floppy.path);
    for (const auto& disk : config_.machine.disks)
      if (disk.is_own()) NACRE_TRY_STATUS(CheckInside("disk.file", disk.path));
    for (auto& network : config_.machine.networks) network.forwards.clear();
    if (config_.show.starts_with("vnc:")) config_.show = "offscreen", config_.password_file.clear();
    return {};
  }
  Status PrepareLive(const fs::path& seed) {
    const auto& disks = config_.machine.disks;
    for (size_t i = 0; i < disks.size(); ++i) {
      if (!disks[i].is_own()) continue;
      const auto layer = NACRE_TRY(LayerBelow(seed / machine::SnapshotDiskName(i)));
      if (!layer) return Fail("{}: stands on no frozen disk", (seed / machine::SnapshotDiskName(i)).string());
      layers_[disks[i].path] = *layer;
    }
    return {};
  }

  Status Make(const std::string& name) {
    VmDraft draft = NACRE_TRY(VmDraft::Create(home_, name));
    VmConfig config = config_;
    config.uuid = NewUuid();
    for (auto& network : config.machine.networks)
      if (network.mac) network.mac = NewMac();
    machine::MachineConfig& machine = config.machine;
    NACRE_TRY_STATUS(Share(draft, machine.kernel));
    for (const std::string& initrd : machine.initrds) NACRE_TRY_STATUS(Share(draft, initrd));
    if (machine.firmware != "bios" && machine.firmware != "uefi") NACRE_TRY_STATUS(Share(draft, machine.firmware));
    NACRE_TRY_STATUS(Copy(draft, config.password_file));
    NACRE_TRY_STATUS(Copy(draft, machine.firmware_variables));
    for (const auto& floppy : machine.floppies) NACRE_TRY_STATUS(Copy(draft, floppy.path));
    for (const auto& disk : machine.disks) {
      const auto layer = layers_.find(disk.path);
      if (layer == layers_.end()) {
        NACRE_TRY_STATUS(Copy(draft, disk.path));
        continue;
      }
      const fs::path path = NACRE_TRY(PlaceFor(draft, disk.path));
      NACRE_TRY_STATUS(MakeOverlay(home_, path, layer->second));
    }
    NACRE_TRY_STATUS(WriteAtomically(draft.paths().toml(), VmTomlText(config)));
    return draft.Publish();
  }

 private:
  fs::path PathOf(const std::string& file) const { return (source_.folder / file).lexically_normal(); }
  bool IsInside(const std::string& file) const {
    const fs::path path = fs::path(file).lexically_normal();
    return path.is_relative() && *path.begin() != "..";
  }
  Status CheckInside(std::string_view key, const std::string& file) const {
    if (IsInside(file)) return {};
    return Fail(
        "{}: {} = {} is not in its directory, and two VMs must not write to it: clone it by hand, or make it read-only",
        source_.name(), key, file);
  }
  Result<fs::path> PlaceFor(const VmDraft& draft, const std::string& file) const {
    const fs::path path = draft.folder() / fs::path(file).lexically_normal();
    NACRE_TRY_STATUS(MakeFolders(path.parent_path()));
    return path;
  }
  /// A file that VMs only read: a second name where a copy would cost space.
  Status Share(const VmDraft& draft, const std::string& file) const {
    if (file.empty() || !IsInside(file)) return {};
    const fs::path path = NACRE_TRY(PlaceFor(draft, file));
    if (link(PathOf(file).c_str(), path.c_str()) == 0 || errno == EEXIST) return {};
    return CopyFile(PathOf(file), path);
  }
  Status Copy(const VmDraft& draft, const std::string& file) const {
    std::error_code error;
    if (file.empty() || !IsInside(file)) return {};
    const fs::path path = NACRE_TRY(PlaceFor(draft, file));
    // Variables of UEFI appear with the first run.
    if (!fs::exists(PathOf(file), error) || fs::exists(path, error)) return {};
    return CopyFile(PathOf(file), path);
  }

  const Home& home_;
  const VmPaths& source_;
  VmConfig config_;
  std::map<std::string, DiskLayer> layers_;  ///< by disk.file
};

Status CheckNames(const Home& home, const std::vector<std::string>& names) {
  for (const std::string& name : names) {
    NACRE_TRY_STATUS(CheckName(name));
    if (home.HasVm(name)) return Fail("{}: there is such a VM already; give another name", name);
  }
  return {};
}

}  // namespace

Status CloneVm(const Home& home, const VmPaths& source, const std::vector<std::string>& names,
               const std::function<void(const std::string&)>& made) {
  NACRE_TRY_STATUS(CheckNames(home, names));
  const auto lock = VmLock::Take(source.lock());
  if (!lock && lock.error().code == EBUSY)
    return Fail("{} runs, or is being changed ({}); `nacre stop {}` first", source.name(), lock.error().message,
                source.name());
  if (!lock) return std::unexpected(lock.error());
  RemoveLeftovers(home);
  const LayersGuard guard = NACRE_TRY(LayersGuard::Take(home));
  Cloning cloning(home, source);
  Status status = cloning.Prepare(guard);
  for (const std::string& name : names) {
    if (status) status = cloning.Make(name);
    if (status) made(name);
  }
  // After a failure there may be a layer that nothing but the source stands on, which does no harm, or nothing at all.
  if (!status) static_cast<void>(RemoveUnusedLayers(home, guard));
  return status;
}

Status CloneRunningVm(const Home& home, const VmPaths& source, const std::vector<std::string>& names,
                      const LiveClones& how) {
  NACRE_TRY_STATUS(CheckNames(home, names));
  Cloning cloning(home, source);
  NACRE_TRY_STATUS(cloning.CheckLive());
  RemoveLeftovers(home);
  // In a folder that is removed with it, as deep as a VM's.
  const VmDraft holder = NACRE_TRY(VmDraft::Create(home, names.front()));
  const fs::path seed = holder.paths().snapshots() / "seed";
  NACRE_TRY_STATUS(MakeFolders(seed.parent_path()));
  NACRE_TRY_STATUS(how.fork(seed));
  Status status;
  std::vector<VmPaths> made;
  {
    const LayersGuard guard = NACRE_TRY(LayersGuard::Take(home));
    status = cloning.PrepareLive(seed);
    for (const std::string& name : names) {
      if (!status) break;
      status = cloning.Make(name);
      if (status) made.push_back({home.vms() / name});
    }
  }
  // Not before: a process that is just being made has a copy of every lock held here until it executes its program.
  for (const VmPaths& vm : made) how.start(vm, seed);
  const Status started = how.wait();
  return status ? started : status;
}

}  // namespace nacre::lifecycle
