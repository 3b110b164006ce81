#include "cli/paths.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <sstream>
#include <vector>

namespace nacre::cli {

namespace {

namespace fs = std::filesystem;

constexpr const char* kDefaultKind = "cloud-amd64";
constexpr const char* kPrepareScript = "scripts/prepare-guest";

std::optional<PreparedGuest> Load(const fs::path& folder) {
  PreparedGuest guest{folder / "vmlinuz", folder / "initrd.img", {}};
  std::error_code error;
  if (!fs::exists(guest.kernel, error) || !fs::exists(guest.initrd, error)) return std::nullopt;
  std::ifstream file(folder / "cmdline");
  if (!file || !std::getline(file, guest.command_line)) return std::nullopt;
  return guest;
}

/// Runs the script with no input and its output on our standard error.
Status Prepare(const fs::path& script) {
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&actions, STDERR_FILENO, STDOUT_FILENO);
  std::string program = script.string(), kind = kDefaultKind;
  char* const arguments[] = {program.data(), kind.data(), nullptr};
  pid_t child = 0;
  const int failed = posix_spawn(&child, program.c_str(), &actions, nullptr, arguments, environ);
  posix_spawn_file_actions_destroy(&actions);
  if (failed != 0) return Fail("{}: {}", program, std::strerror(failed));
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
    return Fail("{} {} failed (its messages are above)", program, kind);
  return {};
}

}  // namespace

std::optional<fs::path> SourceTree() {
  std::error_code error;
  fs::path folder = fs::read_symlink("/proc/self/exe", error).parent_path();
  for (; !folder.empty() && folder != folder.root_path(); folder = folder.parent_path())
    if (fs::exists(folder / kPrepareScript, error)) return folder;
  return std::nullopt;
}

std::vector<fs::path> GuestFolders() {
  std::vector<fs::path> folders;
  if (const char* home = std::getenv("NACRE_HOME"); home && *home) folders.push_back(fs::path(home) / "guests");
  if (const auto tree = SourceTree()) folders.push_back(*tree / "build/guests");
  return folders;
}

Result<PreparedGuest> DefaultGuest() {
  const auto find = []() -> std::optional<PreparedGuest> {
    for (const fs::path& folder : GuestFolders())
      if (auto guest = Load(folder / kDefaultKind)) return guest;
    return std::nullopt;
  };
  if (auto guest = find()) return *guest;
  const auto tree = SourceTree();
  if (!tree)
    return Fail(
        "the default guest is not prepared: run `make run` in Nacre's source folder once, set NACRE_HOME to "
        "where guests/{} is, or boot your own kernel with --kernel",
        kDefaultKind);
  NACRE_TRY_STATUS(Prepare(*tree / kPrepareScript));
  if (auto guest = find()) return *guest;
  return Fail("{} made no guest {}", (*tree / kPrepareScript).string(), kDefaultKind);
}

fs::path Home() {
  if (const char* home = std::getenv("NACRE_HOME"); home && *home) return home;
  if (const char* home = std::getenv("HOME"); home && *home) return fs::path(home) / ".local/share/nacre";
  return {};
}

Result<std::string> ControlSocketOf(const std::string& vm) {
  if (vm.find('/') != std::string::npos) return vm;
  if (vm.empty() || vm.starts_with('.')) return Fail("'{}' is not the name of a VM", vm);
  const fs::path home = Home();
  if (home.empty()) return Fail("{}: where VMs are is not known: set NACRE_HOME", vm);
  const fs::path socket = home / "vms" / vm / "run/control";
  std::error_code error;
  if (fs::is_socket(socket, error)) return socket.string();
  if (fs::exists(home / "vms" / vm / "vm.toml", error)) return Fail("{} does not run; `nacre start {}`", vm, vm);
  return Fail(
      "{}: no running VM has this name ({} is not there); the socket of `nacre run --control PATH` is named by a "
      "path with a '/', such as ./{}",
      vm, socket.string(), vm);
}

std::string VmNameOf(const fs::path& control_socket) {
  const fs::path folder = control_socket.parent_path();
  if (control_socket.filename() == "control" && folder.filename() == "run" && folder.parent_path().has_filename())
    return folder.parent_path().filename().string();
  return control_socket.stem().string();
}

}  // namespace nacre::cli
