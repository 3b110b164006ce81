#include "devices/chipset/io_apic.h"

#include <algorithm>

#include "base/bits.h"

namespace nacre::devices {
namespace {

constexpr uint64_t kMasked = 1 << 16, kLevel = 1 << 15, kRemoteIrr = 1 << 14, kLogical = 1 << 11;
// Destination, mask, trigger, polarity, destination mode, delivery mode, vector.
constexpr uint64_t kWritable = 0xff00000000000000 | kMasked | kLevel | 1 << 13 | kLogical | 0x7ff;
constexpr uint32_t kVersion = (IoApic::kPins - 1) << 16 | 0x20;
constexpr uint64_t kSelect = 0x00, kWindow = 0x10, kEoiRegister = 0x40;

}  // namespace

IoApic::IoApic(uint8_t id, ApicBus& apic_bus) : reset_id_(id & 0xf), apic_bus_(apic_bus), id_(id & 0xf) {
  for (unsigned i = 0; i < kPins; ++i) {
    lines_[i].owner = this;
    lines_[i].pin = i;
  }
  std::ranges::fill(redirection_, kMasked);
  apic_bus_.AddEoiListener(this);
}

void IoApic::Reset() {
  id_ = reset_id_;
  index_ = 0;
  levels_ = 0;
  std::ranges::fill(redirection_, kMasked);
  RoutesChanged();
}

IoApic::Route IoApic::RouteOf(unsigned pin) const {
  const uint64_t entry = redirection_[pin];
  Route route{.message = {}, .masked = (entry & kMasked) != 0};
  ApicMessage& message = route.message;
  message.destination = static_cast<uint32_t>(entry >> 56);
  message.logical = (entry & kLogical) != 0;
  if (message.destination == 0xff && !message.logical) message.destination = ApicMessage::kBroadcast;
  message.mode = static_cast<DeliveryMode>(entry >> 8 & 7);
  message.level = (entry & kLevel) != 0;
  message.vector = static_cast<uint8_t>(entry);
  return route;
}

void IoApic::SendPin(unsigned pin) { apic_bus_.Route(RouteOf(pin).message); }

void IoApic::ServeLevel(unsigned pin) {
  uint64_t& entry = redirection_[pin];
  if (!TestBit(levels_, pin) || (entry & (kMasked | kRemoteIrr)) != 0) return;
  // Remote IRR belongs to fixed and lowest-priority delivery (82093AA 3.2.4).
  if ((entry >> 8 & 7) <= 1) entry |= kRemoteIrr;
  SendPin(pin);
}

void IoApic::SetPin(unsigned pin, bool level) {
  if (pin >= kPins || TestBit(levels_, pin) == level) return;
  levels_ ^= 1u << pin;
  if (!level) return;
  const uint64_t entry = redirection_[pin];
  if ((entry & kLevel) != 0) {
    ServeLevel(pin);
  } else if ((entry & kMasked) == 0) {
    SendPin(pin);  // an edge on a masked pin is not remembered (82093AA 3.2.4)
  }
}

void IoApic::OnEoi(uint8_t vector) {
  for (unsigned pin = 0; pin < kPins; ++pin) {
    uint64_t& entry = redirection_[pin];
    if ((entry & 0xff) != vector || (entry & kRemoteIrr) == 0) continue;
    entry &= ~kRemoteIrr;
    ServeLevel(pin);
  }
}

uint32_t IoApic::ReadIndexed() const {
  switch (index_) {
    case 0:
    case 2:
      return uint32_t{id_} << 24;  // ID and arbitration ID
    case 1:
      return kVersion;
    default:
      break;
  }
  const unsigned pin = (index_ - 0x10u) / 2;
  if (index_ < 0x10 || pin >= kPins) return 0xffffffff;
  return static_cast<uint32_t>(redirection_[pin] >> (index_ % 2 ? 32 : 0));
}

void IoApic::WriteIndexed(uint32_t value) {
  if (index_ == 0) {
    id_ = static_cast<uint8_t>(Bits(value, 24, 4));
    return;
  }
  const unsigned pin = (index_ - 0x10u) / 2;
  if (index_ < 0x10 || pin >= kPins) return;
  uint64_t& entry = redirection_[pin];
  const uint64_t old = entry;
  const unsigned shift = index_ % 2 ? 32 : 0;
  const uint64_t mask = kWritable & (uint64_t{0xffffffff} << shift);
  entry = (entry & ~mask) | ((uint64_t{value} << shift) & mask);
  // Operating systems clear remote IRR by making the pin edge-triggered for a moment.
  if ((entry & kLevel) == 0) entry &= ~kRemoteIrr;
  if (((entry ^ old) & kWritable) != 0) RoutesChanged();
  if ((entry & kLevel) != 0) ServeLevel(pin);
}

uint64_t IoApic::Read(uint64_t offset, unsigned size) {
  const uint64_t reg = AlignDown(offset, 16);
  const unsigned byte = static_cast<unsigned>(offset - reg);
  if (byte >= 4) return 0;
  const uint32_t value = reg == kSelect ? index_ : reg == kWindow ? ReadIndexed() : 0;
  return MaskToSize(value >> (8 * byte), size);
}

void IoApic::Write(uint64_t offset, unsigned size, uint64_t value) {
  if (offset == kSelect) {
    index_ = static_cast<uint8_t>(value);
  } else if (offset == kWindow && size >= 4) {
    WriteIndexed(static_cast<uint32_t>(value));
  } else if (offset == kEoiRegister) {
    OnEoi(static_cast<uint8_t>(value));
  }
}

void IoApic::Serialize(state::Archive& archive) {
  archive.Field(1, id_);
  archive.Field(2, index_);
  archive.Field(3, levels_);
  archive.Array(4, redirection_);
  if (!archive.loading()) return;
  id_ &= 0xf;
  levels_ &= (1u << kPins) - 1;
  for (uint64_t& entry : redirection_) entry &= kWritable | kRemoteIrr;
  RoutesChanged();
}

}  // namespace nacre::devices
