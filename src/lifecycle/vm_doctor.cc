#include "lifecycle/vm_doctor.h"

#include <fmt/ranges.h>
#include <unistd.h>

#include <map>

#include "lifecycle/snapshot_store.h"
#include "lifecycle/vm_config.h"
#include "lifecycle/vm_create.h"
#include "lifecycle/vm_files.h"
#include "lifecycle/vm_layers.h"
#include "lifecycle/vm_lock.h"
#include "lifecycle/vm_toml.h"
#include "storage/image.h"
#include "storage/qcow2_check.h"

namespace nacre::lifecycle {

namespace fs = std::filesystem;

namespace {

class Examination {
 public:
  Examination(const Home& home, bool mend) : home_(home), mend_(mend) {}

  std::vector<VmProblem> Run() {
    for (const fs::path& folder : Leftovers(home_))
      Mendable(folder.string(), "is left of a creation or a removal that was not finished");
    if (mend_) {
      RemoveLeftovers(home_);
      for (VmProblem& problem : problems_) {
        std::error_code error;
        problem.mended = !fs::exists(problem.where, error);
      }
    }
    for (const std::string& name : home_.VmNames()) ExamineVm({home_.vms() / name});
    ExamineLayers();
    return std::move(problems_);
  }

 private:
  VmProblem& Mendable(std::string where, std::string what) {
    return problems_.emplace_back(VmProblem{std::move(where), std::move(what), true, false});
  }
  void Problem(const VmPaths& vm, std::string what) { problems_.push_back({vm.name(), std::move(what), false, false}); }

  void ExamineVm(const VmPaths& vm) {
    std::error_code error;
    if (!fs::is_directory(vm.folder, error))
      return Problem(vm, fmt::format("{} is no directory; take it away", vm.folder.string()));
    if (!fs::exists(vm.toml(), error)) {
      Problem(vm, fmt::format("has no vm.toml: take it from a backup, or remove the VM with `nacre rm {}`", vm.name()));
    } else {
      const auto config = ReadVmToml(vm.toml().string());
      if (!config) Problem(vm, config.error().message);
      if (config) ExamineFiles(vm, *config);
      if (config) ExamineIdentity(vm, *config);
      return ExamineRemains(vm, config ? &*config : nullptr);
    }
    ExamineRemains(vm, nullptr);
  }

  void ExamineFiles(const VmPaths& vm, const VmConfig& config) {
    std::vector<std::pair<std::string_view, std::string>> files;
    files.emplace_back("boot.kernel", config.machine.kernel);
    for (const std::string& initrd : config.machine.initrds) files.emplace_back("boot.initrd", initrd);
    if (config.machine.firmware != "bios" && config.machine.firmware != "uefi")
      files.emplace_back("boot.firmware", config.machine.firmware);
    for (const auto& disk : config.machine.disks) files.emplace_back("disk.file", disk.path);
    for (const auto& floppy : config.machine.floppies) files.emplace_back("floppy.file", floppy.path);
    files.emplace_back("display.password", config.password_file);
    for (const auto& [key, file] : files) {
      std::error_code error;
      const fs::path path = (vm.folder / file).lexically_normal();
      if (!file.empty() && !fs::exists(path, error))
        Problem(vm, fmt::format("{} {} is missing: put it back, or change vm.toml", key, path.string()));
    }
  }

  /// A directory that was copied by hand.
  void ExamineIdentity(const VmPaths& vm, const VmConfig& config) {
    const auto first_with = [&](const std::string& identity) -> std::string {
      const auto [at, fresh] = owners_.emplace(identity, vm.name());
      return fresh || at->second == vm.name() ? "" : at->second;
    };
    if (const std::string other = first_with(config.uuid); !other.empty())
      Problem(vm, fmt::format("has the uuid of {}: give it its own in vm.toml (`uuidgen`)", other));
    for (const auto& network : config.machine.networks) {
      if (!network.mac) continue;
      const std::string mac = fmt::format("{:02x}", fmt::join(*network.mac, ":"));
      if (const std::string other = first_with(mac); !other.empty())
        Problem(vm, fmt::format("has the MAC address {} of {}: give it its own in vm.toml", mac, other));
    }
  }

