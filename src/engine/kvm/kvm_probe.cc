#include "engine/kvm/kvm_probe.h"

#include <pthread.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "base/bits.h"
#include "engine/kvm/probe_layout.h"
#include "x86/cpu_state.h"

extern "C" {
extern const uint8_t NacreProbeGuest[], NacreProbeGuestEnd[];
void NacreProbeNative(void* data);
}

namespace nacre::engine::kvm {
namespace {

// Guest-physical and, by the page tables, linear addresses.
constexpr uint64_t kCode = 0, kData = 0x1000, kPml4 = 0x2000, kPdpt = 0x3000, kDirectory = 0x4000, kBytes = 0x5000;
constexpr uint64_t kPresentWritableUser = 7, kLargePage = 1 << 7;

constexpr uint64_t kAlarmNs = 5'000'000, kShortestAlarmNs = 100'000;  ///< between looks at a guest
constexpr uint64_t kModeCpuNs = 6'000'000;                            ///< of the thread's time for one mode
constexpr uint64_t kStepNs = 500'000;  ///< what a measured step should take: hundreds of exits
constexpr uint64_t kCheckedRounds = 64;
constexpr uint64_t kMostRounds = 1 << 24;
constexpr uint64_t kNativeRounds = 20'000;
constexpr int kRepeats = 3;  ///< of a measurement; the shortest counts, disturbances only lengthen

uint64_t NowNs(clockid_t clock) {
  timespec now;
  clock_gettime(clock, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec);
}

struct alignas(kPageSize) DataPage {
  uint8_t bytes[kPageSize] = {};

  void SetRounds(uint64_t rounds) { StoreLe(bytes + NACRE_PROBE_ROUNDS, rounds); }
};

/// The shortest time of a round on the host, in ns.
double NativeRoundNs() {
  const auto page = std::make_unique<DataPage>();
  page->SetRounds(kNativeRounds);
  uint64_t best = ~uint64_t{0};
  for (int i = 0; i < kRepeats; ++i) {
    const uint64_t start = NowNs(CLOCK_MONOTONIC);
    NacreProbeNative(page->bytes);
    best = std::min(best, NowNs(CLOCK_MONOTONIC) - start);
  }
  return static_cast<double>(std::max<uint64_t>(best, 1)) / kNativeRounds;
}

/// Makes KVM_RUN of this thread return with EINTR every few ms. See the header for the signal.
class Alarm {
 public:
  static Result<std::unique_ptr<Alarm>> Start(uint64_t period_ns) {
    std::unique_ptr<Alarm> alarm(new Alarm);
    sigevent event{};
    event.sigev_notify = SIGEV_THREAD_ID;
    event.sigev_signo = SIGRTMAX;
    event._sigev_un._tid = gettid();
    if (timer_create(CLOCK_MONOTONIC, &event, &alarm->timer_) != 0) return FailErrno("a timer for the probe");
    alarm->made_ = true;
    const timespec period{0, static_cast<long>(period_ns)};
    const itimerspec when{period, period};
    if (timer_settime(alarm->timer_, 0, &when, nullptr) != 0) return FailErrno("a timer for the probe");
    return alarm;
  }
  Alarm(const Alarm&) = delete;
  Alarm& operator=(const Alarm&) = delete;
  ~Alarm() {
    if (made_) timer_delete(timer_);
    Take();
    pthread_sigmask(SIG_SETMASK, &outside_, nullptr);
  }

  /// After EINTR: the signal is still pending and would end the next KVM_RUN too.
  static void Take() {
    const sigset_t set = Signal();
    constexpr timespec kNoTime{};
    while (sigtimedwait(&set, nullptr, &kNoTime) == SIGRTMAX) {
    }
  }
  /// KVM_SET_SIGNAL_MASK: as outside, and the alarm's signal comes through.
  Status Admit(int vcpu) const {
    sigset_t inside = outside_;
    sigdelset(&inside, SIGRTMAX);
    constexpr size_t kKernelSigsetBytes = 8;
    alignas(kvm_signal_mask) uint8_t storage[sizeof(kvm_signal_mask) + kKernelSigsetBytes];
    auto* const mask = reinterpret_cast<kvm_signal_mask*>(storage);
    mask->len = kKernelSigsetBytes;
    std::memcpy(mask->sigset, &inside, kKernelSigsetBytes);
    if (ioctl(vcpu, KVM_SET_SIGNAL_MASK, mask) != 0) return FailErrno("KVM_SET_SIGNAL_MASK");
    return {};
  }

