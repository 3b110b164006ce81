#include "cli/vm_process.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <optional>
#include <vector>

#include "base/fd.h"
#include "base/log.h"
#include "cli/commands.h"
#include "cli/run_setup.h"
#include "cli/stop_signals.h"
#include "cli/terminal.h"
#include "control/console_hub.h"
#include "control/server.h"
#include "lifecycle/snapshot_disks.h"
#include "lifecycle/snapshot_store.h"
#include "lifecycle/vm_files.h"
#include "lifecycle/vm_lock.h"
#include "lifecycle/vm_log.h"
#include "lifecycle/vm_status.h"
#include "lifecycle/vm_toml.h"
#include "machine/machine.h"

namespace nacre::cli {

namespace {

namespace fs = std::filesystem;
using lifecycle::RestartPolicy;
using lifecycle::VmPaths;

/// Where the new process tells its parent that the guest runs, or why not.
constexpr int kReadyFd = 3;
constexpr char kRuns = '+';
/// The first wait before a restart; each one after it is twice as long.
constexpr int64_t kFirstWaitMs = 1000, kLongestWaitMs = 60'000;
/// A run as long as this was no failed start: the waits and the count begin anew.
constexpr auto kLongRun = std::chrono::seconds(60);

/// Standard error, which is run/log: messages with their time, and the file's bound.
class Messages {
 public:
  static Result<Messages> Open(const VmPaths& vm) {
    Messages messages(NACRE_TRY(lifecycle::BoundedLog::Open(vm.log())));
    messages.Redirect();
    return messages;
  }
  void Say(std::string_view text) {
    while (text.ends_with('\n')) text.remove_suffix(1);
    log_.Write(fmt::format("{} {}\n", lifecycle::TimeText(), text));
    if (log_.TurnIfFull()) Redirect();
    if (log_.fd() != shown_) Redirect();
  }

 private:
  explicit Messages(lifecycle::BoundedLog log) : log_(std::move(log)) {}
  /// What libraries and crashes print goes the same way.
  void Redirect() {
    dup2(log_.fd(), STDERR_FILENO);
    shown_ = log_.fd();
  }
  lifecycle::BoundedLog log_;
  int shown_ = -1;
};

/// To the parent, once.
class Readiness {
 public:
  void Runs() { Tell(std::string(1, kRuns)); }
  /// False: the parent has been told before, and has gone.
  bool Fails(const std::string& message) { return Tell(message); }

 private:
  bool Tell(std::string_view text) {
    const std::lock_guard lock(mutex_);
    if (!fd_.valid()) return false;
    // A parent that was killed does not matter.
    static_cast<void>(!write(fd_.get(), text.data(), text.size()));
    fd_.Close();
    return true;
  }
  std::mutex mutex_;
  Fd fd_{kReadyFd};
};

struct RunEnd {
  machine::EndReason reason = machine::EndReason::kLeft;
  Ending ending;
  bool asked = false;  ///< somebody wanted the end
};

class VmRun {
 public:
  /// `snapshot`: from where the first run goes on; empty: it starts.
  VmRun(lifecycle::Home home, VmPaths vm, std::string snapshot, Readiness& readiness, Messages& messages)
      : home_(std::move(home)),
        vm_(std::move(vm)),
        snapshot_(std::move(snapshot)),
        readiness_(readiness),
        messages_(messages) {}

  Result<RunEnd> Once() {
    machine::MachineConfig machine_config = NACRE_TRY(lifecycle::MachineOf(config_, vm_.folder));
    machine_config.disk_layers = home_.layers();
    if (!snapshot_.empty()) NACRE_TRY_STATUS(UseSnapshot(machine_config));
    if (machine_config.engine == machine::EngineKind::kKvm) NACRE_TRY_STATUS(CheckKvm(machine_config));
    const std::unique_ptr<machine::Machine> machine = NACRE_TRY(machine::Machine::Create(machine_config));
    const auto signals = NACRE_TRY(StopSignals::Watch(*machine));
    control::MachineVm controlled(*machine, vm_.name(), NACRE_VERSION);
    // Relative, for the working directory is the VM's: a socket's path must be short.
    auto server = NACRE_TRY(control::Server::Create("run/control", controlled));
    machine->RequestResume([this](const Result<void>& resumed) {
      if (resumed) readiness_.Runs();
    });
    const machine::RunResult result = machine->Run();
    RunEnd end{result.reason, EndingOf(result, signals->received()),
               controlled.end_asked() || signals->received() != 0};
    server.reset();
    return end;
  }

  Status LoadConfig() {
    config_ = NACRE_TRY(lifecycle::ReadVmToml(vm_.toml().string()));
    return {};
  }

