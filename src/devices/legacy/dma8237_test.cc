#include "devices/legacy/dma8237.h"

#include <gtest/gtest.h>

#include <numeric>
#include <random>

#include "base/bits.h"
#include "bus/bus.h"
#include "bus/conformance_testing.h"

namespace nacre::devices {
namespace {

class Dma8237Test : public testing::Test {
 protected:
  Dma8237Test() {
    dma.Reset();
    mappings.push_back(ports.Add(Dma8237::kMasterPort, Dma8237::kMasterSize, dma.master_io(), "dma"));
    mappings.push_back(ports.Add(Dma8237::kSlavePort, Dma8237::kSlaveSize, dma.slave_io(), "dma"));
    mappings.push_back(ports.Add(Dma8237::kPagePort, Dma8237::kPageSize, dma.page_io(), "dma"));
    Out(0xd6, 0xc0);  // channel 4 is the cascade
    Out(0xd4, 0x00);
  }
  void Out(uint16_t port, uint8_t value) { ports.Write(port, 1, value); }
  uint8_t In(uint16_t port) { return static_cast<uint8_t>(ports.Read(port, 1)); }
  /// Channel 2, as a BIOS sets it up.
  void SetUp2(uint32_t address, uint32_t count, uint8_t mode) {
    Out(0x0a, 6);
    Out(0x0c, 0);
    Out(0x0b, static_cast<uint8_t>(mode | 2));
    Out(0x04, static_cast<uint8_t>(address));
    Out(0x04, static_cast<uint8_t>(address >> 8));
    Out(0x81, static_cast<uint8_t>(address >> 16));
    Out(0x05, static_cast<uint8_t>(count - 1));
    Out(0x05, static_cast<uint8_t>((count - 1) >> 8));
    Out(0x0a, 2);
  }
  uint16_t Count2() {
    Out(0x0c, 0);
    const uint8_t low = In(0x05);
    return static_cast<uint16_t>(low | In(0x05) << 8);
  }
  std::vector<uint8_t> Get(uint64_t address, size_t size) {
    std::vector<uint8_t> data(size);
    EXPECT_TRUE(memory->Read(GuestPhys(address), data));
    return data;
  }
  static std::vector<uint8_t> Sequence(size_t size) {
    std::vector<uint8_t> data(size);
    std::iota(data.begin(), data.end(), uint8_t{1});
    return data;
  }

