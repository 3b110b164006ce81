#pragma once
// The one-register ports of a PC: reset control 0xcf9 (Intel ICH data sheet, "Reset Control Register"),
// system control port A 0x92, POST code 0x80 and the debug-exit port 0xf4. Under the device lock.

#include <cstdint>

#include "bus/device.h"
#include "devices/chipset/a20_gate.h"
#include "devices/chipset/machine_control.h"

namespace nacre::devices {

/// The common form: one byte of state.
class BytePort : public bus::Device, public bus::IoHandler {
 public:
  explicit BytePort(std::string_view name, uint8_t reset_value = 0)
      : name_(name), reset_value_(reset_value), value_(reset_value) {}
  std::string_view name() const override { return name_; }
  void Reset() override { value_ = reset_value_; }
  void Serialize(state::Archive& archive) override { archive.Field(1, value_); }
  uint64_t Read(uint64_t offset, unsigned size) override;
  void Write(uint64_t offset, unsigned size, uint64_t value) override;

 protected:
  virtual void Written(uint8_t value) { value_ = value; }
  uint8_t value() const { return value_; }
  void set_value(uint8_t value) { value_ = value; }

 private:
  const std::string_view name_;
  const uint8_t reset_value_;
  uint8_t value_;
};

/// Reset when bit 2 goes from 0 to 1. The FADT's reset register: port 0xcf9, value kResetValue. Reached
/// through PciHost::SetResetControl.
class ResetControl final : public BytePort {
 public:
  static constexpr uint16_t kPort = 0xcf9;
  static constexpr uint8_t kResetValue = 0x06;
  explicit ResetControl(MachineControl& machine) : BytePort("reset-control"), machine_(machine) {}

 protected:
  void Written(uint8_t value) override;

 private:
  MachineControl& machine_;
};

/// Bit 0 resets; bit 1 is the A20 gate.
class SystemControlA final : public BytePort {
 public:
  static constexpr uint16_t kPort = 0x92;
  SystemControlA(MachineControl& machine, A20Gate& a20) : BytePort("port92"), machine_(machine), a20_(a20) {}
  uint64_t Read(uint64_t offset, unsigned size) override;

 protected:
  void Written(uint8_t value) override;

 private:
  MachineControl& machine_;
  A20Gate& a20_;
};

/// POST codes; also what operating systems write to for a short delay.
class PostPort final : public BytePort {
 public:
  static constexpr uint16_t kPort = 0x80;
  PostPort() : BytePort("post") {}
};

/// Ends the machine with the value written; present only when the user asked for it.
class DebugExitPort final : public bus::Device, public bus::IoHandler {
 public:
  static constexpr uint16_t kPort = 0xf4;  ///< 4 ports
  explicit DebugExitPort(MachineControl& machine) : machine_(machine) {}
  std::string_view name() const override { return "debug-exit"; }
  void Reset() override {}
  void Serialize(state::Archive&) override {}
  uint64_t Read(uint64_t, unsigned) override { return 0; }
  void Write(uint64_t offset, unsigned, uint64_t value) override {
    if (offset == 0) machine_.DebugExit(static_cast<uint32_t>(value));
  }

 private:
  MachineControl& machine_;
};

}  // namespace nacre::devices
