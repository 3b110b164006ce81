#pragma once
// The table behind CpuModel: every feature flag that a model can have, where CPUID shows it, which models have it and
// which instructions come with it. Used by cpu_model.cc, its test, and
// engine/kvm/kvm_cpuid.cc, which asks what a host's KVM lacks of a model.

#include <Zydis/MetaInfo.h>

#include <cstdint>
#include <span>

namespace nacre::x86 {

/// The models that have a feature: this one and those above it.
enum FeatureLevel : uint8_t { kLevelV1 = 0, kLevelV2 = 1, kLevelV3 = 2, kLevelV4 = 3, kLevelHost = 4 };

struct Feature {
  const char* name;
  uint32_t leaf;
  char reg;
  uint8_t bit;
  FeatureLevel level;
  bool software;                 ///< our engines do it whatever the host has
  ZydisISASet isa_sets[6] = {};  ///< ZYDIS_ISA_SET_INVALID: none
  uint8_t subleaf = 0;
  bool avx512 = false;  ///< only together with all of level v4: its instructions have the vector lengths of AVX512VL
};

std::span<const Feature> FeatureTable();

/// Instructions that every x86-64 CPU has and no flag of the table covers.
std::span<const ZydisISASet> BaselineIsaSets();

}  // namespace nacre::x86
