// Intel 82441FX data sheet 3.2.18: PAM registers, by what a CPU sees.

#include "devices/chipset/shadow_memory.h"

#include <gtest/gtest.h>

#include <array>
#include <cstring>

#include "bus/bus.h"

namespace nacre::devices {
namespace {

class ShadowMemoryTest : public testing::Test {
 protected:
  ShadowMemoryTest() {
    for (uint64_t i = 0; i < memory_->rom_size(); ++i) memory_->rom()[i] = static_cast<uint8_t>(0x80 | i >> 12);
    low_ = bus_.Add(ShadowMemory::kStart, ShadowMemory::kSize, shadow_.low_io(), "low");
    rom_ = bus_.Add(memory_->rom_start().value, memory_->rom_size(), shadow_.rom_io(), "rom");
    Apply();
  }
  void Apply() { shadow_.Apply(pam_, smram_); }
  /// As an engine does it.
  uint8_t Load(uint64_t address) {
    const memory::CpuPage page = memory_->FindPage(GuestPhys(address & ~uint64_t{0xfff}));
    return page.host ? page.host[address & 0xfff] : static_cast<uint8_t>(bus_.Read(address, 1));
  }
  void Store(uint64_t address, uint8_t value) {
    const memory::CpuPage page = memory_->FindPage(GuestPhys(address & ~uint64_t{0xfff}));
    if (page.writable)
      page.host[address & 0xfff] = value;
    else
      bus_.Write(address, 1, value);
  }

  std::unique_ptr<memory::GuestMemory> memory_ =
      std::move(*memory::GuestMemory::Create(2 * kMiB, memory::GuestMemory::Backing::kFile, 0x40000));
  bus::MemoryBus bus_;
  int changes_ = 0;
  ShadowMemory shadow_{*memory_, [this] { ++changes_; }};
  std::array<uint8_t, ShadowMemory::kPamCount> pam_{};
  uint8_t smram_ = 2;
  bus::Mapping low_, rom_;
};

TEST_F(ShadowMemoryTest, RomShowsAtBothMegabyteEnds) {
  EXPECT_EQ(Load(0xffffffff), 0x80 | 0x3f);
  EXPECT_EQ(Load(0xfffff), 0x80 | 0x3f);
  EXPECT_EQ(Load(0xe0000), 0x80 | 0x20);
  EXPECT_EQ(Load(0xfffc0000), 0x80);
  EXPECT_EQ(Load(0xc0000), 0xff);  // no card
  EXPECT_EQ(Load(0xa0000), 0xff);
  Store(0xfffff, 1);
  Store(0xffffffff, 1);
  EXPECT_EQ(Load(0xfffff), 0x80 | 0x3f);
  EXPECT_EQ(memory_->Layout().size(), 4u);  // RAM, ROM window, RAM, ROM
}

TEST_F(ShadowMemoryTest, WritesGoToRamUnderRomAndAreSeenWhenReadsDo) {
  pam_[0] = 0x20;  // 0xf0000: writes only
  Apply();
  Store(0xf1234, 0x42);
  EXPECT_EQ(Load(0xf1234), 0x80 | 0x31);
  pam_[0] = 0x10;  // reads only
  Apply();
  EXPECT_EQ(Load(0xf1234), 0x42);
  Store(0xf1234, 0x43);
  EXPECT_EQ(Load(0xf1234), 0x42);
  pam_[0] = 0x30;
  Apply();
  Store(0xf1234, 0x44);
  EXPECT_EQ(Load(0xf1234), 0x44);
  EXPECT_EQ(changes_, 4);
  Apply();
  EXPECT_EQ(changes_, 4);
}

TEST_F(ShadowMemoryTest, EachRegisterHasTwoSegments) {
  for (unsigned i = 0; i < 12; ++i) {
    pam_ = {};
    pam_[1 + i / 2] = i % 2 != 0 ? 0x30 : 0x03;
    Apply();
    for (unsigned j = 0; j < 12; ++j)
      EXPECT_EQ(memory_->FindPage(GuestPhys(0xc0000 + j * 0x4000)).writable, i == j) << i << " " << j;
  }
}

TEST_F(ShadowMemoryTest, SmramOpens) {
  Store(0xa0000, 1);
  EXPECT_EQ(Load(0xa0000), 0xff);
  smram_ = ShadowMemory::kSmramOpen | 2;
  Apply();
  Store(0xa0000, 1);
  EXPECT_EQ(Load(0xa0000), 1);
}

TEST_F(ShadowMemoryTest, DevicesReachRamOnlyWhereItShows) {
  const uint8_t byte = 7;
  EXPECT_FALSE(memory_->Write(GuestPhys(0xf0000), {&byte, 1}));
  EXPECT_EQ(memory_->HostPointer(GuestPhys(0xb0000), kMiB), nullptr);
  pam_.fill(0x33);
  Apply();
  EXPECT_TRUE(memory_->Write(GuestPhys(0xf0000), {&byte, 1}));
  EXPECT_NE(memory_->HostPointer(GuestPhys(0xc0000), kMiB), nullptr);
}

}  // namespace
}  // namespace nacre::devices
