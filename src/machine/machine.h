#pragma once
// One virtual machine from power-on to its end: guest memory, the board, an engine with its CPUs, and the control
// thread that starts, resets, pauses and stops them.
//
// Threads: Create, Run and the destructor on one control thread. Devices and CPU threads report to it by Request...,
// which like Stop may be called from any thread, with or without the device lock. Requests are carried out in the order
// in which they came.

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "agent/guest_agent.h"
#include "base/event_loop.h"
#include "base/result.h"
#include "engine/engine.h"
#include "machine/board.h"
#include "machine/cpu_host.h"
#include "machine/guest_tsc.h"
#include "machine/kernel_apics.h"
#include "machine/kernel_doorbells.h"
#include "machine/machine_config.h"
#include "machine/snapshot_files.h"
#include "machine/vcpu_runner.h"
#include "memory/guest_memory.h"
#include "x86/cpu_model.h"

namespace nacre::machine {

enum class RunState : uint8_t { kCreated, kRunning, kPaused, kEnded };

/// Names and numbers of one part of the machine, for people.
struct StatisticsSection {
  std::string title;
  std::vector<engine::Statistic> entries;  ///< may be empty
};

class Machine final : private VcpuEvents, private devices::MachineControl {
 public:
  /// Opens every file, wires the board and loads the kernel: whatever can fail fails here.
  static Result<std::unique_ptr<Machine>> Create(const MachineConfig& config);
  ~Machine() override;
  Machine(const Machine&) = delete;
  Machine& operator=(const Machine&) = delete;

  /// Runs the guest until it ends. Once.
  RunResult Run();

  // Any thread.
  /// Run returns with EndReason::kLeft.
  void Stop();
  /// The guest sees its power button pressed.
  void PressPowerButton();
  /// The guest is told that it goes on as another machine than it was (devices/chipset/generation_id.h). Not with the
  /// device lock held.
  Status NewGeneration();
  /// The terminal of MachineConfig::console has this size.
  void ResizeConsole(uint16_t columns, uint16_t rows);
  /// What becomes of a request is told once, on the control thread; an error with code ECANCELED: the guest ended
  /// before it came to that, which may also be told on the caller's thread. A callback must not block.
  template <typename T>
  using Done = std::function<void(Result<T>)>;
  /// The guest and its time stand still.
  void RequestPause(Done<void> done = {});
  void RequestResume(Done<void> done = {});
  struct EngineSwitch {
    EngineKind before;
    std::chrono::nanoseconds pause;  ///< how long the guest stood still; 0 while it is paused anyway
  };
  /// The guest goes on with another engine (not kAuto), or with a new one of the same kind; after an error with the one
  /// that it had. A paused guest stays paused.
  void RequestEngine(EngineKind kind, Done<EngineSwitch> done);
  /// The CPUs stand still for a moment.
  void RequestStatistics(Done<std::vector<StatisticsSection>> done);
  /// What each CPU is at, as text: registers and the instruction that comes next. The CPUs stand still for a moment.
  void RequestRegisters(Done<std::vector<std::string>> done);
  struct ScreenSize {
    unsigned width, height;  ///< pixels
  };
  /// A PNG file of the screen at `path`, which is absolute. A paused guest's too.
  void RequestScreenshot(std::string path, Done<ScreenSize> done);
  /// Told when the guest has taken the last stroke, not while it is paused. That is on the event loop's thread, under
  /// the device lock.
  void RequestKeys(std::vector<display::KeyStroke> strokes, Done<void> done);

