#pragma once
// SHA-256 (FIPS 180-4), for what must be known by its content. Any thread, each object one.

#include <array>
#include <cstdint>
#include <span>
#include <string>

namespace nacre {

class Sha256 {
 public:
  void Add(std::span<const uint8_t> bytes);
  /// Once. 64 hexadecimal digits.
  std::string Finish();

 private:
  static constexpr size_t kBlock = 64;
  void Compress(const uint8_t* block);

  std::array<uint32_t, 8> state_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<uint8_t, kBlock> block_{};
  size_t filled_ = 0;
  uint64_t total_ = 0;
};

}  // namespace nacre
