#include "devices/vga/vga_window.h"

#include <bit>
#include <optional>

#include "base/bits.h"

namespace nacre::devices::vga {
namespace {

constexpr uint8_t kRamEnable = 0x02;                       // of the miscellaneous output register
constexpr uint8_t kSequential = 0x04, kChain4 = 0x08;      // of the memory mode register
constexpr uint8_t kHostOddEven = 0x10, kReadMode1 = 0x08;  // of the graphics mode register

/// 0xff in the byte of each plane whose bit is set.
constexpr uint32_t Planes(unsigned bits) {
  return ((bits & 1) ? 0xffu : 0) | ((bits & 2) ? 0xff00u : 0) | ((bits & 4) ? 0xff0000u : 0) |
         ((bits & 8) ? 0xff000000u : 0);
}
constexpr uint32_t InEachPlane(uint8_t value) { return value * 0x01010101u; }

/// The offset in what the miscellaneous graphics register maps; nothing outside of it.
std::optional<uint32_t> Decode(const Registers& registers, uint32_t offset) {
  if (!(registers.misc & kRamEnable)) return std::nullopt;
  switch (Bits(registers.graphics[kMiscellaneous], 2, 2)) {
    case 0:
      return offset;
    case 1:
      return offset < 0x10000 ? std::optional(offset) : std::nullopt;
    case 2:
      return offset >= 0x10000 && offset < 0x18000 ? std::optional(offset - 0x10000) : std::nullopt;
    default:
      return offset >= 0x18000 ? std::optional(offset - 0x18000) : std::nullopt;
  }
}

/// Of the bank that is chosen, if it has this byte.
std::optional<uint64_t> LinearAddress(const Registers& registers, uint32_t offset, uint64_t memory_size) {
  const uint64_t address = registers.dispi[kDispiBank] * uint64_t{0x10000} + offset;
  return offset < 0x10000 && address < memory_size ? std::optional(address) : std::nullopt;
}

uint32_t Combine(uint8_t function, uint32_t data, uint32_t latch) {
  switch (function & 3) {
    case 1:
      return data & latch;
    case 2:
      return data | latch;
    case 3:
      return data ^ latch;
    default:
      return data;
  }
}

/// What the write modes make of a byte: bytes for the four planes.
uint32_t WriteData(const Registers& registers, uint8_t value) {
  const auto& graphics = registers.graphics;
  const uint8_t function = graphics[kDataRotate] >> 3;
  const uint8_t rotated = std::rotr(value, graphics[kDataRotate] & 7);
  const uint32_t set_reset = Planes(graphics[kSetReset]);
  uint32_t mask = InEachPlane(graphics[kBitMask]);
  uint32_t data = 0;
  switch (graphics[kGraphicsMode] & 3) {
    case 0: {
      const uint32_t enabled = Planes(graphics[kEnableSetReset]);
      data = (InEachPlane(rotated) & ~enabled) | (set_reset & enabled);
      break;
    }
    case 1:
      return registers.latch;
    case 2:
      data = Planes(value);
      break;
    default:
      mask &= InEachPlane(rotated);
      data = set_reset;
  }
  return (Combine(function, data, registers.latch) & mask) | (registers.latch & ~mask);
}

}  // namespace

uint8_t ReadWindow(Registers& registers, std::span<const uint8_t> memory, uint32_t offset) {
  const std::optional<uint32_t> decoded = Decode(registers, offset);
  if (!decoded) return 0xff;
  if (registers.linear()) {
    const auto address = LinearAddress(registers, *decoded, memory.size());
    return address ? memory[*address] : 0xff;
  }
  const auto& graphics = registers.graphics;
  uint32_t address = *decoded & 0xffff;
  unsigned plane = graphics[kReadMap] & 3;
  if (registers.sequencer[kMemoryMode] & kChain4) {
    plane = address & 3;
    address &= ~3u;
  } else if (graphics[kGraphicsMode] & kHostOddEven) {
    plane = (plane & 2) | (address & 1);
    address &= ~1u;
  }
  registers.latch = LoadLe<uint32_t>(&memory[address * 4]);
  if (!(graphics[kGraphicsMode] & kReadMode1)) return static_cast<uint8_t>(registers.latch >> (8 * plane));
  // A bit is set where all planes that are cared for have the colour.
  const uint32_t differs = (registers.latch ^ Planes(graphics[kColorCompare])) & Planes(graphics[kColorDontCare]);
  return static_cast<uint8_t>(~(differs | differs >> 8 | differs >> 16 | differs >> 24));
}

void WriteWindow(const Registers& registers, std::span<uint8_t> memory, uint32_t offset, uint8_t value) {
  const std::optional<uint32_t> decoded = Decode(registers, offset);
  if (!decoded) return;
  if (registers.linear()) {
    if (const auto address = LinearAddress(registers, *decoded, memory.size())) memory[*address] = value;
    return;
  }
  uint32_t address = *decoded & 0xffff;
  unsigned planes = registers.sequencer[kMapMask] & 0xf;
  if (registers.sequencer[kMemoryMode] & kChain4) {
    planes &= 1u << (address & 3);
    address &= ~3u;
  } else if (!(registers.sequencer[kMemoryMode] & kSequential)) {
    planes &= (address & 1) ? 0xau : 0x5u;
    address &= ~1u;
  }
  uint8_t* place = &memory[address * 4];
  const uint32_t mask = Planes(planes);
  StoreLe(place, (LoadLe<uint32_t>(place) & ~mask) | (WriteData(registers, value) & mask));
}

}  // namespace nacre::devices::vga
