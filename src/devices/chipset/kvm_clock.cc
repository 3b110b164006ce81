#include "devices/chipset/kvm_clock.h"

#include <algorithm>
#include <array>
#include <atomic>

#include "base/bits.h"
#include "base/check.h"
#include "devices/chipset/ticks.h"

namespace nacre::devices {
namespace {

// struct pvclock_vcpu_time_info: version, pad, tsc_timestamp, system_time, mul, shift, flags, pad.
constexpr size_t kPageInfoSize = 32;
constexpr uint8_t kFlagStable = 1 << 0, kFlagStopped = 1 << 1;

}  // namespace

TscScale TscScaleFor(uint32_t khz) {
  NACRE_CHECK(khz > 0);
  // mul / 2^32 * 2^shift = 1e6 / khz with mul as large as fits, for precision.
  TscScale scale;
  uint64_t numerator = 1'000'000;
  uint64_t denominator = khz;
  while (numerator >= denominator) {  // factor 1 or more: shift left first
    denominator *= 2;
    ++scale.shift;
  }
  while (numerator * 2 < denominator) {
    numerator *= 2;
    --scale.shift;
  }
  scale.mul = static_cast<uint32_t>(MulDiv(numerator, uint64_t{1} << 32, denominator));
  return scale;
}

KvmClock::KvmClock(unsigned cpus, memory::GuestMemory& memory, Scheduler& scheduler, const GuestTsc& tsc,
                   const WallClock& wall)
    : memory_(memory), scheduler_(scheduler), tsc_(tsc), wall_(wall), system_time_msr_(cpus) {
  NACRE_CHECK(cpus > 0);
}

void KvmClock::Reset() {
  std::ranges::fill(system_time_msr_, uint64_t{0});
  wall_clock_msr_ = 0;
  referenced_ = false;
  reference_tsc_ = 0;
  reference_ns_ = 0;
}

void KvmClock::TakeReference() {
  reference_tsc_ = tsc_.Read();
  reference_ns_ = scheduler_.NowNs();
  referenced_ = true;
}

bool KvmClock::ReadMsr(unsigned cpu, uint32_t index, uint64_t& value) const {
  if (cpu >= system_time_msr_.size() || !OwnsMsr(index)) return false;
  const bool wall = index == kMsrWallClock || index == kMsrWallClockLegacy;
  value = wall ? wall_clock_msr_ : system_time_msr_[cpu];
  return true;
}

bool KvmClock::WriteMsr(unsigned cpu, uint32_t index, uint64_t value) {
  if (cpu >= system_time_msr_.size() || !OwnsMsr(index)) return false;
  if (index == kMsrWallClock || index == kMsrWallClockLegacy) {
    wall_clock_msr_ = value;
    WriteWallClock();
    return true;
  }
  system_time_msr_[cpu] = value;
  if ((value & 1) == 0) return true;
  if (!referenced_) TakeReference();
  WritePage(cpu, false);
  return true;
}

void KvmClock::WritePage(unsigned cpu, bool stopped) {
  const GuestPhys address(system_time_msr_[cpu] & ~uint64_t{1});
  std::array<uint8_t, kPageInfoSize> info{};
  // The guest's page may be anywhere; what is not RAM is not written. Version odd while the rest changes.
  if (!memory_.Read(address, info)) return;
  uint32_t version = LoadLe<uint32_t>(info.data());
  version |= 1;
  memory_.WriteValue(address, version);
  std::atomic_thread_fence(std::memory_order_release);
  const TscScale scale = TscScaleFor(tsc_.khz());
  StoreLe(&info[0], version);
  StoreLe(&info[4], uint32_t{0});
  StoreLe(&info[8], reference_tsc_);
  StoreLe(&info[16], reference_ns_);
  StoreLe(&info[24], scale.mul);
  info[28] = static_cast<uint8_t>(scale.shift);
  info[29] = static_cast<uint8_t>(kFlagStable | (stopped ? kFlagStopped : 0));
  memory_.Write(address, info);
  std::atomic_thread_fence(std::memory_order_release);
  memory_.WriteValue(address, version + 1);
}

void KvmClock::WriteWallClock() {
  const GuestPhys address(wall_clock_msr_);
  uint32_t version = 0;
  if (!memory_.ReadValue(address, version)) return;
  version |= 1;
  // UTC at system time zero: the guest adds its system time.
  const int64_t utc_ns = std::max<int64_t>(wall_.UtcNs() - scheduler_.NowNs(), 0);
  std::array<uint8_t, 12> info{};
  StoreLe(&info[0], version);
  StoreLe(&info[4], static_cast<uint32_t>(utc_ns / kNsPerSecond));
  StoreLe(&info[8], static_cast<uint32_t>(utc_ns % kNsPerSecond));
  if (!memory_.Write(address, info)) return;
  std::atomic_thread_fence(std::memory_order_release);
  memory_.WriteValue(address, version + 1);
}

void KvmClock::Resumed() {
  if (!referenced_) return;
  TakeReference();
  for (unsigned cpu = 0; cpu < system_time_msr_.size(); ++cpu) {
    if ((system_time_msr_[cpu] & 1) != 0) WritePage(cpu, true);
  }
}

void KvmClock::Serialize(state::Archive& archive) {
  archive.Field(1, wall_clock_msr_);
  archive.Field(2, referenced_);
  archive.Field(3, reference_tsc_);
  archive.Field(4, reference_ns_);
  archive.List(
      5, system_time_msr_.size(), 4096,
      [&](size_t count) {
        if (count != system_time_msr_.size()) archive.Reject("kvm-clock: saved with another number of CPUs");
      },
      [&](state::Archive& inner, size_t i) {
        if (i < system_time_msr_.size()) inner.Field(1, system_time_msr_[i]);
      });
  // The guest's pages are part of its memory. The machine calls Resumed once its clocks run again.
}

}  // namespace nacre::devices
