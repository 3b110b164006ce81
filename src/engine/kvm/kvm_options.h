#pragma once
// How a VM uses the host's KVM.

#include <cstdint>

#include "engine/kvm/kvm_device.h"

namespace nacre::engine::kvm {

/// Who executes the guest's kernel mode (docs/kvm.md, "A weak KVM").
enum class KernelMode : uint8_t {
  kAuto,    ///< KVM unless it emulates: kInterp where the probe finds that (kvm_probe.h)
  kKvm,     ///< KVM, with the local APICs in the host's kernel
  kInterp,  ///< the reference interpreter; KVM gets long stays in user mode, and our own local APICs serve
};

struct KvmOptions {
  KernelMode kernel = KernelMode::kKvm;
  /// kInterp: instructions of a stay in user mode that the interpreter executes before KVM is used. A stay on an
  /// emulating KVM costs about as much.
  uint64_t interpreted_first = 16'384;
  /// For the dirty log, of each vCPU, 16 bytes each: a power of two from 1024. 0, or a host without such rings:
  /// bitmaps. A KVM that emulates overruns its rings, so they are for CPUs that have VT-x or AMD-V.
  uint32_t dirty_ring_entries = HostVirtualization() == CpuVirtualization::kNone ? 0 : 16384;
};

}  // namespace nacre::engine::kvm
