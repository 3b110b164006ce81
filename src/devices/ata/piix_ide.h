#pragma once
// The IDE function of Intel's PIIX3 (82371SB; data sheet 290550, ch. 2.3 and 2.7): two channels at the legacy ports
// with the ISA interrupts 14 and 15, and bus-master DMA by tables of physical regions (Programming Interface for Bus
// Master IDE Controller 1.0). Under the device lock.

#include <array>
#include <memory>

#include "devices/ata/ide_channel.h"
#include "devices/pci/pci_device.h"

namespace nacre::devices {

class PiixIde final : public PciDevice {
 public:
  static constexpr unsigned kChannels = 2;
  static constexpr std::array<uint16_t, kChannels> kCommandPorts{0x1f0, 0x170}, kControlPorts{0x3f6, 0x376};
  static constexpr std::array<unsigned, kChannels> kIrqs{14, 15};
  static constexpr unsigned kBusMasterBar = 4, kBusMasterSize = 16;

  /// `irqs`: the ISA interrupts of both channels.
  PiixIde(const PciWiring& wiring, const std::array<bus::IrqLine*, kChannels>& irqs, memory::GuestMemory& memory);
  ~PiixIde() override;

  /// Place 0 is the primary master, 3 the secondary slave. Once each, before the machine runs.
  void Plug(unsigned place, std::unique_ptr<AtaDrive> drive);
  IdeChannel& channel(unsigned index);
  bus::IoHandler& bus_master_io() { return bus_master_; }
  /// Finishes what the drives' back ends have.
  void Quiesce() override;

 private:
  class Channel;
  struct BusMaster final : bus::IoHandler {
    explicit BusMaster(PiixIde& owner) : device(owner) {}
    uint64_t Read(uint64_t offset, unsigned size) override;
    void Write(uint64_t offset, unsigned size, uint64_t value) override;
    PiixIde& device;
  };

  void ResetFunction() override;
  void SerializeFunction(state::Archive& archive) override;
  void AfterConfigWrite(unsigned offset, unsigned size) override;
  void UpdatePorts();

  bus::PortBus& ports_;
  std::array<std::unique_ptr<Channel>, kChannels> channels_;
  BusMaster bus_master_{*this};
};

}  // namespace nacre::devices
