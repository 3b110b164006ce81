#pragma once
// Which CPU model a VM has on this host's KVM. Any thread.

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "engine/kvm/kvm_api.h"
#include "x86/cpu_model.h"

namespace nacre::engine::kvm {

struct KvmModel {
  std::string asked;                   ///< the model as the other engines have it: `default` is a level there
  std::vector<std::string> missing;    ///< what this KVM lacks of it
  std::optional<x86::CpuModel> model;  ///< what a VM gets on this KVM; none: the name is strict and `missing` not empty
  std::string instead;                 ///< without a model: what --cpu would do; empty: nothing does
};

/// For `--cpu name`. Names of levels are strict. `default` is the highest level, up to x86-64-v3, of which the KVM has
/// all that is not marked Feature::software, without what it lacks of that; `host` is what both the host and its KVM
/// have. Fails where `name` is none or the host itself lacks something.
Result<KvmModel> FindModel(std::string_view name, const x86::CpuModelOptions& options,
                           std::span<const kvm_cpuid_entry2> supported);

/// Opens KVM and does that: the model of a VM with `--engine kvm --cpu name`.
Result<x86::CpuModel> ModelOnKvm(std::string_view name, const x86::CpuModelOptions& options);

/// Opens KVM. Fails unless its guests can have all of `model`; the message has the whole list and what to do.
Status CheckModel(const x86::CpuModel& model);

/// "this host's KVM lacks A B of CPU model M; it has --cpu N"
std::string DescribeMissing(const KvmModel& found);

}  // namespace nacre::engine::kvm
