#pragma once
// `nacre run`'s options: words of the command line to a MachineConfig. No file is opened and nothing is started here.
// One thread. The contract is docs/cli.md.

#include <chrono>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "base/size_text.h"
#include "machine/machine_config.h"

namespace nacre::cli {

/// --switch-engine.
struct EngineTourOptions {
  std::vector<machine::EngineKind> stops;  ///< in turns; empty: no tour
  std::chrono::milliseconds every{100};    ///< from the end of one switch to the next
  uint64_t most = 0;                       ///< switches; 0: until the guest ends
};

struct RunOptions {
  machine::MachineConfig machine;
  bool serial_given = false;
  bool engine_stats = false;
  EngineTourOptions tour;
  std::string display = "none";         ///< the text of --display
  std::vector<std::string> names;       ///< words that are no options: of a VM or an image
  std::vector<std::string_view> given;  ///< the options that were there, as "--memory"
  std::string control;                  ///< the path of the control socket; empty: none
  std::optional<bool> guest_agent;      ///< nothing: with a control socket
  bool help = false;
  /// Neither kernel nor image: the guest that `make run` prepares.
  bool default_guest = false;
  /// After `--`: what the default guest runs instead of its shell.
  std::vector<std::string> guest_command;
};

/// `words`: what follows `nacre run`. An error is wrong usage (exit status 2), one line and perhaps a hint.
Result<RunOptions> ParseRun(std::span<const std::string_view> words);
/// What concerns one run and is not of the virtual hardware, so not in vm.toml.
bool IsOfOneRun(std::string_view option);
/// A VM's machine with what was given for this run of it; hardware is refused.
Result<RunOptions> OverVm(RunOptions given, machine::MachineConfig machine);
/// With --restore: `saved`, the snapshot's configuration, becomes the machine's, but for what the command line says
/// about how it is run. Fails for an option that the snapshot decides.
Status UseSavedConfig(RunOptions& options, machine::MachineConfig saved);
/// The text of `nacre run --help`.
std::string RunHelp();

/// "30", "1.5", "500ms", "2m", "1h" in milliseconds; a bare number is seconds.
Result<uint64_t> ParseDurationMs(std::string_view text);

}  // namespace nacre::cli
