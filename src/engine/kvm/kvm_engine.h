#pragma once
// The engine on the host's KVM: `--engine kvm`. Needs Linux 5.12 (KVM_GET_SREGS2 came with 5.14); what is needed is
// checked by KvmDevice.

#include <memory>

#include "base/result.h"
#include "engine/engine.h"
#include "engine/kvm/kvm_options.h"
#include "memory/guest_memory.h"

namespace nacre::engine::kvm {

/// kKvm or kInterp. For kAuto the probe's finding, which is looked for once in a process.
Result<KernelMode> WhoRunsKernels(KernelMode asked);

/// A VM of the host's KVM over this guest memory, which must outlive it.
Result<std::unique_ptr<Engine>> CreateKvmEngine(memory::GuestMemory& memory, const KvmOptions& options = {});

}  // namespace nacre::engine::kvm
