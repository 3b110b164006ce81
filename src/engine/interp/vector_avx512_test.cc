// EVEX and opmask instructions: writemasks and faults, gathers, scatters, registers, guards, the XSAVE area.

#include "engine/interp/vector_testing.h"

namespace nacre::engine::interp {
namespace {

class Avx512Test : public VectorTest {
 protected:
  void SetUp() override {
    auto v4 = x86::CpuModel::Create("x86-64-v4", {.tsc_khz = 1000000});
    if (!v4) GTEST_SKIP() << v4.error().message;
    state.xcr0 = 0xe7;
  }
  template <typename T>
  std::array<T, 64 / sizeof(T)> Zmm(unsigned i) {
    std::array<T, 64 / sizeof(T)> value;
    auto* to = reinterpret_cast<uint8_t*>(value.data());
    if (i >= 16) {
      std::memcpy(to, state.xsave.zmm(i), 64);
    } else {
      std::memcpy(to, state.xsave.xmm(i), 16);
      std::memcpy(to + 16, state.xsave.ymm_high(i), 16);
      std::memcpy(to + 32, state.xsave.zmm_high(i), 32);
    }
    return value;
  }
  template <typename T>
  void SetZmm(unsigned i, const std::array<T, 64 / sizeof(T)>& value) {
    const auto* from = reinterpret_cast<const uint8_t*>(value.data());
    if (i >= 16) {
      std::memcpy(state.xsave.zmm(i), from, 64);
    } else {
      std::memcpy(state.xsave.xmm(i), from, 16);
      std::memcpy(state.xsave.ymm_high(i), from + 16, 16);
      std::memcpy(state.xsave.zmm_high(i), from + 32, 32);
    }
  }
  static std::array<uint32_t, 16> Counting(uint32_t first) {
    std::array<uint32_t, 16> value;
    for (uint32_t i = 0; i < 16; ++i) value[i] = first + i;
    return value;
  }
  void SetMask(unsigned i, uint64_t value) { StoreLe(state.xsave.opmask(i), value); }
  uint64_t Mask(unsigned i) { return LoadLe<uint64_t>(state.xsave.opmask(i)); }
};

TEST_F(Avx512Test, MaskedLoadTouchesSelectedElementsOnly) {
  memory.Put(kAt, Counting(100));
  SetZmm(1, Counting(0));
  SetMask(1, 0xffff0000000f0005);  // bits from 16 on do not count
  memory.bad = {kAt + 4, kAt + 12, kAt + 63};
  EXPECT_EQ(Run({0x62, 0xf1, 0x7e, 0x49, 0x6f, 0x08}), VectorResult::kOk);  // vmovdqu32 zmm1{k1}, [rax]
  EXPECT_EQ(memory.bytes_read, 8u);
  auto expected = Counting(0);
  expected[0] = 100, expected[2] = 102;
  EXPECT_EQ(Zmm<uint32_t>(1), expected);
  SetMask(1, 0x8001);
  EXPECT_EQ(Run({0x62, 0xf1, 0x7e, 0x49, 0x6f, 0x08}), VectorResult::kMemoryFault);
  EXPECT_EQ(Zmm<uint32_t>(1), expected);
  SetMask(1, 4);
  EXPECT_EQ(Run({0x62, 0xf1, 0x7e, 0xc9, 0x6f, 0x08}), VectorResult::kOk);  // {z}
  EXPECT_EQ(Zmm<uint32_t>(1), (std::array<uint32_t, 16>{0, 0, 102}));
}

TEST_F(Avx512Test, MaskedStoreIsAllOrNothing) {
  SetZmm(1, Counting(1));
  SetMask(1, 0x8001);
  memory.bad = {kAt + 4};
  EXPECT_EQ(Run({0x62, 0xf1, 0x7e, 0x49, 0x7f, 0x08}), VectorResult::kOk);  // vmovdqu32 [rax]{k1}, zmm1
  EXPECT_EQ(memory.bytes_written, 8u);
  EXPECT_EQ(memory.Get<uint32_t>(kAt), 1u);
  EXPECT_EQ(memory.Get<uint32_t>(kAt + 60), 16u);
  EXPECT_EQ(memory.Get<uint32_t>(kAt + 8), 0u);
  SetMask(1, 0x8003);
  EXPECT_EQ(Run({0x62, 0xf1, 0x7e, 0x49, 0x7f, 0x08}), VectorResult::kMemoryFault);
  EXPECT_EQ(memory.bytes_written, 8u);
}

TEST_F(Avx512Test, CompressedElementsStandSideBySide) {
  SetZmm(1, Counting(1));
  SetMask(1, 0x8421);
  memory.bad = {kAt + 16};
  EXPECT_EQ(Run({0x62, 0xf2, 0x7d, 0x49, 0x8b, 0x08}), VectorResult::kOk);  // vpcompressd [rax]{k1}, zmm1
  EXPECT_EQ(memory.bytes_written, 16u);
  EXPECT_EQ((memory.Get<std::array<uint32_t, 4>>(kAt)), (std::array<uint32_t, 4>{1, 6, 11, 16}));
  SetZmm(1, std::array<uint32_t, 16>{});
  EXPECT_EQ(Run({0x62, 0xf2, 0x7d, 0x49, 0x89, 0x08}), VectorResult::kOk);  // vpexpandd zmm1{k1}, [rax]
  EXPECT_EQ(memory.bytes_read, 16u);
  EXPECT_EQ(Zmm<uint32_t>(1)[5], 6u);
  EXPECT_EQ(Zmm<uint32_t>(1)[15], 16u);
  EXPECT_EQ(Zmm<uint32_t>(1)[1], 0u);
  SetMask(1, 0x8423);
  EXPECT_EQ(Run({0x62, 0xf2, 0x7d, 0x49, 0x8b, 0x08}), VectorResult::kMemoryFault);
}

TEST_F(Avx512Test, BroadcastAndScalarsWithNothingSelectedReadNothing) {
  memory.bad = {kAt, kAt + 63};
  SetMask(1, 0x10000);
  EXPECT_EQ(Run({0x62, 0xf1, 0x6c, 0x59, 0x58, 0x08}), VectorResult::kOk);  // vaddps zmm1{k1}, zmm2, [rax]{1to16}
  EXPECT_EQ(Run({0x62, 0xf1, 0x6e, 0x09, 0x58, 0x08}), VectorResult::kOk);  // vaddss xmm1{k1}, xmm2, [rax]
  EXPECT_EQ(memory.bytes_read, 0u);
  SetMask(1, 0x8000);
  EXPECT_EQ(Run({0x62, 0xf1, 0x6c, 0x59, 0x58, 0x08}), VectorResult::kMemoryFault);
  EXPECT_EQ(Run({0x62, 0xf1, 0x6e, 0x09, 0x58, 0x08}), VectorResult::kOk);
  // Without fault suppression (type E4NF) the mask does not help.
  SetMask(1, 0);
  EXPECT_EQ(Run({0x62, 0xf2, 0x6d, 0x49, 0x00, 0x08}), VectorResult::kMemoryFault);  // vpshufb zmm1{k1}, zmm2, [rax]
  memory.bad = {};
  EXPECT_EQ(Run({0x62, 0xf1, 0x7d, 0x49, 0x6f, 0x08}, kAt + 4), VectorResult::kGeneralProtection);  // vmovdqa32
}

TEST_F(Avx512Test, GatherStopsAtAFaultAndGoesOn) {
  std::array<int32_t, 16> index = {};
  for (int i = 0; i < 16; ++i) index[static_cast<unsigned>(i)] = 15 - i;
  SetZmm(2, index);
  memory.Put(kAt, Counting(100));
  SetZmm(1, Counting(0));
  SetMask(1, 0xfff0);
  memory.bad = {kAt + 4 * 6};  // element 9
  // vpgatherdd zmm1{k1}, [rax+zmm2*4]
  EXPECT_EQ(Run({0x62, 0xf2, 0x7d, 0x49, 0x90, 0x0c, 0x90}), VectorResult::kMemoryFault);
  EXPECT_EQ(Mask(1), 0xfe00u);
  EXPECT_EQ(Zmm<uint32_t>(1)[8], 107u);
  EXPECT_EQ(Zmm<uint32_t>(1)[9], 9u);
  memory.bad = {};
  EXPECT_EQ(Run({0x62, 0xf2, 0x7d, 0x49, 0x90, 0x0c, 0x90}), VectorResult::kOk);
  EXPECT_EQ(Mask(1), 0u);
  EXPECT_EQ(Zmm<uint32_t>(1)[15], 100u);
  EXPECT_EQ(Zmm<uint32_t>(1)[3], 3u);
}

TEST_F(Avx512Test, ScatterStopsAtAFaultAndGoesOn) {
  std::array<int32_t, 16> index = {};
  for (int i = 0; i < 16; ++i) index[static_cast<unsigned>(i)] = i / 2;  // pairs: the later one wins
  SetZmm(2, index);
  SetZmm(1, Counting(1));
  SetMask(1, 0xffff);
  memory.bad = {kAt + 4 * 5};
  // vpscatterdd [rax+zmm2*4]{k1}, zmm1
  EXPECT_EQ(Run({0x62, 0xf2, 0x7d, 0x49, 0xa0, 0x0c, 0x90}), VectorResult::kMemoryFault);
  EXPECT_EQ(Mask(1), 0xfc00u);
  EXPECT_EQ(memory.Get<uint32_t>(kAt), 2u);
  EXPECT_EQ(memory.Get<uint32_t>(kAt + 16), 10u);
  memory.bad = {};
  EXPECT_EQ(Run({0x62, 0xf2, 0x7d, 0x49, 0xa0, 0x0c, 0x90}), VectorResult::kOk);
  EXPECT_EQ(Mask(1), 0u);
  EXPECT_EQ(memory.Get<uint32_t>(kAt + 28), 16u);
}

TEST_F(Avx512Test, RegistersOfAllKinds) {
  std::array<float, 16> ones, twos;
  ones.fill(1), twos.fill(2);
  SetZmm(21, ones);
  SetZmm(22, twos);
  EXPECT_EQ(Run({0x62, 0xa1, 0x54, 0x40, 0x58, 0xe6}), VectorResult::kOk);  // vaddps zmm20, zmm21, zmm22
  EXPECT_EQ(Zmm<float>(20)[15], 3.0f);
  // VEX clears all above its own length, legacy SSE nothing.
  SetZmm(1, twos);
  EXPECT_EQ(Run({0x0f, 0x58, 0xc9}), VectorResult::kOk);  // addps xmm1, xmm1
  EXPECT_EQ(Zmm<float>(1)[4], 2.0f);
  EXPECT_EQ(Zmm<float>(1)[15], 2.0f);
  EXPECT_EQ(Run({0xc5, 0xec, 0x58, 0xcb}), VectorResult::kOk);  // vaddps ymm1, ymm2, ymm3
  EXPECT_EQ(Zmm<float>(1)[8], 0.0f);
  SetZmm(3, twos);
  EXPECT_EQ(Run({0xc5, 0xf8, 0x77}), VectorResult::kOk);  // vzeroupper
  EXPECT_EQ(Zmm<float>(3)[3], 2.0f);
  EXPECT_EQ(Zmm<float>(3)[8], 0.0f);
  EXPECT_EQ(Zmm<float>(20)[15], 3.0f);
  state.gpr[x86::kRbx] = 0x8877665544332211;
  EXPECT_EQ(Run({0xc4, 0xe1, 0xfb, 0x92, 0xdb}), VectorResult::kOk);  // kmovq k3, rbx
  EXPECT_EQ(Mask(3), 0x8877665544332211u);
  state.gpr[x86::kRbx] = 0;
  EXPECT_EQ(Run({0xc4, 0xe1, 0xfb, 0x93, 0xdb}), VectorResult::kOk);  // kmovq rbx, k3
  EXPECT_EQ(state.gpr[x86::kRbx], 0x8877665544332211u);
}

TEST_F(Avx512Test, RoundingOfTheInstructionBeatsMxcsr) {
  std::array<float, 16> large, small;
  large.fill(16777216.0f), small.fill(1.5f);
  SetZmm(2, large);
  SetZmm(3, small);
  state.xsave.mxcsr() = 0x1f80 & ~(1u << 12);  // precision exceptions are unmasked; SAE suppresses them
  EXPECT_EQ(Run({0x62, 0xf1, 0x6c, 0x38, 0x58, 0xcb}), VectorResult::kOk);  // vaddps zmm1, zmm2, zmm3{rd-sae}
  EXPECT_EQ(Zmm<float>(1)[7], 16777216.0f);
  EXPECT_EQ(Run({0x62, 0xf1, 0x6c, 0x48, 0x58, 0xcb}), VectorResult::kSimdError);
}

TEST_F(Avx512Test, GuardsAreXcr0AndTaskSwitched) {
  for (uint64_t xcr0 : {0x07u, 0x67u, 0xe3u, 0xa7u}) {
    state.xcr0 = xcr0;
    EXPECT_EQ(Run({0x62, 0xa1, 0x54, 0x40, 0x58, 0xe6}), VectorResult::kInvalidOpcode) << xcr0;
    EXPECT_EQ(Run({0xc4, 0xe1, 0xfb, 0x92, 0xdb}), VectorResult::kInvalidOpcode) << xcr0;
  }
  state.xcr0 = 0xe7;
  state.cr0 |= x86::cr0::kTs;
  EXPECT_EQ(Run({0x62, 0xa1, 0x54, 0x40, 0x58, 0xe6}), VectorResult::kDeviceNotAvailable);
  state.cr0 &= ~x86::cr0::kTs;
  state.cr4 &= ~x86::cr4::kOsXsave;
  EXPECT_EQ(Run({0x62, 0xa1, 0x54, 0x40, 0x58, 0xe6}), VectorResult::kInvalidOpcode);
}

TEST_F(Avx512Test, XsaveHasTheLayoutThatCpuidTells) {
  for (unsigned i = 0; i < 32; ++i) SetZmm(i, Counting(1000 * (i + 1)));
  for (unsigned i = 0; i < 8; ++i) SetMask(i, 0x1111111111111111u * (i + 1));
  state.gpr[x86::kRax] = 0xe7, state.gpr[x86::kRdx] = 0;
  EXPECT_EQ(Run({0x48, 0x0f, 0xae, 0x20}), VectorResult::kOk);  // xsave64 [rax]
  EXPECT_EQ(memory.Get<uint64_t>(kAt + 512), 0xe6u);
  EXPECT_EQ(memory.Get<uint32_t>(kAt + 160 + 16 * 3), 4000u);
  EXPECT_EQ(memory.Get<uint32_t>(kAt + 576 + 16 * 3), 4004u);
  EXPECT_EQ(memory.Get<uint64_t>(kAt + 1088 + 8 * 7), 0x8888888888888888u);
  EXPECT_EQ(memory.Get<uint32_t>(kAt + 1152 + 32 * 3), 4008u);
  EXPECT_EQ(memory.Get<uint32_t>(kAt + 1664 + 64 * 15 + 60), 32015u);
  EXPECT_EQ(memory.Get<uint32_t>(kAt + 2688), 0u);
  const x86::XsaveArea before = state.xsave;
  state.xsave = x86::XsaveArea{};
  EXPECT_EQ(Run({0x48, 0x0f, 0xae, 0x28}), VectorResult::kOk);  // xrstor64 [rax]
  EXPECT_EQ(std::memcmp(state.xsave.bytes + 576, before.bytes + 576, 2688 - 576), 0);
  // A component that is not in the area becomes its initial state; XSAVEOPT leaves out what is in it.
  memory.Put(kAt + 512, uint64_t{0x67});
  EXPECT_EQ(Run({0x48, 0x0f, 0xae, 0x28}), VectorResult::kOk);
  EXPECT_EQ(Zmm<uint32_t>(16)[0], 0u);
  EXPECT_EQ(Zmm<uint32_t>(15)[8], 16008u);
  EXPECT_EQ(Run({0x48, 0x0f, 0xae, 0x30}), VectorResult::kOk);  // xsaveopt64 [rax]
  EXPECT_EQ(memory.Get<uint64_t>(kAt + 512), 0x66u);
  EXPECT_EQ(memory.Get<uint32_t>(kAt + 1664 + 64 * 15 + 60), 32015u);
  // Outside 64-bit code there are eight registers.
  Enter32();
  state.xsave = before;
  memory.bytes.assign(memory.bytes.size(), 0);
  EXPECT_EQ(Run({0x0f, 0xae, 0x20}), VectorResult::kOk);
  EXPECT_EQ(memory.Get<uint32_t>(kAt + 1152 + 32 * 7), 8008u);
  EXPECT_EQ(memory.Get<uint32_t>(kAt + 1152 + 32 * 8), 0u);
  EXPECT_EQ(memory.Get<uint32_t>(kAt + 1664), 0u);
  EXPECT_EQ(memory.Get<uint64_t>(kAt + 1088 + 8 * 7), 0x8888888888888888u);
}

}  // namespace
}  // namespace nacre::engine::interp
