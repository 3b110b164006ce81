// The board's disks: opens their images and plugs them in where the configuration says.

#include <filesystem>

#include "devices/ata/ata_disk.h"
#include "devices/ata/atapi_drive.h"
#include "devices/virtio/block.h"
#include "machine/board.h"
#include "storage/image.h"
#include "storage/raw_disk.h"
#include "storage/snapshot_disk.h"

namespace nacre::machine {

namespace {

/// Beside the ISA bridge, as in the chip.
constexpr unsigned kIdeSlot = 1, kIdeFunction = 1;

std::string SerialNumber(size_t index) { return fmt::format("NACRE-{:04}", index); }

}  // namespace

Status Board::BuildDisks(const Wiring&) {
  if (config_->disks.empty() && config_->floppies.empty()) return {};
  disk_io_ = NACRE_TRY(storage::AsyncIo::Create());
  disk_io_watch_ =
      NACRE_TRY(loop_->Watch(disk_io_->event_fd(), EPOLLIN, [this](uint32_t) { disk_io_->HandleEvents(); }));
  NACRE_TRY_STATUS(BuildFloppies());
  for (size_t i = 0; i < config_->disks.size(); ++i) {
    const DiskConfig& disk = config_->disks[i];
    auto image = NACRE_TRY(storage::OpenImage(
        {.path = disk.path, .format = disk.format, .read_only = disk.read_only || disk.snapshot}, disk_io_));
    images_.push_back(disk.is_own() ? image.get() : nullptr);
    std::unique_ptr<storage::Disk> medium = std::move(image);
    if (disk.snapshot && !disk.read_only)
      medium = NACRE_TRY(storage::SnapshotDisk::Create(std::move(medium), disk_io_));
    switch (disk.bus) {
      case DiskBus::kVirtio:
        NACRE_TRY_STATUS(AttachVirtioDisk(i, std::move(medium)));
        break;
      case DiskBus::kIde:
        NACRE_TRY_STATUS(AttachIdeDisk(i, std::move(medium)));
        break;
      case DiskBus::kSata:
        NACRE_TRY_STATUS(AttachSataDisk(i, std::move(medium)));
        break;
    }
  }
  return {};
}

Status Board::BuildFloppies() {
  using devices::Floppy82077;
  if (config_->floppies.empty()) return {};
  Keep(floppy_, std::make_unique<Floppy82077>(NewIrq(Floppy82077::kIrq), *dma_));
  MapPorts(Floppy82077::kPort, Floppy82077::kSize, floppy_->io(), "floppy");
  MapPorts(Floppy82077::kInputPort, 1, floppy_->input_io(), "floppy");
  for (unsigned i = 0; i < config_->floppies.size(); ++i) {
    const FloppyConfig& floppy = config_->floppies[i];
    const std::string name = fmt::format("floppy '{}'", floppy.path);
    std::error_code no_file;  // then Open says why
    if (const uint64_t size = std::filesystem::file_size(floppy.path, no_file); !no_file)
      NACRE_TRY_STATUS(Floppy82077::CheckSize(name, size));
    std::unique_ptr<storage::Disk> medium = NACRE_TRY(
        storage::RawDisk::Open({.path = floppy.path, .read_only = floppy.read_only, .format_given = true}, disk_io_));
    NACRE_TRY_STATUS(floppy_->Plug(i, name, std::move(medium)));
    AddBootEntry(BootKind::kFloppy, fmt::format("isa@1/fdc@03f0/floppy@{}", i));
  }
  rtc_->SetFloppies(floppy_->drive_type(0), floppy_->drive_type(1));
  return {};
}

Status Board::AttachVirtioDisk(size_t index, std::unique_ptr<storage::Disk> medium) {
  auto device = NACRE_TRY(
      devices::VirtioBlock::Create({.name = fmt::format("virtio-blk{}", index)}, std::move(medium), *memory_, *loop_));
  const unsigned slot = NACRE_TRY(AttachVirtio(std::move(device)));
  AddBootEntry(BootKind::kDisk, fmt::format("scsi@{:x}/disk@0,0", slot));
  return {};
}

Status Board::AttachIdeDisk(size_t index, std::unique_ptr<storage::Disk> medium) {
  using devices::PiixIde;
  const DiskConfig& disk = config_->disks[index];
  if (!ide_) {
    const devices::PciWiring wiring{&ports_, &memory_bus_, &apic_bus_};
    Keep(ide_, std::make_unique<PiixIde>(wiring, std::array{&NewIrq(PiixIde::kIrqs[0]), &NewIrq(PiixIde::kIrqs[1])},
                                         *memory_));
    NACRE_TRY_STATUS(pci_->Attach(*ide_, kIdeSlot, kIdeFunction));
  }
  // CD-ROM drives from the secondary channel on, where guests look for them first.
  constexpr unsigned kPlaces = PiixIde::kChannels * devices::IdeChannel::kDrives;
  for (unsigned i = 0; i < kPlaces; ++i) {
    const unsigned place = disk.cdrom ? (i + 2) % kPlaces : i;
    if (ide_->channel(place / 2).drive(place % 2)) continue;
    AddBootEntry(disk.cdrom ? BootKind::kCdrom : BootKind::kDisk,
                 fmt::format("ide@{:x},{:x}/drive@{}/disk@{}", kIdeSlot, kIdeFunction, place / 2, place % 2));
    if (disk.cdrom) {
      ide_->Plug(place, NACRE_TRY(devices::AtapiDrive::Create({.name = fmt::format("CD-ROM '{}'", disk.path)},
                                                              std::move(medium))));
    } else {
      ide_->Plug(place, std::make_unique<devices::AtaDisk>(
                            devices::AtaDisk::Options{.serial_number = SerialNumber(index)}, std::move(medium)));
    }
    return {};
  }
  return Fail("disk '{}': IDE has room for four disks and CD-ROM drives; use bus=sata or bus=virtio", disk.path);
}

Status Board::AttachSataDisk(size_t index, std::unique_ptr<storage::Disk> medium) {
  const DiskConfig& disk = config_->disks[index];
  if (!ahci_) {
    Keep(ahci_,
         std::make_unique<devices::Ahci>("ahci", devices::PciWiring{&ports_, &memory_bus_, &apic_bus_}, *memory_));
    ahci_slot_ = NACRE_TRY(pci_->AttachAnywhere(*ahci_));
  }
  for (unsigned i = 0; i < devices::Ahci::kPorts; ++i) {
    devices::AhciPort& port = ahci_->port(i);
    if (!port.empty()) continue;
    AddBootEntry(disk.cdrom ? BootKind::kCdrom : BootKind::kDisk,
                 fmt::format("pci8086,2922@{:x}/drive@{}/disk@0", ahci_slot_, i));
    if (disk.cdrom) {
      port.Plug(NACRE_TRY(devices::AtapiDrive::Create(
          {.name = fmt::format("CD-ROM '{}'", disk.path), .serial_ata = true}, std::move(medium))));
    } else {
      port.Plug(std::make_unique<devices::AtaDisk>(
          devices::AtaDisk::Options{.serial_number = SerialNumber(index), .serial_ata = true}, std::move(medium)));
    }
    return {};
  }
  return Fail("disk '{}': SATA has room for six disks and CD-ROM drives; use bus=virtio", disk.path);
}

void Board::QuiesceDisks() {
  for (auto& device : virtio_) device->device().Quiesce();
  if (ide_) ide_->Quiesce();
  if (ahci_) ahci_->Quiesce();
  if (floppy_) floppy_->Quiesce();
}

}  // namespace nacre::machine
