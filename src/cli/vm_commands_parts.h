#pragma once
// The parts of vm_commands.cc: the words of one command, and the commands that have files of their own. One thread.

#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "control/json_rpc.h"
#include "lifecycle/vm_home.h"

namespace nacre::cli {

struct VmWords {
  std::vector<std::string> plain;
  std::map<std::string_view, std::string, std::less<>> values;  ///< of options, "" for one without a value
  bool has(std::string_view option) const { return values.contains(option); }
  /// "" where the option was not given.
  std::string Value(std::string_view option) const {
    const auto found = values.find(option);
    return found == values.end() ? std::string() : found->second;
  }
};

int VmFailed(const Error& error);
int VmWrongUsage(std::string_view command, std::string_view what);

/// What a VM's process says of a method; nothing: it does not answer.
Result<control::Json> AskVm(const lifecycle::VmPaths& vm, const std::string& method, int64_t patience_ms);

/// Ends it at once: as if the plug were pulled, and where the process does not come to that, by SIGKILL.
Status KillVm(const lifecycle::VmPaths& vm);

/// `nacre create`; the words behind it.
int CreateCommand(std::span<const std::string_view> words);
std::string CreateHelp();

// Each takes what its entry in the table of vm_commands.cc allows.
int StartCommand(const VmWords& words);
int StopCommand(const VmWords& words);
int KillCommand(const VmWords& words);
int ConsoleCommand(const VmWords& words);
int LogsCommand(const VmWords& words);
int ListCommand(const VmWords& words);
int SnapshotCommand(const VmWords& words);
int RestoreCommand(const VmWords& words);
int InspectCommand(const VmWords& words);
int StatsCommand(const VmWords& words);
int CloneCommand(const VmWords& words);
int ExportCommand(const VmWords& words);
int ImportCommand(const VmWords& words);

/// Attaches this terminal, or pipes, to the console of a running VM until that ends or the user leaves.
int AttachConsole(const lifecycle::VmPaths& vm);

}  // namespace nacre::cli
