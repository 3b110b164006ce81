#pragma once
// The 82540EM's configuration EEPROM of 64 words (manual, 5.6), read through EERD or, by older drivers, bit by bit
// through EECD as a 93C46 (Microwire). Read only: commands that would write it are taken and change nothing. And its
// PHY (chapter 12), a copper one of 1000 Mb/s that is done with negotiation at once. Under the device lock.

#include <array>
#include <cstdint>

#include "network/ethernet.h"
#include "state/archive.h"

namespace nacre::devices {

class E1000Eeprom {
 public:
  static constexpr unsigned kWords = 64;

  E1000Eeprom(const network::MacAddress& mac, uint16_t device, uint16_t subsystem);

  /// All ones where there is no word.
  uint16_t Word(unsigned index) const { return index < kWords ? words_[index] : 0xffff; }
  uint32_t ReadControl() const;
  void WriteControl(uint32_t value);
  void Reset();
  void Serialize(state::Archive& archive, uint16_t id);

 private:
  void Clock(bool bit);

  std::array<uint16_t, kWords> words_{};
  uint32_t control_ = 0;   ///< the bits that the guest drives
  uint16_t command_ = 0;   ///< start bit, operation, address, as far as they have come
  uint8_t bits_left_ = 0;  ///< of the word going out
  uint16_t shift_ = 0;     ///< the word going out, its next bit on top
  bool output_ = true;
};

class E1000Phy {
 public:
  /// The only address on its bus.
  static constexpr unsigned kAddress = 1;

  uint16_t Read(unsigned reg, bool link_up) const;
  void Write(unsigned reg, uint16_t value);
  void Reset();
  bool loopback() const { return (registers_[0] & (1 << 14)) != 0; }
  void Serialize(state::Archive& archive, uint16_t id);

 private:
  uint16_t registers_[32] = {};
};

}  // namespace nacre::devices
