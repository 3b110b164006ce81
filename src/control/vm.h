#pragma once
// What the control socket can ask of a running VM. Called on the server's thread; nothing here blocks, and what takes
// time is told later, on any thread.

#include <atomic>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "agent/exec_jobs.h"
#include "base/result.h"
#include "display/keys.h"
#include "machine/machine.h"

namespace nacre::control {

struct VmInfo {
  std::string name;
  machine::RunState state = machine::RunState::kRunning;
  bool asleep = false;  ///< in ACPI state S3
  machine::EngineKind engine = machine::EngineKind::kJit;
  std::string cpu_model;
  unsigned cpus = 1;
  uint64_t memory_bytes = 0;
  uint64_t uptime_ms = 0;  ///< of the guest: pauses do not count
  std::string version;     ///< of the program
};

class Vm {
 public:
  template <typename T>
  using Done = machine::Machine::Done<T>;
  using EngineSwitch = machine::Machine::EngineSwitch;
  using ScreenSize = machine::Machine::ScreenSize;
  using SnapshotReport = machine::Machine::SnapshotReport;

  virtual ~Vm() = default;
  virtual VmInfo Info() const = 0;
  virtual void Pause(Done<void> done) = 0;
  virtual void Resume(Done<void> done) = 0;
  virtual void PressPowerButton() = 0;
  virtual Status NewGeneration() = 0;
  virtual void Stop() = 0;
  virtual void SwitchEngine(machine::EngineKind kind, Done<EngineSwitch> done) = 0;
  virtual void Statistics(Done<std::vector<machine::StatisticsSection>> done) = 0;
  virtual void Registers(Done<std::vector<std::string>> done) = 0;
  /// Into a PNG file, by an absolute path.
  virtual void Screenshot(const std::string& path, Done<ScreenSize> done) = 0;
  /// Into a new directory, by an absolute path.
  virtual void Snapshot(const std::string& path, Done<SnapshotReport> done) = 0;
  /// The same for clones that go on from it at once; nothing of it is synced.
  virtual void Fork(const std::string& path, Done<SnapshotReport> done) = 0;
  virtual void PressKeys(std::vector<display::KeyStroke> strokes, Done<void> done) = 0;
  struct Agent {
    agent::GuestAgent& agent;
    agent::ExecJobs& jobs;
  };
  /// Nothing: the guest has no port for an agent.
  virtual std::optional<Agent> GuestAgent() = 0;
};

/// A machine of this process.
class MachineVm final : public Vm {
 public:
  /// `machine` must outlive it.
  MachineVm(machine::Machine& machine, std::string name, std::string version)
      : machine_(machine), name_(std::move(name)), version_(std::move(version)) {
    if (machine_.guest_agent()) jobs_.emplace(*machine_.guest_agent());
  }

  VmInfo Info() const override;
  void Pause(Done<void> done) override { machine_.RequestPause(std::move(done)); }
  void Resume(Done<void> done) override { machine_.RequestResume(std::move(done)); }
  Status NewGeneration() override { return machine_.NewGeneration(); }
  void PressPowerButton() override {
    end_asked_ = true;
    machine_.PressPowerButton();
  }
  void Stop() override {
    end_asked_ = true;
    machine_.Stop();
  }
  void SwitchEngine(machine::EngineKind kind, Done<EngineSwitch> done) override {
    machine_.RequestEngine(kind, std::move(done));
  }
  void Statistics(Done<std::vector<machine::StatisticsSection>> done) override {
    machine_.RequestStatistics(std::move(done));
  }
  void Registers(Done<std::vector<std::string>> done) override { machine_.RequestRegisters(std::move(done)); }
  void Screenshot(const std::string& path, Done<ScreenSize> done) override {
    machine_.RequestScreenshot(path, std::move(done));
  }
  void Snapshot(const std::string& path, Done<SnapshotReport> done) override {
    machine_.RequestSnapshot(path, std::move(done));
  }
  void Fork(const std::string& path, Done<SnapshotReport> done) override {
    machine_.RequestFork(path, std::move(done));
  }
  void PressKeys(std::vector<display::KeyStroke> strokes, Done<void> done) override {
    machine_.RequestKeys(std::move(strokes), std::move(done));
  }
  std::optional<Agent> GuestAgent() override {
    if (!jobs_) return std::nullopt;
    return Agent{*machine_.guest_agent(), *jobs_};
  }

  /// Somebody asked for the end: no restart policy brings the VM back.
  bool end_asked() const { return end_asked_; }

 private:
  machine::Machine& machine_;
  const std::string name_, version_;
  std::atomic<bool> end_asked_ = false;
  std::optional<agent::ExecJobs> jobs_;
};

}  // namespace nacre::control
