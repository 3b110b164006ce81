#pragma once
// `nacre run`'s options for people who work on the translator: their values to JitDebugOptions. One thread.

#include <string_view>

#include "base/result.h"
#include "engine/jit/debug_options.h"

namespace nacre::cli {

/// "all" or hexadecimal addresses with commas, and perhaps "to=FILE".
Status ParseDumpBlock(engine::jit::JitDebugOptions& options, std::string_view value);

}  // namespace nacre::cli
