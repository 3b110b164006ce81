// `nacre clone`.

#include <fmt/core.h>

#include <charconv>

#include "cli/commands.h"
#include "cli/vm_commands_parts.h"
#include "lifecycle/vm_clone.h"

namespace nacre::cli {

int CloneCommand(const VmWords& words) {
  constexpr unsigned kMost = 1000;
  if (words.has("--live"))
    return VmWrongUsage("clone", "--live, of a running VM, is not there yet; `nacre stop` it first");
  std::vector<std::string> names{words.plain[1]};
  if (words.has("--count")) {
    const std::string value = words.Value("--count");
    unsigned count = 0;
    const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), count);
    if (error != std::errc() || end != value.data() + value.size() || count == 0 || count > kMost)
      return VmWrongUsage("clone", fmt::format("--count {}: give a number from 1 to {}", value, kMost));
    names.clear();
    for (unsigned i = 1; i <= count; ++i) names.push_back(fmt::format("{}-{}", words.plain[1], i));
  }
  const auto home = lifecycle::Home::Find();
  if (!home) return VmFailed(home.error());
  const auto vm = home->FindVm(words.plain[0]);
  if (!vm) return VmFailed(vm.error());
  const Status cloned =
      lifecycle::CloneVm(*home, *vm, names, [](const std::string& name) { fmt::print("{}\n", name); });
  return cloned ? kExitDone : VmFailed(cloned.error());
}

}  // namespace nacre::cli
