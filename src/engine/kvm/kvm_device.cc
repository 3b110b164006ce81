#include "engine/kvm/kvm_device.h"

#include <cpuid.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <x86intrin.h>

#include "base/bits.h"
#include "engine/kvm/kvm_api.h"

namespace nacre::engine::kvm {
namespace {

struct Capability {
  int number;
  const char* name;
};

constexpr Capability kNeeded[] = {
    {KVM_CAP_USER_MEMORY, "USER_MEMORY"},
    {KVM_CAP_IMMEDIATE_EXIT, "IMMEDIATE_EXIT"},
    {KVM_CAP_SPLIT_IRQCHIP, "SPLIT_IRQCHIP"},
    {KVM_CAP_XSAVE, "XSAVE"},
    {KVM_CAP_XCRS, "XCRS"},
    {KVM_CAP_VCPU_EVENTS, "VCPU_EVENTS"},
    {KVM_CAP_DEBUGREGS, "DEBUGREGS"},
    {KVM_CAP_MP_STATE, "MP_STATE"},
    {KVM_CAP_X86_USER_SPACE_MSR, "X86_USER_SPACE_MSR"},
    {KVM_CAP_X86_MSR_FILTER, "X86_MSR_FILTER"},
    {KVM_CAP_SIGNAL_MSI, "SIGNAL_MSI"},
    {KVM_CAP_IRQFD, "IRQFD"},
    {KVM_CAP_IOEVENTFD, "IOEVENTFD"},
    {KVM_CAP_GET_TSC_KHZ, "GET_TSC_KHZ"},
    {KVM_CAP_EXT_CPUID, "EXT_CPUID"},
    {KVM_CAP_TSC_DEADLINE_TIMER, "TSC_DEADLINE_TIMER"},
    {KVM_CAP_ADJUST_CLOCK, "ADJUST_CLOCK"},
};

constexpr const char* kInContainer = "in a container, start it with the device (docker run --device /dev/kvm)";

}  // namespace

CpuVirtualization HostVirtualization() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid(1, &a, &b, &c, &d) && TestBit(c, 5)) return CpuVirtualization::kIntel;
  if (__get_cpuid(0x80000001, &a, &b, &c, &d) && TestBit(c, 2)) return CpuVirtualization::kAmd;
  return CpuVirtualization::kNone;
}

std::string DescribeOpenFailure(const std::string& path, int error, CpuVirtualization cpu) {
  switch (error) {
    case ENOENT:
    case ENODEV:
    case ENXIO:
      break;
    case EACCES:
      return fmt::format(
          "{} may not be opened by this user: add the user to its group (as root: usermod -aG kvm USER) and log in "
          "again",
          path);
    case EPERM:
      return fmt::format("{} is forbidden here: {}", path, kInContainer);
    case EBUSY:
      return fmt::format("{} is busy: end the other hypervisor (VirtualBox, VMware) that uses this host's CPUs", path);
    default:
      return fmt::format("{} cannot be opened: {}", path, std::strerror(error));
  }
  const char* const what = error == ENOENT ? "is not there" : "has no driver behind it";
  if (cpu == CpuVirtualization::kNone)
    return fmt::format(
        "{} {}, and this CPU shows neither VT-x nor AMD-V: turn virtualization on in the firmware; if this host is a "
        "virtual machine, turn nested virtualization on where that one is run",
        path, what);
  return fmt::format("{} {}: load its module (as root: modprobe {}); {}", path, what,
                     cpu == CpuVirtualization::kIntel ? "kvm_intel" : "kvm_amd", kInContainer);
}

std::string DescribeCreateVmFailure(int error) {
  if (error == EBUSY)
    return "KVM cannot make a VM: another hypervisor (VirtualBox, VMware) uses this host's CPUs; end its machines";
  if (error == EOPNOTSUPP || error == ENODEV || error == EIO)
    return "KVM cannot make a VM: virtualization is locked or off in the firmware; turn VT-x or AMD-V on there";
  return fmt::format("KVM cannot make a VM: {}", std::strerror(error));
}

