// Intel's flash commands (StrataFlash data sheet) as UEFI firmware uses them.

#include "devices/chipset/pflash.h"

#include <gtest/gtest.h>

#include <cstring>

namespace nacre::devices {
namespace {

constexpr uint64_t kRom = 0x4000, kFlash = 0x2000;

class PFlashTest : public testing::Test {
 protected:
  PFlashTest() { std::memset(memory_->rom(), 0x5a, kRom); }
  bool IsMemory() { return memory_->FindPage(memory_->rom_start()).host != nullptr; }
  void Command(uint64_t offset, uint8_t command) { flash_.Write(offset, 1, command); }

  std::unique_ptr<memory::GuestMemory> memory_ =
      std::move(*memory::GuestMemory::Create(kMiB, memory::GuestMemory::Backing::kFile, kRom));
  int changes_ = 0;
  std::vector<std::pair<uint64_t, uint64_t>> written_;
  PFlash flash_{*memory_,
                {.rom_offset = 0,
                 .size_bytes = kFlash,
                 .mapping_changed = [this] { ++changes_; },
                 .written = [this](uint64_t offset, uint64_t size) { written_.emplace_back(offset, size); }}};
};

TEST_F(PFlashTest, IsFoundAsFirmwareLooksForIt) {
  EXPECT_TRUE(IsMemory());
  Command(0x10, 0x50);  // clear status: back to memory
  EXPECT_TRUE(IsMemory());
  EXPECT_EQ(flash_.Read(0x10, 1), 0x5au);
  Command(0x10, 0x70);
  EXPECT_FALSE(IsMemory());
  EXPECT_EQ(flash_.Read(0x10, 1), 0u);
  Command(0x10, 0xff);
  EXPECT_TRUE(IsMemory());
  EXPECT_EQ(changes_, 2);
}

TEST_F(PFlashTest, ErasesABlockAndProgramsBytes) {
  Command(0x1234, 0x20);
  Command(0x1234, 0xd0);
  EXPECT_EQ(flash_.Read(0, 1), 0x80u);
  EXPECT_EQ(memory_->rom()[0x0fff], 0x5a);
  EXPECT_EQ(memory_->rom()[0x1000], 0xff);
  EXPECT_EQ(memory_->rom()[0x1fff], 0xff);
  Command(0x1001, 0x10);
  flash_.Write(0x1001, 1, 0x3c);
  Command(0x1001, 0x40);
  flash_.Write(0x1001, 1, 0xc7);
  EXPECT_EQ(memory_->rom()[0x1001], 0x3c & 0xc7);  // bits fall only
  Command(0, 0xff);
  EXPECT_TRUE(IsMemory());
  EXPECT_EQ(written_, (std::vector<std::pair<uint64_t, uint64_t>>{{0x1000, 0x1000}, {0x1001, 1}, {0x1001, 1}}));
}

TEST_F(PFlashTest, AnEraseNeedsItsConfirmation) {
  Command(0, 0x20);
  Command(0, 0xff);
  EXPECT_EQ(memory_->rom()[0], 0x5a);
  EXPECT_NE(flash_.Read(0, 1) & 0x30, 0u);
}

TEST_F(PFlashTest, BufferedProgramTakesItsCount) {
  Command(0, 0x20);
  Command(0, 0xd0);
  Command(0, 0xe8);
  EXPECT_EQ(flash_.Read(0, 1) & 0x80, 0x80u);
  flash_.Write(0, 1, 1);  // two writes
  flash_.Write(0, 1, 0x11);
  flash_.Write(1, 1, 0x22);
  Command(0, 0xd0);
  EXPECT_EQ(memory_->rom()[0], 0x11);
  EXPECT_EQ(memory_->rom()[1], 0x22);
}

TEST_F(PFlashTest, QueryNamesTheCommandSet) {
  Command(0x55, 0x98);
  EXPECT_EQ(flash_.Read(0x10, 1), uint64_t{'Q'});
  EXPECT_EQ(flash_.Read(0x11, 1), uint64_t{'R'});
  EXPECT_EQ(flash_.Read(0x12, 1), uint64_t{'Y'});
  EXPECT_EQ(flash_.Read(0x13, 1), 1u);
  EXPECT_EQ(flash_.Read(0x2d, 1), kFlash / PFlash::kBlock - 1);
}

TEST_F(PFlashTest, WritesBeyondTheEndAreNothing) {
  flash_.Write(kFlash - 1, 8, 0x10);
  EXPECT_TRUE(IsMemory());
  EXPECT_EQ(flash_.Read(kFlash - 1, 8), ~uint64_t{0});
}

}  // namespace
}  // namespace nacre::devices
