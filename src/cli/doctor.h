#pragma once
// `nacre doctor`: what this host offers and which engine Nacre takes, in plain words. One thread.

#include <string>

namespace nacre::cli {

/// The report, several lines.
std::string Doctor();
/// Why `--engine auto` is jit here: the state of /dev/kvm in one sentence.
std::string KvmState();

}  // namespace nacre::cli
