#pragma once
// The engine on the host's KVM: `--engine kvm`. Needs Linux 5.12 (KVM_GET_SREGS2 came with 5.14); what is needed is
// checked by KvmDevice.

#include <memory>

#include "base/result.h"
#include "engine/engine.h"
#include "engine/kvm/kvm_device.h"
#include "memory/guest_memory.h"

namespace nacre::engine::kvm {

struct KvmOptions {
  /// For the dirty log, of each vCPU, 16 bytes each: a power of two from 1024. 0, or a host without such rings:
  /// bitmaps. A KVM that emulates overruns its rings, so they are for CPUs that have VT-x or AMD-V.
  uint32_t dirty_ring_entries = HostVirtualization() == CpuVirtualization::kNone ? 0 : 16384;
};

/// A VM of the host's KVM over this guest memory, which must outlive it.
Result<std::unique_ptr<Engine>> CreateKvmEngine(memory::GuestMemory& memory, const KvmOptions& options = {});

}  // namespace nacre::engine::kvm
