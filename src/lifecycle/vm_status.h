#pragma once
// How a VM's last run ended, kept in run/end.toml, and what can be told of a VM without asking its process. Any thread.

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>

#include "base/result.h"
#include "lifecycle/vm_home.h"
#include "machine/machine_config.h"

namespace nacre::lifecycle {

struct VmEnd {
  std::string reason;  ///< "powered off", "crashed", ...
  std::string detail;  ///< lines for the user; may be empty
  int status = 0;      ///< as the exit status of `nacre run`
  std::string time;    ///< UTC, RFC 3339
};

/// What the reason is called.
std::string_view NameOf(machine::EndReason reason);
Status WriteEnd(const VmPaths& vm, const VmEnd& end);
/// Nothing: it never ran, or its process was killed.
std::optional<VmEnd> ReadEnd(const VmPaths& vm);
/// At the start of a run: only an end of this one counts.
void ForgetEnd(const VmPaths& vm);
/// It has been started at least once.
bool HasRun(const VmPaths& vm);

/// The present second in UTC, RFC 3339.
std::string TimeText();

/// What the VM's own disks take on the host, in bytes.
uint64_t DiskBytes(const VmPaths& vm);

}  // namespace nacre::lifecycle
