#include "devices/chipset/hpet.h"

#include <algorithm>

#include "base/bits.h"

namespace nacre::devices {
namespace {

constexpr int64_t kTickNs = 10;
// Period in femtoseconds, then the block ID: Intel, legacy replacement, 64 bits, three timers, revision 1.
constexpr uint64_t kCapabilities = uint64_t{kTickNs * 1'000'000} << 32 | Hpet::kBlockId;
// Of a timer's configuration: periodic capable, 64 bits, FSB capable, routes.
constexpr uint64_t kTimerCapabilities = uint64_t{0xf} << (32 + Hpet::kFirstRoute) | Bit(15) | Bit(5) | Bit(4);
constexpr uint64_t kTimerWritable = Bit(1) | Bit(2) | Bit(3) | Bit(6) | Bit(8) | 0x1f << 9 | Bit(14);
constexpr uint64_t kValueSet = Bit(6), kFsbEnable = Bit(14);
// A period below this would have the host do nothing else.
constexpr uint64_t kMinPeriodTicks = 20'000 / kTickNs;
constexpr int64_t kLongestNs = int64_t{1} << 61;

}  // namespace

void Hpet::Gate::Set(bool value) {
  legacy_level = value;
  Update();
}

void Hpet::Gate::Update() { line->Set(replaced ? hpet_level : legacy_level); }

Hpet::Hpet(Scheduler& scheduler, const Lines& lines, bus::MsiSink& msi)
    : scheduler_(scheduler), msi_(msi), routes_(lines.routes) {
  gates_[0].line = lines.irq0;
  gates_[1].line = lines.irq8;
  for (unsigned i = 0; i < kTimers; ++i) timers_[i] = scheduler_.CreateTimer([this, i] { OnTimer(i); });
  Reset();
}

void Hpet::Reset() {
  config_ = status_ = counter_base_ = 0;
  start_ns_ = 0;
  for (unsigned i = 0; i < kTimers; ++i) {
    comparators_[i] = {};
    comparators_[i].value = ~uint64_t{0};
    timers_[i]->Cancel();
  }
  UpdateGates();
  UpdateLevels();
}

uint64_t Hpet::Counter() const {
  if (!running()) return counter_base_;
  return counter_base_ + static_cast<uint64_t>(std::max<int64_t>(scheduler_.NowNs() - start_ns_, 0) / kTickNs);
}

void Hpet::UpdateGates() {
  for (Gate& gate : gates_) {
    gate.replaced = legacy();
    gate.Update();
  }
}

void Hpet::SetOutput(unsigned index, bool level) {
  if (legacy() && index < 2) {
    gates_[index].hpet_level = level;
    return gates_[index].Update();
  }
  const uint64_t route = Bits(comparators_[index].config, 9, 5);
  if (route >= kFirstRoute && route < kFirstRoute + kRoutes && routes_[route - kFirstRoute])
    routes_[route - kFirstRoute]->Set(level);
}

/// Drives every line from the status bits of level-triggered timers.
void Hpet::UpdateLevels() {
  gates_[0].hpet_level = gates_[1].hpet_level = false;
  std::array<bool, kRoutes> levels{};
  for (unsigned i = 0; i < kTimers; ++i) {
    const Comparator& timer = comparators_[i];
    if (!timer.level() || !timer.enabled() || !TestBit(status_, i)) continue;
    const uint64_t route = Bits(timer.config, 9, 5);
    if (legacy() && i < 2) {
      gates_[i].hpet_level = true;
    } else if (route >= kFirstRoute && route < kFirstRoute + kRoutes) {
      levels[route - kFirstRoute] = true;
    }
  }
  for (Gate& gate : gates_) gate.Update();
  for (unsigned i = 0; i < kRoutes; ++i) {
    if (routes_[i]) routes_[i]->Set(levels[i]);
  }
}

void Hpet::Fire(unsigned index) {
  Comparator& timer = comparators_[index];
  if (!timer.enabled()) return;
  if ((timer.config & kFsbEnable) != 0) return msi_.Send(timer.fsb >> 32, static_cast<uint32_t>(timer.fsb));
  if (timer.level()) {
    status_ |= Bit(index);
    return UpdateLevels();
  }
  SetOutput(index, true);
  SetOutput(index, false);
}

void Hpet::Arm(unsigned index) {
  const Comparator& timer = comparators_[index];
  if (!running()) return timers_[index]->Cancel();
  const uint64_t ticks = (timer.value - Counter()) & timer.mask();
  // A match in years is none.
  if (ticks > static_cast<uint64_t>(kLongestNs / kTickNs)) return timers_[index]->Cancel();
  const int64_t elapsed_ns =
      static_cast<int64_t>(std::min<uint64_t>(Counter() - counter_base_, kLongestNs / kTickNs)) * kTickNs;
  timers_[index]->Arm(start_ns_ + elapsed_ns + static_cast<int64_t>(ticks) * kTickNs);
}

void Hpet::OnTimer(unsigned index) {
  Comparator& timer = comparators_[index];
  if (!running()) return;
  if (timer.periodic() && timer.period != 0) {
    // The comparator moves beyond the counter; periods that the host slept through are one interrupt.
    const uint64_t period = std::max(timer.period & timer.mask(), kMinPeriodTicks);
    const uint64_t behind = (Counter() - timer.value) & timer.mask();
    timer.value = (timer.value + (behind / period + 1) * period) & timer.mask();
    Arm(index);
  } else if (timer.mask() == 0xffffffff) {
    // A one-shot in 32-bit mode matches again when the counter's low half comes round.
    timers_[index]->Arm(scheduler_.NowNs() + (int64_t{1} << 32) * kTickNs);
  }
  Fire(index);
}

uint64_t Hpet::ReadRegister(uint64_t offset) const {
  switch (offset) {
    case 0x000:
      return kCapabilities;
    case 0x010:
      return config_;
    case 0x020:
      return status_;
    case 0x0f0:
      return Counter();
    default:
      break;
  }
  const uint64_t index = (offset - 0x100) / 0x20;
  if (offset < 0x100 || index >= kTimers) return 0;
  const Comparator& timer = comparators_[index];
  switch (offset % 0x20) {
    case 0x00:
      return timer.config | kTimerCapabilities;
    case 0x08:
      return timer.value & timer.mask();
    case 0x10:
      return timer.fsb;
    default:
      return 0;
  }
}

void Hpet::WriteConfig(uint64_t value) {
  const uint64_t changed = config_ ^ (value & 3);
  if ((changed & 1) != 0) {
    counter_base_ = Counter();
    start_ns_ = scheduler_.NowNs();
  }
  config_ = value & 3;
  if ((changed & 2) != 0) UpdateGates();
  if (changed == 0) return;
  UpdateLevels();
  for (unsigned i = 0; i < kTimers; ++i) Arm(i);
}

void Hpet::WriteTimer(unsigned index, uint64_t reg, uint64_t value, uint64_t mask) {
  Comparator& timer = comparators_[index];
  if (reg == 0x00) {
    const uint64_t writable = kTimerWritable & mask;
    timer.config = (timer.config & ~writable) | (value & writable);
    UpdateLevels();
  } else if (reg == 0x08) {
    const auto merge = [&](uint64_t old) { return ((old & ~mask) | (value & mask)) & timer.mask(); };
    // 2.3.9.2.2: in periodic mode a write sets the period, and the comparator too if VAL_SET announced it.
    if (!timer.periodic() || (timer.config & kValueSet) != 0) timer.value = merge(timer.value);
    if (timer.periodic()) timer.period = merge(timer.period);
    timer.config &= ~kValueSet;
  } else if (reg == 0x10) {
    timer.fsb = (timer.fsb & ~mask) | (value & mask);
    return;
  }
  Arm(index);
}

void Hpet::WriteRegister(uint64_t offset, uint64_t value, uint64_t mask) {
  if (offset == 0x010) return WriteConfig((config_ & ~mask) | (value & mask));
  if (offset == 0x020) {
    status_ &= ~(value & mask);
    return UpdateLevels();
  }
  if (offset == 0x0f0) {
    if (running()) return;  // writable only while stopped (2.3.7)
    counter_base_ = (counter_base_ & ~mask) | (value & mask);
    return;
  }
  const uint64_t index = (offset - 0x100) / 0x20;
  if (offset >= 0x100 && index < kTimers) WriteTimer(static_cast<unsigned>(index), offset % 0x20, value, mask);
}

uint64_t Hpet::Read(uint64_t offset, unsigned size) {
  const uint64_t reg = AlignDown(offset, 8);
  const unsigned byte = static_cast<unsigned>(offset - reg);
  if (byte + size > 8) return MaskToSize(~uint64_t{0}, size);  // 2.3: accesses do not cross a register
  return MaskToSize(ReadRegister(reg) >> (8 * byte), size);
}

void Hpet::Write(uint64_t offset, unsigned size, uint64_t value) {
  const uint64_t reg = AlignDown(offset, 8);
  const unsigned byte = static_cast<unsigned>(offset - reg);
  if (byte + size > 8) return;
  WriteRegister(reg, MaskToSize(value, size) << (8 * byte), MaskToSize(~uint64_t{0}, size) << (8 * byte));
}

void Hpet::Serialize(state::Archive& archive) {
  archive.Field(1, config_);
  archive.Field(2, status_);
  archive.Field(3, counter_base_);
  archive.Field(4, start_ns_);
  for (uint16_t i = 0; i < kTimers; ++i) {
    archive.Section(static_cast<uint16_t>(5 + i), 1, [&](state::Archive& inner, uint16_t) {
      inner.Field(1, comparators_[i].config);
      inner.Field(2, comparators_[i].value);
      inner.Field(3, comparators_[i].period);
      inner.Field(4, comparators_[i].fsb);
    });
  }
  archive.Field(8, gates_[0].legacy_level);
  archive.Field(9, gates_[1].legacy_level);
  if (!archive.loading()) return;
  if (start_ns_ < 0 || start_ns_ > kLongestNs) archive.Reject("HPET: impossible start time");
  if (!archive.ok()) return Reset();
  config_ &= 3;
  status_ &= Bit(kTimers) - 1;
  for (Comparator& timer : comparators_) timer.config &= kTimerWritable;
  UpdateGates();
  UpdateLevels();
  for (unsigned i = 0; i < kTimers; ++i) Arm(i);
}

}  // namespace nacre::devices
