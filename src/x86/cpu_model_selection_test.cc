#include "x86/cpu_model_selection.h"

#include <gtest/gtest.h>

#include "x86/cpu_model.h"

namespace nacre::x86 {
namespace {

std::string ErrorOf(std::string_view name) {
  const auto parsed = ParseModelName(name);
  if (!parsed) return parsed.error().message;
  const auto selected = SelectModel(*parsed);
  return selected ? "" : selected.error().message;
}

FeatureSet Select(std::string_view name) {
  const auto selected = SelectModel(ParseModelName(name).value());
  if (!selected) ADD_FAILURE() << selected.error().message;
  return selected ? selected->features : FeatureSet();
}

bool Has(const FeatureSet& set, std::string_view name) { return set.test(IndexOf(*FindFeature(name))); }
FeatureSet Set(std::initializer_list<std::string_view> names) {
  FeatureSet set;
  for (const std::string_view name : names) set.set(IndexOf(*FindFeature(name)));
  return set;
}

bool Contains(const std::string& text, std::string_view part) { return text.find(part) != std::string::npos; }

TEST(ModelName, FormIsKept) {
  EXPECT_EQ(ParseModelName("x86-64-v3")->Text(), "x86-64-v3");
  EXPECT_EQ(ParseModelName("x86-64-v3,-PCID,-sse4.2,+x2apic")->Text(), "x86-64-v3,-pcid,-sse4.2,+x2apic");
  EXPECT_EQ(ParseModelName("default,-Avx512_Vnni")->Text(), "default,-avx512_vnni");
}

TEST(ModelName, MistakesAreExplained) {
  EXPECT_TRUE(Contains(ErrorOf("pentium"), "choose x86-64-v1"));
  EXPECT_TRUE(Contains(ErrorOf(""), "choose x86-64-v1"));
  EXPECT_TRUE(Contains(ErrorOf("x86-64-v2,pcid"), "write -FEATURE or +FEATURE"));
  EXPECT_TRUE(Contains(ErrorOf("x86-64-v2,"), "write -FEATURE or +FEATURE"));
  EXPECT_TRUE(Contains(ErrorOf("x86-64-v2,-"), "write -FEATURE or +FEATURE"));
  EXPECT_TRUE(Contains(ErrorOf("x86-64-v2,,-pcid"), "write -FEATURE or +FEATURE"));
  EXPECT_TRUE(Contains(ErrorOf("x86-64-v2,-pcidd"), "did you mean pcid?")) << ErrorOf("x86-64-v2,-pcidd");
  const std::string all = ErrorOf("x86-64-v2,-frobnication");
  EXPECT_TRUE(Contains(all, "there are fpu") && Contains(all, " avx512f ")) << all;
  EXPECT_TRUE(Contains(ErrorOf("x86-64-v1,-lm"), "every x86-64 CPU has it"));
}

TEST(ModelName, DependentsGoWithAFeature) {
  const FeatureSet v2 = Select("x86-64-v2");
  EXPECT_EQ(v2 & ~Select("x86-64-v2,-sse4.1"), Set({"SSE4.1", "SSE4.2"}));
  EXPECT_EQ(v2 & ~Select("x86-64-v2,-pcid"), Set({"PCID", "INVPCID"}));
  EXPECT_EQ(v2 & ~Select("x86-64-v2,-spec_ctrl"), Set({"SPEC_CTRL", "STIBP", "SSBD", "BHI_CTRL"}));
  EXPECT_EQ(v2 & ~Select("x86-64-v2,-sse2"), Set({"SSE2", "SSE3", "SSSE3", "SSE4.1", "SSE4.2", "AES", "PCLMULQDQ"}));
  EXPECT_EQ(Select("x86-64-v1,-pcid"), Select("x86-64-v1")) << "what is not there can be taken away";
  if (HighestLevelOfHost() < kLevelV3) GTEST_SKIP() << "the host has no AVX2";
  const FeatureSet v3 = Select("x86-64-v3");
  EXPECT_EQ(v3 & ~Select("x86-64-v3,-avx"), Set({"AVX", "AVX2", "FMA", "F16C"}));
  EXPECT_EQ(v3 & ~Select("x86-64-v3,-xsave"), Set({"XSAVE", "XSAVEOPT", "AVX", "AVX2", "FMA", "F16C"}));
  if (HighestLevelOfHost() < kLevelV4) GTEST_SKIP() << "the host has no AVX-512";
  for (const char* one : {"host,-avx512bw", "host,-avx512f", "host,-avx2"})
    for (const Feature& feature : FeatureTable())
      EXPECT_FALSE(feature.avx512 && Has(Select(one), feature.name)) << one << " " << feature.name;
  EXPECT_TRUE(Has(Select("host,-avx512f"), "AVX2"));
  EXPECT_EQ(Select("x86-64-v4,-avx512vl"), v3);
}

TEST(ModelName, AddedFeaturesBringWhatTheyNeed) {
  EXPECT_EQ(Select("x86-64-v1,+ssse3") & ~Select("x86-64-v1"), Set({"SSE3", "SSSE3"}));
  EXPECT_EQ(Select("x86-64-v1,+invpcid") & ~Select("x86-64-v1"), Set({"PCID", "INVPCID"}));
  EXPECT_EQ(Select("x86-64-v2,-sse4.1,+sse4.2"), Select("x86-64-v2")) << "the last one wins";
  EXPECT_EQ(Select("x86-64-v2,+sse4.2,-sse4.1"), Select("x86-64-v2,-sse4.1"));
}

TEST(ModelName, WhatTheHostLacksIsListedWhole) {
  const FeatureSet host = Select("host");
  for (const Feature& feature : FeatureTable()) {
    if (Has(host, feature.name)) continue;
    const std::string error = ErrorOf("x86-64-v1,+" + std::string(feature.name));
    EXPECT_TRUE(Contains(error, feature.name) && Contains(error, "try --cpu")) << error;
  }
  for (unsigned level = 0; level < ModelLevels().size(); ++level)
    EXPECT_EQ(ErrorOf(ModelLevels()[level]).empty(), level <= HighestLevelOfHost()) << ModelLevels()[level];
}

TEST(ModelName, WithoutSaysNoMoreThanNeeded) {
  const ModelName name = ParseModelName("x86-64-v3").value();
  EXPECT_EQ(name.Without({}).Text(), "x86-64-v3");
  EXPECT_EQ(name.Without(Set({"PCID", "INVPCID", "SMAP"})).Text(), "x86-64-v3,-pcid,-smap");
  EXPECT_EQ(name.Without(Set({"AVX2", "FMA", "AVX"})).Text(), "x86-64-v3,-avx");
  EXPECT_EQ(ParseModelName("x86-64-v4")->Without(Set({"AVX512F", "AVX512VL", "AVX512DQ"})).Text(),
            "x86-64-v4,-avx512f");
  EXPECT_EQ(ParseModelName("x86-64-v1,+avx512f,-nx")->Without(Set({"AVX512F", "AVX2"})).Text(), "x86-64-v1,-nx");
}

TEST(ModelName, EveryNameGivesItsModelAgain) {
  for (const Feature& feature : FeatureTable()) {
    const auto name = ParseModelName("host,-" + std::string(feature.name));
    if (!name) continue;  // cannot be taken away
    const auto model = CpuModel::Create(*name, {.tsc_khz = 2'000'000});
    ASSERT_TRUE(model) << model.error().message;
    EXPECT_FALSE(model->HasFeature(feature.leaf, feature.subleaf, feature.reg, feature.bit)) << feature.name;
    const auto again = CpuModel::Create(model->name(), {.tsc_khz = 2'000'000});
    ASSERT_TRUE(again) << again.error().message;
    EXPECT_EQ(again->name(), model->name());
    for (const Feature& other : FeatureTable())
      EXPECT_EQ(again->HasFeature(other.leaf, other.subleaf, other.reg, other.bit),
                model->HasFeature(other.leaf, other.subleaf, other.reg, other.bit))
          << other.name;
    for (const ZydisISASet set : feature.isa_sets)
      EXPECT_FALSE(set != ZYDIS_ISA_SET_INVALID && model->HasIsaSet(set)) << feature.name;
  }
  EXPECT_LE(FeatureTable().size(), FeatureSet().size());
}

TEST(ModelName, MasksFollowModifiers) {
  const auto mask = [](const char* name) { return CpuModel::Create(name, {.tsc_khz = 2'000'000})->cr4_mask(); };
  EXPECT_EQ(mask("x86-64-v2") ^ mask("x86-64-v2,-smep,-umip"), cr4::kSmep | cr4::kUmip);
  EXPECT_EQ(mask("x86-64-v1") ^ mask("x86-64-v1,+smap"), cr4::kSmap);
  EXPECT_EQ(mask("x86-64-v1") ^ mask("x86-64-v1,-fxsr"), cr4::kOsFxsr | cr4::kOsXmmExcpt);
  EXPECT_EQ(CpuModel::Create("x86-64-v1,-nx", {.tsc_khz = 2'000'000})->efer_mask() & efer::kNxe, 0u);
  EXPECT_EQ(CpuModel::Create("x86-64-v2,-ssbd,-bhi_ctrl", {.tsc_khz = 2'000'000})->spec_ctrl_mask(), 3u);
}

}  // namespace
}  // namespace nacre::x86
