// A hostile driver of the floppy controller and the DMA controllers: random commands, data phases, resets, masks and
// counts, with a seed. What is asserted: no crash, no sanitizer report, and a read works again after a reset.
// Longer runs: base/fuzz_testing.h.

#include <gtest/gtest.h>

#include <cstdlib>
#include <random>

#include "base/fuzz_testing.h"
#include "bus/conformance_testing.h"
#include "devices/legacy/floppy_testing.h"

namespace nacre::devices {
namespace {

class FloppyFuzz : public testing::Test {
 protected:
  FloppyFuzz() {
    EXPECT_TRUE(bench_.Plug(0, first_));
    EXPECT_TRUE(bench_.Plug(1, second_, true));
    bench_.PowerOn();
  }
  uint64_t Below(uint64_t end) { return random_() % end; }
  bool OneIn(uint64_t count) { return random_() % count == 0; }
  uint8_t Byte() { return static_cast<uint8_t>(random_()); }
  uint8_t Small(uint8_t end) { return OneIn(16) ? Byte() : static_cast<uint8_t>(Below(end)); }

  void Command() {
    static constexpr uint8_t kCodes[] = {0x46, 0xe6, 0x45, 0xc5, 0x4c, 0x6c, 0x42, 0x56, 0xd6, 0x4d, 0x03, 0x04,
                                         0x07, 0x08, 0x0f, 0x8f, 0xcf, 0x0e, 0x10, 0x12, 0x13, 0x14, 0x94, 0x4a};
    bench_.Out(0x3f5, OneIn(16) ? Byte() : kCodes[Below(std::size(kCodes))]);
    const uint8_t cylinder = OneIn(4) ? Small(85) : uint8_t{0};
    const auto head = static_cast<uint8_t>(Below(2));
    const uint8_t rest[] = {
        static_cast<uint8_t>(head << 2 | Small(3)), cylinder, head, Small(20), Small(4), Small(20), Byte(), Byte()};
    for (const uint8_t byte : rest) {
      if ((bench_.MainStatus() & 0xd0) != 0x90) return;
      bench_.Out(0x3f5, OneIn(4) ? static_cast<uint8_t>(2) : byte);
    }
  }
  void DmaStep() {
    if (OneIn(2)) return bench_.SetUpDma(static_cast<uint32_t>(1 + Below(OneIn(8) ? 0x10000 : 2000)), OneIn(2));
    static constexpr uint16_t kPorts[] = {0x00, 0xc0, 0x81};
    static constexpr uint64_t kSizes[] = {16, 32, 15};
    const uint64_t which = Below(3);
    bench_.ports.Write(kPorts[which] + Below(kSizes[which]), 1u << Below(3), random_());
    if (OneIn(8)) bench_.Out(0xd4, 0);
  }
  void Step() {
    switch (Below(8)) {
      case 0:
      case 1:
        return Command();
      case 2:
        return DmaStep();
      case 3:
        bench_.io->HandleEvents();
        return;
      case 4:
        for (uint64_t count = Below(600); count > 0; --count) {
          if (OneIn(2))
            bench_.In(0x3f5);
          else
            bench_.Out(0x3f5, Byte());
        }
        return;
      case 5:
        bench_.ports.Write(0x3f0 + Below(8), 1u << Below(3), random_());
        return;
      case 6:
        bench_.ports.Read(0x3f0 + Below(8), 1u << Below(3));
        if (OneIn(4)) bench_.Out(0x3f2, 0x3c);
        if (OneIn(4)) bench_.Out(0x3f7, static_cast<uint8_t>(OneIn(2) ? 0 : 2));
        return;
      default:
        if (OneIn(16)) SaveAndLoad(*bench_.floppy);
        if (OneIn(16)) SaveAndLoad(bench_.dma);
        if (OneIn(64)) BreakTheHost();
    }
  }
  /// Over itself: what a guest brought about can be saved and loaded.
  static void SaveAndLoad(bus::Device& device) {
    const auto saved = bus::Save(device);
    const Status loaded = bus::Load(device, saved);
    ASSERT_TRUE(loaded) << loaded.error().message;
    ASSERT_EQ(saved, bus::Save(device));
  }
  void BreakTheHost() {
    bench_.io->fault = nullptr;
    if (OneIn(2)) return;
    bench_.io->fault = [this](storage::IoOperation&) -> std::optional<int64_t> {
      return OneIn(4) ? std::optional<int64_t>(-EIO) : std::nullopt;
    };
  }

  std::mt19937_64 random_{FuzzSeed(20261122)};
  TestImage first_{1440 * kKiB};
  TestImage second_{360 * kKiB};
  FloppyBench bench_;
};

TEST_F(FloppyFuzz, RandomDriver) {
  for (FuzzRun run(30'000); run.Next();) {
    Step();
    if (run.index() % 4096 == 0) bench_.PowerOn();
  }
  bench_.io->fault = nullptr;
  bench_.PowerOn();
  first_.Set(0, TestPattern(512, 1));
  bench_.SetUpDma(512, true);
  EXPECT_EQ((std::vector<uint8_t>{0, 0, 0, 0, 0, 2, 2}), bench_.Transfer(0x46, 0, 0, 1, 18));
  EXPECT_EQ(TestPattern(512, 1), bench_.Get(FloppyBench::kData, 512));
}

}  // namespace
}  // namespace nacre::devices
