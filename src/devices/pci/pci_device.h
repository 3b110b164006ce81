#pragma once
// One function on the PCI bus: configuration space (PCI Local Bus 3.0 ch. 6) with write masks, base address
// registers that are mapped on the buses while COMMAND enables them, the capability list, INTx, MSI and
// MSI-X. Devices derive from it, declare what they have in their constructor, and are attached to a PciHost.
//
// Threads: under the device lock (bus/device.h).

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "bus/bus.h"
#include "bus/device.h"
#include "devices/pci/msi.h"
#include "devices/pci/msix.h"

namespace nacre::devices {

namespace pci {
// Configuration space header, type 0.
inline constexpr unsigned kVendorId = 0x00, kDeviceId = 0x02, kCommand = 0x04, kStatus = 0x06, kRevision = 0x08,
                          kClass = 0x09, kCacheLine = 0x0c, kLatency = 0x0d, kHeaderType = 0x0e, kBar0 = 0x10,
                          kSubsystemVendor = 0x2c, kSubsystemId = 0x2e, kRom = 0x30, kCapabilities = 0x34,
                          kInterruptLine = 0x3c, kInterruptPin = 0x3d;
inline constexpr uint16_t kCommandIo = 1 << 0, kCommandMemory = 1 << 1, kCommandMaster = 1 << 2,
                          kCommandIntxDisable = 1 << 10;
inline constexpr uint16_t kStatusInterrupt = 1 << 3, kStatusCapabilities = 1 << 4;
inline constexpr uint8_t kCapMsi = 0x05, kCapVendor = 0x09, kCapMsix = 0x11;
inline constexpr unsigned kConfigSize = 256;
inline constexpr unsigned kBarCount = 6;
}  // namespace pci

/// What never changes about a function.
struct PciIdentity {
  uint16_t vendor = 0;
  uint16_t device = 0;
  uint16_t subsystem_vendor = 0;
  uint16_t subsystem = 0;
  uint32_t class_code = 0;  ///< base class << 16 | subclass << 8 | programming interface
  uint8_t revision = 0;
  uint8_t interrupt_pin = 1;  ///< 1 = INTA#, 0 = none
};

/// What the machine gives to every PCI device.
struct PciWiring {
  bus::PortBus* ports = nullptr;
  bus::MemoryBus* memory = nullptr;
  bus::MsiSink* msi = nullptr;
};

enum class BarKind : uint8_t { kIo, kMemory32, kMemory64, kMemory64Prefetchable };

class PciDevice : public bus::Device, private bus::MsiSink {
 public:
  PciDevice(std::string name, const PciIdentity& identity, const PciWiring& wiring);
  ~PciDevice() override;
  PciDevice(const PciDevice&) = delete;
  PciDevice& operator=(const PciDevice&) = delete;

  std::string_view name() const final { return name_; }
  /// Configuration space and interrupts first, then ResetFunction.
  void Reset() final;
  void Serialize(state::Archive& archive) final;
  /// Finishes what back ends have in flight for the function; before it is saved or loaded.
  virtual void Quiesce() {}

  /// `size` 1, 2 or 4; an access beyond byte 255 reads all ones.
  uint32_t ConfigRead(unsigned offset, unsigned size);
  void ConfigWrite(unsigned offset, unsigned size, uint32_t value);

  /// By PciHost when the device is attached.
  void SetIntxLine(bus::IrqLine* line) { intx_line_ = line; }

  // For the direct boot's stand-in for firmware (PciHost::AssignResources).
  bool HasBar(unsigned index) const { return index < pci::kBarCount && bars_[index].size != 0; }
  BarKind bar_kind(unsigned index) const { return bars_[index].kind; }
  uint64_t bar_size(unsigned index) const { return bars_[index].size; }
  /// Where a BAR decodes now; nothing while COMMAND disables it or no address is set.
  std::optional<uint64_t> BarAddress(unsigned index) const;

 protected:
  /// The function's own part. Interrupts are already low (Reset) or restored (Serialize) when these are
  /// called.
  virtual void ResetFunction() = 0;
  /// A base address register leads somewhere else now, or nowhere (BarAddress).
  virtual void BarMoved([[maybe_unused]] unsigned index) {}
  virtual void SerializeFunction(state::Archive& archive) = 0;
  /// Hooks for capabilities that act (virtio's configuration access): before bytes are read, after they were
  /// written.
  virtual void BeforeConfigRead([[maybe_unused]] unsigned offset, [[maybe_unused]] unsigned size) {}
  virtual void AfterConfigWrite([[maybe_unused]] unsigned offset, [[maybe_unused]] unsigned size) {}

