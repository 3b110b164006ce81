#pragma once
// An AHCI controller with six ports as Intel's ICH9 has it (82801IR, 8086:2922; Serial ATA AHCI 1.3.1): 32 command
// slots a port, native command queuing, MSI. Under the device lock.

#include <array>
#include <memory>

#include "devices/ata/ahci_port.h"
#include "devices/pci/pci_device.h"

namespace nacre::devices {

class Ahci final : public PciDevice, public AhciPort::Controller {
 public:
  static constexpr unsigned kPorts = 6, kBar = 5, kPortsOffset = 0x100;
  static constexpr uint64_t kBarSize = 4096;

  Ahci(std::string name, const PciWiring& wiring, memory::GuestMemory& memory);
  ~Ahci() override;

  /// Plug drives in before the machine runs.
  AhciPort& port(unsigned index) { return *ports_[index]; }
  bus::IoHandler& registers_io() { return registers_; }
  void Quiesce() override;

 private:
  struct Registers final : bus::IoHandler {
    explicit Registers(Ahci& owner) : device(owner) {}
    uint64_t Read(uint64_t offset, unsigned size) override;
    void Write(uint64_t offset, unsigned size, uint64_t value) override;
    Ahci& device;
  };

  void OnPortInterrupt() override { UpdateInterrupt(); }
  bool may_master() const override { return bus_master(); }
  void ResetFunction() override;
  void SerializeFunction(state::Archive& archive) override;
  void AfterConfigWrite(unsigned offset, unsigned size) override;
  uint32_t ReadWord(unsigned offset) const;
  void WriteWord(unsigned offset, uint32_t value);
  void ResetController();
  void UpdateInterrupt();

  std::array<std::unique_ptr<AhciPort>, kPorts> ports_;
  uint32_t control_ = 0;
  uint32_t interrupt_status_ = 0;
  bool level_ = false;
  Registers registers_{*this};
};

}  // namespace nacre::devices
