#include "lifecycle/vm_copy.h"

#include "lifecycle/vm_files.h"
#include "lifecycle/vm_toml.h"
#include "storage/image_tools.h"

namespace nacre::lifecycle {

namespace fs = std::filesystem;

namespace {

class Copying {
 public:
  Copying(const VmPaths& source, const fs::path& folder, const ExchangeProgress& progress)
      : source_(source), folder_(folder), progress_(progress) {}

  Status Run(VmConfig config) {
    machine::MachineConfig& machine = config.machine;
    NACRE_TRY_STATUS(Copy(machine.kernel, "boot"));
    for (std::string& initrd : machine.initrds) NACRE_TRY_STATUS(Copy(initrd, "boot"));
    if (machine.firmware != "bios" && machine.firmware != "uefi") NACRE_TRY_STATUS(Copy(machine.firmware, "boot"));
    NACRE_TRY_STATUS(Copy(machine.firmware_variables, ""));
    NACRE_TRY_STATUS(Copy(config.password_file, ""));
    for (auto& floppy : machine.floppies) NACRE_TRY_STATUS(Copy(floppy.path, "disks"));
    unsigned number = 0;
    for (auto& disk : machine.disks) {
      if (!disk.is_own()) {
        NACRE_TRY_STATUS(Copy(disk.path, "disks"));
        continue;
      }
      NACRE_TRY_STATUS(MakeFolders(folder_ / "disks"));
      const std::string name = fmt::format("disks/disk{}.qcow2", number++);
      const storage::ImageOptions from{.path = PathOf(disk.path).string(), .format = disk.format};
      NACRE_TRY_STATUS(storage::ConvertImage(from, (folder_ / name).string(), {}, [&](uint64_t done, uint64_t total) {
        return !progress_ || progress_(fs::path(name).filename().string(), done, total);
      }));
      disk.path = name;
      disk.format = storage::ImageFormat::kQcow2;
    }
    NACRE_TRY_STATUS(WriteAtomically(folder_ / "vm.toml", VmTomlText(config)));
    return SyncFolder(folder_);
  }

 private:
  fs::path PathOf(const std::string& file) const { return (source_.folder / file).lexically_normal(); }

  /// A file that is read, into `below`, under its own name or one like it.
  Status Copy(std::string& file, const std::string& below) {
    if (file.empty()) return {};
    const fs::path from = PathOf(file), folder = folder_ / below;
    const std::string plain = from.filename().string();
    NACRE_TRY_STATUS(MakeFolders(folder));
    std::error_code error;
    std::string name = plain;
    for (int i = 2; fs::exists(folder / name, error) || name == "vm.toml"; ++i) name = fmt::format("{}-{}", i, plain);
    // Variables of UEFI appear with the first run.
    if (fs::exists(from, error)) {
      NACRE_TRY_STATUS(CopyFile(from, folder / name));
    } else if (file != "firmware-vars") {
      return Fail("{}: there is no such file, and {} needs it", from.string(), source_.name());
    }
    file = below.empty() ? name : below + "/" + name;
    return {};
  }

  const VmPaths& source_;
  const fs::path& folder_;
  const ExchangeProgress& progress_;
};

}  // namespace

Result<std::optional<VmLock>> LockForExport(const VmPaths& vm) {
  auto lock = VmLock::Take(vm.lock());
  if (lock) return std::optional<VmLock>(std::move(*lock));
  if (lock.error().code == EROFS || lock.error().code == EACCES) return std::nullopt;
  if (lock.error().code == EBUSY)
    return Fail("{} runs, or is being changed ({}); `nacre stop {}` first", vm.name(), lock.error().message, vm.name());
  return std::unexpected(lock.error());
}

Status CopyVm(const VmPaths& source, VmConfig config, const fs::path& folder, const ExchangeProgress& progress) {
  return Copying(source, folder, progress).Run(std::move(config));
}

}  // namespace nacre::lifecycle
