#include "devices/legacy/pic8259.h"

#include <bit>

#include "base/bits.h"

namespace nacre::devices {
namespace {

constexpr unsigned kCascade = 2;

}  // namespace

Pic8259::Pic8259(bus::IrqLine& intr) : intr_(intr) {
  for (unsigned i = 0; i < 2; ++i) {
    chips_[i].owner = this;
    chips_[i].is_master = i == 0;
    // Timer, keyboard, cascade, clock and coprocessor are always edge-triggered.
    chips_[i].elcr_mask = i == 0 ? 0xf8 : 0xde;
  }
  elcr_.owner = this;
  for (unsigned i = 0; i < 16; ++i) {
    lines_[i].owner = this;
    lines_[i].irq = i;
  }
}

void Pic8259::Chip::Reset() {
  irr = imr = isr = inputs = elcr = vector_base = init_step = 0;
  lowest = 7;
  expects_icw4 = single = read_isr = poll = false;
  special_mask = auto_eoi = rotate_on_auto_eoi = special_fully_nested = false;
}

void Pic8259::Reset() {
  for (Chip& chip : chips_) chip.Reset();
  Update();
}

unsigned Pic8259::Chip::Priority(uint8_t bits) const {
  return bits == 0 ? 8 : static_cast<unsigned>(std::countr_zero(std::rotr(bits, (lowest + 1) & 7)));
}

int Pic8259::Chip::Pending() const {
  const unsigned request = Priority(irr & static_cast<uint8_t>(~imr));
  if (request == 8) return -1;
  // Special mask mode: only the level in service itself is held back, by its mask bit. Special fully nested:
  // a slave in service does not hold back its other requests.
  uint8_t in_service = isr;
  if (special_mask) in_service &= static_cast<uint8_t>(~imr);
  if (special_fully_nested && is_master) in_service &= static_cast<uint8_t>(~(1 << kCascade));
  if (request >= Priority(in_service)) return -1;
  return static_cast<int>((request + lowest + 1) & 7);
}

void Pic8259::Chip::SetInput(unsigned pin, bool level) {
  const auto bit = static_cast<uint8_t>(1 << pin);
  if ((elcr & bit) != 0) {
    irr = level ? irr | bit : irr & static_cast<uint8_t>(~bit);
  } else if (level && (inputs & bit) == 0) {
    irr |= bit;
  }
  inputs = level ? inputs | bit : inputs & static_cast<uint8_t>(~bit);
}

void Pic8259::Chip::Acknowledge(unsigned pin) {
  const auto bit = static_cast<uint8_t>(1 << pin);
  if (auto_eoi) {
    if (rotate_on_auto_eoi) lowest = static_cast<uint8_t>(pin);
  } else {
    isr |= bit;
  }
  // A level-triggered request stays for as long as its line is asserted.
  if ((elcr & bit) == 0) irr &= static_cast<uint8_t>(~bit);
}

void Pic8259::Update() {
  chips_[0].SetInput(kCascade, chips_[1].Pending() >= 0);
  // The cascade pin follows the slave's INT: a withdrawn request must not stay latched.
  if (chips_[1].Pending() < 0) chips_[0].irr &= static_cast<uint8_t>(~(1 << kCascade));
  intr_.Set(chips_[0].Pending() >= 0);
}

void Pic8259::SetIrq(unsigned irq, bool level) {
  if (irq >= 16 || irq == kCascade) return;
  chips_[irq / 8].SetInput(irq % 8, level);
  Update();
}

uint8_t Pic8259::AcknowledgeExtInt() {
  Chip& master = chips_[0];
  Chip& slave = chips_[1];
  const int pin = master.Pending();
  uint8_t vector = 0;
  if (pin < 0) {
    vector = master.vector_base + 7;  // spurious
  } else {
    master.Acknowledge(static_cast<unsigned>(pin));
    if (pin != static_cast<int>(kCascade)) {
      vector = static_cast<uint8_t>(master.vector_base + pin);
    } else {
      const int slave_pin = slave.Pending();
      if (slave_pin >= 0) slave.Acknowledge(static_cast<unsigned>(slave_pin));
      vector = static_cast<uint8_t>(slave.vector_base + (slave_pin >= 0 ? slave_pin : 7));
      master.inputs &= static_cast<uint8_t>(~(1 << kCascade));  // another request of the slave is a new edge
    }
  }
  Update();
  return vector;
}

void Pic8259::Chip::Initialize(uint8_t icw1) {
  // ICW1 (data sheet, "Initialization Command Words"): edge latches, mask, in-service and modes are cleared.
  // Lines that are level-triggered and asserted ask again at once.
  imr = isr = 0;
  irr = inputs & elcr;
  lowest = 7;
  special_mask = read_isr = poll = auto_eoi = rotate_on_auto_eoi = special_fully_nested = false;
  expects_icw4 = (icw1 & 1) != 0;
  single = (icw1 & 2) != 0;
  init_step = 2;
}

void Pic8259::Chip::EndOfInterrupt(unsigned pin, bool rotate) {
  isr &= static_cast<uint8_t>(~(1 << pin));
  if (rotate) lowest = static_cast<uint8_t>(pin);
}

void Pic8259::Chip::WriteCommand(uint8_t value) {
  if ((value & 0x10) != 0) return Initialize(value);
  if ((value & 0x08) != 0) {  // OCW3
    if ((value & 0x04) != 0) poll = true;
    if ((value & 0x02) != 0) read_isr = (value & 1) != 0;
    if ((value & 0x40) != 0) special_mask = (value & 0x20) != 0;
    return;
  }
  const unsigned pin = value & 7;  // OCW2
  const uint8_t served = special_mask ? isr & static_cast<uint8_t>(~imr) : isr;
  const unsigned highest = (Priority(served) + lowest + 1) & 7;
  switch (value >> 5) {
    case 0:
      rotate_on_auto_eoi = false;
      break;
    case 4:
      rotate_on_auto_eoi = true;
      break;
    case 1:
    case 5:
      if (served != 0) EndOfInterrupt(highest, value >> 5 == 5);
      break;
    case 3:
      EndOfInterrupt(pin, false);
      break;
    case 7:
      EndOfInterrupt(pin, true);
      break;
    case 6:
      lowest = static_cast<uint8_t>(pin);
      break;
    default:
      break;
  }
}

void Pic8259::Chip::WriteData(uint8_t value) {
  switch (init_step) {
    case 2:
      vector_base = value & 0xf8;
      init_step = !single ? 3 : expects_icw4 ? 4 : 0;
      break;
    case 3:
      init_step = expects_icw4 ? 4 : 0;
      break;  // the wiring of a PC's cascade is fixed
    case 4:
      special_fully_nested = (value & 0x10) != 0;
      auto_eoi = (value & 0x02) != 0;
      init_step = 0;
      break;
    default:
      imr = value;
      break;
  }
}

uint8_t Pic8259::Chip::Poll() {
  poll = false;
  const int pin = Pending();
  if (pin < 0) return 0;
  Acknowledge(static_cast<unsigned>(pin));
  return static_cast<uint8_t>(0x80 | pin);
}

uint64_t Pic8259::Chip::Read(uint64_t offset, unsigned size) {
  uint64_t value = 0;
  for (unsigned i = 0; i < size && offset + i < 2; ++i) {
    uint8_t byte = 0;
    if (poll) {
      byte = Poll();
      owner->Update();
    } else if (offset + i == 0) {
      byte = read_isr ? isr : irr;
    } else {
      byte = imr;
    }
    value |= uint64_t{byte} << (8 * i);
  }
  return value;
}

void Pic8259::Chip::Write(uint64_t offset, unsigned size, uint64_t value) {
  for (unsigned i = 0; i < size && offset + i < 2; ++i) {
    const auto byte = static_cast<uint8_t>(value >> (8 * i));
    if (offset + i == 0) {
      WriteCommand(byte);
    } else {
      WriteData(byte);
    }
  }
  owner->Update();
}

uint64_t Pic8259::Elcr::Read(uint64_t offset, unsigned size) {
  const uint64_t both = owner->chips_[0].elcr | uint64_t{owner->chips_[1].elcr} << 8;
  return offset < 2 ? MaskToSize(both >> (8 * offset), size) : MaskToSize(~uint64_t{0}, size);
}

void Pic8259::Elcr::Write(uint64_t offset, unsigned size, uint64_t value) {
  for (unsigned i = 0; i < size && offset + i < 2; ++i) {
    Chip& chip = owner->chips_[offset + i];
    chip.elcr = static_cast<uint8_t>(value >> (8 * i)) & chip.elcr_mask;
    // A line that is level-triggered now is requested exactly while it is asserted.
    chip.irr = static_cast<uint8_t>((chip.irr & ~chip.elcr) | (chip.inputs & chip.elcr));
  }
  owner->Update();
}

void Pic8259::Chip::Serialize(state::Archive& archive) {
  archive.Field(1, irr);
  archive.Field(2, imr);
  archive.Field(3, isr);
  archive.Field(4, inputs);
  archive.Field(5, elcr);
  archive.Field(6, vector_base);
  archive.Field(7, lowest);
  archive.Field(8, init_step);
  archive.Field(9, expects_icw4);
  archive.Field(10, single);
  archive.Field(11, read_isr);
  archive.Field(12, poll);
  archive.Field(13, special_mask);
  archive.Field(14, auto_eoi);
  archive.Field(15, rotate_on_auto_eoi);
  archive.Field(16, special_fully_nested);
  if (!archive.loading()) return;
  elcr &= elcr_mask;
  lowest &= 7;
  vector_base &= 0xf8;
  if (init_step > 4 || init_step == 1) archive.Reject("PIC: impossible initialization step");
}

void Pic8259::Serialize(state::Archive& archive) {
  archive.Section(1, 1, [&](state::Archive& inner, uint16_t) { chips_[0].Serialize(inner); });
  archive.Section(2, 1, [&](state::Archive& inner, uint16_t) { chips_[1].Serialize(inner); });
  if (archive.loading()) Update();
}

}  // namespace nacre::devices
