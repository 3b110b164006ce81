#include "devices/chipset/pflash.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <vector>

#include "base/bits.h"
#include "base/check.h"

namespace nacre::devices {
namespace {

constexpr uint8_t kReady = 0x80, kEraseError = 0x20, kProgramError = 0x10;
enum : uint8_t {
  kCommandReset = 0x00,
  kCommandProgramOld = 0x10,
  kCommandErase = 0x20,
  kCommandProgram = 0x40,
  kCommandClearStatus = 0x50,
  kCommandReadStatus = 0x70,
  kCommandReadIdentity = 0x90,
  kCommandQuery = 0x98,
  kCommandConfirm = 0xd0,
  kCommandBuffer = 0xe8,
  kCommandArray = 0xff
};
constexpr uint8_t kManufacturer = 0x89, kDevice = 0x18;
constexpr unsigned kBufferShift = 11;  ///< log2 of the bytes that one buffered program takes

}  // namespace

PFlash::PFlash(memory::GuestMemory& memory, Options options) : memory_(memory), options_(std::move(options)) {
  NACRE_CHECK(options_.size_bytes != 0 && options_.size_bytes % kBlock == 0 && options_.rom_offset % kPageSize == 0 &&
              options_.rom_offset <= memory.rom_size() &&
              options_.size_bytes <= memory.rom_size() - options_.rom_offset);
}

void PFlash::SetMode(Mode mode) {
  const bool was_memory = mode_ == Mode::kArray;
  mode_ = mode;
  const bool is_memory = mode == Mode::kArray;
  if (was_memory == is_memory) return;
  if (is_memory)
    memory_.HideRom(0, 0);
  else
    memory_.HideRom(options_.rom_offset, options_.rom_offset + options_.size_bytes);
  options_.mapping_changed();
}

void PFlash::Changed(uint64_t offset, uint64_t size_bytes) {
  memory_.MarkWritten(memory_.rom_start() + options_.rom_offset + offset, size_bytes);
  options_.written(offset, size_bytes);
}

/// Bits go from one to zero only.
void PFlash::Program(uint64_t offset, unsigned size, uint64_t value) {
  for (unsigned i = 0; i < size; ++i) bytes()[offset + i] &= static_cast<uint8_t>(value >> (8 * i));
  Changed(offset, size);
  status_ |= kReady;
}

void PFlash::Erase(uint64_t offset) {
  const uint64_t block = AlignDown(offset, kBlock);
  std::memset(bytes() + block, 0xff, kBlock);
  Changed(block, kBlock);
  status_ |= kReady;
}

void PFlash::Command(uint64_t, uint8_t command) {
  switch (command) {
    case kCommandProgram:
    case kCommandProgramOld:
      return SetMode(Mode::kProgram);
    case kCommandErase:
      return SetMode(Mode::kErase);
    case kCommandBuffer:
      status_ |= kReady;
      return SetMode(Mode::kBufferCount);
    case kCommandClearStatus:
      status_ = 0;
      return SetMode(Mode::kArray);
    case kCommandReadStatus:
      return SetMode(Mode::kStatus);
    case kCommandReadIdentity:
      return SetMode(Mode::kIdentity);
    case kCommandQuery:
      return SetMode(Mode::kQuery);
    case kCommandReset:
    case kCommandArray:
    default:
      return SetMode(Mode::kArray);
  }
}

void PFlash::Write(uint64_t offset, unsigned size, uint64_t value) {
  if (offset >= options_.size_bytes || size > options_.size_bytes - offset) return;
  const auto byte = static_cast<uint8_t>(value);
  switch (mode_) {
    case Mode::kProgram:
      Program(offset, size, value);
      return SetMode(Mode::kStatus);
    case Mode::kErase:
      if (byte == kCommandConfirm)
        Erase(offset);
      else
        status_ |= kReady | kEraseError | kProgramError;  // command sequence error
      return SetMode(Mode::kStatus);
    case Mode::kBufferCount:
      buffer_left_ = static_cast<uint32_t>(std::min<uint64_t>(value & 0xffff, (1u << kBufferShift) - 1)) + 1;
      return SetMode(Mode::kBuffer);
    case Mode::kBuffer:
      Program(offset, size, value);
      if (buffer_left_ == 0 || --buffer_left_ == 0) SetMode(Mode::kConfirm);
      return;
    case Mode::kConfirm:
      if (byte != kCommandConfirm) status_ |= kReady | kEraseError | kProgramError;
      return SetMode(Mode::kStatus);
    case Mode::kArray:
    case Mode::kStatus:
    case Mode::kIdentity:
    case Mode::kQuery:
      return Command(offset, byte);
  }
}

/// CFI query (JESD68.01, 3): one region of blocks of one size.
uint8_t PFlash::QueryByte(uint64_t offset) const {
  const auto blocks = static_cast<uint32_t>(options_.size_bytes / kBlock - 1);
  switch (offset & 0xff) {
    case 0x10:
      return 'Q';
    case 0x11:
      return 'R';
    case 0x12:
      return 'Y';
    case 0x13:
      return 0x01;  // Intel's command set
    case 0x27:
      return static_cast<uint8_t>(std::bit_width(options_.size_bytes - 1));
    case 0x2a:
      return kBufferShift;
    case 0x2c:
      return 1;
    case 0x2d:
      return static_cast<uint8_t>(blocks);
    case 0x2e:
      return static_cast<uint8_t>(blocks >> 8);
    case 0x2f:
      return static_cast<uint8_t>(kBlock / 256);
    case 0x30:
      return static_cast<uint8_t>(kBlock / 256 >> 8);
    default:
      return 0;
  }
}

uint64_t PFlash::Read(uint64_t offset, unsigned size) {
  if (offset >= options_.size_bytes || size > options_.size_bytes - offset) return MaskToSize(~uint64_t{0}, size);
  uint64_t value = 0;
  for (unsigned i = 0; i < size; ++i) {
    uint8_t byte = status_;
    if (mode_ == Mode::kArray) byte = bytes()[offset + i];
    if (mode_ == Mode::kQuery) byte = QueryByte(offset + i);
    if (mode_ == Mode::kIdentity) byte = (offset + i) % 2 == 0 ? kManufacturer : kDevice;
    value |= uint64_t{byte} << (8 * i);
  }
  return value;
}

void PFlash::Reset() {
  SetMode(Mode::kArray);
  status_ = 0;
  buffer_left_ = 0;
}

void PFlash::Serialize(state::Archive& archive) {
  Mode mode = mode_;
  archive.Field(1, mode);
  archive.Field(2, status_);
  archive.Field(3, buffer_left_);
  std::vector<uint8_t> content;
  if (!archive.loading()) content.assign(bytes(), bytes() + options_.size_bytes);
  archive.Bytes(4, content, options_.size_bytes);
  if (!archive.loading() || !archive.ok()) return;
  if (mode > Mode::kConfirm) {
    archive.Reject("flash: no such mode");
    return;
  }
  buffer_left_ = std::min(buffer_left_, 1u << kBufferShift);
  if (content.size() == options_.size_bytes) {
    std::memcpy(bytes(), content.data(), content.size());
    Changed(0, content.size());
  }
  SetMode(mode);
}

}  // namespace nacre::devices
