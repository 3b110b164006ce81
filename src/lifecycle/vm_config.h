#pragma once
// What vm.toml says of a virtual machine: its hardware, and what becomes of it when it ends. Plain data; paths are as
// in the file, relative to the VM's directory or absolute. docs/vm-directory.md has the keys.

#include <filesystem>
#include <string>

#include "base/result.h"
#include "machine/machine_config.h"

namespace nacre::lifecycle {

/// What follows when a run ends that nobody asked to end.
enum class RestartPolicy : uint8_t {
  kNo,
  kOnFailure,  ///< the guest crashed or the engine could not go on
  kAlways,     ///< also when the guest powers off by itself
};

struct VmConfig {
  static constexpr unsigned kDefaultRestartLimit = 5, kMaxRestartLimit = 1000;

  std::string uuid;
  std::string image;  ///< what it was made of, for people; may be empty
  RestartPolicy restart = RestartPolicy::kNo;
  unsigned restart_limit = kDefaultRestartLimit;  ///< restarts in a row, of which none ran for long; 0: no limit
  bool autostart = false;

  std::string show = "none";  ///< as --display, without the password
  std::string password_file;  ///< of `show`; may be empty

  /// But for display.vnc, which `show` makes, and what is of one run only.
  machine::MachineConfig machine;
};

/// Relative paths are from `folder`.
void MakePathsAbsolute(machine::MachineConfig& machine, const std::filesystem::path& folder);

/// The machine that a VM in `folder` is: all paths absolute, the password read, {name} replaced.
Result<machine::MachineConfig> MachineOf(const VmConfig& config, const std::filesystem::path& folder);

/// `text` with the name of a VM in place of each {name}, as for kernels' command lines: a clone has its own.
std::string WithName(std::string text, std::string_view name);

/// A random MAC address, locally administered, of the range that QEMU's and KVM's users know.
network::MacAddress NewMac();
/// A random UUID (RFC 9562, version 4).
std::string NewUuid();

}  // namespace nacre::lifecycle
