#pragma once
// SHA-1 (FIPS 180-4), for checksums that others have written; not for anything that somebody might forge. Any thread,
// each object one.

#include "base/block_hash.h"

namespace nacre {

class Sha1 final : public BlockHash<5> {
 public:
  Sha1() : BlockHash({0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476, 0xc3d2e1f0}) {}

 private:
  void Compress(const uint8_t* block) override;
};

}  // namespace nacre