std::string MissingCapabilities(const std::function<int(int capability)>& check) {
  std::string missing;
  for (const Capability& capability : kNeeded) {
    if (check(capability.number) > 0) continue;
    missing += fmt::format("{}KVM_CAP_{}", missing.empty() ? "" : " ", capability.name);
  }
  return missing;
}

Result<KvmDevice> KvmDevice::Open(const std::string& path) {
  Fd fd(open(path.c_str(), O_RDWR | O_CLOEXEC));
  if (!fd.valid()) {
    const int error = errno;
    return std::unexpected(Error{DescribeOpenFailure(path, error, HostVirtualization()), error});
  }
  const int version = ioctl(fd.get(), KVM_GET_API_VERSION, 0);
  if (version < 0)
    return Fail("{} is not KVM's device: give it as the kernel makes it (character device 10, 232)", path);
  if (version != KVM_API_VERSION) return Fail("{} has API version {}, Nacre needs {}", path, version, KVM_API_VERSION);
  const int bytes = ioctl(fd.get(), KVM_GET_VCPU_MMAP_SIZE, 0);
  if (bytes < static_cast<int>(sizeof(kvm_run))) return Fail("{}: {} bytes are too few for a vCPU", path, bytes);
  KvmDevice device(std::move(fd), static_cast<size_t>(bytes));
  const std::string missing = MissingCapabilities([&](int capability) { return device.Check(capability); });
  if (!missing.empty()) return Fail("{} lacks {}: a newer kernel has them (Linux 5.10 is enough)", path, missing);
  return device;
}

int KvmDevice::Check(int capability) const {
  const int answer = ioctl(fd_.get(), KVM_CHECK_EXTENSION, capability);
  return answer < 0 ? 0 : answer;
}

Result<bool> KvmDevice::MovesTsc() const {
  const Fd vm = NACRE_TRY(CreateVm());
  const Fd vcpu(ioctl(vm.get(), KVM_CREATE_VCPU, 0));
  if (!vcpu.valid()) return FailErrno("KVM: a vCPU");
  alignas(kvm_msrs) uint8_t buffer[sizeof(kvm_msrs) + sizeof(kvm_msr_entry)] = {};
  auto* msrs = reinterpret_cast<kvm_msrs*>(buffer);
  const uint64_t wanted = __rdtsc() + (uint64_t{1} << 50);
  msrs->nmsrs = 1;
  msrs->entries[0].index = 0x10;  // IA32_TIME_STAMP_COUNTER
  msrs->entries[0].data = wanted;
  if (ioctl(vcpu.get(), KVM_SET_MSRS, msrs) != 1 || ioctl(vcpu.get(), KVM_GET_MSRS, msrs) != 1) return false;
  return msrs->entries[0].data - wanted < uint64_t{1} << 45;
}

uint64_t KvmDevice::FeatureMsr(uint32_t index) const {
  alignas(kvm_msrs) uint8_t bytes[sizeof(kvm_msrs) + sizeof(kvm_msr_entry)] = {};
  auto* list = reinterpret_cast<kvm_msrs*>(bytes);
  list->nmsrs = 1;
  list->entries[0].index = index;
  if (Check(KVM_CAP_GET_MSR_FEATURES) == 0 || ioctl(fd_.get(), KVM_GET_MSRS, list) != 1) return 0;
  return list->entries[0].data;
}

Result<Fd> KvmDevice::CreateVm() const {
  for (;;) {
    Fd vm(ioctl(fd_.get(), KVM_CREATE_VM, 0));
    if (vm.valid()) return vm;
    const int error = errno;
    if (error != EINTR) return std::unexpected(Error{DescribeCreateVmFailure(error), error});
  }
}

}  // namespace nacre::engine::kvm
