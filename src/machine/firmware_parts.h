#pragma once
// What a board has when firmware starts the machine: ROM and shadow RAM, the configuration device with its files, and,
// where the firmware keeps variables, the flash that holds them. Made by the board; nothing of it exists in a machine
// that boots a kernel directly.
//
// Threads: under the device lock.

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/event_loop.h"
#include "base/fd.h"
#include "base/result.h"
#include "boot/acpi_tables.h"
#include "boot/firmware.h"
#include "bus/bus.h"
#include "devices/chipset/fw_cfg.h"
#include "devices/chipset/pflash.h"
#include "devices/chipset/shadow_memory.h"
#include "devices/pci/pci_host.h"
#include "machine/machine_config.h"
#include "memory/guest_memory.h"

namespace nacre::machine {

class FirmwareParts {
 public:
  struct Wiring {
    const MachineConfig* config = nullptr;
    const boot::FirmwareImage* image = nullptr;
    memory::GuestMemory* memory = nullptr;
    EventLoop* loop = nullptr;
    bus::PortBus* ports = nullptr;
    bus::MemoryBus* memory_bus = nullptr;
    devices::PciHost* pci = nullptr;
    std::function<void()> memory_changed;  ///< the CPUs must forget their address translations
    std::function<boot::AcpiConfig()> acpi;
    std::function<void(uint64_t)> generation_id_placed;  ///< the guest-physical address that firmware chose
    std::vector<std::string> boot_order;                 ///< Open Firmware paths, first choice first
  };
  /// Bytes of ROM that `image` needs.
  static uint64_t RomBytes(const boot::FirmwareImage& image);
  static Result<std::unique_ptr<FirmwareParts>> Create(Wiring wiring);
  ~FirmwareParts();
  FirmwareParts(const FirmwareParts&) = delete;
  FirmwareParts& operator=(const FirmwareParts&) = delete;

  /// Those with state, for the board's reset.
  std::vector<bus::Device*> devices();
  /// Writes changed variables to their file.
  void Flush();

 private:
  /// What firmware prints on port 0x402; reading tells it that somebody listens.
  class Log final : public bus::IoHandler {
   public:
    uint64_t Read(uint64_t, unsigned) override { return 0xe9; }
    void Write(uint64_t offset, unsigned size, uint64_t value) override;
    void Flush();
    Fd file;

   private:
    std::string line_;
  };

  explicit FirmwareParts(Wiring wiring);
  Status PlaceImage();
  Status OpenVariables(std::vector<uint8_t>& variables);
  void AddItems();
  Status AddKernel();
  void VariablesWritten(uint64_t offset, uint64_t size_bytes);

  const Wiring wiring_;
  std::unique_ptr<devices::FwCfg> fw_cfg_;
  std::unique_ptr<devices::ShadowMemory> shadow_;
  std::unique_ptr<devices::PFlash> flash_;
  Fd variables_file_;
  uint64_t changed_start_ = 0, changed_end_ = 0;  ///< of the variables, not yet in the file
  std::unique_ptr<Timer> write_timer_;
  Log log_;
  std::vector<bus::Mapping> mappings_;
};

}  // namespace nacre::machine
