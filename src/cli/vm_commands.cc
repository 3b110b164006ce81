#include "cli/vm_commands.h"

#include <fmt/core.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <string>

#include "base/nearest.h"
#include "cli/commands.h"
#include "cli/vm_commands_parts.h"
#include "cli/vm_process.h"
#include "lifecycle/vm_create.h"
#include "lifecycle/vm_lock.h"

namespace nacre::cli {

namespace {

struct VmOption {
  std::string_view name;
  bool has_value = false;
};

int RemoveCommand(const VmWords& words);

struct VmWord {
  std::string_view name, usage, help;
  size_t least, most;  ///< plain words
  std::span<const VmOption> options;
  int (*run)(const VmWords& words);
};

constexpr size_t kMany = 1000;
constexpr std::array kStart = std::to_array<VmOption>({{"--attach"}, {"--autostart"}});
constexpr std::array kStop = std::to_array<VmOption>({{"--timeout", true}, {"--force"}, {"--all"}});
constexpr std::array kForce = std::to_array<VmOption>({{"--force"}});
constexpr std::array kJson = std::to_array<VmOption>({{"--json"}});
constexpr std::array kRestore = std::to_array<VmOption>({{"--force"}, {"--attach"}});
constexpr std::array kClone = std::to_array<VmOption>({{"--count", true}, {"--live"}});
constexpr std::array kExport = std::to_array<VmOption>({{"--dir", true}});
constexpr std::array kImport =
    std::to_array<VmOption>({{"--memory", true}, {"--cpus", true}, {"--firmware", true}, {"--bus", true}});
constexpr std::array kLogs = std::to_array<VmOption>({{"-f"}, {"--follow"}, {"--messages"}});

constexpr std::array kWords = std::to_array<VmWord>({
    {"start", "VM... [--attach] | --autostart",
     "Starts VMs in the background and waits until they run. --attach: then as `nacre console`.\n"
     "--autostart: all whose vm.toml says autostart = true.",
     0, kMany, kStart, StartCommand},
    {"stop", "VM... | --all [--timeout TIME] [--force]",
     "Presses the power button and waits until the guest has shut down, at most TIME (60s). With --force a VM that "
     "still\n"
     "runs then is ended as by `nacre kill`.",
     0, kMany, kStop, StopCommand},
    {"kill",
     "VM...",
     "Ends VMs at once, as if their plug were pulled; disks are written out if that works.",
     1,
     kMany,
     {},
     KillCommand},
    {"rm", "VM... [--force]", "Removes VMs with their disks and snapshots. --force: running ones too.", 1, kMany,
     kForce, RemoveCommand},
    {"clone", "VM NEW [--count N] [--live]",
     "Makes a VM that goes on from where a stopped one is; at once, for both share what they have in common.\n"
     "--live: of a running one, memory and all; both run then. --count: N of them, NEW-1 to NEW-N.",
     2, 2, kClone, CloneCommand},
    {"export", "VM FILE.ova | VM --dir DIRECTORY",
     "Writes a stopped VM into an OVA package, as VirtualBox and VMware read it; its disks must start by firmware.\n"
     "--dir: copies the VM's directory with all that its disks stand on, for another host.",
     1, 2, kExport, ExportCommand},
    {"import", "FILE|DIRECTORY [NAME] [--memory SIZE] [--cpus N] [--firmware bios|uefi] [--bus virtio|ide|sata]",
     "Makes a VM of an OVA or OVF package, of a disk image (qcow2, raw, VMDK, VDI, VHDX, VHD), or of a directory that\n"
     "`nacre export --dir` made, and prints its name. The options override what the package says.",
     1, 2, kImport, ImportCommand},
    {"ls", "[--json]", "Lists the VMs.", 0, 0, kJson, ListCommand},
    {"inspect", "VM [--json]", "Tells all of a VM.", 1, 1, kJson, InspectCommand},
    {"logs", "VM [-f] [--messages]",
     "Prints what the guest printed on its console. -f: and goes on as long as the VM runs. --messages: what Nacre "
     "said\n"
     "instead.",
     1, 1, kLogs, LogsCommand},
    {"console",
     "VM",
     "Attaches this terminal to the console of a running VM. Ctrl-] leaves; the VM goes on.",
     1,
     1,
     {},
     ConsoleCommand},
    {"snapshot", "VM [NAME] | ls VM | rm VM NAME... | verify VM NAME... [--json]",
     "Saves a running VM under a name; it goes on. Without a name, or with ls: lists a VM's snapshots. rm removes "
     "some, and\n"
     "those that stand on them stay whole. verify reads all of one.",
     1, kMany, kJson, SnapshotCommand},
    {"restore", "VM NAME [--force] [--attach]",
     "Starts a VM in the background from a snapshot of it. --force: one that runs is ended first. --attach: then as\n"
     "`nacre console`.",
     2, 2, kRestore, RestoreCommand},
    {"stats", "[VM...] [--json]", "What running VMs cost the host: processor time, memory, disk.", 0, kMany, kJson,
     StatsCommand},
});

int RemoveCommand(const VmWords& words) {
  const auto home = lifecycle::Home::Find();
  if (!home) return VmFailed(home.error());
  int status = kExitDone;
  for (const std::string& name : words.plain) {
    const auto vm = home->FindVm(name);
    Status done = vm ? Status() : std::unexpected(vm.error());
    if (done && words.has("--force") && lifecycle::HolderOf(vm->lock())) done = KillVm(*vm);
    if (done) done = lifecycle::RemoveVm(*home, *vm);
    if (!done) status = VmFailed(done.error());
  }
  return status;
}

int Help(const VmWord& word) {
  fmt::print("Usage: nacre {} {}\n\n{}\n", word.name, word.usage, word.help);
  return kExitDone;
}

/// Sorts `given` into words and options; an error is wrong usage.
Result<VmWords> Sort(const VmWord& command, std::span<const std::string_view> given) {
  VmWords words;
  bool only_plain = false;  // behind "--"
  for (size_t i = 0; i < given.size(); ++i) {
    const std::string_view word = given[i];
    if (only_plain || !word.starts_with("-") || word == "-") {
      words.plain.emplace_back(word);
      continue;
    }
    if (word == "--") {
      only_plain = true;
      continue;
    }
    const size_t equals = word.find('=');
    const std::string_view name = word.substr(0, equals);
    const auto option = std::ranges::find(command.options, name, &VmOption::name);
    if (option == command.options.end()) {
      std::vector<std::string_view> names;
      for (const VmOption& known : command.options) names.push_back(known.name);
      const std::string_view near = Nearest(name, names);
      return Fail("unknown option {}{}", name, near.empty() ? "" : fmt::format("; did you mean {}?", near));
    }
    if (!option->has_value && equals != std::string_view::npos) return Fail("{} takes no value", name);
    std::string& value = words.values[option->name];
    if (!option->has_value) continue;
    if (equals != std::string_view::npos)
      value = word.substr(equals + 1);
    else if (i + 1 < given.size())
      value = given[++i];
    if (value.empty()) return Fail("{} needs a value", name);
  }
  if (words.plain.size() < command.least || words.plain.size() > command.most) return Fail("give {}", command.usage);
  return words;
}

}  // namespace

int VmFailed(const Error& error) {
  fmt::print(stderr, "nacre: {}\n", error.message);
  return kExitFailed;
}

int VmWrongUsage(std::string_view command, std::string_view what) {
  fmt::print(stderr, "nacre: `nacre {}`: {}\nTry `nacre {} --help`.\n", command, what, command);
  return kExitUsage;
}

std::string_view VmCommandHelp() {
  return "  nacre create NAME [IMAGE] [options]  make a VM, a directory, of the options of `nacre run`\n"
         "  nacre start VM...       start VMs in the background\n"
         "  nacre stop VM...        shut them down by their power button; kill ends at once\n"
         "  nacre ls                the VMs and what each does\n"
         "  nacre inspect VM        all of a VM\n"
         "  nacre console VM        the console of a running VM on this terminal\n"
         "  nacre snapshot VM NAME  save a running VM; ls, rm and verify besides\n"
         "  nacre restore VM NAME   start a VM from a snapshot\n"
         "  nacre logs VM           what a VM's guest has printed\n"
         "  nacre stats [VM...]     what running VMs cost\n"
         "  nacre rm VM...          remove VMs\n"
         "  nacre clone VM NEW      another VM that goes on from where a stopped one is\n"
         "  nacre export VM FILE    a VM as OVA package, or with --dir as a directory\n"
         "  nacre import FILE       a VM of such a package or directory, or of a disk image\n";
}

std::optional<int> VmCommand(std::span<const std::string_view> words) {
  if (words[0] == kVmProcess) return VmProcess(words.subspan(1));
  const auto wants_help = [&] {
    return std::ranges::any_of(words.subspan(1),
                               [](std::string_view word) { return word == "--help" || word == "-h"; });
  };
  if (words[0] == "create") {
    if (!wants_help()) return CreateCommand(words.subspan(1));
    fmt::print("{}", CreateHelp());
    return kExitDone;
  }
  const auto command = std::ranges::find(kWords, words[0], &VmWord::name);
  if (command == kWords.end()) return std::nullopt;
  if (wants_help()) return Help(*command);
  const auto sorted = Sort(*command, words.subspan(1));
  if (!sorted) return VmWrongUsage(command->name, sorted.error().message);
  return command->run(*sorted);
}

}  // namespace nacre::cli
