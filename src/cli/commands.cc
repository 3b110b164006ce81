#include "cli/commands.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>

#include "base/nearest.h"
#include "cli/control_commands.h"
#include "cli/cp_command.h"
#include "cli/disk_command.h"
#include "cli/doctor.h"
#include "cli/doctor_json.h"
#include "cli/exec_command.h"
#include "cli/image_command.h"
#include "cli/run_options.h"
#include "cli/vm_commands.h"

namespace nacre::cli {

namespace {

constexpr fmt::format_string<std::string_view> kHelp =
    "Nacre runs virtual machines.\n\n"
    "  nacre run [options]     run a virtual machine in the foreground (nacre run --help)\n"
    "{}"
    "  nacre disk ...          make, describe, check, resize, convert and commit disk images (nacre disk --help)\n"
    "  nacre engine VM [ENGINE]  the engine of a running VM, or go on with jit, kvm or interp\n"
    "  nacre pause VM          a running VM stands still\n"
    "  nacre resume VM         ... and goes on\n"
    "  nacre screenshot VM FILE.png  a running VM's screen as a picture\n"
    "  nacre type VM TEXT      type a text on a running VM's keyboard\n"
    "  nacre key VM KEYS...    press keys, such as ctrl-alt-del (nacre key --list)\n"
    "  nacre exec VM -- COMMAND  run a program in a running VM (nacre exec --help)\n"
    "  nacre cp FROM TO        copy files into a running VM or out of it, as VM:PATH (nacre cp --help)\n"
    "  nacre image ...         build, list, inspect, verify and remove images (nacre image --help)\n"
    "  nacre control VM METHOD [JSON]  any method of a running VM's control socket (nacre control --help)\n"
    "  nacre doctor            what this host offers, and which engine Nacre takes\n"
    "  nacre doctor --vms      what is wrong with VMs; --repair removes what a crash left\n"
    "  nacre help              this text\n"
    "  nacre --version         the version\n";

constexpr std::array<std::string_view, 31> kCommands{
    "image",   "run",    "snapshot", "restore", "disk",       "doctor", "engine", "pause",
    "resume",  "create", "start",    "stop",    "kill",       "rm",     "ls",     "inspect",
    "exec",    "logs",   "console",  "stats",   "screenshot", "type",   "key",    "cp",
    "control", "clone",  "help",     "version", "--version",  "--help", "-h"};

struct LaterCommand {
  std::string_view name, instead;
};
constexpr std::string_view kUseRun = "use `nacre run` with files of your own";
constexpr std::array kLaterCommands = std::to_array<LaterCommand>({
    {"export", kUseRun},
    {"import", kUseRun},
    {"migrate", kUseRun},
    {"serve", kUseRun},
    {"bench", "use `make bench` in the source folder"},
});

std::string HelpText() { return fmt::format(kHelp, VmCommandHelp()); }

int UnknownCommand(std::string_view name) {
  const auto later = std::ranges::find(kLaterCommands, name, &LaterCommand::name);
  if (later != kLaterCommands.end()) {
    fmt::print(stderr, "nacre: `nacre {}` is not there yet; {}\n", name, later->instead);
    return kExitUsage;
  }
  const std::string_view near = Nearest(name, kCommands);
  fmt::print(stderr, "nacre: unknown command '{}'{}\nTry `nacre help`.\n", name,
             near.empty() ? "" : fmt::format("; did you mean '{}'?", near));
  return kExitUsage;
}

}  // namespace

int Main(std::span<const std::string_view> words) {
  if (words.empty()) {
    fmt::print(stderr, "nacre: say what to do\n{}", HelpText());
    return kExitUsage;
  }
  const std::string_view command = words[0];
  if (command == "run") return RunCommand(words.subspan(1));
  if (command == "exec") return ExecCommand(words.subspan(1));
  if (command == "cp") return CpCommand(words.subspan(1));
  if (command == "image") return ImageCommand(words.subspan(1));
  if (const auto status = ControlCommand(words)) return *status;
  if (const auto status = VmCommand(words)) return *status;
  if (command == "doctor" && std::ranges::find(words, "--vms") != words.end()) return VmDoctor(words.subspan(1));
  if (command == "disk") return DiskCommand(words.subspan(1));
  const bool help = command == "help" || command == "--help" || command == "-h";
  const bool version = command == "--version" || command == "version" || command == "-V";
  if (!help && !version && command != "doctor") return UnknownCommand(command);
  if (command == "help" && words.size() == 2 && words[1] == "run") {
    fmt::print("{}", RunHelp());
    return kExitDone;
  }
  if (command == "doctor" && words.size() == 2 && words[1] == "--json") {
    fmt::print("{}", DoctorJson(engine::kvm::ExamineKvm("default", {})));
    return kExitDone;
  }
  const bool wants_help = words.size() == 2 && (words[1] == "--help" || words[1] == "-h");
  if (words.size() > 1 && !wants_help) {
    fmt::print(stderr, "nacre: `nacre {}` takes no '{}'\nTry `nacre help`.\n", command, words[1]);
    return kExitUsage;
  }
  if (version) {
    fmt::print("nacre {}\n", NACRE_VERSION);
  } else if (help || wants_help) {
    fmt::print("{}", HelpText());
  } else {
    fmt::print("{}", Doctor());
  }
  return kExitDone;
}

}  // namespace nacre::cli
