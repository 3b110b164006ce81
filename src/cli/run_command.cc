// `nacre run`: options to a machine, signals to orderly stops, results to exit statuses.

#include <fmt/core.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <atomic>
#include <optional>
#include <thread>

#include "base/fd.h"
#include "base/log.h"
#include "cli/commands.h"
#include "cli/engine_tour.h"
#include "cli/paths.h"
#include "cli/run_options.h"
#include "cli/terminal.h"
#include "control/server.h"
#include "engine/kvm/kvm_model.h"
#include "machine/machine.h"

namespace nacre::cli {

namespace {

using machine::EndReason;
using machine::Machine;

void PassTerminalSize(Machine& machine) {
  if (const auto size = RawTerminal::CurrentSize()) machine.ResizeConsole(size->columns, size->rows);
}

/// Turns SIGINT, SIGTERM and SIGHUP into Machine::Stop while it lives, and follows the terminal (SIGCONT, SIGWINCH).
/// The signals stay blocked afterwards: the process is about to exit, and restoring the terminal must not be
/// interrupted.
class StopSignals {
 public:
  /// Before any thread is made, so that all inherit the mask.
  static void Block() {
    const sigset_t set = Set();
    pthread_sigmask(SIG_BLOCK, &set, nullptr);
    signal(SIGPIPE, SIG_IGN);
  }

  static Result<std::unique_ptr<StopSignals>> Watch(Machine& machine) {
    std::unique_ptr<StopSignals> watch(new StopSignals(machine));
    const sigset_t set = Set();
    watch->signals_ = Fd(signalfd(-1, &set, SFD_CLOEXEC));
    watch->end_ = Fd(eventfd(0, EFD_CLOEXEC));
    if (!watch->signals_.valid() || !watch->end_.valid()) return FailErrno("signals");
    watch->thread_ = std::thread([self = watch.get()] { self->Loop(); });
    return watch;
  }
  ~StopSignals() {
    if (!thread_.joinable()) return;
    eventfd_write(end_.get(), 1);
    thread_.join();
  }
  /// The signal that asked to stop, 0 if none did.
  int received() const { return received_; }

 private:
  explicit StopSignals(Machine& machine) : machine_(machine) {}
  static sigset_t Set() {
    sigset_t set;
    sigemptyset(&set);
    for (const int number : {SIGINT, SIGTERM, SIGHUP, SIGCONT, SIGWINCH}) sigaddset(&set, number);
    return set;
  }
  void Loop() {
    for (;;) {
      pollfd fds[] = {{signals_.get(), POLLIN, 0}, {end_.get(), POLLIN, 0}};
      if (poll(fds, 2, -1) < 0) continue;
      if (fds[1].revents) return;
      signalfd_siginfo info{};
      if (read(signals_.get(), &info, sizeof(info)) != sizeof(info)) continue;
      if (info.ssi_signo == SIGCONT) {
        RawTerminal::Reenter();
        continue;
      }
      if (info.ssi_signo == SIGWINCH) {
        PassTerminalSize(machine_);
        continue;
      }
      received_ = static_cast<int>(info.ssi_signo);
      machine_.Stop();
    }
  }

