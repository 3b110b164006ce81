#pragma once
// What a person does at a screen, on its way to the guest. Keys are named by Linux's input event codes
// (linux/input-event-codes.h, KEY_...): they are what virtio-input wants, and keyboards make scan codes of them
// (display/keys.h).

#include <cstdint>

namespace nacre::display {

/// Bits of PointerMove::buttons.
inline constexpr uint8_t kLeftButton = 1, kRightButton = 2, kMiddleButton = 4;
/// Bits of InputSink::leds, as keyboards number them.
inline constexpr uint8_t kScrollLockLed = 1, kNumLockLed = 2, kCapsLockLed = 4;

/// PointerMove::x and y at the right and at the lower edge of the screen.
inline constexpr uint16_t kPointerRange = 0x7fff;

/// Each device takes of it what it knows.
struct PointerMove {
  int dx = 0, dy = 0;     ///< pixels, to the right and downwards
  uint16_t x = 0, y = 0;  ///< where on the screen, 0 to kPointerRange
  int wheel = 0;          ///< notches, away from the person is positive
  uint8_t buttons = 0;    ///< those that are down now
};

/// Under the device lock. Events that the guest does not fetch are dropped after a few.
class InputSink {
 public:
  virtual ~InputSink() = default;
  /// A code without a key does nothing. `down` again while it is down: the key repeats.
  virtual void Key(uint16_t code, bool down) = 0;
  /// The guest has fetched all keys' events.
  virtual bool keys_taken() const = 0;
  virtual void MovePointer(const PointerMove& move) = 0;
  virtual uint8_t leds() const = 0;
  /// Who has a choice gives it to this one.
  virtual bool active() const { return true; }
  /// The guest knows where on the screen the pointer is, not only how it moves.
  virtual bool absolute() const { return false; }
};

}  // namespace nacre::display
