#pragma once
// The 256 words of IDENTIFY DEVICE and IDENTIFY PACKET DEVICE, and the sums that ATA's data structures end with.

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <span>
#include <string_view>

#include "base/bits.h"

namespace nacre::devices {

/// The last of 512 bytes makes their sum zero.
inline void ByteSum(std::span<uint8_t> data) {
  data[511] = 0;
  data[511] = static_cast<uint8_t>(-std::accumulate(data.begin(), data.end(), 0u));
}

class IdentifyData {
 public:
  /// 512 bytes, cleared.
  explicit IdentifyData(std::span<uint8_t> data) : data_(data) {}
  void Set(unsigned word, uint16_t value) { StoreLe(&data_[2 * word], value); }
  void Set32(unsigned word, uint32_t value) { StoreLe(&data_[2 * word], value); }
  void Set64(unsigned word, uint64_t value) { StoreLe(&data_[2 * word], value); }
  /// The first character of a pair is the word's high byte; padded with spaces.
  void SetText(unsigned word, size_t size, std::string_view text) {
    for (size_t i = 0; i < size; ++i)
      data_[2 * word + (i ^ 1)] = i < text.size() ? static_cast<uint8_t>(text[i]) : uint8_t{' '};
  }
  /// Word 255: signature and checksum.
  void Seal() {
    data_[510] = 0xa5;
    ByteSum(data_);
  }

 private:
  std::span<uint8_t> data_;
};

}  // namespace nacre::devices
