#include "devices/legacy/i8042.h"

#include <algorithm>

#include "base/bits.h"

namespace nacre::devices {
namespace {

// Status.
constexpr uint8_t kFull = 0x01, kSystem = 0x04, kWasCommand = 0x08, kUnlocked = 0x10, kAuxiliary = 0x20,
                  kTimeout = 0x40;
// Command byte.
constexpr uint8_t kKeyboardInterrupt = 0x01, kMouseInterrupt = 0x02, kKeyboardOff = 0x10, kMouseOff = 0x20,
                  kTranslate = 0x40;
// Output port.
constexpr uint8_t kNoReset = 0x01, kA20 = 0x02, kKeyboardFull = 0x10, kMouseFull = 0x20;
constexpr uint8_t kResend = 0xfe, kBreak = 0xf0;

}  // namespace

void I8042::Reset() {
  keyboard_.Reset();
  mouse_.Reset();
  status_ = kUnlocked | kWasCommand;
  output_ = pending_ = 0;
  mode_ = kKeyboardOff | kMouseOff;
  output_port_ = kNoReset;
  break_code_ = false;
  ready_ns_ = 0;
  timer_->Cancel();
  Update();
}

void I8042::Update() {
  const bool full = (status_ & kFull) != 0;
  const bool auxiliary = (status_ & kAuxiliary) != 0;
  irq_.Set(full && !auxiliary && (mode_ & kKeyboardInterrupt));
  mouse_irq_.Set(full && auxiliary && (mode_ & kMouseInterrupt));
}

void I8042::Answer(uint8_t value, uint8_t status) {
  output_ = value;
  status_ = static_cast<uint8_t>((status_ & ~(kTimeout | kAuxiliary)) | kFull | status);
  Update();
}

void I8042::Fill() {
  if (!plugged_ || (status_ & kFull)) return;
  if (scheduler_.NowNs() < ready_ns_) return timer_->Arm(ready_ns_);
  // The prefix of a break code is swallowed by the translation.
  while (!(status_ & kFull) && !(mode_ & kKeyboardOff) && keyboard_.has_byte()) {
    const uint8_t byte = keyboard_.Take();
    if (!(mode_ & kTranslate)) {
      break_code_ = false;
      Answer(byte);
    } else if (byte == kBreak) {
      break_code_ = true;
    } else {
      const uint8_t translated = TranslateToSet1(byte);
      Answer(break_code_ ? translated | 0x80 : translated);
      break_code_ = false;
    }
  }
  if (!(status_ & kFull) && !(mode_ & kMouseOff) && mouse_.has_byte()) Answer(mouse_.Take(), kAuxiliary);
}

uint8_t I8042::ReadData() {
  const uint8_t value = output_;
  if (status_ & kFull) ready_ns_ = scheduler_.NowNs() + kByteNs;
  status_ &= static_cast<uint8_t>(~(kFull | kTimeout | kAuxiliary));
  Update();
  Fill();
  return value;
}

uint8_t I8042::OutputPort() const {
  auto value = static_cast<uint8_t>(output_port_ | (a20_.on() ? kA20 : 0));
  if (status_ & kFull) value |= (status_ & kAuxiliary) ? kMouseFull : kKeyboardFull;
  return value;
}

void I8042::WriteOutputPort(uint8_t value) {
  output_port_ = value & static_cast<uint8_t>(~(kA20 | kKeyboardFull | kMouseFull));
  a20_.Set((value & kA20) != 0);
  if (!(value & kNoReset)) machine_.ResetMachine();
}

void I8042::WriteCommand(uint8_t value) {
  status_ |= kWasCommand;
  pending_ = 0;
  switch (value) {
    case 0x20:
      return Answer(mode_);
    case 0xa4:  // is a password set? no
      return Answer(0xf1);
    case 0xa9:  // auxiliary port test: good, or its clock line stuck low
      return Answer(plugged_ ? 0x00 : 0x01);
    case 0xaa:  // controller self-test
      status_ |= kSystem;
      return Answer(0x55);
    case 0xab:  // keyboard port test: the port itself is good
      return Answer(0x00);
    case 0xa7:
      mode_ |= kMouseOff;
      return;
    case 0xa8:
      mode_ &= static_cast<uint8_t>(~kMouseOff);
      return Fill();
    case 0xad:
      mode_ |= kKeyboardOff;
      return;
    case 0xae:
      mode_ &= static_cast<uint8_t>(~kKeyboardOff);
      return Fill();
    case 0xc0:
      return Answer(0x80);  // input port: keyboard not locked
    case 0xd0:
      return Answer(OutputPort());
    case 0xdd:
      return a20_.Set(false);
    case 0xdf:
      return a20_.Set(true);
    case 0xe0:  // test inputs: both clock lines are high
      return Answer(0x03);
    case 0x60:
    case 0xd1:
    case 0xd2:
    case 0xd3:
    case 0xd4:
      pending_ = value;
      return;
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
      Update();
      return Fill();
    case 0xd1:
      return WriteOutputPort(value);
    case 0xd2:
      return Answer(value);
    case 0xd3:
      return Answer(value, plugged_ ? kAuxiliary : 0);
    case 0xd4:
      if (!plugged_) return Answer(kResend, kTimeout);
      mouse_.Write(value);
      mode_ &= static_cast<uint8_t>(~kMouseOff);
      return Fill();
    default:
      if (!plugged_) return Answer(kResend, kTimeout);
      keyboard_.Write(value);
      mode_ &= static_cast<uint8_t>(~kKeyboardOff);  // a byte for the keyboard opens its port
      return Fill();
  }
}

void I8042::Key(uint16_t code, bool down) {
  if (!plugged_) return;
  if (down && key_pressed_) key_pressed_();
  keyboard_.Key(code, down);
  Fill();
}

bool I8042::keys_taken() const {
  const bool waits = (status_ & kFull) != 0 && (status_ & kAuxiliary) == 0;
  return !waits && !keyboard_.has_byte();
}

void I8042::MovePointer(const display::PointerMove& move) {
  if (!plugged_) return;
  mouse_.Move(move);
  Fill();
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
  archive.Field(6, break_code_);
  archive.Section(7, 1, [&](state::Archive& keyboard, uint16_t) { keyboard_.Serialize(keyboard); });
  archive.Section(8, 1, [&](state::Archive& mouse, uint16_t) { mouse_.Serialize(mouse); });
  archive.Field(9, ready_ns_);
  if (!archive.loading()) return;
  output_port_ &= static_cast<uint8_t>(~kA20);
  ready_ns_ = std::min(ready_ns_, scheduler_.NowNs() + kByteNs);
  timer_->Cancel();
  Update();
  Fill();
}

}  // namespace nacre::devices
