#pragma once
// A CPU model's name, `BASE[,-FEATURE|,+FEATURE...]`, and the features that it stands for on this host. Any thread.

#include <bitset>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "x86/cpu_model_features.h"

namespace nacre::x86 {

/// Bit i: FeatureTable()[i].
using FeatureSet = std::bitset<128>;

struct ModelName {
  struct Modifier {
    bool add = false;
    const Feature* feature = nullptr;
  };
  std::string base;                 ///< x86-64-v1 to x86-64-v4, host or default
  std::vector<Modifier> modifiers;  ///< in order: a later one wins

  /// As on a command line, with names in lower case.
  std::string Text() const;
  /// This name with `features` taken away, those left out that go with another of them.
  ModelName Without(const FeatureSet& features) const;
};

/// Form only; the host is not looked at. Errors name near or all names.
Result<ModelName> ParseModelName(std::string_view text);

struct SelectedModel {
  ModelName name;  ///< `default` resolved to a level
  FeatureSet features;
};
/// Fails where the host lacks something that the model needs, with the complete list and what to try.
Result<SelectedModel> SelectModel(const ModelName& name);

/// `x86-64-v1` to `x86-64-v4`, from the lowest.
std::span<const std::string_view> ModelLevels();
/// Of ModelLevels(), the highest that this host has whole.
unsigned HighestLevelOfHost();

/// Whether this host has the feature, in its CPUID and (AVX) in what its kernel has enabled.
bool HostHas(const Feature& feature);

/// In any case; nullptr: none is called so.
const Feature* FindFeature(std::string_view name);
size_t IndexOf(const Feature& feature);
/// `feature` and all that cannot be without it.
FeatureSet WithDependents(const Feature& feature);
/// `feature` and all that it cannot be without.
FeatureSet WithRequirements(const Feature& feature);

}  // namespace nacre::x86
