// SSE, AVX, MMX: results, operands, guards, faults.

#include "engine/interp/vector.h"

#include <cmath>
#include <limits>

#include "engine/interp/vector_testing.h"

namespace nacre::engine::interp {
namespace {

using x86::rflags::kCf, x86::rflags::kPf, x86::rflags::kSf, x86::rflags::kZf;

#define REQUIRE_AVX2() \
  if (!__builtin_cpu_supports("avx2")) GTEST_SKIP() << "the host has no AVX2"

TEST_F(VectorTest, LegacySseKeepsUpperHalves) {
  SetYmm<float>(1, {1, 2, 3, 4, 50, 60, 70, 80});
  SetYmm<float>(2, {10, 20, 30, 40, 5, 6, 7, 8});
  EXPECT_EQ(Run({0x0f, 0x58, 0xca}), VectorResult::kOk);  // addps xmm1, xmm2
  EXPECT_EQ(Ymm<float>(1), (std::array<float, 8>{11, 22, 33, 44, 50, 60, 70, 80}));
}

TEST_F(VectorTest, Vex128ClearsUpperHalves) {
  REQUIRE_AVX2();
  SetYmm<float>(1, {9, 9, 9, 9, 50, 60, 70, 80});
  SetYmm<float>(2, {1, 2, 3, 4, 5, 6, 7, 8});
  SetYmm<float>(3, {1, 1, 1, 1, 1, 1, 1, 1});
  EXPECT_EQ(Run({0xc5, 0xe8, 0x58, 0xcb}), VectorResult::kOk);  // vaddps xmm1, xmm2, xmm3
  EXPECT_EQ(Ymm<float>(1), (std::array<float, 8>{2, 3, 4, 5, 0, 0, 0, 0}));
}

TEST_F(VectorTest, MemoryOperandWithSibAndHighRegisters) {
  REQUIRE_AVX2();
  SetYmm<float>(10, {1, 2, 3, 4, 5, 6, 7, 8});
  for (unsigned i = 0; i < 8; ++i) memory.Put(kAt + 4 + 4 * i, 100.0f);
  EXPECT_EQ(Run({0xc4, 0x41, 0x2c, 0x58, 0x09}, kAt + 4), VectorResult::kOk);  // vaddps ymm9, ymm10, [r9]
  EXPECT_EQ(Ymm<float>(9), (std::array<float, 8>{101, 102, 103, 104, 105, 106, 107, 108}));
  memory.Put(kAt, std::array<float, 4>{5, 6, 7, 8});
  EXPECT_EQ(Run({0x44, 0x0f, 0x58, 0x4c, 0x88, 0x10}), VectorResult::kOk);  // addps xmm9, [rax+rcx*4+16]
  EXPECT_EQ(Ymm<float>(9), (std::array<float, 8>{106, 108, 110, 112, 105, 106, 107, 108}));
}

TEST_F(VectorTest, AlignmentFaultsAreOfTheLinearAddress) {
  EXPECT_EQ(Run({0x44, 0x0f, 0x58, 0x4c, 0x88, 0x10}, kAt + 8), VectorResult::kGeneralProtection);  // addps
  EXPECT_EQ(Run({0x44, 0x0f, 0x10, 0x4c, 0x88, 0x10}, kAt + 8), VectorResult::kOk);                 // movups
  EXPECT_EQ(Run({0x0f, 0x29, 0x18}, kAt + 1), VectorResult::kGeneralProtection);                    // movaps
  EXPECT_EQ(Run({0x66, 0x0f, 0x3a, 0x62, 0x08, 0x40}, kAt + 1), VectorResult::kOk);                 // pcmpistrm
  EXPECT_EQ(Run({0x66, 0x0f, 0x38, 0xdc, 0x08}, kAt + 4), VectorResult::kGeneralProtection);        // aesenc
  // A flat DS has no base in 64-bit mode, FS has one, and outside 64-bit mode DS has.
  state.segment[x86::kDs].base = 8;
  state.segment[x86::kFs].base = 8;
  EXPECT_EQ(Run({0x0f, 0x29, 0x18}), VectorResult::kOk);
  EXPECT_EQ(Run({0x64, 0x0f, 0x29, 0x18}), VectorResult::kGeneralProtection);
  Enter32();
  EXPECT_EQ(Run({0x0f, 0x29, 0x18}), VectorResult::kGeneralProtection);
  EXPECT_EQ(Run({0x0f, 0x29, 0x18}, kAt + 8), VectorResult::kOk);
}

TEST_F(VectorTest, VexAlignment) {
  REQUIRE_AVX2();
  EXPECT_EQ(Run({0xc5, 0xfd, 0x6f, 0x08}, kAt + 16), VectorResult::kGeneralProtection);  // vmovdqa ymm
  EXPECT_EQ(Run({0xc5, 0xf9, 0x6f, 0x08}, kAt + 16), VectorResult::kOk);                 // vmovdqa xmm
  EXPECT_EQ(Run({0xc5, 0xe8, 0x58, 0x08}, kAt + 4), VectorResult::kOk);                  // vaddps xmm1, xmm2, [rax]
}

TEST_F(VectorTest, NarrowOperandsTouchNoMore) {
  memory.Put(kAt, 3.0f);
  memory.bad = {kAt + 4};
  SetYmm<uint32_t>(0, {~0u, ~0u, ~0u, ~0u});
  EXPECT_EQ(Run({0xf3, 0x0f, 0x10, 0x00}), VectorResult::kOk);  // movss xmm0, [rax]
  EXPECT_EQ(Ymm<float>(0)[0], 3.0f);
  EXPECT_EQ(Ymm<uint32_t>(0)[1], 0u);
  EXPECT_EQ(memory.bytes_read, 4u);
  EXPECT_EQ(Run({0xf2, 0x0f, 0x10, 0x00}), VectorResult::kMemoryFault);  // movsd
  EXPECT_EQ(Ymm<float>(0)[0], 3.0f);
  EXPECT_EQ(Run({0x66, 0x0f, 0x3a, 0x15, 0x20, 0x07}, kAt + 3), VectorResult::kMemoryFault);  // pextrw [rax], xmm4
  EXPECT_EQ(Run({0x66, 0x0f, 0x3a, 0x15, 0x20, 0x07}, kAt + 2), VectorResult::kOk);
}

TEST_F(VectorTest, GeneralRegisters) {
  SetYmm<double>(5, {-7.9});
  EXPECT_EQ(Run({0xf2, 0x4c, 0x0f, 0x2c, 0xd5}), VectorResult::kOk);  // cvttsd2si r10, xmm5
  EXPECT_EQ(static_cast<int64_t>(state.gpr[10]), -7);
  EXPECT_EQ(Run({0xf2, 0x44, 0x0f, 0x2c, 0xd5}), VectorResult::kOk);  // cvttsd2si r10d, xmm5
  EXPECT_EQ(state.gpr[10], 0xfffffff9u);
  state.gpr[11] = static_cast<uint64_t>(-123456789012345);
  EXPECT_EQ(Run({0xf2, 0x49, 0x0f, 0x2a, 0xeb}), VectorResult::kOk);  // cvtsi2sd xmm5, r11
  EXPECT_EQ(Ymm<double>(5)[0], -123456789012345.0);
  SetYmm<uint8_t>(4, {1, 2, 3, 4, 5, 0x86, 7, 8});
  state.gpr[13] = ~uint64_t{0};
  EXPECT_EQ(Run({0x66, 0x41, 0x0f, 0x3a, 0x14, 0xe5, 0x05}), VectorResult::kOk);  // pextrb r13d, xmm4, 5
  EXPECT_EQ(state.gpr[13], 0x86u);
  state.gpr[x86::kRsp] = 0x1122;
  EXPECT_EQ(Run({0x66, 0x0f, 0x3a, 0x20, 0xe4, 0x03}), VectorResult::kOk);  // pinsrb xmm4, esp, 3
  EXPECT_EQ(Ymm<uint8_t>(4)[3], 0x22);
  EXPECT_EQ(state.gpr[x86::kRsp], 0x1122u);
  EXPECT_EQ(Run({0x66, 0x44, 0x0f, 0xd7, 0xc4}), VectorResult::kOk);  // pmovmskb r8d, xmm4
  EXPECT_EQ(state.gpr[8], 0x20u);
  EXPECT_EQ(state.gpr[x86::kRax], kAt);
  SetYmm<uint32_t>(1, {0x80000000, 0, 0x80000000, 0});
  EXPECT_EQ(Run({0x0f, 0x50, 0xe1}), VectorResult::kOk);  // movmskps esp, xmm1
  EXPECT_EQ(state.gpr[x86::kRsp], 5u);
}

TEST_F(VectorTest, VexWidthIsIgnoredOutside64BitCode) {
  REQUIRE_AVX2();
  Enter32();
  state.gpr[x86::kRax] = 0x80000000;
  SetYmm<uint64_t>(1, {~uint64_t{0}, ~uint64_t{0}});
  EXPECT_EQ(Run({0xc4, 0xe1, 0xf9, 0x6e, 0xc8}), VectorResult::kOk);  // vmovd xmm1, eax with W1
  EXPECT_EQ(Ymm<uint64_t>(1), (std::array<uint64_t, 4>{0x80000000, 0, 0, 0}));
}

TEST_F(VectorTest, Flags) {
  SetYmm<double>(1, {1.0});
  SetYmm<double>(2, {2.0});
  state.rflags = 0x8d7;
  EXPECT_EQ(Run({0x66, 0x0f, 0x2e, 0xca}), VectorResult::kOk);  // ucomisd xmm1, xmm2
  EXPECT_EQ(state.rflags, (x86::rflags::kFixed1 | kCf));
  SetYmm<double>(2, {std::numeric_limits<double>::quiet_NaN()});
  EXPECT_EQ(Run({0x66, 0x0f, 0x2e, 0xca}), VectorResult::kOk);
  EXPECT_EQ(state.rflags & x86::rflags::kArithmetic, kCf | kPf | kZf);
  SetYmm<uint64_t>(1, {1, 0});
  SetYmm<uint64_t>(2, {2, 0});
  EXPECT_EQ(Run({0x66, 0x0f, 0x38, 0x17, 0xca}), VectorResult::kOk);  // ptest
  EXPECT_EQ(state.rflags & x86::rflags::kArithmetic, kZf);
}

TEST_F(VectorTest, StringCompareUsesImplicitRegisters) {
  std::memcpy(state.xsave.xmm(1), "lo\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 16);
  std::memcpy(state.xsave.xmm(2), "hello, hello, he", 16);
  state.gpr[x86::kRax] = 2;
  state.gpr[x86::kRdx] = 16;
  state.gpr[x86::kRcx] = ~uint64_t{0};
  EXPECT_EQ(Run({0x66, 0x0f, 0x3a, 0x61, 0xca, 0x0c}), VectorResult::kOk);  // pcmpestri xmm1, xmm2, 0x0c
  EXPECT_EQ(state.gpr[x86::kRcx], 3u);
  EXPECT_EQ(state.gpr[x86::kRax], 2u);
  EXPECT_EQ(state.rflags & (kCf | kSf | kZf), kCf | kSf);
}

TEST_F(VectorTest, ImplicitXmm0) {
  if (!__builtin_cpu_supports("sse4.1")) GTEST_SKIP() << "the host has no SSE4.1";
  SetYmm<uint32_t>(0, {0x80000000, 0, 0x80000000, 0});
  SetYmm<uint32_t>(1, {1, 2, 3, 4});
  SetYmm<uint32_t>(2, {11, 12, 13, 14});
  EXPECT_EQ(Run({0x66, 0x0f, 0x38, 0x14, 0xca}), VectorResult::kOk);  // blendvps xmm1, xmm2
  EXPECT_EQ(Ymm<uint32_t>(1), (std::array<uint32_t, 8>{11, 2, 13, 4}));
}

TEST_F(VectorTest, GuardsOfSse) {
  const auto add = [this] { return Run({0x0f, 0x58, 0xca}); };
  state.cr0 |= x86::cr0::kTs;
  EXPECT_EQ(add(), VectorResult::kDeviceNotAvailable);
  state.cr0 |= x86::cr0::kEm;
  EXPECT_EQ(add(), VectorResult::kInvalidOpcode);
  state.cr0 &= ~(x86::cr0::kTs | x86::cr0::kEm);
  state.cr4 &= ~x86::cr4::kOsFxsr;
  EXPECT_EQ(add(), VectorResult::kInvalidOpcode);
  EXPECT_EQ(Run({0x0f, 0xfc, 0xca}), VectorResult::kOk);  // paddb mm1, mm2 needs no OSFXSR
}

TEST_F(VectorTest, GuardsOfVex) {
  REQUIRE_AVX2();
  const auto add = [this] { return Run({0xc5, 0xe8, 0x58, 0xcb}); };
  state.cr0 |= x86::cr0::kEm;  // not asked
  EXPECT_EQ(add(), VectorResult::kOk);
  state.xcr0 = 3;
  EXPECT_EQ(add(), VectorResult::kInvalidOpcode);
  state.xcr0 = 7;
  state.cr4 &= ~x86::cr4::kOsXsave;
  EXPECT_EQ(add(), VectorResult::kInvalidOpcode);
  state.cr4 |= x86::cr4::kOsXsave;
  state.cr0 |= x86::cr0::kTs;
  EXPECT_EQ(add(), VectorResult::kDeviceNotAvailable);
  state.cr0 &= ~x86::cr0::kPe;
  EXPECT_EQ(add(), VectorResult::kInvalidOpcode);
}

TEST_F(VectorTest, UnmaskedSimdExceptionLeavesTheDestination) {
  SetYmm<float>(0, {1, 2, 3, 4});
  SetYmm<float>(1, {0, 1, 1, 1});
  EXPECT_EQ(Run({0x0f, 0x5e, 0xc1}), VectorResult::kOk);  // divps, masked
  EXPECT_EQ(state.xsave.mxcsr(), 0x1f84u);
  EXPECT_TRUE(std::isinf(Ymm<float>(0)[0]));
  SetYmm<float>(0, {1, 2, 3, 4});
  state.xsave.mxcsr() = 0x1d80;
  EXPECT_EQ(Run({0x0f, 0x5e, 0xc1}), VectorResult::kSimdError);
  EXPECT_EQ(state.xsave.mxcsr(), 0x1d84u);
  EXPECT_EQ(Ymm<float>(0), (std::array<float, 8>{1, 2, 3, 4}));
  state.cr4 &= ~x86::cr4::kOsXmmExcpt;
  EXPECT_EQ(Run({0x0f, 0x5e, 0xc1}), VectorResult::kInvalidOpcode);
  // The host's own control register is back.
  EXPECT_EQ(__builtin_ia32_stmxcsr() & 0x1f80, 0x1f80u);
  // Flags alone raise nothing.
  SetYmm<float>(1, {1, 1, 1, 1});
  EXPECT_EQ(Run({0x0f, 0x5e, 0xc1}), VectorResult::kOk);
}

TEST_F(VectorTest, SimdFaultComesBeforeTheStore) {
  REQUIRE_AVX2();
  if (!__builtin_cpu_supports("f16c")) GTEST_SKIP() << "the host has no F16C";
  SetYmm<float>(1, {1e30f, 0, 0, 0});
  state.xsave.mxcsr() = 0x1b80;  // overflow unmasked
  memory.Put<uint64_t>(kAt, 0x1234);
  EXPECT_EQ(Run({0xc4, 0xe3, 0x79, 0x1d, 0x08, 0x04}), VectorResult::kSimdError);  // vcvtps2ph [rax], xmm1, 4
  EXPECT_EQ(memory.Get<uint64_t>(kAt), 0x1234u);
}

TEST_F(VectorTest, RoundingAndFlushFollowTheGuest) {
  SetYmm<float>(0, {1, 1, 1, 1});
  SetYmm<float>(1, {3, 3, 3, 3});
  state.xsave.mxcsr() = 0x5f80;  // up
  EXPECT_EQ(Run({0x0f, 0x5e, 0xc1}), VectorResult::kOk);
  EXPECT_EQ(Ymm<uint32_t>(0)[0], 0x3eaaaaabu);
  SetYmm<float>(0, {1, 1, 1, 1});
  state.xsave.mxcsr() = 0x3f80;  // down
  EXPECT_EQ(Run({0x0f, 0x5e, 0xc1}), VectorResult::kOk);
  EXPECT_EQ(Ymm<uint32_t>(0)[0], 0x3eaaaaaau);
}

TEST_F(VectorTest, MaskedMovesTouchSelectedElementsOnly) {
  REQUIRE_AVX2();
  for (uint32_t i = 0; i < 8; ++i) memory.Put(kAt + 4 * i, 100 + i);
  memory.bad = {kAt + 4, kAt + 31};
  SetYmm<uint32_t>(2, {~0u, 0, 0x80000000, 0x7fffffff, 0, ~0u, 0, 0});
  SetYmm<uint32_t>(1, {9, 9, 9, 9, 9, 9, 9, 9});
  EXPECT_EQ(Run({0xc4, 0xe2, 0x6d, 0x2c, 0x08}), VectorResult::kOk);  // vmaskmovps ymm1, ymm2, [rax]
  EXPECT_EQ(Ymm<uint32_t>(1), (std::array<uint32_t, 8>{100, 0, 102, 0, 0, 105, 0, 0}));
  SetYmm<uint32_t>(2, {~0u, ~0u});
  EXPECT_EQ(Run({0xc4, 0xe2, 0x6d, 0x2c, 0x08}), VectorResult::kMemoryFault);
  EXPECT_EQ(Ymm<uint32_t>(1)[0], 100u);
  // vpmaskmovq [rax], xmm2, xmm3
  SetYmm<uint64_t>(2, {0, Bit(63)});
  SetYmm<uint64_t>(3, {1, 2});
  EXPECT_EQ(Run({0xc4, 0xe2, 0xe9, 0x8e, 0x18}), VectorResult::kOk);
  EXPECT_EQ(memory.Get<uint64_t>(kAt + 8), 2u);
  EXPECT_EQ(memory.Get<uint32_t>(kAt), 100u);
  SetYmm<uint64_t>(2, {Bit(63), Bit(63)});
  EXPECT_EQ(Run({0xc4, 0xe2, 0xe9, 0x8e, 0x18}), VectorResult::kMemoryFault);
  EXPECT_EQ(memory.Get<uint64_t>(kAt + 8), 2u);
}

TEST_F(VectorTest, ByteMaskedStores) {
  state.gpr[x86::kRdi] = kAt;
  for (unsigned i = 0; i < 16; ++i) state.xsave.xmm(1)[i] = static_cast<uint8_t>(i + 1);
  state.xsave.xmm(2)[3] = 0x80;
  state.xsave.xmm(2)[4] = 0x7f;
  state.xsave.xmm(2)[15] = 0xff;
  memory.bad = {kAt, kAt + 4};
  EXPECT_EQ(Run({0x66, 0x0f, 0xf7, 0xca}, 0), VectorResult::kOk);  // maskmovdqu xmm1, xmm2
  EXPECT_EQ(memory.bytes_written, 2u);
  EXPECT_EQ(memory.Get<uint8_t>(kAt + 3), 4);
  EXPECT_EQ(memory.Get<uint8_t>(kAt + 15), 16);
  state.xsave.xmm(2)[0] = 0x80;
  EXPECT_EQ(Run({0x66, 0x0f, 0xf7, 0xca}, 0), VectorResult::kMemoryFault);
  // Through MMX registers, with another TOP.
  Push(1.0);
  memory.Put<uint64_t>(0x900, 0x8877665544332211);
  memory.Put<uint64_t>(0x908, 0x0000008000000000);
  EXPECT_EQ(Run({0x0f, 0x6f, 0x08}, 0x900), VectorResult::kOk);  // movq mm1, [rax]
  EXPECT_EQ(Run({0x0f, 0x6f, 0x10}, 0x908), VectorResult::kOk);  // movq mm2, [rax]
  EXPECT_EQ(Run({0x0f, 0xf7, 0xca}, 0), VectorResult::kMemoryFault);
  memory.bad.clear();
  EXPECT_EQ(Run({0x0f, 0xf7, 0xca}, 0), VectorResult::kOk);
  EXPECT_EQ(memory.Get<uint8_t>(kAt + 4), 0x55);
}

TEST_F(VectorTest, GatherStopsAtAFaultAndGoesOn) {
  REQUIRE_AVX2();
  for (uint32_t i = 0; i < 64; ++i) memory.Put(kAt + 4 * i, i);
  SetYmm<int32_t>(2, {0, 8, 16, -1, 1, 2, 3, 4});
  SetYmm<uint32_t>(3, {~0u, ~0u, 0, ~0u, ~0u, ~0u, ~0u, ~0u});
  SetYmm<uint32_t>(1, {7, 7, 7, 7, 7, 7, 7, 7});
  memory.Put<uint32_t>(kAt - 4, 999);
  memory.bad = {kAt + 4};
  const std::initializer_list<uint8_t> gather = {0xc4, 0xe2, 0x65,
                                                 0x90, 0x0c, 0x90};  // vpgatherdd ymm1, [rax+ymm2*4], ymm3
  EXPECT_EQ(Run(gather), VectorResult::kMemoryFault);
  EXPECT_EQ(Ymm<uint32_t>(1), (std::array<uint32_t, 8>{0, 8, 7, 999, 7, 7, 7, 7}));
  EXPECT_EQ(Ymm<uint32_t>(3), (std::array<uint32_t, 8>{0, 0, 0, 0, ~0u, ~0u, ~0u, ~0u}));
  memory.bad.clear();
  EXPECT_EQ(Run(gather), VectorResult::kOk);
  EXPECT_EQ(Ymm<uint32_t>(1), (std::array<uint32_t, 8>{0, 8, 7, 999, 1, 2, 3, 4}));
  EXPECT_EQ(Ymm<uint32_t>(3), (std::array<uint32_t, 8>{}));
}

TEST_F(VectorTest, GatherWithQwordIndicesFillsHalf) {
  REQUIRE_AVX2();
  for (uint32_t i = 0; i < 64; ++i) memory.Put(kAt + 4 * i, i);
  SetYmm<int64_t>(2, {4, 3, 2, 1});
  SetYmm<uint32_t>(3, {~0u, ~0u, ~0u, ~0u, 5, 5, 5, 5});
  SetYmm<uint32_t>(1, {7, 7, 7, 7, 7, 7, 7, 7});
  EXPECT_EQ(Run({0xc4, 0xe2, 0x65, 0x93, 0x0c, 0x90}), VectorResult::kOk);  // vgatherqps xmm1, [rax+ymm2*4], xmm3
  EXPECT_EQ(Ymm<uint32_t>(1), (std::array<uint32_t, 8>{4, 3, 2, 1, 0, 0, 0, 0}));
  EXPECT_EQ(Ymm<uint32_t>(3), (std::array<uint32_t, 8>{}));
}

TEST_F(VectorTest, ZeroUpperReachesEightRegistersOutside64BitCode) {
  REQUIRE_AVX2();
  for (unsigned i = 0; i < 16; ++i) SetYmm<uint64_t>(i, {1, 2, 3, 4});
  EXPECT_EQ(Run({0xc5, 0xf8, 0x77}), VectorResult::kOk);  // vzeroupper
  EXPECT_EQ(Ymm<uint64_t>(15), (std::array<uint64_t, 4>{1, 2, 0, 0}));
  Enter32();
  EXPECT_EQ(Run({0xc5, 0xfc, 0x77}), VectorResult::kOk);  // vzeroall
  EXPECT_EQ(Ymm<uint64_t>(7), (std::array<uint64_t, 4>{}));
  EXPECT_EQ(Ymm<uint64_t>(8), (std::array<uint64_t, 4>{1, 2, 0, 0}));
}

TEST_F(VectorTest, ManyDistinctInstructionsRecycleTheThunks) {
  SetYmm<uint16_t>(2, {1, 2, 3, 4, 5, 6, 7, 8});
  // pshuflw/pshufhw/pshufd xmmN, xmm2, imm8: more than the snippets that fit.
  for (unsigned round = 0; round < 3; ++round)
    for (unsigned imm = 0; imm < 256; ++imm)
      for (unsigned reg = 0; reg < 16; ++reg) {
        if (reg == 2) continue;
        const auto rex = static_cast<uint8_t>(0x40 | (reg >> 3) << 2);
        const auto modrm = static_cast<uint8_t>(0xc0 | (reg & 7) << 3 | 2);
        const uint8_t prefix = round == 0 ? 0xf2 : round == 1 ? 0xf3 : 0x66;
        ASSERT_EQ(Run({prefix, rex, 0x0f, 0x70, modrm, static_cast<uint8_t>(imm)}), VectorResult::kOk);
        const uint16_t expected = round == 0   ? static_cast<uint16_t>((imm & 3) + 1)
                                  : round == 1 ? static_cast<uint16_t>(1)
                                               : static_cast<uint16_t>((imm & 3) * 2 + 1);
        ASSERT_EQ(Ymm<uint16_t>(reg)[0], expected);
      }
}

TEST_F(VectorTest, UnknownEncodingsAreInvalid) {
  EXPECT_EQ(Run({0x62, 0xf1, 0x6c, 0x48, 0x58, 0xcb}), VectorResult::kInvalidOpcode);  // vaddps zmm1, zmm2, zmm3
  EXPECT_EQ(Run({0xc5, 0xf8, 0x90, 0xca}), VectorResult::kInvalidOpcode);              // kmovw k1, k2
  EXPECT_EQ(Run({0x48, 0x0f, 0xc7, 0x20}), VectorResult::kInvalidOpcode);              // xsavec64 [rax]
}

}  // namespace
}  // namespace nacre::engine::interp
