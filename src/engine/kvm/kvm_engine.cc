#include "engine/kvm/kvm_engine.h"

#include <sys/ioctl.h>

#include <algorithm>
#include <csignal>

#include "engine/dirty_flags.h"
#include "engine/kvm/kvm_cpuid.h"
#include "engine/kvm/kvm_probe.h"
#include "engine/kvm/kvm_user_vcpu.h"
#include "engine/kvm/kvm_vcpu.h"
#include "engine/kvm/kvm_vm.h"

namespace nacre::engine::kvm {
namespace {

/// Guest-physical pages that KVM on Intel hosts needs for itself, in the hole below 4 GiB where no device is.
constexpr uint64_t kIdentityMap = 0xfeffc000, kTss = 0xfeffd000;
/// And two of which one holds a slot of no use but to be moved.
constexpr uint64_t kMovingPage = 0xfeff8000;

/// MSRs that the machine's own device serves on every engine, so that the paravirtual clock is the same one.
constexpr uint32_t kClockMsrs = 0x4b564d00, kOldClockMsrs = 0x11;
constexpr uint32_t kClockMsrCount = 2;

class KvmEngine final : public Engine {
 public:
  explicit KvmEngine(std::unique_ptr<KvmVm> vm) : vm_(std::move(vm)) {}
  std::string_view name() const override { return "kvm"; }
  Result<std::unique_ptr<Vcpu>> CreateVcpu(const VcpuConfig& config) override {
    return NACRE_TRY(KvmVcpu::Create(*vm_, config));
  }
  MessageSink* message_sink() override { return vm_.get(); }
  WriteEvents* write_events() override { return vm_.get(); }
  Status MemoryChanged() override { return vm_->dirty_pages().SetSlots(); }
  Result<std::unique_ptr<DirtyLog>> StartDirtyLog() override { return vm_->dirty_pages().Start(); }
  std::vector<Statistic> Statistics() const override { return vm_->Statistics(); }

 private:
  std::unique_ptr<KvmVm> vm_;
};

/// Kernel mode by the interpreter.
class UserOnlyEngine final : public Engine {
  /// What KVM writes, and what the interpreter does.
  struct BothLogs final : DirtyLog {
    std::unique_ptr<DirtyLog> user, interpreter;
    Status Collect(std::span<uint64_t> bitmap) override {
      NACRE_TRY_STATUS(user->Collect(bitmap));
      return interpreter->Collect(bitmap);
    }
  };

 public:
  UserOnlyEngine(memory::GuestMemory& memory, std::unique_ptr<KvmVm> vm, uint64_t interpreted_first)
      : memory_(memory), vm_(std::move(vm)), interpreted_first_(interpreted_first) {}
  std::string_view name() const override { return "kvm"; }
  Result<std::unique_ptr<Vcpu>> CreateVcpu(const VcpuConfig& config) override {
    if (group_.size() == VcpuGroup::kMaxMembers)
      return Fail("an engine runs at most {} virtual CPUs", VcpuGroup::kMaxMembers);
    auto vcpu = NACRE_TRY(KvmUserVcpu::Create(*vm_, group_, config, interpreted_first_));
    vcpus_.push_back(vcpu.get());
    return vcpu;
  }
  Status MemoryChanged() override { return vm_->dirty_pages().SetSlots(); }
  Result<std::unique_ptr<DirtyLog>> StartDirtyLog() override {
    auto log = std::make_unique<BothLogs>();
    log->user = NACRE_TRY(vm_->dirty_pages().Start());
    log->interpreter = StartDirtyFlags(memory_, vcpus_);
    return log;
  }
  std::vector<Statistic> Statistics() const override { return {}; }

