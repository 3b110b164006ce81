#pragma once
// What a CPU was at when the guest died, as text for the user. Changes nothing in the guest. Any thread, the CPU
// parked.

#include <string>

#include "memory/guest_memory.h"
#include "x86/cpu_state.h"

namespace nacre::machine {

/// Several lines, the first of which starts with a newline: registers, and the instruction at RIP if it can be read.
std::string CrashReport(const x86::CpuState& state, memory::GuestMemory& memory, unsigned cpu);

}  // namespace nacre::machine
