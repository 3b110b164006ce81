// The packet commands of AtapiDrive. Section numbers: MMC-5 unless said otherwise. Numbers in packets are big-endian.

#include <algorithm>
#include <string_view>

#include "base/bits.h"
#include "devices/ata/atapi_drive.h"

namespace nacre::devices {

namespace {

constexpr uint8_t kNotReady = 2, kIllegalRequest = 5;
constexpr uint32_t kLeadIn = 150;  // sectors before LBA 0, in minutes, seconds and frames

void Put16(uint8_t* to, uint32_t value) {
  to[0] = static_cast<uint8_t>(value >> 8);
  to[1] = static_cast<uint8_t>(value);
}
void Put32(uint8_t* to, uint32_t value) {
  Put16(to, value >> 16);
  Put16(to + 2, value);
}
/// Four bytes: an LBA, or minutes, seconds and frames.
void PutAddress(uint8_t* to, uint32_t lba, bool msf) {
  if (!msf) return Put32(to, lba);
  const uint32_t frames = lba + kLeadIn;
  to[0] = 0;
  to[1] = static_cast<uint8_t>(std::min(frames / (75 * 60), 255u));
  to[2] = static_cast<uint8_t>(frames / 75 % 60);
  to[3] = static_cast<uint8_t>(frames % 75);
}
void PutText(uint8_t* to, size_t size, std::string_view text) {
  for (size_t i = 0; i < size; ++i) to[i] = i < text.size() ? static_cast<uint8_t>(text[i]) : uint8_t{' '};
}

}  // namespace

void AtapiDrive::PacketCommand() {
  const uint8_t command = cdb_[0];
  // SPC-3, 5.6.1: these do not report a unit attention.
  const bool exempt = command == 0x12 || command == 0x03 || command == 0x4a || command == 0x46;
  if (attention_ && !exempt) {
    attention_ = false;
    return Check(attention_sense_);
  }
  if (command != 0x03) sense_ = {};
  if (OtherCommand(command)) return;
  if (!MediumCommand(command)) Check({kIllegalRequest, 0x20, 0});
}

/// Those that work without a disc.
bool AtapiDrive::OtherCommand(uint8_t command) {
  switch (command) {
    case 0x03:
      RequestSense();
      return true;
    case 0x12:
      Inquiry();
      return true;
    case 0x1b:
      StartStop();
      return true;
    case 0x1e:  // PREVENT ALLOW MEDIUM REMOVAL
      locked_ = (cdb_[4] & 1) != 0;
      Succeed();
      return true;
    case 0x46:
      GetConfiguration();
      return true;
    case 0x4a:
      GetEventStatus();
      return true;
    case 0x5a:
      ModeSense();
      return true;
    case 0x55:  // MODE SELECT: taken in, nothing of it can be changed
      if (Word(7) == 0)
        Succeed();
      else
        ReceiveBuffer(Word(7), packet_dma_, true, block_limit_);
      return true;
    case 0xbd:
      MechanismStatus();
      return true;
    case 0x35:  // SYNCHRONIZE CACHE
    case 0xbb:  // SET CD SPEED
      Succeed();
      return true;
    default:
      return false;
  }
}

bool AtapiDrive::MediumCommand(uint8_t command) {
  static constexpr uint8_t kCommands[] = {0x00, 0x25, 0x28, 0xa8, 0x2b, 0x2f, 0x43, 0x4b, 0x4e, 0x51, 0x52, 0xbe};
  if (std::ranges::find(kCommands, command) == std::end(kCommands)) return false;
  if (!loaded_) {
    Check({kNotReady, 0x3a, 2});  // no medium, tray open
    return true;
  }
  switch (command) {
    case 0x25:
      ReadCapacity();
      break;
    case 0x28:
      Read(Long(2), Word(7));
      break;
    case 0xa8:
      Read(Long(2), Long(6));
      break;
    case 0xbe:
      ReadCd();
      break;
    case 0x43:
      ReadToc();
      break;
    case 0x51:
      ReadDiscInformation();
      break;
    case 0x52:
      ReadTrackInformation();
      break;
    case 0x2b:  // SEEK
    case 0x2f:  // VERIFY
      if (Long(2) >= sectors_)
        Check({kIllegalRequest, 0x21, 0});
      else
        Succeed();
      break;
    default:
      Succeed();  // TEST UNIT READY; PAUSE and STOP: nothing plays
  }
  return true;
}

void AtapiDrive::Answer(uint32_t size_bytes, uint32_t allowed) {
  const uint32_t size = std::min(size_bytes, allowed);
  if (size == 0) return Succeed();
  SendBuffer(size, packet_dma_, block_limit_);
}

void AtapiDrive::Read(uint32_t lba, uint32_t count) {
  if (lba > sectors_ || count > sectors_ - lba) return Check({kIllegalRequest, 0x21, 0});
  if (count == 0) return Succeed();
  MoveDisk({.offset = uint64_t{lba} * kSector,
            .size_bytes = uint64_t{count} * kSector,
            .dma = packet_dma_,
            .fill_bytes = kBufferSize,
            .block_limit = block_limit_});
}

/// READ CD: user data of mode 1 sectors, which is all that an image holds.
void AtapiDrive::ReadCd() {
  const uint32_t count = uint32_t{cdb_[6]} << 16 | Word(7);
  const uint8_t type = cdb_[1] >> 2 & 7;
  if (count == 0 || (cdb_[9] & 0xf8) == 0) return Succeed();
  if ((type != 0 && type != 2) || (cdb_[9] & 0xfe) != 0x10 || (cdb_[10] & 7) != 0)
    return Check({kIllegalRequest, 0x24, 0});
  Read(Long(2), count);
}

void AtapiDrive::RequestSense() {
  auto data = ClearedBuffer(18);
  const Sense sense = attention_ && sense_.key == 0 ? attention_sense_ : sense_;
  if (sense_.key == 0) attention_ = false;
  data[0] = 0x70;
  data[2] = sense.key;
  data[7] = 10;
  data[12] = sense.code;
  data[13] = sense.qualifier;
  sense_ = {};
  Answer(18, cdb_[4]);
}

void AtapiDrive::Inquiry() {
  if ((cdb_[1] & 1) != 0) return Check({kIllegalRequest, 0x24, 0});  // vital product data
  auto data = ClearedBuffer(36);
  data[0] = 5;
  data[1] = 0x80;
  data[3] = 0x21;
  data[4] = 31;
  PutText(&data[8], 8, "Nacre");
  PutText(&data[16], 16, "DVD-ROM");
  PutText(&data[32], 4, "1.0");
  Answer(36, Word(3));
}

void AtapiDrive::ReadCapacity() {
  auto data = ClearedBuffer(8);
  Put32(&data[0], sectors_ - 1);
  Put32(&data[4], kSector);
  Answer(8, 8);
}

/// 6.25: one data track, and the lead-out.
void AtapiDrive::ReadToc() {
  const bool msf = (cdb_[1] & 2) != 0;
  // MMC-1 had the format in the last byte.
  const uint8_t format = (cdb_[2] & 0x0f) != 0 ? cdb_[2] & 0x0f : cdb_[9] >> 6;
  const uint8_t start = cdb_[6];
  auto data = ClearedBuffer(20);
  data[2] = data[3] = 1;
  uint32_t size = 4;
  if (format == 0) {
    if (start > 1 && start != 0xaa) return Check({kIllegalRequest, 0x24, 0});
    const auto entry = [&](uint8_t track, uint32_t lba) {
      data[size + 1] = 0x14;
      data[size + 2] = track;
      PutAddress(&data[size + 4], lba, msf);
      size += 8;
    };
    if (start <= 1) entry(1, 0);
    entry(0xaa, sectors_);
  } else if (format == 1) {
    data[5] = 0x14;
    data[6] = 1;
    PutAddress(&data[8], 0, msf);
    size = 12;
  } else {
    return Check({kIllegalRequest, 0x24, 0});
  }
  Put16(&data[0], size - 2);
  Answer(size, Word(7));
}

void AtapiDrive::ReadDiscInformation() {
  if ((cdb_[1] & 7) != 0) return Check({kIllegalRequest, 0x24, 0});
  auto data = ClearedBuffer(34);
  Put16(&data[0], 32);
  data[2] = 0x0e;  // finalized, last session complete
  data[3] = data[4] = data[5] = data[6] = 1;
  data[7] = 0x20;                            // unrestricted use
  std::fill_n(&data[16], 8, uint8_t{0xff});  // no lead-in or lead-out to write
  Answer(34, Word(7));
}

void AtapiDrive::ReadTrackInformation() {
  auto data = ClearedBuffer(36);
  Put16(&data[0], 34);
  data[2] = data[3] = 1;
  data[5] = 4;
  data[6] = 1;  // mode 1
  Put32(&data[24], sectors_);
  Answer(36, Word(7));
}

/// 7.2 and 7.3, SPC-3 7.4: no page can be changed.
void AtapiDrive::ModeSense() {
  const uint8_t page = cdb_[2] & 0x3f;
  const bool changeable = cdb_[2] >> 6 == 1;
  auto data = ClearedBuffer(64);
  uint32_t size = 8;
  data[2] = loaded_ ? 0x01 : 0x71;  // 120 mm data disc, or tray open
  const auto add = [&](uint8_t code, std::initializer_list<uint8_t> body) {
    if (page != code && page != 0x3f) return;
    data[size] = code;
    data[size + 1] = static_cast<uint8_t>(body.size());
    if (!changeable) std::ranges::copy(body, &data[size + 2]);
    size += static_cast<uint32_t>(2 + body.size());
  };
  if (cdb_[2] >> 6 == 3) return Check({kIllegalRequest, 0x39, 0});  // saved values
  add(0x01, {0, 5, 0, 0, 0, 0, 0, 0, 0, 0});
  add(0x2a, {0x3b, 0, 0x71, 0x60, static_cast<uint8_t>(0x29 | (locked_ ? 2 : 0)), 0, 0x16, 0, 0, 2, 2, 0, 0x16, 0, 0, 0,
             0, 0});
  if (size == 8) return Check({kIllegalRequest, 0x24, 0});
  Put16(&data[0], size - 2);
  Answer(size, Word(7));
}

void AtapiDrive::GetConfiguration() {
  auto data = ClearedBuffer(128);
  const uint16_t from = Word(2);
  const uint8_t select = cdb_[1] & 3;
  const uint16_t profile = !loaded_ ? 0 : is_dvd() ? 0x10 : 0x08;
  uint32_t size = 8;
  Put16(&data[6], profile);
  const auto add = [&](uint16_t code, uint8_t flags, bool current, std::initializer_list<uint8_t> body) {
    if (select == 2 ? code != from : code < from) return;
    if (select == 1 && !current) return;
    Put16(&data[size], code);
    data[size + 2] = static_cast<uint8_t>(flags | (current ? 1 : 0));
    data[size + 3] = static_cast<uint8_t>(body.size());
    std::ranges::copy(body, &data[size + 4]);
    size += static_cast<uint32_t>(4 + body.size());
  };
  const bool dvd = loaded_ && is_dvd(), cd = loaded_ && !is_dvd();
  add(0x00, 0x02, true, {0, 0x10, dvd, 0, 0, 0x08, cd, 0});  // profiles
  add(0x01, 0x0a, true, {0, 0, 0, 2, 1, 0, 0, 0});           // core: ATAPI
  add(0x02, 0x06, true, {0, 0, 0, 0});                       // morphing: polled
  add(0x03, 0x02, true, {0x29, 0, 0, 0});                    // removable: tray, lock, eject
  add(0x10, 0x00, loaded_, {0, 0, 0x08, 0, 0, 1, 0, 0});     // random readable
  add(0x1d, 0x00, loaded_, {});                              // multi-read
  add(0x1e, 0x08, cd, {0, 0, 0, 0});                         // CD read
  add(0x1f, 0x00, dvd, {});                                  // DVD read
  Put32(&data[0], size - 4);
  Answer(size, Word(7));
}

void AtapiDrive::GetEventStatus() {
  if ((cdb_[1] & 1) == 0) return Check({kIllegalRequest, 0x24, 0});  // only polled
  auto data = ClearedBuffer(8);
  data[3] = 0x10;  // media events
  uint32_t size = 4;
  if ((cdb_[4] & 0x10) != 0) {
    data[2] = 4;
    data[4] = event_;
    data[5] = loaded_ ? 2 : 1;
    size = 8;
  } else {
    data[2] = 0x80;  // no such class
  }
  Put16(&data[0], size - 2);
  if (size == 8 && Word(7) >= 8) event_ = 0;
  Answer(size, Word(7));
}

void AtapiDrive::MechanismStatus() {
  auto data = ClearedBuffer(8);
  data[1] = loaded_ ? 0 : 0x10;  // door open
  Answer(8, Word(8));
}

/// START STOP UNIT: bit 0 start, bit 1 load or eject.
void AtapiDrive::StartStop() {
  const bool start = (cdb_[4] & 1) != 0;
  if ((cdb_[4] & 2) == 0 || start == loaded_) return Succeed();
  if (!start && locked_) return Check({kIllegalRequest, 0x53, 2});  // medium removal prevented
  loaded_ = start;
  event_ = start ? 2 : 3;
  if (start) {
    attention_ = true;
    attention_sense_ = {6, 0x28, 0};
  }
  Succeed();
}

}  // namespace nacre::devices
