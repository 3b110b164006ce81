#include "devices/legacy/rtc.h"

#include <algorithm>
#include <chrono>
#include <limits>

#include "base/bits.h"
#include "devices/chipset/ticks.h"

namespace nacre::devices {
namespace {

constexpr int64_t kNever = std::numeric_limits<int64_t>::max();
enum : uint8_t {
  kSeconds = 0,
  kSecondsAlarm = 1,
  kMinutes = 2,
  kMinutesAlarm = 3,
  kHours = 4,
  kHoursAlarm = 5,
  kWeekday = 6,
  kDay = 7,
  kMonth = 8,
  kYear = 9,
  kA = 10,
  kB = 11,
  kC = 12,
  kD = 13
};
/// CMOS bytes: the types of A: (high half) and B:; equipment, bit 0: with drives, bits 7:6: their number less one.
constexpr uint8_t kFloppyTypes = 0x10, kEquipment = 0x14;
constexpr uint8_t kUip = 0x80;
constexpr uint8_t kPeriodic = 0x40, kAlarm = 0x20, kUpdateEnded = 0x10, kAnyFlag = 0x70, kIrqf = 0x80;
constexpr uint8_t kSet = 0x80;
// UIP is set 244 us before an update, which takes 1984 us (data sheet, table 5: 32.768 kHz).
constexpr int64_t kUpdateNs = 244'000 + 1'984'000;
constexpr int64_t kSecondsPerDay = 86'400;

int64_t FloorDiv(int64_t value, int64_t divisor) { return value / divisor - (value % divisor < 0 ? 1 : 0); }

}  // namespace

Rtc::Rtc(Scheduler& scheduler, const WallClock& wall, bus::IrqLine& irq8)
    : scheduler_(scheduler), wall_(wall), irq_(irq8) {
  timer_ = scheduler_.CreateTimer([this] {
    CatchUp();
    UpdateIrq();
    ArmTimer();
  });
  cmos_[kA] = 0x26;  // 32.768 kHz, 1024 Hz
  cmos_[kB] = 0x02;  // BCD, 24 hours
  Reset();
}

// The clock has a battery: RESET only clears interrupt enables and flags (data sheet, "RESET").
void Rtc::Reset() {
  index_ = 0;
  cmos_[kB] &= static_cast<uint8_t>(~0x78);
  cmos_[kC] = 0;
  seen_second_ = FloorDiv(GuestUtcNs(), kNsPerSecond);
  periodic_ns_ = scheduler_.NowNs();
  timer_->Cancel();
  UpdateIrq();
}

void Rtc::SetCmos(uint8_t index, uint8_t value) { cmos_[index & 0x7f] = value; }

void Rtc::SetMemorySize(uint64_t below_4g, uint64_t above_4g) {
  const auto put16 = [&](uint8_t index, uint64_t value) {
    const uint64_t bounded = std::min<uint64_t>(value, 0xffff);
    SetCmos(index, static_cast<uint8_t>(bounded));
    SetCmos(static_cast<uint8_t>(index + 1), static_cast<uint8_t>(bounded >> 8));
  };
  const uint64_t above_1m = below_4g > kMiB ? below_4g - kMiB : 0;
  put16(0x15, 640);
  put16(0x17, above_1m / kKiB);
  put16(0x30, above_1m / kKiB);
  put16(0x34, below_4g > 16 * kMiB ? (below_4g - 16 * kMiB) / (64 * kKiB) : 0);
  const uint64_t high = std::min<uint64_t>(above_4g / (64 * kKiB), 0xffffff);
  put16(0x5b, high & 0xffff);
  SetCmos(0x5d, static_cast<uint8_t>(high >> 16));
}

void Rtc::SetFloppies(uint8_t first, uint8_t second) {
  SetCmos(kFloppyTypes, static_cast<uint8_t>(first << 4 | second));
  const unsigned count = (first != 0 ? 1u : 0u) + (second != 0 ? 1u : 0u);
  cmos_[kEquipment] = static_cast<uint8_t>((cmos_[kEquipment] & 0x3e) | (count != 0 ? 1 | (count - 1) << 6 : 0));
}

uint8_t Rtc::Encode(unsigned value) const {
  return static_cast<uint8_t>(binary() ? value : value / 10 << 4 | value % 10);
}

unsigned Rtc::Decode(uint8_t value) const { return binary() ? value : (value >> 4) * 10u + (value & 0xf); }

uint8_t Rtc::EncodeHour(unsigned hour) const {
  if (hours24()) return Encode(hour);
  const unsigned hour12 = hour % 12 == 0 ? 12 : hour % 12;
  return static_cast<uint8_t>(Encode(hour12) | (hour >= 12 ? 0x80 : 0));
}

unsigned Rtc::DecodeHour(uint8_t value) const {
  if (hours24()) return Decode(value);
  return Decode(value & 0x7f) % 12 + ((value & 0x80) != 0 ? 12 : 0);
}

void Rtc::StoreTime() {
  using std::chrono::days;
  const int64_t second = FloorDiv(GuestUtcNs(), kNsPerSecond);
  const int64_t day_number = FloorDiv(second, kSecondsPerDay);
  const auto of_day = static_cast<unsigned>(second - day_number * kSecondsPerDay);
  const std::chrono::sys_days day{days(day_number)};
  const std::chrono::year_month_day date(day);
  const auto year = static_cast<unsigned>(std::clamp(static_cast<int>(date.year()), 0, 9999));
  cmos_[kSeconds] = Encode(of_day % 60);
  cmos_[kMinutes] = Encode(of_day / 60 % 60);
  cmos_[kHours] = EncodeHour(of_day / 3600);
  cmos_[kWeekday] = Encode(std::chrono::weekday(day).c_encoding() + 1);
  cmos_[kDay] = Encode(static_cast<unsigned>(date.day()));
  cmos_[kMonth] = Encode(static_cast<unsigned>(date.month()));
  cmos_[kYear] = Encode(year % 100);
  cmos_[kCenturyIndex] = Encode(year / 100);
}

void Rtc::LoadTime() {
  using namespace std::chrono;
  // A guest may have written anything: each field is brought into its range.
  const unsigned full_year = Decode(cmos_[kCenturyIndex]) % 100 * 100 + Decode(cmos_[kYear]) % 100;
  const auto month_number = std::clamp(Decode(cmos_[kMonth]), 1u, 12u);
  const auto day_number = std::clamp(Decode(cmos_[kDay]), 1u, 31u);
  const sys_days first = year(static_cast<int>(full_year)) / month(month_number) / day(1);
  const int64_t second = (first.time_since_epoch().count() + day_number - 1) * kSecondsPerDay +
                         DecodeHour(cmos_[kHours]) % 24 * 3600 + Decode(cmos_[kMinutes]) % 60 * 60 +
                         Decode(cmos_[kSeconds]) % 60;
  // The years 1881 to 2115: offset and sum stay far inside int64 nanoseconds, whatever the host's clock says.
  offset_ns_ = std::clamp<int64_t>(second, -2'800'000'000, 4'600'000'000) * kNsPerSecond - wall_.UtcNs();
  seen_second_ = FloorDiv(GuestUtcNs(), kNsPerSecond);
}

int64_t Rtc::PeriodNs() const {
  // Rates 1 and 2 are those of 8 and 9 with the 32.768 kHz base (data sheet, table 5).
  unsigned rate = a() & 0xf;
  if (rate == 0 || (a() & 0x70) != 0x20) return kNever;
  if (rate <= 2) rate += 7;
  return kNsPerSecond * (int64_t{1} << (rate - 1)) / 32768;
}

bool Rtc::AlarmBetween(int64_t from_second, int64_t to_second) const {
  // Alarm bytes 0xc0-0xff match every value.
  const auto matches = [&](uint8_t alarm, uint8_t now) { return (alarm & 0xc0) == 0xc0 || alarm == now; };
  const int64_t first = std::max(from_second, to_second - kSecondsPerDay + 1);
  for (int64_t second = first; second <= to_second; ++second) {
    const auto of_day = static_cast<unsigned>(second - FloorDiv(second, kSecondsPerDay) * kSecondsPerDay);
    if (matches(cmos_[kSecondsAlarm], Encode(of_day % 60)) && matches(cmos_[kMinutesAlarm], Encode(of_day / 60 % 60)) &&
        matches(cmos_[kHoursAlarm], EncodeHour(of_day / 3600)))
      return true;
  }
  return false;
}

void Rtc::CatchUp() {
  const int64_t now_ns = scheduler_.NowNs();
  if (const int64_t period_ns = PeriodNs(); period_ns != kNever && now_ns - periodic_ns_ >= period_ns) {
    periodic_ns_ += (now_ns - periodic_ns_) / period_ns * period_ns;
    cmos_[kC] |= kPeriodic;
  }
  if (frozen()) return;
  const int64_t second = FloorDiv(GuestUtcNs(), kNsPerSecond);
  if (second == seen_second_) return;
  if (second > seen_second_ && AlarmBetween(seen_second_ + 1, second)) cmos_[kC] |= kAlarm;
  seen_second_ = second;  // also when the host's clock was set back
  cmos_[kC] |= kUpdateEnded;
}

void Rtc::UpdateIrq() {
  const bool request = (cmos_[kC] & b() & kAnyFlag) != 0;
  cmos_[kC] = static_cast<uint8_t>((cmos_[kC] & kAnyFlag) | (request ? kIrqf : 0));
  irq_.Set(request);
}

void Rtc::ArmTimer() {
  int64_t next_ns = kNever;
  const int64_t now_ns = scheduler_.NowNs();
  if ((b() & kPeriodic) != 0) {
    if (const int64_t period_ns = PeriodNs(); period_ns != kNever) next_ns = periodic_ns_ + period_ns;
  }
  // Once a second, and only for a guest that wants to be told.
  if ((b() & (kAlarm | kUpdateEnded)) != 0 && !frozen()) {
    const int64_t into_second = GuestUtcNs() - FloorDiv(GuestUtcNs(), kNsPerSecond) * kNsPerSecond;
    next_ns = std::min(next_ns, now_ns + kNsPerSecond - into_second);
  }
  if (next_ns == kNever) {
    timer_->Cancel();
  } else {
    timer_->Arm(next_ns);
  }
}

uint8_t Rtc::ReadRegister(uint8_t index) {
  switch (index) {
    case kSeconds:
    case kMinutes:
    case kHours:
    case kWeekday:
    case kDay:
    case kMonth:
    case kYear:
    case kCenturyIndex:
      if (!frozen()) StoreTime();
      return cmos_[index];
    case kA: {
      const int64_t utc_ns = GuestUtcNs();
      const int64_t left_ns = kNsPerSecond - (utc_ns - FloorDiv(utc_ns, kNsPerSecond) * kNsPerSecond);
      return static_cast<uint8_t>(a() | (!frozen() && left_ns <= kUpdateNs ? kUip : 0));
    }
    case kC: {
      CatchUp();
      UpdateIrq();
      const uint8_t flags = cmos_[kC];
      cmos_[kC] = 0;  // reading clears
      UpdateIrq();
      ArmTimer();
      return flags;
    }
    case kD:
      return 0x80;  // the battery is good
    default:
      return cmos_[index];
  }
}

void Rtc::WriteControl(uint8_t index, uint8_t value) {
  CatchUp();
  const bool was_frozen = frozen();
  if (!was_frozen) StoreTime();
  if (index == kA) {
    if ((value & 0x7f) != a()) periodic_ns_ = scheduler_.NowNs();
    cmos_[kA] = value & 0x7f;
  } else {
    // SET clears UIE (data sheet, register B).
    if ((value & kSet) != 0) value &= static_cast<uint8_t>(~kUpdateEnded);
    if ((value & ~b() & kPeriodic) != 0) periodic_ns_ = scheduler_.NowNs();
    cmos_[kB] = value;
  }
  if (was_frozen && !frozen()) LoadTime();
  UpdateIrq();
  ArmTimer();
}

void Rtc::WriteRegister(uint8_t index, uint8_t value) {
  switch (index) {
    case kSeconds:
    case kMinutes:
    case kHours:
    case kWeekday:
    case kDay:
    case kMonth:
    case kYear:
    case kCenturyIndex:
      if (frozen()) {
        cmos_[index] = value;
      } else {
        StoreTime();
        cmos_[index] = value;
        LoadTime();
      }
      return;
    case kA:
    case kB:
      return WriteControl(index, value);
    case kC:
    case kD:
      return;  // read-only
    default:
      CatchUp();  // an alarm that is moved now was in force until now
      cmos_[index] = value;
      if (index <= kHoursAlarm) ArmTimer();
  }
}

uint64_t Rtc::Read(uint64_t offset, unsigned size) {
  uint64_t value = MaskToSize(~uint64_t{0}, size);
  if (offset <= 1 && offset + size > 1) {
    const unsigned shift = offset == 0 ? 8 : 0;
    value &= ~(uint64_t{0xff} << shift);
    value |= uint64_t{ReadRegister(index_ & 0x7f)} << shift;
  }
  return value;  // the index is write-only
}

void Rtc::Write(uint64_t offset, unsigned size, uint64_t value) {
  if (offset == 0) {
    index_ = static_cast<uint8_t>(value);
    if (size >= 2) WriteRegister(index_ & 0x7f, static_cast<uint8_t>(value >> 8));
  } else if (offset == 1) {
    WriteRegister(index_ & 0x7f, static_cast<uint8_t>(value));
  }
}

void Rtc::Serialize(state::Archive& archive) {
  // The time itself goes on with the host's clock; what the guest set relative to it is kept.
  archive.Bytes(1, std::span<uint8_t>(cmos_));
  archive.Field(2, index_);
  archive.Field(3, offset_ns_);
  archive.Field(4, seen_second_);
  archive.Field(5, periodic_ns_);
  if (!archive.loading()) return;
  constexpr int64_t kLimit = std::numeric_limits<int64_t>::max() / 2;
  if (offset_ns_ > kLimit || offset_ns_ < -kLimit || periodic_ns_ < 0 || periodic_ns_ > kLimit ||
      seen_second_ > kLimit || seen_second_ < -kLimit) {
    archive.Reject("RTC: impossible time");
    offset_ns_ = seen_second_ = periodic_ns_ = 0;
  }
  cmos_[kA] &= 0x7f;
  UpdateIrq();
  ArmTimer();
}

}  // namespace nacre::devices
