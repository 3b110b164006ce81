#pragma once
// The CPU states in which boot protocols enter a kernel: flat protected mode without paging, and long mode with the
// first 4 GiB mapped one to one. Each also writes the tables that it points to into guest memory (boot_layout.h).
// Called by the loaders, before any vCPU runs. Specifications: SDM 3A 9.8, Linux Documentation/arch/x86/boot.rst
// sections "32-bit" and "64-bit Boot Protocol", Multiboot 0.6.96 section 3.2, Xen x86/HVM direct boot ABI.

#include <cstdint>

#include "base/result.h"
#include "memory/guest_memory.h"
#include "x86/cpu_state.h"

namespace nacre::boot {

/// CS 0x10 and DS/ES/FS/GS/SS 0x18 flat, paging and interrupts off, RIP at `entry` (below 4 GiB).
Result<x86::CpuState> ProtectedModeState(memory::GuestMemory& memory, GuestPhys entry);
/// As above in 64-bit mode, with 2 MiB pages over the first 4 GiB.
Result<x86::CpuState> LongModeState(memory::GuestMemory& memory, GuestPhys entry);

}  // namespace nacre::boot
