#pragma once
// ACPI power management hardware (ACPI 6.5 ch. 4.8): PM1a event and control blocks, PM timer, GPE0 block, the
// SMI command port that turns ACPI mode on, power button, sleep states S3 to S5. Port numbers are the FADT's business;
// the defaults here are what the machine uses. Under the device lock.

#include <atomic>
#include <cstdint>
#include <memory>

#include "base/scheduler.h"
#include "bus/device.h"
#include "devices/chipset/machine_control.h"

namespace nacre::devices {

class AcpiPm final : public bus::Device {
 public:
  static constexpr uint16_t kPmBase = 0x600;  ///< io(), kPmSize ports, unless firmware moves them
  static constexpr uint16_t kPmSize = 12;
  static constexpr uint16_t kEventOffset = 0, kControlOffset = 4, kTimerOffset = 8;  ///< lengths 4, 2, 4
  static constexpr uint16_t kGpeBase = 0x620;  ///< gpe_io(), kGpeSize ports: 2 status bytes, 2 enable bytes
  static constexpr uint16_t kGpeSize = 4;
  static constexpr uint16_t kSmiCommandPort = 0xb2;  ///< smi_io(), 2 ports (command, data)
  static constexpr uint8_t kAcpiEnable = 0xf1, kAcpiDisable = 0xf0;
  static constexpr unsigned kSciIrq = 9;
  /// SLP_TYP of the sleep states, as the PIIX4 has them: firmware that switches off writes zero without asking.
  static constexpr uint8_t kSleepTypeS3 = 1, kSleepTypeS4 = 2, kSleepTypeS5 = 0;
  static constexpr unsigned kKeyboardGpe = 1;      ///< set by the keyboard in S3
  static constexpr uint64_t kTimerHz = 3'579'545;  ///< 24 bits: TMR_VAL_EXT is clear in the FADT

  AcpiPm(Scheduler& scheduler, bus::IrqLine& sci, MachineControl& machine);

  bus::IoHandler& io() { return pm_io_; }
  bus::IoHandler& gpe_io() { return gpe_io_; }
  bus::IoHandler& smi_io() { return smi_io_; }

  void PressPowerButton();
  /// Sets general-purpose event 0-15.
  void RaiseGpe(unsigned event);
  /// A key was pressed.
  void KeyPressed();
  /// What the real-time clock drives instead of `next`: it is passed on, and each rise is a clock event (RTC_STS).
  bus::IrqLine& WatchRtc(bus::IrqLine& next);

  /// In S3: from the write of SLP_EN to EndSleep or a reset. Any thread.
  bool asleep() const { return asleep_.load(std::memory_order_relaxed); }
  /// The machine has woken, with its interrupt controllers in their reset state: says so (WAK_STS).
  void EndSleep();

  std::string_view name() const override { return "acpi-pm"; }
  void Reset() override;
  void Serialize(state::Archive& archive) override;

 private:
  struct Block : bus::IoHandler {
    explicit Block(AcpiPm& owner) : pm(owner) {}
    AcpiPm& pm;
  };
  struct PmIo final : Block {
    using Block::Block;
    uint64_t Read(uint64_t offset, unsigned size) override;
    void Write(uint64_t offset, unsigned size, uint64_t value) override;
  };
  struct GpeIo final : Block {
    using Block::Block;
    uint64_t Read(uint64_t offset, unsigned size) override;
    void Write(uint64_t offset, unsigned size, uint64_t value) override;
  };
  struct SmiIo final : Block {
    using Block::Block;
    uint64_t Read(uint64_t offset, unsigned size) override;
    void Write(uint64_t offset, unsigned size, uint64_t value) override;
  };

  struct RtcLine final : bus::IrqLine {
    explicit RtcLine(AcpiPm& owner) : pm(owner) {}
    void Set(bool value) override;
    AcpiPm& pm;
    bus::IrqLine* next = nullptr;
    bool level = false;
  };

  uint32_t TimerValue() const;
  uint8_t ReadPmByte(unsigned offset);
  void WritePmByte(unsigned offset, uint8_t value);
  void WriteControlHigh(uint8_t value);
  void UpdateTimerStatus();
  void Update();
  void EnterSleep(unsigned type);

  Scheduler& scheduler_;
  bus::IrqLine& sci_;
  MachineControl& machine_;
  std::unique_ptr<Timer> timer_;
  uint16_t status_ = 0;
  uint16_t enable_ = 0;
  uint16_t control_ = 0;
  uint64_t timer_half_ = 0;  ///< number of the half period (bit 23 and up) that TMR_STS has seen
  uint16_t gpe_status_ = 0;
  uint16_t gpe_enable_ = 0;
  uint8_t smi_command_ = 0, smi_data_ = 0;
  std::atomic<bool> asleep_ = false;
  RtcLine rtc_line_{*this};
  PmIo pm_io_{*this};
  GpeIo gpe_io_{*this};
  SmiIo smi_io_{*this};
};

}  // namespace nacre::devices
