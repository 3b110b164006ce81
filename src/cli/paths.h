#pragma once
// Where Nacre's own files are: below NACRE_HOME if that is set, else beside the program (an unpacked source tree). Any
// thread.

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"

namespace nacre::cli {

/// The root of the source tree that the running program was built in, if it lies in one.
std::optional<std::filesystem::path> SourceTree();

/// A prepared guest: a kernel, its initrd and its command line.
struct PreparedGuest {
  std::filesystem::path kernel, initrd;
  std::string command_line;
};

/// The folders that may hold guests, the preferred one first.
std::vector<std::filesystem::path> GuestFolders();
/// Finds the default guest, or has the source tree's script prepare it (which fetches Debian packages and speaks on
/// standard error).
Result<PreparedGuest> DefaultGuest();

/// The folder of VMs and guests: NACRE_HOME, else ~/.local/share/nacre. Empty if there is neither.
std::filesystem::path Home();
/// The control socket of a running VM, which is a socket's path (it has a '/') or a VM's name. The error says what was
/// looked for.
Result<std::string> ControlSocketOf(const std::string& vm);
/// What the VM behind a control socket is called: the VM folder's name, else the socket's own without its suffix.
std::string VmNameOf(const std::filesystem::path& control_socket);

}  // namespace nacre::cli
