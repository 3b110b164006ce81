#include "x86/cpu_state.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>

#include "state/archive.h"
#include "x86/cpu_model.h"
#include "x86/cpu_model_selection.h"
#include "x86/cpu_state_archive.h"

namespace nacre::x86 {
namespace {

CpuModel Model(std::string_view name) {
  auto model = CpuModel::Create(name, {.tsc_khz = 2'000'000});
  if (!model) ADD_FAILURE() << model.error().message;
  return std::move(model).value();
}

/// Has all that LongModeState sets.
const CpuModel& TestModel() {
  static const CpuModel model = Model("host");
  return model;
}

std::vector<uint8_t> Save(CpuState& state, const CpuModel& model = TestModel()) {
  auto archive = state::Archive::ForSaving();
  SerializeCpu(archive, state, model);
  return archive.Finish();
}

Status Load(CpuState& state, std::span<const uint8_t> data, const CpuModel& model = TestModel()) {
  auto archive = state::Archive::ForLoading(data);
  SerializeCpu(archive, state, model);
  return archive.status();
}

CpuState LongModeState() {
  CpuState state;
  ResetCpuState(state);
  state.cr0 = cr0::kPe | cr0::kPg | cr0::kEt | cr0::kNe | cr0::kWp;
  state.cr4 = cr4::kPae | cr4::kPge | cr4::kOsFxsr | cr4::kPcide | cr4::kSmap;
  state.msr.efer = efer::kLme | efer::kLma | efer::kSce | efer::kNxe;
  state.segment[kCs] = {0, 0xffffffff, 0xa09b, 0x10};
  state.xcr0 = TestModel().xcr0_mask();
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
  EXPECT_EQ(state.xcr0, TestModel().xcr0_mask());
  EXPECT_EQ(state.rip, 0xfff0u);
  InitCpuState(state, true);
  EXPECT_FALSE(state.wait_for_sipi);
}

TEST(CpuState, SaveLoadKeepsEverything) {
  std::mt19937_64 random(3);
  CpuState state = LongModeState();
  for (uint64_t& reg : state.gpr) reg = random();
  for (uint64_t& reg : state.dr) reg = random();
  for (unsigned i = 0; i < 16; ++i) state.msr.mtrr_physical[i] = (random() & 0xff'ffff'f000) | (i % 2 == 0 ? 6 : 0x800);
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

/// A saved state with `value` in a byte of the XSAVE header, which saving would not write.
std::vector<uint8_t> WithXsaveHeader(std::vector<uint8_t> data, size_t offset, uint8_t value) {
  constexpr uint8_t kField[] = {3, 0, 0, 0, 64, 0, 0, 0};  // number, kind, size
  const auto found = std::ranges::search(data, kField);
  EXPECT_FALSE(found.empty());
  if (!found.empty()) *(found.end() + static_cast<ptrdiff_t>(offset)) = value;
  return data;
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
      [](CpuState& s) { s.xcr0 = 2; },
      [](CpuState& s) { s.xcr0 = 6; },
      [](CpuState& s) { s.xcr0 |= 0x200; },
      [](CpuState& s) { s.cr4 |= cr4::kPke; },
      [](CpuState& s) { s.cr4 |= cr4::kLa57; },
      [](CpuState& s) { s.cr3 = Bit(40); },
      [](CpuState& s) { s.msr.spec_ctrl = Bit(7); },
      [](CpuState& s) { s.msr.xss = 1; },
      [](CpuState& s) { s.msr.mtrr_fixed[3] = 2; },
      [](CpuState& s) { s.msr.mtrr_def_type = 7; },
      [](CpuState& s) { s.msr.mtrr_physical[1] = 1; },
      [](CpuState& s) { s.msr.mtrr_physical[2] = Bit(45); },
      [](CpuState& s) { s.xcr0 = 5; },
      [](CpuState& s) { s.xcr0 = 0x67; },
      [](CpuState& s) { s.xcr0 = 0xe3; },
      [](CpuState& s) { s.dr7 = Bit(32); },
      [](CpuState& s) { s.msr.pat = 2; },
      [](CpuState& s) { s.msr.lstar = Bit(63); },
      [](CpuState& s) { s.xsave.mxcsr() = 0x10000; },
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
  CpuState state = LongModeState(), loaded;
  EXPECT_TRUE(Load(loaded, WithXsaveHeader(Save(state), 1, 0)));
  EXPECT_FALSE(Load(loaded, WithXsaveHeader(Save(state), 1, 2)));
  EXPECT_FALSE(Load(loaded, WithXsaveHeader(Save(state), 7, 0x80)));
}

TEST(CpuStateModels, TheXsaveAreaIsTheModels) {
  std::vector<std::string> levels;
  for (const std::string_view level : ModelLevels())
    if (CpuModel::Create(level, {.tsc_khz = 2'000'000})) levels.emplace_back(level);
  for (const std::string& level : levels) {
    const CpuModel model = Model(level);
    CpuState state;
    ResetCpuState(state);
    std::memset(state.xsave.bytes + XsaveArea::kAvxOffset, 0xda, XsaveArea::kSize - XsaveArea::kAvxOffset);
    std::memset(state.xsave.xmm(0), 0x77, 256);
    const auto data = Save(state, model);
    CpuState loaded;
    std::memset(loaded.xsave.bytes, 0xee, sizeof loaded.xsave.bytes);
    ASSERT_TRUE(Load(loaded, data, model)) << level;
    EXPECT_EQ(std::memcmp(loaded.xsave.bytes, state.xsave.bytes, XsaveArea::kAvxOffset), 0) << level;
    // Nothing of the components that the model lacks has gone to the file: 0xda is in the others only.
    size_t expected = 0;
    for (const XsaveComponent& component : kXsaveComponents) {
      const bool there = TestBit(model.xcr0_mask(), component.bit);
      expected += there ? component.bytes : 0;
      for (unsigned i = 0; i < component.bytes; ++i)
        ASSERT_EQ(loaded.xsave.bytes[component.offset + i], there ? 0xda : 0) << level << " " << component.bit;
    }
    EXPECT_EQ(static_cast<size_t>(std::ranges::count(data, 0xda)), expected) << level;
    EXPECT_EQ(expected, level == "x86-64-v4" ? 1856u : level == "x86-64-v3" ? 256u : 0u);
  }
}

TEST(CpuStateModels, AnotherModelsStateIsRefused) {
  CpuState state;
  ResetCpuState(state);
  const CpuModel one = Model("x86-64-v1"), two = Model("x86-64-v2"), less = Model("x86-64-v2,-smap");
  CpuState loaded;
  EXPECT_TRUE(Load(loaded, Save(state, two), two));
  const Status refused = Load(loaded, Save(state, two), less);
  ASSERT_FALSE(refused);
  const std::string& text = refused.error().message;
  EXPECT_NE(text.find("x86-64-v2, this VM's is x86-64-v2,-smap: it has beyond it SMAP, and lacks nothing"),
            std::string::npos)
      << text;
  EXPECT_FALSE(Load(loaded, Save(state, one), two));
  EXPECT_FALSE(Load(loaded, Save(state, two), one));
  // The name is not what counts.
  EXPECT_TRUE(Load(loaded, Save(state, Model("x86-64-v1,+ssse3,-ssse3,-sse3")), one));
}

TEST(CpuStateModels, WhatTheModelLacksIsNotInItsState) {
  const CpuModel one = Model("x86-64-v1"), two = Model("x86-64-v2");
  CpuState state;
  ResetCpuState(state);
  state.msr.tsc_adjust = 5, state.msr.tsc_aux = 6, state.msr.spec_ctrl = 1;
  CpuState loaded;
  ASSERT_TRUE(Load(loaded, Save(state, two), two));
  EXPECT_EQ(loaded.msr.tsc_adjust, 5u);
  ASSERT_TRUE(Load(loaded, Save(state, one), one));
  EXPECT_EQ(loaded.msr.tsc_adjust | loaded.msr.tsc_aux | loaded.msr.spec_ctrl, 0u);
  for (const auto& mutate : std::initializer_list<void (*)(CpuState&)>{[](CpuState& s) { s.cr4 |= cr4::kUmip; },
                                                                       [](CpuState& s) { s.cr4 |= cr4::kOsXsave; },
                                                                       [](CpuState& s) { s.xcr0 = 7; }}) {
    CpuState bad = state;
    mutate(bad);
    EXPECT_FALSE(Load(loaded, Save(bad, one), one));
  }
  EXPECT_FALSE(Load(loaded, WithXsaveHeader(Save(state, one), 0, 4), one));
  // What the host has besides is not saved.
  state.xsave.bytes[512] |= 4;
  ASSERT_TRUE(Load(loaded, Save(state, one), one));
  EXPECT_EQ(loaded.xsave.bytes[512] & 4, 0);
}

/// Damaged files: no crash, and what is accepted is what a CPU of the model can hold.
TEST(CpuStateModels, DamagedFilesAreRejectedOrSound) {
  std::mt19937_64 random(11);
  for (const char* name : {"x86-64-v1", "x86-64-v2,-smep", "host"}) {
    const CpuModel model = Model(name);
    CpuState state = LongModeState();
    state.cr4 &= model.cr4_mask();
    state.xcr0 &= model.xcr0_mask();
    const auto data = Save(state, model);
    unsigned accepted = 0;
    for (unsigned round = 0; round < 20'000; ++round) {
      auto damaged = data;
      for (unsigned i = 0; i < 1 + random() % 3; ++i) {
        uint8_t& byte = damaged[random() % damaged.size()];
        byte = random() % 2 ? static_cast<uint8_t>(random()) : static_cast<uint8_t>(byte ^ (1u << random() % 8));
      }
      if (random() % 8 == 0) damaged.resize(random() % damaged.size());
      CpuState loaded;
      ResetCpuState(loaded);
      if (!Load(loaded, damaged, model)) continue;
      ++accepted;
      ASSERT_EQ(loaded.cr4 & ~model.cr4_mask(), 0u);
      ASSERT_EQ(loaded.xcr0 & ~model.xcr0_mask(), 0u);
      ASSERT_EQ(loaded.msr.efer & ~(model.efer_mask() | efer::kLma), 0u);
      ASSERT_EQ(loaded.xsave.mxcsr() & ~0xffffu, 0u);
      ASSERT_EQ(SignExtend(loaded.msr.lstar, 48), loaded.msr.lstar);
      ASSERT_EQ(SignExtend(loaded.segment[kFs].base, 48), loaded.segment[kFs].base);
      CpuState again;
      ASSERT_TRUE(Load(again, Save(loaded, model), model)) << "what was accepted is accepted again";
    }
    EXPECT_GT(accepted, 1000u) << name;
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
