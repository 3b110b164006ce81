// A hostile guest at the VGA: random registers, modes and memory with fixed seeds, every picture drawn. What is
// asserted: no crash, no sanitizer report, pictures of bounded size, and a mode that is set afterwards works.
// Longer runs: base/fuzz_testing.h.

#include <gtest/gtest.h>

#include <cstdlib>
#include <random>

#include "base/bits.h"
#include "base/fuzz_testing.h"
#include "devices/vga/vga_testing.h"

namespace nacre::devices {
namespace {

class VgaFuzz : public testing::Test, public VgaBench {
 protected:
  VgaFuzz() : VgaBench(kMiB) {}
  uint64_t Random() { return random_(); }
  unsigned Below(unsigned limit) { return static_cast<unsigned>(random_() % limit); }

  void RandomStep() {
    const unsigned size = 1u << Below(3);
    switch (Below(12)) {
      case 0:
      case 1:
        ports.Write(static_cast<uint16_t>(Vga::kPorts + Below(Vga::kPortCount)), size, Random());
        return;
      case 2:
        ports.Read(static_cast<uint16_t>(Vga::kPorts + Below(Vga::kPortCount)), size);
        return;
      case 3:
        return Indexed(0x3d4, static_cast<uint8_t>(Below(0x20)), static_cast<uint8_t>(Random()));
      case 4:
        return Indexed(0x3ce, static_cast<uint8_t>(Below(9)), static_cast<uint8_t>(Random()));
      case 5:
        return Indexed(0x3c4, static_cast<uint8_t>(Below(6)), static_cast<uint8_t>(Random() & 0xdf));
      case 6:
        return Dispi(Below(12), static_cast<uint16_t>(Random() >> Below(16)));
      case 7:
        memory.Write(0xa0000 + Below(vga::kWindowSize), 1u << Below(4), Random());
        return;
      case 8:
        memory.Read(0xa0000 + Below(vga::kWindowSize), 1u << Below(4));
        return;
      case 9:
        memory.Write(kBar0 + Below(kMiB), 1u << Below(4), Random());
        return;
      case 10:
        memory.Write(kBar2 + Below(0x700), size, Random() >> Below(32));
        return;
      default:
        scheduler.Advance(Below(50'000'000));
    }
  }
  void CheckPicture() {
    Draw();
    ASSERT_LE(surface.width(), display::Surface::kMaxWidth);
    ASSERT_LE(surface.height(), display::Surface::kMaxHeight);
    surface.TakeChanged();
  }

  std::mt19937_64 random_{FuzzSeed(20261122)};
};

TEST_F(VgaFuzz, RandomModes) {
  constexpr const Mode* kModes[] = {&kText80, &kMode13, &kMode12, &kCga4};
  constexpr uint16_t kDepths[] = {4, 8, 15, 16, 24, 32};
  for (FuzzRun run(600); run.Next();) {
    if (Below(2) == 0)
      SetMode(*kModes[Below(4)]);
    else
      LinearMode(static_cast<uint16_t>(Below(2600)), static_cast<uint16_t>(Below(1700)), kDepths[Below(6)]);
    for (unsigned step = Below(100); step > 0; --step) RandomStep();
    if (Below(2) == 0) Unblank();
    ASSERT_NO_FATAL_FAILURE(CheckPicture()) << "round " << run.index();
    if (Below(16) == 0) vga->Reset();
    Place();
  }
  Out(0x3c2, 0x03);
  LinearMode(64, 64, 32);
  memory.Write(kBar0, 4, 0xabcdef);
  Draw();
  EXPECT_EQ(Pixel(0, 0), 0xabcdefu);
}

}  // namespace
}  // namespace nacre::devices
