#include "engine/kvm/kvm_user_vcpu.h"

#include <cpuid.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>

#include <algorithm>
#include <csignal>
#include <cstring>

#include "engine/kvm/kvm_cpuid.h"
#include "engine/kvm/kvm_exits.h"
#include "engine/kvm/kvm_state.h"
#include "engine/kvm/kvm_vm.h"
#include "x86/page_walk.h"

namespace nacre::engine::kvm {

namespace {

namespace flag = x86::rflags;
using x86::CpuState;
using x86::Segment;

constexpr uint32_t kMsrStar = 0xc0000081, kMsrLstar = 0xc0000082, kMsrCstar = 0xc0000083;
/// Where SYSCALL goes on KVM: a page that no guest gives to user mode (checked before each stay). A KVM that emulates
/// may take SYSCALL even with EFER.SCE clear.
constexpr uint64_t kSyscallTrap = 0xfffffffffffff000;
/// The only selectors that user mode can see on such a KVM: those of the host's own programs.
constexpr uint64_t kDr6SingleStep = uint64_t{1} << 14;
constexpr uint16_t kHostCs = 0x33, kHostSs = 0x2b;
/// RFLAGS that user mode can change with IOPL 0.
constexpr uint64_t kUserFlags = flag::kArithmetic | flag::kTf | flag::kDf | flag::kNt | flag::kAc | flag::kId;

uint64_t HostXcr0() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return 0;
  asm volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
  return uint64_t{d} << 32 | a;
}

/// In user mode this thread runs the guest's instructions with the host's counter. Linux can make RDTSC #GP for a
/// thread (and KVM with CR4.TSD leaves it at that), so that the interpreter executes it.
void AllowTsc(bool allow) { prctl(PR_SET_TSC, allow ? PR_TSC_ENABLE : PR_TSC_SIGSEGV); }

}  // namespace

KvmUserVcpu::KvmUserVcpu(KvmVm& vm, VcpuGroup& group, const VcpuConfig& config, uint64_t interpreted_first)
    : vm_(vm),
      member_(group, *this, nullptr),
      config_([&] {
        VcpuConfig own = config;
        own.exclusive = &member_;
        return own;
      }()),
      interpreted_first_(interpreted_first),
      interpreter_(config_, this),
      xsave_(std::max<size_t>(sizeof(kvm_xsave), HostXsave().bytes)),
      left_(ZYDIS_MNEMONIC_MAX_VALUE + 1) {}

KvmUserVcpu::~KvmUserVcpu() {
  if (run_) munmap(run_, run_bytes_);
}

Result<std::unique_ptr<KvmUserVcpu>> KvmUserVcpu::Create(KvmVm& vm, VcpuGroup& group, const VcpuConfig& config,
                                                         uint64_t interpreted_first) {
  std::unique_ptr<KvmUserVcpu> vcpu(new KvmUserVcpu(vm, group, config, interpreted_first));
  NACRE_TRY_STATUS(vcpu->Open());
  return vcpu;
}

Status KvmUserVcpu::Open() {
  fd_ = NACRE_TRY(vm_.CreateVcpu(config_.index));
  run_bytes_ = vm_.device().vcpu_mmap_bytes();
  void* run = mmap(nullptr, run_bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, fd_.get(), 0);
  if (run == MAP_FAILED) return FailErrno("KVM: the shared page of virtual CPU {}", config_.index);
  run_ = static_cast<kvm_run*>(run);
  components_ = config_.model->xcr0_mask() | 3;
  host_xcr0_ = HostXcr0();
  x86::ResetCpuState(state_);
  NACRE_TRY_STATUS(SetCpuid(fd_, *config_.model, config_.index));
  if (!Call(KVM_GET_SREGS2, &sregs_, "KVM_GET_SREGS2")) return nacre::Fail("{}", error_);
  constexpr kvm_msr_entry kMsrs[] = {{kMsrStar, 0, uint64_t{kHostCs - 16} << 48 | uint64_t{0x10} << 32},
                                     {kMsrLstar, 0, kSyscallTrap},
                                     {kMsrCstar, 0, kSyscallTrap}};
  alignas(kvm_msrs) uint8_t bytes[sizeof(kvm_msrs) + sizeof kMsrs] = {};
  auto* const msrs = reinterpret_cast<kvm_msrs*>(bytes);
  msrs->nmsrs = std::size(kMsrs);
  std::ranges::copy(kMsrs, msrs->entries);
  if (ioctl(fd_.get(), KVM_SET_MSRS, msrs) != std::size(kMsrs)) return FailErrno("KVM: the MSRs of SYSCALL");
  KickSignal();
  return {};
}

