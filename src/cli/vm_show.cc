// `nacre ls`, `inspect`, `stats`: what VMs are and do, for people and as JSON.

#include <fmt/core.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <sstream>

#include "base/size_text.h"
#include "cli/commands.h"
#include "cli/vm_commands_parts.h"
#include "lifecycle/snapshot_store.h"
#include "lifecycle/vm_lock.h"
#include "lifecycle/vm_status.h"
#include "lifecycle/vm_toml.h"
#include "storage/image_tools.h"

namespace nacre::cli {

namespace {

namespace fs = std::filesystem;
using control::Json;
using lifecycle::VmPaths;

/// A VM's control thread answers at once; a busy host may be slow.
constexpr int64_t kPatienceMs = 20'000;

struct Seen {
  std::string name;
  std::string state;  ///< stopped, starting, running, paused; broken: its vm.toml cannot be read
  std::string last;   ///< of a stopped one: how it ended
  pid_t pid = 0;
  Json info;  ///< what the process says; null: it does not answer
  Result<lifecycle::VmConfig> config = lifecycle::VmConfig{};
};

std::string LastOf(const VmPaths& vm) {
  if (const auto end = lifecycle::ReadEnd(vm)) return fmt::format("{} {}", end->reason, end->time);
  return lifecycle::HasRun(vm) ? "killed" : "never ran";
}

Seen Look(const VmPaths& vm) {
  Seen seen;
  seen.name = vm.name();
  seen.config = lifecycle::ReadVmToml(vm.toml().string());
  const auto holder = lifecycle::HolderOf(vm.lock());
  if (!holder) {
    seen.state = seen.config ? "stopped" : "broken";
    seen.last = LastOf(vm);
    return seen;
  }
  seen.pid = holder->pid;
  seen.state = "starting";
  const auto info = AskVm(vm, "vm.info", kPatienceMs);
  if (!info) return seen;
  seen.info = *info;
  seen.state = info->value("state", "?");
  return seen;
}

std::string_view RestartName(lifecycle::RestartPolicy policy) {
  switch (policy) {
    case lifecycle::RestartPolicy::kNo:
      break;
    case lifecycle::RestartPolicy::kOnFailure:
      return "on-failure";
    case lifecycle::RestartPolicy::kAlways:
      return "always";
  }
  return "no";
}

Json JsonOf(const VmPaths& vm, const Seen& seen) {
  Json json{{"name", seen.name},
            {"state", seen.state},
            {"folder", vm.folder.string()},
            {"disk_bytes", lifecycle::DiskBytes(vm)}};
  if (seen.pid != 0) json["pid"] = seen.pid;
  if (!seen.info.is_null()) {
    for (const char* key : {"engine", "uptime_ms"})
      if (seen.info.contains(key)) json[key] = seen.info[key];
  }
  if (const auto end = lifecycle::ReadEnd(vm); end && seen.pid == 0)
    json["end"] = {{"reason", end->reason}, {"status", end->status}, {"time", end->time}, {"detail", end->detail}};
  if (!seen.config) {
    json["error"] = seen.config.error().message;
    return json;
  }
  const lifecycle::VmConfig& config = *seen.config;
  json["uuid"] = config.uuid;
  json["image"] = config.image;
  json["memory_bytes"] = config.machine.memory_bytes;
  json["cpus"] = config.machine.cpu_count;
  json["cpu"] = config.machine.cpu_model;
  json["restart"] = RestartName(config.restart);
  json["autostart"] = config.autostart;
  json["display"] = config.show;
  json["disks"] = Json::array();
  for (const auto& disk : config.machine.disks)
    json["disks"].push_back({{"file", (vm.folder / disk.path).lexically_normal().string()},
                             {"readonly", disk.read_only},
                             {"cdrom", disk.cdrom}});
  json["networks"] = Json::array();
  for (const auto& network : config.machine.networks)
    json["networks"].push_back(
        {{"kind", "user"}, {"mac", network.mac ? fmt::format("{:02x}", fmt::join(*network.mac, ":")) : ""}});
  return json;
}

struct DiskChain {
  std::string file;
  std::vector<std::string> names;  ///< of the files, from the disk's down
  Json layers = Json::array();
  std::string problem;  ///< what is the matter with them
};

/// What each disk stands on.
std::vector<DiskChain> ChainsOf(const VmPaths& vm, const lifecycle::VmConfig& config) {
  std::vector<DiskChain> chains;
  for (const auto& disk : config.machine.disks) {
    if (disk.cdrom) {
      chains.emplace_back();
      continue;
    }
    const fs::path path = (vm.folder / disk.path).lexically_normal();
    DiskChain chain;
    chain.file = disk.path;
    const auto layers = storage::DescribeImage({.path = path.string(), .format = disk.format});
    if (!layers) chain.problem = layers.error().message;
    for (const auto& layer : layers ? *layers : std::vector<storage::ImageInfo>()) {
      chain.names.push_back(fs::path(layer.layer.path).lexically_normal().lexically_proximate(vm.folder).string());
      chain.layers.push_back({{"file", fs::path(layer.layer.path).lexically_normal().string()},
                              {"format", storage::FormatName(layer.layer.format)},
                              {"allocated_bytes", layer.allocated_bytes}});
    }
    chains.push_back(std::move(chain));
  }
  return chains;
}

void PrintJson(const Json& json) { fmt::print("{}\n", json.dump(2, ' ', false, Json::error_handler_t::replace)); }

/// Columns as wide as they need to be.
void PrintTable(const std::vector<std::vector<std::string>>& rows) {
  std::vector<size_t> widths;
  for (const auto& row : rows)
    for (size_t i = 0; i < row.size(); ++i) {
      if (widths.size() <= i) widths.push_back(0);
      widths[i] = std::max(widths[i], row[i].size());
    }
  for (const auto& row : rows) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i)
      line += i + 1 == row.size() ? row[i] : fmt::format("{:<{}}", row[i], widths[i] + 2);
    fmt::print("{}\n", line);
  }
}

