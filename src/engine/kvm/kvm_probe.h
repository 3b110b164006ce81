#pragma once
// How fast this KVM really is. A KVM may open, have every capability and still run guests a thousand times slower than
// the host runs its own programs: one that emulates guest kernels because the CPU beneath it has no virtualization.
// No table of features shows that, so a guest of five pages is timed: one small loop (loads, stores, branches, ALU) in
// 64-bit kernel mode, then in user mode, then as a function of the host.
//
// What it costs: about 5 ms where KVM is fast. The guest leaves by OUT after few rounds, then after more and more while
// that is quick, so a slow KVM costs no more than its few rounds; each mode takes 6 ms of the thread's time at most,
// and a step more. A KVM that does not come back is interrupted by a timer that sends SIGRTMAX to this thread alone.
// The signal is blocked in this thread meanwhile and admitted by KVM_SET_SIGNAL_MASK only, so it is never delivered:
// no handler is needed, set or called, and other threads are not concerned. Any thread.

#include <cstdint>
#include <span>
#include <string>

#include "engine/kvm/kvm_api.h"
#include "engine/kvm/kvm_device.h"

namespace nacre::engine::kvm {

/// Time in the guest over time on the host for the same work; 0: not measured.
struct KvmSpeed {
  double kernel = 0;  ///< 64-bit, CPL 0
  double user = 0;    ///< 64-bit, CPL 3
};

struct KvmProbe {
  KvmSpeed speed;
  std::string failure;                   ///< why it was not measured to the end; empty: it was
  bool kernel_emulation_failed = false;  ///< the failure: KVM emulates kernel mode and did not know an instruction
};

/// A kernel-mode loop this many times slower than the host's: no processor runs it, KVM's instruction emulator does.
/// (Seen: 1.0 to 1.1 where a processor does, above 1,000 where not.)
constexpr double kEmulatingTimesNative = 20;
/// Whether this KVM emulates guest kernels.
inline bool Emulates(const KvmProbe& probe) {
  return probe.kernel_emulation_failed || probe.speed.kernel > kEmulatingTimesNative;
}

/// After either time in one mode a guest that has not come back is taken to be stuck.
struct ProbeLimits {
  uint64_t cpu_ns = 12'000'000;    ///< of this thread, the guest's time included
  uint64_t wall_ns = 100'000'000;  ///< for a KVM that waits; else only a very busy host takes so long
};

/// Measures. `supported`: of SupportedCpuid, what the guest's CPUID says.
KvmProbe ProbeSpeed(const KvmDevice& device, std::span<const kvm_cpuid_entry2> supported, ProbeLimits limits = {});

}  // namespace nacre::engine::kvm