bool KvmUserVcpu::Fail(std::string text) {
  error_ = fmt::format("KVM: {}", text);
  return false;
}

bool KvmUserVcpu::Call(unsigned long request, void* argument, const char* what) {
  if (ioctl(fd_.get(), request, argument) >= 0) return true;
  return Fail(fmt::format("{}: {}", what, std::strerror(errno)));
}

void KvmUserVcpu::Import(const CpuState& state) {
  state_ = state;
  interpreter_.FlushTlb();
  stale_ = true;
}

void KvmUserVcpu::OnAddressSpace(uint16_t, bool keep) {
  if (!keep) stale_ = true;
}

void KvmUserVcpu::Request(uint32_t bits) {
  requests_.fetch_or(bits);
  std::atomic_ref(run_->immediate_exit).store(1);
  if (on_kvm_.load()) pthread_kill(thread_, KickSignal());
}

// ---- The loop.

ExitReason KvmUserVcpu::Run(uint64_t instruction_budget) {
  thread_ = pthread_self();
  member_.Enter();
  const ExitReason reason = RunEntered(instruction_budget);
  member_.Leave();
  return reason;
}

ExitReason KvmUserVcpu::RunEntered(uint64_t instruction_budget) {
  const uint64_t end = instruction_budget == 0 ? ~uint64_t{0} : interpreter_.retired() + instruction_budget;
  user_since_ = interpreter_.retired();
  for (;;) {
    if (const uint32_t requests = requests_.load(); requests != 0) [[unlikely]] {
      ExitReason reason;
      if (Serve(requests, reason)) return reason;
    }
    if (state_.halted) return ExitReason::kHalted;
    if (state_.cpl() != 3) {
      user_since_ = interpreter_.retired();
    } else if (interpreter_.retired() - user_since_ >= interpreted_first_ && instruction_budget == 0 && Ordinary()) {
      if (!RunOnKvm()) return ExitReason::kError;
      user_since_ = interpreter_.retired();
      if (!fault_) continue;
    }
    switch (interpreter_.Step(state_)) {
      case interp::StepResult::kOk:
      case interp::StepResult::kHalted:
        break;
      case interp::StepResult::kShutdown:
        return ExitReason::kShutdown;
    }
    if (interpreter_.retired() >= end) return ExitReason::kBudget;
  }
}

bool KvmUserVcpu::Serve(uint32_t requests, ExitReason& reason) {
  if ((requests & kRequestStop) && Take(kRequestStop)) {
    reason = ExitReason::kStop;
    return true;
  }
  if ((requests & kRequestInit) && Take(kRequestInit)) {
    reason = ExitReason::kInit;
    return true;
  }
  if (requests & kRequestEngine) {
    Take(kRequestEngine);
    member_.Safepoint();
  }
  if ((requests & kRequestTlbFlush) && Take(kRequestTlbFlush)) {
    interpreter_.FlushTlb();
    stale_ = true;
  }
  if ((requests & kRequestUnhalt) && Take(kRequestUnhalt)) state_.halted = false;
  interp::StepResult result = interp::StepResult::kOk;
  const bool mov_ss = state_.interrupt_shadow && state_.shadow_is_mov_ss;
  if ((requests & kRequestNmi) && !state_.nmi_masked && !mov_ss && Take(kRequestNmi)) {
    ++interrupts_;
    result = interpreter_.InjectNmi(state_);
  } else if ((requests & kRequestInterrupt) && (state_.rflags & flag::kIf) && !state_.interrupt_shadow) {
    if (const int vector = config_.host->AcknowledgeInterrupt(); vector >= 0) {
      ++interrupts_;
      result = interpreter_.InjectInterrupt(state_, static_cast<uint8_t>(vector));
    }
  }
  reason = ExitReason::kShutdown;
  return result == interp::StepResult::kShutdown;
}

// ---- On KVM.

bool KvmUserVcpu::Ordinary() const {
  const auto& segment = state_.segment;
  constexpr uint64_t kNo = flag::kTf | flag::kRf | flag::kIoplMask;
  return state_.code64() && state_.paging() && (state_.rflags & (kNo | flag::kIf)) == flag::kIf &&
         segment[x86::kCs].selector == kHostCs && segment[x86::kSs].selector == kHostSs &&
         (segment[x86::kDs].selector | segment[x86::kEs].selector | segment[x86::kFs].selector |
          segment[x86::kGs].selector) == 0 &&
         (state_.dr7 & 0xff) == 0 && !state_.interrupt_shadow && !state_.pending_debug &&
         (state_.cr0 & (x86::cr0::kTs | x86::cr0::kEm)) == 0 && (state_.cr4 & (x86::cr4::kPke | x86::cr4::kTsd)) == 0 &&
         SeesHostsXcr0() && !SeesSyscallTrap();
}

