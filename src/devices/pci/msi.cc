#include "devices/pci/msi.h"

#include <algorithm>
#include <bit>

#include "base/bits.h"

namespace nacre::devices {

Msi::Msi(unsigned vectors, uint8_t* registers, bus::MsiSink& sink) : registers_(registers), vectors_(vectors) {
  for (unsigned i = 0; i < vectors; ++i) ways_.push_back(sink.NewVector());
}

void Msi::Describe(unsigned vectors, uint8_t (&body)[kBodySize], uint8_t (&mask)[kBodySize]) {
  std::ranges::fill(body, 0);
  std::ranges::fill(mask, 0);
  // Control: 64-bit capable (7), per-vector masking (8), multiple message capable (3:1); writable: enable
  // (0), 6:4.
  const auto log2 = static_cast<unsigned>(std::countr_zero(vectors));
  StoreLe(&body[kControl - 2], static_cast<uint16_t>(Bit(7) | Bit(8) | log2 << 1));
  StoreLe(&mask[kControl - 2], static_cast<uint16_t>(kEnable | 7 << 4));
  StoreLe(&mask[kAddress - 2], ~uint64_t{3});
  StoreLe(&mask[kData - 2], uint16_t{0xffff});
  StoreLe(&mask[kMask - 2], static_cast<uint32_t>(Bit(vectors) - 1));
}

bool Msi::enabled() const { return (registers_[kControl] & kEnable) != 0; }

unsigned Msi::allowed() const { return std::min(1u << std::min(registers_[kControl] >> 4 & 7, 5), vectors_); }

bus::MsiMessage Msi::MessageOf(unsigned vector) const {
  // The function may change the low bits of the data that number its vectors (6.8.1.6).
  const uint32_t count = allowed();
  const uint32_t data = (LoadLe<uint16_t>(registers_ + kData) & ~(count - 1)) | (vector & (count - 1));
  return {LoadLe<uint64_t>(registers_ + kAddress), data};
}

void Msi::Notify(unsigned vector) {
  if (!enabled() || vector >= vectors_) return;
  if (TestBit(LoadLe<uint32_t>(registers_ + kMask), vector)) {
    StoreLe(registers_ + kPending, static_cast<uint32_t>(LoadLe<uint32_t>(registers_ + kPending) | Bit(vector)));
  } else {
    ways_[vector]->Send();
  }
}

void Msi::Update() {
  if (!enabled()) {
    for (auto& way : ways_) way->Set(std::nullopt);
    return;
  }
  const uint32_t mask = LoadLe<uint32_t>(registers_ + kMask);
  for (unsigned vector = 0; vector < vectors_; ++vector)
    if (!TestBit(mask, vector)) ways_[vector]->Set(MessageOf(vector));
  // A file may have bits of vectors that are not there.
  const auto pending = static_cast<uint32_t>(LoadLe<uint32_t>(registers_ + kPending) & (Bit(vectors_) - 1));
  StoreLe(registers_ + kPending, pending & mask);
  for (uint32_t ready = pending & ~mask; ready != 0; ready &= ready - 1)
    ways_[static_cast<unsigned>(std::countr_zero(ready))]->Send();
}

}  // namespace nacre::devices
