#pragma once
// The 82093AA IO-APIC with 24 pins and the EOI register of later ones (version 0x20). Mapped by the machine
// at 0xfec00000, 4 KiB. Pin polarity is the board's business: a pin's level means "asserted". Under the
// device lock.

#include <array>
#include <cstdint>
#include <functional>
#include <utility>

#include "bus/device.h"
#include "devices/chipset/apic_bus.h"

namespace nacre::devices {

class IoApic final : public bus::Device, public bus::IoHandler, public EoiListener {
 public:
  static constexpr unsigned kPins = 24;
  static constexpr uint64_t kDefaultBase = 0xfec00000;
  static constexpr uint64_t kSize = 0x1000;

  /// `id`: the APIC ID that the guest reads and that the MADT names.
  IoApic(uint8_t id, ApicBus& apic_bus);

  void SetPin(unsigned pin, bool level);
  /// The line that drives a pin.
  bus::IrqLine& line(unsigned pin) { return lines_[pin]; }

  /// What a pin sends, for whoever keeps the local APICs and must know which vectors are level-triggered.
  struct Route {
    ApicMessage message;
    bool masked = true;
  };
  Route RouteOf(unsigned pin) const;
  /// Called after redirection entries changed, by the guest, by a reset or by a restore, and before any of them sends
  /// by its new content. Under the device lock. nullptr: nobody is told.
  void SetRouteListener(std::function<void()> listener) { route_listener_ = std::move(listener); }

  uint64_t Read(uint64_t offset, unsigned size) override;
  void Write(uint64_t offset, unsigned size, uint64_t value) override;
  void OnEoi(uint8_t vector) override;

  std::string_view name() const override { return "ioapic"; }
  void Reset() override;
  void Serialize(state::Archive& archive) override;

 private:
  struct Line final : bus::IrqLine {
    void Set(bool level) override { owner->SetPin(pin, level); }
    IoApic* owner = nullptr;
    unsigned pin = 0;
  };

  uint32_t ReadIndexed() const;
  void WriteIndexed(uint32_t value);
  void SendPin(unsigned pin);
  void ServeLevel(unsigned pin);
  void RoutesChanged() {
    if (route_listener_) route_listener_();
  }

  const uint8_t reset_id_;
  ApicBus& apic_bus_;
  std::array<Line, kPins> lines_;
  uint8_t id_;
  uint8_t index_ = 0;
  uint32_t levels_ = 0;
  uint64_t redirection_[kPins] = {};
  std::function<void()> route_listener_;
};

}  // namespace nacre::devices
