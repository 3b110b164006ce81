// CPU models: an instruction raises #UD exactly where the model lacks it or its state is not enabled, for every form
// that decodes, on the interpreter and on the translator in all its ways, whatever the host has. The other engine runs
// cannot tell: what decides is x86::CpuModel alone, which the guest program models64 checks against CPUID.

#include <Zydis/MetaInfo.h>
#include <Zydis/Mnemonic.h>
#include <gtest/gtest.h>

#include <cstdio>

#include "base/bits.h"
#include "engine/difftest/guest.h"
#include "engine/jit/jit_engine.h"

namespace nacre::engine::difftest {
namespace {

using x86::Encoding;

/// What executes a case.
enum class Way { kInterp, kStep, kRun, kCompact };
constexpr Way kWays[] = {Way::kInterp, Way::kStep, Way::kRun, Way::kCompact};
const char* Name(Way way) {
  static constexpr const char* kNames[] = {"interp", "jit step by step", "jit", "jit, compact code"};
  return kNames[static_cast<int>(way)];
}

/// Instructions whose execution may raise #UD where the CPU has them, or that go where this test has nothing.
bool Unpredictable(const x86::Instruction& insn) {
  switch (insn.mnemonic) {
    case ZYDIS_MNEMONIC_UD0:
    case ZYDIS_MNEMONIC_UD1:
    case ZYDIS_MNEMONIC_UD2:
    case ZYDIS_MNEMONIC_VMCALL:
    case ZYDIS_MNEMONIC_VMMCALL:
    case ZYDIS_MNEMONIC_HLT:
    case ZYDIS_MNEMONIC_CLAC:  // #UD in user mode
    case ZYDIS_MNEMONIC_STAC:
      return true;
    default:
      return insn.branch != x86::BranchKind::kNone || insn.has(x86::kInsnBadLock);
  }
}

bool IsAvx512(const x86::Instruction& insn) {
  return insn.encoding == Encoding::kEvex || insn.isa_set == ZYDIS_ISA_SET_AVX512F_KOP ||
         insn.isa_set == ZYDIS_ISA_SET_AVX512BW_KOP || insn.isa_set == ZYDIS_ISA_SET_AVX512DQ_KOP;
}
/// BMI1 and BMI2 are VEX-encoded too, but work on general registers (SDM 2A 2.7, exception type 13).
bool NeedsAvxState(const x86::Instruction& insn) {
  const bool vex = insn.encoding == Encoding::kVex || insn.encoding == Encoding::kEvex;
  return vex && insn.isa_set != ZYDIS_ISA_SET_BMI1 && insn.isa_set != ZYDIS_ISA_SET_BMI2;
}
bool NeedsOsXsave(const x86::Instruction& insn) {
  return NeedsAvxState(insn) || insn.isa_set == ZYDIS_ISA_SET_XSAVE || insn.isa_set == ZYDIS_ISA_SET_XSAVEOPT;
}

bool ReadsTsc(const x86::Instruction& insn) {
  return insn.mnemonic == ZYDIS_MNEMONIC_RDTSC || insn.mnemonic == ZYDIS_MNEMONIC_RDTSCP;
}
/// What extended state can concern.
bool Extended(const x86::Instruction& insn) { return insn.encoding != Encoding::kLegacy || NeedsOsXsave(insn); }
bool Always(const x86::Instruction&) { return true; }
bool Never(const x86::Instruction&) { return false; }

/// How the operating system has set the CPU up.
struct Setting {
  const char* name;
  uint64_t cr4_clear, cr4_set;
  uint64_t xcr0_keep;
  bool (*concerns)(const x86::Instruction& insn);   ///< others are the same as with all enabled
  bool (*undefined)(const x86::Instruction& insn);  ///< #UD although the model has it
};
constexpr uint64_t kAll = ~uint64_t{0};
constexpr Setting kSettings[] = {
    {"all enabled", 0, 0, kAll, Always, Never},
    {"CR4.OSXSAVE clear", x86::cr4::kOsXsave, 0, kAll, Extended, NeedsOsXsave},
    {"XCR0 without AVX", 0, 0, 3, Extended, NeedsAvxState},
    {"XCR0 without AVX-512", 0, 0, 7, Extended, IsAvx512},
    {"CR4.TSD set", 0, x86::cr4::kTsd, kAll, ReadsTsc, Never},
};

class ModelsTest : public testing::TestWithParam<std::tuple<const char*, x86::CodeSize>> {
 protected:
  void Check(Guest& guest, Subject& subject, Way way, const Setting& setting, const Form& form) {
    if (!setting.concerns(form.insn)) return;
    x86::Instruction adapted = form.insn;
    const bool there = model_->Adapt(adapted);
    if (there && Unpredictable(form.insn)) return;
    if (form.insn.mnemonic == ZYDIS_MNEMONIC_VMCALL || form.insn.mnemonic == ZYDIS_MNEMONIC_VMMCALL) return;
    guest.SetUp(test_->state, std::get<1>(GetParam()));
    test_->state.cr4 &= ~setting.cr4_clear;
    test_->state.cr4 |= setting.cr4_set;
    test_->state.xcr0 &= setting.xcr0_keep;
    test_->insn = form.insn;
    test_->state.rip = NACRE_DIFF_CODE;
    for (const unsigned reg : {x86::kRax, x86::kRdi, x86::kRsi, x86::kRbx, x86::kRsp})
      test_->state.gpr[reg] = NACRE_DIFF_DATA + 0x400;
    guest.Run(*test_, subject, *outcome_);
    const bool expected = !there || setting.undefined(form.insn);
    if ((outcome_->vector == x86::kInvalidOpcode) == expected) return;
    if (++wrong_ <= 20)
      std::printf("%s, %s, %s: %s gives %d\n", model_->name().c_str(), Name(way), setting.name, form.name.c_str(),
                  outcome_->vector);
  }

