#pragma once
// vm.toml to a VmConfig and back. Every error names the file, the line, the key and what is allowed there. Any thread.

#include <string>
#include <string_view>

#include "base/result.h"
#include "lifecycle/vm_config.h"

namespace nacre::lifecycle {

/// `file` is what errors call it.
Result<VmConfig> ParseVmToml(std::string_view text, const std::string& file);
Result<VmConfig> ReadVmToml(const std::string& path);
/// A file that ParseVmToml reads as the same configuration; what has its default is left out.
std::string VmTomlText(const VmConfig& config);

}  // namespace nacre::lifecycle
