#include "devices/ata/ata_disk.h"

#include <algorithm>
#include <bit>
#include <cerrno>

#include "base/bits.h"

namespace nacre::devices {

using namespace ata;
using Kind = storage::DiskRequest::Kind;

namespace {

constexpr uint8_t kHeads = 16, kSectorsPerTrack = 63;
constexpr uint16_t kMostCylinders = 16383;
constexpr uint32_t kTrimRangeSize = 8;

}  // namespace

AtaDisk::AtaDisk(const Options& options, std::unique_ptr<storage::Disk> medium)
    : AtaDrive(std::move(medium), options.serial_ata),
      options_(options),
      sectors_(std::min(disk().size_bytes() / kSectorSize, Bit(48) - 1)),
      default_geometry_{static_cast<uint16_t>(std::clamp<uint64_t>(
                            disk().size_bytes() / kSectorSize / (kHeads * kSectorsPerTrack), 1, kMostCylinders)),
                        kHeads, kSectorsPerTrack} {
  ResetSettings();
}

void AtaDisk::ResetSettings() {
  geometry_ = default_geometry_;
  multiple_ = kMaxMultiple;
  mwdma_mode_ = 2;
  udma_mode_ = 5;
  udma_ = serial();
  write_cache_ = look_ahead_ = smart_ = true;
  power_mode_ = 0xff;
  failed_tag_ = 0x80;
  failed_status_ = failed_error_ = 0;
  failed_lba_ = 0;
  trim_next_ = trim_end_ = 0;
}

/// Volume 2 of ATA/ATAPI-7, 5.15: what tells an ATA device.
void AtaDisk::Signature() {
  registers().count = registers().lba_low = 1;
  registers().lba_mid = registers().lba_high = 0;
}

void AtaDisk::Command() {
  const uint8_t command = registers().command;
  if (command != 0xe5 && command != 0x98) power_mode_ = 0xff;  // all but CHECK POWER MODE wake the disk up
  if (!MediaCommand(command)) SettingsCommand(command);
}

bool AtaDisk::MediaCommand(uint8_t command) {
  switch (command) {
    case 0x20:
    case 0x21:
      ReadOrWrite(Address::kOld, {});
      return true;
    case 0x24:
      ReadOrWrite(Address::kLong, {});
      return true;
    case 0x25:
      ReadOrWrite(Address::kLong, {.dma = true});
      return true;
    case 0x29:
      ReadOrWrite(Address::kLong, {.multiple = true});
      return true;
    case 0x30:
    case 0x31:
      ReadOrWrite(Address::kOld, {.write = true});
      return true;
    case 0x34:
      ReadOrWrite(Address::kLong, {.write = true});
      return true;
    case 0x35:
      ReadOrWrite(Address::kLong, {.write = true, .dma = true});
      return true;
    case 0x39:
      ReadOrWrite(Address::kLong, {.write = true, .multiple = true});
      return true;
    case 0x3d:
      ReadOrWrite(Address::kLong, {.write = true, .dma = true, .through = true});
      return true;
    case 0xce:
      ReadOrWrite(Address::kLong, {.write = true, .multiple = true, .through = true});
      return true;
    case 0xc4:
      ReadOrWrite(Address::kOld, {.multiple = true});
      return true;
    case 0xc5:
      ReadOrWrite(Address::kOld, {.write = true, .multiple = true});
      return true;
    case 0xc8:
    case 0xc9:
      ReadOrWrite(Address::kOld, {.dma = true});
      return true;
    case 0xca:
    case 0xcb:
      ReadOrWrite(Address::kOld, {.write = true, .dma = true});
      return true;
    case 0x40:
    case 0x41:
      VerifySectors(Address::kOld);
      return true;
    case 0x42:
      VerifySectors(Address::kLong);
      return true;
    case 0x06:
      Trim();
      return true;
    case 0xe7:
    case 0xea:
      Flush();
      return true;
    default:
      return false;
  }
}

void AtaDisk::SettingsCommand(uint8_t command) {
  switch (command) {
    case 0x27:  // READ NATIVE MAX ADDRESS EXT
      registers().SetLba48(sectors_ - 1);
      return Succeed();
    case 0xf8:
      registers().SetLba28(static_cast<uint32_t>(std::min<uint64_t>(sectors_, Bit(28) - 1) - 1));
      return Succeed();
    case 0x2f:
      return ReadLog();
    case 0x91:
      return SetGeometry();
    case 0xb0:
      return Smart();
    case 0xc6:
      return SetMultiple();
    case 0xec:
      return Identify();
    case 0xef:
      return SetFeatures();
    case 0x94:
    case 0xe0:  // STANDBY IMMEDIATE
    case 0x96:
    case 0xe2:  // STANDBY
    case 0x99:
    case 0xe6:  // SLEEP: wakes up at any command, as a standby does
      power_mode_ = 0x00;
      return Succeed();
    case 0x95:
    case 0xe1:  // IDLE IMMEDIATE
    case 0x97:
    case 0xe3:  // IDLE
      return Succeed();
    case 0x98:
    case 0xe5:
      registers().count = power_mode_;
      return Succeed();
    default:
      if ((command & 0xf0) == 0x10) return Succeed();  // RECALIBRATE
      if ((command & 0xf0) == 0x70) {                  // SEEK
        uint64_t lba = 0;
        uint32_t count = 0;
        registers().count = 1;
        if (FindSectors(Address::kOld, lba, count)) Succeed();
        return;
      }
      return EndWithError(kAbort);
  }
}

/// Fails the command when they are not on the disk.
bool AtaDisk::FindSectors(Address address, uint64_t& lba, uint32_t& count) {
  TaskFile& regs = registers();
  const bool is_long = address == Address::kLong;
  count = is_long ? regs.count : regs.count & 0xffu;
  if (count == 0) count = is_long ? 65536 : 256;
  bool there = true;
  if (is_long) {
    lba = regs.Lba48();
    there = (regs.device & kLba) != 0;
  } else if ((regs.device & kLba) != 0) {
    lba = regs.Lba28();
  } else {
    const uint32_t sector = regs.lba_low & 0xffu;
    const uint32_t head = regs.device & 0x0fu;
    const uint32_t cylinder = (regs.lba_mid & 0xffu) | (regs.lba_high & 0xffu) << 8;
    there = sector >= 1 && sector <= geometry_.sectors && head < geometry_.heads;
    lba = (uint64_t{cylinder} * geometry_.heads + head) * geometry_.sectors + sector - 1;
  }
  if (there && lba < sectors_ && count <= sectors_ - lba) return true;
  EndWithError(kNotFound);
  return false;
}

void AtaDisk::ReadOrWrite(Address address, const Access& access) {
  uint64_t lba = 0;
  uint32_t count = 0;
  if (access.multiple && multiple_ == 0) return EndWithError(kAbort);
  if (access.write && disk().read_only()) return EndWithError(kAbort | kUncorrectable);  // the old write-protect bit
  if (!FindSectors(address, lba, count)) return;
  MoveDisk({.offset = lba * kSectorSize,
            .size_bytes = uint64_t{count} * kSectorSize,
            .write = access.write,
            .dma = access.dma,
            .fill_bytes = access.multiple ? multiple_ * kSectorSize : kSectorSize,
            .flush_after = access.write && (access.through || !write_cache_)});
}

void AtaDisk::VerifySectors(Address address) {
  uint64_t lba = 0;
  uint32_t count = 0;
  if (FindSectors(address, lba, count)) Verify(lba * kSectorSize, uint64_t{count} * kSectorSize);
}

void AtaDisk::DiskFailed(int, uint64_t offset) {
  const uint64_t lba = offset / kSectorSize;
  const uint8_t command = registers().command;
  // The commands with 48-bit addresses.
  const bool is_long = (command & 0xc0) == 0 || command == 0x42 || command == 0xce || command == 0xea;
  if (is_long)
    registers().SetLba48(lba);
  else if ((registers().device & kLba) != 0)
    registers().SetLba28(static_cast<uint32_t>(lba));
  // Writes and flushes that fail are aborted: UNC speaks of media that could not be read.
  const bool reading = to_host() && command != 0xe7 && command != 0xea;
  EndWithError(reading ? kUncorrectable : kAbort);
}

void AtaDisk::SetMultiple() {
  const auto count = static_cast<uint8_t>(registers().count);
  if (count > kMaxMultiple || (count != 0 && !std::has_single_bit(count))) return EndWithError(kAbort);
  multiple_ = count;
  Succeed();
}

/// INITIALIZE DEVICE PARAMETERS (ATA-5, 8.16).
void AtaDisk::SetGeometry() {
  const auto count = static_cast<uint8_t>(registers().count);
  const auto heads = static_cast<uint8_t>((registers().device & 0x0f) + 1);
  if (count == 0) return EndWithError(kAbort);
  const uint64_t cylinders = std::clamp<uint64_t>(sectors_ / (uint64_t{heads} * count), 1, 65535);
  geometry_ = {static_cast<uint16_t>(cylinders), heads, count};
  Succeed();
}

void AtaDisk::SetFeatures() {
  switch (registers().features & 0xff) {
    case 0x02:
    case 0x82:
      write_cache_ = (registers().features & 0xff) == 0x02;
      return write_cache_ ? Succeed() : Flush();
    case 0x55:
    case 0xaa:
      look_ahead_ = (registers().features & 0xff) == 0xaa;
      return Succeed();
    case 0x66:  // keep settings over a soft reset: they are
    case 0xcc:
      return Succeed();
    case 0x03:
      return SetTransferMode(static_cast<uint8_t>(registers().count)) ? Succeed() : EndWithError(kAbort);
    default:
      return EndWithError(kAbort);
  }
}

bool AtaDisk::SetTransferMode(uint8_t mode) {
  const uint8_t number = mode & 7;
  switch (mode >> 3) {
    case 0:
      return number <= 1;
    case 1:
      return number <= 4;
    case 4:
      if (number > 2) return false;
      mwdma_mode_ = number;
      udma_ = false;
      return true;
    case 8:
      if (number > 5) return false;
      udma_mode_ = number;
      udma_ = true;
      return true;
    default:
      return false;
  }
}

/// DATA SET MANAGEMENT, trim: ranges of { 48-bit LBA, 16-bit count }, at most kBufferSize of them by DMA.
void AtaDisk::Trim() {
  const uint32_t blocks = registers().count;
  if ((registers().features & 0xff) != 1 || disk().read_only() || blocks == 0 || blocks > kBufferSize / kSectorSize)
    return EndWithError(kAbort);
  trim_next_ = 0;
  trim_end_ = blocks * kSectorSize / kTrimRangeSize;
  ReceiveBuffer(blocks * kSectorSize, true, false);
}

void AtaDisk::BufferReceived() { TrimNext(); }

void AtaDisk::TrimNext() {
  while (trim_next_ < trim_end_) {
    const uint64_t range = LoadLe<uint64_t>(&buffer()[trim_next_++ * kTrimRangeSize]);
    const uint64_t lba = Bits(range, 0, 48);
    const uint64_t count = range >> 48;
    if (count == 0) continue;
    if (lba >= sectors_ || count > sectors_ - lba) return EndWithError(kNotFound);
    return StartBackEnd(Kind::kDiscard, lba * kSectorSize, count * kSectorSize);
  }
  Succeed();
}

void AtaDisk::BackEndDone(int error) {
  if (error != 0 && error != EOPNOTSUPP) return EndWithError(kAbort);
  TrimNext();
}

void AtaDisk::Serialize(state::Archive& archive) {
  AtaDrive::Serialize(archive);
  archive.Section(3, 1, [&](state::Archive& inner, uint16_t) {
    inner.Field(1, geometry_.cylinders);
    inner.Field(2, geometry_.heads);
    inner.Field(3, geometry_.sectors);
    inner.Field(4, multiple_);
    inner.Field(5, mwdma_mode_);
    inner.Field(6, udma_mode_);
    inner.Field(7, udma_);
    inner.Field(8, write_cache_);
    inner.Field(9, look_ahead_);
    inner.Field(10, smart_);
    inner.Field(11, power_mode_);
    inner.Field(12, failed_tag_);
    inner.Field(13, failed_status_);
    inner.Field(14, failed_error_);
    inner.Field(15, failed_lba_);
    inner.Field(16, trim_next_);
    inner.Field(17, trim_end_);
    uint64_t sectors = sectors_;
    inner.Field(18, sectors);
    if (!inner.loading()) return;
    if (sectors != sectors_)
      inner.Reject(fmt::format("the disk has {} sectors, the saved one had {}", sectors_, sectors));
    const bool possible = geometry_.cylinders >= 1 && geometry_.heads >= 1 && geometry_.heads <= 16 &&
                          geometry_.sectors >= 1 && multiple_ <= kMaxMultiple &&
                          (multiple_ == 0 || std::has_single_bit(multiple_)) && mwdma_mode_ <= 2 && udma_mode_ <= 5 &&
                          trim_end_ <= kBufferSize / kTrimRangeSize && trim_next_ <= trim_end_;
    if (possible) return;
    inner.Reject("an ATA disk's settings make no sense");
    ResetSettings();
  });
}

}  // namespace nacre::devices
