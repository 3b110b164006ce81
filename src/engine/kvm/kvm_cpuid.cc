#include "engine/kvm/kvm_cpuid.h"

#include <sys/ioctl.h>

#include <algorithm>
#include <memory>

#include "base/bits.h"
#include "x86/cpu_model_features.h"

namespace nacre::engine::kvm {
namespace {

constexpr uint32_t kMostEntries = 1024;  // KVM itself has at most 256

/// Features that KVM need not list: see MissingFeatures.
constexpr std::string_view kNotListed[] = {
    "x2APIC",
    "TSC_DEADLINE",  // the local APIC in the kernel has them
    "HYPERVISOR",    // true by itself
    "SS",
    "ARAT",           // the CPU snoops itself, its APIC timer never stops: nothing to execute
    "INVARIANT_TSC",  // every engine's guests have the host's counter
    "ERMS",
    "FSRM",                // REP MOVS may be fast
    "PREFETCHW",           // a NOP on CPUs without
    "FCS_FDS_DEPRECATED",  // what FNSAVE leaves in two words that nobody reads
};

uint32_t Register(const kvm_cpuid_entry2& entry, char reg) {
  return reg == 'a' ? entry.eax : reg == 'b' ? entry.ebx : reg == 'c' ? entry.ecx : entry.edx;
}

bool Lists(std::span<const kvm_cpuid_entry2> supported, uint32_t leaf, uint32_t subleaf, char reg, unsigned bit) {
  const auto entry = std::ranges::find_if(supported, [&](const kvm_cpuid_entry2& e) {
    return e.function == leaf && (!(e.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX) ? subleaf == 0 : e.index == subleaf);
  });
  return entry != supported.end() && TestBit(Register(*entry, reg), bit);
}

/// XCR0 bits of the state that an instruction set needs.
uint64_t StateOf(const x86::Feature& feature) {
  const std::string_view name = feature.name;
  return name == "XSAVE" ? 3 : name == "AVX" ? 4 : name == "AVX512F" ? x86::kAvx512Components : 0;
}

}  // namespace

Result<std::vector<kvm_cpuid_entry2>> SupportedCpuid(const KvmDevice& device) {
  for (uint32_t count = 256; count <= kMostEntries; count *= 2) {
    // struct kvm_cpuid2 ends in an array; 8-byte words suit its alignment.
    const size_t bytes = sizeof(kvm_cpuid2) + count * sizeof(kvm_cpuid_entry2);
    const auto storage = std::make_unique<uint64_t[]>((bytes + 7) / 8);
    auto* const list = reinterpret_cast<kvm_cpuid2*>(storage.get());
    list->nent = count;
    if (ioctl(device.fd(), KVM_GET_SUPPORTED_CPUID, list) == 0)
      return std::vector<kvm_cpuid_entry2>(list->entries, list->entries + std::min(list->nent, count));
    if (errno != E2BIG) return FailErrno("KVM does not tell its CPU features (KVM_GET_SUPPORTED_CPUID)");
  }
  return Fail("KVM tells more than {} CPUID leaves", kMostEntries);
}

std::vector<std::string> MissingFeatures(const x86::CpuModel& model, std::span<const kvm_cpuid_entry2> supported) {
  std::vector<std::string> missing;
  uint64_t components = 0;
  for (unsigned bit = 0; bit < 32; ++bit)
    if (Lists(supported, 0xd, 0, 'a', bit)) components |= Bit(bit);
  for (const x86::Feature& feature : x86::FeatureTable()) {
    if (!model.HasFeature(feature.leaf, feature.subleaf, feature.reg, feature.bit)) continue;
    if (std::ranges::find(kNotListed, feature.name) != std::end(kNotListed)) continue;
    const uint64_t state = StateOf(feature);
    if (!Lists(supported, feature.leaf, feature.subleaf, feature.reg, feature.bit) || (state & ~components) != 0)
      missing.emplace_back(feature.name);
  }
  return missing;
}

Status SetCpuid(const Fd& vcpu, const x86::CpuModel& model, unsigned index) {
  const auto entries = model.CpuidEntries(index);
  std::vector<uint8_t> buffer(sizeof(kvm_cpuid2) + entries.size() * sizeof(kvm_cpuid_entry2));
  auto* cpuid = reinterpret_cast<kvm_cpuid2*>(buffer.data());
  cpuid->nent = static_cast<uint32_t>(entries.size());
  for (size_t i = 0; i < entries.size(); ++i) {
    const auto& from = entries[i];
    kvm_cpuid_entry2& to = cpuid->entries[i];
    to.function = from.leaf;
    to.index = from.subleaf;
    to.flags = from.indexed ? KVM_CPUID_FLAG_SIGNIFCANT_INDEX : 0;
    to.eax = from.value.eax;
    to.ebx = from.value.ebx;
    to.ecx = from.value.ecx;
    to.edx = from.value.edx;
  }
  if (ioctl(vcpu.get(), KVM_SET_CPUID2, cpuid) != 0)
    return FailErrno("KVM does not take the CPU model {}", model.name());
  return {};
}

}  // namespace nacre::engine::kvm
