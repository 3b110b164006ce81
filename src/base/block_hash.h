#pragma once
// What the hash functions of FIPS 180-4 with blocks of 64 bytes share: how a message becomes blocks (5.1.1) and the
// state a digest. Any thread, each object one.

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>

namespace nacre {

template <size_t kWords>
class BlockHash {
 public:
  virtual ~BlockHash() = default;

  void Add(std::span<const uint8_t> bytes) {
    total_ += bytes.size();
    if (filled_ > 0) {
      const size_t size = std::min(kBlock - filled_, bytes.size());
      std::copy_n(bytes.begin(), size, block_.begin() + static_cast<ptrdiff_t>(filled_));
      filled_ += size;
      bytes = bytes.subspan(size);
      if (filled_ < kBlock) return;
      Compress(block_.data());
      filled_ = 0;
    }
    for (; bytes.size() >= kBlock; bytes = bytes.subspan(kBlock)) Compress(bytes.data());
    std::ranges::copy(bytes, block_.begin());
    filled_ = bytes.size();
  }

  /// Once. 8 hexadecimal digits for each word.
  std::string Finish() {
    const uint64_t bits = total_ * 8;
    std::array<uint8_t, 2 * kBlock> end{0x80};  // a bit, zeros, the number of bits
    const size_t size = (filled_ < 56 ? 56 : 120) - filled_;
    for (size_t i = 0; i < 8; ++i) end[size + i] = static_cast<uint8_t>(bits >> (56 - 8 * i));
    Add(std::span(end).first(size + 8));
    std::string text;
    for (const uint32_t word : state_) text += fmt::format("{:08x}", word);
    return text;
  }

 protected:
  static constexpr size_t kBlock = 64;
  explicit BlockHash(const std::array<uint32_t, kWords>& state) : state_(state) {}
  virtual void Compress(const uint8_t* block) = 0;
  static uint32_t LoadBig(const uint8_t* bytes) {
    uint32_t value = 0;
    std::memcpy(&value, bytes, 4);
    return __builtin_bswap32(value);
  }

  std::array<uint32_t, kWords> state_;

 private:
  std::array<uint8_t, kBlock> block_{};
  size_t filled_ = 0;
  uint64_t total_ = 0;
};

}  // namespace nacre
