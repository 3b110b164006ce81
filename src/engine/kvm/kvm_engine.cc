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
  std::vector<Statistic> Statistics() const override { return {{"interrupt messages", vm_->messages()}}; }

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

Result<std::unique_ptr<KvmVm>> KvmVm::Create(memory::GuestMemory& memory) {
  std::unique_ptr<KvmVm> vm(new KvmVm(NACRE_TRY(KvmDevice::Open())));
  vm->fd_ = NACRE_TRY(vm->device_.CreateVm());
  NACRE_TRY_STATUS(vm->SetUp(memory));
  return vm;
}

Status KvmVm::Enable(uint32_t capability, uint64_t argument, const char* name) const {
  kvm_enable_cap cap{};
  cap.cap = capability;
  cap.args[0] = argument;
  if (ioctl(fd_.get(), KVM_ENABLE_CAP, &cap) != 0) return FailErrno("KVM: cannot enable {}", name);
  return {};
}

Status KvmVm::SetUp(memory::GuestMemory& memory) {
  uint64_t identity_map = kIdentityMap;
  if (ioctl(fd_.get(), KVM_SET_IDENTITY_MAP_ADDR, &identity_map) != 0) return FailErrno("KVM_SET_IDENTITY_MAP_ADDR");
  if (ioctl(fd_.get(), KVM_SET_TSS_ADDR, kTss) != 0) return FailErrno("KVM_SET_TSS_ADDR");
  NACRE_TRY_STATUS(Enable(KVM_CAP_SPLIT_IRQCHIP, kIoApicPins, "the split interrupt chip"));
  NACRE_TRY_STATUS(Enable(KVM_CAP_X2APIC_API, KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK,
                          "32-bit APIC IDs"));
  NACRE_TRY_STATUS(Enable(KVM_CAP_X86_USER_SPACE_MSR,
                          KVM_MSR_EXIT_REASON_INVAL | KVM_MSR_EXIT_REASON_UNKNOWN | KVM_MSR_EXIT_REASON_FILTER,
                          "MSRs in user space"));
  NACRE_TRY_STATUS(FilterMsrs());
  uint32_t slot = 0;
  for (const memory::Region& region : memory.regions()) {
    kvm_userspace_memory_region place{};
    place.slot = slot++;
    place.guest_phys_addr = region.start.value;
    place.memory_size = region.size_bytes;
    place.userspace_addr = reinterpret_cast<uint64_t>(memory.host_base() + region.offset);
    if (ioctl(fd_.get(), KVM_SET_USER_MEMORY_REGION, &place) != 0)
      return FailErrno("KVM: {} MiB of guest memory at {:#x}", region.size_bytes / kMiB, region.start.value);
  }
  return {};
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

Status KvmVm::SetPinRoutes(std::span<const std::optional<MessageWrite>> pins) {
  alignas(kvm_irq_routing) uint8_t bytes[sizeof(kvm_irq_routing) + kIoApicPins * sizeof(kvm_irq_routing_entry)] = {};
  auto* routes = reinterpret_cast<kvm_irq_routing*>(bytes);
  uint32_t count = 0;
  for (uint32_t pin = 0; pin < pins.size() && pin < kIoApicPins; ++pin) {
    if (!pins[pin]) continue;
    kvm_irq_routing_entry& entry = routes->entries[count++];
    entry.gsi = pin;
    entry.type = KVM_IRQ_ROUTING_MSI;
    entry.u.msi.address_lo = static_cast<uint32_t>(pins[pin]->address);
    entry.u.msi.address_hi = static_cast<uint32_t>(pins[pin]->address >> 32);
    entry.u.msi.data = pins[pin]->data;
  }
  routes->nr = count;
  if (ioctl(fd_.get(), KVM_SET_GSI_ROUTING, routes) != 0) return FailErrno("KVM_SET_GSI_ROUTING");
  return {};
}

Result<std::unique_ptr<Engine>> CreateKvmEngine(memory::GuestMemory& memory) {
  return std::make_unique<KvmEngine>(NACRE_TRY(KvmVm::Create(memory)));
}

}  // namespace nacre::engine::kvm
