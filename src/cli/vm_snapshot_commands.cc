// `nacre snapshot`, `nacre restore`.

#include <fmt/core.h>

#include <chrono>
#include <ctime>

#include "cli/commands.h"
#include "cli/vm_commands_parts.h"
#include "cli/vm_process.h"
#include "control/client.h"
#include "lifecycle/snapshot_store.h"
#include "lifecycle/vm_files.h"
#include "lifecycle/vm_layers.h"
#include "lifecycle/vm_lock.h"

namespace nacre::cli {

namespace {

namespace fs = std::filesystem;
using control::Json;
using lifecycle::VmPaths;

/// Large memories are written to slow disks.
constexpr std::chrono::minutes kPatience{60};

Result<VmPaths> FindVm(const std::string& name) {
  const lifecycle::Home home = NACRE_TRY(lifecycle::Home::Find());
  return home.FindVm(name);
}

std::string TimeText(int64_t utc_ns) {
  const auto seconds = static_cast<time_t>(utc_ns / 1'000'000'000);
  tm parts{};
  char text[32] = "?";
  if (gmtime_r(&seconds, &parts)) strftime(text, sizeof(text), "%Y-%m-%d %H:%M:%S", &parts);
  return text;
}

std::string Mebibytes(uint64_t bytes) { return fmt::format("{:.1f} MiB", static_cast<double>(bytes) / (1 << 20)); }

int Take(const VmPaths& vm, const std::string& name, bool json) {
  if (const Status status = lifecycle::CheckName(name); !status) return VmFailed(status.error());
  if (!lifecycle::HolderOf(vm.lock()))
    return VmFailed({fmt::format("{} does not run: a snapshot is of a running VM", vm.name()), 0});
  if (const Status status = lifecycle::MakeFolders(vm.snapshots()); !status) return VmFailed(status.error());
  auto client = control::Client::Connect(vm.control());
  if (!client) return VmFailed(client.error());
  const auto done = client->Call("vm.snapshot", {{"path", (vm.snapshots() / name).string()}}, kPatience);
  if (!done) return VmFailed(done.error());
  if (json)
    fmt::print("{}\n", done->dump(2));
  else
    fmt::print("{}: the guest stood still for {:.1f} ms; {} stored{}\n", name, done->value("pause_us", 0.0) / 1000,
               Mebibytes(done->value("memory_bytes", uint64_t{0})),
               done->value("parent", "").empty() ? "" : fmt::format(", the rest is in {}", done->value("parent", "")));
  return kExitDone;
}

int List(const VmPaths& vm, bool json) {
  const auto list = lifecycle::ListSnapshots(vm.snapshots());
  if (json) {
    Json all = Json::array();
    for (const auto& info : list)
      all.push_back({{"name", info.name},
                     {"created", TimeText(info.created_utc_ns)},
                     {"memory_bytes", info.memory_bytes},
                     {"stored_bytes", info.stored_bytes},
                     {"disks", info.disks},
                     {"parent", info.parent},
                     {"problem", info.problem}});
    fmt::print("{}\n", all.dump(2));
    return kExitDone;
  }
  if (list.empty()) return kExitDone;
  fmt::print("{:<24} {:<20} {:>12} {:>12}  {}\n", "SNAPSHOT", "TAKEN (UTC)", "MEMORY", "STORED", "STANDS ON");
  for (const auto& info : list) {
    if (!info.problem.empty())
      fmt::print("{:<24} cannot be restored: {}\n", info.name, info.problem);
    else
      fmt::print("{:<24} {:<20} {:>12} {:>12}  {}\n", info.name, TimeText(info.created_utc_ns),
                 Mebibytes(info.memory_bytes), Mebibytes(info.stored_bytes), info.parent);
  }
  return kExitDone;
}

}  // namespace

int SnapshotCommand(const VmWords& words) {
  const std::string& first = words.plain[0];
  const bool acts = first == "ls" || first == "rm" || first == "verify";
  const size_t names = words.plain.size() - (acts ? 2 : 1);
  if (acts && words.plain.size() < 2) return VmWrongUsage("snapshot", fmt::format("{}: name a VM", first));
  if ((first == "rm" || first == "verify") ? names == 0 : names > (acts ? 0 : 1))
    return VmWrongUsage("snapshot", acts ? fmt::format("{}: the wrong number of words", first)
                                         : "give a VM and a name for its snapshot");
  const auto vm = FindVm(words.plain[acts ? 1 : 0]);
  if (!vm) return VmFailed(vm.error());
  const bool json = words.has("--json");
  if (first == "ls" || (!acts && names == 0)) return List(*vm, json);
  if (!acts) return Take(*vm, words.plain[1], json);
  int status = kExitDone;
  for (size_t i = 2; i < words.plain.size(); ++i) {
    const std::string& name = words.plain[i];
    Status done = lifecycle::CheckName(name);
    if (done) {
      const FolderGuard guard(vm->snapshots());
      done = first == "rm" ? lifecycle::RemoveSnapshot(vm->snapshots(), name)
                           : lifecycle::VerifySnapshot(vm->snapshots() / name);
    }
    if (!done)
      status = VmFailed(done.error());
    else if (first == "verify")
      fmt::print("{}: whole\n", name);
  }
  // The layers of its disks go with it, or are merged.
  const auto home = lifecycle::Home::Find();
  if (first == "rm" && home) lifecycle::TidyLayers(*home);
  return status;
}

int RestoreCommand(const VmWords& words) {
  const auto home = lifecycle::Home::Find();
  if (!home) return VmFailed(home.error());
  const auto vm = home->FindVm(words.plain[0]);
  if (!vm) return VmFailed(vm.error());
  const std::string& name = words.plain[1];
  if (const Status status = lifecycle::CheckName(name); !status) return VmFailed(status.error());
  std::error_code error;
  if (!fs::is_directory(vm->snapshots() / name, error))
    return VmFailed({fmt::format("{} has no snapshot '{}' (`nacre snapshot ls {}`)", vm->name(), name, vm->name()), 0});
  // Before anything is given up.
  for (const auto& info : lifecycle::ListSnapshots(vm->snapshots()))
    if (info.name == name && !info.problem.empty())
      return VmFailed({fmt::format("snapshot '{}' cannot be restored: {}", name, info.problem), 0});
  if (lifecycle::HolderOf(vm->lock())) {
    if (!words.has("--force"))
      return VmFailed({fmt::format("{} runs: stop it first, or end it by `nacre restore --force {} {}`", vm->name(),
                                   vm->name(), name),
                       0});
    if (const Status killed = KillVm(*vm); !killed) return VmFailed(killed.error());
  }
  if (const Status started = StartVm(*home, *vm, name); !started) return VmFailed(started.error());
  return words.has("--attach") ? AttachConsole(*vm) : kExitDone;
}

}  // namespace nacre::cli
