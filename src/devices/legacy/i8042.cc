#include "devices/legacy/i8042.h"

#include "base/bits.h"

namespace nacre::devices {
namespace {

constexpr uint8_t kFull = 0x01, kSystem = 0x04, kWasCommand = 0x08, kUnlocked = 0x10, kTimeout = 0x40;
constexpr uint8_t kResend = 0xfe;

}  // namespace

void I8042::Reset() {
  status_ = kUnlocked | kWasCommand;
  output_ = pending_ = 0;
  mode_ = 0x30;
  output_port_ = 0x03;
  Update();
}

void I8042::Update() { irq_.Set((status_ & kFull) != 0 && (mode_ & 1) != 0); }

void I8042::Answer(uint8_t value, uint8_t status) {
  output_ = value;
  status_ = static_cast<uint8_t>((status_ & ~kTimeout) | kFull | status);
  Update();
}

uint8_t I8042::ReadData() {
  status_ &= static_cast<uint8_t>(~(kFull | kTimeout));
  Update();
  return output_;
}

void I8042::WriteCommand(uint8_t value) {
  status_ |= kWasCommand;
  pending_ = 0;
  switch (value) {
    case 0x20:
      return Answer(mode_);
    case 0xa9:
      return Answer(0x01);  // auxiliary port: clock line stuck low, nothing there
    case 0xaa:              // controller self-test
      status_ |= kSystem;
      return Answer(0x55);
    case 0xab:
      return Answer(0x00);  // keyboard port test: the port itself is good
    case 0xa7:
      mode_ |= 0x20;
      break;
    case 0xa8:
      mode_ &= static_cast<uint8_t>(~0x20);
      break;
    case 0xad:
      mode_ |= 0x10;
      break;
    case 0xae:
      mode_ &= static_cast<uint8_t>(~0x10);
      break;
    case 0xc0:
      return Answer(0x80);  // input port: keyboard not locked
    case 0xd0:
      return Answer(output_port_);
    case 0x60:
    case 0xd1:
    case 0xd2:
    case 0xd3:
    case 0xd4:
      pending_ = value;
      break;
    default:
      // Pulse output port lines, those whose bit is clear: bit 0 is the reset line.
      if (value >= 0xf0 && (value & 1) == 0) machine_.ResetMachine();
  }
}

void I8042::WriteData(uint8_t value) {
  status_ &= static_cast<uint8_t>(~kWasCommand);
  const uint8_t command = pending_;
  pending_ = 0;
  switch (command) {
    case 0x60:
      mode_ = value;
      status_ = static_cast<uint8_t>((status_ & ~kSystem) | (value & kSystem));
      return Update();
    case 0xd1:
      output_port_ = value;
      if ((value & 1) == 0) machine_.ResetMachine();
      return;
    case 0xd2:
    case 0xd3:
      return Answer(value);  // without the auxiliary flag: there is no such port
    default:
      return Answer(kResend, kTimeout);
  }
}

uint64_t I8042::Data::Read(uint64_t offset, unsigned size) {
  const uint64_t ones = MaskToSize(~uint64_t{0}, size);
  return offset == 0 ? (ones & ~uint64_t{0xff}) | device.ReadData() : ones;
}

void I8042::Data::Write(uint64_t offset, unsigned, uint64_t value) {
  if (offset == 0) device.WriteData(static_cast<uint8_t>(value));
}

uint64_t I8042::Command::Read(uint64_t offset, unsigned size) {
  const uint64_t ones = MaskToSize(~uint64_t{0}, size);
  return offset == 0 ? (ones & ~uint64_t{0xff}) | device.status_ : ones;
}

void I8042::Command::Write(uint64_t offset, unsigned, uint64_t value) {
  if (offset == 0) device.WriteCommand(static_cast<uint8_t>(value));
}

void I8042::Serialize(state::Archive& archive) {
  archive.Field(1, status_);
  archive.Field(2, output_);
  archive.Field(3, mode_);
  archive.Field(4, output_port_);
  archive.Field(5, pending_);
  if (archive.loading()) Update();
}

}  // namespace nacre::devices
