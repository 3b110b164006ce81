// `nacre run`: options to a machine, signals to orderly stops, results to exit statuses.

#include <fmt/core.h>

#include <algorithm>
#include <optional>

#include "base/log.h"
#include "cli/commands.h"
#include "cli/engine_tour.h"
#include "cli/paths.h"
#include "cli/run_options.h"
#include "cli/run_setup.h"
#include "cli/stop_signals.h"
#include "cli/terminal.h"
#include "control/server.h"
#include "lifecycle/vm_config.h"
#include "lifecycle/vm_home.h"
#include "lifecycle/vm_image.h"
#include "lifecycle/vm_lock.h"
#include "lifecycle/vm_status.h"
#include "lifecycle/vm_toml.h"
#include "machine/machine.h"

namespace nacre::cli {

namespace {

using machine::Machine;

int UsageError(const Error& error) {
  fmt::print(stderr, "nacre: {}\nTry `nacre run --help`.\n", error.message);
  return kExitUsage;
}

int Failed(const Error& error) {
  fmt::print(stderr, "nacre: {}\n", error.message);
  return kExitFailed;
}

/// A raw terminal needs the carriage return said.
void LogToRawTerminal(LogLevel, std::string_view text) { fmt::print(stderr, "\r\nnacre: {}\r\n", text); }

void UseTerminal(machine::MachineConfig& config) {
  machine::SerialConfig& stream = config.console.kind == machine::SerialKind::kStdio ? config.console : config.serial;
  if (stream.kind != machine::SerialKind::kStdio || !RawTerminal::IsTerminal()) return;
  // A job in the background may write to its terminal, but would be stopped if it read from it.
  stream.terminal = RawTerminal::IsForeground();
  stream.input = stream.terminal;
}

/// `vm`: whose end is written down; null: nobody's.
Result<int> RunMachine(const RunOptions& options, const lifecycle::VmPaths* vm) {
  StopSignals::Block();
  RawTerminal::InstallHandlers();
  const std::unique_ptr<Machine> machine = NACRE_TRY(Machine::Create(options.machine));
  const auto signals = NACRE_TRY(StopSignals::Watch(*machine));
  control::MachineVm controlled(*machine, VmNameOf(options.control), NACRE_VERSION);
  std::unique_ptr<control::Server> server;
  if (!options.control.empty()) server = NACRE_TRY(control::Server::Create(options.control, controlled));
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
  const Ending ending = EndingOf(result, signals->received());
  if (!ending.text.empty()) fmt::print(stderr, "nacre: {}", ending.text);
  if (vm)
    static_cast<void>(lifecycle::WriteEnd(
        *vm, {std::string(lifecycle::NameOf(result.reason)), ending.text, ending.status, lifecycle::TimeText()}));
  if (options.engine_stats) fmt::print(stderr, "{}", machine->StatisticsText());
  if (tour) fmt::print(stderr, "{}", tour->Report());
  return ending.status;
}

/// Whose lock is held until the end.
Result<int> RunVm(const RunOptions& options, const lifecycle::VmPaths& vm) {
  auto lock = lifecycle::VmLock::Take(vm.lock());
  if (!lock) return Context(lock.error(), "{} runs already, or is being changed", vm.name());
  lifecycle::ForgetEnd(vm);
  return RunMachine(options, &vm);
}

/// `nacre run IMAGE`: what it writes is gone at the end.
int RunImage(const lifecycle::Home& home, RunOptions options) {
  const auto image = lifecycle::ReadImage(home, options.names[0]);
  if (!image) return Failed(image.error());
  const size_t own_disks = options.machine.disks.size();
  if (const Status used = UseImage(*image, options); !used) return UsageError(used.error());
  machine::MachineConfig& machine = options.machine;
  if (machine.disks.size() > own_disks) machine.disks[0].snapshot = true;
  machine.command_line = lifecycle::WithName(std::move(machine.command_line), image->name);
  machine.guest_agent = options.guest_agent.value_or(!options.control.empty());
  UseTerminal(machine);
  const auto status = RunMachine(options, nullptr);
  return status ? *status : Failed(status.error());
}

/// `nacre run NAME`: of a VM, else of an image.
int RunNamed(RunOptions options) {
  const std::string& name = options.names[0];
  if (name.ends_with(".wasm")) return UsageError({name + ": WebAssembly programs are not there yet", 0});
  const auto home = lifecycle::Home::Find();
  if (!home) return Failed(home.error());
  const auto images = home->ImageNames();
  if (!home->HasVm(name) && std::ranges::find(images, name) != images.end()) return RunImage(*home, std::move(options));
  const auto vm = home->FindVm(name);
  if (!vm) return Failed(vm.error());
  const auto config = lifecycle::ReadVmToml(vm->toml().string());
  if (!config) return Failed(config.error());
  auto machine = lifecycle::MachineOf(*config, vm->folder);
  if (!machine) return Failed(machine.error());
  auto whole = OverVm(std::move(options), std::move(*machine));
  if (!whole) return UsageError(whole.error());
  if (whole->control.empty()) whole->control = vm->control().string();
  UseTerminal(whole->machine);
  const auto status = RunVm(*whole, *vm);
  return status ? *status : Failed(status.error());
}

}  // namespace

int RunCommand(std::span<const std::string_view> words) {
  auto options = ParseRun(words);
  if (!options) return UsageError(options.error());
  if (options->help) {
    fmt::print("{}", RunHelp());
    return kExitDone;
  }
  if (options->names.size() > 1)
    return UsageError(
        {fmt::format("{}: one VM runs at a time; a command for the default guest comes behind --", options->names[1]),
         0});
  if (!options->names.empty()) return RunNamed(std::move(*options));
  for (const std::string& word : options->guest_command)
    if (word.find('"') != std::string::npos)
      return UsageError({"the guest command may not hold a double quote: " + word, 0});
  if (!options->machine.restore.empty()) {
    auto saved = machine::ReadConfigToRun(options->machine.restore);
    if (!saved) return Failed(saved.error());
    if (const Status status = UseSavedConfig(*options, std::move(*saved)); !status) return UsageError(status.error());
  } else if (options->machine.engine == machine::EngineKind::kKvm) {
    if (const Status status = CheckKvm(options->machine); !status) {
      fmt::print(stderr, "nacre: {}\n", status.error().message);
      return kExitUsage;
    }
  }
  UseTerminal(options->machine);
  // Without a control socket nobody can ask it.
  if (options->machine.restore.empty())
    options->machine.guest_agent = options->guest_agent.value_or(!options->control.empty());
  if (options->default_guest) {
    if (const Status status = UseDefaultGuest(*options); !status) return Failed(status.error());
  }
  const auto status = RunMachine(*options, nullptr);
  return status ? *status : Failed(status.error());
}

}  // namespace nacre::cli
