// Forced stress: what is rare in real guests happens all the time. Called by Dispatch before it enters translated code,
// with guest vectors live.

#include <utility>

#include "engine/jit/jit_vcpu.h"

namespace nacre::engine::jit {

namespace {

/// True at every `period`th call; 0: never.
bool Due(uint32_t period, uint32_t& count) {
  if (period == 0 || ++count < period) return false;
  count = 0;
  return true;
}

}  // namespace

void JitVcpu::Stress() {
  const JitStress& stress = options_.debug.stress;
  if (Due(stress.flush, stress_flush_)) OnTlbFlush(true);
  // The entry after an invalidation, which comes back with the new translation, must not throw it away unused.
  if (!std::exchange(stress_invalidated_, false) && Due(stress.invalidate, stress_invalidate_)) {
    stress_invalidated_ = true;
    uint64_t address = 0;
    const CodePage* page = FindCodeAddress(address) ? FetchPage(address) : nullptr;
    if (page) {
      counters_.invalidations += store_->InvalidateRange(memory_.PageIndex(page->host), 0, kPageSize - 1, true);
      pending_link_ = kNone;
    }
  }
  // Translated code runs until its first poll or lookup, where an interrupt would be taken; there is none, as after the
  // interrupt controller has changed its mind. With interrupts off the request stays until they are on.
  if (Due(stress.interrupt, stress_interrupt_)) Request(kRequestNoInterrupt);
}

/// Most of the interrupts that are none end here. Every 16th goes the whole way, by a safepoint to the interrupt
/// controller; so does one that finds a halted CPU, which must stay halted.
bool JitVcpu::TakeBackNoInterrupt() {
  if (!stressed_ || context_->state.halted || requests_.load() != kRequestNoInterrupt || ++stress_taken_back_ % 16 == 0)
    return false;
  uint32_t only = kRequestNoInterrupt;
  return requests_.compare_exchange_strong(only, 0);
}

}  // namespace nacre::engine::jit
