#pragma once
// The state of one virtual CPU's local APIC, defined by the manual (Intel SDM 3A ch. 11), not by who keeps it: the
// device model of our own, or the host's KVM. What goes from one to the other when a VM changes engines. Plain data.

#include <cstdint>

namespace nacre::x86 {

struct LocalApicState {
  /// Order of `lvt`.
  enum Lvt : unsigned { kTimer, kThermal, kPerformance, kLint0, kLint1, kError, kLvtCount };

  uint64_t apic_base = 0;  ///< IA32_APIC_BASE
  uint32_t id = 0;         ///< all 32 bits of the x2APIC ID, in xAPIC mode too
  uint32_t tpr = 0;
  uint32_t ldr = 0;  ///< as the register reads in the mode that apic_base says
  uint32_t dfr = 0;
  uint32_t svr = 0;
  uint32_t esr = 0;
  uint32_t icr_low = 0, icr_high = 0;  ///< icr_high: bits 31:24 in xAPIC mode, all of them in x2APIC mode
  uint32_t lvt[kLvtCount] = {};
  uint32_t initial_count = 0;
  uint32_t current_count = 0;  ///< when the state was taken; 0: the timer does not run
  uint32_t divide = 0;         ///< divide configuration register
  uint64_t tsc_deadline = 0;   ///< IA32_TSC_DEADLINE, in the guest's time stamp counter; 0: not armed
  uint32_t irr[8] = {}, isr[8] = {}, tmr[8] = {};
};

}  // namespace nacre::x86
