#pragma once
// The PCI host bridge: configuration mechanism #1 (PCI Local Bus 3.0, 3.2.2.3.2) at ports 0xcf8-0xcff,
// optionally the memory-mapped window (PCI Express 3.0, 7.2.2), bus 0 with 32 devices of 8 functions, and the
// wiring of their INTx pins to four interrupt lines (slot + pin rotated; firmware for this board knows how).
//
// The machine maps io() at port 0xcf8, 8 ports, and may map ecam() (kEcamSize bytes). Under the device lock.

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/result.h"
#include "bus/irq_sharer.h"
#include "devices/chipset/shadow_memory.h"
#include "devices/pci/pci_device.h"

namespace nacre::devices {

/// Addresses that the machine leaves to PCI, for AssignResources.
struct PciWindows {
  uint64_t io_start = 0xc000, io_end = 0x10000;
  uint64_t memory32_start = 0, memory32_end = 0;  ///< below 4 GiB
  uint64_t memory64_start = 0, memory64_end = 0;  ///< above RAM; empty: 64-bit BARs go below 4 GiB
};

class PciHost final : public bus::Device {
 public:
  static constexpr uint64_t kEcamSize = 1 << 20;  ///< bus 0
  /// Bus 0, device 0. The default is Intel's 82441FX, which every firmware and operating system knows.
  static constexpr PciIdentity kHostBridge = {0x8086, 0x1237, 0x1af4, 0x1100, 0x060000, 2, 0};

  /// `pirq`: where PIRQA# to PIRQD# go; `pirq_number`: their numbers for the guest's interrupt line
  /// registers.
  PciHost(const PciWiring& wiring, const std::array<bus::IrqLine*, 4>& pirq, const std::array<uint8_t, 4>& pirq_number,
          const PciIdentity& bridge = kHostBridge);
  ~PciHost() override;

  /// Slot 0 is the bridge. Fails if the place is taken. Host and devices may be destroyed in any order, once the
  /// machine has stopped: neither uses the other then.
  Status Attach(PciDevice& device, unsigned slot, unsigned function = 0);
  /// The first free slot, from 1.
  Result<unsigned> AttachAnywhere(PciDevice& device);
  /// The PIRQ (0-3) of a slot's INTx pin (1-4): for the ACPI _PRT.
  static unsigned PirqOf(unsigned slot, unsigned pin) { return (slot - 1 + pin - 1) & 3; }

  /// Does what firmware would: gives every BAR an address, enables decoding, fills in interrupt lines. After
  /// Reset, for direct boot only.
  Status AssignResources(const PciWindows& windows);

  /// The addresses from 4 GiB on that memory BARs decode now; last 0: none do.
  struct Span {
    uint64_t first = 0, last = 0;
  };
  Span BarsAbove4G() const;

  bus::IoHandler& io() { return io_; }
  bus::IoHandler& ecam() { return ecam_; }
  /// Byte accesses to port 0xcf9 lie inside the address register's dword and go here (chipset reset control).
  void SetResetControl(bus::IoHandler* handler) { reset_control_ = handler; }

  /// Follows the bridge's PAM and SMRAM registers from now on.
  void SetShadowMemory(ShadowMemory* shadow);

  std::string_view name() const override { return "pci-host"; }
  /// The latch and the bridge; the machine resets the devices themselves.
  void Reset() override;
  void Serialize(state::Archive& archive) override;

 private:
  class Bridge;
  struct Io final : bus::IoHandler {
    explicit Io(PciHost& owner) : host(owner) {}
    uint64_t Read(uint64_t offset, unsigned size) override;
    void Write(uint64_t offset, unsigned size, uint64_t value) override;
    PciHost& host;
  };
  struct Ecam final : bus::IoHandler {
    explicit Ecam(PciHost& owner) : host(owner) {}
    uint64_t Read(uint64_t offset, unsigned size) override;
    void Write(uint64_t offset, unsigned size, uint64_t value) override;
    PciHost& host;
  };

  PciDevice* Find(unsigned bus, unsigned device_function) const {
    return bus == 0 ? functions_[device_function] : nullptr;
  }
  PciDevice* Selected() const;

  std::array<bus::IrqSharer, 4> pirq_;
  std::array<uint8_t, 4> pirq_number_;
  std::unique_ptr<Bridge> bridge_;
  std::array<PciDevice*, 256> functions_{};
  std::vector<std::unique_ptr<bus::IrqLine>> lines_;
  uint32_t address_ = 0;
  bus::IoHandler* reset_control_ = nullptr;
  Io io_{*this};
  Ecam ecam_{*this};
};

}  // namespace nacre::devices
