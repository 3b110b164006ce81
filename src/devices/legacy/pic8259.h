#pragma once
// The pair of 8259A interrupt controllers of a PC with the edge/level control registers: ports 0x20-0x21,
// 0xa0-0xa1, 0x4d0-0x4d1. INTR drives a line (LINT0 of the local APICs); the acknowledge cycle comes from
// there. Intel 8259A data sheet. Under the device lock.

#include <array>
#include <cstdint>

#include "bus/device.h"
#include "devices/chipset/apic_types.h"

namespace nacre::devices {

class Pic8259 final : public bus::Device, public ExtIntSource {
 public:
  static constexpr uint16_t kMasterPort = 0x20, kSlavePort = 0xa0, kElcrPort = 0x4d0;  ///< 2 ports each

  explicit Pic8259(bus::IrqLine& intr);

  bus::IrqLine& line(unsigned irq) { return lines_[irq]; }
  void SetIrq(unsigned irq, bool level);
  uint8_t AcknowledgeExtInt() override;

  bus::IoHandler& master_io() { return chips_[0]; }
  bus::IoHandler& slave_io() { return chips_[1]; }
  bus::IoHandler& elcr_io() { return elcr_; }

  std::string_view name() const override { return "pic"; }
  void Reset() override;
  void Serialize(state::Archive& archive) override;

 private:
  struct Chip final : bus::IoHandler {
    uint64_t Read(uint64_t offset, unsigned size) override;
    void Write(uint64_t offset, unsigned size, uint64_t value) override;

    void Reset();
    void Initialize(uint8_t icw1);
    void WriteCommand(uint8_t value);
    void WriteData(uint8_t value);
    uint8_t Poll();
    void SetInput(unsigned pin, bool level);
    /// The pin that asks for service, -1 if none does.
    int Pending() const;
    void Acknowledge(unsigned pin);
    void EndOfInterrupt(unsigned pin, bool rotate);
    /// Distance from the highest priority of the highest bit set; 8 if none is.
    unsigned Priority(uint8_t bits) const;
    void Serialize(state::Archive& archive);

    Pic8259* owner = nullptr;
    bool is_master = false;
    uint8_t elcr_mask = 0;
    uint8_t irr = 0, imr = 0, isr = 0;
    uint8_t inputs = 0;  ///< levels of the pins
    uint8_t elcr = 0;
    uint8_t vector_base = 0;
    uint8_t lowest = 7;     ///< the pin of lowest priority
    uint8_t init_step = 0;  ///< the ICW expected next at the data port: 2, 3, 4; 0 none
    bool expects_icw4 = false;
    bool single = false;
    bool read_isr = false, poll = false;
    bool special_mask = false, auto_eoi = false, rotate_on_auto_eoi = false, special_fully_nested = false;
  };
  struct Elcr final : bus::IoHandler {
    uint64_t Read(uint64_t offset, unsigned size) override;
    void Write(uint64_t offset, unsigned size, uint64_t value) override;
    Pic8259* owner = nullptr;
  };
  struct Line final : bus::IrqLine {
    void Set(bool level) override { owner->SetIrq(irq, level); }
    Pic8259* owner = nullptr;
    unsigned irq = 0;
  };

  void Update();

  bus::IrqLine& intr_;
  std::array<Chip, 2> chips_;
  Elcr elcr_;
  std::array<Line, 16> lines_;
};

}  // namespace nacre::devices
