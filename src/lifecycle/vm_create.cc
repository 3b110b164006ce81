#include "lifecycle/vm_create.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>

#include "base/fd.h"
#include "base/size_text.h"
#include "lifecycle/vm_files.h"
#include "lifecycle/vm_lock.h"
#include "lifecycle/vm_toml.h"
#include "storage/image_tools.h"

namespace nacre::lifecycle {

namespace fs = std::filesystem;

namespace {

bool IsBelow(const fs::path& path, const fs::path& folder) {
  const fs::path relative = path.lexically_relative(folder);
  return !relative.empty() && *relative.begin() != "..";
}

/// A folder for work, with its lock; removed at the end unless it has got its name.
class Draft {
 public:
  static Result<Draft> Create(const Home& home, std::string_view name) {
    NACRE_TRY_STATUS(MakeFolders(home.vms()));
    const FolderGuard guard(home.vms());
    const fs::path folder = home.vms() / fmt::format("{}{}-{}", kNewPrefix, name, NewUuid().substr(0, 8));
    if (mkdir(folder.c_str(), 0700) != 0) return FailErrno("{}", folder.string());
    auto lock = VmLock::Take(VmPaths{folder}.lock());
    if (lock) return Draft(folder, std::move(*lock));
    static_cast<void>(RemoveTree(folder));
    return std::unexpected(lock.error());
  }
  Draft(Draft&& other) noexcept : folder_(std::exchange(other.folder_, {})), lock_(std::move(other.lock_)) {}
  ~Draft() {
    if (!folder_.empty()) static_cast<void>(RemoveTree(folder_));
  }
  const fs::path& folder() const { return folder_; }
  Status Publish(const fs::path& to) {
    NACRE_TRY_STATUS(RenameNew(folder_, to));
    folder_.clear();
    return {};
  }

 private:
  Draft(fs::path folder, VmLock lock) : folder_(std::move(folder)), lock_(std::move(lock)) {}
  fs::path folder_;
  VmLock lock_;
};

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
    if (machine_.firmware == "uefi" && machine_.firmware_variables.empty())
      machine_.firmware_variables = "firmware-vars";
    const std::string text = VmTomlText(vm_.config);
    // What is written can be read: a value that cannot is told now, not at the next start.
    NACRE_TRY(ParseVmToml(text, VmPaths{home_.vms() / vm_.name}.toml().string()));
    return WriteAtomically(folder_ / "vm.toml", text);
  }

 private:
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
    const bool has_own = std::ranges::any_of(disks, IsOwn);
    uint64_t size = vm_.disk_bytes;
    if (!has_own && size != 0) disks.insert(disks.begin(), machine::DiskConfig{});
    unsigned number = 0;
    for (auto& disk : disks) {
      if (!disk.path.empty() && !IsOwn(disk)) {
        NACRE_TRY_STATUS(KeepOutside(disk.path));
        continue;
      }
      NACRE_TRY_STATUS(MakeDisk(disk, number++, size));
      size = 0;
    }
    return {};
  }
  static bool IsOwn(const machine::DiskConfig& disk) { return !disk.read_only && !disk.cdrom && !disk.snapshot; }

  /// A disk of the VM's own: an empty one, or a copy of the file that was named, without the images below it.
  Status MakeDisk(machine::DiskConfig& disk, unsigned number, uint64_t size_bytes) {
    using storage::ImageFormat;
    NACRE_TRY_STATUS(MakeFolders(VmPaths{folder_}.disks()));
    if (!disk.format) disk.format = disk.path.empty() ? ImageFormat::kRaw : NACRE_TRY(storage::ProbeFormat(disk.path));
    const std::string name = fmt::format("disks/disk{}.{}", number, storage::FormatName(*disk.format));
    const fs::path path = folder_ / name;
    if (disk.path.empty()) {
      const Fd file(open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
      if (!file.valid()) return FailErrno("{}", path.string());
    } else if (NACRE_TRY(storage::DescribeImage({.path = disk.path, .format = disk.format})).size() > 1) {
      NACRE_TRY_STATUS(storage::ConvertImage({.path = disk.path, .format = disk.format}, path.string(), {}));
    } else {
      NACRE_TRY_STATUS(CopyFile(disk.path, path));
    }
    if (size_bytes != 0) {
      const storage::ImageOptions image{.path = path.string(), .format = disk.format};
      const uint64_t present = NACRE_TRY(storage::DescribeImage(image)).front().size_bytes;
      if (size_bytes < present)
        return Fail("--disk-size {}: {} has {} already, and a disk does not shrink", SizeText(size_bytes), disk.path,
                    SizeText(present));
      NACRE_TRY_STATUS(storage::ResizeImage(image, size_bytes));
    }
    NACRE_TRY_STATUS(SyncFolder(path.parent_path()));
    disk.path = name;
    return {};
  }

  const Home& home_;
  NewVm& vm_;
  machine::MachineConfig& machine_;
  const fs::path folder_;
};

}  // namespace

Status CreateVm(const Home& home, NewVm vm) {
  const VmPaths paths = NACRE_TRY(home.PathsOf(vm.name));
  const auto exists = [&] {
    return Fail("{}: there is such a VM already; give another name, or remove it with `nacre rm {}`", vm.name, vm.name);
  };
  if (home.HasVm(vm.name)) return exists();
  RemoveLeftovers(home);
  Draft draft = NACRE_TRY(Draft::Create(home, vm.name));
  if (const Status status = Creation(home, vm, draft.folder()).Fill(); !status) return status;
  NACRE_TRY_STATUS(SyncFolder(draft.folder()));
  const Status published = draft.Publish(paths.folder);
  if (!published && published.error().code == EEXIST) return exists();
  return published;
}

Status RemoveVm(const Home& home, const VmPaths& vm) {
  auto lock = VmLock::Take(vm.lock());
  if (!lock && lock.error().code == EBUSY)
    return Fail("{} runs ({}); `nacre stop {}` first, or `nacre rm --force {}`", vm.name(), lock.error().message,
                vm.name(), vm.name());
  if (!lock) return std::unexpected(lock.error());
  const fs::path away = home.vms() / fmt::format("{}{}-{}", kRemovedPrefix, vm.name(), NewUuid().substr(0, 8));
  NACRE_TRY_STATUS(RenameNew(vm.folder, away));
  if (const Status status = RemoveTree(away); !status)
    return Fail("{} is no VM any more, but not all of it could be removed: {}", vm.name(), status.error().message);
  RemoveLeftovers(home);
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