 private:
  memory::GuestMemory& memory_;
  std::unique_ptr<KvmVm> vm_;
  std::vector<Vcpu*> vcpus_;
  const uint64_t interpreted_first_;
  VcpuGroup group_;
};

}  // namespace

int KickSignal() {
  static const int signal = [] {
    const int number = SIGRTMIN + 4;
    struct sigaction action {};
    action.sa_handler = [](int) {};
    sigemptyset(&action.sa_mask);  // without SA_RESTART: KVM_RUN returns
    sigaction(number, &action, nullptr);
    return number;
  }();
  return signal;
}

Result<std::unique_ptr<KvmVm>> KvmVm::Create(memory::GuestMemory& memory, const KvmOptions& options,
                                             bool kernel_apics) {
  std::unique_ptr<KvmVm> vm(new KvmVm(NACRE_TRY(KvmDevice::Open())));
  vm->fd_ = NACRE_TRY(vm->device_.CreateVm());
  NACRE_TRY_STATUS(vm->SetUp(memory, options));
  if (kernel_apics) {
    NACRE_TRY_STATUS(vm->SetUpApics());
  } else {
    NACRE_TRY_STATUS(vm->SetUpForgetting());
  }
  return vm;
}

Status KvmVm::Enable(uint32_t capability, uint64_t argument, const char* name) const {
  kvm_enable_cap cap{};
  cap.cap = capability;
  cap.args[0] = argument;
  if (ioctl(fd_.get(), KVM_ENABLE_CAP, &cap) != 0) return FailErrno("KVM: cannot enable {}", name);
  return {};
}

Status KvmVm::SetUp(memory::GuestMemory& memory, const KvmOptions& options) {
  uint64_t identity_map = kIdentityMap;
  if (ioctl(fd_.get(), KVM_SET_IDENTITY_MAP_ADDR, &identity_map) != 0) return FailErrno("KVM_SET_IDENTITY_MAP_ADDR");
  if (ioctl(fd_.get(), KVM_SET_TSS_ADDR, kTss) != 0) return FailErrno("KVM_SET_TSS_ADDR");
  // Else what KVM cannot emulate in user mode is #UD there, and nobody could assist.
  if (device_.Check(KVM_CAP_EXIT_ON_EMULATION_FAILURE) > 0)
    NACRE_TRY_STATUS(Enable(KVM_CAP_EXIT_ON_EMULATION_FAILURE, 1, "exits on emulation failures"));
  dirty_pages_.emplace(fd_.get(), device_, memory, options.dirty_ring_entries);
  return dirty_pages_->SetSlots();
}

Status KvmVm::SetUpApics() {
  NACRE_TRY_STATUS(Enable(KVM_CAP_SPLIT_IRQCHIP, KvmRoutes::kPins, "the split interrupt chip"));
  routes_.emplace(fd_.get(), device_.Check(KVM_CAP_IRQ_ROUTING));
  NACRE_TRY_STATUS(Enable(KVM_CAP_X2APIC_API, KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK,
                          "32-bit APIC IDs"));
  NACRE_TRY_STATUS(Enable(KVM_CAP_X86_USER_SPACE_MSR,
                          KVM_MSR_EXIT_REASON_INVAL | KVM_MSR_EXIT_REASON_UNKNOWN | KVM_MSR_EXIT_REASON_FILTER,
                          "MSRs in user space"));
  return FilterMsrs();
}

Status KvmVm::FilterMsrs() {
  uint8_t none = 0;  // bit i: the range's MSR i stays the kernel's
  kvm_msr_filter filter{};
  filter.flags = KVM_MSR_FILTER_DEFAULT_ALLOW;
  unsigned range = 0;
  for (const uint32_t base : {kClockMsrs, kOldClockMsrs}) {
    filter.ranges[range].flags = KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE;
    filter.ranges[range].base = base;
    filter.ranges[range].nmsrs = kClockMsrCount;
    filter.ranges[range].bitmap = &none;
    ++range;
  }
  if (ioctl(fd_.get(), KVM_X86_SET_MSR_FILTER, &filter) != 0) return FailErrno("KVM_X86_SET_MSR_FILTER");
  return {};
}

Status KvmVm::SetUpForgetting() {
  moving_slot_.slot = KvmDirtyPages::kMaxSlots;
  moving_slot_.guest_phys_addr = kMovingPage;
  moving_slot_.memory_size = kPageSize;
  moving_slot_.userspace_addr = reinterpret_cast<uint64_t>(moving_page_);
  return ForgetTranslations();
}

/// A memory slot that is moved takes all translations with it (KVM_X86_QUIRK_SLOT_ZAP_ALL, which is KVM's default; of
/// this slot there are none). Nothing else makes KVM read page tables anew that its guest has not written.
Status KvmVm::ForgetTranslations() {
  const std::lock_guard lock(moving_);
  moving_slot_.guest_phys_addr ^= kPageSize;
  if (ioctl(fd_.get(), KVM_SET_USER_MEMORY_REGION, &moving_slot_) != 0) return FailErrno("KVM: a memory slot's move");
  return {};
}

Result<Fd> KvmVm::CreateVcpu(unsigned index) const {
  Fd vcpu(ioctl(fd_.get(), KVM_CREATE_VCPU, static_cast<unsigned long>(index)));
  if (!vcpu.valid()) return FailErrno("KVM: virtual CPU {}", index);
  return vcpu;
}

void KvmVm::Send(const MessageWrite& message) {
  kvm_msi msi{};
  msi.address_lo = static_cast<uint32_t>(message.address);
  msi.address_hi = static_cast<uint32_t>(message.address >> 32);
  msi.data = message.data;
  messages_.fetch_add(1, std::memory_order_relaxed);
  // 0: the guest has blocked it; negative: to no CPU. Neither is an error of ours.
  (void)ioctl(fd_.get(), KVM_SIGNAL_MSI, &msi);
}

kvm_ioeventfd KvmVm::EventAt(GuestPhys address, int event_fd) const {
  kvm_ioeventfd event{};
  event.addr = address.value;
  event.len = device_.Check(KVM_CAP_IOEVENTFD_ANY_LENGTH) > 0 ? 0 : 2;  // as virtio drivers write (virtio 1.2, 4.1.5.2)
  event.fd = event_fd;
  return event;
}

Status KvmVm::AddWriteEvent(GuestPhys address, int event_fd) {
  kvm_ioeventfd event = EventAt(address, event_fd);
  if (ioctl(fd_.get(), KVM_IOEVENTFD, &event) != 0) return FailErrno("KVM_IOEVENTFD at {:#x}", address.value);
  return {};
}

void KvmVm::RemoveWriteEvent(GuestPhys address, int event_fd) {
  kvm_ioeventfd event = EventAt(address, event_fd);
  event.flags = KVM_IOEVENTFD_FLAG_DEASSIGN;
  (void)ioctl(fd_.get(), KVM_IOEVENTFD, &event);
}

std::vector<Statistic> KvmVm::Statistics() const {
  return {{"interrupt messages", messages_.load(std::memory_order_relaxed)},
          {"interrupt messages by irqfd", routes_->sent()},
          {"full rings of written pages", dirty_pages_->full_rings()}};
}

Result<KernelMode> WhoRunsKernels(KernelMode asked) {
  if (asked != KernelMode::kAuto) return asked;
  static std::mutex mutex;
  static std::optional<KernelMode> found;
  const std::lock_guard lock(mutex);
  if (!found) {
    const KvmDevice device = NACRE_TRY(KvmDevice::Open());
    const bool emulates = Emulates(ProbeSpeed(device, NACRE_TRY(SupportedCpuid(device))));
    found = emulates ? KernelMode::kInterp : KernelMode::kKvm;
  }
  return *found;
}

Result<std::unique_ptr<Engine>> CreateKvmEngine(memory::GuestMemory& memory, const KvmOptions& options) {
  const bool emulates = NACRE_TRY(WhoRunsKernels(options.kernel)) == KernelMode::kInterp;
  KvmOptions own = options;
  if (emulates) own.dirty_ring_entries = 0;  // their exits are KvmVcpu's
  auto vm = NACRE_TRY(KvmVm::Create(memory, own, !emulates));
  if (emulates) return std::make_unique<UserOnlyEngine>(memory, std::move(vm), options.interpreted_first);
  return std::make_unique<KvmEngine>(std::move(vm));
}

}  // namespace nacre::engine::kvm
