#pragma once
// SHA-256 (FIPS 180-4), for what must be known by its content. Any thread, each object one.

#include "base/block_hash.h"

namespace nacre {

class Sha256 final : public BlockHash<8> {
 public:
  Sha256()
      : BlockHash({0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19}) {}

 private:
  void Compress(const uint8_t* block) override;
};

}  // namespace nacre