  /// Runs the VM, again where its restart policy says so. The last run's exit status.
  Result<int> All() {
    unsigned restarts = 0;
    for (;;) {
      lifecycle::ForgetEnd(vm_);
      NACRE_TRY_STATUS(LoadConfig());
      const auto begin = std::chrono::steady_clock::now();
      const RunEnd end = NACRE_TRY(Once());
      messages_.Say(fmt::format("the guest's run ended: {}{}{}", lifecycle::NameOf(end.reason),
                                end.ending.text.empty() ? "" : "; ", end.ending.text));
      const Status written = lifecycle::WriteEnd(
          vm_, {std::string(lifecycle::NameOf(end.reason)), end.ending.text, end.ending.status, lifecycle::TimeText()});
      if (!written) messages_.Say(written.error().message);
      // A guest that ended as soon as it ran has run.
      readiness_.Runs();
      if (std::chrono::steady_clock::now() - begin >= kLongRun) restarts = 0;
      if (!WantsRestart(end) || !WaitForRestart(restarts++)) return end.ending.status;
    }
  }

 private:
  /// The hardware is as it was then; how it is run is vm.toml's.
  Status UseSnapshot(machine::MachineConfig& config) {
    const fs::path snapshot = std::exchange(snapshot_, {});
    const std::string folder = (vm_.snapshots() / snapshot).string();
    machine::MachineConfig saved = NACRE_TRY(machine::ReadConfigToRun(folder));
    // A live clone was made with disks that are as they were then.
    if (snapshot.is_absolute())
      NACRE_TRY_STATUS(lifecycle::UsePresentDisks(folder, saved, config));
    else
      NACRE_TRY_STATUS(lifecycle::UseFrozenDisks(home_, folder, saved, config));
    lifecycle::UsePresentFiles(saved, config);
    saved.engine = config.engine;
    saved.disk_layers = config.disk_layers;
    saved.serial.input = saved.console.input = true;
    if (!config.vsock.empty() && !saved.vsock.empty()) saved.vsock = config.vsock;
    config = std::move(saved);
    return {};
  }
  bool WantsRestart(const RunEnd& end) const {
    if (end.asked || config_.restart == RestartPolicy::kNo) return false;
    const bool failed = end.reason == machine::EndReason::kGuestCrash || end.reason == machine::EndReason::kEngineError;
    return failed || config_.restart == RestartPolicy::kAlways;
  }
  /// False: not again.
  bool WaitForRestart(unsigned restarts) {
    if (config_.restart_limit != 0 && restarts >= config_.restart_limit) {
      messages_.Say(
          fmt::format("{} restarts in a row, as many as vm.toml's restart-limit allows: not again", restarts));
      return false;
    }
    const int64_t wait_ms = std::min(kLongestWaitMs, kFirstWaitMs << std::min(restarts, 10u));
    messages_.Say(fmt::format("starting again in {} s", wait_ms / 1000));
    if (!StopSignalWithin(wait_ms)) return true;
    messages_.Say("not started again: a signal asked to stop");
    return false;
  }

