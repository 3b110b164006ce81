#include "lifecycle/vm_draft.h"

#include <sys/stat.h>

#include "lifecycle/vm_config.h"
#include "lifecycle/vm_files.h"

namespace nacre::lifecycle {

namespace fs = std::filesystem;

namespace {

std::unexpected<Error> Exists(const std::string& name) {
  return Fail("{}: there is such a VM already; give another name, or remove it with `nacre rm {}`", name, name);
}

}  // namespace

Result<VmDraft> VmDraft::Create(const Home& home, std::string_view name) {
  const VmPaths paths = NACRE_TRY(home.PathsOf(name));
  if (home.HasVm(name)) return Exists(paths.name());
  NACRE_TRY_STATUS(MakeFolders(home.vms()));
  // RemoveLeftovers has it too, and so does not find this one without its lock.
  const FolderGuard guard(home.vms());
  const fs::path folder = home.vms() / fmt::format("{}{}-{}", kNewPrefix, name, NewUuid().substr(0, 8));
  if (mkdir(folder.c_str(), 0700) != 0) return FailErrno("{}", folder.string());
  auto lock = VmLock::Take(VmPaths{folder}.lock());
  if (lock) return VmDraft(folder, paths.folder, std::move(*lock));
  static_cast<void>(RemoveTree(folder));
  return std::unexpected(lock.error());
}

VmDraft::~VmDraft() {
  if (!folder_.empty()) static_cast<void>(RemoveTree(folder_));
}

Status VmDraft::Publish() {
  NACRE_TRY_STATUS(SyncFolder(folder_));
  const Status renamed = RenameNew(folder_, target_);
  if (!renamed && renamed.error().code == EEXIST) return Exists(target_.filename().string());
  if (renamed) folder_.clear();
  return renamed;
}

}  // namespace nacre::lifecycle
