#include "engine/kvm/kvm_cpuid.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "x86/cpu_model_features.h"

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
  EXPECT_EQ(MissingFeatures(*model, list), (std::vector<std::string>{"XSAVEOPT", "XCR0[2]"}));
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
