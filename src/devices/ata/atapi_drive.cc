#include "devices/ata/atapi_drive.h"

#include <algorithm>

#include "base/bits.h"
#include "devices/ata/identify.h"

namespace nacre::devices {

using namespace ata;

Result<std::unique_ptr<AtapiDrive>> AtapiDrive::Create(const Options& options, std::unique_ptr<storage::Disk> disk) {
  if (disk->size_bytes() % kSector != 0)
    return Fail("{}: {} bytes are not a whole number of 2048-byte sectors: is it a complete CD or DVD image (.iso)?",
                options.name, disk->size_bytes());
  if (disk->size_bytes() / kSector > 0xfffffffe) return Fail("{}: a disc has less than 2^32 sectors", options.name);
  return std::unique_ptr<AtapiDrive>(new AtapiDrive(options, std::move(disk)));
}

AtapiDrive::AtapiDrive(const Options& options, std::unique_ptr<storage::Disk> medium)
    : AtaDrive(std::move(medium), options.serial_ata),
      options_(options),
      sectors_(static_cast<uint32_t>(disk().size_bytes() / kSector)) {
  ResetSettings();
}

void AtapiDrive::ResetSettings() {
  cdb_ = {};
  cdb_phase_ = packet_dma_ = false;
  block_limit_ = 0xfffe;
  sense_ = {};
  attention_ = true;
  attention_sense_ = {6, 0x29, 0};
  event_ = 0;
  loaded_ = true;
  locked_ = false;
  transfer_mode_ = 0x22;
}

void AtapiDrive::Signature() {
  cdb_phase_ = false;
  registers().count = registers().lba_low = 1;
  registers().lba_mid = 0x14;
  registers().lba_high = 0xeb;
}

void AtapiDrive::Command() {
  cdb_phase_ = false;
  switch (registers().command) {
    case kCmdPacket:
      return Packet();
    case 0xa1:
      return IdentifyPacket();
    case 0xef:
      return SetFeatures();
    case 0xe0:  // STANDBY IMMEDIATE
    case 0xe1:  // IDLE IMMEDIATE
    case 0xe2:
    case 0xe3:
    case 0xe6:
    case 0xe7:
      return Succeed();
    case 0xe5:
      registers().count = 0xff;
      return Succeed();
    case 0xec:
    case 0x20:
    case 0x21:
      // Tell an ATAPI device from an ATA one (ATA/ATAPI-7, 6.17.2).
      registers().lba_low = 1;
      registers().lba_mid = 0x14;
      registers().lba_high = 0xeb;
      return EndWithError(kAbort);
    default:
      return EndWithError(kAbort);
  }
}

void AtapiDrive::IdentifyPacket() {
  IdentifyData data(ClearedBuffer(kSectorSize));
  data.Set(0, 0x85c0);  // ATAPI CD-ROM, removable, DRQ soon after PACKET without interrupt, 12-byte packets
  data.SetText(10, 20, options_.serial_number);
  data.SetText(23, 8, "1.0");
  data.SetText(27, 40, "Nacre DVD-ROM");
  data.Set(49, 0x0f00);  // IORDY, LBA, DMA
  data.Set(53, 6);
  const uint8_t number = transfer_mode_ & 7;
  data.Set(63, static_cast<uint16_t>(0x0007 | (transfer_mode_ >> 3 == 4 ? 0x100u << number : 0)));
  data.Set(64, 0x0003);
  for (unsigned word = 65; word <= 68; ++word) data.Set(word, 120);
  if (serial()) {
    data.Set(76, 0x000e);
    data.Set(222, 0x103f);
  } else {
    data.Set(93, 0x604b);
  }
  data.Set(80, 0x01f0);
  data.Set(82, 0x4210);  // NOP, DEVICE RESET, PACKET
  data.Set(83, 0x4000);
  data.Set(84, 0x4000);
  data.Set(85, 0x4210);
  data.Set(87, 0x4000);
  data.Set(88, static_cast<uint16_t>(0x003f | (transfer_mode_ >> 3 == 8 ? 0x100u << number : 0)));
  data.Seal();
  SendBuffer(kSectorSize, false);
}

void AtapiDrive::SetFeatures() {
  const auto mode = static_cast<uint8_t>(registers().count);
  const uint8_t number = mode & 7;
  if ((registers().features & 0xff) != 3) return EndWithError(kAbort);
  switch (mode >> 3) {
    case 0:
    case 1:
      return number <= 4 ? Succeed() : EndWithError(kAbort);
    case 4:
    case 8:
      if (number > (mode >> 3 == 4 ? 2 : 5)) return EndWithError(kAbort);
      transfer_mode_ = mode;
      return Succeed();
    default:
      return EndWithError(kAbort);
  }
}

void AtapiDrive::Packet() {
  const TaskFile& regs = registers();
  if ((regs.features & 2) != 0) return EndWithError(kAbort);  // overlapped
  packet_dma_ = (regs.features & 1) != 0;
  const uint32_t limit = (regs.lba_mid & 0xffu) | (regs.lba_high & 0xffu) << 8;
  block_limit_ = static_cast<uint16_t>(limit < 2 || limit == 0xffff ? 0xfffe : limit & ~1u);
  cdb_phase_ = true;
  ReceiveBuffer(kCdbSize, false, false);
}

void AtapiDrive::BufferReceived() {
  if (!cdb_phase_) return Succeed();  // MODE SELECT: nothing that it says can be changed
  cdb_phase_ = false;
  std::copy_n(buffer().begin(), kCdbSize, cdb_.begin());
  PacketCommand();
}

/// ATA/ATAPI-7 vol. 2, 6.24.5: the interrupt reason, and how much the block holds.
void AtapiDrive::ShowBlock() {
  TaskFile& regs = registers();
  if (regs.command != kCmdPacket) return;
  if (cdb_phase_) {
    regs.count = kReasonCommand;
    return;
  }
  const auto size = static_cast<uint32_t>(block().size());
  regs.count = to_host() ? kReasonToHost : 0;
  regs.lba_mid = static_cast<uint8_t>(size);
  regs.lba_high = static_cast<uint8_t>(size >> 8);
}

void AtapiDrive::ShowEnd() {
  if (registers().command == kCmdPacket) registers().count = kReasonCommand | kReasonToHost;
}

void AtapiDrive::Check(const Sense& sense) {
  sense_ = sense;
  EndWithError(static_cast<uint8_t>(sense.key << 4 | kAbort));
}

void AtapiDrive::DiskFailed(int, uint64_t) { Check({3, 0x11, 0}); }  // unrecovered read error

void AtapiDrive::Serialize(state::Archive& archive) {
  AtaDrive::Serialize(archive);
  archive.Section(3, 1, [&](state::Archive& inner, uint16_t) {
    inner.Bytes(1, std::span<uint8_t>(cdb_));
    inner.Field(2, cdb_phase_);
    inner.Field(3, packet_dma_);
    inner.Field(4, block_limit_);
    inner.Field(5, sense_.key);
    inner.Field(6, sense_.code);
    inner.Field(7, sense_.qualifier);
    inner.Field(8, attention_);
    inner.Field(9, attention_sense_.key);
    inner.Field(10, attention_sense_.code);
    inner.Field(11, attention_sense_.qualifier);
    inner.Field(12, event_);
    inner.Field(13, loaded_);
    inner.Field(14, locked_);
    inner.Field(15, transfer_mode_);
    uint32_t sectors = sectors_;
    inner.Field(16, sectors);
    if (!inner.loading()) return;
    if (sectors != sectors_)
      inner.Reject(fmt::format("the disc has {} sectors, the saved one had {}", sectors_, sectors));
    if (block_limit_ < 2 || block_limit_ % 2 != 0) {
      inner.Reject("an ATAPI drive's byte count limit makes no sense");
      block_limit_ = 0xfffe;
    }
    event_ &= 7;
  });
}

}  // namespace nacre::devices
