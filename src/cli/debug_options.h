#pragma once
// `nacre run`'s options for people who work on the translator: their values to JitDebugOptions. One thread.

#include <string_view>

#include "base/result.h"
#include "engine/jit/debug_options.h"

namespace nacre::cli {

/// "all" or hexadecimal addresses with commas, and perhaps "to=FILE".
Status ParseDumpBlock(engine::jit::JitDebugOptions& options, std::string_view value);
/// "flush", "interrupt", "invalidate", each perhaps with "=N", "cache", "tlb"; with commas.
Status ParseJitStress(engine::jit::JitDebugOptions& options, std::string_view value);
/// The name of an option given that only the translator has, nullptr if none is.
const char* JitOnlyOption(const engine::jit::JitDebugOptions& options);
/// What does not go together.
Status CheckDebugOptions(const engine::jit::JitDebugOptions& options, bool engine_is_jit);

}  // namespace nacre::cli
