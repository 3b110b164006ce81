// ACPI state S3, suspend to RAM: the CPUs stand still, memory and the board's clock stay, and an event that the guest
// has enabled starts the machine again. ACPI 6.5, sections 7.4.2.4 and 16.3.

#include "boot/acpi_tables.h"
#include "machine/machine.h"

namespace nacre::machine {

void Machine::Sleep() {
  {
    const std::lock_guard lock(control_mutex_);
    want_sleep_ = true;
  }
  control_changed_.notify_all();
  ParkSoon();
}

void Machine::WakeUp() {
  {
    const std::lock_guard lock(control_mutex_);
    want_wake_ = true;
  }
  control_changed_.notify_all();
}

Status Machine::WakeGuest() {
  ParkAll();
  bool lost = false;
  {
    const std::lock_guard lock(device_lock_);
    if (!asleep()) return {};  // woken by what came before
    const uint32_t vector = firmware_ ? 0 : boot::WakingVector(*memory_).value_or(0);
    lost = !firmware_ && vector == 0;
    if (!lost) {
      LeaveKernel();  // what is reset is ours
      board_->Wake();
      if (!firmware_) NACRE_TRY_STATUS(board_->PrepareResume());
      for (unsigned i = 0; i < runners_.size(); ++i) {
        x86::CpuState& state = runners_[i]->state();
        x86::ResetCpuState(state);
        if (i != 0) x86::InitCpuState(state, false);
        state.tsc_offset = tsc_->offset();
      }
      if (vector != 0) {
        // 5.2.10: CS:IP are the address's bits 19:4 and 3:0.
        x86::CpuState& state = runners_[0]->state();
        state.segment[x86::kCs].selector = static_cast<uint16_t>(vector >> 4);
        state.segment[x86::kCs].base = vector & ~15u;
        state.rip = vector & 15;
      }
      NACRE_TRY_STATUS(GiveApics());
    }
  }
  if (lost) return ResetMachine(), Status();  // as firmware does that finds no vector
  if (state() != RunState::kPaused) ResumeAll();
  return {};
}

}  // namespace nacre::machine
