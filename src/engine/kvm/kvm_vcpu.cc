#include "engine/kvm/kvm_vcpu.h"

#include <sys/ioctl.h>
#include <sys/mman.h>
#include <x86intrin.h>

#include <algorithm>
#include <csignal>
#include <cstring>

#include "base/check.h"
#include "engine/kvm/kvm_assist_host.h"
#include "engine/kvm/kvm_cpuid.h"
#include "engine/kvm/kvm_exits.h"
#include "engine/kvm/kvm_vm.h"

namespace nacre::engine::kvm {

namespace {

constexpr uint32_t kMsrTsc = 0x10, kMsrApicBase = 0x1b, kMsrArchCapabilities = 0x10a, kMsrTscDeadline = 0x6e0,
                   kMsrStealTime = 0x4b564d03, kMsrEoi = 0x4b564d04;
constexpr uint64_t kApicBaseX2Apic = 1 << 10, kApicBaseEnable = 1 << 11;
constexpr uint32_t kLint0Mask = 0x10700, kLint0ExtInt = 0x700;
constexpr size_t kXsaveBytes = sizeof(kvm_xsave);
/// Instructions that leave their answer to the next KVM_RUN.
constexpr bool WantsAnswer(uint32_t exit_reason) {
  return exit_reason == KVM_EXIT_IO || exit_reason == KVM_EXIT_MMIO || exit_reason == KVM_EXIT_X86_RDMSR ||
         exit_reason == KVM_EXIT_X86_WRMSR;
}

/// A kvm_msrs with one entry.
class OneMsr {
 public:
  OneMsr(uint32_t index, uint64_t value) {
    list()->nmsrs = 1;
    list()->entries[0] = {.index = index, .reserved = 0, .data = value};
  }
  kvm_msrs* list() { return reinterpret_cast<kvm_msrs*>(bytes_); }