  Machine& machine_;
  Fd signals_, end_;
  std::atomic<int> received_ = 0;
  std::thread thread_;
};

int UsageError(const Error& error) {
  fmt::print(stderr, "nacre: {}\nTry `nacre run --help`.\n", error.message);
  return kExitUsage;
}

int Failed(const Error& error) {
  fmt::print(stderr, "nacre: {}\n", error.message);
  return kExitFailed;
}

/// Who asks for KVM by name is told before anything else what it lacks here.
Status CheckKvm(const machine::MachineConfig& config) {
  const auto model = engine::kvm::ModelOnKvm(config.cpu_model, {.cpu_count = config.cpu_count});
  if (!model) return Context(model.error(), "--engine kvm");
  return {};
}

Status UseDefaultGuest(RunOptions& options) {
  const PreparedGuest guest = NACRE_TRY(DefaultGuest());
  machine::MachineConfig& config = options.machine;
  config.kernel = guest.kernel;
  config.initrds = {guest.initrd};
  std::string line = guest.command_line;
  // The guest's own line has its shell on the serial port; the last console= gets it.
  if (config.console.kind == machine::SerialKind::kStdio) line += " console=hvc0";
  if (!config.command_line.empty()) line += " " + config.command_line;
  config.command_line = std::move(line);
  if (options.guest_command.empty()) return {};
  std::string command;
  for (const std::string& word : options.guest_command) command += (command.empty() ? "" : " ") + word;
  config.command_line += fmt::format(" nacre.exec=\"{}\"", command);
  return {};
}

int ReportEnd(const machine::RunResult& result, int signal_number) {
  switch (result.reason) {
    case EndReason::kPowerOff:
    case EndReason::kReset:
      return kExitDone;
    case EndReason::kDebugExit:
      return static_cast<int>(((result.debug_exit_value << 1) | 1) & 0xff);
    case EndReason::kLeft:
      return signal_number ? 128 + signal_number : kExitDone;
    case EndReason::kGuestCrash:
      fmt::print(stderr, "nacre: the guest crashed: {}", result.detail);
      break;
    case EndReason::kEngineError:
      fmt::print(stderr, "nacre: the engine stopped: {}", result.detail);
      break;
    case EndReason::kTimeout:
      fmt::print(stderr, "nacre: the time given by --timeout is over\n");
      return kExitTimeout;
  }
  return kExitGuestCrashed;
}

/// A raw terminal needs the carriage return said.
void LogToRawTerminal(LogLevel, std::string_view text) { fmt::print(stderr, "\r\nnacre: {}\r\n", text); }

Result<int> RunMachine(const RunOptions& options) {
  StopSignals::Block();
  RawTerminal::InstallHandlers();
  const std::unique_ptr<Machine> machine = NACRE_TRY(Machine::Create(options.machine));
  const auto signals = NACRE_TRY(StopSignals::Watch(*machine));
  control::MachineVm vm(*machine, VmNameOf(options.control), NACRE_VERSION);
  std::unique_ptr<control::Server> server;
  if (!options.control.empty()) server = NACRE_TRY(control::Server::Create(options.control, vm));
  std::unique_ptr<RawTerminal> terminal;
  if (options.machine.serial.terminal || options.machine.console.terminal) terminal = NACRE_TRY(RawTerminal::Enter());
  if (terminal) SetLogSink(LogToRawTerminal);
  PassTerminalSize(*machine);
  std::optional<EngineTour> tour;
  if (!options.tour.stops.empty()) tour.emplace(*machine, options.tour);
  const machine::RunResult result = machine->Run();
  server.reset();
  if (tour) tour->Stop();
  SetLogSink({});
  terminal.reset();
  const int status = ReportEnd(result, signals->received());
  if (options.engine_stats) fmt::print(stderr, "{}", machine->StatisticsText());
  if (tour) fmt::print(stderr, "{}", tour->Report());
  return status;
}

}  // namespace

int RunCommand(std::span<const std::string_view> words) {
  auto options = ParseRun(words);
  if (!options) return UsageError(options.error());
  if (options->help) {
    fmt::print("{}", RunHelp());
    return kExitDone;
  }
  for (const std::string& word : options->guest_command)
    if (word.find('"') != std::string::npos)
      return UsageError({"the guest command may not hold a double quote: " + word, 0});
  if (options->machine.engine == machine::EngineKind::kKvm) {
    if (const Status status = CheckKvm(options->machine); !status) {
      fmt::print(stderr, "nacre: {}\n", status.error().message);
      return kExitUsage;
    }
  }
  machine::SerialConfig& stream =
      options->machine.console.kind == machine::SerialKind::kStdio ? options->machine.console : options->machine.serial;
  if (stream.kind == machine::SerialKind::kStdio && RawTerminal::IsTerminal()) {
    // A job in the background may write to its terminal, but would be stopped if it read from it.
    stream.terminal = RawTerminal::IsForeground();
    stream.input = stream.terminal;
  }
  if (options->default_guest) {
    if (const Status status = UseDefaultGuest(*options); !status) return Failed(status.error());
  }
  const auto status = RunMachine(*options);
  return status ? *status : Failed(status.error());
}

}  // namespace nacre::cli
