#pragma once
// The south bridge of the pc board, as firmware expects it beside a 82441FX: function 0, the PIIX3 ISA bridge
// (8086:7000), which leads PIRQA# to PIRQD# to ISA interrupts, and function 3, the power management function of a PIIX4
// (8086:7113), which says where the ACPI registers decode. Intel 82371SB and 82371AB data sheets. Function 1 is free
// for IDE. Under the device lock.

#include <array>
#include <cstdint>

#include "bus/bus.h"
#include "devices/pci/pci_device.h"

namespace nacre::devices {

/// ISA bridge. Each PIRQ also has a line of its own (interrupts 16 to 19 of the IO-APIC), whatever its route.
class IsaBridge final : public PciDevice {
 public:
  static constexpr unsigned kSlot = 1, kFunction = 0;
  static constexpr unsigned kRoute = 0x60;  ///< PIRQRC[A:D], a byte each: bit 7 not routed, bits 3:0 the ISA interrupt
  static constexpr uint8_t kNotRouted = 0x80;
  /// The ISA interrupts that a PIRQ can be led to.
  static constexpr uint16_t kRoutable = 0xdef8;

  struct Lines {
    std::array<bus::IrqLine*, 4> own{};                  ///< null: none
    std::array<std::array<bus::IrqLine*, 16>, 4> isa{};  ///< by PIRQ and interrupt; those not routable are not used
  };
  IsaBridge(const PciWiring& wiring, const Lines& lines);

  /// PIRQA# to PIRQD#, for PciHost.
  bus::IrqLine& pirq(unsigned index) { return pirqs_[index]; }
  /// The ISA interrupt that a PIRQ is led to; 0: none.
  uint8_t route(unsigned index) const { return pirqs_[index].route; }

 protected:
  void ResetFunction() override { ApplyRoutes(); }
  void SerializeFunction(state::Archive& archive) override;
  void AfterConfigWrite(unsigned offset, unsigned size) override;

 private:
  struct Pirq final : bus::IrqLine {
    void Set(bool level) override;
    bus::IrqLine* own = nullptr;
    std::array<bus::IrqLine*, 16> isa{};
    uint8_t route = 0;
    bool asserted = false;
  };
  void ApplyRoutes();

  std::array<Pirq, 4> pirqs_;
};

/// Power management function. Its I/O space of 64 ports holds `registers` at the start.
class PowerManagement final : public PciDevice {
 public:
  static constexpr unsigned kSlot = 1, kFunction = 3;
  static constexpr unsigned kPmBase = 0x40, kDeviceActivityB = 0x58, kPmRegMisc = 0x80;
  static constexpr uint8_t kIoEnable = 1 << 0;                ///< PMREGMISC
  static constexpr uint32_t kApmcEnable = uint32_t{1} << 25;  ///< DEVACTB: writes to port 0xb2 raise an SMI

  /// `registers`: `size_ports` ports, which outlive this.
  PowerManagement(const PciWiring& wiring, bus::IoHandler& registers, uint16_t size_ports);

  /// Where the registers decode; 0: nowhere.
  uint16_t base() const { return base_; }
  /// What firmware would do.
  void Place(uint16_t base);

 protected:
  void ResetFunction() override { Map(); }
  void SerializeFunction(state::Archive& archive) override;
  void AfterConfigWrite(unsigned offset, unsigned size) override;

 private:
  void Map();

  bus::PortBus& ports_;
  bus::IoHandler& registers_;
  const uint16_t size_ports_;
  uint16_t base_ = 0;
  bus::Mapping mapping_;
};

}  // namespace nacre::devices
