#pragma once
// A VM's directory with all that it stands on, in another place. Any thread.

#include <filesystem>

#include "lifecycle/vm_config.h"
#include "lifecycle/vm_exchange.h"
#include "lifecycle/vm_lock.h"

namespace nacre::lifecycle {

/// The VM's lock; the error says what to do where it runs. Of a directory that cannot be written to, nothing.
Result<std::optional<VmLock>> LockForExport(const VmPaths& vm);

/// Fills the empty directory `folder` with the VM that `config` in `source` describes, and a vm.toml. Disks become
/// images of their own; what is elsewhere is copied. The caller has the source's lock.
Status CopyVm(const VmPaths& source, VmConfig config, const std::filesystem::path& folder,
              const ExchangeProgress& progress);

}  // namespace nacre::lifecycle
