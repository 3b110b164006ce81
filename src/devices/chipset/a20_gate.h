#pragma once
// The A20 gate: address line 20 of the CPUs, which the 8042's output port and system control port A switch. The line
// has one state, which the last write to either port gives it, and which both show; it is on after reset. Devices reach
// memory without it. Under the device lock.

#include <functional>

#include "bus/device.h"

namespace nacre::devices {

class A20Gate final : public bus::Device {
 public:
  /// `changed` is told the new state, at a change only; it begins as on.
  explicit A20Gate(std::function<void(bool)> changed = {}) : changed_(std::move(changed)) {}

  bool on() const { return on_; }
  void Set(bool on) {
    if (on == on_) return;
    on_ = on;
    if (changed_) changed_(on);
  }

  std::string_view name() const override { return "a20"; }
  void Reset() override { Set(true); }
  void Serialize(state::Archive& archive) override {
    bool on = on_;
    archive.Field(1, on);
    if (archive.loading()) Set(on);
  }

 private:
  std::function<void(bool)> changed_;
  bool on_ = true;
};

}  // namespace nacre::devices
