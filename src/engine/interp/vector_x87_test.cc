// x87, MMX and the instructions that save and restore the state.

#include <cmath>

#include "engine/interp/vector_testing.h"

namespace nacre::engine::interp {
namespace {

constexpr uint16_t kEs = 0x80, kBusy = 0x8000;

TEST_F(VectorTest, X87Arithmetic) {
  Push(6.0);
  Push(1.5);
  EXPECT_EQ(Run({0xd8, 0xc1}), VectorResult::kOk);  // fadd st, st(1)
  EXPECT_EQ(St(0), 7.5L);
  EXPECT_EQ(St(1), 6.0L);
  EXPECT_EQ((state.xsave.fsw() >> 11) & 7, 6);
  EXPECT_EQ(state.xsave.ftw(), 0xc0);
  EXPECT_EQ(Run({0xd9, 0x18}), VectorResult::kOk);  // fstp dword [rax]
  EXPECT_EQ(memory.Get<float>(kAt), 7.5f);
  EXPECT_EQ(Run({0xdd, 0x08}), VectorResult::kOk);  // fisttp qword [rax]
  EXPECT_EQ(memory.Get<int64_t>(kAt), 6);
  EXPECT_EQ(state.xsave.ftw(), 0);
}

TEST_F(VectorTest, X87ExtendedAndDecimal) {
  const long double value = 123456789.0L;
  std::memcpy(memory.bytes.data() + kAt, &value, 10);
  memory.bad = {kAt + 10};
  EXPECT_EQ(Run({0xdb, 0x28}), VectorResult::kOk);                    // fld tbyte [rax]
  EXPECT_EQ(Run({0xdf, 0x30}, kAt + 1), VectorResult::kMemoryFault);  // fbstp: nothing popped
  EXPECT_EQ(state.xsave.ftw(), 0x80);
  EXPECT_EQ(Run({0xdf, 0x30}), VectorResult::kOk);
  EXPECT_EQ(memory.Get<uint64_t>(kAt), 0x123456789u);
  EXPECT_EQ(state.xsave.ftw(), 0);
}

TEST_F(VectorTest, X87FlagsIntoRflags) {
  Push(2.0);
  Push(1.0);
  state.rflags = x86::rflags::kFixed1 | x86::rflags::kIf;
  EXPECT_EQ(Run({0xdb, 0xf1}), VectorResult::kOk);  // fcomi st, st(1): 1 < 2
  EXPECT_EQ(state.rflags & x86::rflags::kArithmetic, x86::rflags::kCf);
  EXPECT_TRUE(state.rflags & x86::rflags::kIf);
  EXPECT_EQ(Run({0xda, 0xc1}), VectorResult::kOk);  // fcmovb st, st(1)
  EXPECT_EQ(St(0), 2.0L);
  state.gpr[x86::kRax] = ~uint64_t{0};
  EXPECT_EQ(Run({0xdf, 0xe0}), VectorResult::kOk);  // fnstsw ax
  EXPECT_EQ(state.gpr[x86::kRax], 0xffffffffffff0000 | state.xsave.fsw());
}

TEST_F(VectorTest, X87UnmaskedExceptionWaitsForTheNextInstruction) {
  state.xsave.fcw() = 0x37b;  // zero-divide unmasked
  Push(0.0);
  Push(1.0);
  EXPECT_EQ(Run({0xd8, 0xf1}), VectorResult::kOk);  // fdiv st, st(1)
  EXPECT_EQ(state.xsave.fsw() & 0xffu, kEs | 4u);
  EXPECT_EQ(St(0), 1.0L);
  EXPECT_EQ(Run({0xd8, 0xc1}), VectorResult::kX87Error);        // fadd
  EXPECT_EQ(Run({0x9b}), VectorResult::kX87Error);              // fwait
  EXPECT_EQ(Run({0x0f, 0xfc, 0xca}), VectorResult::kX87Error);  // paddb mm1, mm2
  EXPECT_EQ(Run({0x0f, 0x77}), VectorResult::kX87Error);        // emms
  EXPECT_EQ(Run({0x0f, 0x58, 0xca}), VectorResult::kOk);        // addps does not care
  EXPECT_EQ(Run({0xd9, 0x38}), VectorResult::kOk);              // fnstcw
  EXPECT_EQ(memory.Get<uint16_t>(kAt), 0x37b);
  EXPECT_EQ(Run({0xdf, 0xe0}), VectorResult::kOk);  // fnstsw ax
  EXPECT_EQ(Run({0xdb, 0xe2}), VectorResult::kOk);  // fnclex
  EXPECT_EQ(state.xsave.fsw() & (kEs | kBusy | 0x3f), 0);
  EXPECT_EQ(Run({0x9b}), VectorResult::kOk);
}

TEST_F(VectorTest, X87UnmaskedExceptionMayForbidTheStore) {
  Push(1e300);
  memory.Put<uint32_t>(kAt, 0xdeadbeef);
  state.xsave.fcw() = 0x377;  // overflow unmasked: not stored, not popped
  EXPECT_EQ(Run({0xd9, 0x18}), VectorResult::kOk);
  EXPECT_EQ(memory.Get<uint32_t>(kAt), 0xdeadbeefu);
  EXPECT_TRUE(state.xsave.fsw() & kEs);
  EXPECT_EQ(state.xsave.ftw(), 0x80);
  EXPECT_EQ(Run({0xdb, 0xe2}), VectorResult::kOk);  // fnclex
  state.xsave.fcw() = 0x35f;                        // precision unmasked: stored and popped
  Push(0.1);
  EXPECT_EQ(Run({0xd9, 0x18}), VectorResult::kOk);
  EXPECT_EQ(memory.Get<float>(kAt), 0.1f);
  EXPECT_TRUE(state.xsave.fsw() & kEs);
  EXPECT_EQ(state.xsave.ftw(), 0x80);
}

TEST_F(VectorTest, X87LoadingAControlWordMakesAnExceptionPending) {
  Push(0.0);
  Push(1.0);
  EXPECT_EQ(Run({0xd8, 0xf1}), VectorResult::kOk);  // masked zero-divide
  EXPECT_FALSE(state.xsave.fsw() & kEs);
  memory.Put<uint16_t>(kAt, 0x37b);
  EXPECT_EQ(Run({0xd9, 0x28}), VectorResult::kOk);  // fldcw
  EXPECT_TRUE(state.xsave.fsw() & kEs);
  EXPECT_EQ(Run({0x9b}), VectorResult::kX87Error);
}

TEST_F(VectorTest, X87WithoutNeGoesOn) {
  state.cr0 &= ~x86::cr0::kNe;
  state.xsave.fcw() = 0x37b;
  Push(0.0);
  Push(1.0);
  EXPECT_EQ(Run({0xd8, 0xf1}), VectorResult::kOk);
  EXPECT_TRUE(state.xsave.fsw() & kEs);
  EXPECT_EQ(Run({0xd8, 0xc0}), VectorResult::kOk);  // fadd st, st(0)
  EXPECT_EQ(St(0), 2.0L);
  EXPECT_EQ(state.xsave.fcw(), 0x37b);
  EXPECT_TRUE(state.xsave.fsw() & kEs);
}

TEST_F(VectorTest, GuardsOfX87) {
  state.cr0 |= x86::cr0::kTs;
  EXPECT_EQ(Run({0xd8, 0xc1}), VectorResult::kDeviceNotAvailable);
  EXPECT_EQ(Run({0x9b}), VectorResult::kDeviceNotAvailable);
  EXPECT_EQ(Run({0x0f, 0x77}), VectorResult::kDeviceNotAvailable);        // emms
  EXPECT_EQ(Run({0x0f, 0xae, 0x00}), VectorResult::kDeviceNotAvailable);  // fxsave
  state.cr0 &= ~x86::cr0::kMp;
  EXPECT_EQ(Run({0x9b}), VectorResult::kOk);
  state.cr0 = (state.cr0 & ~x86::cr0::kTs) | x86::cr0::kEm;
  EXPECT_EQ(Run({0xd8, 0xc1}), VectorResult::kDeviceNotAvailable);
  EXPECT_EQ(Run({0x9b}), VectorResult::kOk);
  EXPECT_EQ(Run({0x0f, 0x77}), VectorResult::kInvalidOpcode);
  EXPECT_EQ(Run({0x0f, 0xae, 0x00}), VectorResult::kDeviceNotAvailable);
}

TEST_F(VectorTest, EnvironmentHasTheSizeOfTheOperand) {
  Push(1.0);
  memory.Put<uint32_t>(kAt + 28, 0x55555555);
  EXPECT_EQ(Run({0xd9, 0x30}), VectorResult::kOk);  // fnstenv, 28 bytes
  EXPECT_EQ(memory.bytes_written, 28u);
  EXPECT_EQ(memory.Get<uint32_t>(kAt), 0xffff037fu);
  EXPECT_EQ(memory.Get<uint32_t>(kAt + 8), 0xffff3fffu);
  for (unsigned at = 12; at < 26; ++at) EXPECT_EQ(memory.Get<uint8_t>(kAt + at), 0) << at;
  memory.bytes_written = 0;
  EXPECT_EQ(Run({0x66, 0xd9, 0x30}), VectorResult::kOk);
  EXPECT_EQ(memory.bytes_written, 14u);
  EXPECT_EQ(memory.Get<uint16_t>(kAt + 4), 0x3fff);
  for (unsigned at = 6; at < 14; ++at) EXPECT_EQ(memory.Get<uint8_t>(kAt + at), 0) << at;
  Enter16();
  memory.bytes_written = 0;
  EXPECT_EQ(Run({0xd9, 0x37}), VectorResult::kOk);  // fnstenv [bx]
  EXPECT_EQ(memory.bytes_written, 14u);
  EXPECT_EQ(Run({0x66, 0xd9, 0x37}), VectorResult::kOk);
  EXPECT_EQ(memory.bytes_written, 14u + 28u);
}

TEST_F(VectorTest, SaveAndRestoreX87) {
  Push(1.0);
  Push(2.0);
  EXPECT_EQ(Run({0xdd, 0x30}), VectorResult::kOk);  // fnsave
  EXPECT_EQ(memory.bytes_written, 108u);
  EXPECT_EQ(state.xsave.ftw(), 0);
  EXPECT_EQ(state.xsave.fcw(), 0x37f);
  EXPECT_EQ(Run({0xdd, 0x20}), VectorResult::kOk);  // frstor
  EXPECT_EQ(state.xsave.ftw(), 0xc0);
  EXPECT_EQ(St(0), 2.0L);
  EXPECT_EQ(St(1), 1.0L);
  // An environment with a flagged, unmasked exception makes it pending.
  memory.Put<uint16_t>(kAt, 0x37e);
  memory.Put<uint16_t>(kAt + 4, 1);
  EXPECT_EQ(Run({0xd9, 0x20}), VectorResult::kOk);  // fldenv
  EXPECT_EQ(Run({0x9b}), VectorResult::kX87Error);
}

TEST_F(VectorTest, MmxAliasesX87) {
  Push(3.0);
  memory.Put<uint64_t>(kAt, 0x0102030405060708);
  EXPECT_EQ(Run({0x0f, 0x6f, 0x08}), VectorResult::kOk);  // movq mm1, [rax]
  EXPECT_EQ(state.xsave.ftw(), 0xff);
  EXPECT_EQ((state.xsave.fsw() >> 11) & 7, 0);
  EXPECT_EQ(LoadLe<uint64_t>(state.xsave.st(1)), 0x0102030405060708u);
  EXPECT_EQ(LoadLe<uint16_t>(state.xsave.st(1) + 8), 0xffffu);
  EXPECT_EQ(Run({0x0f, 0x77}), VectorResult::kOk);  // emms
  EXPECT_EQ(state.xsave.ftw(), 0);
  SetYmm<float>(1, {9, 9, 9, 9, 5});
  EXPECT_EQ(Run({0x0f, 0x6f, 0x18}), VectorResult::kOk);  // movq mm3, [rax]
  EXPECT_EQ(Run({0x0f, 0x2a, 0xcb}), VectorResult::kOk);  // cvtpi2ps xmm1, mm3
  EXPECT_EQ(Ymm<float>(1)[0], static_cast<float>(0x05060708));
  EXPECT_EQ(Ymm<float>(1)[4], 5.0f);
}

TEST_F(VectorTest, FxsaveRoundTrip) {
  Push(4.0);
  for (unsigned i = 0; i < 16; ++i) SetYmm<uint64_t>(i, {i, 100 + i, 200 + i, 300 + i});
  std::memset(memory.bytes.data() + kAt, 0xee, 512);
  EXPECT_EQ(Run({0x48, 0x0f, 0xae, 0x00}, kAt + 8), VectorResult::kGeneralProtection);
  memory.bad = {kAt + 511};
  EXPECT_EQ(Run({0x48, 0x0f, 0xae, 0x00}), VectorResult::kMemoryFault);
  memory.bad.clear();
  EXPECT_EQ(Run({0x48, 0x0f, 0xae, 0x00}), VectorResult::kOk);  // fxsave64
  EXPECT_EQ(memory.Get<uint32_t>(kAt + 28), 0xffffu);
  EXPECT_EQ(memory.Get<uint64_t>(kAt + 160 + 15 * 16), 15u);
  EXPECT_EQ(memory.Get<uint8_t>(kAt + 416), 0xee);
  const x86::CpuState saved = state;
  EXPECT_EQ(Run({0xdb, 0xe3}), VectorResult::kOk);  // fninit
  SetYmm<uint64_t>(15, {7, 7, 7, 7});
  EXPECT_EQ(Run({0x48, 0x0f, 0xae, 0x08}), VectorResult::kOk);  // fxrstor64
  EXPECT_EQ(Ymm<uint64_t>(15), (std::array<uint64_t, 4>{15, 115, 7, 7}));
  EXPECT_EQ(std::memcmp(state.xsave.bytes, saved.xsave.bytes, 416), 0);
  memory.Put<uint32_t>(kAt + 24, 0x11f80);
  EXPECT_EQ(Run({0x48, 0x0f, 0xae, 0x08}), VectorResult::kGeneralProtection);
  Enter32();
  std::memset(memory.bytes.data() + kAt, 0xee, 512);
  EXPECT_EQ(Run({0x0f, 0xae, 0x00}), VectorResult::kOk);
  EXPECT_EQ(memory.Get<uint8_t>(kAt + 287), 0);
  EXPECT_EQ(memory.Get<uint8_t>(kAt + 288), 0xee);
}

TEST_F(VectorTest, XsaveRoundTrip) {
  for (unsigned i = 0; i < 16; ++i) SetYmm<uint64_t>(i, {i, 100 + i, 200 + i, 300 + i});
  state.xsave.mxcsr() = 0x1fa0;
  state.gpr[x86::kRax] = ~uint64_t{0};
  state.gpr[x86::kRdx] = ~uint64_t{0};
  EXPECT_EQ(Run({0x48, 0x0f, 0xae, 0x20}, kAt + 32), VectorResult::kGeneralProtection);
  std::memset(memory.bytes.data() + kAt, 0xee, 832);
  memory.Put<uint64_t>(kAt + 512, Bit(9) | 1);
  EXPECT_EQ(Run({0x48, 0x0f, 0xae, 0x20}), VectorResult::kOk);      // xsave64
  EXPECT_EQ(memory.Get<uint64_t>(kAt + 512), Bit(9) | 6);           // x87 is in its initial state; bit 9 not asked for
  EXPECT_EQ(memory.Get<uint64_t>(kAt + 520), 0xeeeeeeeeeeeeeeeeu);  // the rest of the header stays
  EXPECT_EQ(memory.Get<uint64_t>(kAt + 576 + 15 * 16 + 8), 315u);
  EXPECT_EQ(memory.Get<uint16_t>(kAt), 0x37f);
  // A good header, other registers, and back.
  std::memset(memory.bytes.data() + kAt + 512, 0, 64);
  EXPECT_EQ(Run({0x48, 0x0f, 0xae, 0x30}), VectorResult::kOk);  // xsaveopt64
  EXPECT_EQ(memory.Get<uint64_t>(kAt + 512), 6u);
  Push(1.0);
  for (unsigned i = 0; i < 16; ++i) SetYmm<uint64_t>(i, {1, 1, 1, 1});
  state.xsave.mxcsr() = 0x1f80;
  EXPECT_EQ(Run({0x48, 0x0f, 0xae, 0x28}), VectorResult::kOk);  // xrstor64
  EXPECT_EQ(Ymm<uint64_t>(3), (std::array<uint64_t, 4>{3, 103, 203, 303}));
  EXPECT_EQ(state.xsave.ftw(), 0);
  EXPECT_EQ(state.xsave.mxcsr(), 0x1fa0u);
  // AVX absent from the area: its initial state. Not asked for: left alone.
  memory.Put<uint64_t>(kAt + 512, 2);
  state.gpr[x86::kRax] = 2;
  EXPECT_EQ(Run({0x48, 0x0f, 0xae, 0x28}), VectorResult::kOk);
  EXPECT_EQ(Ymm<uint64_t>(3)[2], 203u);
  state.gpr[x86::kRax] = 6;
  EXPECT_EQ(Run({0x48, 0x0f, 0xae, 0x28}), VectorResult::kOk);
  EXPECT_EQ(Ymm<uint64_t>(3), (std::array<uint64_t, 4>{3, 103, 0, 0}));
}

TEST_F(VectorTest, XrstorRejectsBadHeaders) {
  const auto restore = [this] { return Run({0x48, 0x0f, 0xae, 0x28}); };
  state.gpr[x86::kRax] = 7;
  memory.Put<uint32_t>(kAt + 24, 0x1f80);
  EXPECT_EQ(restore(), VectorResult::kOk);
  for (uint64_t bit : {Bit(3), Bit(9), Bit(63)}) {
    memory.Put(kAt + 512, bit);
    EXPECT_EQ(restore(), VectorResult::kGeneralProtection) << bit;
  }
  memory.Put<uint64_t>(kAt + 512, 0);
  for (unsigned at : {520u, 527u, 528u, 535u}) {
    memory.Put<uint8_t>(kAt + at, 0x80);
    EXPECT_EQ(restore(), VectorResult::kGeneralProtection) << at;
    memory.Put<uint8_t>(kAt + at, 0);
  }
  memory.Put<uint32_t>(kAt + 24, 0x10000);
  EXPECT_EQ(restore(), VectorResult::kGeneralProtection);
  memory.Put<uint32_t>(kAt + 24, 0x1f80);
  state.cr4 &= ~x86::cr4::kOsXsave;
  EXPECT_EQ(restore(), VectorResult::kInvalidOpcode);
}

TEST_F(VectorTest, Mxcsr) {
  memory.Put<uint32_t>(kAt, 0x10000);
  EXPECT_EQ(Run({0x0f, 0xae, 0x10}), VectorResult::kGeneralProtection);
  memory.Put<uint32_t>(kAt, 0xffff);
  EXPECT_EQ(Run({0x0f, 0xae, 0x10}), VectorResult::kOk);  // flagged and unmasked: no exception yet
  memory.Put<uint32_t>(kAt, 0);
  EXPECT_EQ(Run({0x0f, 0xae, 0x18}), VectorResult::kOk);
  EXPECT_EQ(memory.Get<uint32_t>(kAt), 0xffffu);
}

}  // namespace
}  // namespace nacre::engine::interp
