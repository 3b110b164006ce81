#include "devices/legacy/pit8254.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "base/bits.h"
#include "devices/chipset/ticks.h"

namespace nacre::devices {
namespace {

constexpr int64_t kNever = std::numeric_limits<int64_t>::max();
// Counts below this would have the host do nothing but ticks.
constexpr int64_t kMinIntervalNs = 20'000;
constexpr int64_t kRefreshNs = 15'085;

bool Periodic(uint8_t mode) { return mode == 2 || mode == 3; }
bool Triggered(uint8_t mode) { return mode == 1 || mode == 5; }

uint16_t ToBcd(uint32_t value) {
  uint16_t bcd = 0;
  for (unsigned shift = 0; shift < 16; shift += 4, value /= 10) bcd |= static_cast<uint16_t>((value % 10) << shift);
  return bcd;
}

uint32_t FromBcd(uint16_t bcd) {
  uint32_t value = 0;
  for (int shift = 12; shift >= 0; shift -= 4) value = value * 10 + std::min(bcd >> shift & 0xf, 9);
  return value;
}

}  // namespace

void Pit8254::Counter::SetMode(uint8_t control) {
  access = control >> 4 & 3;
  mode = control >> 1 & 7;
  if (mode > 5) mode -= 4;  // X10 and X11 (data sheet, figure 7)
  bcd = (control & 1) != 0;
  write_high = read_high = false;
  null_count = true;
  counting = false;
  next_reload = 0;
  base_ticks = 0;
  count_latched = status_latched = false;
}

uint64_t Pit8254::Counter::Ticks(int64_t now_ns) const {
  const bool paused = !counting || (!gate && !Triggered(mode));
  if (paused || now_ns <= start_ns) return base_ticks;
  return base_ticks + NsToTicks(now_ns, kHz) - NsToTicks(start_ns, kHz);
}

void Pit8254::Counter::Start(int64_t now_ns, uint64_t ticks) {
  counting = true;
  null_count = false;
  start_ns = now_ns;
  base_ticks = ticks;
}

/// Takes over a new count at the end of the running period (modes 2 and 3). Mode 3 should do so at the end of
/// a half cycle already; no software is known to depend on that.
void Pit8254::Counter::Sync(int64_t now_ns) {
  if (!counting || next_reload == 0 || !Periodic(mode)) return;
  const uint64_t ticks = Ticks(now_ns);
  if (ticks < reload) return;
  const uint32_t period = reload;
  reload = next_reload;
  next_reload = 0;
  Start(now_ns, ticks - period);
}

void Pit8254::Counter::WriteCount(uint16_t value, int64_t now_ns) {
  uint32_t count = bcd ? FromBcd(value) : value;
  if (count == 0) count = bcd ? 10000 : 0x10000;
  if (Periodic(mode) && count == 1) count = 2;  // 1 is illegal there
  if (Triggered(mode)) {
    next_reload = count;
    null_count = true;
  } else if (Periodic(mode) && counting) {
    Sync(now_ns);
    // The end of the present period counts from now.
    base_ticks = Ticks(now_ns) % reload;
    start_ns = now_ns;
    next_reload = count;
    null_count = true;
  } else {
    reload = count;
    Start(now_ns);
  }
}

void Pit8254::Counter::SetGate(bool level, int64_t now_ns) {
  if (level == gate) return;
  Sync(now_ns);
  base_ticks = Ticks(now_ns);
  start_ns = now_ns;
  gate = level;
  if (!level) return;
  if (Triggered(mode) && (counting || next_reload != 0)) {
    if (next_reload != 0) reload = std::exchange(next_reload, 0);
    Start(now_ns);
  } else if (Periodic(mode) && counting) {
    if (next_reload != 0) reload = std::exchange(next_reload, 0);
    Start(now_ns);  // a rising gate restarts the period
  }
}

bool Pit8254::Counter::Out(int64_t now_ns) const {
  if (!counting) return mode != 0;
  const uint64_t ticks = Ticks(now_ns);
  switch (mode) {
    case 0:
    case 1:
      return ticks >= reload;
    case 2:
      return !gate || ticks % reload != reload - 1;
    case 3:
      return !gate || ticks % reload < (reload + 1) / 2;
    default:
      return ticks != reload;  // strobe
  }
}

uint16_t Pit8254::Counter::Count(int64_t now_ns) const {
  const uint64_t ticks = Ticks(now_ns);
  const uint32_t modulus = bcd ? 10000 : 0x10000;
  uint64_t count = 0;
  if (mode == 2) {
    count = reload - ticks % reload;
  } else if (mode == 3) {
    const uint64_t at = ticks % reload;
    const uint64_t half = (reload + 1) / 2;
    count = (reload & ~1u) - 2 * (at < half ? at : at - half);
  } else {
    count = reload + modulus - ticks % modulus;  // goes on below zero
  }
  count %= modulus;
  return bcd ? ToBcd(static_cast<uint32_t>(count)) : static_cast<uint16_t>(count);
}

uint8_t Pit8254::Counter::Status(int64_t now_ns) const {
  return static_cast<uint8_t>((Out(now_ns) ? 0x80 : 0) | (null_count ? 0x40 : 0) | access << 4 | mode << 1 |
                              (bcd ? 1 : 0));
}

int64_t Pit8254::Counter::NextRise(int64_t now_ns) const {
  if (!counting || (!gate && !Triggered(mode))) return kNever;
  const uint64_t ticks = Ticks(now_ns);
  uint64_t rise = 0;
  if (Periodic(mode)) {
    rise = (ticks / reload + 1) * reload;
    // A new count begins at the same edge: nothing else to know here.
  } else {
    rise = mode >= 4 ? reload + 1 : reload;
    if (ticks >= rise) return kNever;
  }
  return TicksToNs(NsToTicks(start_ns, kHz) + (rise - base_ticks), kHz);
}

Pit8254::Pit8254(Scheduler& scheduler, bus::IrqLine& irq0) : scheduler_(scheduler), irq0_(irq0) {
  timer_ = scheduler_.CreateTimer([this] { OnTimer(); });
  Reset();
}

void Pit8254::Reset() {
  timer_->Cancel();
  counters_ = {};
  counters_[2].gate = false;
  speaker_bits_ = 0;
  irq0_.Set(false);
}

void Pit8254::UpdateIrq() {
  const int64_t now_ns = scheduler_.NowNs();
  Counter& counter = counters_[0];
  irq0_.Set(counter.Out(now_ns));
  const int64_t rise_ns = counter.NextRise(now_ns);
  if (rise_ns == kNever) return timer_->Cancel();
  timer_->Arm(std::max(rise_ns, now_ns + kMinIntervalNs));
}

void Pit8254::OnTimer() {
  const int64_t now_ns = scheduler_.NowNs();
  counters_[0].Sync(now_ns);
  // Only rising edges have a timer: the fall before this one is made up for here. Several periods that passed
  // while the host was busy are one edge.
  irq0_.Set(false);
  irq0_.Set(true);
  const int64_t rise_ns = counters_[0].NextRise(now_ns);
  if (rise_ns != kNever) timer_->Arm(std::max(rise_ns, now_ns + kMinIntervalNs));
}

void Pit8254::Latch(Counter& counter, bool count, bool status) {
  const int64_t now_ns = scheduler_.NowNs();
  counter.Sync(now_ns);
  if (count && !counter.count_latched) {
    counter.latched_count = counter.Count(now_ns);
    counter.count_latched = true;
    counter.read_high = false;
  }
  if (status && !counter.status_latched) {
    counter.latched_status = counter.Status(now_ns);
    counter.status_latched = true;
  }
}

void Pit8254::WriteControl(uint8_t value) {
  const unsigned select = value >> 6;
  if (select == 3) {  // read-back: bit 5 clear latches the count, bit 4 clear the status
    for (unsigned i = 0; i < 3; ++i) {
      if (TestBit(value, i + 1)) Latch(counters_[i], (value & 0x20) == 0, (value & 0x10) == 0);
    }
    return;
  }
  if ((value & 0x30) == 0) return Latch(counters_[select], true, false);
  counters_[select].SetMode(value);
  if (select == 0) UpdateIrq();
}

void Pit8254::WriteByte(unsigned port, uint8_t value) {
  if (port == 3) return WriteControl(value);
  Counter& counter = counters_[port];
  const int64_t now_ns = scheduler_.NowNs();
  switch (counter.access) {
    case 1:
      counter.WriteCount(value, now_ns);
      break;
    case 2:
      counter.WriteCount(static_cast<uint16_t>(value << 8), now_ns);
      break;
    default:
      if (!counter.write_high) {
        counter.write_low = value;
        counter.write_high = true;
        // Mode 0: the first byte stops the count and drops OUT until the second comes.
        if (counter.mode == 0) {
          counter.SetMode(static_cast<uint8_t>(0x30 | (counter.bcd ? 1 : 0)));
          counter.write_high = true;
        }
      } else {
        counter.write_high = false;
        counter.WriteCount(static_cast<uint16_t>(value << 8 | counter.write_low), now_ns);
      }
  }
  if (port == 0) UpdateIrq();
}

uint8_t Pit8254::ReadByte(unsigned port) {
  if (port == 3) return 0xff;  // write-only
  Counter& counter = counters_[port];
  if (counter.status_latched) {
    counter.status_latched = false;
    return counter.latched_status;
  }
  uint16_t count = counter.latched_count;
  if (!counter.count_latched) {
    const int64_t now_ns = scheduler_.NowNs();
    counter.Sync(now_ns);
    count = counter.Count(now_ns);
  }
  const bool high = counter.access == 2 || (counter.access == 3 && counter.read_high);
  if (counter.access == 3) counter.read_high = !counter.read_high;
  if (counter.access != 3 || high) counter.count_latched = false;
  return static_cast<uint8_t>(high ? count >> 8 : count);
}

uint64_t Pit8254::Read(uint64_t offset, unsigned size) {
  uint64_t value = 0;
  for (unsigned i = 0; i < size; ++i) {
    const uint64_t byte = offset + i < 4 ? ReadByte(static_cast<unsigned>(offset + i)) : 0xff;
    value |= byte << (8 * i);
  }
  return value;
}

void Pit8254::Write(uint64_t offset, unsigned size, uint64_t value) {
  for (unsigned i = 0; i < size && offset + i < 4; ++i)
    WriteByte(static_cast<unsigned>(offset + i), static_cast<uint8_t>(value >> (8 * i)));
}

uint64_t Pit8254::Speaker::Read(uint64_t offset, unsigned size) {
  const int64_t now_ns = pit.scheduler_.NowNs();
  pit.counters_[2].Sync(now_ns);
  uint64_t value = pit.speaker_bits_;
  if ((now_ns / kRefreshNs) % 2 != 0) value |= 0x10;  // memory refresh, once a delay loop
  if (pit.counters_[2].Out(now_ns)) value |= 0x20;
  return offset == 0 ? value : MaskToSize(~uint64_t{0}, size);
}

void Pit8254::Speaker::Write(uint64_t offset, unsigned, uint64_t value) {
  if (offset != 0) return;
  pit.speaker_bits_ = value & 0x0f;
  pit.counters_[2].SetGate((value & 1) != 0, pit.scheduler_.NowNs());
}

void Pit8254::Counter::Serialize(state::Archive& archive) {
  archive.Field(1, mode);
  archive.Field(2, access);
  archive.Field(3, bcd);
  archive.Field(4, gate);
  archive.Field(5, null_count);
  archive.Field(6, counting);
  archive.Field(7, reload);
  archive.Field(8, next_reload);
  archive.Field(9, base_ticks);
  archive.Field(10, start_ns);
  archive.Field(11, write_high);
  archive.Field(12, write_low);
  archive.Field(13, read_high);
  archive.Field(14, count_latched);
  archive.Field(15, latched_count);
  archive.Field(16, status_latched);
  archive.Field(17, latched_status);
  if (!archive.loading()) return;
  const bool valid = mode <= 5 && access >= 1 && access <= 3 && reload >= 1 && reload <= 0x10000 &&
                     next_reload <= 0x10000 && start_ns >= 0 && start_ns <= INT64_MAX / 2 &&
                     base_ticks < (uint64_t{1} << 62);
  if (!valid) archive.Reject("PIT: impossible counter state");
}

void Pit8254::Serialize(state::Archive& archive) {
  for (uint16_t i = 0; i < 3; ++i)
    archive.Section(static_cast<uint16_t>(i + 1), 1,
                    [&](state::Archive& inner, uint16_t) { counters_[i].Serialize(inner); });
  archive.Field(4, speaker_bits_);
  if (!archive.loading()) return;
  speaker_bits_ &= 0x0f;
  if (!archive.ok()) return Reset();
  UpdateIrq();
}

}  // namespace nacre::devices
