// `nacre export` and `nacre import`.

#include <fmt/core.h>

#include <charconv>
#include <filesystem>

#include "base/size_text.h"
#include "cli/commands.h"
#include "cli/vm_commands_parts.h"
#include "cli/watched.h"
#include "lifecycle/vm_exchange.h"

namespace nacre::cli {

namespace {

namespace fs = std::filesystem;

lifecycle::ExchangeProgress ProgressOf(Watched& watched) {
  return [&watched](const std::string& what, uint64_t done, uint64_t total) { return watched.Show(what, done, total); };
}

void Tell(const lifecycle::Notes& notes) {
  for (const std::string& note : notes) fmt::print(stderr, "nacre: {}\n", note);
}

Result<lifecycle::ImportOptions> OptionsOf(const VmWords& words) {
  lifecycle::ImportOptions options;
  if (words.plain.size() > 1) options.name = words.plain[1];
  if (words.has("--memory")) {
    const auto size = ParseSize(words.Value("--memory"));
    if (!size) return Context(size.error(), "--memory");
    options.memory_bytes = *size;
  }
  if (words.has("--cpus")) {
    const std::string text = words.Value("--cpus");
    unsigned count = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), count);
    if (error != std::errc() || end != text.data() + text.size() || count < 1 || count > machine::kMaxCpus)
      return Fail("--cpus {}: give a number from 1 to {}", text, machine::kMaxCpus);
    options.cpu_count = count;
  }
  if (words.has("--firmware")) {
    options.firmware = words.Value("--firmware");
    if (options.firmware != "bios" && options.firmware != "uefi")
      return Fail("--firmware {}: choose bios or uefi", options.firmware);
  }
  if (words.has("--bus")) {
    const std::string bus = words.Value("--bus");
    if (bus == "virtio")
      options.bus = machine::DiskBus::kVirtio;
    else if (bus == "ide")
      options.bus = machine::DiskBus::kIde;
    else if (bus == "sata")
      options.bus = machine::DiskBus::kSata;
    else
      return Fail("--bus {}: choose virtio, ide or sata", bus);
  }
  return options;
}

}  // namespace

int ExportCommand(const VmWords& words) {
  const bool folder = words.has("--dir");
  if (words.plain.size() != (folder ? 1u : 2u)) return VmWrongUsage("export", "give a VM and one target");
  const fs::path target = folder ? words.Value("--dir") : words.plain[1];
  if (!folder && target.extension() != ".ova")
    return VmWrongUsage("export",
                        fmt::format("{}: an OVA package is called .ova; --dir makes a directory", target.string()));
  const auto home = lifecycle::Home::Find();
  if (!home) return VmFailed(home.error());
  const auto vm = home->FindVm(words.plain[0]);
  if (!vm) return VmFailed(vm.error());
  Result<lifecycle::Notes> done;
  {
    Watched watched;
    done = folder ? lifecycle::ExportFolder(*vm, target, ProgressOf(watched))
                  : lifecycle::ExportOva(*vm, target, ProgressOf(watched));
  }
  if (!done) return VmFailed(done.error());
  Tell(*done);
  return kExitDone;
}

int ImportCommand(const VmWords& words) {
  const auto options = OptionsOf(words);
  if (!options) return VmWrongUsage("import", options.error().message);
  const auto home = lifecycle::Home::Find();
  if (!home) return VmFailed(home.error());
  Result<lifecycle::Imported> done;
  {
    Watched watched;
    done = lifecycle::ImportVm(*home, words.plain[0], *options, ProgressOf(watched));
  }
  if (!done) return VmFailed(done.error());
  Tell(done->notes);
  fmt::print("{}\n", done->name);
  return kExitDone;
}

}  // namespace nacre::cli
