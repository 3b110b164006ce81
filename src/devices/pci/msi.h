#pragma once
// MSI (PCI Local Bus 3.0, 6.8.1) with a 64-bit address and per-vector masks. The registers live in the
// function's configuration space; this class says what is in them and acts on changes. Owned by PciDevice;
// under the device lock.

#include <cstdint>
#include <memory>
#include <vector>

#include "bus/device.h"

namespace nacre::devices {

class Msi {
 public:
  static constexpr unsigned kBodySize = 22;  ///< control, address, data, reserved, mask, pending: offsets from cap + 2
  static constexpr uint16_t kEnable = 1 << 0;

  /// `registers`: the capability in configuration space (its ID byte). `vectors`: 1, 2, 4, 8, 16 or 32.
  Msi(unsigned vectors, uint8_t* registers, bus::MsiSink& sink);

  /// The capability's bytes after ID and next, and which of their bits can be written.
  static void Describe(unsigned vectors, uint8_t (&body)[kBodySize], uint8_t (&mask)[kBodySize]);

  bool enabled() const;
  void Notify(unsigned vector);
  /// After the guest or a restore wrote the registers: sends what became unmasked.
  void Update();

 private:
  static constexpr unsigned kControl = 2, kAddress = 4, kData = 12, kMask = 16, kPending = 20;
  /// Vectors that the guest allowed (multiple message enable).
  unsigned allowed() const;
  bus::MsiMessage MessageOf(unsigned vector) const;

  uint8_t* registers_;
  unsigned vectors_;
  std::vector<std::unique_ptr<bus::MsiVector>> ways_;  ///< by vector
};

}  // namespace nacre::devices
