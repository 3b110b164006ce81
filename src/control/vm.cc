#include "control/vm.h"

namespace nacre::control {

VmInfo MachineVm::Info() const {
  const x86::CpuModel& model = machine_.cpu_model();
  return {.name = name_,
          .state = machine_.state(),
          .asleep = machine_.asleep(),
          .engine = machine_.engine_kind(),
          .cpu_model = model.name(),
          .cpus = model.cpu_count(),
          .memory_bytes = machine_.memory_bytes(),
          .uptime_ms = static_cast<uint64_t>(machine_.uptime().count() / 1'000'000),
          .version = version_};
}

}  // namespace nacre::control
