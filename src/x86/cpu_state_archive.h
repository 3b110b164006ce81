#pragma once
// A CPU's saved state. It belongs to a CPU model: of the XSAVE area it has the legacy region, the header and the
// components of the model, each by itself, and of MSRs those that the model has. So a state that was saved under one
// engine opens on every other, and one of another model is refused. One thread.

#include "x86/cpu_state.h"

namespace nacre::state {
class Archive;
}

namespace nacre::x86 {

class CpuModel;

/// Saves or restores all of `state`. A load rejects what no CPU of the model can hold, and the state of another model;
/// what the model lacks is as after RESET then.
void SerializeCpu(state::Archive& archive, CpuState& state, const CpuModel& model);

/// Saves the model's name and its features by name. A load changes nothing; it is rejected where the features are not
/// this model's, with the difference.
void SerializeModel(state::Archive& archive, const CpuModel& model);

}  // namespace nacre::x86
