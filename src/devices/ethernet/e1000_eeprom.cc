#include "devices/ethernet/e1000_eeprom.h"

#include "base/bits.h"

namespace nacre::devices {

namespace {

// EECD (13.4.3).
constexpr uint32_t kClock = 1 << 0, kSelect = 1 << 1, kIn = 1 << 2, kOut = 1 << 3, kRequest = 1 << 6, kGrant = 1 << 7,
                   kPresent = 1 << 8;
constexpr uint32_t kDriven = kClock | kSelect | kIn | 3 << 4 | kRequest;
/// A start bit, two of operation, six of address.
constexpr unsigned kCommandBits = 9;
constexpr uint16_t kReadOperation = 2;

constexpr uint16_t kChecksum = 0xbaba;

// PHY registers.
constexpr unsigned kPhyControl = 0, kPhyStatus = 1, kPhyId1 = 2, kPhyId2 = 3, kAdvertise = 4, kPartner = 5,
                   kExpansion = 6, kGigabitControl = 9, kGigabitStatus = 10, kExtendedStatus = 15,
                   kSpecificControl = 16, kSpecificStatus = 17, kExtendedControl = 20;
constexpr uint16_t kPhyReset = 1 << 15, kRestartNegotiation = 1 << 9;

}  // namespace

E1000Eeprom::E1000Eeprom(const network::MacAddress& mac, uint16_t device, uint16_t subsystem) {
  for (unsigned i = 0; i < 3; ++i) words_[i] = LoadLe<uint16_t>(&mac[2 * i]);
  words_[0x0a] = 0x4000;  // the signature of a valid content
  words_[0x0b] = subsystem;
  words_[0x0c] = 0x8086;
  words_[0x0d] = device;
  words_[0x0e] = 0x8086;
  uint16_t sum = 0;
  for (const uint16_t word : words_) sum = static_cast<uint16_t>(sum + word);
  words_[kWords - 1] = static_cast<uint16_t>(kChecksum - sum);
}

uint32_t E1000Eeprom::ReadControl() const {
  return control_ | kPresent | (output_ ? kOut : 0) | ((control_ & kRequest) != 0 ? kGrant : 0);
}

void E1000Eeprom::WriteControl(uint32_t value) {
  const uint32_t before = control_;
  control_ = value & kDriven;
  if ((control_ & kSelect) == 0) {
    command_ = 0;
    bits_left_ = 0;
    output_ = true;
  } else if ((control_ & kClock) != 0 && (before & kClock) == 0) {
    Clock((control_ & kIn) != 0);
  }
}

/// A rising edge while the chip is selected.
void E1000Eeprom::Clock(bool bit) {
  const auto complete = static_cast<uint16_t>(1 << (kCommandBits - 1));
  if ((command_ & complete) == 0) {
    command_ = static_cast<uint16_t>(command_ << 1 | (bit ? 1 : 0));  // zeros before the start bit are nothing
    if ((command_ & complete) == 0 || Bits(command_, 6, 2) != kReadOperation) return;
    shift_ = Word(command_ & (kWords - 1));
    bits_left_ = 16;
    output_ = false;  // a zero goes before the word
    return;
  }
  if (Bits(command_, 6, 2) != kReadOperation) return;
  if (bits_left_ == 0) {  // reading on
    command_ = static_cast<uint16_t>((command_ & ~(kWords - 1)) | ((command_ + 1) & (kWords - 1)));
    shift_ = Word(command_ & (kWords - 1));
    bits_left_ = 16;
  }
  output_ = (shift_ & 0x8000) != 0;
  shift_ = static_cast<uint16_t>(shift_ << 1);
  --bits_left_;
}

void E1000Eeprom::Reset() {
  control_ = 0;
  command_ = 0;
  bits_left_ = 0;
  shift_ = 0;
  output_ = true;
}

void E1000Eeprom::Serialize(state::Archive& archive, uint16_t id) {
  archive.Section(id, 1, [&](state::Archive& fields, uint16_t) {
    fields.Field(1, control_);
    fields.Field(2, command_);
    fields.Field(3, bits_left_);
    fields.Field(4, shift_);
    fields.Field(5, output_);
  });
  if (!archive.loading()) return;
  if (bits_left_ > 16 || command_ >= 1 << kCommandBits || (control_ & ~kDriven) != 0)
    archive.Reject("e1000: no such state of the EEPROM");
}

void E1000Phy::Reset() {
  for (uint16_t& value : registers_) value = 0;
  registers_[kPhyControl] = 0x1140;  // negotiation, full duplex, 1000 Mb/s
  registers_[kAdvertise] = 0x0de1;
  registers_[kGigabitControl] = 0x0e00;
  registers_[kSpecificControl] = 0x0068;
  registers_[kExtendedControl] = 0x0d60;
}

uint16_t E1000Phy::Read(unsigned reg, bool link_up) const {
  switch (reg) {
    case kPhyStatus:  // all speeds but 100BASE-T4, extended status, negotiates; done, link
      return static_cast<uint16_t>(0x7949 | (link_up ? 1 << 5 | 1 << 2 : 0));
    case kPhyId1:
      return 0x0141;
    case kPhyId2:
      return 0x0c20;
    case kPartner:
      return link_up ? 0x45e1 : 0;
    case kExpansion:
      return link_up ? 1 : 0;
    case kGigabitStatus:
      return link_up ? 0x3c00 : 0;
    case kExtendedStatus:
      return 0x3000;
    case kSpecificStatus:  // 1000 Mb/s, full duplex, resolved, link
      return link_up ? 0xac00 : 0x8000;
    default:
      return registers_[reg & 31];
  }
}

void E1000Phy::Write(unsigned reg, uint16_t value) {
  switch (reg & 31) {
    case kPhyControl:
      if ((value & kPhyReset) != 0) return Reset();
      registers_[kPhyControl] = static_cast<uint16_t>(value & ~kRestartNegotiation & 0xffc0);
      return;
    case kPhyStatus:
    case kPhyId1:
    case kPhyId2:
    case kPartner:
    case kExpansion:
    case kGigabitStatus:
    case kExtendedStatus:
    case kSpecificStatus:
      return;
    default:
      registers_[reg & 31] = value;
  }
}

void E1000Phy::Serialize(state::Archive& archive, uint16_t id) { archive.Array(id, registers_); }

}  // namespace nacre::devices
