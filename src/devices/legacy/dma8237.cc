#include "devices/legacy/dma8237.h"

#include <algorithm>

#include "base/bits.h"

namespace nacre::devices {

namespace {

constexpr unsigned kCommandStatus = 8, kRequest = 9, kOneMask = 10, kMode = 11, kClearFlipFlop = 12, kMasterClear = 13,
                   kClearMask = 14, kAllMasks = 15;
constexpr uint8_t kDisabled = 1 << 2;  // command register
constexpr uint8_t kAutoInitialize = 1 << 4, kDecrement = 1 << 5;
/// Channel of the page register at 0x81 + index; 0xff: a register without a channel.
constexpr std::array<uint8_t, Dma8237::kPageSize> kPageChannels = {2, 3, 1, 0xff, 0xff, 0xff, 0,   0xff,
                                                                   6, 7, 5, 0xff, 0xff, 0xff, 0xff};

}  // namespace

Dma8237::Dma8237(memory::GuestMemory& memory) : memory_(memory) {}

void Dma8237::Reset() {
  channels_ = {};
  controllers_ = {};
  pages_ = {};
}

bool Dma8237::ready(unsigned channel) const {
  const Controller& controller = controllers_[channel / 4];
  if ((controller.command & kDisabled) != 0 || TestBit(controller.mask, channel % 4)) return false;
  // The bytes' controller requests the bus through channel 4.
  if (channel >= 4) return true;
  return (controllers_[1].command & kDisabled) == 0 && !TestBit(controllers_[1].mask, 0);
}

/// Calls step(address, part of the data, its size) for pieces that are contiguous in memory.
template <typename Step>
Dma8237::Moved Dma8237::Move(unsigned index, Type direction, size_t size, Step step) {
  Moved moved;
  if (index >= kChannels || index == 4 || !ready(index)) return moved;
  const Type set_up = type(index);
  if (set_up != direction && set_up != Type::kVerify) return moved;
  Channel& channel = channels_[index];
  const unsigned unit = index >= 4 ? 2 : 1;
  const bool down = (channel.mode & kDecrement) != 0;
  const uint32_t page = index >= 4 ? uint32_t{channel.page & 0xfeu} << 16 : uint32_t{channel.page} << 16;
  while (moved.bytes + unit <= size && !moved.terminal_count) {
    // Up to the count, the end of the data and the end of the 64 Ki units that the address wraps in.
    uint32_t units =
        std::min<uint32_t>(uint32_t{channel.count} + 1, static_cast<uint32_t>((size - moved.bytes) / unit));
    units = std::min(units, down ? 1u : 0x10000u - channel.address);
    if (set_up != Type::kVerify) step(page + uint32_t{channel.address} * unit, moved.bytes, units * unit);
    moved.bytes += units * unit;
    channel.address = static_cast<uint16_t>(down ? channel.address - units : channel.address + units);
    moved.terminal_count = units == uint32_t{channel.count} + 1;
    channel.count = static_cast<uint16_t>(channel.count - units);
  }
  if (!moved.terminal_count) return moved;
  Controller& controller = controllers_[index / 4];
  controller.status |= static_cast<uint8_t>(1u << index % 4);
  if ((channel.mode & kAutoInitialize) != 0) {
    channel.address = channel.base_address;
    channel.count = channel.base_count;
  } else {
    controller.mask |= static_cast<uint8_t>(1u << index % 4);
  }
  return moved;
}

Dma8237::Moved Dma8237::ToMemory(unsigned channel, std::span<const uint8_t> data) {
  return Move(channel, Type::kToMemory, data.size(), [&](uint32_t address, uint32_t from, uint32_t size) {
    memory_.Write(GuestPhys(address), data.subspan(from, size));
  });
}

Dma8237::Moved Dma8237::FromMemory(unsigned channel, std::span<uint8_t> data) {
  return Move(channel, Type::kFromMemory, data.size(), [&](uint32_t address, uint32_t to, uint32_t size) {
    if (!memory_.Read(GuestPhys(address), data.subspan(to, size))) std::fill_n(data.begin() + to, size, uint8_t{0xff});
  });
}

uint8_t Dma8237::ReadRegister(unsigned index, unsigned reg) {
  Controller& controller = controllers_[index];
  if (reg < 8) {
    const Channel& channel = channels_[4 * index + reg / 2];
    const uint16_t value = reg % 2 == 0 ? channel.address : channel.count;
    controller.high_byte = !controller.high_byte;
    return static_cast<uint8_t>(controller.high_byte ? value : value >> 8);
  }
  if (reg == kCommandStatus) return std::exchange(controller.status, uint8_t{0});
  if (reg == kAllMasks) return static_cast<uint8_t>(controller.mask | 0xf0);
  return reg == kMasterClear ? 0 : 0xff;  // the temporary register is of memory-to-memory moves
}

void Dma8237::WriteRegister(unsigned index, unsigned reg, uint8_t value) {
  Controller& controller = controllers_[index];
  if (reg < 8) {
    Channel& channel = channels_[4 * index + reg / 2];
    uint16_t& base = reg % 2 == 0 ? channel.base_address : channel.base_count;
    base = controller.high_byte ? static_cast<uint16_t>((base & 0x00ff) | value << 8)
                                : static_cast<uint16_t>((base & 0xff00) | value);
    controller.high_byte = !controller.high_byte;
    (reg % 2 == 0 ? channel.address : channel.count) = base;
    return;
  }
  const auto bit = static_cast<uint8_t>(1u << (value & 3));
  switch (reg) {
    case kCommandStatus:
      controller.command = value;
      break;
    case kRequest:  // by software: only for memory-to-memory moves, which PCs do not have
      return;
    case kOneMask:
      controller.mask = static_cast<uint8_t>((value & 4) != 0 ? controller.mask | bit : controller.mask & ~bit);
      break;
    case kMode:
      channels_[4 * index + (value & 3)].mode = value;
      break;
    case kClearFlipFlop:
      controller.high_byte = false;
      return;
    case kMasterClear:
      controller = {};
      return;
    case kClearMask:
      controller.mask = 0;
      break;
    default:
      controller.mask = value & 0x0f;
  }
  Tell(index);
}

void Dma8237::Tell(unsigned index) {
  // Channel 4 lets channels 0 to 3 through.
  for (unsigned channel = 0; channel < (index == 0 ? 4 : kChannels); ++channel)
    if (channel != 4 && listeners_[channel] && ready(channel)) listeners_[channel]();
}

uint64_t Dma8237::Ports::Read(uint64_t offset, unsigned size) {
  uint64_t value = 0;
  for (unsigned i = 0; i < size; ++i) {
    const uint64_t at = (offset + i) >> index;
    value |= uint64_t{at < 16 ? dma.ReadRegister(index, static_cast<unsigned>(at)) : uint8_t{0xff}} << (8 * i);
  }
  return value;
}

void Dma8237::Ports::Write(uint64_t offset, unsigned size, uint64_t value) {
  for (unsigned i = 0; i < size && (offset + i) >> index < 16; ++i)
    dma.WriteRegister(index, static_cast<unsigned>((offset + i) >> index), static_cast<uint8_t>(value >> (8 * i)));
}

uint64_t Dma8237::Pages::Read(uint64_t offset, unsigned size) {
  uint64_t value = 0;
  for (unsigned i = 0; i < size; ++i)
    value |= uint64_t{offset + i < kPageSize ? dma.pages_[offset + i] : uint8_t{0xff}} << (8 * i);
  return value;
}

void Dma8237::Pages::Write(uint64_t offset, unsigned size, uint64_t value) {
  for (unsigned i = 0; i < size && offset + i < kPageSize; ++i) {
    const auto byte = static_cast<uint8_t>(value >> (8 * i));
    dma.pages_[offset + i] = byte;
    const uint8_t channel = kPageChannels[offset + i];
    if (channel < kChannels) dma.channels_[channel].page = byte;
  }
}

void Dma8237::Serialize(state::Archive& archive) {
  for (unsigned i = 0; i < kChannels; ++i) {
    archive.Section(static_cast<uint16_t>(1 + i), 1, [&](state::Archive& inner, uint16_t) {
      inner.Field(1, channels_[i].base_address);
      inner.Field(2, channels_[i].base_count);
      inner.Field(3, channels_[i].address);
      inner.Field(4, channels_[i].count);
      inner.Field(5, channels_[i].mode);
    });
  }
  for (unsigned i = 0; i < controllers_.size(); ++i) {
    archive.Section(static_cast<uint16_t>(9 + i), 1, [&](state::Archive& inner, uint16_t) {
      inner.Field(1, controllers_[i].command);
      inner.Field(2, controllers_[i].status);
      inner.Field(3, controllers_[i].mask);
      inner.Field(4, controllers_[i].high_byte);
    });
  }
  archive.Bytes(11, std::span<uint8_t>(pages_));
  if (!archive.loading()) return;
  for (Controller& controller : controllers_) {
    controller.status &= 0x0f;
    controller.mask &= 0x0f;
  }
  for (unsigned i = 0; i < kPageSize; ++i)
    if (kPageChannels[i] < kChannels) channels_[kPageChannels[i]].page = pages_[i];
}

}  // namespace nacre::devices
