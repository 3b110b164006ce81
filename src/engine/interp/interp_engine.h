#pragma once
// The interpreter as an engine: `--engine interp`.

#include <memory>

#include "engine/engine.h"

namespace nacre::engine::interp {

std::unique_ptr<Engine> CreateInterpEngine();

}  // namespace nacre::engine::interp
