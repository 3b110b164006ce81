#pragma once
// `nacre doctor --json`: for scripts and tests. One thread.

#include <string>

#include "engine/kvm/kvm_choice.h"

namespace nacre::cli {

/// One object: "kvm" (usable, emulates, kernel and user: times the host's own, 0 where not measured; failure: why it
/// cannot be used or a small guest fails, else empty), "auto" (the engine) and "reason".
std::string DoctorJson(const engine::kvm::KvmFindings& findings);

}  // namespace nacre::cli
