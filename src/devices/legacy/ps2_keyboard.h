#pragma once
// A PS/2 keyboard with 102 keys: scan code sets 1 and 2, LEDs, the commands of the IBM PS/2 Technical Reference
// ("Keyboards (101- and 102-Key)"). Keys repeat as the person's own keyboard repeats them: the typematic command is
// taken, and changes nothing. Under the device lock.

#include <cstdint>

#include "devices/legacy/ps2_device.h"

namespace nacre::devices {

class Ps2Keyboard final : public Ps2Device {
 public:
  void Reset() override;
  void Write(uint8_t value) override;
  uint8_t Take() override { return last_ = Ps2Device::Take(); }
  void Serialize(state::Archive& archive) override;

  /// A key by Linux's code (display/input.h).
  void Key(uint16_t code, bool down);
  uint8_t leds() const { return leds_; }

 private:
  void Defaults();
  void Parameter(uint8_t command, uint8_t value);

  bool scanning_ = true;
  uint8_t scan_set_ = 2;
  uint8_t leds_ = 0;
  uint8_t typematic_ = 0x2b;  ///< 10.9 in a second after half a second
  uint8_t command_ = 0;       ///< waits for its parameter
  uint8_t last_ = 0;          ///< for the host's 0xfe
};

/// What the 8042 makes of a byte of scan code set 2 while it translates to set 1; the prefix 0xf0 is not a code.
uint8_t TranslateToSet1(uint8_t code);

}  // namespace nacre::devices
