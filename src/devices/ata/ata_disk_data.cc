// What an ATA disk tells of itself: IDENTIFY DEVICE (ATA8-ACS 7.16), SMART (7.53), logs (7.35 and annex A).

#include <algorithm>
#include <string_view>

#include "base/bits.h"
#include "devices/ata/ata_disk.h"
#include "devices/ata/identify.h"

namespace nacre::devices {

using namespace ata;

void AtaDisk::Identify() {
  IdentifyData data(ClearedBuffer(kSectorSize));
  data.Set(0, 0x0040);
  data.Set(1, default_geometry_.cylinders);
  data.Set(3, default_geometry_.heads);
  data.Set(6, default_geometry_.sectors);
  data.SetText(10, 20, options_.serial_number);
  data.SetText(23, 8, "1.0");
  data.SetText(27, 40, "Nacre disk");
  data.Set(47, 0x8000 | kMaxMultiple);
  data.Set(49, 0x2f00);  // standby timer, IORDY, LBA, DMA
  data.Set(50, 0x4000);
  data.Set(51, 0x0200);
  data.Set(52, 0x0200);
  data.Set(53, 7);  // words 54-58, 64-70 and 88 are valid
  data.Set(54, geometry_.cylinders);
  data.Set(55, geometry_.heads);
  data.Set(56, geometry_.sectors);
  const uint32_t current = uint32_t{geometry_.cylinders} * geometry_.heads * geometry_.sectors;
  data.Set32(57, static_cast<uint32_t>(std::min<uint64_t>(current, sectors_)));
  if (multiple_ != 0) data.Set(59, 0x100 | multiple_);
  data.Set32(60, static_cast<uint32_t>(std::min<uint64_t>(sectors_, Bit(28) - 1)));
  data.Set(63, static_cast<uint16_t>(0x0007 | (udma_ ? 0 : 0x100u << mwdma_mode_)));
  data.Set(64, 0x0003);  // PIO modes 3 and 4
  for (unsigned word = 65; word <= 68; ++word) data.Set(word, 120);
  if (!disk().read_only()) data.Set(105, kBufferSize / kSectorSize);  // trim: blocks of ranges
  if (serial()) {
    data.Set(75, kQueueDepth - 1);
    data.Set(76, 0x010e);   // NCQ, up to 6 Gb/s
    data.Set(222, 0x103f);  // Serial ATA
  } else {
    data.Set(93, 0x604b);  // 80-wire cable, device 0 passed; jumper-selected
  }
  data.Set(80, 0x01f0);  // ATA/ATAPI-4 to ATA8-ACS
  data.Set(82, 0x4069);  // NOP, look-ahead, write cache, power management, SMART
  data.Set(83, 0x7400);  // flush, flush ext, 48-bit
  data.Set(84, 0x4060);  // FUA, general purpose logging
  data.Set(85, static_cast<uint16_t>(0x4008 | (look_ahead_ ? 0x40 : 0) | (write_cache_ ? 0x20 : 0) | smart_));
  data.Set(86, 0x3400);
  data.Set(87, 0x4060);
  data.Set(88, static_cast<uint16_t>(0x003f | (udma_ ? 0x100u << udma_mode_ : 0)));
  data.Set64(100, sectors_);
  data.Set(106, 0x6003);                           // eight logical sectors in a physical one
  if (!disk().read_only()) data.Set(169, 0x0001);  // trim
  data.Set(217, 0x0001);                           // does not rotate
  data.Seal();
  SendBuffer(kSectorSize, false);
}

void AtaDisk::Smart() {
  const auto key = static_cast<uint16_t>((registers().lba_mid & 0xff) | (registers().lba_high & 0xff) << 8);
  const auto what = static_cast<uint8_t>(registers().features);
  if (key != 0xc24f || (!smart_ && what != 0xd8)) return EndWithError(kAbort);
  switch (what) {
    case 0xd0: {  // READ DATA: no attributes; self-tests and error logging are not supported
      auto data = ClearedBuffer(kSectorSize);
      StoreLe<uint16_t>(&data[0], 0x0010);
      StoreLe<uint16_t>(&data[368], 0x0003);  // saves attributes by itself
      ByteSum(data);
      return SendBuffer(kSectorSize, false);
    }
    case 0xd1: {  // READ THRESHOLDS
      auto data = ClearedBuffer(kSectorSize);
      StoreLe<uint16_t>(&data[0], 0x0010);
      ByteSum(data);
      return SendBuffer(kSectorSize, false);
    }
    case 0xd2:  // autosave
    case 0xd3:
    case 0xdb:  // automatic off-line
      return Succeed();
    case 0xd8:
    case 0xd9:
      smart_ = what == 0xd8;
      return Succeed();
    case 0xda:  // RETURN STATUS: in good health, the key stays as it is
      return Succeed();
    default:
      return EndWithError(kAbort);
  }
}

/// READ LOG EXT: the directory, and the log of what went wrong with a queued command.
void AtaDisk::ReadLog() {
  const uint8_t log = registers().lba_low & 0xff;
  const bool known = log == 0 || (log == 0x10 && serial());
  if (!known || registers().lba_mid != 0 || registers().count != 1) return EndWithError(kAbort);
  auto data = ClearedBuffer(kSectorSize);
  if (log == 0) {
    StoreLe<uint16_t>(&data[0], 1);
    if (serial()) StoreLe<uint16_t>(&data[0x20], 1);
    return SendBuffer(kSectorSize, false);
  }
  data[0] = failed_tag_;
  data[2] = failed_status_;
  data[3] = failed_error_;
  for (unsigned i = 0; i < 3; ++i) {
    data[4 + i] = static_cast<uint8_t>(failed_lba_ >> (8 * i));
    data[8 + i] = static_cast<uint8_t>(failed_lba_ >> (24 + 8 * i));
  }
  data[7] = kLba;
  ByteSum(data);
  failed_tag_ = 0x80;
  SendBuffer(kSectorSize, false);
}

}  // namespace nacre::devices
