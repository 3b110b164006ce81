#include "engine/kvm/kvm_choice.h"

#include "engine/kvm/kvm_cpuid.h"

namespace nacre::engine::kvm {

std::string Times(double ratio) {
  return ratio < 10 ? fmt::format("{:.2f} times", ratio) : fmt::format("{:.0f} times", ratio);
}

std::string Joined(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : " ") + name;
  return text;
}

KvmFindings ExamineKvm(std::string_view cpu_model, const x86::CpuModelOptions& options, const std::string& path) {
  KvmFindings findings;
  const auto device = KvmDevice::Open(path);
  if (!device) {
    findings.unusable = device.error().message;
    return findings;
  }
  const auto supported = SupportedCpuid(*device);
  if (!supported) {
    findings.unusable = supported.error().message;
    return findings;
  }
  auto model = FindModel(cpu_model, options, *supported);
  if (!model) {
    findings.unusable = model.error().message;
    return findings;
  }
  findings.cpu = std::move(*model);
  findings.probe = ProbeSpeed(*device, *supported);
  return findings;
}

EngineChoice Choose(const KvmFindings& findings) {
  if (!findings.unusable.empty()) return {false, findings.unusable};
  if (!findings.probe) return {false, "KVM was not measured"};
  const KvmProbe& probe = *findings.probe;
  if (!probe.failure.empty()) return {false, "a small guest fails on this host's KVM " + probe.failure};
  const std::string speed = fmt::format("kernels take {} the host's own time on it and programs {}",
                                        Times(probe.speed.kernel), Times(probe.speed.user));
  if (probe.speed.kernel > kMostTimesNative || probe.speed.user > kMostTimesNative)
    return {false, fmt::format("this host's KVM is slow: {}, the translator takes about twice", speed)};
  if (!findings.cpu.model && !findings.cpu.missing.empty()) return {false, DescribeMissing(findings.cpu)};
  std::string reason = "this host's KVM is fast: " + speed;
  if (!findings.cpu.missing.empty())
    reason += fmt::format("; its guests have CPU model {}", findings.cpu.model->name());
  return {true, std::move(reason)};
}

}  // namespace nacre::engine::kvm
