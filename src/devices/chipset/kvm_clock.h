#pragma once
// kvm-clock: the paravirtual clock of KVM guests (Linux Documentation/virt/kvm/x86/msr.rst, cpuid.rst). A
// guest gives one page per CPU by MSR; we put there how to compute its system time from its time-stamp
// counter. With an invariant counter nothing needs to be written again while the machine runs. CPUID: leaf
// 0x40000001 bits 0, 3 and 24.
//
// Threads: under the device lock.

#include <cstdint>
#include <vector>

#include "base/clock.h"
#include "base/scheduler.h"
#include "bus/device.h"
#include "devices/chipset/apic_types.h"
#include "memory/guest_memory.h"

namespace nacre::devices {

class KvmClock final : public bus::Device {
 public:
  static constexpr uint32_t kMsrWallClockLegacy = 0x11, kMsrSystemTimeLegacy = 0x12, kMsrWallClock = 0x4b564d00,
                            kMsrSystemTime = 0x4b564d01;

  /// `tsc`: of any CPU; their counters are in step. All must outlive the device.
  KvmClock(unsigned cpus, memory::GuestMemory& memory, Scheduler& scheduler, const GuestTsc& tsc,
           const WallClock& wall);

  static bool OwnsMsr(uint32_t index) {
    return index == kMsrWallClockLegacy || index == kMsrSystemTimeLegacy || index == kMsrWallClock ||
           index == kMsrSystemTime;
  }
  /// False: #GP(0).
  bool ReadMsr(unsigned cpu, uint32_t index, uint64_t& value) const;
  bool WriteMsr(unsigned cpu, uint32_t index, uint64_t value);

  /// INIT: the CPU's clock is off.
  void ResetCpu(unsigned cpu) { system_time_msr_[cpu] = 0; }

  /// Guest time stood still for a while (pause, restore): writes all pages again and tells the guest, so that
  /// its watchdogs do not bark. Also when counters were set.
  void Resumed();

  std::string_view name() const override { return "kvm-clock"; }
  void Reset() override;
  void Serialize(state::Archive& archive) override;

 private:
  void TakeReference();
  void WritePage(unsigned cpu, bool stopped);
  void WriteWallClock();

  memory::GuestMemory& memory_;
  Scheduler& scheduler_;
  const GuestTsc& tsc_;
  const WallClock& wall_;
  std::vector<uint64_t> system_time_msr_;  ///< per CPU: page address, bit 0 enables
  uint64_t wall_clock_msr_ = 0;
  // One pair for all CPUs, so that their clocks never disagree.
  bool referenced_ = false;
  uint64_t reference_tsc_ = 0;
  int64_t reference_ns_ = 0;
};

/// The pair with ns = ((tsc << shift) * mul) >> 32, shift negative for right; khz > 0.
struct TscScale {
  uint32_t mul = 0;
  int8_t shift = 0;
};
TscScale TscScaleFor(uint32_t khz);

}  // namespace nacre::devices
