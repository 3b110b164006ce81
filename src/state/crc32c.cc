#include "state/crc32c.h"

#include <array>

#include "base/bits.h"

namespace nacre::state {
namespace {

constexpr uint32_t kPolynomial = 0x82f63b78;  // reflected

constexpr std::array<uint32_t, 256> kTable = [] {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t value = i;
    for (int bit = 0; bit < 8; ++bit) value = (value >> 1) ^ ((value & 1) ? kPolynomial : 0);
    table[i] = value;
  }
  return table;
}();

uint32_t ByTable(std::span<const uint8_t> bytes, uint32_t crc) {
  for (const uint8_t byte : bytes) crc = (crc >> 8) ^ kTable[(crc ^ byte) & 0xff];
  return crc;
}

__attribute__((target("sse4.2"))) uint32_t ByInstruction(std::span<const uint8_t> bytes, uint32_t crc) {
  uint64_t wide = crc;
  for (; bytes.size() >= 8; bytes = bytes.subspan(8))
    wide = __builtin_ia32_crc32di(wide, LoadLe<uint64_t>(bytes.data()));
  crc = static_cast<uint32_t>(wide);
  for (const uint8_t byte : bytes) crc = __builtin_ia32_crc32qi(crc, byte);
  return crc;
}

}  // namespace

uint32_t Crc32c(std::span<const uint8_t> bytes, uint32_t before) {
  static const bool has_instruction = __builtin_cpu_supports("sse4.2") != 0;
  return ~(has_instruction ? ByInstruction(bytes, ~before) : ByTable(bytes, ~before));
}

}  // namespace nacre::state
