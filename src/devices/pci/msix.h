#pragma once
// MSI-X (PCI Local Bus 3.0, 6.8.2): the vector table and pending bits of one function, as one register block:
// the table at 0, the pending bits at PbaOffset. Owned by PciDevice, which passes on the message control
// register. Under the device lock.

#include <cstdint>
#include <memory>
#include <vector>

#include "bus/device.h"

namespace nacre::devices {

class Msix final : public bus::IoHandler {
 public:
  static constexpr unsigned kMaxVectors = 2048;
  static constexpr uint16_t kEnable = 1 << 15, kFunctionMask = 1 << 14;

  Msix(unsigned vectors, bus::MsiSink& sink);

  static uint64_t PbaOffset(unsigned vectors);
  /// Bytes of the whole block, a multiple of 4096: what shares its page must not be anything else (6.8.2).
  static uint64_t BlockSize(unsigned vectors);

  uint64_t Read(uint64_t offset, unsigned size) override;
  void Write(uint64_t offset, unsigned size, uint64_t value) override;

  /// The message control register of the capability has this value now.
  void SetControl(uint16_t control);
  bool enabled() const { return (control_ & kEnable) != 0; }
  unsigned vectors() const { return static_cast<unsigned>(table_.size()); }
  /// Sends the vector's message; while it or the function is masked it becomes pending. Nothing while not
  /// enabled.
  void Notify(unsigned vector);

  void Reset();
  /// The control register is saved with the configuration space.
  void Serialize(state::Archive& archive);

 private:
  struct Entry {
    uint64_t address = 0;
    uint32_t data = 0;
    uint32_t control = 1;  ///< bit 0: masked
    std::unique_ptr<bus::MsiVector> way;
  };
  bool Masked(unsigned vector) const { return (control_ & kFunctionMask) != 0 || (table_[vector].control & 1) != 0; }
  uint32_t ReadWord(uint64_t offset) const;
  void WriteWord(uint64_t offset, uint32_t value, uint32_t mask);
  void SendIfPending(unsigned vector);
  /// Its message, its mask or the control register has changed.
  void Announce(unsigned vector);
  void AnnounceAll();

  uint16_t control_ = 0;
  std::vector<Entry> table_;
  std::vector<uint32_t> pending_;
};

}  // namespace nacre::devices
