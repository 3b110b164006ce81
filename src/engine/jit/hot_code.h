#pragma once
// Which code is worth a translation for speed: physical addresses of blocks, as a set of hashes. It may take cold code
// for hot, which costs time only, and forgets everything when it fills. Used with guest vectors live; one thread.

#include <cstdint>
#include <vector>

namespace nacre::engine::jit {

class HotCode {
 public:
  HotCode() : bits_(kBits / 64) {}

  bool Has(uint64_t phys) const { return (bits_[Index(phys) / 64] >> Index(phys) % 64 & 1) != 0; }
  void Add(uint64_t phys) {
    if (++count_ > kBits / 8) {
      for (uint64_t& word : bits_) word = 0;
      count_ = 1;
    }
    bits_[Index(phys) / 64] |= uint64_t{1} << Index(phys) % 64;
  }

 private:
  static constexpr uint64_t kBits = 1 << 19;  // 64 KiB
  static uint64_t Index(uint64_t phys) { return (phys * 0x9e3779b97f4a7c15) >> 45; }

  std::vector<uint64_t> bits_;
  uint64_t count_ = 0;
};

}  // namespace nacre::engine::jit
