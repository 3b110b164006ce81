#pragma once
// Where VMs and images are ($NACRE_HOME), what they may be called, and what a VM's directory holds
// (docs/vm-directory.md). Any thread.

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace nacre::lifecycle {

/// What file systems and shells take, and what is no path: 1 to 63 letters, digits, '.', '_' and '-', a letter or a
/// digit first and last.
Status CheckName(std::string_view name);
inline constexpr size_t kMaxNameBytes = 63;

/// The files of one VM. Nothing is looked at.
struct VmPaths {
  std::filesystem::path folder;

  std::filesystem::path toml() const { return folder / "vm.toml"; }
  std::filesystem::path boot() const { return folder / "boot"; }
  std::filesystem::path disks() const { return folder / "disks"; }
  std::filesystem::path snapshots() const { return folder / "snapshots"; }
  std::filesystem::path run() const { return folder / "run"; }
  std::filesystem::path lock() const { return run() / "lock"; }
  std::filesystem::path control() const { return run() / "control"; }
  std::filesystem::path console() const { return run() / "console"; }
  std::filesystem::path console_log() const { return run() / "console.log"; }
  std::filesystem::path log() const { return run() / "log"; }
  std::filesystem::path end() const { return run() / "end.toml"; }
  std::string name() const { return folder.filename().string(); }
};

class Home {
 public:
  /// NACRE_HOME, else ~/.local/share/nacre; absolute. Fails where neither is known. Nothing is made.
  static Result<Home> Find();
  explicit Home(std::filesystem::path folder) : folder_(std::move(folder)) {}

  const std::filesystem::path& folder() const { return folder_; }
  std::filesystem::path vms() const { return folder_ / "vms"; }
  std::filesystem::path images() const { return folder_ / "images"; }
  std::filesystem::path layers() const { return folder_ / "layers"; }

  /// Of a VM that may be missing; the name is checked.
  Result<VmPaths> PathsOf(std::string_view name) const;
  /// Of one that is there; else the error names near ones.
  Result<VmPaths> FindVm(std::string_view name) const;
  bool HasVm(std::string_view name) const;
  /// In the order of their names; what is half made is left out.
  std::vector<std::string> VmNames() const;
  std::vector<std::string> ImageNames() const;

 private:
  std::filesystem::path folder_;
};

/// Names in vms/ that begin so are not VMs: one that is being made, one that is being removed.
inline constexpr std::string_view kNewPrefix = ".new-", kRemovedPrefix = ".rm-";

}  // namespace nacre::lifecycle
