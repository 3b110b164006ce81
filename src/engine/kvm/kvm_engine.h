#pragma once
// The engine on the host's KVM: `--engine kvm`. Needs Linux 5.12 (KVM_GET_SREGS2 came with 5.14); what is needed is
// checked by KvmDevice.

#include <memory>

#include "base/result.h"
#include "engine/engine.h"
#include "engine/kvm/kvm_device.h"
#include "memory/guest_memory.h"

namespace nacre::engine::kvm {

/// Who executes the guest's kernel mode (docs/kvm.md, "A weak KVM").
enum class KernelMode : uint8_t {
  kAuto,    ///< KVM unless it emulates: kInterp where the probe finds that (kvm_probe.h)
  kKvm,     ///< KVM, with the local APICs in the host's kernel
  kInterp,  ///< the reference interpreter; KVM gets long stays in user mode, and our own local APICs serve
};

/// kKvm or kInterp. For kAuto the probe's finding, which is looked for once in a process.
Result<KernelMode> WhoRunsKernels(KernelMode asked);

struct KvmOptions {
  KernelMode kernel = KernelMode::kKvm;
  /// kInterp: instructions of a stay in user mode that the interpreter executes before KVM is used. A stay on an
  /// emulating KVM costs about as much.
  uint64_t interpreted_first = 16'384;
  /// For the dirty log, of each vCPU, 16 bytes each: a power of two from 1024. 0, or a host without such rings:
  /// bitmaps. A KVM that emulates overruns its rings, so they are for CPUs that have VT-x or AMD-V.
  uint32_t dirty_ring_entries = HostVirtualization() == CpuVirtualization::kNone ? 0 : 16384;
};

/// A VM of the host's KVM over this guest memory, which must outlive it.
Result<std::unique_ptr<Engine>> CreateKvmEngine(memory::GuestMemory& memory, const KvmOptions& options = {});

}  // namespace nacre::engine::kvm