  std::unique_ptr<x86::CpuModel> model_;
  std::unique_ptr<TestCase> test_ = std::make_unique<TestCase>();
  std::unique_ptr<Outcome> outcome_ = std::make_unique<Outcome>();
  uint64_t wrong_ = 0;
};

TEST_P(ModelsTest, WhatTheModelLacksIsUndefinedAndNothingElse) {
  auto model = x86::CpuModel::Create(std::get<0>(GetParam()), {});
  if (!model) GTEST_SKIP() << model.error().message;
  model_ = std::make_unique<x86::CpuModel>(std::move(*model));
  const auto forms = EnumerateForms(*model_, std::get<1>(GetParam()));
  for (const Way way : kWays) {
    auto guest = Guest::Create(*model_);
    ASSERT_TRUE(guest) << guest.error().message;
    auto engine =
        jit::CreateJitEngine({.code_cache_bytes = 16 * kMiB, .debug = {.stress = {.compact = way == Way::kCompact}}});
    ASSERT_TRUE(engine) << engine.error().message;
    // An engine's first virtual CPU hears of code that was replaced.
    auto step = MakeEngineSubject(**engine, **guest, {}, true), run = MakeEngineSubject(**engine, **guest, {}, false);
    ASSERT_TRUE(step && run) << (step ? run : step).error().message;
    const std::unique_ptr<Subject> interp = MakeInterpreterSubject(**guest);
    Subject& subject = way == Way::kInterp ? *interp : way == Way::kStep ? **step : **run;
    for (const Setting& setting : kSettings)
      for (const Form& form : forms) Check(**guest, subject, way, setting, form);
  }
  EXPECT_EQ(wrong_, 0u);
  EXPECT_GT(forms.size(), 1000u);
}

INSTANTIATE_TEST_SUITE_P(CodeSizes, ModelsTest,
                         testing::Combine(testing::Values("x86-64-v1", "x86-64-v2", "x86-64-v3", "x86-64-v4", "host",
                                                          "x86-64-v3,-avx,-bmi1,-lzcnt",
                                                          "host,-sse4.1,-rdtscp,-rdpid,-xsaveopt"),
                                          testing::Values(x86::CodeSize::k64, x86::CodeSize::k32)),
                         [](const auto& param) {
                           std::string name = std::get<0>(param.param);
                           for (char& c : name)
                             if (!std::isalnum(static_cast<unsigned char>(c))) c = '_';
                           return name + (std::get<1>(param.param) == x86::CodeSize::k64 ? "_Long" : "_Compatibility");
                         });

}  // namespace
}  // namespace nacre::engine::difftest
