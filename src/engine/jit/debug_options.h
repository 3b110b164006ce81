#pragma once
// Options of the translator for people who work on it; all off by default. Set by the command line
// (src/cli/debug_options.h) and by tests.

#include <cstdint>
#include <string>
#include <vector>

namespace nacre::engine::jit {

struct JitDebugOptions {
  std::vector<uint64_t> dump_rips;  ///< translations that hold one of these addresses are listed
  bool dump_all = false;            ///< every translation is
  std::string dump_file;            ///< where to; empty: standard error

  bool any() const { return dump_all || !dump_rips.empty(); }
};

}  // namespace nacre::engine::jit