 private:
  alignas(kvm_msrs) uint8_t bytes_[sizeof(kvm_msrs) + sizeof(kvm_msr_entry)] = {};
};

const char* ExitName(unsigned reason) {
  switch (reason) {
    case KVM_EXIT_IO:
      return "exits: port";
    case KVM_EXIT_MMIO:
      return "exits: device memory";
    case KVM_EXIT_HLT:
      return "exits: HLT";
    case KVM_EXIT_IRQ_WINDOW_OPEN:
      return "exits: interrupt window";
    case KVM_EXIT_SHUTDOWN:
      return "exits: triple fault";
    case KVM_EXIT_INTR:
      return "exits: kick";
    case KVM_EXIT_INTERNAL_ERROR:
      return "exits: internal error";
    case KVM_EXIT_IOAPIC_EOI:
      return "exits: end of level-triggered interrupt";
    case KVM_EXIT_DIRTY_RING_FULL:
      return "exits: ring of written pages full";
    case KVM_EXIT_X86_RDMSR:
      return "exits: RDMSR";
    case KVM_EXIT_X86_WRMSR:
      return "exits: WRMSR";
    default:
      return nullptr;
  }
}

}  // namespace

KvmVcpu::KvmVcpu(KvmVm& vm, const VcpuConfig& config)
    : vm_(vm),
      config_(config),
      assist_model_(config.model->Unmasked()),
      xsave_(std::max<size_t>(kXsaveBytes, HostXsave().bytes)),
      assists_(ZYDIS_MNEMONIC_MAX_VALUE + 1) {}

KvmVcpu::~KvmVcpu() {
  vm_.dirty_pages().RemoveVcpu(config_.index);
  if (run_) munmap(run_, run_bytes_);
}

Result<std::unique_ptr<KvmVcpu>> KvmVcpu::Create(KvmVm& vm, const VcpuConfig& config) {
  std::unique_ptr<KvmVcpu> vcpu(new KvmVcpu(vm, config));
  NACRE_TRY_STATUS(vcpu->Open());
  return vcpu;
}

Status KvmVcpu::Open() {
  fd_ = NACRE_TRY(vm_.CreateVcpu(config_.index));
  run_bytes_ = vm_.device().vcpu_mmap_bytes();
  void* run = mmap(nullptr, run_bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, fd_.get(), 0);
  if (run == MAP_FAILED) return FailErrno("KVM: the shared page of virtual CPU {}", config_.index);
  run_ = static_cast<kvm_run*>(run);
  NACRE_TRY_STATUS(vm_.dirty_pages().AddVcpu(config_.index, fd_.get()));
  components_ = config_.model->xcr0_mask() | 3;
  x86::ResetCpuState(state_);
  NACRE_TRY_STATUS(SetUpCpuid());
  FindMsrs();
  assist_host_ = std::make_unique<AssistHost>(*this);
  VcpuConfig assist = config_;
  assist.host = assist_host_.get();
  assist.model = &assist_model_;
  interpreter_ = std::make_unique<interp::Interpreter>(assist, nullptr);
  KickSignal();
  return {};
}

Status KvmVcpu::SetUpCpuid() {
  NACRE_TRY_STATUS(SetCpuid(fd_, *config_.model, config_.index));
  const uint64_t khz = config_.model->tsc_khz();
  const int host_khz = ioctl(fd_.get(), KVM_GET_TSC_KHZ, 0);
  if (host_khz > 0 && vm_.device().Check(KVM_CAP_TSC_CONTROL) > 0 && static_cast<uint64_t>(host_khz) != khz)
    (void)ioctl(fd_.get(), KVM_SET_TSC_KHZ, khz);
  // What the model tells of itself by MSRs. A KVM without one of them asks us when the guest reads it.
  const uint64_t immune = x86::CpuModel::arch_capabilities() & vm_.device().FeatureMsr(kMsrArchCapabilities);
  (void)SetMsr(kMsrArchCapabilities, config_.model->HasFeature(7, 0, 'd', 29) ? immune : 0);
  (void)SetMsr(0x8b, uint64_t{1} << 32);
  (void)SetMsr(0x3a, 1);
  return {};
}

/// Those that this KVM has; the others are kept in state_, and their RDMSR and WRMSR come to HandleMsr.
void KvmVcpu::FindMsrs() {
  const auto places = MsrPlaces(state_.msr);
  for (size_t i = 0; i < places.size(); ++i) {
    uint64_t value = 0;
    if (GetMsr(places[i].index, value) && SetMsr(places[i].index, value)) msrs_.push_back(i);
  }
  msr_buffer_.resize(sizeof(kvm_msrs) + msrs_.size() * sizeof(kvm_msr_entry));
}

bool KvmVcpu::GetMsr(uint32_t index, uint64_t& value) const {
  OneMsr one(index, 0);
  if (ioctl(fd_.get(), KVM_GET_MSRS, one.list()) != 1) return false;
  value = one.list()->entries[0].data;
  return true;
}

bool KvmVcpu::SetMsr(uint32_t index, uint64_t value) const {
  OneMsr one(index, value);
  return ioctl(fd_.get(), KVM_SET_MSRS, one.list()) == 1;
}

bool KvmVcpu::Fail(std::string text) {
  error_ = fmt::format("KVM: {}", text);
  return false;
}

bool KvmVcpu::Call(unsigned long request, void* argument, const char* what) {
  if (ioctl(fd_.get(), request, argument) >= 0) return true;
  return Fail(fmt::format("{}: {}", what, std::strerror(errno)));
}

// ---- State.

void KvmVcpu::Import(const x86::CpuState& state) {
  state_ = state;
  in_kernel_ = false;
}

void KvmVcpu::Export(x86::CpuState& state) const { state = state_; }

void KvmVcpu::SetTscOffset(uint64_t offset) {
  kvm_device_attr attribute{};
  attribute.group = KVM_VCPU_TSC_CTRL;
  attribute.attr = KVM_VCPU_TSC_OFFSET;
  attribute.addr = reinterpret_cast<uint64_t>(&offset);
  if (ioctl(fd_.get(), KVM_SET_DEVICE_ATTR, &attribute) == 0) return;
  (void)SetMsr(kMsrTsc, __rdtsc() + offset);  // before Linux 5.16
}

bool KvmVcpu::FetchTscOffset() {
  uint64_t offset = 0;
  kvm_device_attr attribute{};
  attribute.group = KVM_VCPU_TSC_CTRL;
  attribute.attr = KVM_VCPU_TSC_OFFSET;
  attribute.addr = reinterpret_cast<uint64_t>(&offset);
  if (ioctl(fd_.get(), KVM_GET_DEVICE_ATTR, &attribute) == 0) {
    state_.tsc_offset = offset;
    return true;
  }
  uint64_t tsc = 0;
  if (!GetMsr(kMsrTsc, tsc)) return Fail("the time stamp counter cannot be read");
  state_.tsc_offset = tsc - __rdtsc();
  return true;
}

bool KvmVcpu::Store() {
  kvm_regs regs{};
  if (!Call(KVM_GET_SREGS2, &sregs_, "KVM_GET_SREGS2")) return false;
  if (cr8_written_) sregs_.cr8 = cr8_;
  cr8_written_ = false;
  ToKvm(state_, sregs_);
  if (!Call(KVM_SET_SREGS2, &sregs_, "the host refuses the guest's system registers (KVM_SET_SREGS2)")) return false;
  if (config_.model->xcr0_mask() != 0) {
    kvm_xcrs xcrs{};
    xcrs.nr_xcrs = 1;
    xcrs.xcrs[0].value = state_.xcr0;
    if (!Call(KVM_SET_XCRS, &xcrs, "the host refuses the guest's XCR0 (KVM_SET_XCRS)")) return false;
  }
  ToKvm(state_, components_, xsave_.data());
  if (!Call(KVM_SET_XSAVE, xsave_.data(), "the host refuses the guest's vector registers (KVM_SET_XSAVE)"))
    return false;
  if (!StoreMsrs()) return false;
  uint64_t deadline = 0;
  (void)GetMsr(kMsrTscDeadline, deadline);
  SetTscOffset(state_.tsc_offset);
  if (deadline != 0) (void)SetMsr(kMsrTscDeadline, deadline);  // by the counter as it is now
  kvm_debugregs debug{};
  ToKvm(state_, debug);
  if (!Call(KVM_SET_DEBUGREGS, &debug, "KVM_SET_DEBUGREGS")) return false;
  ToKvm(state_, regs);
  if (!Call(KVM_SET_REGS, &regs, "KVM_SET_REGS")) return false;
  if (!StoreEvents()) return false;
  in_kernel_ = true;
  return true;
}

/// A value that the host refuses costs nothing but for the first ones: then the rest goes on behind it.
bool KvmVcpu::StoreMsrs() {
  const auto places = MsrPlaces(state_.msr);
  size_t from = 0;
  while (from < msrs_.size()) {
    auto* list = reinterpret_cast<kvm_msrs*>(msr_buffer_.data());
    list->nmsrs = 0;
    for (size_t i = from; i < msrs_.size(); ++i)
      list->entries[list->nmsrs++] = {.index = places[msrs_[i]].index, .reserved = 0, .data = *places[msrs_[i]].value};
    const int done = ioctl(fd_.get(), KVM_SET_MSRS, list);
    if (done < 0) return Fail(fmt::format("KVM_SET_MSRS: {}", std::strerror(errno)));
    from += static_cast<size_t>(done);
    if (from >= msrs_.size()) break;
    const MsrPlace& refused = places[msrs_[from]];
    if (msrs_[from] < kEssentialMsrs)
      return Fail(fmt::format("the host refuses MSR {:#x} = {:#x}", refused.index, *refused.value));
    ++from;
  }
  return true;
}

bool KvmVcpu::FetchMsrs() {
  const auto places = MsrPlaces(state_.msr);
  auto* list = reinterpret_cast<kvm_msrs*>(msr_buffer_.data());
  list->nmsrs = static_cast<uint32_t>(msrs_.size());
  for (size_t i = 0; i < msrs_.size(); ++i)
    list->entries[i] = {.index = places[msrs_[i]].index, .reserved = 0, .data = 0};
  const int done = ioctl(fd_.get(), KVM_GET_MSRS, list);
  if (done != static_cast<int>(msrs_.size())) return Fail("KVM_GET_MSRS gives less than it did before");
  for (size_t i = 0; i < msrs_.size(); ++i) *places[msrs_[i]].value = list->entries[i].data;
  return true;
}

bool KvmVcpu::StoreEvents() {
  kvm_vcpu_events events{};
  events.flags = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW;
  if (state_.interrupt_shadow)
    events.interrupt.shadow = state_.shadow_is_mov_ss ? KVM_X86_SHADOW_INT_MOV_SS : KVM_X86_SHADOW_INT_STI;
  events.nmi.masked = state_.nmi_masked;
  if (state_.pending_debug) {
    events.exception.injected = 1;
    events.exception.nr = x86::kDebug;
  }
  if (!Call(KVM_SET_VCPU_EVENTS, &events, "KVM_SET_VCPU_EVENTS")) return false;
  kvm_mp_state mp{};
  mp.mp_state = state_.wait_for_sipi ? KVM_MP_STATE_INIT_RECEIVED
                : state_.halted      ? KVM_MP_STATE_HALTED
                                     : KVM_MP_STATE_RUNNABLE;
  return Call(KVM_SET_MP_STATE, &mp, "KVM_SET_MP_STATE");
}

bool KvmVcpu::Fetch() {
  kvm_regs regs{};
  kvm_debugregs debug{};
  kvm_xcrs xcrs{};
  if (!Call(KVM_GET_REGS, &regs, "KVM_GET_REGS") || !Call(KVM_GET_SREGS2, &sregs_, "KVM_GET_SREGS2") ||
      !Call(KVM_GET_DEBUGREGS, &debug, "KVM_GET_DEBUGREGS") || !Call(KVM_GET_XSAVE, xsave_.data(), "KVM_GET_XSAVE"))
    return false;
  FromKvm(regs, state_);
  FromKvm(sregs_, state_);
  FromKvm(debug, state_);
  FromKvm(xsave_.data(), components_, state_);
  if (config_.model->xcr0_mask() != 0) {
    if (!Call(KVM_GET_XCRS, &xcrs, "KVM_GET_XCRS")) return false;
    for (uint32_t i = 0; i < xcrs.nr_xcrs; ++i)
      if (xcrs.xcrs[i].xcr == 0) state_.xcr0 = xcrs.xcrs[i].value;
  }
  return FetchMsrs() && FetchTscOffset() && FetchEvents();
}

/// What KVM was about to deliver is delivered here, by the interpreter: CpuState is between instructions.
bool KvmVcpu::FetchEvents() {
  kvm_vcpu_events events{};
  kvm_mp_state mp{};
  if (!Call(KVM_GET_VCPU_EVENTS, &events, "KVM_GET_VCPU_EVENTS") || !Call(KVM_GET_MP_STATE, &mp, "KVM_GET_MP_STATE"))
    return false;
  state_.interrupt_shadow = events.interrupt.shadow != 0;
  state_.shadow_is_mov_ss = (events.interrupt.shadow & KVM_X86_SHADOW_INT_MOV_SS) != 0;
  state_.nmi_masked = events.nmi.masked != 0;
  state_.halted = mp.mp_state == KVM_MP_STATE_HALTED;
  state_.wait_for_sipi = mp.mp_state == KVM_MP_STATE_UNINITIALIZED || mp.mp_state == KVM_MP_STATE_INIT_RECEIVED;
  state_.pending_debug = false;
  if (mp.mp_state == KVM_MP_STATE_SIPI_RECEIVED) {
    x86::Segment& cs = state_.segment[x86::kCs];
    cs.selector = static_cast<uint16_t>(events.sipi_vector << 8);
    cs.base = uint64_t{events.sipi_vector} << 12;
    state_.rip = 0;
  }
  interp::StepResult result = interp::StepResult::kOk;
  const auto& exception = events.exception;
  const bool software = exception.nr == x86::kBreakpoint || exception.nr == x86::kOverflow;
  interpreter_->FlushTlb();
  if ((exception.injected || exception.pending) && !software) {
    const bool payload = events.exception_has_payload && exception.pending;
    if (exception.nr == x86::kDebug) {
      if (payload) state_.dr6 |= events.exception_payload;
      state_.pending_debug = true;
    } else {
      const uint64_t cr2 = payload && exception.nr == x86::kPageFault ? events.exception_payload : state_.cr2;
      result = interpreter_->InjectException(state_, exception.nr, exception.error_code, cr2);
    }
  } else if (events.nmi.injected) {
    state_.nmi_masked = false;  // InjectNmi masks
    result = interpreter_->InjectNmi(state_);
  } else if (events.interrupt.injected && !events.interrupt.soft) {  // a soft one is its instruction again
    result = interpreter_->InjectInterrupt(state_, events.interrupt.nr);
  }
  if (events.nmi.pending) requests_.fetch_or(kRequestNmi);
  if (result == interp::StepResult::kShutdown) return Fail("a triple fault while an event was delivered");
  return true;
}

Status KvmVcpu::ExportApic(x86::LocalApicState& state) const {
  kvm_lapic_state registers{};
  if (ioctl(fd_.get(), KVM_GET_LAPIC, &registers) != 0) return FailErrno("KVM_GET_LAPIC");
  if (!GetMsr(kMsrApicBase, state.apic_base)) return nacre::Fail("KVM: IA32_APIC_BASE cannot be read");
  FromKvm(registers, (state.apic_base & kApicBaseX2Apic) != 0, state);
  state.id = config_.index;  // KVM lets an xAPIC's guest write it; no other engine does
  if (!GetMsr(kMsrTscDeadline, state.tsc_deadline)) state.tsc_deadline = 0;
  return {};
}

Status KvmVcpu::ImportApic(const x86::LocalApicState& state) {
  // From the disabled state every mode can be reached.
  uint64_t now = 0;
  if (!GetMsr(kMsrApicBase, now)) return nacre::Fail("KVM: IA32_APIC_BASE cannot be read");
  if (now != state.apic_base && !SetMsr(kMsrApicBase, state.apic_base))
    return nacre::Fail("KVM: the host refuses IA32_APIC_BASE = {:#x}", state.apic_base);
  kvm_lapic_state registers{};
  ToKvm(state, registers);
  if (ioctl(fd_.get(), KVM_SET_LAPIC, &registers) != 0) return FailErrno("KVM_SET_LAPIC");
  if (state.tsc_deadline != 0 && !SetMsr(kMsrTscDeadline, state.tsc_deadline))
    return nacre::Fail("KVM: the host refuses IA32_TSC_DEADLINE");
  return {};
}

Status KvmVcpu::ExportKept(KeptState& state) const {
  NACRE_TRY_STATUS(ExportApic(state.apic));
  if (!GetMsr(kMsrStealTime, state.steal_time_msr)) state.steal_time_msr = 0;
  if (!GetMsr(kMsrEoi, state.eoi_msr)) state.eoi_msr = 0;
  const uint32_t lint0 = state.apic.lvt[x86::LocalApicState::kLint0];
  const bool reaches = (state.apic.apic_base & kApicBaseEnable) == 0 || (lint0 & kLint0Mask) == kLint0ExtInt;
  state.ext_int = reaches ? ext_int_ : -1;
  return {};
}

Status KvmVcpu::ImportKept(const KeptState& state) {
  // Before the APIC: whether it may offer ends of interrupts in memory.
  if (!SetMsr(kMsrStealTime, state.steal_time_msr) && state.steal_time_msr != 0)
    return nacre::Fail("KVM: the host refuses the guest's place for stolen time");
  if (!SetMsr(kMsrEoi, state.eoi_msr) && state.eoi_msr != 0)
    return nacre::Fail("KVM: the host refuses the guest's place for ends of interrupts");
  if (state.ext_int >= 0 && ext_int_ < 0) {  // else it is this vCPU's own, which never lost it
    kvm_interrupt interrupt{};
    interrupt.irq = static_cast<uint32_t>(state.ext_int);
    if (ioctl(fd_.get(), KVM_INTERRUPT, &interrupt) != 0) return FailErrno("KVM_INTERRUPT");
    ext_int_ = state.ext_int;
  }
  return ImportApic(state.apic);
}

// ---- Running.

void KvmVcpu::Request(uint32_t bits) {
  requests_.fetch_or(bits);
  std::atomic_ref(run_->immediate_exit).store(1);
  if (running_.load()) pthread_kill(thread_, KickSignal());
}

ExitReason KvmVcpu::Run(uint64_t) {
  thread_ = pthread_self();
  running_.store(true);
  ExitReason reason = Loop();
  if (reason != ExitReason::kError && !(Complete() && Fetch() && (ext_int_ < 0 || SettleExtInt())))
    reason = ExitReason::kError;
  in_kernel_ = false;
  running_.store(false);
  return reason;
}

ExitReason KvmVcpu::Loop() {
  if (!in_kernel_ && !Store()) return ExitReason::kError;
  ExitReason reason = ExitReason::kError;
  for (;;) {
    std::atomic_ref(run_->immediate_exit).store(0);
    if (requests_.load() & kRequestLint1) {
      requests_.fetch_and(~uint32_t{kRequestLint1});
      if (!DeliverLint1()) return ExitReason::kError;
    }
    const uint32_t requests = requests_.load();
    if (requests & kRequestStop) {
      requests_.fetch_and(~uint32_t{kRequestStop});
      return ExitReason::kStop;
    }
    if (requests & kRequestInit) {
      requests_.fetch_and(~uint32_t{kRequestInit});
      return ExitReason::kInit;
    }
    if ((requests & kRequestNmi) && Complete()) {
      requests_.fetch_and(~uint32_t{kRequestNmi});
      if (!Call(KVM_NMI, nullptr, "KVM_NMI")) return ExitReason::kError;
    }
    if ((requests & kRequestInterrupt) && run_->ready_for_interrupt_injection && !InjectExtInt())
      return ExitReason::kError;
    run_->request_interrupt_window = (requests_.load() & kRequestInterrupt) != 0;
    ++runs_;
    const bool left = ioctl(fd_.get(), KVM_RUN, 0) == 0;
    const int error = errno;
    if (run_->ready_for_interrupt_injection) ext_int_ = -1;
    if (!left) {
      incomplete_ = false;
      if (error == EINTR) ++exits_[KVM_EXIT_INTR];
      if (error == EINTR || error == EAGAIN) continue;
      Fail(fmt::format("KVM_RUN: {}", std::strerror(error)));
      return ExitReason::kError;
    }
    if (!HandleExit(reason)) return reason;
  }
}

bool KvmVcpu::Complete() {
  ExitReason reason;
  while (incomplete_) {
    std::atomic_ref(run_->immediate_exit).store(1);
    if (ioctl(fd_.get(), KVM_RUN, 0) == 0) {  // the next part of the same access
      if (!HandleExit(reason)) return false;
      continue;
    }
    if (errno != EINTR && errno != EAGAIN) return Fail(fmt::format("KVM_RUN: {}", std::strerror(errno)));
    incomplete_ = false;
  }
  return true;
}

/// As the local APIC's LVT says (SDM 3A 11.5.1): an NMI or an interrupt; other modes have no use at this pin.
bool KvmVcpu::DeliverLint1() {
  x86::LocalApicState apic;
  if (const Status status = ExportApic(apic); !status) return Fail(status.error().message);
  constexpr uint32_t kMasked = 1 << 16, kFixed = 0, kNmi = 4;
  const uint32_t entry = apic.lvt[x86::LocalApicState::kLint1];
  const uint32_t mode = entry >> 8 & 7;
  if ((entry & kMasked) != 0 || (apic.apic_base & kApicBaseEnable) == 0) return true;
  if (mode == kNmi) requests_.fetch_or(kRequestNmi);
  if (mode == kFixed) vm_.Send({0xfee00000 | uint64_t{config_.index} << 12, entry & 0xff});
  return true;
}

bool KvmVcpu::InjectExtInt() {
  const int vector = config_.host->AcknowledgeInterrupt();
  if (vector < 0) return true;
  ++ext_ints_;
  kvm_interrupt interrupt{};
  interrupt.irq = static_cast<uint32_t>(vector);
  ext_int_ = vector;
  return Call(KVM_INTERRUPT, &interrupt, "KVM_INTERRUPT");
}

/// Whether the guest has got ext_int_ already. KVM does not show what it was given; but it is ready for the next one
/// only once it is delivered, when nothing else is in the way. Of what is changed here for that, all is stored again
/// before the guest runs.
bool KvmVcpu::SettleExtInt() {
  kvm_vcpu_events events{};
  events.flags = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW;
  kvm_mp_state running{};
  running.mp_state = KVM_MP_STATE_RUNNABLE;
  kvm_regs regs{};
  ToKvm(state_, regs);
  regs.rflags |= x86::rflags::kIf;
  if (!Call(KVM_SET_VCPU_EVENTS, &events, "KVM_SET_VCPU_EVENTS") || !Call(KVM_SET_REGS, &regs, "KVM_SET_REGS") ||
      !Call(KVM_SET_MP_STATE, &running, "KVM_SET_MP_STATE"))
    return false;
  std::atomic_ref(run_->immediate_exit).store(1);
  if (ioctl(fd_.get(), KVM_RUN, 0) == 0 || errno != EINTR) return Fail("KVM_RUN does not return at once");
  if (run_->ready_for_interrupt_injection) ext_int_ = -1;
  return true;
}

bool KvmVcpu::HandleExit(ExitReason& reason) {
  const uint32_t exit = run_->exit_reason;
  ++exits_[std::min<uint32_t>(exit, kExitReasons - 1)];
  incomplete_ = WantsAnswer(exit);
  switch (exit) {
    case KVM_EXIT_IO:
      AnswerPort(*run_, *config_.host);
      return true;
    case KVM_EXIT_MMIO:
      AnswerMmio(*run_, *config_.host);
      return true;
    case KVM_EXIT_X86_RDMSR:
    case KVM_EXIT_X86_WRMSR:
      HandleMsr();
      return true;
    case KVM_EXIT_IOAPIC_EOI:
      config_.host->EndOfInterrupt(run_->eoi.vector);
      return true;
    case KVM_EXIT_IRQ_WINDOW_OPEN:
    case KVM_EXIT_INTR:
    case KVM_EXIT_HLT:
      return true;
    case KVM_EXIT_DIRTY_RING_FULL:
      if (const Status status = vm_.dirty_pages().OnRingFull(); status) return true;
      Fail("the ring of written pages cannot be emptied");
      break;
    case KVM_EXIT_SHUTDOWN:
      reason = ExitReason::kShutdown;
      return false;
    case KVM_EXIT_INTERNAL_ERROR:
      if (run_->internal.suberror == KVM_INTERNAL_ERROR_EMULATION) return Assist(reason);
      Fail(fmt::format("internal error {} (data {:#x} {:#x})", run_->internal.suberror, run_->internal.data[0],
                       run_->internal.data[1]));
      break;
    case KVM_EXIT_FAIL_ENTRY:
      Fail(fmt::format("the processor refuses the guest's state (reason {:#x})",
                       run_->fail_entry.hardware_entry_failure_reason));
      break;
    default:
      Fail(fmt::format("an unknown exit ({})", exit));
      break;
  }
  reason = ExitReason::kError;
  return false;
}

void KvmVcpu::HandleMsr() {
  auto& msr = run_->msr;
  if (AssistHost::IsKernelMsr(msr.index)) {
    // Refused by its owner, which would take some of these values from us.
    msr.error = 1;
  } else if (run_->exit_reason == KVM_EXIT_X86_RDMSR) {
    uint64_t value = 0;
    msr.error = interpreter_->ReadMsr(state_, msr.index, value) ? 0 : 1;
    msr.data = value;
  } else {
    msr.error = interpreter_->WriteMsr(state_, msr.index, msr.data) ? 0 : 1;
  }
}

bool KvmVcpu::Assist(ExitReason& reason) {
  reason = ExitReason::kError;
  if (!Fetch()) return false;
  NoteAssist();
  switch (interpreter_->Step(state_)) {
    case interp::StepResult::kOk:
    case interp::StepResult::kHalted:
      break;
    case interp::StepResult::kShutdown:
      reason = ExitReason::kShutdown;
      return false;
  }
  return Store();
}

void KvmVcpu::NoteAssist() { ++assists_[MnemonicAt(*config_.memory, state_)]; }

std::vector<Statistic> KvmVcpu::Statistics() const {
  std::vector<Statistic> out = {{"KVM_RUN", runs_}, {"8259 interrupts", ext_ints_}};
  for (unsigned i = 0; i < kExitReasons; ++i) {
    if (exits_[i] == 0) continue;
    const char* name = ExitName(i);
    out.push_back({name ? name : fmt::format("exits: {}", i), exits_[i]});
  }
  AppendAssists(assists_, out);
  return out;
}

}  // namespace nacre::engine::kvm