  /// Any thread, until the machine is destroyed. Null: the guest has no port for an agent.
  agent::GuestAgent* guest_agent() { return guest_agent_.get(); }
  struct SnapshotReport {
    std::chrono::nanoseconds pause;  ///< how long the guest stood still; 0 while it is paused anyway
    std::chrono::nanoseconds total;
    uint64_t memory_bytes;  ///< written
    std::string parent;     ///< the directory beside it that has the rest; empty: it is whole
  };
  /// A snapshot in the new directory `path`, which is absolute: the guest stands still for a moment and goes on while
  /// its memory is written. Told when all is on the disk. One at a time.
  void RequestSnapshot(std::string path, Done<SnapshotReport> done);
  /// As RequestSnapshot, for clones that go on from it at once: whole, and nothing of it is synced. Disks go on in
  /// overlays here too.
  void RequestFork(std::string path, Done<SnapshotReport> done);

  RunState state() const { return run_state_.load(); }
  EngineKind engine_kind() const { return kind_.load(); }
  const x86::CpuModel& cpu_model() const { return *model_; }
  uint64_t memory_bytes() const { return config_.memory_bytes; }
  /// In ACPI state S3: its time goes on, its CPUs do not.
  bool asleep() const { return board_->asleep(); }
  /// Guest time since power-on, without the spans in which the machine stood still.
  std::chrono::nanoseconds uptime() const { return std::chrono::nanoseconds(loop_->NowNs()); }

  /// For --engine-stats, after Run: lines of text.
  std::string StatisticsText() const;
  std::string_view engine_name() const { return engine_->name(); }

 private:
  explicit Machine(const MachineConfig& config) : config_(config) {}
  Status Build();
  Result<std::unique_ptr<engine::Engine>> MakeEngine(EngineKind kind) const;
  struct NextEngine {
    EngineKind kind;
    std::unique_ptr<engine::Engine> engine;
    std::vector<std::unique_ptr<engine::Vcpu>> vcpus;  ///< of `engine`, which outlives them
  };
  /// An engine and its CPUs, to run later; another one may be at work.
  Result<NextEngine> PrepareEngine(EngineKind kind) const;
  /// It takes over the CPUs' `states`; the one before, if any, was left.
  void AdoptEngine(NextEngine next, const std::vector<x86::CpuState>& states);
  /// The first one.
  Status StartEngine(EngineKind kind);
  /// The CPU model and the first engine, which kAuto and the model's name `default` make depend on each other. Why
  /// kAuto takes which goes to auto_reason_.
  /// What KVM must have of the CPU model only then.
  Result<bool> KvmRunsKernels() const;
  Status ChooseModel();
  /// Whatever can be refused before anything is given up.
  Status CheckEngine(EngineKind kind);
  Status StartFirstEngine();
  /// What the engine holds is given back beside the guest, which goes on meanwhile.
  void LeaveEngine();
  Result<EngineSwitch> SwitchEngine(EngineKind kind);
  // machine_state.cc, machine_snapshot.cc. A state is saved and loaded while the CPUs are parked and time stands still.
  /// All but memory. Under the device lock, which is kept until memory and disks have been taken too: what comes from
  /// outside in between would be in one of them only.
  Result<state::StateFile> SaveState();
  Status LoadState();
  MachineConfig SavedConfig() const;
  void SerializeClocks(state::Archive& archive);
  void SerializeCpus(state::Archive& archive, unsigned index);
  Status ReadSnapshot();
  void VerifyMemory();
  struct SnapshotWork;
  void WriteDisksOut();
  Result<std::unique_ptr<SnapshotWork>> BeginSnapshot(const std::string& path, bool passing);
  Result<std::unique_ptr<SnapshotWork>> TakeSnapshot(const std::string& path, bool passing);
  std::unique_ptr<memory::MemoryImage> ParentFor(const std::string& path, SnapshotIdentity& identity) const;
  void StartSnapshot(const std::string& path, bool passing, const Done<SnapshotReport>& done);
  void EndSnapshots();
  /// Power-on: devices are reset; loads the kernel and sets every CPU's state.
  Status StartGuest();
  Status StartKernel();
  void StartFirmware();
  Status ResetGuest();
  /// The end of S3: the guest goes on at its waking vector, or by firmware.
  Status WakeGuest();
  void MemoryChanged();
  void ParkAll();
  void ResumeAll();
  /// Between our models and an engine that keeps local APICs; nothing for others. Parked, under the device lock.
  Status GiveApics();
  Status TakeApics();
  void LeaveKernel();
  void DropDoorbells();
  void PauseTime();
  void ResumeTime();
  void Pause();
  void Resume();
  std::vector<StatisticsSection> Statistics() const;
  Result<ScreenSize> Screenshot(const std::string& path);

