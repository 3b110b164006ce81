#include "devices/chipset/small_ports.h"

#include "base/bits.h"

namespace nacre::devices {

uint64_t BytePort::Read(uint64_t offset, unsigned size) {
  const uint64_t ones = MaskToSize(~uint64_t{0}, size);
  return offset == 0 ? (ones & ~uint64_t{0xff}) | value_ : ones;
}

void BytePort::Write(uint64_t offset, unsigned, uint64_t value) {
  if (offset == 0) Written(static_cast<uint8_t>(value));
}

void ResetControl::Written(uint8_t value) {
  const bool reset = TestBit(value, 2) && !TestBit(this->value(), 2);
  set_value(value & 0x0e);
  if (reset) machine_.ResetMachine();
}

uint64_t SystemControlA::Read(uint64_t offset, unsigned size) {
  return BytePort::Read(offset, size) | (offset == 0 && a20_.on() ? 0x02u : 0u);
}

void SystemControlA::Written(uint8_t value) {
  const bool reset = TestBit(value, 0) && !TestBit(this->value(), 0);
  set_value(value & 0x01);
  a20_.Set(TestBit(value, 1));
  if (reset) machine_.ResetMachine();
}

}  // namespace nacre::devices
