#include "cli/run_setup.h"

#include <algorithm>

#include "cli/commands.h"
#include "cli/paths.h"
#include "engine/kvm/kvm_model.h"
#include "storage/image.h"

namespace nacre::cli {

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
  for (const std::string& word : options.guest_command) {
    if (word.find('"') != std::string::npos) return Fail("the guest command may not hold a double quote: {}", word);
    command += (command.empty() ? "" : " ") + word;
  }
  config.command_line += fmt::format(" nacre.exec=\"{}\"", command);
  return {};
}

Status UseImage(const lifecycle::Image& image, RunOptions& options) {
  machine::MachineConfig& machine = options.machine;
  const auto given = [&](std::string_view name) {
    return std::ranges::find(options.given, name) != options.given.end();
  };
  if (given("--kernel") || given("--firmware"))
    return Fail("{}: the image says what starts; leave --kernel and --firmware out", image.name);
  if (!options.guest_command.empty()) return Fail("a guest command after -- works with the default guest only");
  machine.kernel = image.kernel.string();
  for (const auto& initrd : image.initrds) machine.initrds.push_back(initrd.string());
  if (!machine.kernel.empty())
    machine.command_line = image.append + (machine.command_line.empty() ? "" : " ") + machine.command_line;
  machine.firmware = image.firmware;
  if (image.memory_bytes && !given("--memory")) machine.memory_bytes = *image.memory_bytes;
  if (!image.disk.empty()) {
    machine::DiskConfig disk;
    disk.path = image.disk.string();
    disk.format = storage::FormatNamed(image.disk_format);
    machine.disks.insert(machine.disks.begin(), disk);
  }
  options.default_guest = false;
  return {};
}

Ending EndingOf(const machine::RunResult& result, int signal_number) {
  using machine::EndReason;
  switch (result.reason) {
    case EndReason::kPowerOff:
    case EndReason::kReset:
      return {kExitDone, ""};
    case EndReason::kDebugExit:
      return {static_cast<int>(((result.debug_exit_value << 1) | 1) & 0xff), ""};
    case EndReason::kLeft:
      return {signal_number ? 128 + signal_number : kExitDone, ""};
    case EndReason::kGuestCrash:
      return {kExitGuestCrashed, "the guest crashed: " + result.detail};
    case EndReason::kEngineError:
      return {kExitGuestCrashed, "the engine stopped: " + result.detail};
    case EndReason::kTimeout:
      break;
  }
  return {kExitTimeout, "the time given by --timeout is over\n"};
}

}  // namespace nacre::cli
