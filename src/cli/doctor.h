#pragma once
// `nacre doctor`: what this host offers and which engine Nacre takes, in plain words. One thread.

#include <string>

#include "engine/kvm/kvm_choice.h"

namespace nacre::cli {

/// The report, several lines.
std::string Doctor();
/// Of it: the host's KVM, what `--engine auto` takes and why, and what would help.
std::string DescribeKvm(const engine::kvm::KvmFindings& findings, bool in_virtual_machine);

}  // namespace nacre::cli
