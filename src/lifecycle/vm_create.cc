#include "lifecycle/vm_create.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>

#include "base/fd.h"
#include "base/size_text.h"
#include "lifecycle/vm_draft.h"
#include "lifecycle/vm_files.h"
#include "lifecycle/vm_layers.h"
#include "lifecycle/vm_lock.h"
#include "lifecycle/vm_toml.h"
#include "storage/image.h"
#include "x86/cpu_model_selection.h"

namespace nacre::lifecycle {

namespace fs = std::filesystem;

namespace {

bool IsBelow(const fs::path& path, const fs::path& folder) {
  const fs::path relative = path.lexically_relative(folder);
  return !relative.empty() && *relative.begin() != "..";
}

class Creation {
 public:
  Creation(const Home& home, NewVm& vm, const fs::path& folder)
      : home_(home), vm_(vm), machine_(vm.config.machine), folder_(folder) {}

  Status Fill() {
    NACRE_TRY_STATUS(PlaceBootFiles());
    NACRE_TRY_STATUS(MakeDisks());
    for (auto& floppy : machine_.floppies) NACRE_TRY_STATUS(KeepOutside(floppy.path));
    for (auto& network : machine_.networks)
      if (!network.mac) network.mac = NewMac();
    vm_.config.uuid = NewUuid();
    NACRE_TRY_STATUS(FixCpuModel());
    if (machine_.firmware == "uefi" && machine_.firmware_variables.empty())
      machine_.firmware_variables = "firmware-vars";
    const std::string text = VmTomlText(vm_.config);
    // What is written can be read: a value that cannot is told now, not at the next start.
    NACRE_TRY(ParseVmToml(text, VmPaths{home_.vms() / vm_.name}.toml().string()));
    return WriteAtomically(folder_ / "vm.toml", text);
  }

 private:
  /// The model belongs to the VM from now on, on whatever host and engine. What `default` is with KVM is KVM's to say.
  Status FixCpuModel() {
    if (machine_.engine == machine::EngineKind::kKvm) return {};
    const auto name = NACRE_TRY(x86::ParseModelName(machine_.cpu_model));
    machine_.cpu_model = NACRE_TRY(x86::SelectModel(name)).name.Text();
    return {};
  }

  /// What an image or a layer keeps is named relative to the VM's directory.
  fs::path Reference(const fs::path& path) const {
    return IsBelow(path, home_.folder()) ? path.lexically_relative(home_.vms() / vm_.name) : path;
  }
  Status KeepOutside(std::string& path) const {
    std::error_code error;
    if (!fs::exists(path, error)) return Fail("{}: there is no such file", path);
    path = Reference(path).string();
    return {};
  }

  Status PlaceBootFiles() {
    NACRE_TRY_STATUS(PlaceBootFile(machine_.kernel));
    for (std::string& initrd : machine_.initrds) NACRE_TRY_STATUS(PlaceBootFile(initrd));
    if (machine_.firmware != "bios" && machine_.firmware != "uefi" && !machine_.firmware.empty())
      NACRE_TRY_STATUS(PlaceBootFile(machine_.firmware));
    if (machine_.firmware_variables.empty()) return {};
    // A template; this VM has variables of its own from now on.
    std::error_code error;
    if (fs::exists(machine_.firmware_variables, error))
      NACRE_TRY_STATUS(CopyFile(machine_.firmware_variables, folder_ / "firmware-vars"));
    machine_.firmware_variables = "firmware-vars";
    return {};
  }
  Status PlaceBootFile(std::string& path) {
    if (path.empty()) return {};
    if (IsBelow(path, home_.images())) return KeepOutside(path);
    const fs::path folder = VmPaths{folder_}.boot();
    NACRE_TRY_STATUS(MakeFolders(folder));
    std::error_code error;
    std::string name = fs::path(path).filename().string();
    for (int i = 2; fs::exists(folder / name, error); ++i)
      name = fmt::format("{}-{}", i, fs::path(path).filename().string());
    NACRE_TRY_STATUS(CopyFile(path, folder / name));
    NACRE_TRY_STATUS(SyncFolder(folder));
    path = "boot/" + name;
    return {};
  }

  Status MakeDisks() {
    auto& disks = machine_.disks;
    const bool has_own = std::ranges::any_of(disks, &machine::DiskConfig::is_own);
    uint64_t size = vm_.disk_bytes;
    if (!has_own && size != 0) disks.insert(disks.begin(), machine::DiskConfig{});
    if (vm_.fill_disk) return FillDisks();
    unsigned number = 0;
    for (auto& disk : disks) {
      if (!disk.path.empty() && !disk.is_own()) {
        NACRE_TRY_STATUS(KeepOutside(disk.path));
        continue;
      }
      NACRE_TRY_STATUS(MakeDisk(disk, fmt::format("disks/disk{}.qcow2", number++), size));
      size = 0;
    }
    return {};
  }

