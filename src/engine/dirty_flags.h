#pragma once
// The dirty log of engines whose stores set GuestMemory's page flags (interp, jit).

#include <memory>
#include <vector>

#include "engine/engine.h"

namespace nacre::engine {

/// `vcpus` may remember in their TLBs which pages have the flag already.
std::unique_ptr<DirtyLog> StartDirtyFlags(memory::GuestMemory& memory, std::vector<Vcpu*> vcpus);

}  // namespace nacre::engine