  const lifecycle::Home home_;
  const VmPaths vm_;
  std::string snapshot_;
  lifecycle::VmConfig config_;
  Readiness& readiness_;
  Messages& messages_;
};

/// Standard input and output become one end of the guest's console; the other end is given back.
Result<Fd> OpenConsole() {
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) return FailErrno("the console's sockets");
  Fd machine(ends[0]), hub(ends[1]);
  if (dup2(machine.get(), STDIN_FILENO) < 0 || dup2(machine.get(), STDOUT_FILENO) < 0)
    return FailErrno("the console's sockets");
  return hub;
}

void CloseConsole() {
  const Fd nothing(open("/dev/null", O_RDWR | O_CLOEXEC));
  dup2(nothing.get(), STDIN_FILENO);
  dup2(nothing.get(), STDOUT_FILENO);
}

Result<int> RunDetached(const lifecycle::Home& home, const VmPaths& vm, const std::string& snapshot,
                        Readiness& readiness, Messages& messages) {
  auto lock = lifecycle::VmLock::Take(vm.lock());
  if (!lock && lock.error().code == EBUSY)
    return Fail("{} runs already, or is being changed ({})", vm.name(), lock.error().message);
  if (!lock) return std::unexpected(lock.error());
  if (chdir(vm.folder.c_str()) != 0) return FailErrno("{}", vm.folder.string());
  lifecycle::RemoveUnfinishedSnapshots(vm.snapshots());
  VmRun run(home, vm, snapshot, readiness, messages);
  NACRE_TRY_STATUS(run.LoadConfig());
  Fd guest = NACRE_TRY(OpenConsole());
  auto hub = NACRE_TRY(control::ConsoleHub::Create("run/console", vm.console_log(), std::move(guest)));
  auto status = run.All();
  CloseConsole();
  hub.reset();
  return status;
}

/// The end of run/log, for an end that said nothing.
std::string LastLines(const fs::path& path) {
  const Fd file(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  struct stat info {};
  if (!file.valid() || fstat(file.get(), &info) != 0) return "";
  std::string text(static_cast<size_t>(std::min<off_t>(info.st_size, 2000)), '\0');
  const ssize_t got = pread(file.get(), text.data(), text.size(), info.st_size - static_cast<off_t>(text.size()));
  text.resize(static_cast<size_t>(std::max<ssize_t>(got, 0)));
  return text;
}

class SpawnSetup {
 public:
  SpawnSetup() {
    posix_spawn_file_actions_init(&actions_);
    posix_spawnattr_init(&attributes_);
  }
  ~SpawnSetup() {
    posix_spawn_file_actions_destroy(&actions_);
    posix_spawnattr_destroy(&attributes_);
  }
  SpawnSetup(const SpawnSetup&) = delete;
  SpawnSetup& operator=(const SpawnSetup&) = delete;

  /// A session of its own, no signal blocked or ignored, and no descriptor but these.
  Result<pid_t> Spawn(int ready, const fs::path& log, std::vector<std::string> words,
                      std::vector<std::string> variables) {
    posix_spawn_file_actions_adddup2(&actions_, ready, kReadyFd);
    posix_spawn_file_actions_addopen(&actions_, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&actions_, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
    posix_spawn_file_actions_addopen(&actions_, STDERR_FILENO, log.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
    posix_spawn_file_actions_addclosefrom_np(&actions_, kReadyFd + 1);
    sigset_t none, all;
    sigemptyset(&none);
    sigfillset(&all);
    posix_spawnattr_setsigmask(&attributes_, &none);
    posix_spawnattr_setsigdefault(&attributes_, &all);
    posix_spawnattr_setflags(&attributes_, POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    const auto pointers = [](std::vector<std::string>& texts) {
      std::vector<char*> list;
      for (std::string& text : texts) list.push_back(text.data());
      list.push_back(nullptr);
      return list;
    };
    pid_t child = 0;
    const int failed = posix_spawn(&child, "/proc/self/exe", &actions_, &attributes_, pointers(words).data(),
                                   pointers(variables).data());
    if (failed != 0) return Fail("a process for the VM: {}", std::strerror(failed));
    return child;
  }

 private:
  posix_spawn_file_actions_t actions_;
  posix_spawnattr_t attributes_;
};

}  // namespace

int VmProcess(std::span<const std::string_view> words) {
  struct stat ready {};
  if (words.empty() || words.size() > 2 || fstat(kReadyFd, &ready) != 0 || !S_ISFIFO(ready.st_mode)) {
    fmt::print(stderr, "nacre: {} is what `nacre start` runs; use that\n", kVmProcess);
    return kExitUsage;
  }
  fcntl(kReadyFd, F_SETFD, FD_CLOEXEC);
  umask(077);
  StopSignals::Block();
  RawTerminal::InstallHandlers();
  Readiness readiness;
  const auto fail = [&](const Error& error) {
    readiness.Fails(error.message);
    return kExitFailed;
  };
  const auto home = lifecycle::Home::Find();
  if (!home) return fail(home.error());
  const auto vm = home->FindVm(words[0]);
  if (!vm) return fail(vm.error());
  auto messages = Messages::Open(*vm);
  if (!messages) return fail(messages.error());
  SetLogSink([&](LogLevel, std::string_view text) { messages->Say(text); });
  messages->Say(fmt::format("process {} of nacre {}", getpid(), NACRE_VERSION));
  const auto status = RunDetached(*home, *vm, std::string(words.size() == 2 ? words[1] : ""), readiness, *messages);
  if (!status) messages->Say(status.error().message);
  SetLogSink({});
  if (status) return *status;
  // Nobody waits for the message after a restart: the VM's end says it.
  if (!readiness.Fails(status.error().message))
    static_cast<void>(lifecycle::WriteEnd(*vm, {"failed", status.error().message, kExitFailed, lifecycle::TimeText()}));
  return kExitFailed;
}

Status StartVm(const lifecycle::Home& home, const VmPaths& vm, const std::string& snapshot) {
  if (const auto holder = lifecycle::HolderOf(vm.lock()))
    return Fail("{} runs already, or is being changed (process {} has it)", vm.name(), holder->pid);
  NACRE_TRY_STATUS(lifecycle::MakeFolders(vm.run()));
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return FailErrno("a pipe");
  Fd reader(ends[0]), writer(ends[1]);
  std::vector<std::string> variables;
  for (char** variable = environ; *variable; ++variable)
    if (!std::string_view(*variable).starts_with("NACRE_HOME=")) variables.emplace_back(*variable);
  variables.push_back("NACRE_HOME=" + home.folder().string());
  SpawnSetup setup;
  std::vector<std::string> words{"nacre", std::string(kVmProcess), vm.name()};
  if (!snapshot.empty()) words.push_back(snapshot);
  const pid_t child = NACRE_TRY(setup.Spawn(writer.get(), vm.log(), std::move(words), std::move(variables)));
  writer.Close();
  std::string said;
  char bytes[4096];
  for (ssize_t got = 1; got != 0;) {
    got = read(reader.get(), bytes, sizeof(bytes));
    if (got < 0 && errno != EINTR) break;
    if (got > 0) said.append(bytes, static_cast<size_t>(got));
  }
  if (said.starts_with(kRuns)) return {};
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (!said.empty()) return Fail("{}", said);
  const std::string how = WIFSIGNALED(status) ? fmt::format("was ended by signal {}", WTERMSIG(status))
                                              : fmt::format("ended with status {}", WEXITSTATUS(status));
  return Fail("{}: its process {} before the guest ran; the last lines of {}:\n{}", vm.name(), how, vm.log().string(),
              LastLines(vm.log()));
}

}  // namespace nacre::cli
