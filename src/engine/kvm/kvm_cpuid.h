#pragma once
// What CPUID can say inside this KVM's guests, and what a CPU model has beyond it. Any thread.

#include <span>
#include <string>
#include <vector>

#include "base/fd.h"
#include "base/result.h"
#include "engine/kvm/kvm_api.h"
#include "engine/kvm/kvm_device.h"
#include "x86/cpu_model.h"

namespace nacre::engine::kvm {

/// KVM_GET_SUPPORTED_CPUID.
Result<std::vector<kvm_cpuid_entry2>> SupportedCpuid(const KvmDevice& device);

/// The features of `model` that guests cannot have on a KVM with the list `supported`, by name, in the table's order
/// (x86/cpu_model_features.h); empty: the model works there. Not looked for are what every KVM with an APIC in the
/// kernel has (x2APIC; and the TSC deadline, which KVM tells by a capability that KvmDevice needs: api.rst,
/// KVM_GET_SUPPORTED_CPUID), what follows the state (OSXSAVE, APIC ids), KVM's own leaves, and hints that no
/// instruction depends on. XSAVE, AVX and AVX512F are missing as well where XCR0 cannot have their state.
std::vector<std::string> MissingFeatures(const x86::CpuModel& model, std::span<const kvm_cpuid_entry2> supported);

/// KVM_SET_CPUID2: what the guest's CPUID says on CPU `index`.
Status SetCpuid(const Fd& vcpu, const x86::CpuModel& model, unsigned index);

}  // namespace nacre::engine::kvm
