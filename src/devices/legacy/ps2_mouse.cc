#include "devices/legacy/ps2_mouse.h"

#include <algorithm>

namespace nacre::devices {
namespace {

constexpr uint8_t kAck = 0xfa, kResend = 0xfe, kSelfTestPassed = 0xaa;
constexpr uint8_t kWheel = 3, kFiveButtons = 4;  // identities
constexpr int32_t kMostPending = 4096;

int32_t Pending(int32_t value, int64_t more) {
  return static_cast<int32_t>(std::clamp<int64_t>(value + more, -kMostPending, kMostPending));
}

}  // namespace

void Ps2Mouse::Defaults() {
  reporting_ = remote_ = wrap_ = scaling_ = false;
  resolution_ = 2;
  rate_ = 100;
  dx_ = dy_ = wheel_ = 0;
  ClearEvents();
}

void Ps2Mouse::Reset() {
  Clear();
  Defaults();
  identity_ = command_ = 0;
  last_rates_ = {};
  buttons_ = reported_buttons_ = 0;
}

void Ps2Mouse::Write(uint8_t value) {
  const uint8_t command = command_;
  command_ = 0;
  if (command != 0) return Parameter(command, value);
  if (wrap_ && value != 0xec && value != 0xff) return Answer({value});
  switch (value) {
    case 0xe6:
    case 0xe7:
      scaling_ = value == 0xe7;
      return Answer({kAck});
    case 0xe8:  // resolution
    case 0xf3:  // sample rate
      command_ = value;
      return Answer({kAck});
    case 0xe9:
      return Answer({kAck,
                     static_cast<uint8_t>((remote_ ? 0x40 : 0) | (reporting_ ? 0x20 : 0) | (scaling_ ? 0x10 : 0) |
                                          (buttons_ & 1) << 2 | (buttons_ & 4) >> 1 | (buttons_ & 2) >> 1),
                     resolution_, rate_});
    case 0xea:
      remote_ = false;
      return Answer({kAck});
    case 0xeb: {
      Answer({kAck});
      for (const uint8_t byte : Report()) Answer({byte});
      return;
    }
    case 0xec:
    case 0xee:
      wrap_ = value == 0xee;
      return Answer({kAck});
    case 0xf0:
      remote_ = true;
      ClearEvents();
      return Answer({kAck});
    case 0xf2:
      return Answer({kAck, identity_});
    case 0xf4:
      dx_ = dy_ = wheel_ = 0;
      reporting_ = true;
      return Answer({kAck});
    case 0xf5:
      reporting_ = false;
      ClearEvents();
      return Answer({kAck});
    case 0xf6:
      Defaults();
      return Answer({kAck});
    case 0xff: {
      const uint8_t buttons = buttons_;
      Reset();
      buttons_ = reported_buttons_ = buttons;
      return Answer({kAck, kSelfTestPassed, 0x00});
    }
    default:
      return Answer({kResend});
  }
}

void Ps2Mouse::Parameter(uint8_t command, uint8_t value) {
  if (command == 0xe8) {
    resolution_ = value & 3;
    return Answer({kAck});
  }
  rate_ = value;
  if (last_rates_[0] == 200 && last_rates_[1] == 100 && value == 80) identity_ = kWheel;
  if (last_rates_[0] == 200 && last_rates_[1] == 200 && value == 80 && identity_ != 0) identity_ = kFiveButtons;
  last_rates_ = {last_rates_[1], value};
  Answer({kAck});
}

uint8_t Ps2Mouse::Take() {
  const uint8_t value = Ps2Device::Take();
  Pump();
  return value;
}

void Ps2Mouse::Move(const display::PointerMove& move) {
  buttons_ = move.buttons & 7;
  if (!reporting_ && !remote_) return;
  dx_ = Pending(dx_, move.dx);
  dy_ = Pending(dy_, -int64_t{move.dy});
  wheel_ = Pending(wheel_, -int64_t{move.wheel});  // towards the person is positive here
  Pump();
}

std::vector<uint8_t> Ps2Mouse::Report() {
  const int32_t x = std::clamp(dx_, -255, 255), y = std::clamp(dy_, -255, 255);
  dx_ -= x;
  dy_ -= y;
  reported_buttons_ = buttons_;
  std::vector<uint8_t> report{static_cast<uint8_t>(0x08 | buttons_ | (x < 0 ? 0x10 : 0) | (y < 0 ? 0x20 : 0)),
                              static_cast<uint8_t>(x), static_cast<uint8_t>(y)};
  if (identity_ == 0) {
    wheel_ = 0;
    return report;
  }
  const int32_t z = std::clamp(wheel_, -8, 7);
  wheel_ -= z;
  report.push_back(static_cast<uint8_t>(identity_ == kFiveButtons ? z & 0x0f : z));
  return report;
}

void Ps2Mouse::Pump() {
  if (!reporting_ || remote_ || wrap_ || events_waiting()) return;
  if (dx_ == 0 && dy_ == 0 && (wheel_ == 0 || identity_ == 0) && buttons_ == reported_buttons_) return;
  Event(Report());
}

void Ps2Mouse::Serialize(state::Archive& archive) {
  SerializeQueues(archive);
  archive.Field(3, reporting_);
  archive.Field(4, remote_);
  archive.Field(5, wrap_);
  archive.Field(6, scaling_);
  archive.Field(7, resolution_);
  archive.Field(8, rate_);
  archive.Field(9, identity_);
  archive.Field(10, command_);
  archive.Bytes(11, std::span<uint8_t>(last_rates_));
  archive.Field(12, dx_);
  archive.Field(13, dy_);
  archive.Field(14, wheel_);
  archive.Field(15, buttons_);
  archive.Field(16, reported_buttons_);
  if (!archive.loading()) return;
  if (identity_ != 0 && identity_ != kWheel && identity_ != kFiveButtons) identity_ = 0;
  resolution_ &= 3;
  buttons_ &= 7;
  reported_buttons_ &= 7;
  dx_ = Pending(0, dx_);
  dy_ = Pending(0, dy_);
  wheel_ = Pending(0, wheel_);
}

}  // namespace nacre::devices