  std::unique_ptr<memory::GuestMemory> memory = std::move(*memory::GuestMemory::Create(4 * kMiB));
  Dma8237 dma{*memory};
  bus::PortBus ports;
  std::vector<bus::Mapping> mappings;
};

TEST_F(Dma8237Test, MovesUpToTheCount) {
  SetUp2(0x21000, 600, 0x44);
  EXPECT_TRUE(dma.ready(2));
  const auto data = Sequence(512);
  auto moved = dma.ToMemory(2, data);
  EXPECT_EQ(512u, moved.bytes);
  EXPECT_FALSE(moved.terminal_count);
  EXPECT_EQ(data, Get(0x21000, 512));
  EXPECT_EQ(87, Count2());
  moved = dma.ToMemory(2, data);
  EXPECT_EQ(88u, moved.bytes);
  EXPECT_TRUE(moved.terminal_count);
  EXPECT_EQ(4, In(0x08) & 0x0f);
  EXPECT_EQ(0, In(0x08) & 0x0f) << "read clears it";
  EXPECT_FALSE(dma.ready(2)) << "masked at terminal count";
  EXPECT_EQ(0u, dma.ToMemory(2, data).bytes);
  EXPECT_EQ(0xffff, Count2());
}

TEST_F(Dma8237Test, ReadsMemory) {
  const auto data = Sequence(512);
  memory->Write(GuestPhys(0x30000), data);
  SetUp2(0x30000, 512, 0x48);
  std::vector<uint8_t> got(512);
  EXPECT_EQ(0u, dma.ToMemory(2, got).bytes) << "set up for the other direction";
  EXPECT_TRUE(dma.FromMemory(2, got).terminal_count);
  EXPECT_EQ(data, got);
}

TEST_F(Dma8237Test, AddressesWrapInTheirPage) {
  SetUp2(0x2fff0, 32, 0x44);
  const auto data = Sequence(32);
  EXPECT_EQ(32u, dma.ToMemory(2, data).bytes);
  EXPECT_EQ(std::vector<uint8_t>(data.begin(), data.begin() + 16), Get(0x2fff0, 16));
  EXPECT_EQ(std::vector<uint8_t>(data.begin() + 16, data.end()), Get(0x20000, 16));
}

TEST_F(Dma8237Test, AutoInitializeDecrementAndVerify) {
  SetUp2(0x20010, 4, 0x54);
  const auto data = Sequence(4);
  EXPECT_TRUE(dma.ToMemory(2, data).terminal_count);
  EXPECT_TRUE(dma.ready(2));
  EXPECT_EQ(3, Count2());
  SetUp2(0x20010, 4, 0x64);
  EXPECT_TRUE(dma.ToMemory(2, data).terminal_count);
  EXPECT_EQ((std::vector<uint8_t>{4, 3, 2, 1}), Get(0x2000d, 4));
  SetUp2(0x20020, 4, 0x40);
  EXPECT_TRUE(dma.ToMemory(2, data).terminal_count);
  EXPECT_EQ(std::vector<uint8_t>(4), Get(0x20020, 4));
}

TEST_F(Dma8237Test, WordsOnTheSecondController) {
  Out(0xd4, 6);
  Out(0xd8, 0);
  Out(0xd6, 0x46);  // channel 6 to memory
  Out(0xc8, 0x00);
  Out(0xc8, 0x80);
  Out(0x89, 0x03);  // the lowest bit of the page does not count
  Out(0xca, 3);
  Out(0xca, 0);
  Out(0xd4, 2);
  const auto data = Sequence(8);
  EXPECT_TRUE(dma.ToMemory(6, data).terminal_count);
  EXPECT_EQ(data, Get(0x20000 + 0x10000, 8));
}

TEST_F(Dma8237Test, OutsideRamNothingIsWrittenAndOnesAreRead) {
  SetUp2(0xff0000, 16, 0x48);
  std::vector<uint8_t> got(16);
  EXPECT_TRUE(dma.FromMemory(2, got).terminal_count);
  EXPECT_EQ(std::vector<uint8_t>(16, 0xff), got);
  SetUp2(0xff0000, 16, 0x44);
  EXPECT_TRUE(dma.ToMemory(2, got).terminal_count);
}

TEST_F(Dma8237Test, MasksAndTheCascadeHoldChannelsBack) {
  int told = 0;
  dma.SetListener(2, [&] { ++told; });
  SetUp2(0x20000, 16, 0x44);
  EXPECT_GT(told, 0);
  Out(0x08, 4);
  EXPECT_FALSE(dma.ready(2));
  Out(0x08, 0);
  Out(0xd4, 4);
  EXPECT_FALSE(dma.ready(2));
  told = 0;
  Out(0xd4, 0);
  EXPECT_TRUE(dma.ready(2));
  EXPECT_EQ(1, told);
  Out(0x0d, 0);
  EXPECT_FALSE(dma.ready(2)) << "master clear masks all";
}

struct DmaSubject final : bus::ConformanceSubject {
  bus::Device& device() override { return dma; }
  std::vector<bus::ConformanceBlock> blocks() override {
    return {{&dma.master_io(), Dma8237::kMasterSize, 4},
            {&dma.slave_io(), Dma8237::kSlaveSize, 4},
            {&dma.page_io(), Dma8237::kPageSize, 4}};
  }
  void Stimulate(uint64_t random) override {
    std::vector<uint8_t> data(random >> 8 & 0xfff);
    dma.master_io().Write(15, 1, 0);
    dma.slave_io().Write(30, 1, 0);
    if (TestBit(random, 3))
      dma.ToMemory(random & 7, data);
    else
      dma.FromMemory(random & 7, data);
  }
  std::unique_ptr<memory::GuestMemory> memory = std::move(*memory::GuestMemory::Create(kMiB));
  Dma8237 dma{*memory};
};
TEST(Conformance, Dma8237) {
  bus::RunConformance([] { return std::make_unique<DmaSubject>(); });
}

}  // namespace
}  // namespace nacre::devices
