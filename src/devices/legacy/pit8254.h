#pragma once
// The 8254 interval timer at ports 0x40-0x43 and the speaker port 0x61: three counters of 1.193182 MHz in all
// six modes. Counter 0 drives IRQ 0, counter 2 the speaker and OUT2 of port 0x61. Intel 8254 data sheet.
// Counters are computed from guest time; a timer runs only for counter 0's rising edges. Under the device
// lock.

#include <array>
#include <cstdint>
#include <memory>

#include "base/scheduler.h"
#include "bus/device.h"

namespace nacre::devices {

class Pit8254 final : public bus::Device, public bus::IoHandler {
 public:
  static constexpr uint16_t kPort = 0x40, kSpeakerPort = 0x61;  ///< 4 ports, 1 port
  static constexpr uint64_t kHz = 1'193'182;

  Pit8254(Scheduler& scheduler, bus::IrqLine& irq0);

  uint64_t Read(uint64_t offset, unsigned size) override;
  void Write(uint64_t offset, unsigned size, uint64_t value) override;
  bus::IoHandler& speaker_io() { return speaker_; }

  std::string_view name() const override { return "pit"; }
  void Reset() override;
  void Serialize(state::Archive& archive) override;

 private:
  struct Counter {
    uint8_t mode = 3;
    uint8_t access = 3;  ///< 1 low byte, 2 high byte, 3 low then high
    bool bcd = false;
    bool gate = true;
    bool null_count = true;     ///< a count was written but is not in the counting element yet
    bool counting = false;      ///< a count is loaded (and, in modes 1 and 5, the gate has triggered)
    uint32_t reload = 0x10000;  ///< in use
    uint32_t next_reload = 0;   ///< 0: none; takes effect at the end of the period (modes 2, 3) or at a trigger
    uint64_t base_ticks = 0;    ///< ticks counted before start_ns
    int64_t start_ns = 0;
    bool write_high = false;  ///< the next byte written is the high one
    uint8_t write_low = 0;
    bool read_high = false;
    bool count_latched = false;
    uint16_t latched_count = 0;
    bool status_latched = false;
    uint8_t latched_status = 0;

    void SetMode(uint8_t control);
    void WriteCount(uint16_t value, int64_t now_ns);
    void SetGate(bool level, int64_t now_ns);
    uint64_t Ticks(int64_t now_ns) const;
    void Sync(int64_t now_ns);
    bool Out(int64_t now_ns) const;
    uint16_t Count(int64_t now_ns) const;
    uint8_t Status(int64_t now_ns) const;
    /// When OUT rises next after now_ns; INT64_MAX: it does not.
    int64_t NextRise(int64_t now_ns) const;
    void Start(int64_t now_ns, uint64_t ticks = 0);
    void Serialize(state::Archive& archive);
  };
  struct Speaker final : bus::IoHandler {
    explicit Speaker(Pit8254& owner) : pit(owner) {}
    uint64_t Read(uint64_t offset, unsigned size) override;
    void Write(uint64_t offset, unsigned size, uint64_t value) override;
    Pit8254& pit;
  };

  uint8_t ReadByte(unsigned port);
  void WriteByte(unsigned port, uint8_t value);
  void WriteControl(uint8_t value);
  void Latch(Counter& counter, bool count, bool status);
  void UpdateIrq();
  void OnTimer();

  Scheduler& scheduler_;
  bus::IrqLine& irq0_;
  std::unique_ptr<Timer> timer_;
  std::array<Counter, 3> counters_;
  uint8_t speaker_bits_ = 0;  ///< port 0x61 bits 3:0; 2 and 3, the parity checks, do nothing
  Speaker speaker_{*this};
};

}  // namespace nacre::devices
