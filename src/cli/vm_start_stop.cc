// `nacre start`, `stop`, `kill`.

#include <fmt/core.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <filesystem>

#include "base/fd.h"
#include "cli/commands.h"
#include "cli/run_options.h"
#include "cli/vm_commands_parts.h"
#include "cli/vm_process.h"
#include "control/client.h"
#include "lifecycle/vm_lock.h"
#include "lifecycle/vm_toml.h"

namespace nacre::cli {

namespace {

using lifecycle::Home;
using lifecycle::VmPaths;

constexpr int64_t kStopMs = 60'000;
/// For writing out disks, and for the kernel to take a process away.
constexpr int64_t kEndMs = 30'000;
constexpr int64_t kAskMs = 60'000;

/// For each VM by its name, all of them whatever becomes of one.
int ForEach(const std::vector<std::string>& names, const std::function<Status(const Home&, const VmPaths&)>& work) {
  const auto home = Home::Find();
  if (!home) return VmFailed(home.error());
  int status = kExitDone;
  for (const std::string& name : names) {
    const auto vm = home->FindVm(name);
    const Status done = vm ? work(*home, *vm) : std::unexpected(vm.error());
    if (!done) status = VmFailed(done.error());
  }
  return status;
}

/// Whether the process has the file open: its number was not given to another meanwhile.
bool HasOpen(pid_t pid, const std::filesystem::path& path) {
  std::error_code error;
  const auto folder = fmt::format("/proc/{}/fd", pid);
  for (std::filesystem::directory_iterator at(folder, error), end; !error && at != end; at.increment(error)) {
    std::error_code ignored;
    if (std::filesystem::equivalent(at->path(), path, ignored)) return true;
  }
  return false;
}

Status SendSignal(const VmPaths& vm, int number) {
  const auto holder = lifecycle::HolderOf(vm.lock());
  if (!holder) return {};
  const Fd process(static_cast<int>(syscall(SYS_pidfd_open, holder->pid, 0)));
  if (!process.valid() || !HasOpen(holder->pid, vm.lock())) {
    if (!lifecycle::HolderOf(vm.lock())) return {};
    return Fail("{}: process {} has its lock and is not this user's, or not on this host", vm.name(), holder->pid);
  }
  if (syscall(SYS_pidfd_send_signal, process.get(), number, nullptr, 0) != 0 && errno != ESRCH)
    return FailErrno("{}: process {}", vm.name(), holder->pid);
  return {};
}

/// The guest is told to shut down: by its power button, or, while none runs, the process by a signal.
Status AskToStop(const VmPaths& vm) {
  const auto info = AskVm(vm, "vm.info", kAskMs);
  if (!info) return SendSignal(vm, SIGTERM);
  NACRE_TRY(AskVm(vm, "vm.power", kAskMs));
  if (info->value("state", "") != "paused") return {};
  fmt::print(stderr, "nacre: {} was paused; it goes on to shut down\n", vm.name());
  NACRE_TRY(AskVm(vm, "vm.resume", kAskMs));
  return {};
}

/// Whether it ended in time. A guest that has just started does not see its button yet: it is pressed again.
bool WaitForEnd(const VmPaths& vm, int64_t timeout_ms) {
  constexpr int64_t kPressAgainMs = 10'000;
  for (; timeout_ms > kPressAgainMs; timeout_ms -= kPressAgainMs) {
    if (lifecycle::WaitForLock(vm.lock(), kPressAgainMs)) return true;
    static_cast<void>(AskVm(vm, "vm.power", kAskMs));
  }
  return lifecycle::WaitForLock(vm.lock(), timeout_ms);
}

/// `pressed`: the button has been, already.
Status Stop(const VmPaths& vm, int64_t timeout_ms, bool force, bool pressed) {
  if (!lifecycle::HolderOf(vm.lock())) {
    if (!pressed) fmt::print(stderr, "nacre: {} does not run\n", vm.name());
    return {};
  }
  const Status asked = pressed ? Status() : AskToStop(vm);
  if (!asked && lifecycle::HolderOf(vm.lock()) && !force) return asked;
  if (asked && WaitForEnd(vm, timeout_ms)) return {};
  if (force) return KillVm(vm);
  return Fail(
      "{} still runs {} s after its power button was pressed: its guest may need longer (`nacre stop --timeout 5m "
      "{}`), "
      "or pays no attention to the button (shut it down from inside, or `nacre stop --force {}`)",
      vm.name(), static_cast<double>(timeout_ms) / 1000, vm.name(), vm.name());
}

std::vector<std::string> Autostarted(const Home& home) {
  std::vector<std::string> names;
  for (const std::string& name : home.VmNames()) {
    const VmPaths vm{home.vms() / name};
    const auto config = lifecycle::ReadVmToml(vm.toml().string());
    if (!config)
      VmFailed(config.error());
    else if (config->autostart && !lifecycle::HolderOf(vm.lock()))
      names.push_back(name);
  }
  return names;
}

}  // namespace

Result<control::Json> AskVm(const VmPaths& vm, const std::string& method, int64_t patience_ms) {
  control::Client client = NACRE_TRY(control::Client::Connect(vm.control().string()));
  return client.Call(method, control::Json::object(), std::chrono::milliseconds(patience_ms));
}

Status KillVm(const VmPaths& vm) {
  if (AskVm(vm, "vm.stop", kEndMs) && lifecycle::WaitForLock(vm.lock(), kEndMs)) return {};
  NACRE_TRY_STATUS(SendSignal(vm, SIGKILL));
  if (lifecycle::WaitForLock(vm.lock(), kEndMs)) return {};
  return Fail("{}: its process does not end, though it was killed; the host may wait for a device", vm.name());
}

int StartCommand(const VmWords& words) {
  std::vector<std::string> names = words.plain;
  if (words.has("--autostart") == !names.empty()) return VmWrongUsage("start", "give VMs, or --autostart alone");
  if (words.has("--attach") && names.size() != 1) return VmWrongUsage("start", "--attach is for one VM");
  if (words.has("--autostart")) {
    const auto home = Home::Find();
    if (!home) return VmFailed(home.error());
    names = Autostarted(*home);
  }
  const int status = ForEach(names, [](const Home& home, const VmPaths& vm) { return StartVm(home, vm); });
  if (status != kExitDone || !words.has("--attach")) return status;
  return ConsoleCommand(words);
}

int StopCommand(const VmWords& words) {
  int64_t timeout_ms = kStopMs;
  if (words.has("--timeout")) {
    const auto given = ParseDurationMs(words.Value("--timeout"));
    if (!given) return VmWrongUsage("stop", fmt::format("--timeout: {}", given.error().message));
    timeout_ms = static_cast<int64_t>(*given);
  }
  std::vector<std::string> names = words.plain;
  if (words.has("--all") == !names.empty()) return VmWrongUsage("stop", "give VMs, or --all");
  if (words.has("--all")) {
    const auto home = Home::Find();
    if (!home) return VmFailed(home.error());
    for (const std::string& name : home->VmNames())
      if (lifecycle::HolderOf(VmPaths{home->vms() / name}.lock())) names.push_back(name);
    // All shut down at the same time; what is waited for below has begun for each.
    for (const std::string& name : names)
      if (const Status asked = AskToStop(VmPaths{home->vms() / name}); !asked) VmFailed(asked.error());
  }
  const bool force = words.has("--force"), pressed = words.has("--all");
  return ForEach(names, [&](const Home&, const VmPaths& vm) { return Stop(vm, timeout_ms, force, pressed); });
}

int KillCommand(const VmWords& words) {
  return ForEach(words.plain, [](const Home&, const VmPaths& vm) -> Status {
    if (lifecycle::HolderOf(vm.lock())) return KillVm(vm);
    fmt::print(stderr, "nacre: {} does not run\n", vm.name());
    return {};
  });
}

}  // namespace nacre::cli