/// CPUID and XGETBV in user mode are the host's on such a KVM. A program that believes them must not use registers that
/// the guest's kernel does not switch.
bool KvmUserVcpu::SeesHostsXcr0() const { return (state_.cr4 & x86::cr4::kOsXsave) != 0 && state_.xcr0 == host_xcr0_; }

bool KvmUserVcpu::SeesSyscallTrap() const {
  return x86::WalkPages(*config_.memory, state_, GuestVirt(kSyscallTrap),
                        {.access = x86::Access::kRead, .user = true, .set_bits = false})
      .ok;
}

bool KvmUserVcpu::Store() {
  ToKvm(state_, sregs_);
  // No table that an event could be delivered by, none that a segment could be loaded from, no I/O permissions.
  sregs_.gdt = {};
  sregs_.idt = {};
  sregs_.ldt = {};
  sregs_.ldt.unusable = 1;
  sregs_.tr = {};
  sregs_.tr.type = 11;  // busy 64-bit TSS
  sregs_.tr.present = 1;
  sregs_.cr2 = 0;
  sregs_.cr3 &= ~uint64_t{0xfff};  // no PCIDs
  sregs_.cr4 &= x86::cr4::kPae | x86::cr4::kOsFxsr | x86::cr4::kOsXmmExcpt | x86::cr4::kOsXsave;
  sregs_.cr4 |= x86::cr4::kTsd;
  sregs_.efer &= ~x86::efer::kSce;
  if (!Call(KVM_SET_SREGS2, &sregs_, "the host refuses the guest's system registers (KVM_SET_SREGS2)")) return false;
  if (config_.model->xcr0_mask() != 0 && state_.xcr0 != kvm_xcr0_) {
    kvm_xcrs xcrs{};
    xcrs.nr_xcrs = 1;
    xcrs.xcrs[0].value = state_.xcr0;
    if (!Call(KVM_SET_XCRS, &xcrs, "the host refuses the guest's XCR0 (KVM_SET_XCRS)")) return false;
    kvm_xcr0_ = state_.xcr0;
  }
  ToKvm(state_, components_, xsave_.data());
  if (!Call(KVM_SET_XSAVE, xsave_.data(), "the host refuses the guest's vector registers (KVM_SET_XSAVE)"))
    return false;
  kvm_regs regs{};
  ToKvm(state_, regs);
  kvm_vcpu_events events{};
  return Call(KVM_SET_REGS, &regs, "KVM_SET_REGS") && Call(KVM_SET_VCPU_EVENTS, &events, "KVM_SET_VCPU_EVENTS");
}

/// Only what user mode can change.
bool KvmUserVcpu::Fetch() {
  kvm_regs regs{};
  if (!Call(KVM_GET_REGS, &regs, "KVM_GET_REGS") || !Call(KVM_GET_SREGS2, &sregs_, "KVM_GET_SREGS2") ||
      !Call(KVM_GET_XSAVE, xsave_.data(), "KVM_GET_XSAVE"))
    return false;
  const uint64_t flags = state_.rflags;
  FromKvm(regs, state_);
  state_.rflags = (flags & ~kUserFlags) | (regs.rflags & kUserFlags);
  state_.segment[x86::kFs].base = sregs_.fs.base;
  state_.segment[x86::kGs].base = sregs_.gs.base;
  FromKvm(xsave_.data(), components_, state_);
  fault_ = (regs.rflags & flag::kRf) != 0;
  return true;
}

