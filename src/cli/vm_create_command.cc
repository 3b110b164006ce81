// `nacre create`: the options of `nacre run` to a VM's directory.

#include <fmt/core.h>

#include <algorithm>
#include <filesystem>
#include <utility>

#include "base/size_text.h"
#include "cli/commands.h"
#include "cli/run_options.h"
#include "cli/run_setup.h"
#include "cli/vm_commands_parts.h"
#include "lifecycle/vm_create.h"
#include "lifecycle/vm_image.h"
#include "storage/image.h"

namespace nacre::cli {

namespace {

namespace fs = std::filesystem;
using lifecycle::NewVm;
using lifecycle::RestartPolicy;
using lifecycle::VmConfig;

/// What `create` takes beside the options of `nacre run`.
struct OwnOptions {
  std::string image;
  uint64_t disk_bytes = 0;
  RestartPolicy restart = RestartPolicy::kNo;
  bool autostart = false;
};

Status SetDiskSize(OwnOptions& own, std::string_view value) {
  constexpr uint64_t kMost = uint64_t{1} << 46;
  const auto size = ParseSize(value);
  if (!size || *size == 0 || *size % 512 != 0 || *size > kMost)
    return Fail("--disk-size {}: give a size up to 64T, for example --disk-size 10G", value);
  own.disk_bytes = *size;
  return {};
}

Status SetRestart(OwnOptions& own, std::string_view value) {
  if (value == "no")
    own.restart = RestartPolicy::kNo;
  else if (value == "on-failure")
    own.restart = RestartPolicy::kOnFailure;
  else if (value == "always")
    own.restart = RestartPolicy::kAlways;
  else
    return Fail("--restart {}: choose no, on-failure or always", value);
  return {};
}

/// Takes its own options out of `words`.
Result<OwnOptions> TakeOwn(std::vector<std::string_view>& words) {
  OwnOptions own;
  std::vector<std::string_view> rest;
  for (size_t i = 0; i < words.size(); ++i) {
    const std::string_view word = words[i];
    const size_t equals = word.find('=');
    const std::string_view name = word.substr(0, equals);
    if (word == "--") {
      rest.insert(rest.end(), words.begin() + static_cast<std::ptrdiff_t>(i), words.end());
      break;
    }
    if (word == "--autostart") {
      own.autostart = true;
    } else if (name == "--disk-size" || name == "--restart" || name == "--image") {
      if (equals == std::string_view::npos && i + 1 == words.size()) return Fail("{} needs a value", name);
      const std::string_view value = equals == std::string_view::npos ? words[++i] : word.substr(equals + 1);
      if (name == "--image")
        own.image = value;
      else
        NACRE_TRY_STATUS(name == "--restart" ? SetRestart(own, value) : SetDiskSize(own, value));
    } else {
      rest.push_back(word);
    }
  }
  words = std::move(rest);
  return own;
}

/// The text of --display without its password, which has a key of its own.
void SetDisplay(const RunOptions& options, VmConfig& config) {
  constexpr std::string_view kPassword = ",password=", kUnix = "vnc:unix:";
  config.show = options.display;
  std::error_code error;
  if (const size_t at = config.show.find(kPassword); at != std::string::npos) {
    config.password_file = fs::absolute(config.show.substr(at + kPassword.size()), error).string();
    config.show.resize(at);
  }
  if (config.show.starts_with(kUnix))
    config.show = std::string(kUnix) + fs::absolute(config.show.substr(kUnix.size()), error).string();
}

Result<NewVm> MakeConfig(const lifecycle::Home& home, RunOptions options, const OwnOptions& own) {
  if (!own.image.empty()) {
    const lifecycle::Image image = NACRE_TRY(lifecycle::ReadImage(home, own.image));
    NACRE_TRY_STATUS(UseImage(image, options));
  }
  if (options.default_guest) NACRE_TRY_STATUS(UseDefaultGuest(options));
  // The VM's directory may move, so nothing in it is relative to where the user stands.
  std::error_code error;
  const fs::path here = fs::current_path(error);
  if (error) return Fail("the working directory: {}", error.message());
  lifecycle::MakePathsAbsolute(options.machine, here);
  NewVm vm;
  vm.name = options.names[0];
  vm.disk_bytes = own.disk_bytes;
  VmConfig& config = vm.config;
  config.image = own.image;
  config.restart = own.restart;
  config.autostart = own.autostart;
  SetDisplay(options, config);
  config.machine = std::move(options.machine);
  return vm;
}

}  // namespace

int CreateCommand(std::span<const std::string_view> words) {
  std::vector<std::string_view> rest(words.begin(), words.end());
  auto own = TakeOwn(rest);
  if (!own) return VmWrongUsage("create", own.error().message);
  auto options = ParseRun(rest);
  if (!options) return VmWrongUsage("create", options.error().message);
  if (options->names.empty() || options->names.size() > 2)
    return VmWrongUsage("create", "give NAME [--image IMAGE] [options]");
  if (options->names.size() == 2 && !std::exchange(own->image, options->names[1]).empty())
    return VmWrongUsage("create", "an image is named twice");
  for (const std::string_view option : options->given)
    if (IsOfOneRun(option))
      return VmWrongUsage("create",
                          fmt::format("{} concerns one run: give it to `nacre run {}`", option, options->names[0]));
  if (const Status name = lifecycle::CheckName(options->names[0]); !name)
    return VmWrongUsage("create", name.error().message);
  const auto home = lifecycle::Home::Find();
  if (!home) return VmFailed(home.error());
  auto vm = MakeConfig(*home, std::move(*options), *own);
  if (!vm) return VmFailed(vm.error());
  const std::string name = vm->name;
  if (const Status created = lifecycle::CreateVm(*home, std::move(*vm)); !created) return VmFailed(created.error());
  fmt::print("{}\n", name);
  return kExitDone;
}

std::string CreateHelp() {
  return "Usage: nacre create NAME [[--image] IMAGE] [options of `nacre run`] [--disk-size SIZE] [--restart "
         "no|on-failure|always]\n"
         "                    [--autostart]\n\n"
         "Makes a VM: the directory vms/NAME in NACRE_HOME, with vm.toml and disks of its own. The files of --disk "
         "are\n"
         "left as they are, and so is the image's (nacre image ls). --disk-size is the first disk's size, or makes an "
         "empty one.\n";
}

}  // namespace nacre::cli
