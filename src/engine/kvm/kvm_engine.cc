#include "engine/kvm/kvm_engine.h"

#include <sys/ioctl.h>

#include <csignal>

#include "engine/kvm/kvm_vcpu.h"
#include "engine/kvm/kvm_vm.h"

namespace nacre::engine::kvm {
namespace {

/// Guest-physical pages that KVM on Intel hosts needs for itself, in the hole below 4 GiB where no device is.
constexpr uint64_t kIdentityMap = 0xfeffc000, kTss = 0xfeffd000;

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
  Result<std::unique_ptr<DirtyLog>> StartDirtyLog() override { return vm_->dirty_pages().Start(); }
  std::vector<Statistic> Statistics() const override { return vm_->Statistics(); }

 private:
  std::unique_ptr<KvmVm> vm_;
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

Result<std::unique_ptr<KvmVm>> KvmVm::Create(memory::GuestMemory& memory, const KvmOptions& options) {
  std::unique_ptr<KvmVm> vm(new KvmVm(NACRE_TRY(KvmDevice::Open())));
  vm->fd_ = NACRE_TRY(vm->device_.CreateVm());
  NACRE_TRY_STATUS(vm->SetUp(memory, options));
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
  NACRE_TRY_STATUS(Enable(KVM_CAP_SPLIT_IRQCHIP, KvmRoutes::kPins, "the split interrupt chip"));
  routes_.emplace(fd_.get(), device_.Check(KVM_CAP_IRQ_ROUTING));
  NACRE_TRY_STATUS(Enable(KVM_CAP_X2APIC_API, KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK,
                          "32-bit APIC IDs"));
  NACRE_TRY_STATUS(Enable(KVM_CAP_X86_USER_SPACE_MSR,
                          KVM_MSR_EXIT_REASON_INVAL | KVM_MSR_EXIT_REASON_UNKNOWN | KVM_MSR_EXIT_REASON_FILTER,
                          "MSRs in user space"));
  NACRE_TRY_STATUS(FilterMsrs());
  dirty_pages_.emplace(fd_.get(), device_, memory, options.dirty_ring_entries);
  return dirty_pages_->SetSlots(false);
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

Result<std::unique_ptr<Engine>> CreateKvmEngine(memory::GuestMemory& memory, const KvmOptions& options) {
  return std::make_unique<KvmEngine>(NACRE_TRY(KvmVm::Create(memory, options)));
}

}  // namespace nacre::engine::kvm