  Status FillDisks() {
    NACRE_TRY_STATUS(MakeFolders(VmPaths{folder_}.disks()));
    unsigned number = 0, discs = 0;
    for (size_t i = 0; i < machine_.disks.size(); ++i) {
      machine::DiskConfig& disk = machine_.disks[i];
      disk.path = disk.cdrom ? fmt::format("disks/cd{}.iso", discs++) : fmt::format("disks/disk{}.qcow2", number++);
      if (!disk.cdrom) disk.format = storage::ImageFormat::kQcow2;
      NACRE_TRY_STATUS(vm_.fill_disk(i, (folder_ / disk.path).string()));
    }
    return SyncFolder(VmPaths{folder_}.disks());
  }

  /// An overlay on the disk's file, which is only read from now on; without a file an empty disk.
  Status MakeDisk(machine::DiskConfig& disk, const std::string& name, uint64_t size_bytes) {
    NACRE_TRY_STATUS(MakeFolders(VmPaths{folder_}.disks()));
    const fs::path path = folder_ / name;
    if (disk.path.empty()) {
      storage::Qcow2Options options;
      options.size_bytes = size_bytes;
      NACRE_TRY_STATUS(storage::CreateQcow2(path.string(), options));
    } else {
      const DiskLayer below = NACRE_TRY(LookAtDisk(disk.path, disk.format));
      if (size_bytes != 0 && size_bytes < below.size_bytes)
        return Fail("--disk-size {}: {} has {} already, and a disk does not shrink", SizeText(size_bytes), disk.path,
                    SizeText(below.size_bytes));
      NACRE_TRY_STATUS(MakeOverlay(home_, path, below, size_bytes));
    }
    disk.path = name;
    disk.format = storage::ImageFormat::kQcow2;
    return SyncFolder(path.parent_path());
  }

  const Home& home_;
  NewVm& vm_;
  machine::MachineConfig& machine_;
  const fs::path folder_;
};

}  // namespace

Status CreateVm(const Home& home, NewVm vm) {
  NACRE_TRY_STATUS(CheckName(vm.name));
  RemoveLeftovers(home);
  VmDraft draft = NACRE_TRY(VmDraft::Create(home, vm.name));
  NACRE_TRY_STATUS(Creation(home, vm, draft.folder()).Fill());
  return draft.Publish();
}

namespace {

/// Overlays on files in its directory, that somebody made by hand or of a snapshot, would be lost.
Status CheckNobodyStandsOn(const Home& home, const VmPaths& vm) {
  std::error_code error;
  const fs::path folder = fs::canonical(vm.folder, error);
  if (error) return Fail("{}: {}", vm.folder.string(), error.message());
  for (const auto& [from, to] : NACRE_TRY(FindBackingReferences(home)).references)
    if (IsBelow(to, folder) && !IsBelow(from, vm.folder))
      return Fail("{}: {} stands on {}; remove that first", vm.name(), from.string(), to.string());
  return {};
}

}  // namespace

Status RemoveVm(const Home& home, const VmPaths& vm) {
  const LayersGuard guard = NACRE_TRY(LayersGuard::Take(home));
  auto lock = VmLock::Take(vm.lock());
  if (!lock && lock.error().code == EBUSY)
    return Fail("{} runs ({}); `nacre stop {}` first, or `nacre rm --force {}`", vm.name(), lock.error().message,
                vm.name(), vm.name());
  if (!lock) return std::unexpected(lock.error());
  NACRE_TRY_STATUS(CheckNobodyStandsOn(home, vm));
  const fs::path away = home.vms() / fmt::format("{}{}-{}", kRemovedPrefix, vm.name(), NewUuid().substr(0, 8));
  NACRE_TRY_STATUS(RenameNew(vm.folder, away));
  if (const Status status = RemoveTree(away); !status)
    return Fail("{} is no VM any more, but not all of it could be removed: {}", vm.name(), status.error().message);
  RemoveLeftovers(home);
  // Where an image cannot be read, nobody knows what is used: layers stay, and `nacre doctor --vms` tells why.
  static_cast<void>(RemoveUnusedLayers(home, guard));
  return {};
}

std::vector<fs::path> Leftovers(const Home& home) {
  std::vector<fs::path> found;
  std::error_code error;
  for (fs::directory_iterator at(home.vms(), error), end; !error && at != end; at.increment(error)) {
    const std::string name = at->path().filename().string();
    if ((name.starts_with(kNewPrefix) || name.starts_with(kRemovedPrefix)) && !HolderOf(VmPaths{at->path()}.lock()))
      found.push_back(at->path());
  }
  return found;
}

void RemoveLeftovers(const Home& home) {
  const FolderGuard guard(home.vms());
  for (const fs::path& folder : Leftovers(home))
    if (const auto lock = VmLock::Take(VmPaths{folder}.lock())) static_cast<void>(RemoveTree(folder));
}

}  // namespace nacre::lifecycle