bool KvmUserVcpu::RunOnKvm() {
  fault_ = false;
  if (stale_) {
    // KVM sees the changes of page tables that the guest's kernel makes on it, and there it makes none.
    if (const Status status = vm_.ForgetTranslations(); !status) return Fail(status.error().message);
    stale_ = false;
    ++flushes_;
  }
  if (!Store()) return false;
  bool more = true;
  while (more) {
    std::atomic_ref(run_->immediate_exit).store(0);
    on_kvm_.store(true);
    more = requests_.load() == 0;
    int error = EINTR;
    if (more) {
      ++stays_;
      AllowTsc(false);
      error = ioctl(fd_.get(), KVM_RUN, 0) == 0 ? 0 : errno;
      AllowTsc(true);
    }
    on_kvm_.store(false);
    if (error == 0) {
      if (!HandleExit(more)) return false;
      continue;
    }
    if (error != EINTR && error != EAGAIN) return Fail(fmt::format("KVM_RUN: {}", std::strerror(error)));
    kicks_ += more;
    more = false;
  }
  if (!Fetch()) return false;
  const bool shutdown = left_by_ == KVM_EXIT_SHUTDOWN;
  bool trap = false;
  if (shutdown && !fault_) {
    // Of what could not be delivered KVM keeps the vector; Store has cleared it. A KVM that emulates says shutdown now
    // and then without any.
    kvm_vcpu_events events{};
    if (!Call(KVM_GET_VCPU_EVENTS, &events, "KVM_GET_VCPU_EVENTS")) return false;
    trap = events.exception.nr == x86::kDebug || events.exception.nr == x86::kBreakpoint;
    empty_ += !trap && state_.rip != kSyscallTrap;
  }
  fault_ = trap || (shutdown && fault_) || left_by_ == KVM_EXIT_INTERNAL_ERROR;
  left_by_ = KVM_EXIT_INTR;
  Rewind(trap);
  if (fault_) NoteLeft();
  return true;
}

bool KvmUserVcpu::HandleExit(bool& more) {
  switch (run_->exit_reason) {
    case KVM_EXIT_IO:
      AnswerPort(*run_, *config_.host);
      break;
    case KVM_EXIT_MMIO:
      AnswerMmio(*run_, *config_.host);
      break;
    case KVM_EXIT_INTERNAL_ERROR:
      if (run_->internal.suberror != KVM_INTERNAL_ERROR_EMULATION)
        return Fail(fmt::format("internal error {}", run_->internal.suberror));
      [[fallthrough]];
    case KVM_EXIT_SHUTDOWN:
      left_by_ = run_->exit_reason;
      more = false;
      return true;
    default:
      return Fail(fmt::format("an unknown exit ({}) from user mode", run_->exit_reason));
  }
  ++accesses_;
  // What was read is taken by the next KVM_RUN, which must come before the state is looked at.
  std::atomic_ref(run_->immediate_exit).store(1);
  const int error = ioctl(fd_.get(), KVM_RUN, 0) == 0 ? 0 : errno;
  if (error == 0) return HandleExit(more);  // the next part of the same access
  if (error != EINTR && error != EAGAIN) return Fail(fmt::format("KVM_RUN: {}", std::strerror(error)));
  return true;
}

/// A fault leaves the registers as they were before its instruction. Traps (SDM 3A 6.5) and SYSCALL do not.
void KvmUserVcpu::Rewind(bool trap) {
  if (state_.rip == kSyscallTrap) {
    state_.rip = state_.gpr[x86::kRcx] - 2;
    const uint64_t flags = state_.gpr[x86::kR11];
    state_.rflags = (state_.rflags & ~kUserFlags) | (flags & kUserFlags);
    fault_ = true;
    return;
  }
  if (!trap) return;
  if (state_.rflags & flag::kTf) {
    state_.dr6 |= kDr6SingleStep;
    state_.pending_debug = true;
    return;
  }
  uint8_t before[2] = {};  // INT3, INT1 or INT 3: executed again
  for (unsigned i = 0; i < 2; ++i) {
    const auto found = x86::WalkPages(*config_.memory, state_, GuestVirt(state_.rip - 2 + i),
                                      {.access = x86::Access::kExecute, .user = true, .set_bits = false});
    if (found.ok) (void)config_.memory->Read(found.address, {&before[i], 1});
  }
  state_.rip -= before[0] == 0xcd && before[1] == 3 ? 2 : 1;
}

void KvmUserVcpu::NoteLeft() { ++left_[MnemonicAt(*config_.memory, state_)]; }

std::vector<Statistic> KvmUserVcpu::Statistics() const {
  std::vector<Statistic> out = {{"instructions retired by the interpreter", interpreter_.retired()},
                                {"interrupts delivered", interrupts_},
                                {"KVM_RUN", stays_},
                                {"KVM_RUN, ended by a request", kicks_},
                                {"KVM_RUN, ended without a cause", empty_},
                                {"KVM_RUN, accesses to devices", accesses_},
                                {"translations withdrawn from KVM", flushes_}};
  AppendAssists(left_, out);
  return out;
}

}  // namespace nacre::engine::kvm
