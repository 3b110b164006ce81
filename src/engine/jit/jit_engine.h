#pragma once
// The translator as an engine: `--engine jit`.

#include <cstdint>
#include <memory>

#include "engine/engine.h"
#include "engine/jit/debug_options.h"

namespace nacre::engine::jit {

inline constexpr uint64_t kMinCodeCache = 4 * kMiB, kMaxCodeCache = kGiB;

struct JitOptions {
  uint64_t code_cache_bytes = 92 * kMiB;  ///< of each vCPU: host code and what is known about it
  bool lockstep = false;       ///< run every block on the interpreter as well and stop at the first difference
  uint64_t lockstep_from = 0;  ///< compare only once RIP has reached this address
  bool prepared = false;       ///< waits for Engine::Begin; else it begins with its first vCPU
  JitDebugOptions debug = {};
};

Result<std::unique_ptr<Engine>> CreateJitEngine(const JitOptions& options);

}  // namespace nacre::engine::jit
