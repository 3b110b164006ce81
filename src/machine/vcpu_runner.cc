#include "machine/vcpu_runner.h"

#include <pthread.h>

namespace nacre::machine {

VcpuRunner::VcpuRunner(unsigned index, std::unique_ptr<engine::Vcpu> vcpu, VcpuEvents& events)
    : index_(index), vcpu_(std::move(vcpu)), events_(events), thread_([this] { ThreadMain(); }) {
  pthread_setname_np(thread_.native_handle(), fmt::format("vcpu{}", index).c_str());
}

VcpuRunner::~VcpuRunner() {
  Park();
  {
    const std::lock_guard lock(mutex_);
    command_ = Command::kQuit;
  }
  changed_.notify_all();
  thread_.join();
}

void VcpuRunner::Request(uint32_t bits) {
  vcpu_->Request(bits);
  Wake();
}

void VcpuRunner::Init() {
  sipi_.store(kNoSipi);
  accepts_sipi_.store(index_ != 0);  // the bootstrap processor starts at the reset vector
  Request(engine::kRequestInit);
}

void VcpuRunner::StartUp(uint8_t vector) {
  if (!accepts_sipi_.exchange(false)) return;
  sipi_.store(vector);
  Wake();
}

void VcpuRunner::Wake() { wakes_.Wake(); }

void VcpuRunner::Sleep(uint32_t since) {
  ++halts_;
  events_.OnSleep(index_);
  wakes_.Wait(since);
  if (events_.OnWake(index_)) vcpu_->Request(engine::kRequestTlbFlush);
}

void VcpuRunner::SleepUntilAsked() {
  for (;;) {
    const uint32_t wakes = wakes_.now();
    if (asked()) return;
    wakes_.Wait(wakes);
  }
}

void VcpuRunner::Park(bool wait) {
  std::unique_lock lock(mutex_);
  command_ = Command::kPark;
  asked_.store(true, std::memory_order_release);
  Request(engine::kRequestStop);
  if (wait) changed_.wait(lock, [this] { return parked_; });
}

void VcpuRunner::Resume() {
  {
    const std::lock_guard lock(mutex_);
    command_ = Command::kRun;
    asked_.store(false, std::memory_order_release);
    if (sipi_.load() == kNoSipi) accepts_sipi_.store(state_.wait_for_sipi);
    vcpu_->ClearRequest(engine::kRequestStop);
  }
  changed_.notify_all();
}

void VcpuRunner::ThreadMain() {
  std::unique_lock lock(mutex_);
  for (;;) {
    parked_ = true;
    changed_.notify_all();
    changed_.wait(lock, [this] { return command_ != Command::kPark; });
    if (command_ == Command::kQuit) return;
    parked_ = false;
    lock.unlock();
    vcpu_->Import(state_);
    RunUntilAsked();
    vcpu_->Export(state_);
    SettleInit();
    lock.lock();
  }
}

void VcpuRunner::RunUntilAsked() {
  // An engine that keeps the local APIC waits for the SIPI itself.
  if (state_.wait_for_sipi && !vcpu_->apic_keeper() && !WaitForSipi()) return;
  for (;;) {
    // Taken before Run: whatever comes while the engine runs makes the sleep after it return at once, and Run looks
    // again.
    const uint32_t wakes = wakes_.now();
    if (asked()) return;
    ++runs_;
    switch (vcpu_->Run()) {
      case engine::ExitReason::kHalted:
        if (events_.TakeKick(index_))
          vcpu_->Request(engine::kRequestUnhalt);
        else
          Sleep(wakes);
        break;
      case engine::ExitReason::kInit:
        OnInit();
        if (state_.wait_for_sipi && !WaitForSipi()) return;
        break;
      case engine::ExitReason::kShutdown:
        events_.OnShutdown(index_);
        SleepUntilAsked();
        break;
      case engine::ExitReason::kError:
        events_.OnEngineError(index_, vcpu_->error());
        SleepUntilAsked();
        break;
      case engine::ExitReason::kStop:
      case engine::ExitReason::kBudget:
        break;
    }
  }
}

void VcpuRunner::OnInit() {
  vcpu_->Export(state_);
  x86::InitCpuState(state_, index_ == 0);
  vcpu_->Import(state_);
}

void VcpuRunner::SettleInit() {
  if (vcpu_->pending_requests() & engine::kRequestInit) {
    vcpu_->ClearRequest(engine::kRequestInit);
    x86::InitCpuState(state_, index_ == 0);
  }
  if (state_.wait_for_sipi) TakeSipi();
}

bool VcpuRunner::TakeSipi() {
  const int vector = sipi_.exchange(kNoSipi);
  if (vector == kNoSipi) return false;
  vcpu_->ClearRequest(engine::kRequestNmi);  // had no effect on a CPU that waited
  // SDM 3A 9.4.4.1: execution starts at 000VV000h.
  x86::Segment& cs = state_.segment[x86::kCs];
  cs.selector = static_cast<uint16_t>(vector << 8);
  cs.base = static_cast<uint64_t>(vector) << 12;
  state_.rip = 0;
  state_.wait_for_sipi = false;
  state_.halted = false;
  return true;
}

bool VcpuRunner::WaitForSipi() {
  for (;;) {
    const uint32_t wakes = wakes_.now();
    if (asked()) return false;
    // An INIT changes nothing for a CPU that waits already; one that comes after this stays for Run.
    vcpu_->ClearRequest(engine::kRequestInit);
    if (TakeSipi()) {
      vcpu_->Import(state_);
      return true;
    }
    wakes_.Wait(wakes);
  }
}

std::vector<engine::Statistic> VcpuRunner::Statistics() const {
  auto statistics = vcpu_->Statistics();
  statistics.push_back({"engine runs", runs_});
  statistics.push_back({"halts", halts_});
  return statistics;
}

}  // namespace nacre::machine