std::string Mebibytes(uint64_t bytes) {
  if (bytes == 0) return "-";
  return fmt::format("{:.0f}M", static_cast<double>(bytes) / kMiB);
}
std::string Seconds(uint64_t ms) {
  const uint64_t s = ms / 1000;
  if (s < 60) return fmt::format("{}s", s);
  if (s < 3600) return fmt::format("{}m{:02}s", s / 60, s % 60);
  return fmt::format("{}h{:02}m", s / 3600, s / 60 % 60);
}

/// The number behind `name` in a file of lines "NAME: NUMBER kB".
uint64_t KilobytesIn(const std::string& path, std::string_view name) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);)
    if (line.starts_with(name)) return std::strtoull(line.c_str() + name.size(), nullptr, 10) * 1024;
  return 0;
}

/// Of the process, in milliseconds; fields 14 and 15 of proc(5)'s stat, behind the name in parentheses.
uint64_t CpuMs(pid_t pid) {
  std::ifstream file(fmt::format("/proc/{}/stat", pid));
  std::string text;
  std::getline(file, text);
  const size_t behind = text.rfind(')');
  if (behind == std::string::npos) return 0;
  std::istringstream fields(text.substr(behind + 1));
  std::string skipped;
  for (int i = 3; i < 14; ++i) fields >> skipped;
  uint64_t user = 0, system = 0;
  fields >> user >> system;
  return (user + system) * 1000 / static_cast<uint64_t>(sysconf(_SC_CLK_TCK));
}

}  // namespace

int ListCommand(const VmWords& words) {
  const auto home = lifecycle::Home::Find();
  if (!home) return VmFailed(home.error());
  Json all = Json::array();
  std::vector<std::vector<std::string>> rows{{"NAME", "STATE", "CPUS", "MEMORY", "DISK", "ENGINE", "UPTIME"}};
  for (const std::string& name : home->VmNames()) {
    const VmPaths vm{home->vms() / name};
    const Seen seen = Look(vm);
    if (words.has("--json")) {
      all.push_back(JsonOf(vm, seen));
      continue;
    }
    std::vector<std::string> row{name, seen.state, "-", "-", Mebibytes(lifecycle::DiskBytes(vm)), "-", seen.last};
    if (seen.config) {
      row[2] = fmt::format("{}", seen.config->machine.cpu_count);
      row[3] = SizeText(seen.config->machine.memory_bytes);
    }
    if (!seen.info.is_null()) {
      row[5] = seen.info.value("engine", "?");
      row[6] = Seconds(seen.info.value("uptime_ms", uint64_t{0}));
    }
    rows.push_back(std::move(row));
  }
  if (words.has("--json"))
    PrintJson(all);
  else
    PrintTable(rows);
  return kExitDone;
}

