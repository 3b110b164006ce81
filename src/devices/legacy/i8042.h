#pragma once
// An 8042 keyboard controller with nothing plugged in: the controller answers its own commands, the keyboard
// port times out at once and the auxiliary port fails its test, so that drivers find out quickly. Its reset
// pulse works. IBM PC/AT Technical Reference, "Keyboard Controller". Under the device lock.

#include <cstdint>

#include "bus/device.h"
#include "devices/chipset/machine_control.h"

namespace nacre::devices {

class I8042 final : public bus::Device {
 public:
  static constexpr uint16_t kDataPort = 0x60, kCommandPort = 0x64;  ///< one port each
  static constexpr unsigned kIrq = 1;

  I8042(bus::IrqLine& irq1, MachineControl& machine) : irq_(irq1), machine_(machine) {}

  bus::IoHandler& data_io() { return data_; }
  bus::IoHandler& command_io() { return command_; }

  std::string_view name() const override { return "i8042"; }
  void Reset() override;
  void Serialize(state::Archive& archive) override;

 private:
  struct Data final : bus::IoHandler {
    explicit Data(I8042& owner) : device(owner) {}
    uint64_t Read(uint64_t offset, unsigned size) override;
    void Write(uint64_t offset, unsigned size, uint64_t value) override;
    I8042& device;
  };
  struct Command final : bus::IoHandler {
    explicit Command(I8042& owner) : device(owner) {}
    uint64_t Read(uint64_t offset, unsigned size) override;
    void Write(uint64_t offset, unsigned size, uint64_t value) override;
    I8042& device;
  };

  uint8_t ReadData();
  void WriteData(uint8_t value);
  void WriteCommand(uint8_t value);
  void Answer(uint8_t value, uint8_t status = 0);
  void Update();

  bus::IrqLine& irq_;
  MachineControl& machine_;
  uint8_t status_ = 0x18;  ///< not locked; last write was a command
  uint8_t output_ = 0;
  uint8_t mode_ = 0x30;         ///< the command byte: both ports disabled
  uint8_t output_port_ = 0x03;  ///< A20 open, no reset
  uint8_t pending_ = 0;         ///< the command that waits for a data byte
  Data data_{*this};
  Command command_{*this};
};

}  // namespace nacre::devices
