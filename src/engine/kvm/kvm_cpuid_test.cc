#include "engine/kvm/kvm_cpuid.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "engine/kvm/kvm_model.h"
#include "x86/cpu_model_selection.h"

namespace nacre::engine::kvm {
namespace {

x86::CpuModel Model() {
  auto model = x86::CpuModel::Create("x86-64-v2", {.tsc_khz = 2'000'000});
  if (!model) ADD_FAILURE() << model.error().message;
  return std::move(model).value();
}

/// The list of a KVM that has all of `model`.
std::vector<kvm_cpuid_entry2> ListOf(const x86::CpuModel& model) {
  std::vector<kvm_cpuid_entry2> list;
  const auto add = [&](uint32_t leaf, uint32_t index, uint32_t flags) {
    x86::CpuState state;
    x86::ResetCpuState(state);
    state.msr.efer = x86::efer::kLme | x86::efer::kLma;
    state.segment[x86::kCs].attributes |= x86::Segment::kL;
    const x86::CpuidResult r = model.Cpuid(leaf, index, state, 0);
    kvm_cpuid_entry2 entry{};
    entry.function = leaf;
    entry.index = index;
    entry.flags = flags;
    entry.eax = r.eax, entry.ebx = r.ebx, entry.ecx = r.ecx, entry.edx = r.edx;
    list.push_back(entry);
  };
  for (const uint32_t leaf : {0u, 1u, 6u}) add(leaf, 0, 0);
  for (const uint32_t index : {0u, 1u, 2u}) add(7, index, KVM_CPUID_FLAG_SIGNIFCANT_INDEX);
  for (const uint32_t index : {0u, 1u}) add(0xd, index, KVM_CPUID_FLAG_SIGNIFCANT_INDEX);
  for (const uint32_t leaf : {0x80000000u, 0x80000001u, 0x80000007u, 0x80000008u}) add(leaf, 0, 0);
  return list;
}

kvm_cpuid_entry2& Leaf(std::vector<kvm_cpuid_entry2>& list, uint32_t leaf, uint32_t index = 0) {
  return *std::ranges::find_if(list, [&](const auto& e) { return e.function == leaf && e.index == index; });
}

TEST(KvmCpuid, TheModelsOwnListLacksNothing) { EXPECT_TRUE(MissingFeatures(Model(), ListOf(Model())).empty()); }

TEST(KvmCpuid, MissingFeaturesAreNamed) {
  auto list = ListOf(Model());
  Leaf(list, 1).ecx &= ~(1u << 17);
  Leaf(list, 7).ebx &= ~(1u << 20);
  Leaf(list, 0x80000001).edx &= ~(1u << 26);
  EXPECT_EQ(MissingFeatures(Model(), list), (std::vector<std::string>{"PCID", "SMAP", "PDPE1GB"}));
}

TEST(KvmCpuid, ALeafThatIsNotThereLacksAllOfIt) {
  auto list = ListOf(Model());
  std::erase_if(list, [](const auto& e) { return e.function == 7 && e.index == 0; });
  const auto missing = MissingFeatures(Model(), list);
  EXPECT_NE(std::ranges::find(missing, "SMEP"), missing.end());
}

TEST(KvmCpuid, WhatKvmNeedNotListIsNotMissed) {
  auto list = ListOf(Model());
  Leaf(list, 1).ecx &= ~(1u << 21 | 1u << 24 | 1u << 31);  // x2APIC, TSC deadline, hypervisor
  Leaf(list, 1).edx &= ~(1u << 27);                        // self snoop: AMD's CPUs have no such flag
  Leaf(list, 7).ebx &= ~(1u << 9);                         // ERMS
  Leaf(list, 6).eax = 0;
  Leaf(list, 0x80000007).edx = 0;
  EXPECT_TRUE(MissingFeatures(Model(), list).empty());
}

TEST(KvmCpuid, XsaveStateIsPartOfTheModel) {
  auto model = x86::CpuModel::Create("x86-64-v3", {.tsc_khz = 2'000'000});
  if (!model) GTEST_SKIP() << model.error().message;
  auto list = ListOf(*model);
  EXPECT_TRUE(MissingFeatures(*model, list).empty());
  Leaf(list, 0xd, 0).eax &= ~4u;
  Leaf(list, 0xd, 1).eax = 0;
  EXPECT_EQ(MissingFeatures(*model, list), (std::vector<std::string>{"AVX", "XSAVEOPT"}));
}

/// The list of ListOf without the features `gone`.
std::vector<kvm_cpuid_entry2> ListWithout(std::string_view model, std::initializer_list<std::string_view> gone) {
  auto list = ListOf(x86::CpuModel::Create(model, {.tsc_khz = 2'000'000}).value());
  for (const std::string_view name : gone) {
    const x86::Feature& feature = *x86::FindFeature(name);
    kvm_cpuid_entry2& leaf = Leaf(list, feature.leaf, feature.subleaf);
    (feature.reg == 'a'   ? leaf.eax
     : feature.reg == 'b' ? leaf.ebx
     : feature.reg == 'c' ? leaf.ecx
                          : leaf.edx) &= ~(1u << feature.bit);
  }
  return list;
}

KvmModel Find(std::string_view name, const std::vector<kvm_cpuid_entry2>& list) {
  auto found = FindModel(name, {.tsc_khz = 2'000'000}, list);
  if (!found) ADD_FAILURE() << found.error().message;
  return found ? std::move(*found) : KvmModel{};
}

TEST(KvmModel, DefaultGoesWithoutSoftwareExtras) {
  const std::string level = x86::CpuModel::Create("default", {.tsc_khz = 2'000'000})->name();
  const KvmModel found = Find("default", ListWithout(level, {"PCID", "INVPCID", "SMAP", "RDTSCP"}));
  EXPECT_EQ(found.asked, level);
  EXPECT_EQ(found.missing, (std::vector<std::string>{"PCID", "INVPCID", "SMAP", "RDTSCP"}));
  ASSERT_TRUE(found.model);
  EXPECT_EQ(found.model->name(), level + ",-pcid,-smap,-rdtscp");
}

TEST(KvmModel, DefaultIsALowerLevelWhereInstructionsAreMissing) {
  const std::string level = x86::CpuModel::Create("default", {.tsc_khz = 2'000'000})->name();
  const KvmModel two = Find("default,-umip", ListWithout(level, {"SMEP", "BMI2"}));
  ASSERT_TRUE(two.model);
  EXPECT_EQ(two.model->name(), level == "x86-64-v3" ? "x86-64-v2,-umip,-smep" : level + ",-umip,-smep");
  const KvmModel one = Find("default", ListWithout(level, {"SMEP", "SSE3"}));
  ASSERT_TRUE(one.model);
  EXPECT_EQ(one.model->name(), "x86-64-v1");
  const KvmModel none = Find("default", ListWithout(level, {"CMOV"}));
  EXPECT_FALSE(none.model);
  EXPECT_NE(DescribeMissing(none).find("no CPU model works with it: use --engine jit"), std::string::npos);
}

TEST(KvmModel, NamedLevelsAreStrict) {
  const KvmModel extras = Find("x86-64-v2", ListWithout("x86-64-v2", {"PCID", "INVPCID", "SMAP"}));
  EXPECT_FALSE(extras.model);
  EXPECT_EQ(DescribeMissing(extras),
            "this host's KVM lacks PCID INVPCID SMAP of CPU model x86-64-v2; it has --cpu x86-64-v2,-pcid,-smap");
  const KvmModel real = Find("x86-64-v2", ListWithout("x86-64-v2", {"SSSE3"}));
  EXPECT_FALSE(real.model);
  EXPECT_EQ(DescribeMissing(real), "this host's KVM lacks SSSE3 of CPU model x86-64-v2; it has --cpu x86-64-v1");
  EXPECT_EQ(Find(extras.instead, ListWithout("x86-64-v2", {"PCID", "INVPCID", "SMAP"})).model->name(), extras.instead);
}

TEST(KvmModel, WhatIsAskedForByNameIsNotDropped) {
  const auto list = ListWithout("x86-64-v2", {"PCID", "INVPCID"});
  EXPECT_FALSE(Find("x86-64-v1,+pcid", list).model);
  EXPECT_EQ(Find("x86-64-v1,+smap", list).model->name(), "x86-64-v1,+smap");
}

TEST(KvmModel, HostIsWhatTheHostAndItsKvmHave) {
  const KvmModel found = Find("host", ListWithout("host", {"SSE4.2", "SMEP"}));
  ASSERT_TRUE(found.model);
  EXPECT_FALSE(found.model->HasFeature(1, 0, 'c', 20));
  EXPECT_TRUE(found.model->HasFeature(1, 0, 'c', 19));
  EXPECT_FALSE(found.model->HasFeature(7, 0, 'b', 7));
}

TEST(KvmCpuid, ReadsTheHostsList) {
  const auto device = KvmDevice::Open();
  if (!device) GTEST_SKIP() << device.error().message;
  const auto list = SupportedCpuid(*device);
  ASSERT_TRUE(list) << list.error().message;
  EXPECT_NE(std::ranges::find(*list, 1u, &kvm_cpuid_entry2::function), list->end());
}

}  // namespace
}  // namespace nacre::engine::kvm
