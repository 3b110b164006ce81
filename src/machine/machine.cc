#include "machine/machine.h"

#include <fcntl.h>
#include <malloc.h>
#include <pthread.h>
#include <sys/random.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>

#include "base/check.h"
#include "boot/loader.h"
#include "engine/interp/interp_engine.h"
#include "engine/jit/jit_engine.h"
#include "engine/kvm/kvm_choice.h"
#include "engine/kvm/kvm_device.h"
#include "engine/kvm/kvm_engine.h"
#include "engine/kvm/kvm_model.h"
#include "machine/crash_report.h"

namespace nacre::machine {

namespace {

/// Everything the user named is looked for before anything is built, so that the first message is about the file.
Status CheckReadable(const std::string& path, std::string_view what) {
  if (access(path.c_str(), R_OK) != 0) return FailErrno("{} {}", what, path);
  return {};
}

Status CheckFiles(const MachineConfig& config) {
  if (config.restore.empty() && (config.firmware.empty() || !config.kernel.empty()))
    NACRE_TRY_STATUS(CheckReadable(config.kernel, "kernel"));
  for (const std::string& initrd : config.restore.empty() ? config.initrds : std::vector<std::string>()) {
    // A module's name may be followed by its string (boot/loader.h).
    if (access(initrd.c_str(), R_OK) != 0)
      NACRE_TRY_STATUS(CheckReadable(initrd.substr(0, initrd.find(' ')), "initrd"));
  }
  for (const DiskConfig& disk : config.disks) NACRE_TRY_STATUS(CheckReadable(disk.path, "disk"));
  return {};
}

}  // namespace

Result<std::unique_ptr<Machine>> Machine::Create(const MachineConfig& config) {
  NACRE_TRY_STATUS(CheckFiles(config));
  std::unique_ptr<Machine> machine(new Machine(config));
  NACRE_TRY_STATUS(machine->Build());
  return machine;
}

Status Machine::Build() {
  using Backing = memory::GuestMemory::Backing;
  if (!config_.firmware.empty()) firmware_ = NACRE_TRY(boot::LoadFirmware(config_.firmware));
  memory_ = NACRE_TRY(memory::GuestMemory::Create(
      config_.memory_bytes, config_.lockstep ? Backing::kFile : Backing::kAnonymous,
      firmware_ ? FirmwareParts::RomBytes(*firmware_) : 0, config_.has_vga() ? devices::Vga::kMemorySize : 0));
  if (!config_.restore.empty()) NACRE_TRY_STATUS(ReadSnapshot());
  NACRE_TRY_STATUS(ChooseModel());
  loop_ = NACRE_TRY(EventLoop::Create(device_lock_));
  loop_->Pause();  // guest time starts with the guest
  tsc_ = std::make_unique<HostGuestTsc>(*loop_, model_->tsc_khz());

  Board::Wiring wiring{.config = &config_,
                       .firmware = firmware_ ? &*firmware_ : nullptr,
                       .memory_changed = [this] { MemoryChanged(); },
                       .memory = memory_.get(),
                       .loop = loop_.get(),
                       .tsc = tsc_.get(),
                       .control = this,
                       .leave = [this] { Stop(); },
                       .cpus = {}};
  board_ = std::make_unique<Board>();
  for (unsigned i = 0; i < config_.cpu_count; ++i) {
    hosts_.push_back(std::make_unique<CpuHost>(
        i, CpuHost::Wiring{&device_lock_, &board_->ports(), &board_->memory_bus(), &board_->apic_bus()}));
    wiring.cpus.push_back(hosts_.back().get());
  }
  {
    const std::lock_guard lock(device_lock_);
    NACRE_TRY_STATUS(board_->Build(wiring));
  }
  if (agent::PortStream* const port = board_->agent_port()) guest_agent_ = std::make_unique<agent::GuestAgent>(*port);
  NACRE_TRY_STATUS(StartFirstEngine());
  if (saved_) {
    NACRE_TRY_STATUS(LoadState());
    NACRE_TRY_STATUS(NewGeneration());
    malloc_trim(0);  // what the state took: a hundred clones stand beside each other
  } else {
    NACRE_TRY_STATUS(StartGuest());
  }
  if (config_.display.vnc)
    vnc_ = NACRE_TRY(display::VncServer::Start(*config_.display.vnc, *board_->screen(), board_->input(), device_lock_,
                                               board_->clipboard()));
  return {};
}

Result<bool> Machine::KvmRunsKernels() const {
  return NACRE_TRY(engine::kvm::WhoRunsKernels(config_.kvm_kernel)) == engine::kvm::KernelMode::kKvm;
}

Status Machine::ChooseModel() {
  const x86::CpuModelOptions options{.cpu_count = config_.cpu_count, .tsc_khz = saved_tsc_khz_};
  kind_ = config_.engine;
  if (kind_ == EngineKind::kKvm && saved_tsc_khz_ != 0) {
    // The guest's CPU is given: a KVM has all of it or is refused.
    model_ = NACRE_TRY(x86::CpuModel::Create(config_.cpu_model, options));
    if (NACRE_TRY(KvmRunsKernels())) NACRE_TRY_STATUS(engine::kvm::CheckModel(*model_));
    return {};
  }
  if (kind_ == EngineKind::kKvm && NACRE_TRY(KvmRunsKernels())) {
    auto model = engine::kvm::ModelOnKvm(config_.cpu_model, options);
    if (!model) return Context(model.error(), "--engine kvm");
    model_ = std::move(*model);
    return {};
  }
  // Programs see the host's CPUID there.
  const bool host = kind_ == EngineKind::kKvm && config_.cpu_model == "default";
  model_ = NACRE_TRY(x86::CpuModel::Create(host ? "host" : config_.cpu_model, options));
  if (kind_ != EngineKind::kAuto) return {};
  engine::kvm::KvmFindings findings = engine::kvm::ExamineKvm(config_.cpu_model, options);
  engine::kvm::EngineChoice choice = engine::kvm::Choose(findings);
  auto_reason_ = std::move(choice.reason);
  if (choice.kvm && saved_tsc_khz_ != 0 && !engine::kvm::CheckModel(*model_)) choice.kvm = false;
  kind_ = choice.kvm ? EngineKind::kKvm : EngineKind::kJit;
  if (choice.kvm && saved_tsc_khz_ == 0) model_ = std::move(findings.cpu.model);
  return {};
}

Status Machine::StartFirstEngine() {
  Status started = CheckEngine(kind_);
  if (started) started = StartEngine(kind_);
  if (started || config_.engine != EngineKind::kAuto || kind_ == EngineKind::kJit) return started;
  auto_reason_ += fmt::format(", but: {}", started.error().message);
  if (saved_tsc_khz_ == 0)
    model_ = NACRE_TRY(x86::CpuModel::Create(config_.cpu_model, {.cpu_count = config_.cpu_count}));
  return StartEngine(EngineKind::kJit);
}

Status Machine::CheckEngine(EngineKind kind) {
  if (kind != EngineKind::kKvm) return {};
  const auto device = NACRE_TRY(engine::kvm::KvmDevice::Open());
  // The interpreter moves it.
  kvm_moves_tsc_ = !NACRE_TRY(KvmRunsKernels()) || NACRE_TRY(device.MovesTsc());
  return {};
}

Status Machine::StartEngine(EngineKind kind) {
  AdoptEngine(NACRE_TRY(PrepareEngine(kind)), {});
  return {};
}

Result<Machine::NextEngine> Machine::PrepareEngine(EngineKind kind) const {
  NextEngine next{kind, NACRE_TRY(MakeEngine(kind)), {}};
  for (unsigned i = 0; i < config_.cpu_count; ++i)
    next.vcpus.push_back(NACRE_TRY(next.engine->CreateVcpu({i, &*model_, memory_.get(), hosts_[i].get()})));
  return next;
}

void Machine::AdoptEngine(NextEngine next, const std::vector<x86::CpuState>& states) {
  const std::lock_guard lock(device_lock_);  // devices write to guest memory, and engines listen to that
  engine_ = std::move(next.engine);
  kind_ = next.kind;
  engine_->Begin();
  VcpuEvents& events = *this;
  for (unsigned i = 0; i < config_.cpu_count; ++i) {
    runners_.push_back(std::make_unique<VcpuRunner>(i, std::move(next.vcpus[i]), events));
    if (i < states.size()) runners_[i]->state() = states[i];
    hosts_[i]->Connect(&board_->local_apic(i), &board_->kvm_clock(), &board_->kvm_paravirt(), runners_.back().get());
  }
  if (engine::WriteEvents* const writes = engine_->write_events())
    kernel_doorbells_ = std::make_unique<KernelDoorbells>(*writes, *loop_);
  engine::MessageSink* const sink = engine_->message_sink();
  if (!sink) return;
  kernel_apics_ = std::make_unique<KernelApics>(
      *sink, board_->io_apic(), config_.cpu_count, [this](bool level) { hosts_[0]->SetInterrupt(level); },
      [this] {
        for (auto& runner : runners_) runner->Request(engine::kRequestLint1);
      });
  board_->io_apic().SetRouteListener([this] {
    if (const Status status = kernel_apics_->UpdateRoutes(); !status)
      EndWith({EndReason::kEngineError, 0, status.error().message});
  });
}

/// Parked; what the engine kept is in our models already, but for their timers.
void Machine::LeaveEngine() {
  {
    const std::lock_guard lock(device_lock_);
    board_->io_apic().SetRouteListener(nullptr);
    LeaveKernel();
    DropDoorbells();
    for (auto& host : hosts_) host->Disconnect();
    engine_->Retire();
  }
  kernel_apics_.reset();
  kernel_doorbells_.reset();
  retiring_ = std::thread([runners = std::move(runners_), engine = std::move(engine_)]() mutable {
    runners.clear();
    engine.reset();
  });
  runners_.clear();
}

Result<Machine::EngineSwitch> Machine::SwitchEngine(EngineKind kind) {
  // Beside the guest, and before anything is given up.
  if (kind == EngineKind::kKvm && NACRE_TRY(KvmRunsKernels())) NACRE_TRY_STATUS(engine::kvm::CheckModel(*model_));
  NACRE_TRY_STATUS(CheckEngine(kind));
  NextEngine next = NACRE_TRY(PrepareEngine(kind));
  if (retiring_.joinable()) retiring_.join();
  const bool paused = state() == RunState::kPaused;
  const auto start = std::chrono::steady_clock::now();
  if (!paused) {
    ParkAll();
    PauseTime();
  }
  std::vector<x86::CpuState> states;
  std::vector<uint32_t> nmis;
  for (auto& runner : runners_) {
    states.push_back(runner->state());
    nmis.push_back(runner->vcpu().pending_requests() & engine::kRequestNmi);
  }
  const EngineKind before = kind_.load();
  LeaveEngine();
  AdoptEngine(std::move(next), states);
  {
    const std::lock_guard lock(device_lock_);
    if (!kernel_apics_)
      for (unsigned i = 0; i < runners_.size(); ++i)
        board_->local_apic(i).ImportState(board_->local_apic(i).ExportState());
  }
  for (size_t i = 0; i < nmis.size(); ++i)
    if (nmis[i]) runners_[i]->Request(nmis[i]);
  if (!paused) {
    ResumeTime();
    ResumeAll();
  }
  const std::chrono::nanoseconds stood_still = std::chrono::steady_clock::now() - start;
  return EngineSwitch{before, paused ? std::chrono::nanoseconds(0) : stood_still};
}

Status Machine::GiveApics() {
  if (!kernel_apics_) return {};
  if (board_->apic_bus().remote()) return kernel_apics_->UpdateRoutes();  // it has them
  devices::KvmParavirt& paravirt = board_->kvm_paravirt();
  for (unsigned i = 0; i < runners_.size(); ++i) {
    engine::KeptState state{.apic = board_->local_apic(i).ExportState()};
    state.ext_int = board_->local_apic(i).TakeHeldExtInt();
    paravirt.ReadMsr(i, devices::KvmParavirt::kMsrStealTime, state.steal_time_msr);
    paravirt.ReadMsr(i, devices::KvmParavirt::kMsrEoi, state.eoi_msr);
    NACRE_TRY_STATUS(runners_[i]->vcpu().apic_keeper()->ImportKept(state));
  }
  board_->apic_bus().SetRemote(kernel_apics_.get());
  board_->memory_bus().SetDoorbellHost(kernel_doorbells_.get());
  return kernel_apics_->UpdateRoutes();
}

/// Nothing is on its way in the host's kernel any more, and from here on messages go to our models.
void Machine::LeaveKernel() {
  board_->memory_bus().DrainDoorbells();  // first: devices send messages when they are rung
  board_->apic_bus().SetRemote(nullptr);
}

/// The engine goes.
void Machine::DropDoorbells() {
  if (kernel_doorbells_) kernel_doorbells_->Retire();
  board_->memory_bus().SetDoorbellHost(nullptr);
}

Status Machine::TakeApics() {
  if (!kernel_apics_ || !board_->apic_bus().remote()) return {};
  LeaveKernel();  // devices still send messages while the machine stands still
  devices::KvmParavirt& paravirt = board_->kvm_paravirt();
  for (unsigned i = 0; i < runners_.size(); ++i) {
    engine::KeptState state;
    NACRE_TRY_STATUS(runners_[i]->vcpu().apic_keeper()->ExportKept(state));
    if (!paravirt.WriteMsr(i, devices::KvmParavirt::kMsrStealTime, state.steal_time_msr) ||
        !paravirt.WriteMsr(i, devices::KvmParavirt::kMsrEoi, state.eoi_msr) ||
        !board_->local_apic(i).ImportState(state.apic))
      return Fail("the host's KVM gave a local APIC state that none of ours can have (CPU {})", i);
    board_->local_apic(i).HoldExtInt(state.ext_int);
    if (runners_[i]->vcpu().pending_requests() & engine::kRequestLint1) {
      runners_[i]->vcpu().ClearRequest(engine::kRequestLint1);
      board_->apic_bus().PulseLint1(i);
    }
  }
  return {};
}

Result<std::unique_ptr<engine::Engine>> Machine::MakeEngine(EngineKind kind) const {
  if (kind == EngineKind::kInterp) return engine::interp::CreateInterpEngine();
  if (kind == EngineKind::kKvm) return engine::kvm::CreateKvmEngine(*memory_, {.kernel = config_.kvm_kernel});
  // Each CPU has a code cache of its own.
  const uint64_t usual = std::min(92 * kMiB, 512 * kMiB / config_.cpu_count);
  return engine::jit::CreateJitEngine({.code_cache_bytes = config_.code_cache_bytes ? config_.code_cache_bytes : usual,
                                       .lockstep = config_.lockstep,
                                       .lockstep_from = config_.lockstep_from,
                                       .prepared = true,
                                       .debug = config_.jit_debug});
}

Machine::~Machine() {
  RefuseOrders();
  EndSnapshots();
  ParkAll();
  if (loop_thread_.joinable()) {
    loop_->Stop();
    loop_thread_.join();
  }
  for (auto& host : hosts_) host->Disconnect();
  runners_.clear();
  if (retiring_.joinable()) retiring_.join();
  vnc_.reset();  // it takes the device lock
  guest_agent_.reset();
  const std::lock_guard lock(device_lock_);
  if (board_) {
    LeaveKernel();
    DropDoorbells();
  }
  board_.reset();
}

/// Under the device lock.
void Machine::MemoryChanged() {
  for (auto& host : hosts_) host->FlushTranslations();
  if (!engine_) return;
  if (const Status status = engine_->MemoryChanged(); !status)
    EndWith({EndReason::kEngineError, 0, status.error().message});
}

Status Machine::StartGuest() {
  if (firmware_) {
    StartFirmware();
  } else {
    NACRE_TRY_STATUS(StartKernel());
  }
  const std::lock_guard lock(device_lock_);
  for (auto& runner : runners_) runner->state().tsc_offset = tsc_->offset();
  return GiveApics();
}

void Machine::StartFirmware() {
  const std::lock_guard lock(device_lock_);
  LeaveKernel();  // what is reset is ours
  board_->Reset();
  for (unsigned i = 0; i < runners_.size(); ++i) {
    x86::ResetCpuState(runners_[i]->state());
    if (i != 0) x86::InitCpuState(runners_[i]->state(), false);
  }
}

Status Machine::StartKernel() {
  boot::BootRequest request;
  request.kernel = config_.kernel;
  request.initrds = config_.initrds;
  request.command_line = config_.command_line;
  if (getrandom(request.random_seed.data(), request.random_seed.size(), 0) !=
      static_cast<ssize_t>(request.random_seed.size()))
    return FailErrno("random numbers for the guest");
  const std::lock_guard lock(device_lock_);
  LeaveKernel();  // what is reset is ours
  board_->Reset();
  NACRE_TRY_STATUS(board_->PrepareDirectBoot());
  request.memory_map = boot::BuildMemoryMap(*memory_, {});
  request.screen = board_->BootScreen();
  request.rsdp = NACRE_TRY(boot::WriteAcpiTables(*memory_, board_->AcpiDescription()));
  const boot::LoadedKernel loaded = NACRE_TRY(boot::LoadKernel(*memory_, request));
  for (unsigned i = 0; i < runners_.size(); ++i) {
    x86::CpuState& state = runners_[i]->state();
    if (i == 0) {
      state = loaded.state;
    } else {
      x86::ResetCpuState(state);
      x86::InitCpuState(state, false);
    }
  }
  return {};
}

Status Machine::ResetGuest() {
  ParkAll();
  // A kernel finds memory as at power-on. Firmware finds what was there, as after a computer's reset.
  if (!firmware_) {
    const std::lock_guard lock(device_lock_);
    for (const memory::Region& region : memory_->regions())
      if (!memory_->Discard(region.start, region.size_bytes)) return FailErrno("reset: the guest's memory");
  }
  NACRE_TRY_STATUS(StartGuest());
  if (state() != RunState::kPaused) ResumeAll();
  return {};
}

void Machine::ParkAll() {
  for (auto& runner : runners_) runner->Park(false);
  for (auto& runner : runners_) runner->Park(true);
}

void Machine::ParkSoon() {
  for (auto& runner : runners_) runner->Park(false);
}

void Machine::ResumeAll() {
  if (asleep()) return;
  for (auto& runner : runners_) runner->Resume();
}

void Machine::PauseTime() {
  const std::lock_guard lock(device_lock_);
  tsc_->Pause();
  loop_->Pause();
  if (const Status status = TakeApics(); !status) EndWith({EndReason::kEngineError, 0, status.error().message});
}

/// The counter goes on from where it stood, or, where it cannot be moved, from where the host's is: that is later.
/// KVM's paravirtual clock goes on from where it stood in both cases.
void Machine::ResumeTime() {
  const std::lock_guard lock(device_lock_);
  const bool moves = kind_ != EngineKind::kKvm || kvm_moves_tsc_;
  // The counter first in both: what passes between the two clocks cancels out.
  const uint64_t stood_still = tsc_->Resume();
  loop_->Resume();
  if (!moves) tsc_->SetOffset(0);
  for (unsigned i = 0; i < runners_.size(); ++i) {
    uint64_t& offset = runners_[i]->state().tsc_offset;
    offset = moves ? offset - stood_still : 0;
    board_->local_apic(i).TscChanged();
  }
  board_->kvm_clock().Resumed();
  if (const Status status = GiveApics(); !status) EndWith({EndReason::kEngineError, 0, status.error().message});
}

void Machine::Pause() {
  if (state() != RunState::kRunning) return;
  ParkAll();
  PauseTime();
  run_state_ = RunState::kPaused;
}

void Machine::Resume() {
  if (state() == RunState::kRunning) return;
  ResumeTime();
  ResumeAll();
  run_state_ = RunState::kRunning;
}

RunResult Machine::Run() {
  NACRE_CHECK(!loop_thread_.joinable());
  loop_thread_ = std::thread([this] { loop_->Run(); });
  pthread_setname_np(loop_thread_.native_handle(), "devices");
  if (from_image_) verify_thread_ = std::thread([this] { VerifyMemory(); });
  Resume();  // time stood still since counter value 0
  return Finish(Control());
}

RunResult Machine::Control() {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point deadline = Clock::now() + std::chrono::milliseconds(config_.timeout_ms.value_or(0));
  std::unique_lock lock(control_mutex_);
  for (;;) {
    const auto something = [&] { return end_ || want_reset_ || want_sleep_ || want_wake_ || !orders_.empty(); };
    if (!config_.timeout_ms) {
      control_changed_.wait(lock, something);
    } else if (!control_changed_.wait_until(lock, deadline, something)) {
      return {EndReason::kTimeout, 0, {}};
    }
    if (end_) return *end_;
    if (std::exchange(want_sleep_, false)) {
      lock.unlock();
      ParkAll();
      lock.lock();
      continue;
    }
    const bool reset = std::exchange(want_reset_, false);
    const bool wake = std::exchange(want_wake_, false);
    Order order;
    if (!reset && !wake) {
      order = std::move(orders_.front());
      orders_.pop_front();
    }
    lock.unlock();
    if (!reset && !wake) {
      order.carry_out();
    } else if (!reset) {
      if (const Status status = WakeGuest(); !status)
        return {EndReason::kEngineError, 0, "the guest's end of sleep: " + status.error().message};
    } else if (const Status status = ResetGuest(); !status) {
      return {EndReason::kEngineError, 0, "the guest asked for a reset: " + status.error().message};
    }
    lock.lock();
  }
}

RunResult Machine::Finish(RunResult result) {
  ParkAll();
  run_state_ = RunState::kEnded;
  RefuseOrders();
  if (guest_agent_) guest_agent_->Cancel();
  EndSnapshots();
  loop_->Stop();
  loop_thread_.join();
  {
    // What the guest wrote reaches the console and the disks before anybody reads the exit status.
    const std::lock_guard lock(device_lock_);
    board_->memory_bus().DrainDoorbells();
    board_->typist().Cancel();
    board_->Flush();
  }
  if (result.reason == EndReason::kGuestCrash || result.reason == EndReason::kEngineError)
    result.detail += CrashReport(runners_[crashed_cpu_]->state(), *memory_, crashed_cpu_);
  return result;
}

void Machine::EndWith(RunResult result) {
  {
    const std::lock_guard lock(control_mutex_);
    if (!end_) end_ = std::move(result);
  }
  control_changed_.notify_all();
  ParkSoon();
}

void Machine::Stop() { EndWith({EndReason::kLeft, 0, {}}); }

Status Machine::NewGeneration() {
  const auto guid = NACRE_TRY(devices::GenerationId::Random());
  const std::lock_guard lock(device_lock_);
  board_->generation_id().Change(guid);
  return {};
}

void Machine::PressPowerButton() {
  loop_->Post([this] { board_->PressPowerButton(); });
}

void Machine::ResizeConsole(uint16_t columns, uint16_t rows) {
  loop_->Post([this, columns, rows] { board_->ResizeConsole(columns, rows); });
}

template <typename T, typename Work>
void Machine::Ask(Work work, Done<T> done) {
  if (!done) done = [](const Result<T>&) {};
  Enqueue(
      {[work = std::move(work), done] { done(work()); }, [done](const Error& error) { done(std::unexpected(error)); }});
}

void Machine::Enqueue(Order order) {
  {
    const std::lock_guard lock(control_mutex_);
    if (!refuses_orders_) {
      orders_.push_back(std::move(order));
      control_changed_.notify_all();
      return;
    }
  }
  order.refuse({"the guest has ended", ECANCELED});
}

void Machine::RefuseOrders() {
  std::deque<Order> orders;
  {
    const std::lock_guard lock(control_mutex_);
    refuses_orders_ = true;
    orders.swap(orders_);
  }
  for (const Order& order : orders) order.refuse({"the guest has ended", ECANCELED});
}

void Machine::RequestPause(Done<void> done) {
  Ask<void>([this] { return Pause(), Status(); }, std::move(done));
}

void Machine::RequestResume(Done<void> done) {
  Ask<void>([this] { return Resume(), Status(); }, std::move(done));
}

void Machine::RequestEngine(EngineKind kind, Done<EngineSwitch> done) {
  NACRE_CHECK(kind != EngineKind::kAuto);
  Ask<EngineSwitch>([this, kind] { return SwitchEngine(kind); }, std::move(done));
}

void Machine::RequestRegisters(Done<std::vector<std::string>> done) {
  const auto collect = [this]() -> Result<std::vector<std::string>> {
    const bool runs = state() == RunState::kRunning;
    if (runs) ParkAll();
    std::vector<std::string> cpus;
    for (unsigned i = 0; i < runners_.size(); ++i) cpus.push_back(CrashReport(runners_[i]->state(), *memory_, i));
    if (runs) ResumeAll();
    return cpus;
  };
  Ask<std::vector<std::string>>(collect, std::move(done));
}

void Machine::RequestStatistics(Done<std::vector<StatisticsSection>> done) {
  const auto collect = [this]() -> Result<std::vector<StatisticsSection>> {
    const bool runs = state() == RunState::kRunning;
    if (runs) ParkAll();
    auto sections = Statistics();
    if (runs) ResumeAll();
    return sections;
  };
  Ask<std::vector<StatisticsSection>>(collect, std::move(done));
}

void Machine::OnShutdown(unsigned index) {
  {
    const std::lock_guard lock(control_mutex_);
    if (!end_) crashed_cpu_ = index;
  }
  EndWith({EndReason::kGuestCrash, 0, fmt::format("triple fault on CPU {}", index)});
}

void Machine::OnEngineError(unsigned index, std::string error) {
  {
    const std::lock_guard lock(control_mutex_);
    if (!end_) crashed_cpu_ = index;
  }
  EndWith({EndReason::kEngineError, 0, std::move(error)});
}

bool Machine::TakeKick(unsigned index) { return board_->kvm_paravirt().TakeKick(index); }
void Machine::OnSleep(unsigned index) { board_->kvm_paravirt().Sleeping(index); }
bool Machine::OnWake(unsigned index) { return board_->kvm_paravirt().Running(index); }

void Machine::PowerOff() { EndWith({EndReason::kPowerOff, 0, {}}); }

void Machine::ResetMachine() {
  if (config_.no_reboot) return EndWith({EndReason::kReset, 0, {}});
  {
    const std::lock_guard lock(control_mutex_);
    want_reset_ = true;
  }
  control_changed_.notify_all();
  ParkSoon();
}

void Machine::DebugExit(uint32_t value) { EndWith({EndReason::kDebugExit, value, {}}); }

std::vector<StatisticsSection> Machine::Statistics() const {
  std::vector<StatisticsSection> sections;
  sections.push_back({fmt::format("engine {}", engine_->name()), engine_->Statistics()});
  for (unsigned i = 0; i < runners_.size(); ++i) {
    sections.push_back({fmt::format("cpu {}", i), runners_[i]->Statistics()});
    const CpuHost& host = *hosts_[i];
    sections.push_back({fmt::format("cpu {} and the devices", i),
                        {{"port accesses", host.exits(CpuHost::kPort)},
                         {"memory-mapped accesses", host.exits(CpuHost::kMmio)},
                         {"machine MSR accesses", host.exits(CpuHost::kMsr)},
                         {"interrupts taken", host.exits(CpuHost::kInterrupt)},
                         {"hypercalls", host.exits(CpuHost::kHypercall)}}});
  }
  const std::lock_guard lock(device_lock_);
  sections.push_back({"device traffic (reads and writes)", board_->Traffic()});
  if (kernel_doorbells_) sections.push_back({"doorbells", {{"rings by ioeventfd", kernel_doorbells_->rings()}}});
  return sections;
}

std::string Machine::StatisticsText() const {
  std::string text;
  if (!auto_reason_.empty()) text += fmt::format("auto took {}: {}\n", engine_->name(), auto_reason_);
  for (const StatisticsSection& section : Statistics()) {
    if (section.entries.empty()) continue;
    text += fmt::format("{}:\n", section.title);
    for (const auto& [name, value] : section.entries) text += fmt::format("  {:<40} {:>16}\n", name, value);
  }
  return text;
}

}  // namespace nacre::machine
