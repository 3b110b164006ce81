#include "base/bits.h"

#include <gtest/gtest.h>

namespace nacre {
namespace {

static_assert(Bit(63) == 0x8000000000000000);
static_assert(TestBit(Bit(5), 5) && !TestBit(Bit(5), 4));

TEST(Bits, Fields) {
  EXPECT_EQ(Bits(0x12345678, 8, 8), 0x56u);
  EXPECT_EQ(Bits(~uint64_t{0}, 0, 64), ~uint64_t{0});
  EXPECT_EQ(Bits(~uint64_t{0}, 63, 1), 1u);
  EXPECT_EQ(Bits(~uint64_t{0}, 60, 64), 0xfu);
  EXPECT_EQ(Bits(5, 1, 0), 0u);
}

TEST(Bits, Alignment) {
  EXPECT_EQ(AlignDown(4097, 4096), 4096u);
  EXPECT_EQ(AlignUp(4097, 4096), 8192u);
  EXPECT_EQ(AlignUp(4096, 4096), 4096u);
  EXPECT_EQ(AlignUp(0, 4096), 0u);
}

TEST(Bits, MaskAndSignExtend) {
  EXPECT_EQ(MaskToSize(0x1122334455667788, 1), 0x88u);
  EXPECT_EQ(MaskToSize(0x1122334455667788, 2), 0x7788u);
  EXPECT_EQ(MaskToSize(0x1122334455667788, 4), 0x55667788u);
  EXPECT_EQ(MaskToSize(0x1122334455667788, 8), 0x1122334455667788u);
  EXPECT_EQ(SignExtend(0x80, 8), 0xffffffffffffff80);
  EXPECT_EQ(SignExtend(0x7f, 8), 0x7fu);
  EXPECT_EQ(SignExtend(0xff7f, 8), 0x7fu);
  EXPECT_EQ(SignExtend(0x0000800000000000, 48), 0xffff800000000000);
  EXPECT_EQ(SignExtend(~uint64_t{0}, 64), ~uint64_t{0});
}

TEST(Bits, LittleEndianUnaligned) {
  uint8_t bytes[9] = {};
  StoreLe(bytes + 1, uint32_t{0x11223344});
  EXPECT_EQ(bytes[1], 0x44);
  EXPECT_EQ(bytes[4], 0x11);
  EXPECT_EQ(LoadLe<uint16_t>(bytes + 2), 0x2233);
  EXPECT_EQ(LoadLe<int8_t>(bytes + 1), 0x44);
}

}  // namespace
}  // namespace nacre
