#pragma once
// The 8042 keyboard controller with a PS/2 keyboard and mouse, or with nothing plugged in: then the keyboard port times
// out at once and the auxiliary port fails its test, so that drivers find out quickly. A byte of a device takes its
// time on the wire: a program that reads port 60h and then calls the BIOS's handler, which reads it again, gives that
// the same byte. IBM PC/AT Technical Reference, "Keyboard Controller"; IBM PS/2 Technical Reference for the auxiliary
// port. Under the device lock.

#include <cstdint>
#include <functional>
#include <memory>

#include "base/scheduler.h"
#include "bus/device.h"
#include "devices/chipset/a20_gate.h"
#include "devices/chipset/machine_control.h"
#include "devices/legacy/ps2_keyboard.h"
#include "devices/legacy/ps2_mouse.h"
#include "display/input.h"

namespace nacre::devices {

class I8042 final : public bus::Device, public display::InputSink {
 public:
  static constexpr uint16_t kDataPort = 0x60, kCommandPort = 0x64;  ///< one port each
  static constexpr unsigned kIrq = 1, kMouseIrq = 12;

  /// From the read of a byte to the next one of a device: eleven bits at about 10 kHz.
  static constexpr int64_t kByteNs = 1'000'000;

  /// `plugged`: with keyboard and mouse.
  I8042(Scheduler& scheduler, bus::IrqLine& irq1, bus::IrqLine& irq12, MachineControl& machine, A20Gate& a20,
        bool plugged)
      : scheduler_(scheduler), irq_(irq1), mouse_irq_(irq12), machine_(machine), a20_(a20), plugged_(plugged) {
    timer_ = scheduler_.CreateTimer([this] { Fill(); });
    Reset();
  }

  bus::IoHandler& data_io() { return data_; }
  bus::IoHandler& command_io() { return command_; }

  std::string_view name() const override { return "i8042"; }
  void Reset() override;
  void Serialize(state::Archive& archive) override;

  /// Told of every key pressed on a keyboard that is plugged in.
  void SetKeyListener(std::function<void()> listener) { key_pressed_ = std::move(listener); }
  void Key(uint16_t code, bool down) override;
  bool keys_taken() const override;
  void MovePointer(const display::PointerMove& move) override;
  uint8_t leds() const override { return keyboard_.leds(); }

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
  void WriteOutputPort(uint8_t value);
  uint8_t OutputPort() const;
  /// Into the output buffer, over what is there; `status`: kAuxiliary, kTimeout.
  void Answer(uint8_t value, uint8_t status = 0);
  /// The next byte of a device into an empty output buffer, now or as soon as it can have come.
  void Fill();
  void Update();

  Scheduler& scheduler_;
  bus::IrqLine& irq_;
  bus::IrqLine& mouse_irq_;
  MachineControl& machine_;
  A20Gate& a20_;
  const bool plugged_;
  std::function<void()> key_pressed_;
  Ps2Keyboard keyboard_;
  Ps2Mouse mouse_;
  uint8_t status_ = 0;
  uint8_t output_ = 0;
  uint8_t mode_ = 0;         ///< the command byte
  uint8_t output_port_ = 0;  ///< without the A20 gate's bit
  uint8_t pending_ = 0;      ///< the command that waits for a data byte
  bool break_code_ = false;  ///< translation has seen 0xf0
  int64_t ready_ns_ = 0;     ///< guest time: no byte of a device before
  std::unique_ptr<Timer> timer_;
  Data data_{*this};
  Command command_{*this};
};

}  // namespace nacre::devices
