#include "engine/kvm/kvm_model.h"

#include <algorithm>

#include "engine/kvm/kvm_cpuid.h"
#include "engine/kvm/kvm_device.h"
#include "x86/cpu_model_selection.h"

namespace nacre::engine::kvm {
namespace {

using x86::CpuModel;
using x86::ModelName;

/// `name` without what the KVM lacks, if that is possible: features of x86-64-v1 cannot go, nor, with `keep_real`,
/// those that are instructions of the host's own.
std::optional<CpuModel> Fit(const ModelName& name, const x86::CpuModelOptions& options,
                            std::span<const kvm_cpuid_entry2> supported, bool keep_real) {
  const auto whole = CpuModel::Create(name, options);
  if (!whole) return std::nullopt;
  x86::FeatureSet gone;
  for (const std::string& missing : MissingFeatures(*whole, supported)) {
    const x86::Feature& feature = *x86::FindFeature(missing);
    const bool asked_for = std::ranges::any_of(
        name.modifiers, [&](const ModelName::Modifier& m) { return m.add && m.feature == &feature; });
    if (feature.level == x86::kLevelV1 || (keep_real && !feature.software) || asked_for) return std::nullopt;
    gone.set(x86::IndexOf(feature));
  }
  auto fitted = CpuModel::Create(name.Without(gone), options);
  if (!fitted || !MissingFeatures(*fitted, supported).empty()) return std::nullopt;
  return std::move(*fitted);
}

/// What `default` is, with the modifiers of `name`.
std::optional<CpuModel> HighestLevel(ModelName name, const x86::CpuModelOptions& options,
                                     std::span<const kvm_cpuid_entry2> supported) {
  for (int level = x86::kLevelV3; level >= x86::kLevelV1; --level) {
    name.base = x86::ModelLevels()[static_cast<size_t>(level)];
    if (auto fitted = Fit(name, options, supported, true)) return fitted;
  }
  return std::nullopt;
}

}  // namespace

Result<KvmModel> FindModel(std::string_view text, const x86::CpuModelOptions& options,
                           std::span<const kvm_cpuid_entry2> supported) {
  const ModelName name = NACRE_TRY(x86::ParseModelName(text));
  CpuModel asked = NACRE_TRY(CpuModel::Create(name, options));
  KvmModel found{.asked = asked.name(), .missing = MissingFeatures(asked, supported), .model = {}, .instead = {}};
  if (found.missing.empty()) {
    found.model = std::move(asked);
  } else if (name.base == "default") {
    found.model = HighestLevel(name, options, supported);
  } else if (name.base == "host") {
    found.model = Fit(name, options, supported, false);
  } else if (const auto near = Fit(name, options, supported, true)) {
    found.instead = near->name();
  }
  if (found.model || !found.instead.empty()) return found;
  if (const auto other = HighestLevel({.base = "default", .modifiers = {}}, options, supported))
    found.instead = other->name();
  return found;
}

std::string DescribeMissing(const KvmModel& found) {
  std::string names;
  for (const std::string& name : found.missing) names += " " + name;
  const std::string& instead = found.model ? found.model->name() : found.instead;
  return fmt::format(
      "this host's KVM lacks{} of CPU model {}; {}", names, found.asked,
      instead.empty() ? "no CPU model works with it: use --engine jit" : fmt::format("it has --cpu {}", instead));
}

Result<CpuModel> ModelOnKvm(std::string_view name, const x86::CpuModelOptions& options) {
  const KvmDevice device = NACRE_TRY(KvmDevice::Open());
  const auto supported = NACRE_TRY(SupportedCpuid(device));
  KvmModel found = NACRE_TRY(FindModel(name, options, supported));
  if (!found.model) return Fail("{}", DescribeMissing(found));
  return std::move(*found.model);
}

Status CheckModel(const CpuModel& model) {
  const KvmDevice device = NACRE_TRY(KvmDevice::Open());
  const auto supported = NACRE_TRY(SupportedCpuid(device));
  if (MissingFeatures(model, supported).empty()) return {};
  const KvmModel found =
      NACRE_TRY(FindModel(model.name(), {.cpu_count = model.cpu_count(), .tsc_khz = model.tsc_khz()}, supported));
  return Fail("{}", DescribeMissing(found));
}

}  // namespace nacre::engine::kvm
