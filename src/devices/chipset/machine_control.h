#pragma once
// What devices ask of the machine as a whole. Called under the device lock, on a vCPU's thread in the middle
// of an instruction: the machine takes a note and acts once the vCPUs have left the guest.

#include <cstdint>

namespace nacre::devices {

class MachineControl {
 public:
  virtual ~MachineControl() = default;
  virtual void PowerOff() = 0;
  virtual void ResetMachine() = 0;
  /// ACPI state S3 begins: no CPU runs guest code any more.
  virtual void Sleep() = 0;
  /// Something that the guest has enabled for that ends S3. Perhaps several times, or before Sleep is carried out.
  virtual void WakeUp() = 0;
  /// A write to the debug-exit port: the process ends with (value << 1) | 1.
  virtual void DebugExit(uint32_t value) = 0;
};

}  // namespace nacre::devices
