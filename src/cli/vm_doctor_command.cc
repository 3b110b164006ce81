// `nacre doctor --vms`.

#include <fmt/core.h>

#include "cli/commands.h"
#include "cli/vm_commands.h"
#include "cli/vm_commands_parts.h"
#include "lifecycle/vm_doctor.h"

namespace nacre::cli {

int VmDoctor(std::span<const std::string_view> words) {
  bool repair = false, json = false;
  for (const std::string_view word : words) {
    if (word == "--vms") continue;
    if (word == "--repair")
      repair = true;
    else if (word == "--json")
      json = true;
    else
      return VmWrongUsage("doctor", fmt::format("unknown option {}; give --vms [--repair] [--json]", word));
  }
  const auto home = lifecycle::Home::Find();
  if (!home) return VmFailed(home.error());
  control::Json list = control::Json::array();
  size_t mendable = 0;
  bool left = false;
  for (const lifecycle::VmProblem& problem : lifecycle::ExamineVms(*home, repair)) {
    left |= !problem.mended;
    mendable += problem.mendable && !problem.mended;
    list.push_back({{"where", problem.where},
                    {"what", problem.what},
                    {"repairable", problem.mendable},
                    {"repaired", problem.mended}});
    if (!json) fmt::print("{}: {}{}\n", problem.where, problem.what, problem.mended ? ": mended" : "");
  }
  if (json)
    fmt::print("{}\n", list.dump(2, ' ', false, control::Json::error_handler_t::replace));
  else if (mendable != 0 && !repair)
    fmt::print("`nacre doctor --vms --repair` mends {}\n",
               mendable == 1 ? "one of these" : fmt::format("{} of these", mendable));
  else if (list.empty())
    fmt::print("{} VMs in {}: all is well\n", home->VmNames().size(), home->vms().string());
  return left ? kExitFailed : kExitDone;
}

}  // namespace nacre::cli
