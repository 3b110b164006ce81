// What a CPU model lacks: bits of control registers and MSRs that raise #GP.

#include <gtest/gtest.h>

#include "engine/interp/interp_testing.h"

namespace nacre::engine::interp {
namespace {

class InterpModels : public InterpTest {
 protected:
  /// The vector that these registers and this instruction end in, -1: none.
  int Try(std::initializer_list<uint8_t> instruction, uint64_t rax, uint64_t rcx = 0) {
    LongMode();
    for (uint64_t page = 0; page < 512; ++page) Put<uint64_t>(PageEntry(page * 4096), page * 4096 | 3);  // SMEP
    Code(instruction);
    Put<uint8_t>(at::kCode + instruction.size(), 0xf4);
    s.gpr[x86::kRax] = rax & 0xffffffff;
    s.gpr[x86::kRdx] = rax >> 32;
    s.gpr[x86::kRcx] = rcx;
    return Run();
  }
  int WriteCr4(uint64_t bits) { return Try({0x0f, 0x22, 0xe0}, x86::cr4::kPae | x86::cr4::kOsFxsr | bits); }
  int ReadMsr(uint32_t index) { return Try({0x0f, 0x32}, 0, index); }
  int WriteMsr(uint32_t index, uint64_t value) { return Try({0x0f, 0x30}, value, index); }
};

constexpr int kNone = -1, kGp = x86::kGeneralProtection;

TEST_F(InterpModels, ControlRegisterBitsComeWithFeatures) {
  for (const bool extras : {false, true}) {
    UseModel(extras ? "x86-64-v2" : "x86-64-v1");
    for (const uint64_t bit : {x86::cr4::kUmip, x86::cr4::kPcide, x86::cr4::kSmep, x86::cr4::kSmap})
      EXPECT_EQ(WriteCr4(bit), extras ? kNone : kGp) << std::hex << bit;
    for (const uint64_t bit : {x86::cr4::kTsd, x86::cr4::kDe, x86::cr4::kPge, x86::cr4::kOsXmmExcpt})
      EXPECT_EQ(WriteCr4(bit), kNone) << std::hex << bit;
    for (const uint64_t bit : {x86::cr4::kFsGsBase, x86::cr4::kOsXsave, x86::cr4::kVme, x86::cr4::kPke})
      EXPECT_EQ(WriteCr4(bit), kGp) << std::hex << bit;
  }
}

TEST_F(InterpModels, MsrsComeWithFeatures) {
  for (const bool extras : {false, true}) {
    UseModel(extras ? "x86-64-v2" : "x86-64-v1");
    const int expected = extras ? kNone : kGp;
    // TSC_ADJUST, SPEC_CTRL, ARCH_CAPABILITIES, TSC_AUX
    for (const uint32_t index : {0x3bu, 0x48u, 0x10au, 0xc0000103u})
      EXPECT_EQ(ReadMsr(index), expected) << std::hex << index;
    for (const uint32_t index : {0x3bu, 0x48u, 0xc0000103u})
      EXPECT_EQ(WriteMsr(index, 1), expected) << std::hex << index;
    EXPECT_EQ(WriteMsr(0x48, 0x400), expected) << "BHI_DIS_S";
    EXPECT_EQ(WriteMsr(0x49, 1), expected) << "PRED_CMD";
    EXPECT_EQ(WriteMsr(0x48, 0x80), kGp);
    EXPECT_EQ(WriteMsr(0xc0000103, uint64_t{1} << 32), kGp);
    EXPECT_EQ(ReadMsr(0x277), kNone) << "PAT";
    EXPECT_EQ(WriteMsr(0xc0000080, x86::efer::kLme | x86::efer::kLma | x86::efer::kNxe), kNone);
    // A write to the counter shows in TSC_ADJUST only where there is one.
    EXPECT_EQ(WriteMsr(0x10, 5), kNone);
    EXPECT_EQ(s.msr.tsc_adjust != 0, extras);
  }
}

}  // namespace
}  // namespace nacre::engine::interp
