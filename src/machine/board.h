#pragma once
// The `pc` board: makes the devices that the configuration asks for and wires them to the buses and interrupt
// controllers, at the places where firmware and operating systems look. Nothing else knows an address.
//
// Threads: under the device lock, except the accessors that return references to fixed parts.

#include <functional>
#include <memory>
#include <vector>

#include "agent/port_stream.h"
#include "base/clock.h"
#include "base/event_loop.h"
#include "base/result.h"
#include "boot/acpi_tables.h"
#include "boot/loader.h"
#include "bus/bus.h"
#include "devices/ata/ahci.h"
#include "devices/ata/piix_ide.h"
#include "devices/chipset/acpi_pm.h"
#include "devices/chipset/apic_bus.h"
#include "devices/chipset/generation_id.h"
#include "devices/chipset/gsi_router.h"
#include "devices/chipset/hpet.h"
#include "devices/chipset/io_apic.h"
#include "devices/chipset/kvm_clock.h"
#include "devices/chipset/kvm_paravirt.h"
#include "devices/chipset/local_apic.h"
#include "devices/chipset/machine_control.h"
#include "devices/chipset/small_ports.h"
#include "devices/ethernet/e1000.h"
#include "devices/legacy/dma8237.h"
#include "devices/legacy/floppy82077.h"
#include "devices/legacy/i8042.h"
#include "devices/legacy/pic8259.h"
#include "devices/legacy/pit8254.h"
#include "devices/legacy/rtc.h"
#include "devices/legacy/uart16550.h"
#include "devices/pci/pci_host.h"
#include "devices/pci/piix.h"
#include "devices/vga/vga.h"
#include "devices/virtio/console.h"
#include "devices/virtio/vdagent.h"
#include "devices/virtio/virtio_pci.h"
#include "display/input_router.h"
#include "display/key_pacer.h"
#include "display/typist.h"
#include "engine/engine.h"
#include "machine/fd_console.h"
#include "machine/firmware_parts.h"
#include "machine/machine_config.h"
#include "machine/vsock_sockets.h"
#include "memory/guest_memory.h"
#include "storage/async_io.h"

namespace nacre::storage {
class ImageDisk;
}

namespace nacre::machine {

class Board {
 public:
  struct Wiring {
    const MachineConfig* config = nullptr;
    const boot::FirmwareImage* firmware = nullptr;  ///< null: direct boot
    std::function<void()> memory_changed;           ///< the CPUs see other memory now
    memory::GuestMemory* memory = nullptr;
    EventLoop* loop = nullptr;
    const devices::GuestTsc* tsc = nullptr;
    devices::MachineControl* control = nullptr;
    std::function<void()> leave;  ///< the user typed Ctrl-]
    std::vector<devices::CpuSignals*> cpus;
  };

  Board() = default;
  ~Board();
  Board(const Board&) = delete;
  Board& operator=(const Board&) = delete;

  /// Once. Opens disks, network and console.
  Status Build(const Wiring& wiring);

  bus::PortBus& ports() { return ports_; }
  bus::MemoryBus& memory_bus() { return memory_bus_; }
  devices::ApicBus& apic_bus() { return apic_bus_; }
  devices::IoApic& io_apic() { return *io_apic_; }
  devices::LocalApic& local_apic(unsigned cpu) { return *local_apics_[cpu]; }
  devices::KvmClock& kvm_clock() { return *kvm_clock_; }
  devices::KvmParavirt& kvm_paravirt() { return *kvm_paravirt_; }

  /// All with a state, in the order of resets; their names differ.
  const std::vector<bus::Device*>& devices() const { return devices_; }
  /// Nothing is in flight between devices and their back ends.
  void QuiesceDisks();
  /// By its number in the configuration; null: not an image that goes on after the run.
  storage::ImageDisk* image(size_t disk) const { return images_[disk]; }
  /// Power-on state of every device.
  void Reset();
  /// In ACPI state S3. Any thread.
  bool asleep() const { return acpi_pm_->asleep(); }
  /// The end of S3: power-on state of what had no power meanwhile. The chipset's set-up, the clock and the screen stay.
  void Wake();
  /// What firmware would do before it starts a kernel: PCI resources, interrupt trigger modes.
  Status PrepareDirectBoot();
  /// Of that, what it would do again after S3.
  Status PrepareResume();
  boot::AcpiConfig AcpiDescription() const;
  /// Null: there is none. Both outlive everything but the board.
  display::Screen* screen() { return screen_; }
  display::InputSink& input() { return *key_pacer_; }
  display::Typist& typist() { return *typist_; }
  /// What PrepareDirectBoot has put on the screen.
  std::optional<boot::LinearScreen> BootScreen() const;
  /// Null: there is none. As screen().
  display::Clipboard* clipboard() { return vdagent_.get(); }
  /// To the guest agent; null: there is none. It outlives everything but the board.
  agent::PortStream* agent_port() { return agent_port_.get(); }
  /// What a machine that goes on from another's memory changes.
  devices::GenerationId& generation_id() { return *generation_id_; }
  void PressPowerButton() { acpi_pm_->PressPowerButton(); }
  /// The size of the terminal that the virtio console leads to.
  void ResizeConsole(uint16_t columns, uint16_t rows) {
    if (virtio_console_) virtio_console_->Resize(columns, rows);
  }
  /// Finishes what back ends have in flight and writes out the consoles.
  void Flush();

  /// Accesses by device, for statistics.
  std::vector<engine::Statistic> Traffic() const;

