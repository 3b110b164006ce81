#pragma once
// Finds firmware by name, as Debian's packages install it, and reads it. Called by the machine before any vCPU runs.

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"

namespace nacre::boot {

/// What lies below 4 GiB: variables first, then code, which ends there.
struct FirmwareImage {
  std::string path;  ///< of the code
  std::vector<uint8_t> code;
  std::vector<uint8_t> variables;  ///< as a new machine has them; empty: the firmware keeps none in flash
};

/// `name`: "bios" (SeaBIOS), "uefi" (OVMF with its variables), or a file, which is code. A failure names the package to
/// install.
Result<FirmwareImage> LoadFirmware(const std::string& name);

}  // namespace nacre::boot
