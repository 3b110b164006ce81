#include "devices/legacy/ps2_keyboard.h"

#include <linux/input-event-codes.h>

#include <vector>

#include "display/keys.h"

namespace nacre::devices {
namespace {

constexpr uint8_t kAck = 0xfa, kResend = 0xfe, kSelfTestPassed = 0xaa;
constexpr uint8_t kBreak = 0xf0, kExtended = 0xe0;
constexpr uint8_t kPause1[] = {0xe1, 0x1d, 0x45, 0xe1, 0x9d, 0xc5};
constexpr uint8_t kPause2[] = {0xe1, 0x14, 0x77, 0xe1, 0xf0, 0x14, 0xf0, 0x77};

/// Set 1 by code of set 2, as the 8042's ROM has it.
constexpr uint8_t kSet1[0x85] = {
    0xff, 0x43, 0x41, 0x3f, 0x3d, 0x3b, 0x3c, 0x58, 0x64, 0x44, 0x42, 0x40, 0x3e, 0x0f, 0x29, 0x59,  //
    0x65, 0x38, 0x2a, 0x70, 0x1d, 0x10, 0x02, 0x5a, 0x66, 0x71, 0x2c, 0x1f, 0x1e, 0x11, 0x03, 0x5b,  //
    0x67, 0x2e, 0x2d, 0x20, 0x12, 0x05, 0x04, 0x5c, 0x68, 0x39, 0x2f, 0x21, 0x14, 0x13, 0x06, 0x5d,  //
    0x69, 0x31, 0x30, 0x23, 0x22, 0x15, 0x07, 0x5e, 0x6a, 0x72, 0x32, 0x24, 0x16, 0x08, 0x09, 0x5f,  //
    0x6b, 0x33, 0x25, 0x17, 0x18, 0x0b, 0x0a, 0x60, 0x6c, 0x34, 0x35, 0x26, 0x27, 0x19, 0x0c, 0x61,  //
    0x6d, 0x73, 0x28, 0x74, 0x1a, 0x0d, 0x62, 0x6e, 0x3a, 0x36, 0x1c, 0x1b, 0x75, 0x2b, 0x63, 0x76,  //
    0x55, 0x56, 0x77, 0x78, 0x79, 0x7a, 0x0e, 0x7b, 0x7c, 0x4f, 0x7d, 0x4b, 0x47, 0x7e, 0x7f, 0x6f,  //
    0x52, 0x53, 0x50, 0x4c, 0x4d, 0x48, 0x01, 0x45, 0x57, 0x4e, 0x51, 0x4a, 0x37, 0x49, 0x46, 0x54,  //
    0x80, 0x81, 0x82, 0x41, 0x54};

/// The last match: F7 and SysRq have their real codes above 0x7f.
uint8_t ToSet2(uint8_t set1) {
  for (unsigned code = sizeof(kSet1); code-- > 1;)
    if (kSet1[code] == set1) return static_cast<uint8_t>(code);
  return 0;
}

}  // namespace

uint8_t TranslateToSet1(uint8_t code) { return code < sizeof(kSet1) ? kSet1[code] : code; }

void Ps2Keyboard::Defaults() {
  scan_set_ = 2;
  typematic_ = 0x2b;
  ClearEvents();
}

void Ps2Keyboard::Reset() {
  Clear();
  Defaults();
  scanning_ = true;
  leds_ = command_ = last_ = 0;
}

void Ps2Keyboard::Write(uint8_t value) {
  const uint8_t command = command_;
  command_ = 0;
  if (command != 0 && value < 0xed) return Parameter(command, value);
  switch (value) {
    case 0xed:  // LEDs
    case 0xf0:  // scan code set
    case 0xf3:  // typematic rate and delay
      command_ = value;
      return Answer({kAck});
    case 0xee:
      return Answer({0xee});
    case 0xf2:
      return Answer({kAck, 0xab, 0x83});
    case 0xf4:
      ClearEvents();
      scanning_ = true;
      return Answer({kAck});
    case 0xf5:
      Defaults();
      scanning_ = false;
      return Answer({kAck});
    case 0xf6:
      Defaults();
      scanning_ = true;
      return Answer({kAck});
    case 0xf7:  // all keys typematic, make/break and so on: of scan code set 3
    case 0xf8:
    case 0xf9:
    case 0xfa:
      return Answer({kAck});
    case 0xfe:
      return Answer({last_});
    case 0xff:
      Reset();
      return Answer({kAck, kSelfTestPassed});
    default:
      return Answer({kResend});
  }
}

void Ps2Keyboard::Parameter(uint8_t command, uint8_t value) {
  switch (command) {
    case 0xed:
      leds_ = value & 7;
      return Answer({kAck});
    case 0xf3:
      typematic_ = value & 0x7f;
      return Answer({kAck});
    default:
      if (value > 2) return Answer({kResend});  // there is no set 3 here
      if (value == 0) return Answer({kAck, scan_set_});
      scan_set_ = value;
      ClearEvents();
      return Answer({kAck});
  }
}

void Ps2Keyboard::Key(uint16_t code, bool down) {
  if (!scanning_) return;
  if (code == KEY_PAUSE) {  // has no break code
    if (down) Event(scan_set_ == 1 ? std::span<const uint8_t>(kPause1) : std::span<const uint8_t>(kPause2));
    return;
  }
  const auto scan = display::ScanCodeOf(code);
  if (!scan) return;
  std::vector<uint8_t> bytes;
  if (scan->extended) bytes.push_back(kExtended);
  if (scan_set_ == 1) {
    bytes.push_back(static_cast<uint8_t>(scan->code | (down ? 0 : 0x80)));
  } else {
    const uint8_t set2 = ToSet2(scan->code);
    if (set2 == 0) return;
    if (!down) bytes.push_back(kBreak);
    bytes.push_back(set2);
  }
  Event(bytes);
}

void Ps2Keyboard::Serialize(state::Archive& archive) {
  SerializeQueues(archive);
  archive.Field(3, scanning_);
  archive.Field(4, scan_set_);
  archive.Field(5, leds_);
  archive.Field(6, typematic_);
  archive.Field(7, command_);
  archive.Field(8, last_);
  if (!archive.loading()) return;
  if (scan_set_ != 1) scan_set_ = 2;
  leds_ &= 7;
  typematic_ &= 0x7f;
}

}  // namespace nacre::devices
