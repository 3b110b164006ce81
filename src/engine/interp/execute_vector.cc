// x87, vector and XSAVE-family instructions: handed to the VectorUnit, its answers made faults.

#include "engine/interp/handlers.h"

namespace nacre::engine::interp {

bool ExecuteVector(Core& c, const Decoded& d) {
  const bool memory = d.insn.has_memory();
  const uint64_t offset = memory ? c.EffectiveAddress(d) : 0;
  switch (c.vector_unit.Execute(*c.state, d.insn, offset, c)) {
    case VectorResult::kOk:
      return true;
    case VectorResult::kMemoryFault:
      return false;
    case VectorResult::kInvalidOpcode:
      return c.Ud();
    case VectorResult::kDeviceNotAvailable:
      return c.Fault(x86::kDeviceNotAvailable);
    case VectorResult::kGeneralProtection:
      return c.Gp();
    case VectorResult::kX87Error:
      return c.Fault(x86::kX87Error);
    case VectorResult::kSimdError:
      return c.Fault(x86::kSimdError);
  }
  return c.Ud();
}

}  // namespace nacre::engine::interp
