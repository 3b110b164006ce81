#pragma once
// The HPET (IA-PC HPET Specification 1.0a): a 64-bit counter of 100 MHz and three timers, with legacy replacement
// (timer 0 takes IRQ 0 from the 8254, timer 1 IRQ 8 from the clock) and FSB delivery. Mapped by the machine at
// kDefaultBase. Under the device lock.

#include <array>
#include <cstdint>
#include <memory>

#include "base/scheduler.h"
#include "bus/device.h"

namespace nacre::devices {

class Hpet final : public bus::Device, public bus::IoHandler {
 public:
  static constexpr uint64_t kDefaultBase = 0xfed00000;
  static constexpr uint64_t kSize = 0x400;
  static constexpr unsigned kTimers = 3;
  /// Global interrupts that a timer may be routed to: 20 to 23.
  static constexpr unsigned kFirstRoute = 20, kRoutes = 4;
  /// The low half of the capability register, for the ACPI table's event timer block ID.
  static constexpr uint32_t kBlockId = 0x8086a201;

  struct Lines {
    bus::IrqLine* irq0 = nullptr;
    bus::IrqLine* irq8 = nullptr;
    std::array<bus::IrqLine*, kRoutes> routes{};
  };
  Hpet(Scheduler& scheduler, const Lines& lines, bus::MsiSink& msi);

  /// What the 8254 and the clock drive instead of their lines: silent while legacy replacement is on.
  bus::IrqLine& gate_irq0() { return gates_[0]; }
  bus::IrqLine& gate_irq8() { return gates_[1]; }

  uint64_t Read(uint64_t offset, unsigned size) override;
  void Write(uint64_t offset, unsigned size, uint64_t value) override;

  std::string_view name() const override { return "hpet"; }
  void Reset() override;
  void Serialize(state::Archive& archive) override;

 private:
  /// One of the two legacy lines with its two drivers.
  struct Gate final : bus::IrqLine {
    void Set(bool value) override;
    void Update();
    bus::IrqLine* line = nullptr;
    bool legacy_level = false;  ///< of the 8254 or the clock
    bool hpet_level = false;
    bool replaced = false;
  };
  struct Comparator {
    uint64_t config = 0;
    uint64_t value = 0;
    uint64_t period = 0;
    uint64_t fsb = 0;
    bool periodic() const { return (config & (1 << 3)) != 0; }
    bool enabled() const { return (config & (1 << 2)) != 0; }
    bool level() const { return (config & (1 << 1)) != 0; }
    /// The bits of the counter that it compares.
    uint64_t mask() const { return (config & (1 << 8)) != 0 ? 0xffffffff : ~uint64_t{0}; }
  };

  bool running() const { return (config_ & 1) != 0; }
  bool legacy() const { return (config_ & 2) != 0; }
  uint64_t Counter() const;
  uint64_t ReadRegister(uint64_t offset) const;
  void WriteRegister(uint64_t offset, uint64_t value, uint64_t mask);
  void WriteConfig(uint64_t value);
  void WriteTimer(unsigned index, uint64_t reg, uint64_t value, uint64_t mask);
  void Arm(unsigned index);
  void OnTimer(unsigned index);
  void Fire(unsigned index);
  void SetOutput(unsigned index, bool level);
  void UpdateLevels();
  void UpdateGates();

  Scheduler& scheduler_;
  bus::MsiSink& msi_;
  std::array<bus::IrqLine*, kRoutes> routes_;
  std::array<Gate, 2> gates_;
  std::array<std::unique_ptr<Timer>, kTimers> timers_;
  std::array<Comparator, kTimers> comparators_;
  uint64_t config_ = 0;
  uint64_t status_ = 0;
  uint64_t counter_base_ = 0;  ///< the count at start_ns_, or while stopped
  int64_t start_ns_ = 0;
};

}  // namespace nacre::devices
