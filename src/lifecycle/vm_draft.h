#pragma once
// A VM's directory while it is being made: vms/.new-NAME-*, locked by its maker, which gets its name by one rename.

#include <filesystem>
#include <string_view>
#include <utility>

#include "base/result.h"
#include "lifecycle/vm_home.h"
#include "lifecycle/vm_lock.h"

namespace nacre::lifecycle {

class VmDraft {
 public:
  /// Fails where there is a VM of this name.
  static Result<VmDraft> Create(const Home& home, std::string_view name);
  VmDraft(VmDraft&& other) noexcept
      : folder_(std::exchange(other.folder_, {})), target_(std::move(other.target_)), lock_(std::move(other.lock_)) {}
  VmDraft& operator=(VmDraft&&) = delete;
  /// Removes it unless it was published.
  ~VmDraft();

  const std::filesystem::path& folder() const { return folder_; }
  VmPaths paths() const { return {folder_}; }
  /// From now on it is a VM.
  Status Publish();

 private:
  VmDraft(std::filesystem::path folder, std::filesystem::path target, VmLock lock)
      : folder_(std::move(folder)), target_(std::move(target)), lock_(std::move(lock)) {}
  std::filesystem::path folder_, target_;
  VmLock lock_;
};

}  // namespace nacre::lifecycle