 private:
  Alarm() {
    const sigset_t set = Signal();
    pthread_sigmask(SIG_BLOCK, &set, &outside_);
  }
  static sigset_t Signal() {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMAX);
    return set;
  }

  sigset_t outside_;
  timer_t timer_{};
  bool made_ = false;
};

/// The probe's VM: one vCPU, five pages, no devices.
class ProbeVm {
 public:
  static Result<std::unique_ptr<ProbeVm>> Create(const KvmDevice& device, std::span<const kvm_cpuid_entry2> supported) {
    std::unique_ptr<ProbeVm> vm(new ProbeVm);
    NACRE_TRY_STATUS(vm->MakeVm(device));
    NACRE_TRY_STATUS(vm->MakeVcpu(device, supported));
    return vm;
  }
  ProbeVm(const ProbeVm&) = delete;
  ProbeVm& operator=(const ProbeVm&) = delete;
  ~ProbeVm() {
    vcpu_.Close();
    vm_.Close();
    if (run_) munmap(run_, run_bytes_);
    if (memory_) munmap(memory_, kBytes);
  }

  /// Time of a round of the guest's loop in ns.
  Result<double> RoundNs(unsigned cpl, ProbeLimits limits);
  bool emulation_failed() const { return emulation_failed_; }

 private:
  ProbeVm() = default;
  Status MakeVm(const KvmDevice& device);
  Status MakeVcpu(const KvmDevice& device, std::span<const kvm_cpuid_entry2> supported);
  Status Enter(unsigned cpl);
  Result<double> Measure();
  Result<uint64_t> Step(uint64_t rounds);
  Result<uint64_t> Steps(int count, uint64_t rounds);
  Status CheckResult();
  Status ExitReason();
  DataPage& data() { return *reinterpret_cast<DataPage*>(memory_ + kData); }

