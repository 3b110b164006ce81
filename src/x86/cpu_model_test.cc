#include "x86/cpu_model.h"

#include <Zydis/Zydis.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "x86/decoder.h"

namespace nacre::x86 {
namespace {

bool HostHasV3() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

CpuModel Make(std::string_view name, CpuModelOptions options = {}) {
  auto model = CpuModel::Create(name, options);
  if (!model) ADD_FAILURE() << model.error().message;
  return std::move(model).value();
}

CpuState LongMode() {
  CpuState state;
  ResetCpuState(state);
  state.msr.efer = efer::kLme | efer::kLma;
  state.segment[kCs].attributes |= Segment::kL;
  return state;
}

Instruction Insn(std::vector<uint8_t> bytes) {
  Instruction instruction;
  EXPECT_EQ(Decode(bytes, CodeSize::k64, instruction), DecodeStatus::kOk);
  return instruction;
}

TEST(CpuModel, UnknownNamesAndCounts) {
  EXPECT_FALSE(CpuModel::Create("pentium", {}).has_value());
  EXPECT_FALSE(CpuModel::Create("x86-64-v2", {.cpu_count = 0}).has_value());
  EXPECT_EQ(Make("default").name(), HostHasV3() ? "x86-64-v3" : "x86-64-v2");
}

/// psABI's baseline, and CR4 bits that come with features.
TEST(CpuModel, LevelOneIsTheBaseline) {
  const CpuModel model = Make("x86-64-v1", {.tsc_khz = 2'000'000});
  EXPECT_TRUE(model.Has(Insn({0x66, 0x0f, 0x58, 0xc1})));         // addpd
  EXPECT_TRUE(model.Has(Insn({0x0f, 0x44, 0xc1})));               // cmove
  EXPECT_TRUE(model.Has(Insn({0x0f, 0xc7, 0x0f})));               // cmpxchg8b
  EXPECT_TRUE(model.Has(Insn({0x0f, 0x05})));                     // syscall
  EXPECT_FALSE(model.Has(Insn({0x48, 0x0f, 0xc7, 0x0f})));        // cmpxchg16b
  EXPECT_FALSE(model.Has(Insn({0x9e})));                          // sahf
  EXPECT_FALSE(model.Has(Insn({0xf2, 0x0f, 0xd0, 0xc1})));        // addsubps
  EXPECT_FALSE(model.Has(Insn({0xdf, 0x08})));                    // fisttp
  EXPECT_FALSE(model.Has(Insn({0x66, 0x0f, 0x38, 0x00, 0xc1})));  // pshufb
  EXPECT_FALSE(model.Has(Insn({0xf3, 0x0f, 0xb8, 0xc1})));        // popcnt
  EXPECT_FALSE(model.Has(Insn({0x0f, 0x01, 0xf9})));              // rdtscp
  EXPECT_FALSE(model.Has(Insn({0x66, 0x0f, 0x38, 0x82, 0x00})));  // invpcid
  EXPECT_FALSE(model.Has(Insn({0x0f, 0x01, 0xca})));              // clac
  for (uint32_t subleaf : {0u, 1u, 2u}) {
    const CpuidResult r = model.Cpuid(7, subleaf, LongMode(), 0);
    EXPECT_EQ(r.ebx, subleaf == 0 ? 1u << 13 : 0u);
    EXPECT_EQ(r.ecx | r.edx, 0u) << subleaf;
  }
  EXPECT_EQ(model.cr4_mask(), 0x7fcu) << std::hex << model.cr4_mask();
  EXPECT_EQ(model.efer_mask(), efer::kSce | efer::kLme | efer::kLma | efer::kNxe);
  EXPECT_EQ(model.spec_ctrl_mask(), 0u);
  EXPECT_FALSE(model.has_tsc_adjust() || model.has_tsc_aux() || model.has_1gib_pages());
  const CpuModel two = Make("x86-64-v2", {.tsc_khz = 2'000'000});
  EXPECT_EQ(two.cr4_mask(), 0x7fcu | cr4::kUmip | cr4::kPcide | cr4::kSmep | cr4::kSmap);
  EXPECT_EQ(two.spec_ctrl_mask(), 0x407u);
  EXPECT_TRUE(two.has_tsc_adjust() && two.has_tsc_aux() && two.has_1gib_pages());
}

TEST(CpuModel, LevelTwoHasNoAvx) {
  const CpuModel model = Make("x86-64-v2", {.tsc_khz = 2'000'000});
  EXPECT_TRUE(model.Has(Insn({0x66, 0x0f, 0x38, 0x00, 0xc1})));   // pshufb
  EXPECT_TRUE(model.Has(Insn({0xf3, 0x0f, 0xb8, 0xc1})));         // popcnt
  EXPECT_TRUE(model.Has(Insn({0x48, 0x0f, 0xc7, 0x0f})));         // cmpxchg16b
  EXPECT_TRUE(model.Has(Insn({0x9e})));                           // sahf in 64-bit mode
  EXPECT_FALSE(model.Has(Insn({0xc5, 0xf8, 0x58, 0xc1})));        // vaddps
  EXPECT_FALSE(model.Has(Insn({0x0f, 0xae, 0x20})));              // xsave
  EXPECT_FALSE(model.Has(Insn({0xc4, 0xe2, 0x78, 0xf2, 0xc1})));  // andn
  EXPECT_FALSE(model.Has(Insn({0x0f, 0x38, 0xf0, 0x00})));        // movbe
  EXPECT_FALSE(model.Has(Insn({0x0f, 0x38, 0xc8, 0xc1})));        // sha1nexte
  EXPECT_EQ(model.xcr0_mask(), 3u);
  EXPECT_EQ(model.cr4_mask() & cr4::kOsXsave, 0u);
  EXPECT_EQ(model.Cpuid(0xd, 0, LongMode(), 0).eax, 0u);
}

TEST(CpuModel, UnmaskedHasWhatTheHostExecutes) {
  const CpuModel model = Make("x86-64-v1", {.tsc_khz = 2'000'000});
  const CpuModel unmasked = model.Unmasked();
  const Instruction pshufb = Insn({0x66, 0x0f, 0x38, 0x00, 0xc1});
  EXPECT_FALSE(model.Has(pshufb));
  EXPECT_EQ(unmasked.Has(pshufb), __builtin_cpu_supports("ssse3") != 0);
  EXPECT_FALSE(unmasked.Has(Insn({0x0f, 0x01, 0xc2})));  // vmlaunch
  EXPECT_EQ(unmasked.name(), model.name());
  EXPECT_EQ(unmasked.cr4_mask(), model.cr4_mask());
  EXPECT_EQ(unmasked.Cpuid(1, 0, LongMode(), 0).ecx, model.Cpuid(1, 0, LongMode(), 0).ecx);
}

TEST(CpuModel, HypercallsComeWithTheParavirtualLeaves) {
  const CpuModel model = Make("x86-64-v2", {.tsc_khz = 2'000'000});
  const CpuModel plain = Make("x86-64-v2", {.tsc_khz = 2'000'000, .paravirtual = false});
  for (const auto& bytes : {std::vector<uint8_t>{0x0f, 0x01, 0xc1}, std::vector<uint8_t>{0x0f, 0x01, 0xd9}}) {
    EXPECT_TRUE(model.Has(Insn(bytes)));
    EXPECT_FALSE(plain.Has(Insn(bytes)));
  }
  EXPECT_FALSE(model.Has(Insn({0x0f, 0x01, 0xc2})));  // vmlaunch
  EXPECT_FALSE(model.Has(Insn({0x0f, 0x01, 0xd8})));  // vmrun
}

TEST(CpuModel, BitScanWithoutBmi) {
  const CpuModel model = Make("x86-64-v2", {.tsc_khz = 2'000'000});
  Instruction scan = Insn({0xf3, 0x48, 0x0f, 0xbd, 0xc1});
  EXPECT_TRUE(model.Adapt(scan));
  EXPECT_EQ(scan.mnemonic, ZYDIS_MNEMONIC_BSR);
  EXPECT_EQ(scan.length, 5);
  EXPECT_EQ(scan.bytes[0], 0xf2);
  scan = Insn({0xf3, 0x0f, 0xbc, 0xc1});
  EXPECT_TRUE(model.Adapt(scan));
  EXPECT_EQ(scan.mnemonic, ZYDIS_MNEMONIC_BSF);
  Instruction avx = Insn({0xc5, 0xf8, 0x58, 0xc1});
  EXPECT_FALSE(model.Adapt(avx));
  if (!HostHasV3()) GTEST_SKIP() << "the host has no AVX2";
  scan = Insn({0xf3, 0x0f, 0xbc, 0xc1});
  EXPECT_TRUE(Make("x86-64-v3").Adapt(scan));
  EXPECT_EQ(scan.mnemonic, ZYDIS_MNEMONIC_TZCNT);
}

TEST(CpuModel, LevelThree) {
  if (!HostHasV3()) GTEST_SKIP() << "the host has no AVX2";
  const CpuModel model = Make("x86-64-v3", {.tsc_khz = 2'000'000});
  EXPECT_TRUE(model.Has(Insn({0xc5, 0xf8, 0x58, 0xc1})));
  EXPECT_TRUE(model.Has(Insn({0xc4, 0xe2, 0x7b, 0xf5, 0xc1})));         // pdep
  EXPECT_TRUE(model.Has(Insn({0xf3, 0x0f, 0xae, 0xc0})));               // rdfsbase
  EXPECT_FALSE(model.Has(Insn({0x62, 0xf1, 0x7c, 0x48, 0x58, 0xc1})));  // vaddps zmm
  EXPECT_FALSE(model.Has(Insn({0x66, 0x0f, 0x38, 0xcf, 0xc1})));        // gf2p8mulb
  EXPECT_FALSE(model.Has(Insn({0x0f, 0x01, 0xc8})));                    // monitor
  EXPECT_TRUE(model.HasFeature(7, 0, 'b', 5));
  EXPECT_EQ(model.xcr0_mask(), 7u);
  CpuState state = LongMode();
  EXPECT_EQ(model.Cpuid(0xd, 0, state, 0).ebx, 576u);
  EXPECT_EQ(model.Cpuid(0xd, 0, state, 0).ecx, 832u);
  state.xcr0 = 7;
  EXPECT_EQ(model.Cpuid(0xd, 0, state, 0).ebx, 832u);
  EXPECT_EQ(model.Cpuid(0xd, 2, state, 0).ebx, 576u);
  EXPECT_EQ(model.Cpuid(0xd, 1, state, 0).eax, 1u);
  EXPECT_EQ(model.Cpuid(0xd, 3, state, 0).eax, 0u);
}

TEST(CpuModel, LevelFour) {
  auto made = CpuModel::Create("x86-64-v4", {.tsc_khz = 2'000'000});
  const bool host_has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512vl");
  ASSERT_EQ(made.has_value(), host_has);
  if (!made) {
    EXPECT_NE(made.error().message.find("AVX512F"), std::string::npos) << made.error().message;
    GTEST_SKIP() << made.error().message;
  }
  const CpuModel& model = *made;
  EXPECT_TRUE(model.Has(Insn({0x62, 0xf1, 0x7c, 0x48, 0x58, 0xc1})));   // vaddps zmm
  EXPECT_TRUE(model.Has(Insn({0x62, 0xf1, 0x7c, 0x08, 0x58, 0xc1})));   // vaddps xmm, EVEX
  EXPECT_TRUE(model.Has(Insn({0xc4, 0xe1, 0xfb, 0x92, 0xdb})));         // kmovq k3, rbx
  EXPECT_TRUE(model.Has(Insn({0x62, 0xf2, 0x7d, 0x49, 0xc4, 0x08})));   // vpconflictd
  EXPECT_FALSE(model.Has(Insn({0x62, 0xf2, 0xed, 0x48, 0xb4, 0xcb})));  // vpmadd52luq
  EXPECT_FALSE(model.Has(Insn({0x62, 0xf2, 0x6d, 0x48, 0x8d, 0xcb})));  // vpermb
  EXPECT_EQ(model.xcr0_mask(), 0xe7u);
  CpuState state = LongMode();
  EXPECT_EQ(model.Cpuid(0xd, 0, state, 0).eax, 0xe7u);
  EXPECT_EQ(model.Cpuid(0xd, 0, state, 0).ecx, 2688u);
  EXPECT_EQ(model.Cpuid(0xd, 0, state, 0).ebx, 576u);
  state.xcr0 = 7;
  EXPECT_EQ(model.Cpuid(0xd, 0, state, 0).ebx, 832u);
  state.xcr0 = 0xe7;
  EXPECT_EQ(model.Cpuid(0xd, 0, state, 0).ebx, 2688u);
  const uint32_t place[][3] = {{2, 256, 576}, {5, 64, 1088}, {6, 512, 1152}, {7, 1024, 1664}};
  for (const auto& [component, bytes, offset] : place) {
    EXPECT_EQ(model.Cpuid(0xd, component, state, 0).eax, bytes);
    EXPECT_EQ(model.Cpuid(0xd, component, state, 0).ebx, offset);
    EXPECT_EQ(model.Cpuid(0xd, component, state, 0).ecx, 0u);
  }
  EXPECT_EQ(model.Cpuid(0xd, 9, state, 0).eax, 0u);
}

TEST(CpuModel, DynamicBits) {
  const CpuModel model = Make("default", {.cpu_count = 6, .tsc_khz = 2'000'000});
  CpuState state = LongMode();
  EXPECT_FALSE(TestBit(model.Cpuid(1, 0, state, 0).ecx, 27));
  state.cr4 |= cr4::kOsXsave;
  EXPECT_TRUE(TestBit(model.Cpuid(1, 0, state, 0).ecx, 27));
  EXPECT_EQ(model.Cpuid(1, 0, state, 5).ebx >> 24, 5u);
  EXPECT_EQ((model.Cpuid(1, 0, state, 5).ebx >> 16) & 0xff, 6u);
  EXPECT_EQ(model.Cpuid(0xb, 0, state, 5).edx, 5u);
  EXPECT_EQ(model.Cpuid(0xb, 1, state, 5).eax, 3u);
  EXPECT_EQ(model.Cpuid(0xb, 1, state, 5).ebx, 6u);
  EXPECT_EQ(model.Cpuid(0xb, 2, state, 5).ecx, 2u);
  EXPECT_EQ(model.Cpuid(0xb, 2, state, 5).edx, 5u);
  EXPECT_TRUE(TestBit(model.Cpuid(0x80000001, 0, state, 0).edx, 11));
  state.segment[kCs].attributes &= ~Segment::kL;
  EXPECT_FALSE(TestBit(model.Cpuid(0x80000001, 0, state, 0).edx, 11));
}

TEST(CpuModel, IdentityLeaves) {
  const CpuModel model = Make("default", {.tsc_khz = 2'596'098});
  const CpuState state = LongMode();
  CpuidResult r = model.Cpuid(0, 0, state, 0);
  char vendor[13] = {};
  std::memcpy(vendor, &r.ebx, 4);
  std::memcpy(vendor + 4, &r.edx, 4);
  std::memcpy(vendor + 8, &r.ecx, 4);
  EXPECT_STREQ(vendor, "GenuineIntel");
  char brand[49] = {};
  for (uint32_t i = 0; i < 3; ++i) {
    r = model.Cpuid(0x80000002 + i, 0, state, 0);
    std::memcpy(brand + 16 * i, &r, 16);
  }
  EXPECT_EQ(std::string(brand), "Nacre Virtual CPU (" + model.name() + ")");
  r = model.Cpuid(0x40000000, 0, state, 0);
  EXPECT_EQ(std::memcmp(&r.ebx, "KVMKVMKVM\0\0\0", 12), 0);
  EXPECT_EQ(model.Cpuid(0x40000001, 0, state, 0).eax, 0x01000aebu);
  EXPECT_EQ(model.Cpuid(0x40000010, 0, state, 0).eax, 2'596'098u);
  const CpuModel plain = Make("default", {.tsc_khz = 2'596'098, .paravirtual = false});
  EXPECT_EQ(plain.Cpuid(0x40000000, 0, state, 0).eax, 0u);
  EXPECT_EQ(model.Cpuid(0xa, 0, state, 0).eax, 0u);        // no performance counters
  EXPECT_EQ(model.Cpuid(0x1000, 0, state, 0).eax, 2596u);  // above the maximum: leaf 0x16
  EXPECT_EQ(model.Cpuid(4, 4, state, 0).eax, 0u);
  EXPECT_EQ(model.Cpuid(4, 3, state, 0).eax & 0xff, 3u | 3u << 5);
}

TEST(CpuModel, CrystalLeafTellsTheFrequencyTo1Ppm) {
  const CpuState state = LongMode();
  for (uint64_t khz : {1'000'000u, 1'999'999u, 2'000'000u, 2'596'098u, 3'693'061u, 4'293'967u}) {
    const CpuidResult r = Make("x86-64-v2", {.tsc_khz = khz}).Cpuid(0x15, 0, state, 0);
    ASSERT_NE(r.eax, 0u);
    EXPECT_LT(uint64_t{r.ebx} * (r.ecx / 1000), uint64_t{1} << 32);  // Linux multiplies in 32 bits
    const double told = double(r.ecx) * r.ebx / r.eax / 1000;
    EXPECT_NEAR(told / double(khz), 1.0, 1e-6) << khz;
  }
}

TEST(CpuModel, HostIsASuperset) {
  const CpuModel host = Make("host");
  const CpuModel base = Make("default");
  const CpuState state = LongMode();
  for (uint32_t leaf : {1u, 7u, 0x80000001u}) {
    const CpuidResult h = host.Cpuid(leaf, 0, state, 0), b = base.Cpuid(leaf, 0, state, 0);
    EXPECT_EQ(b.ecx & ~h.ecx, 0u) << leaf;
    EXPECT_EQ(b.edx & ~h.edx, 0u) << leaf;
  }
  EXPECT_GT(host.tsc_khz(), 100'000u);
}

TEST(CpuModel, MitigationBits) {
  const CpuModel model = Make("default");
  EXPECT_TRUE(model.HasFeature(7, 0, 'd', 29));
  EXPECT_EQ(CpuModel::arch_capabilities() & 0x3b, 0x3bu);
  EXPECT_TRUE(model.HasFeature(7, 0, 'd', 26));
  EXPECT_FALSE(model.HasFeature(1, 0, 'c', 3));  // MONITOR
}

}  // namespace
}  // namespace nacre::x86
