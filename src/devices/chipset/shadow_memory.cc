#include "devices/chipset/shadow_memory.h"

#include "base/bits.h"

namespace nacre::devices {
namespace {

constexpr uint8_t kRead = 1, kWrite = 2;
constexpr uint64_t kSegmentSize = 0x4000;
constexpr uint64_t kLastSegment = 0xf0000;
/// Where the ROM shows unless RAM is chosen. Below it is room for expansion cards, which have nothing there.
constexpr uint64_t kRomWindow = 0xe0000;

}  // namespace

void ShadowMemory::Apply(std::span<const uint8_t, kPamCount> pam, uint8_t smram) {
  using memory::LowPage;
  std::array<uint8_t, kSegments> access;
  for (unsigned i = 0; i < kSegments - 1; ++i)
    access[i] = static_cast<uint8_t>(pam[1 + i / 2] >> (i % 2 != 0 ? 4 : 0) & (kRead | kWrite));
  access[kSegments - 1] = static_cast<uint8_t>(pam[0] >> 4 & (kRead | kWrite));
  const bool smram_open = (smram & kSmramOpen) == kSmramOpen;
  if (applied_ && access == access_ && smram_open == smram_open_) return;
  applied_ = true;
  access_ = access;
  smram_open_ = smram_open;
  memory_.SetLowPages(GuestPhys(kSmramStart), GuestPhys(kSmramStart + kSmramSize - 1),
                      smram_open ? LowPage::kRam : LowPage::kNothing);
  for (unsigned i = 0; i < kSegments; ++i) {
    const uint64_t start = kStart + i * kSegmentSize;
    const uint64_t end = start == kLastSegment ? kMiB : start + kSegmentSize;
    const LowPage outside = start >= kRomWindow ? LowPage::kRom : LowPage::kNothing;
    const LowPage show = (access[i] & kRead) == 0    ? outside
                         : (access[i] & kWrite) != 0 ? LowPage::kRam
                                                     : LowPage::kReadOnlyRam;
    memory_.SetLowPages(GuestPhys(start), GuestPhys(end - 1), show);
  }
  changed_();
}

uint64_t ShadowMemory::ReadBytes(uint64_t address, unsigned size) const {
  uint64_t value = 0;
  for (unsigned i = 0; i < size; ++i) {
    uint8_t byte = 0xff;
    memory_.ReadByte(GuestPhys(address + i), byte);
    value |= uint64_t{byte} << (8 * i);
  }
  return value;
}

uint64_t ShadowMemory::LowIo::Read(uint64_t offset, unsigned size) { return shadow.ReadBytes(kStart + offset, size); }

void ShadowMemory::LowIo::Write(uint64_t offset, unsigned size, uint64_t value) {
  for (unsigned i = 0; i < size; ++i) {
    const uint64_t at = offset + i;
    if (at >= kSize) return;
    const uint64_t segment = std::min<uint64_t>(at / kSegmentSize, kSegments - 1);
    if ((shadow.access_[segment] & kWrite) != 0)
      shadow.memory_.WriteUnder(GuestPhys(kStart + at), static_cast<uint8_t>(value >> (8 * i)));
  }
}

uint64_t ShadowMemory::RomIo::Read(uint64_t offset, unsigned size) {
  return shadow.ReadBytes(shadow.memory_.rom_start().value + offset, size);
}

}  // namespace nacre::devices