  Fd vm_, vcpu_;
  uint8_t* memory_ = nullptr;
  kvm_run* run_ = nullptr;
  size_t run_bytes_ = 0;
  ProbeLimits end_;  ///< as the clocks will show them
  bool emulation_failed_ = false;
};

Status ProbeVm::MakeVm(const KvmDevice& device) {
  vm_ = NACRE_TRY(device.CreateVm());
  void* memory = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  if (memory == MAP_FAILED) return FailErrno("memory for the probe's guest");
  memory_ = static_cast<uint8_t*>(memory);
  std::memcpy(memory_ + kCode, NacreProbeGuest, static_cast<size_t>(NacreProbeGuestEnd - NacreProbeGuest));
  StoreLe<uint64_t>(memory_ + kPml4, kPdpt | kPresentWritableUser);
  StoreLe<uint64_t>(memory_ + kPdpt, kDirectory | kPresentWritableUser);
  StoreLe<uint64_t>(memory_ + kDirectory, kPresentWritableUser | kLargePage);
  kvm_userspace_memory_region region{};
  region.memory_size = kBytes;
  region.userspace_addr = reinterpret_cast<uint64_t>(memory_);
  if (ioctl(vm_.get(), KVM_SET_USER_MEMORY_REGION, &region) != 0) return FailErrno("KVM_SET_USER_MEMORY_REGION");
  return {};
}

Status ProbeVm::MakeVcpu(const KvmDevice& device, std::span<const kvm_cpuid_entry2> supported) {
  // Old Intel CPUs want a place for it before the first vCPU (api.rst); others take no notice.
  ioctl(vm_.get(), KVM_SET_TSS_ADDR, 0xfffbd000);
  vcpu_ = Fd(ioctl(vm_.get(), KVM_CREATE_VCPU, 0));
  if (!vcpu_.valid()) return FailErrno("KVM_CREATE_VCPU");
  run_bytes_ = device.vcpu_mmap_bytes();
  void* run = mmap(nullptr, run_bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu_.get(), 0);
  if (run == MAP_FAILED) return FailErrno("the vCPU's shared memory");
  run_ = static_cast<kvm_run*>(run);
  const size_t bytes = sizeof(kvm_cpuid2) + supported.size_bytes();
  const auto storage = std::make_unique<uint64_t[]>((bytes + 7) / 8);
  auto* const list = reinterpret_cast<kvm_cpuid2*>(storage.get());
  list->nent = static_cast<uint32_t>(supported.size());
  std::ranges::copy(supported, list->entries);
  if (ioctl(vcpu_.get(), KVM_SET_CPUID2, list) != 0) return FailErrno("KVM_SET_CPUID2");
  return {};
}

/// Puts the guest at the start of its code. It never loads a segment and takes no interrupt, so it needs no tables for
/// them; IOPL 3 lets its OUT through at CPL 3.
Status ProbeVm::Enter(unsigned cpl) {
  // The last OUT ends with the next KVM_RUN (api.rst, KVM_EXIT_IO); without this it would end in the new state.
  run_->immediate_exit = 1;
  ioctl(vcpu_.get(), KVM_RUN, 0);
  run_->immediate_exit = 0;
  kvm_sregs sregs;
  if (ioctl(vcpu_.get(), KVM_GET_SREGS, &sregs) != 0) return FailErrno("KVM_GET_SREGS");
  kvm_segment data{};
  data.limit = 0xffffffff;
  data.selector = static_cast<uint16_t>(0x10 | cpl);
  data.type = 3;  // read, write, accessed
  data.present = data.s = data.g = data.db = 1;
  data.dpl = static_cast<uint8_t>(cpl);
  kvm_segment code = data;
  code.selector = static_cast<uint16_t>(0x8 | cpl);
  code.type = 11;  // execute, read, accessed
  code.db = 0;
  code.l = 1;
  sregs.cs = code;
  sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
  sregs.cr0 = x86::cr0::kPe | x86::cr0::kMp | x86::cr0::kEt | x86::cr0::kNe | x86::cr0::kWp | x86::cr0::kPg;
  sregs.cr3 = kPml4;
  sregs.cr4 = x86::cr4::kPae;
  sregs.efer = x86::efer::kLme | x86::efer::kLma;
  if (ioctl(vcpu_.get(), KVM_SET_SREGS, &sregs) != 0) return FailErrno("KVM_SET_SREGS");
  kvm_regs regs{};
  regs.rip = kCode;
  regs.rdi = kData;
  regs.rsp = kData + kPageSize;
  regs.rflags = 2 | uint64_t{cpl} << 12;
  if (ioctl(vcpu_.get(), KVM_SET_REGS, &regs) != 0) return FailErrno("KVM_SET_REGS");
  return {};
}

/// Success: the guest has done its step.
Status ProbeVm::ExitReason() {
  switch (run_->exit_reason) {
    case KVM_EXIT_IO:
      if (run_->io.direction == KVM_EXIT_IO_OUT && run_->io.port == NACRE_PROBE_PORT) return {};
      return Fail("an access to port {:#x} that the guest did not make", uint16_t{run_->io.port});
    case KVM_EXIT_SHUTDOWN:
      return Fail("a triple fault by code that cannot fault");
    case KVM_EXIT_FAIL_ENTRY:
      return Fail("the CPU refused the guest's state (reason {:#x})",
                  uint64_t{run_->fail_entry.hardware_entry_failure_reason});
    case KVM_EXIT_INTERNAL_ERROR:
      emulation_failed_ = run_->internal.suberror == KVM_INTERNAL_ERROR_EMULATION;
      if (emulation_failed_) return Fail("KVM emulates and does not know a common instruction");
      return Fail("an error inside KVM (suberror {})", uint32_t{run_->internal.suberror});
    default:
      return Fail("an unexpected exit ({})", uint32_t{run_->exit_reason});
  }
}

/// Time of a step of `rounds`, exit and entry included, in ns.
Result<uint64_t> ProbeVm::Step(uint64_t rounds) {
  data().SetRounds(rounds);
  const uint64_t start = NowNs(CLOCK_MONOTONIC);
  while (ioctl(vcpu_.get(), KVM_RUN, 0) != 0) {
    if (errno != EINTR && errno != EAGAIN) return FailErrno("KVM_RUN");
    Alarm::Take();
    if (NowNs(CLOCK_THREAD_CPUTIME_ID) >= end_.cpu_ns || NowNs(CLOCK_MONOTONIC) >= end_.wall_ns)
      return Fail("KVM did not come back from the guest in time");
  }
  const uint64_t taken = NowNs(CLOCK_MONOTONIC) - start;
  NACRE_TRY_STATUS(ExitReason());
  return taken;
}

/// The shortest of `count` steps.
Result<uint64_t> ProbeVm::Steps(int count, uint64_t rounds) {
  uint64_t best = ~uint64_t{0};
  for (int i = 0; i < count; ++i) best = std::min(best, NACRE_TRY(Step(rounds)));
  return best;
}

/// The same on the host must leave the same bytes.
Status ProbeVm::CheckResult() {
  const auto expected = std::make_unique<DataPage>(data());
  expected->SetRounds(kCheckedRounds);
  NacreProbeNative(expected->bytes);
  NACRE_TRY(Step(kCheckedRounds));
  if (std::memcmp(expected->bytes, data().bytes, kPageSize) != 0) return Fail("the guest computed something else");
  return {};
}

Result<double> ProbeVm::Measure() {
  const uint64_t cpu_end_ns = NowNs(CLOCK_THREAD_CPUTIME_ID) + kModeCpuNs;
  NACRE_TRY_STATUS(CheckResult());
  const uint64_t exit_ns = NACRE_TRY(Steps(kRepeats, 1));
  for (uint64_t rounds = 8;;) {
    uint64_t step_ns = NACRE_TRY(Step(rounds));
    const auto long_enough = [&] { return step_ns >= exit_ns + kStepNs / 2; };
    if (long_enough()) step_ns = std::min(step_ns, NACRE_TRY(Steps(kRepeats - 1, rounds)));
    if (long_enough()) return static_cast<double>(step_ns - exit_ns) / static_cast<double>(rounds);
    // Out of time because even an exit takes long: such a KVM is slow, and the exit counts.
    if (NowNs(CLOCK_THREAD_CPUTIME_ID) >= cpu_end_ns) return static_cast<double>(step_ns) / static_cast<double>(rounds);
    const uint64_t inside_ns = std::max(step_ns, exit_ns + 1) - exit_ns;
    rounds = std::min(kMostRounds, rounds * std::min<uint64_t>(8, kStepNs / inside_ns + 1));
  }
}

Result<double> ProbeVm::RoundNs(unsigned cpl, ProbeLimits limits) {
  end_ = {NowNs(CLOCK_THREAD_CPUTIME_ID) + limits.cpu_ns, NowNs(CLOCK_MONOTONIC) + limits.wall_ns};
  const auto alarm = NACRE_TRY(Alarm::Start(std::clamp(limits.cpu_ns, kShortestAlarmNs, kAlarmNs)));
  NACRE_TRY_STATUS(alarm->Admit(vcpu_.get()));
  NACRE_TRY_STATUS(Enter(cpl));
  return Measure();
}

}  // namespace

KvmProbe ProbeSpeed(const KvmDevice& device, std::span<const kvm_cpuid_entry2> supported, ProbeLimits limits) {
  KvmProbe probe;
  const auto vm = ProbeVm::Create(device, supported);
  if (!vm) {
    probe.failure = vm.error().message;
    return probe;
  }
  double native_ns = NativeRoundNs();
  const auto kernel_ns = (*vm)->RoundNs(0, limits);
  if (!kernel_ns) {
    probe.failure = "in kernel mode: " + kernel_ns.error().message;
    probe.kernel_emulation_failed = (*vm)->emulation_failed();
    return probe;
  }
  const auto user_ns = (*vm)->RoundNs(3, limits);
  native_ns = std::min(native_ns, NativeRoundNs());
  probe.speed.kernel = *kernel_ns / native_ns;
  if (user_ns) {
    probe.speed.user = *user_ns / native_ns;
  } else {
    probe.failure = "in user mode: " + user_ns.error().message;
  }
  return probe;
}

}  // namespace nacre::engine::kvm