int InspectCommand(const VmWords& words) {
  const auto home = lifecycle::Home::Find();
  if (!home) return VmFailed(home.error());
  const auto vm = home->FindVm(words.plain[0]);
  if (!vm) return VmFailed(vm.error());
  const Seen seen = Look(*vm);
  const auto chains = seen.config ? ChainsOf(*vm, *seen.config) : std::vector<DiskChain>();
  if (words.has("--json")) {
    Json json = JsonOf(*vm, seen);
    for (size_t i = 0; i < chains.size(); ++i) {
      if (!chains[i].layers.empty()) json["disks"][i]["layers"] = chains[i].layers;
      if (!chains[i].problem.empty()) json["disks"][i]["problem"] = chains[i].problem;
    }
    json["snapshots"] = lifecycle::ListSnapshots(vm->snapshots()).size();
    PrintJson(json);
    return kExitDone;
  }
  std::vector<std::vector<std::string>> rows{{"folder", vm->folder.string()}, {"state", seen.state}};
  if (seen.pid != 0) rows.push_back({"process", fmt::format("{}", seen.pid)});
  if (!seen.last.empty()) rows.push_back({"last run", seen.last});
  if (!seen.info.is_null()) {
    rows.push_back({"engine", seen.info.value("engine", "?")});
    rows.push_back({"uptime", Seconds(seen.info.value("uptime_ms", uint64_t{0}))});
  }
  rows.push_back({"disks take", Mebibytes(lifecycle::DiskBytes(*vm))});
  for (const DiskChain& chain : chains) {
    if (!chain.problem.empty()) rows.push_back({chain.file, chain.problem});
    for (size_t i = 1; i < chain.names.size(); ++i) rows.push_back({i == 1 ? chain.file : "", "on " + chain.names[i]});
  }
  if (const auto snapshots = lifecycle::ListSnapshots(vm->snapshots()); !snapshots.empty())
    rows.push_back({"snapshots", fmt::format("{}", snapshots.size())});
  PrintTable(rows);
  if (const auto end = lifecycle::ReadEnd(*vm); end && seen.pid == 0 && !end->detail.empty())
    fmt::print("\n{}\n", end->detail);
  if (!seen.config) return VmFailed(seen.config.error());
  fmt::print("\n{}", lifecycle::VmTomlText(*seen.config));
  return kExitDone;
}

int StatsCommand(const VmWords& words) {
  const auto home = lifecycle::Home::Find();
  if (!home) return VmFailed(home.error());
  int status = kExitDone;
  Json all = Json::array();
  std::vector<std::vector<std::string>> rows{{"NAME", "STATE", "UPTIME", "CPU TIME", "MEMORY", "OF", "DISK"}};
  for (const std::string& name : words.plain.empty() ? home->VmNames() : words.plain) {
    const auto vm = home->FindVm(name);
    if (!vm) {
      status = VmFailed(vm.error());
      continue;
    }
    const Seen seen = Look(*vm);
    if (seen.pid == 0) {
      if (!words.plain.empty()) status = VmFailed({fmt::format("{} does not run; `nacre start {}`", name, name), 0});
      continue;
    }
    const std::string proc = fmt::format("/proc/{}/", seen.pid);
    // The share of every page, once for one that is mapped twice.
    const uint64_t memory = KilobytesIn(proc + "smaps_rollup", "Pss:");
    const uint64_t cpu_ms = CpuMs(seen.pid), disk = lifecycle::DiskBytes(*vm);
    const uint64_t uptime_ms = seen.info.is_null() ? 0 : seen.info.value("uptime_ms", uint64_t{0});
    const uint64_t guest_memory = seen.info.is_null() ? 0 : seen.info.value("memory_bytes", uint64_t{0});
    all.push_back({{"name", name},
                   {"state", seen.state},
                   {"pid", seen.pid},
                   {"uptime_ms", uptime_ms},
                   {"cpu_ms", cpu_ms},
                   {"memory_bytes", memory},
                   {"guest_memory_bytes", guest_memory},
                   {"disk_bytes", disk}});
    rows.push_back({name, seen.state, Seconds(uptime_ms), fmt::format("{:.1f}s", static_cast<double>(cpu_ms) / 1000),
                    Mebibytes(memory), Mebibytes(guest_memory), Mebibytes(disk)});
  }
  if (words.has("--json"))
    PrintJson(all);
  else
    PrintTable(rows);
  return status;
}

}  // namespace nacre::cli
