#include "cli/doctor_json.h"

#include <nlohmann/json.hpp>

namespace nacre::cli {

std::string DoctorJson(const engine::kvm::KvmFindings& findings) {
  const engine::kvm::EngineChoice choice = engine::kvm::Choose(findings);
  const engine::kvm::KvmProbe probe = findings.probe.value_or(engine::kvm::KvmProbe{});
  const nlohmann::json report = {{"kvm",
                                  {{"usable", findings.unusable.empty()},
                                   {"emulates", engine::kvm::Emulates(probe)},
                                   {"kernel", probe.speed.kernel},
                                   {"user", probe.speed.user},
                                   {"failure", findings.unusable.empty() ? probe.failure : findings.unusable}}},
                                 {"auto", choice.kvm ? "kvm" : "jit"},
                                 {"reason", choice.reason}};
  return report.dump() + "\n";
}

}  // namespace nacre::cli