  // Declarations, in the constructor only.
  /// `size_bytes`: a power of two, at least 4 (I/O, at most 256) or 16 (memory). 64-bit BARs take `index` and
  /// the next.
  void AddBar(unsigned index, BarKind kind, uint64_t size_bytes);
  /// A register block inside a BAR. `handler` must outlive the device's mappings: a member is right.
  void AddBarBlock(unsigned index, uint64_t offset, uint64_t size_bytes, bus::IoHandler& handler);
  /// The expansion ROM (6.2.5.2), at most 16 MiB; the register decodes the next power of two, from 2 KiB.
  void AddRom(std::vector<uint8_t> image);
  /// A doorbell in a block of a memory BAR, off at first; for SetDoorbell by the number that is returned.
  unsigned AddBarDoorbell(unsigned index, uint64_t offset, bus::Doorbell& doorbell);
  /// Puts { id, next, body... } in the list and returns its offset. Bits set in `write_mask` (same size as
  /// body, may be empty) can be written by the guest. `body` is the value after reset.
  uint8_t AddCapability(uint8_t id, std::span<const uint8_t> body, std::span<const uint8_t> write_mask = {});
  /// 1 to 2048 vectors; table and pending bits are put at `offset` (4 KiB aligned) of a memory BAR and take
  /// Msix::BlockSize(vectors) bytes there.
  void AddMsix(unsigned bar, uint64_t offset, unsigned vectors);
  /// 1, 2, 4 ... 32 vectors, 64-bit, with per-vector masking.
  void AddMsi(unsigned vectors);
  /// A default value and the bits that a guest can write, for registers in 0x40-0xff that are no capability.
  void DefineConfig(unsigned offset, unsigned size, uint32_t value, uint32_t write_mask);

  /// Whether the guest's writes there mean anything now. Not kept over Reset, nor saved.
  void SetDoorbell(unsigned number, bool on);
  /// The level of INTx; reaches the line unless COMMAND disables it. Devices do not use it while MSI(-X) is
  /// enabled.
  void SetIntx(bool level);
  bool msix_enabled() const { return msix_ && msix_->enabled(); }
  bool msi_enabled() const { return msi_ && msi_->enabled(); }
  /// Sends MSI-X or MSI vector `vector` (whichever is enabled), or keeps it pending while masked. Out of
  /// range: nothing.
  void NotifyVector(unsigned vector);
  /// The guest allows this function to read and write memory.
  bool bus_master() const { return (command() & pci::kCommandMaster) != 0; }
  unsigned msix_vectors() const { return msix_ ? msix_->vectors() : 0; }

  uint8_t* config() { return config_.data(); }

 private:
  struct BarBlock {
    uint64_t offset = 0;
    uint64_t size = 0;
    bus::IoHandler* handler = nullptr;
    bus::Mapping mapping;
  };
  struct BarDoorbell {
    unsigned bar = 0;
    uint64_t offset = 0;
    bus::Doorbell* doorbell = nullptr;
    bool on = false;
    std::unique_ptr<bus::DoorbellMapping> mapping;
  };
  struct Bar {
    BarKind kind = BarKind::kMemory32;
    uint64_t size = 0;
    std::optional<uint64_t> mapped_at;
    std::vector<BarBlock> blocks;
  };
  struct Rom final : bus::IoHandler {
    uint64_t Read(uint64_t offset, unsigned access) override;
    void Write(uint64_t, unsigned, uint64_t) override {}
    std::vector<uint8_t> image;
    uint64_t size = 0;
    std::optional<uint64_t> mapped_at;
    bus::Mapping mapping;
  };

  // Messages are memory writes: only a bus master sends them.
  class Vector;
  void Send(uint64_t address, uint32_t data) override {
    if (bus_master()) wiring_.msi->Send(address, data);
  }
  std::unique_ptr<bus::MsiVector> NewVector() override;
  uint16_t command() const { return static_cast<uint16_t>(config_[pci::kCommand] | config_[pci::kCommand + 1] << 8); }
  uint8_t AllocateCapability(uint8_t id, unsigned size_bytes);
  void ApplyConfig();
  void UpdateBars();
  void UpdateRom();
  void UpdateDoorbell(BarDoorbell& doorbell, bool moved);
  void UpdateIntx();
  void UpdateMessageControl();

  const std::string name_;
  const PciIdentity identity_;
  const PciWiring wiring_;
  std::array<uint8_t, pci::kConfigSize> config_{};
  std::array<uint8_t, pci::kConfigSize> reset_value_{};
  std::array<uint8_t, pci::kConfigSize> write_mask_{};
  std::array<Bar, pci::kBarCount> bars_;
  std::unique_ptr<Rom> rom_;
  std::vector<BarDoorbell> doorbells_;
  bus::IrqLine* intx_line_ = nullptr;
  bool intx_level_ = false;
  uint8_t last_capability_ = 0;
  unsigned next_capability_ = 0x40;
  uint8_t msix_offset_ = 0;
  uint8_t msi_offset_ = 0;
  std::optional<Msix> msix_;
  std::optional<Msi> msi_;
};

}  // namespace nacre::devices
