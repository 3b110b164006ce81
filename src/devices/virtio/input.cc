#include "devices/virtio/input.h"

#include <linux/input-event-codes.h>

#include <algorithm>
#include <iterator>

#include "base/bits.h"
#include "display/keys.h"

namespace nacre::devices {
namespace {

constexpr unsigned kEventQueue = 0, kStatusQueue = 1;  // 5.8.2
constexpr uint16_t kQueueSize = 64;
constexpr uint64_t kEventSize = 8;  // 5.8.6.2: struct virtio_input_event
// 5.8.5: enum virtio_input_config_select, struct virtio_input_config.
constexpr uint8_t kIdName = 0x01, kIdDevices = 0x03, kEventBits = 0x11, kAxis = 0x12;
constexpr unsigned kSelect = 0, kSubselect = 1, kSize = 2, kData = 8;
constexpr uint16_t kBusVirtual = 0x06, kVendor = 0x1af4, kVersion = 1;
constexpr std::string_view kNames[] = {"virtio-keyboard0", "virtio-mouse0", "virtio-tablet0"};
constexpr std::string_view kTitles[] = {"Nacre virtio keyboard", "Nacre virtio mouse", "Nacre virtio tablet"};

void SetBit(std::vector<uint8_t>& bits, unsigned number) {
  if (bits.size() <= number / 8) bits.resize(number / 8 + 1);
  bits[number / 8] |= static_cast<uint8_t>(1u << number % 8);
}

/// Buttons by the bits of display::PointerMove.
struct Button {
  uint8_t bit;
  uint16_t code;
};
constexpr Button kButtons[] = {
    {display::kLeftButton, BTN_LEFT}, {display::kRightButton, BTN_RIGHT}, {display::kMiddleButton, BTN_MIDDLE}};

bool IsKey(uint16_t code) { return code == KEY_PAUSE || display::ScanCodeOf(code).has_value(); }

}  // namespace

std::unique_ptr<VirtioInput> VirtioInput::Create(Kind kind, memory::GuestMemory& memory, Scheduler& scheduler) {
  return std::unique_ptr<VirtioInput>(new VirtioInput(kind, memory, scheduler));
}

VirtioInput::VirtioInput(Kind kind, memory::GuestMemory& memory, Scheduler& scheduler)
    : VirtioDevice({.name = std::string(kNames[static_cast<unsigned>(kind)]),
                    .type = VirtioType::kInput,
                    .features = 0,
                    .queue_sizes = {kQueueSize, kQueueSize}},
                   memory, scheduler),
      kind_(kind) {}

void VirtioInput::WriteConfig(uint32_t offset, std::span<const uint8_t> data) {
  for (const uint8_t byte : data) {
    if (offset == kSelect || offset == kSubselect) config_[offset] = byte;
    ++offset;
  }
  Select();
}

void VirtioInput::Select() {
  const std::vector<uint8_t> answer = Answer(config_[kSelect], config_[kSubselect]);
  std::ranges::fill(config_.begin() + kSize, config_.end(), uint8_t{0});
  config_[kSize] = static_cast<uint8_t>(answer.size());
  std::ranges::copy(answer, config_.begin() + kData);
}

std::vector<uint8_t> VirtioInput::Answer(uint8_t select, uint8_t subselect) const {
  std::vector<uint8_t> answer;
  const auto number = static_cast<unsigned>(kind_);
  switch (select) {
    case kIdName:
      answer.assign(kTitles[number].begin(), kTitles[number].end());
      return answer;
    case kIdDevices:
      answer.resize(8);
      StoreLe<uint16_t>(&answer[0], kBusVirtual);
      StoreLe<uint16_t>(&answer[2], kVendor);
      StoreLe<uint16_t>(&answer[4], static_cast<uint16_t>(number + 1));
      StoreLe<uint16_t>(&answer[6], kVersion);
      return answer;
    case kEventBits:
      if (subselect == EV_KEY && kind_ == Kind::kKeyboard) {
        for (uint16_t code = 1; code < 256; ++code)
          if (IsKey(code)) SetBit(answer, code);
      } else if (subselect == EV_LED && kind_ == Kind::kKeyboard) {
        for (const unsigned led : {LED_NUML, LED_CAPSL, LED_SCROLLL}) SetBit(answer, led);
      } else if (subselect == EV_KEY) {
        for (const Button& button : kButtons) SetBit(answer, button.code);
      } else if (subselect == EV_REL && kind_ != Kind::kKeyboard) {
        SetBit(answer, REL_WHEEL);
        if (kind_ == Kind::kMouse)
          for (const unsigned axis : {REL_X, REL_Y}) SetBit(answer, axis);
      } else if (subselect == EV_ABS && kind_ == Kind::kTablet) {
        for (const unsigned axis : {ABS_X, ABS_Y}) SetBit(answer, axis);
      }
      return answer;
    case kAxis:
      if (kind_ != Kind::kTablet || (subselect != ABS_X && subselect != ABS_Y)) return answer;
      answer.resize(20);  // min, max, fuzz, flat, resolution
      StoreLe<uint32_t>(&answer[4], display::kPointerRange);
      return answer;
    default:
      return answer;
  }
}

void VirtioInput::OnQueue(unsigned index) {
  if (index == kEventQueue) return Deliver();
  ForEachChain(index, [&](Chain& chain) {
    uint8_t bytes[kEventSize];
    if (chain.Read(0, bytes) == kEventSize)
      TakeStatus({LoadLe<uint16_t>(bytes), LoadLe<uint16_t>(bytes + 2), LoadLe<uint32_t>(bytes + 4)});
    queue(kStatusQueue).Push(chain, 0);
  });
}

void VirtioInput::TakeStatus(const Event& event) {
  if (kind_ != Kind::kKeyboard || event.type != EV_LED) return;
  const uint8_t led = event.code == LED_NUML      ? display::kNumLockLed
                      : event.code == LED_CAPSL   ? display::kCapsLockLed
                      : event.code == LED_SCROLLL ? display::kScrollLockLed
                                                  : uint8_t{0};
  leds_ = static_cast<uint8_t>(event.value != 0 ? leds_ | led : leds_ & ~led);
}

void VirtioInput::Key(uint16_t code, bool down) {
  if (kind_ != Kind::kKeyboard || code >= 256 || !IsKey(code)) return;
  uint8_t& pressed = pressed_[code / 8];
  const auto bit = static_cast<uint8_t>(1u << code % 8);
  const uint32_t value = !down ? 0 : (pressed & bit) ? 2 : 1;  // 2: it repeats
  pressed = static_cast<uint8_t>(down ? pressed | bit : pressed & ~bit);
  Send({{EV_KEY, code, value}});
}

void VirtioInput::MovePointer(const display::PointerMove& move) {
  if (kind_ == Kind::kKeyboard) return;
  std::vector<Event> events;
  if (kind_ == Kind::kTablet) {
    events.push_back({EV_ABS, ABS_X, std::min<uint32_t>(move.x, display::kPointerRange)});
    events.push_back({EV_ABS, ABS_Y, std::min<uint32_t>(move.y, display::kPointerRange)});
  } else {
    if (move.dx != 0) events.push_back({EV_REL, REL_X, static_cast<uint32_t>(move.dx)});
    if (move.dy != 0) events.push_back({EV_REL, REL_Y, static_cast<uint32_t>(move.dy)});
  }
  if (move.wheel != 0) events.push_back({EV_REL, REL_WHEEL, static_cast<uint32_t>(move.wheel)});
  for (const Button& button : kButtons) {
    uint8_t& pressed = pressed_[button.code / 8];
    const auto bit = static_cast<uint8_t>(1u << button.code % 8);
    const bool down = (move.buttons & button.bit) != 0;
    if (down == ((pressed & bit) != 0)) continue;
    pressed = static_cast<uint8_t>(pressed ^ bit);
    events.push_back({EV_KEY, button.code, down ? 1u : 0u});
  }
  if (!events.empty()) Send(std::move(events));
}

void VirtioInput::Send(std::vector<Event> events) {
  if (!driver_ok() || waiting_.size() + events.size() + 1 > kMaxWaiting) return;
  waiting_.insert(waiting_.end(), events.begin(), events.end());
  waiting_.push_back({EV_SYN, SYN_REPORT, 0});
  Deliver();
}

void VirtioInput::Deliver() {
  VirtQueue& ring = queue(kEventQueue);
  bool moved = false;
  while (!waiting_.empty()) {
    if (!ring.Pop(event_chain_)) {
      if (ring.EnableNotification()) continue;
      break;
    }
    uint8_t bytes[kEventSize];
    StoreLe(&bytes[0], waiting_.front().type);
    StoreLe(&bytes[2], waiting_.front().code);
    StoreLe(&bytes[4], waiting_.front().value);
    const bool fits = event_chain_.writable_bytes() >= kEventSize;
    if (fits) event_chain_.Write(memory(), 0, bytes);
    ring.Push(event_chain_, fits ? kEventSize : 0);
    if (fits) waiting_.pop_front();
    moved = true;
    if (needs_reset()) break;
  }
  if (moved) Signal(kEventQueue);
}

void VirtioInput::OnReset() {
  waiting_.clear();
  pressed_.fill(0);
  leds_ = 0;
  config_.fill(0);
}

void VirtioInput::SerializeState(state::Archive& archive) {
  std::vector<uint8_t> bytes(waiting_.size() * kEventSize);
  for (size_t i = 0; i < waiting_.size(); ++i) {
    StoreLe(&bytes[i * kEventSize], waiting_[i].type);
    StoreLe(&bytes[i * kEventSize + 2], waiting_[i].code);
    StoreLe(&bytes[i * kEventSize + 4], waiting_[i].value);
  }
  archive.Bytes(1, bytes, kMaxWaiting * kEventSize);
  archive.Bytes(2, std::span(pressed_));
  archive.Field(3, leds_);
  archive.Field(4, config_[kSelect]);
  archive.Field(5, config_[kSubselect]);
  if (!archive.loading()) return;
  leds_ &= display::kScrollLockLed | display::kNumLockLed | display::kCapsLockLed;
  waiting_.clear();
  for (size_t at = 0; at + kEventSize <= bytes.size(); at += kEventSize)
    waiting_.push_back(
        {LoadLe<uint16_t>(&bytes[at]), LoadLe<uint16_t>(&bytes[at + 2]), LoadLe<uint32_t>(&bytes[at + 4])});
  Select();
}

}  // namespace nacre::devices
