#pragma once
// /dev/kvm, opened and checked: what the kvm engine, its probe and `nacre doctor` start from. Any thread.
// Specification: Linux, Documentation/virt/kvm/api.rst.

#include <functional>
#include <string>

#include "base/fd.h"
#include "base/result.h"

namespace nacre::engine::kvm {

class KvmDevice {
 public:
  /// Opens `path` and checks the API's version and the capabilities that Nacre needs. The error says what is wrong and
  /// what to do; its code is open's errno where opening failed.
  static Result<KvmDevice> Open(const std::string& path = "/dev/kvm");

  int fd() const { return fd_.get(); }
  /// KVM_CHECK_EXTENSION: 0 where this KVM lacks it.
  int Check(int capability) const;
  /// An MSR that tells of the CPU, as this KVM offers it to guests (KVM_CAP_GET_MSR_FEATURES); 0 where it does not.
  uint64_t FeatureMsr(uint32_t index) const;
  /// Of the mapping that a vCPU shares with the kernel (struct kvm_run and what follows it).
  size_t vcpu_mmap_bytes() const { return vcpu_mmap_bytes_; }
  /// Whether a guest's time stamp counter can differ from the host's. An emulating KVM may take an offset and ignore
  /// it.
  Result<bool> MovesTsc() const;
  /// KVM_CREATE_VM, again after a signal.
  Result<Fd> CreateVm() const;

 private:
  KvmDevice(Fd fd, size_t vcpu_mmap_bytes) : fd_(std::move(fd)), vcpu_mmap_bytes_(vcpu_mmap_bytes) {}

  Fd fd_;
  size_t vcpu_mmap_bytes_ = 0;
};

/// What the CPU offers a hypervisor, by its CPUID.
enum class CpuVirtualization { kNone, kIntel, kAmd };
CpuVirtualization HostVirtualization();

/// What open's `error` (errno) for `path` means and what to do about it, one sentence.
std::string DescribeOpenFailure(const std::string& path, int error, CpuVirtualization cpu);
/// The same for KVM_CREATE_VM.
std::string DescribeCreateVmFailure(int error);
/// The capabilities that Nacre needs and `check` answers 0 for: names with spaces, empty if none is missing.
std::string MissingCapabilities(const std::function<int(int capability)>& check);

}  // namespace nacre::engine::kvm
