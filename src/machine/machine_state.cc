// The state of a whole machine but for its memory, as sections of a state file: what is saved of what, and the way
// back. Everything here happens while the CPUs are parked and time stands still.

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <set>

#include "base/log.h"
#include "machine/config_archive.h"
#include "machine/machine.h"
#include "state/archive.h"
#include "x86/cpu_state_archive.h"

namespace nacre::machine {
namespace {

constexpr std::string_view kDevicePrefix = "device:";
/// What machines have that older ones had not: without a section it is as after a reset.
constexpr std::array<std::string_view, 1> kAddedLater{"device:generation-id"};
/// More, and a guest's clocks that count the TSC are visibly wrong.
constexpr double kMostTscDifference = 0.001;

std::string DeviceSection(const bus::Device& device) { return fmt::format("{}{}", kDevicePrefix, device.name()); }
std::string CpuSection(unsigned index) { return fmt::format("cpu{}", index); }

std::string Absolute(const std::string& path) {
  return path.empty() ? path : std::filesystem::absolute(path).lexically_normal().string();
}

}  // namespace

/// What rebuilds this machine, wherever the next process stands.
MachineConfig Machine::SavedConfig() const {
  MachineConfig config = config_;
  config.cpu_model = model_->name();
  config.kernel = Absolute(config.kernel);
  for (std::string& initrd : config.initrds) initrd = Absolute(initrd);
  if (config.firmware.find('/') != std::string::npos) config.firmware = Absolute(config.firmware);
  config.firmware_variables = Absolute(config.firmware_variables);
  for (DiskConfig& disk : config.disks) disk.path = Absolute(disk.path);
  for (FloppyConfig& floppy : config.floppies) floppy.path = Absolute(floppy.path);
  config.serial.path = Absolute(config.serial.path);
  config.console.path = Absolute(config.console.path);
  config.vsock = Absolute(config.vsock);
  return config;
}

/// Guest time, and the time stamp counter as the devices and the CPUs have it: host counter at the pause and offset.
void Machine::SerializeClocks(state::Archive& archive) {
  int64_t now_ns = loop_->NowNs();
  uint64_t tsc = tsc_->Read(), offset = tsc_->offset(), khz = model_->tsc_khz();
  archive.Field(1, now_ns);
  archive.Field(2, tsc);
  archive.Field(3, offset);
  archive.Field(4, khz);
  if (!archive.loading()) return;
  if (now_ns < 0 || now_ns > INT64_MAX / 2) return archive.Reject("an impossible guest time");
  loop_->SetNowNs(now_ns);
  tsc_->Pause();
  tsc_->SetOffset(tsc - tsc_->paused_at());
  const uint64_t moved = tsc_->offset() - offset;
  // Each CPU's own offset may differ from the devices'; the difference is the guest's doing and stays.
  for (auto& runner : runners_) runner->state().tsc_offset += moved;
}

void Machine::SerializeCpus(state::Archive& archive, unsigned index) {
  VcpuRunner& runner = *runners_[index];
  archive.Section(1, 1, [&](state::Archive& cpu, uint16_t) { x86::SerializeCpu(cpu, runner.state(), *model_); });
  bool nmi = (runner.vcpu().pending_requests() & engine::kRequestNmi) != 0;
  archive.Field(2, nmi);
  if (archive.loading() && archive.ok() && nmi) runner.Request(engine::kRequestNmi);
}

Result<state::StateFile> Machine::SaveState() {
  state::StateFile file;
  // First: what ends now may reach any device.
  board_->QuiesceDisks();
  MachineConfig config = SavedConfig();
  file.Add("config", SaveSection([&](state::Archive& archive) { SerializeConfig(archive, config); }));
  file.Add("cpu-model", SaveSection([&](state::Archive& archive) { x86::SerializeModel(archive, *model_); }));
  file.Add("clocks", SaveSection([&](state::Archive& archive) { SerializeClocks(archive); }));
  for (unsigned i = 0; i < runners_.size(); ++i)
    file.Add(CpuSection(i), SaveSection([&](state::Archive& archive) { SerializeCpus(archive, i); }));
  for (bus::Device* device : board_->devices())
    file.Add(DeviceSection(*device), SaveSection([&](state::Archive& archive) { device->Serialize(archive); }));
  return file;
}

/// Before the CPU model is chosen and the board is built.
Status Machine::ReadSnapshot() {
  const std::string path = fmt::format("{}/{}", config_.restore, kStateFile);
  saved_ = NACRE_TRY(ReadStateFile(config_.restore));
  const auto identity = ReadIdentity(*saved_);
  if (!identity) return Context(identity.error(), "{}", path);
  const Status clocks = LoadSection(*saved_, "clocks", [&](state::Archive& archive) {
    archive.Field(4, saved_tsc_khz_);
    if (saved_tsc_khz_ == 0 || saved_tsc_khz_ > 100'000'000) archive.Reject("an impossible frequency of the TSC");
  });
  if (!clocks) return Context(clocks.error(), "{}", path);
  from_image_ = NACRE_TRY(OpenMemory(config_.restore));
  NACRE_TRY_STATUS(from_image_->MapInto(*memory_));
  if (identity->passing) {  // it goes when its clones run, and was made a moment ago
    from_image_.reset();
    return {};
  }
  last_snapshot_ = {Absolute(config_.restore), identity->id};
  return {};
}

Status Machine::LoadState() {
  const state::StateFile file = *std::exchange(saved_, std::nullopt);
  const std::string path = fmt::format("{}/{}", config_.restore, kStateFile);
  const auto load = [&](const std::string& name, const std::function<void(state::Archive&)>& fields) -> Status {
    if (const Status status = LoadSection(file, name, fields); !status) return Context(status.error(), "{}", path);
    return {};
  };
  std::set<std::string> wanted{"identity", "memory", "config", "cpu-model", "clocks"};
  for (unsigned i = 0; i < runners_.size(); ++i) wanted.insert(CpuSection(i));
  for (const bus::Device* device : board_->devices()) wanted.insert(DeviceSection(*device));
  std::vector<std::string> missing, foreign;
  for (const std::string& name : wanted)
    if (!file.Find(name) && std::ranges::find(kAddedLater, name) == kAddedLater.end()) missing.push_back(name);
  for (const state::StateFile::Section& section : file.sections())
    if (!wanted.contains(section.name)) foreign.push_back(section.name);
  if (!missing.empty())
    return Fail("{}: this machine has what was not there when the snapshot was taken: {}", path,
                fmt::join(missing, ", "));
  if (!foreign.empty())
    return Fail("{}: the snapshot has what this machine has not: {}", path, fmt::join(foreign, ", "));
  NACRE_TRY_STATUS(load("cpu-model", [&](state::Archive& archive) { x86::SerializeModel(archive, *model_); }));
  if (const auto host = x86::CpuModel::Create(config_.cpu_model, {.cpu_count = config_.cpu_count}); host) {
    const double ratio = static_cast<double>(host->tsc_khz()) / static_cast<double>(saved_tsc_khz_);
    if (ratio > 1 + kMostTscDifference || ratio < 1 - kMostTscDifference)
      LogWarning(
          "this host's time stamp counter runs at {} kHz, the snapshot's host's at {} kHz: the guest's clock goes "
          "wrong unless it is kvm-clock",
          host->tsc_khz(), saved_tsc_khz_);
  }
  const std::lock_guard lock(device_lock_);
  board_->Reset();
  for (unsigned i = 0; i < runners_.size(); ++i) {
    x86::ResetCpuState(runners_[i]->state());
    NACRE_TRY_STATUS(load(CpuSection(i), [&](state::Archive& archive) { SerializeCpus(archive, i); }));
  }
  NACRE_TRY_STATUS(load("clocks", [&](state::Archive& archive) { SerializeClocks(archive); }));
  for (bus::Device* device : board_->devices())
    if (file.Find(DeviceSection(*device)))
      NACRE_TRY_STATUS(load(DeviceSection(*device), [&](state::Archive& archive) { device->Serialize(archive); }));
  return {};
}

/// Beside the guest, which runs already.
void Machine::VerifyMemory() {
  pthread_setname_np(pthread_self(), "verify");
  const Status status = from_image_->Verify(stop_verify_);
  if (!status) EndWith({EndReason::kEngineError, 0, status.error().message + "; the guest was stopped\n"});
}

}  // namespace nacre::machine
