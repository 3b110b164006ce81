#pragma once
// What `--engine auto` takes: KVM where it can be used and is fast, else the translator. Any thread.

#include <optional>
#include <string>
#include <vector>

#include "engine/kvm/kvm_model.h"
#include "engine/kvm/kvm_probe.h"
#include "x86/cpu_model.h"

namespace nacre::engine::kvm {

/// `auto` takes KVM up to this many times the host's own time, in kernel and in user mode. The translator takes about
/// twice the host's time (docs/performance.md), so a slower KVM is no gain.
constexpr double kMostTimesNative = 2.0;

/// What is known of this host's KVM.
struct KvmFindings {
  std::string unusable;  ///< why it cannot be used at all, and what to do; empty: it opens and has the capabilities
  KvmModel cpu;          ///< the CPU model that was asked for
  std::optional<KvmProbe> probe;  ///< none: unusable
};

struct EngineChoice {
  bool kvm = false;    ///< else the translator
  std::string reason;  ///< a sentence without a full stop
};

/// Looks at /dev/kvm for a VM with `--cpu cpu_model`, and measures it. Takes some 5 ms where there is a KVM, at most
/// about 20.
KvmFindings ExamineKvm(std::string_view cpu_model, const x86::CpuModelOptions& options,
                       const std::string& path = "/dev/kvm");
/// The rule of `auto`. Where it takes KVM, `findings.cpu.model` is the VM's.
EngineChoice Choose(const KvmFindings& findings);

/// "1.03 times", "1020 times"
std::string Times(double ratio);
/// The names with spaces.
std::string Joined(const std::vector<std::string>& names);

}  // namespace nacre::engine::kvm