  /// The VM does not run, and cannot be started meanwhile.
  void ExamineDisks(const VmPaths& vm, const VmConfig& config) {
    for (const auto& disk : config.machine.disks) {
      const fs::path path = (vm.folder / disk.path).lexically_normal();
      std::error_code error;
      if (disk.cdrom || !fs::exists(path, error)) continue;
      const auto layer = LookAtDisk(path, disk.format);
      if (!layer) {
        Problem(vm, layer.error().message);
      } else if (layer->format == storage::ImageFormat::kQcow2 && !disk.read_only) {
        ExamineImage(vm, path);
      }
    }
  }

  void ExamineImage(const VmPaths& vm, const fs::path& path) {
    const auto report = storage::CheckQcow2(path.string(), mend_);
    if (!report) return Problem(vm, report.error().message);
    if (report->corruptions != 0)
      Problem(vm, fmt::format("{}: the image is damaged: {}", path.string(),
                              report->faults.empty() ? "" : report->faults[0]));
    if (report->leaks == 0 && report->repaired == 0) return;
    VmProblem& problem = Mendable(path.string(), "has clusters that are counted and not used; no data is in danger");
    problem.mended = report->leaks == 0;
  }

  void ExamineLayers() {
    std::error_code error;
    if (!fs::exists(home_.layers(), error)) return;
    const auto guard = LayersGuard::Take(home_);
    const auto unused = UnusedLayers(home_);
    if (!guard || !unused) {
      problems_.push_back({home_.layers().string(), (guard ? unused.error() : guard.error()).message, false, false});
      return;
    }
    if (mend_ && RemoveUnusedLayers(home_, *guard)) static_cast<void>(MergeLayers(home_, *guard));
    for (const fs::path& layer : *unused)
      Mendable(layer.string(), "is a frozen disk that nothing stands on").mended = mend_ && !fs::exists(layer, error);
  }

  static bool IsRemainder(const fs::path& path) {
    std::error_code error;
    const std::string name = path.filename().string();
    if (fs::is_socket(path, error)) return true;
    return fs::is_regular_file(path, error) && name.starts_with('.') && name.ends_with(".tmp");
  }

  /// Sockets nobody listens on, files that were not finished.
  void ExamineRemains(const VmPaths& vm, const VmConfig* config) {
    std::error_code error;
    // While the lock is held here nobody starts the VM.
    const bool exists = fs::exists(vm.lock(), error);
    auto lock = exists ? VmLock::Take(vm.lock()) : std::unexpected(Error{"", ENOENT});
    if (exists && !lock) {
      if (lock.error().code != EBUSY) Problem(vm, lock.error().message);
      return;
    }
    if (config) ExamineDisks(vm, *config);
    for (const SnapshotInfo& snapshot : ListSnapshots(vm.snapshots()))
      if (!snapshot.problem.empty())
        Problem(vm, fmt::format("its snapshot {} cannot be restored: {}", snapshot.name, snapshot.problem));
    for (const fs::path& folder : {vm.folder, vm.run(), vm.boot(), vm.disks()}) {
      for (fs::directory_iterator at(folder, error), end; !error && at != end; at.increment(error)) {
        if (!IsRemainder(at->path())) continue;
        VmProblem& problem = Mendable(at->path().string(), "is left of a process that was killed");
        if (mend_) problem.mended = unlink(at->path().c_str()) == 0;
      }
      error.clear();
    }
  }

  const Home& home_;
  const bool mend_;
  std::vector<VmProblem> problems_;
  std::map<std::string, std::string> owners_;  ///< of UUIDs and MAC addresses
};

}  // namespace

std::vector<VmProblem> ExamineVms(const Home& home, bool mend) { return Examination(home, mend).Run(); }

}  // namespace nacre::lifecycle
