#pragma once
// The MC146818 real-time clock with 128 bytes of CMOS RAM at ports 0x70-0x71, in UTC. Time of day follows the
// machine's wall clock plus what the guest has set; interrupts run on guest time. Motorola MC146818A data
// sheet; CMOS layout as firmware and operating systems know it. Under the device lock.

#include <array>
#include <cstdint>
#include <memory>

#include "base/clock.h"
#include "base/scheduler.h"
#include "bus/device.h"

namespace nacre::devices {

class Rtc final : public bus::Device, public bus::IoHandler {
 public:
  static constexpr uint16_t kPort = 0x70;  ///< 2 ports
  static constexpr unsigned kIrq = 8;
  static constexpr uint8_t kCenturyIndex = 0x32;  ///< for the FADT

  Rtc(Scheduler& scheduler, const WallClock& wall, bus::IrqLine& irq8);

  /// Memory-size bytes as PC firmware reads them; kept over Reset. Bytes below 4 GiB (from 1 MiB up it counts
  /// all RAM there) and above.
  void SetMemorySize(uint64_t below_4g, uint64_t above_4g);
  /// The types of drives A: and B: (1 to 5, 0: none), and the equipment byte that follows from them.
  void SetFloppies(uint8_t first, uint8_t second);
  void SetCmos(uint8_t index, uint8_t value);

  uint64_t Read(uint64_t offset, unsigned size) override;
  void Write(uint64_t offset, unsigned size, uint64_t value) override;
  /// Port 0x70 bit 7 masks NMI on a PC.
  bool nmi_masked() const { return (index_ & 0x80) != 0; }

  std::string_view name() const override { return "rtc"; }
  void Reset() override;
  void Serialize(state::Archive& archive) override;

 private:
  /// Broken-down time, UTC.
  struct Time {
    int year = 1970;
    unsigned month = 1, day = 1, hour = 0, minute = 0, second = 0, weekday = 1;  ///< weekday 1 = Sunday
  };

  bool binary() const { return (b() & 0x04) != 0; }
  bool hours24() const { return (b() & 0x02) != 0; }
  uint8_t a() const { return cmos_[0x0a]; }
  uint8_t b() const { return cmos_[0x0b]; }
  /// Time stands still: SET, or the divider chain held in reset.
  bool frozen() const { return (b() & 0x80) != 0 || (a() & 0x70) >= 0x60; }
  int64_t GuestUtcNs() const { return wall_.UtcNs() + offset_ns_; }

  uint8_t ReadRegister(uint8_t index);
  void WriteRegister(uint8_t index, uint8_t value);
  uint8_t Encode(unsigned value) const;
  unsigned Decode(uint8_t value) const;
  uint8_t EncodeHour(unsigned hour) const;
  unsigned DecodeHour(uint8_t value) const;
  /// The running time into the registers, and back.
  void StoreTime();
  void LoadTime();
  void WriteControl(uint8_t index, uint8_t value);
  /// Sets flags for what happened since the last call.
  void CatchUp();
  bool AlarmBetween(int64_t from_second, int64_t to_second) const;
  int64_t PeriodNs() const;
  void UpdateIrq();
  void ArmTimer();

  Scheduler& scheduler_;
  const WallClock& wall_;
  bus::IrqLine& irq_;
  std::unique_ptr<Timer> timer_;
  std::array<uint8_t, 128> cmos_{};
  uint8_t index_ = 0;
  int64_t offset_ns_ = 0;
  int64_t seen_second_ = 0;  ///< guest UTC second that the flags know of
  int64_t periodic_ns_ = 0;  ///< guest time of the last periodic tick that the flags know of
};

}  // namespace nacre::devices
