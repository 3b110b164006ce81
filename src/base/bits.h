#pragma once
// Small arithmetic on bits, alignment and little-endian bytes. Any thread, no allocation.

#include <bit>
#include <concepts>
#include <cstdint>
#include <cstring>

namespace nacre {

inline constexpr uint64_t kKiB = 1024;
inline constexpr uint64_t kMiB = 1024 * kKiB;
inline constexpr uint64_t kGiB = 1024 * kMiB;
inline constexpr uint64_t kPageSize = 4096;
inline constexpr uint64_t kPageMask = kPageSize - 1;

constexpr uint64_t Bit(unsigned n) { return uint64_t{1} << n; }
constexpr bool TestBit(uint64_t value, unsigned n) { return ((value >> n) & 1) != 0; }
/// Bits [low, low + count) of value.
constexpr uint64_t Bits(uint64_t value, unsigned low, unsigned count) {
  return (value >> low) & (count >= 64 ? ~uint64_t{0} : Bit(count) - 1);
}
constexpr uint64_t AlignDown(uint64_t value, uint64_t alignment) { return value & ~(alignment - 1); }
constexpr uint64_t AlignUp(uint64_t value, uint64_t alignment) { return AlignDown(value + alignment - 1, alignment); }
/// Value masked to its low `size` bytes (1, 2, 4 or 8).
constexpr uint64_t MaskToSize(uint64_t value, unsigned size) { return size >= 8 ? value : value & (Bit(size * 8) - 1); }
constexpr uint64_t SignExtend(uint64_t value, unsigned bits) {
  return static_cast<uint64_t>(static_cast<int64_t>(value << (64 - bits)) >> (64 - bits));
}

/// Reads a little-endian value from unaligned memory (the host is x86: little-endian).
template <std::integral T>
T LoadLe(const void* from) {
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}
template <std::integral T>
void StoreLe(void* to, T value) {
  std::memcpy(to, &value, sizeof(T));
}

}  // namespace nacre