  /// What a Request... asked for. `carry_out` on the control thread without control_mutex_, or `refuse` on any thread.
  struct Order {
    std::function<void()> carry_out;
    std::function<void(const Error&)> refuse;
  };
  template <typename T, typename Work>
  void Ask(Work work, Done<T> done);
  void Enqueue(Order order);
  /// No order is carried out from now on.
  void RefuseOrders();
  RunResult Control();
  RunResult Finish(RunResult result);
  std::string DescribeCpu(unsigned index);
  void EndWith(RunResult result);
  void ParkSoon();

  void OnShutdown(unsigned index) override;
  void OnEngineError(unsigned index, std::string error) override;
  bool TakeKick(unsigned index) override;
  void OnSleep(unsigned index) override;
  bool OnWake(unsigned index) override;
  void PowerOff() override;
  void ResetMachine() override;
  void Sleep() override;
  void WakeUp() override;
  void DebugExit(uint32_t value) override;

  const MachineConfig config_;
  std::atomic<EngineKind> kind_ = EngineKind::kJit;  ///< of engine_
  std::atomic<RunState> run_state_ = RunState::kCreated;
  mutable std::mutex device_lock_;
  std::optional<boot::FirmwareImage> firmware_;  ///< direct boot has none
  std::unique_ptr<memory::GuestMemory> memory_;
  std::optional<x86::CpuModel> model_;
  std::unique_ptr<EventLoop> loop_;
  std::unique_ptr<HostGuestTsc> tsc_;
  std::vector<std::unique_ptr<CpuHost>> hosts_;
  std::unique_ptr<Board> board_;
  std::unique_ptr<agent::GuestAgent> guest_agent_;
  std::unique_ptr<display::VncServer> vnc_;  ///< null: nobody shows the screen
  std::unique_ptr<engine::Engine> engine_;
  std::string auto_reason_;  ///< kAuto: why it is this engine
  std::vector<std::unique_ptr<VcpuRunner>> runners_;
  std::unique_ptr<KernelApics> kernel_apics_;          ///< null: the engine keeps none
  std::unique_ptr<KernelDoorbells> kernel_doorbells_;  ///< null: the engine serves none
  std::thread retiring_;                               ///< ends an engine that was left
  std::thread loop_thread_;
  struct KnownSnapshot {
    std::string directory;
    std::string id;
  };
  std::optional<state::StateFile> saved_;            ///< between ReadSnapshot and LoadState
  uint64_t saved_tsc_khz_ = 0;                       ///< of the snapshot; 0: there is none
  std::unique_ptr<memory::MemoryImage> from_image_;  ///< what memory was restored from and is verified against
  std::thread verify_thread_;
  std::atomic<bool> stop_verify_ = false;
  std::thread snapshot_thread_;
  std::atomic<bool> snapshot_runs_ = false;
  mutable std::mutex snapshot_mutex_;
  std::optional<KnownSnapshot> last_snapshot_;  ///< under snapshot_mutex_: restored from or taken last

  bool kvm_moves_tsc_ = true;  ///< false: on kvm the guest sees the host's time stamp counter

  std::mutex control_mutex_;
  std::condition_variable control_changed_;
  std::optional<RunResult> end_;
  bool want_reset_ = false;
  bool want_sleep_ = false, want_wake_ = false;
  std::deque<Order> orders_;
  bool refuses_orders_ = false;
  unsigned crashed_cpu_ = 0;
};

}  // namespace nacre::machine