 private:
  void BuildInterrupts(const Wiring& wiring);
  void BuildLegacy(const Wiring& wiring);
  Status BuildGenerationId();
  Status BuildPci(const Wiring& wiring);
  Status BuildDisplay(const Wiring& wiring);
  Status BuildInput(const Wiring& wiring);
  Status BuildSerial(const Wiring& wiring);
  Status BuildConsole(const Wiring& wiring);
  Status BuildVsock();
  Status BuildDisks(const Wiring& wiring);
  Status BuildFloppies();
  Status AttachVirtioDisk(size_t index, std::unique_ptr<storage::Disk> medium);
  Status AttachIdeDisk(size_t index, std::unique_ptr<storage::Disk> medium);
  Status AttachSataDisk(size_t index, std::unique_ptr<storage::Disk> medium);
  Status BuildNetworks(const Wiring& wiring);
  Status BuildFirmware(const Wiring& wiring);
  /// Its slot.
  Result<unsigned> AttachVirtio(std::unique_ptr<devices::VirtioDevice> device);
  /// Firmware may boot from `path`, as Open Firmware names it below the PCI host bridge.
  void AddBootEntry(BootKind kind, std::string path);
  std::vector<std::string> BootOrder() const;
  void MapPorts(uint16_t start, uint16_t count, bus::IoHandler& handler, std::string_view name);
  bus::IrqLine& NewIrq(unsigned irq);
  /// Takes part in Reset, in this order.
  template <typename T>
  T& Keep(std::unique_ptr<T>& place, std::unique_ptr<T> device) {
    place = std::move(device);
    devices_.push_back(place.get());
    return *place;
  }

  const MachineConfig* config_ = nullptr;
  memory::GuestMemory* memory_ = nullptr;
  EventLoop* loop_ = nullptr;
  HostWallClock wall_clock_;

  // Members are destroyed from the last to the first: mappings, then devices, then what they stand on.
  bus::PortBus ports_;
  bus::MemoryBus memory_bus_;
  devices::ApicBus apic_bus_;
  std::unique_ptr<devices::Pic8259> pic_;
  std::unique_ptr<devices::IoApic> io_apic_;
  std::unique_ptr<devices::GsiRouter> router_;
  std::vector<std::unique_ptr<bus::IrqLine>> irqs_;
  std::vector<std::unique_ptr<devices::LocalApic>> local_apics_;
  std::unique_ptr<devices::KvmClock> kvm_clock_;
  std::unique_ptr<devices::KvmParavirt> kvm_paravirt_;
  std::unique_ptr<devices::AcpiPm> acpi_pm_;
  std::unique_ptr<devices::GenerationId> generation_id_;
  std::unique_ptr<devices::ResetControl> reset_control_;
  std::unique_ptr<devices::A20Gate> a20_;
  std::unique_ptr<devices::SystemControlA> system_control_;
  std::unique_ptr<devices::PostPort> post_;
  std::unique_ptr<devices::DebugExitPort> debug_exit_;
  std::unique_ptr<devices::Hpet> hpet_;
  std::unique_ptr<devices::Pit8254> pit_;
  std::unique_ptr<devices::Rtc> rtc_;
  std::unique_ptr<devices::I8042> i8042_;
  std::unique_ptr<display::InputRouter> input_;
  std::unique_ptr<display::KeyPacer> key_pacer_;
  std::unique_ptr<display::Typist> typist_;
  std::unique_ptr<devices::Dma8237> dma_;
  Fd serial_file_, console_file_;
  std::unique_ptr<VsockSockets> vsock_sockets_;  ///< outlives its device in virtio_
  std::unique_ptr<FdConsole> serial_stream_, console_stream_;
  std::unique_ptr<agent::PortStream> agent_port_;
  std::unique_ptr<devices::Vdagent> vdagent_;  ///< null: no clipboard
  std::unique_ptr<devices::Uart16550> serial_;
  std::shared_ptr<storage::AsyncIo> disk_io_;
  std::unique_ptr<FdWatch> disk_io_watch_;
  std::vector<storage::ImageDisk*> images_;       ///< of the devices'
  std::unique_ptr<devices::Floppy82077> floppy_;  ///< null: no drives
  std::unique_ptr<devices::IsaBridge> isa_bridge_;
  std::unique_ptr<devices::PowerManagement> power_management_;
  std::unique_ptr<devices::PciHost> pci_;
  std::vector<std::unique_ptr<devices::VirtioPci>> virtio_;
  std::unique_ptr<devices::PiixIde> ide_;  ///< null: nothing is on IDE
  std::unique_ptr<devices::Ahci> ahci_;    ///< null: nothing is on SATA
  unsigned ahci_slot_ = 0;
  std::vector<std::unique_ptr<devices::E1000>> e1000_;
  /// The VGA's memory as the CPUs' memory.
  struct VideoMemory final : devices::Vga::VideoMemory {
    VideoMemory(memory::GuestMemory& where, std::function<void()> moved) : memory(where), changed(std::move(moved)) {}
    std::span<uint8_t> bytes() override { return memory.video(); }
    void Clear(uint64_t size_bytes) override { memory.ClearVideo(size_bytes); }
    void Place(std::optional<uint64_t> address) override;
    memory::GuestMemory& memory;
    const std::function<void()> changed;
  };
  std::unique_ptr<VideoMemory> video_memory_;
  std::unique_ptr<devices::Vga> vga_;  ///< null: there is none
  std::unique_ptr<display::ScreenChoice> screen_choice_;
  display::Screen* screen_ = nullptr;
  devices::VirtioConsole* virtio_console_ = nullptr;  ///< in virtio_; null: there is none
  std::vector<std::pair<BootKind, std::string>> boot_entries_;
  std::unique_ptr<FirmwareParts> firmware_;  ///< null: direct boot
  std::vector<bus::Device*> devices_;        ///< in reset order
  std::vector<bus::Mapping> mappings_;
};

}  // namespace nacre::machine
