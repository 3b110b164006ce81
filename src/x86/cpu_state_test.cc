#include "x86/cpu_state.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "state/archive.h"

namespace nacre::x86 {
namespace {

std::vector<uint8_t> Save(CpuState& state) {
  auto archive = state::Archive::ForSaving();
  state.Serialize(archive);
  return archive.Finish();
}

Status Load(CpuState& state, std::span<const uint8_t> data) {
  auto archive = state::Archive::ForLoading(data);
  state.Serialize(archive);
  return archive.status();
}

CpuState LongModeState() {
  CpuState state;
  ResetCpuState(state);
  state.cr0 = cr0::kPe | cr0::kPg | cr0::kEt | cr0::kNe | cr0::kWp;
  state.cr4 = cr4::kPae | cr4::kPge | cr4::kOsFxsr | cr4::kPcide | cr4::kSmap;
  state.msr.efer = efer::kLme | efer::kLma | efer::kSce | efer::kNxe;
  state.segment[kCs] = {0, 0xffffffff, 0xa09b, 0x10};
  state.xcr0 = 7;
  return state;
}

TEST(CpuState, Reset) {
  CpuState state;
  std::memset(state.xsave.bytes, 0xff, sizeof state.xsave.bytes);
  state.gpr[kRsp] = 5;
  state.halted = true;
  ResetCpuState(state);
  EXPECT_EQ(state.rip, 0xfff0u);
  EXPECT_EQ(state.segment[kCs].base, 0xffff0000u);
  EXPECT_EQ(state.segment[kCs].selector, 0xf000);
  EXPECT_EQ(state.cr0, 0x60000010u);
  EXPECT_EQ(state.rflags, 2u);
  EXPECT_EQ(state.gpr[kRsp], 0u);
  EXPECT_EQ(state.xsave.mxcsr(), 0x1f80u);
  EXPECT_EQ(state.xsave.fcw(), 0x40);
  EXPECT_EQ(state.xcr0, 1u);
  EXPECT_FALSE(state.halted);
  EXPECT_FALSE(state.protected_mode());
  EXPECT_EQ(state.cpl(), 0u);
}

TEST(CpuState, InitKeepsFpuMsrsAndCacheBits) {
  CpuState state = LongModeState();
  state.msr.lstar = 0xffffffff81000000;
  state.xsave.xmm(3)[0] = 7;
  state.xsave.mxcsr() = 0x1fa0;
  state.tsc_offset = 99;
  state.cr0 |= cr0::kCd;
  InitCpuState(state, false);
  EXPECT_TRUE(state.wait_for_sipi);
  EXPECT_EQ(state.cr0, cr0::kCd | cr0::kEt);
  EXPECT_EQ(state.msr.efer, 0u);
  EXPECT_EQ(state.msr.lstar, 0xffffffff81000000u);
  EXPECT_EQ(state.xsave.xmm(3)[0], 7);
  EXPECT_EQ(state.xsave.mxcsr(), 0x1fa0u);
  EXPECT_EQ(state.tsc_offset, 99u);
  EXPECT_EQ(state.xcr0, 7u);
  EXPECT_EQ(state.rip, 0xfff0u);
  InitCpuState(state, true);
  EXPECT_FALSE(state.wait_for_sipi);
}

TEST(CpuState, SaveLoadKeepsEverything) {
  std::mt19937_64 random(3);
  CpuState state = LongModeState();
  for (uint64_t& reg : state.gpr) reg = random();
  for (uint64_t& reg : state.dr) reg = random();
  for (uint64_t& reg : state.msr.mtrr_physical) reg = random();
  for (uint8_t& byte : std::span(state.xsave.bytes).subspan(32, 400)) byte = static_cast<uint8_t>(random());
  state.rip = 0xffffffff81234567;
  state.tsc_offset = random();
  state.pending_debug = state.nmi_masked = true;
  state.msr.kernel_gs_base = 0xffff888000000000;
  const auto data = Save(state);
  CpuState loaded;
  ASSERT_TRUE(Load(loaded, data).has_value());
  EXPECT_EQ(Save(loaded), data);
  EXPECT_EQ(std::memcmp(loaded.gpr, state.gpr, sizeof state.gpr), 0);
  EXPECT_EQ(std::memcmp(loaded.xsave.bytes, state.xsave.bytes, sizeof state.xsave.bytes), 0);
  EXPECT_EQ(loaded.msr.kernel_gs_base, state.msr.kernel_gs_base);
  EXPECT_EQ(loaded.segment[kCs].attributes, 0xa09bu);
  EXPECT_TRUE(loaded.pending_debug && loaded.nmi_masked && !loaded.halted);
}

TEST(CpuState, ImpossibleValuesAreRejected) {
  const std::vector<void (*)(CpuState&)> kMutations = {
      [](CpuState& s) { s.rflags = 0; },
      [](CpuState& s) { s.rflags |= Bit(3); },
      [](CpuState& s) { s.cr0 &= ~cr0::kPe; },
      [](CpuState& s) { s.cr0 |= cr0::kNw; },
      [](CpuState& s) { s.cr0 |= Bit(40); },
      [](CpuState& s) { s.cr4 &= ~cr4::kPae; },
      [](CpuState& s) { s.cr4 |= Bit(31); },
      [](CpuState& s) { s.cr3 = Bit(63); },
      [](CpuState& s) { s.msr.efer &= ~efer::kLma; },
      [](CpuState& s) { s.msr.efer |= Bit(13); },
      [](CpuState& s) { s.rflags |= rflags::kVm; },
      [](CpuState& s) { s.segment[kCs].attributes |= Segment::kDb; },
      [](CpuState& s) { s.segment[kDs].attributes |= Bit(20); },
      [](CpuState& s) { s.segment[kGs].base = Bit(60); },
      [](CpuState& s) { s.gdtr.base = Bit(47); },
      [](CpuState& s) { s.xcr0 = 6; },
      [](CpuState& s) { s.xcr0 = 5; },
      [](CpuState& s) { s.xcr0 = 0x67; },
      [](CpuState& s) { s.xcr0 = 0xe3; },
      [](CpuState& s) { s.dr7 = Bit(32); },
      [](CpuState& s) { s.msr.pat = 2; },
      [](CpuState& s) { s.msr.lstar = Bit(63); },
      [](CpuState& s) { s.xsave.mxcsr() = 0x10000; },
      [](CpuState& s) { s.xsave.bytes[519] = 0x80; },
      [](CpuState& s) { s.xsave.bytes[527] = 0x80; },
  };
  int number = 0;
  for (const auto& mutate : kMutations) {
    CpuState state = LongModeState();
    mutate(state);
    const auto data = Save(state);
    CpuState loaded;
    EXPECT_FALSE(Load(loaded, data).has_value()) << "mutation " << number;
    ++number;
  }
}

TEST(CpuState, CutFilesAreRejectedOrHarmless) {
  CpuState state = LongModeState();
  const auto data = Save(state);
  for (size_t cut = 0; cut < data.size(); ++cut) {
    CpuState loaded;
    (void)Load(loaded, std::span(data).first(cut));  // must not read past the end (asan) or crash
  }
}

}  // namespace
}  // namespace nacre::x86
