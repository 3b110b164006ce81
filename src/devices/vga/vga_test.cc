#include "devices/vga/vga.h"

#include <gtest/gtest.h>

#include "base/bits.h"
#include "bus/conformance_testing.h"
#include "devices/vga/vga_testing.h"

namespace nacre::devices {
namespace {

class VgaTest : public testing::Test, public VgaBench {
 protected:
  VgaTest() : VgaBench(Vga::kMemorySize, {0x55, 0xaa, 3}) {}
  void Put(uint64_t offset, uint64_t value, unsigned size = 1) { memory.Write(0xa0000 + offset, size, value); }
  uint8_t Get(uint64_t offset) { return static_cast<uint8_t>(memory.Read(0xa0000 + offset, 1)); }
  uint32_t PlanesAt(unsigned address) { return LoadLe<uint32_t>(&vga->memory()[address * 4]); }
};

TEST_F(VgaTest, IndexedRegistersKeepWhatExists) {
  Indexed(0x3c4, 2, 0xff);
  EXPECT_EQ(In(0x3c5), 0x0f);
  ports.Write(0x3ce, 2, 0xaa08);  // index and data at once
  EXPECT_EQ(In(0x3cf), 0xaa);
  Out(0x3c2, 0x67);
  EXPECT_EQ(In(0x3cc), 0x67);
  Indexed(0x3d4, 0x11, 0x80);
  Indexed(0x3d4, 1, 0x4f);
  EXPECT_EQ(In(0x3d5), 0) << "write protection of the CRT controller";
  Indexed(0x3d4, 7, 0xff);
  EXPECT_EQ(In(0x3d5), 0x10);
  EXPECT_EQ(In(0x3b4), 0xff) << "the monochrome addresses answer only while they are chosen";
}

TEST_F(VgaTest, AttributeFlipFlopAndPaletteProtection) {
  Attribute(3, 0x15);
  In(0x3da);
  Out(0x3c0, 3);
  EXPECT_EQ(In(0x3c1), 0x15);
  In(0x3da);
  Out(0x3c0, 0x23);
  Out(0x3c0, 0x01);
  EXPECT_EQ(In(0x3c1), 0x15);
}

TEST_F(VgaTest, DacTakesThreeLevelsAndCountsOn) {
  DacColor(9, 1, 2, 63);
  Out(0x3c9, 0xff);  // of entry 10, not whole
  EXPECT_EQ(In(0x3c8), 10);
  Out(0x3c7, 9);
  EXPECT_EQ(In(0x3c7), 3);
  EXPECT_EQ(In(0x3c9), 1);
  EXPECT_EQ(In(0x3c9), 2);
  EXPECT_EQ(In(0x3c9), 63);
  EXPECT_EQ(In(0x3c9), 0);
}

TEST_F(VgaTest, RetraceComesAndGoes) {
  unsigned retraces = 0;
  for (int i = 0; i < 1000; ++i) {
    retraces += (In(0x3da) & 8) != 0;
    scheduler.Advance(100'000);
  }
  EXPECT_GT(retraces, 40u);
  EXPECT_LT(retraces, 160u);
}

TEST_F(VgaTest, WriteModesOfThePlanes) {
  SetMode(kMode12);
  Indexed(0x3c4, 2, 0x0f);
  Put(5, 0x81);
  EXPECT_EQ(PlanesAt(5), 0x81818181u);
  Indexed(0x3c4, 2, 0x05);  // two planes
  Put(5, 0xff);
  EXPECT_EQ(PlanesAt(5), 0x81ff81ffu);
  Indexed(0x3c4, 2, 0x0f);
  Indexed(0x3ce, 0, 0x02);  // set/reset gives planes 0 and 1
  Indexed(0x3ce, 1, 0x03);
  Put(6, 0x0f);
  EXPECT_EQ(PlanesAt(6), 0x0f0fff00u);
  Indexed(0x3ce, 1, 0);
  // Write mode 2 with a bit mask: a colour through the latches.
  Get(6);
  Indexed(0x3ce, 5, 2);
  Indexed(0x3ce, 8, 0xf0);
  Put(6, 0x09);
  EXPECT_EQ(PlanesAt(6), 0xff0f0ff0u);
  // Write mode 1 copies.
  Indexed(0x3ce, 5, 1);
  Get(6);
  Put(7, 0);
  EXPECT_EQ(PlanesAt(7), 0xff0f0ff0u);
  // Write mode 3: the byte is a mask for the set/reset colour.
  Indexed(0x3ce, 5, 3);
  Indexed(0x3ce, 8, 0xff);
  Indexed(0x3ce, 0, 0x0f);
  Get(8);
  Put(8, 0x3c);
  EXPECT_EQ(PlanesAt(8), 0x3c3c3c3cu);
  // Rotation, then exclusive or with the latches.
  Indexed(0x3ce, 5, 0);
  Indexed(0x3ce, 3, 0x19);
  Get(8);
  Put(8, 0x79);
  EXPECT_EQ(PlanesAt(8), 0x80808080u);
}

TEST_F(VgaTest, ReadModesOfThePlanes) {
  SetMode(kMode12);
  StoreLe(&vga->memory()[40], 0xf0'cc'aa'0fu);
  Indexed(0x3ce, 4, 2);
  EXPECT_EQ(Get(10), 0xcc);
  Indexed(0x3ce, 5, 8);  // compares colours: planes 3-0 all ones where bit 7 is
  Indexed(0x3ce, 2, 0x0e);
  Indexed(0x3ce, 7, 0x0f);
  EXPECT_EQ(Get(10), 0xf0 & 0xcc & 0xaa & ~0x0f);
  Indexed(0x3ce, 7, 0);
  EXPECT_EQ(Get(10), 0xff);
}

TEST_F(VgaTest, TheWindowIsWhereTheGraphicsControllerSays) {
  SetMode(kMode12);
  Put(0x10005, 0x77);  // 0xb0005: not mapped by this mode
  EXPECT_EQ(PlanesAt(5), 0u);
  EXPECT_EQ(Get(0x10005), 0xff);
  SetMode(kText80);
  Put(0x18000, 0x1741, 2);
  EXPECT_EQ(PlanesAt(0), 0x1741u);
  EXPECT_EQ(memory.Read(0xb8000, 2), 0x1741u);
  EXPECT_EQ(Get(0), 0xff);
  Out(0x3c2, 0x65);  // memory disabled
  EXPECT_EQ(memory.Read(0xb8000, 2), 0xffffu);
}

TEST_F(VgaTest, TextWithCursorAndBlinking) {
  SetMode(kText80);
  vga->memory()[('A' * 32 + 3) * 4 + 2] = 0x81;  // a row of the font
  vga->memory()[(0xc4 * 32 + 7) * 4 + 2] = 0xff;
  Put(0x18000, 0x1e41, 2);  // yellow on blue
  Put(0x18002, 0x84c4, 2);  // red on black, blinking
  Indexed(0x3d4, 0x0f, 2);
  Draw();
  EXPECT_EQ(surface.width(), 720u);
  EXPECT_EQ(surface.height(), 400u);
  EXPECT_EQ(Pixel(0, 3), 0xffff00u) << "yellow as the board makes it here: bright without brown";
  EXPECT_EQ(Pixel(1, 3), 0x0000aau);
  EXPECT_EQ(Pixel(7, 3), 0xffff00u);
  EXPECT_EQ(Pixel(8, 3), 0x0000aau) << "the ninth dot of a letter is background";
  EXPECT_EQ(Pixel(9, 7), 0xaa0000u);
  EXPECT_EQ(Pixel(9, 8), 0u) << "bit 7 is blinking here, not a bright background";
}

TEST_F(VgaTest, BlinkingFollowsTheClock) {
  Mode mode = kText80;
  SetMode(mode);
  vga->memory()[(0xc4 * 32 + 7) * 4 + 2] = 0xff;
  Put(0x18000, 0x84c4, 2);
  Indexed(0x3d4, 0x0f, 2);
  Draw();
  EXPECT_EQ(Pixel(0, 7), 0xaa0000u);
  EXPECT_EQ(Pixel(8, 7), 0xaa0000u) << "line drawing goes on in the ninth dot";
  Put(0x18004, 0x07);
  vga->memory()[2 * 4 + 1] = 0;
  Put(0x18005, 0x07);
  Draw();
  EXPECT_EQ(Pixel(2 * 9, 13), 0xaaaaaau) << "the cursor";
  EXPECT_EQ(Pixel(2 * 9, 12), 0u);
  scheduler.Advance(300'000'000);
  Draw();
  EXPECT_EQ(Pixel(2 * 9, 13), 0u);
  scheduler.Advance(300'000'000);
  Draw();
  EXPECT_EQ(Pixel(0, 7), 0u) << "dark half of the period";
}

TEST_F(VgaTest, Mode13IsAByteForEachPixel) {
  SetMode(kMode13);
  DacColor(200, 63, 0, 32);
  Put(0, 200);
  Put(319, 200);
  Put(199 * 320 + 5, 200);
  Draw();
  EXPECT_EQ(surface.width(), 320u);
  EXPECT_EQ(surface.height(), 200u);
  for (const auto& [x, y] : {std::pair{0, 0}, {319, 0}, {5, 199}})
    EXPECT_EQ(Pixel(static_cast<unsigned>(x), static_cast<unsigned>(y)), 0xff0082u) << x << "," << y;
  EXPECT_EQ(Pixel(1, 0), 0u);
}

TEST_F(VgaTest, ModeXWritesPlanesAndScrolls) {
  SetMode(kMode13);
  Indexed(0x3c4, 4, 0x06);
  Indexed(0x3d4, 0x14, 0x00);
  Indexed(0x3d4, 0x17, 0xe3);
  DacColor(7, 0, 63, 0);
  Indexed(0x3c4, 2, 0x04);  // plane 2
  Put(80 + 3, 7);           // row 1, pixel 14
  Draw();
  EXPECT_EQ(Pixel(14, 1), 0x00ff00u);
  Indexed(0x3d4, 0x0d, 80);
  Draw();
  EXPECT_EQ(Pixel(14, 0), 0x00ff00u);
}

TEST_F(VgaTest, PlanarPixelsAndPanning) {
  SetMode(kMode12);
  Indexed(0x3c4, 2, 0x09);
  Put(80 * 479 + 79, 0x01);
  Put(1, 0x80);
  Draw();
  EXPECT_EQ(surface.width(), 640u);
  EXPECT_EQ(surface.height(), 480u);
  EXPECT_EQ(Pixel(639, 479), 0x0000ffu);
  EXPECT_EQ(Pixel(8, 0), 0x0000ffu);
  Attribute(0x13, 3);
  Unblank();
  Draw();
  EXPECT_EQ(Pixel(5, 0), 0x0000ffu);
}

TEST_F(VgaTest, LineCompareSplitsTheScreen) {
  SetMode(kMode12);
  Indexed(0x3c4, 2, 0x0f);
  Put(0, 0x80);
  Indexed(0x3d4, 0x0c, 0x40);  // the upper part is elsewhere
  Indexed(0x3d4, 0x18, 99);
  Indexed(0x3d4, 0x07, 0x2e);
  Indexed(0x3d4, 0x09, 0x00);
  Draw();
  EXPECT_EQ(Pixel(0, 0), 0u);
  EXPECT_EQ(Pixel(0, 100), 0xffffffu);
  EXPECT_EQ(Pixel(0, 101), 0u);
}

TEST_F(VgaTest, CgaRowsAreInTwoBanks) {
  SetMode(kCga4);
  Put(0x18000, 0x1b);           // pixels 0 1 2 3 of row 0
  Put(0x18000 + 0x2000, 0xc0);  // row 1
  Put(0x18000 + 80, 0x40);      // row 2
  Draw();
  EXPECT_EQ(surface.width(), 320u);
  EXPECT_EQ(surface.height(), 200u);
  EXPECT_EQ(Pixel(0, 0), 0u);
  EXPECT_EQ(Pixel(1, 0), 0x0000aau);
  EXPECT_EQ(Pixel(2, 0), 0x00aa00u);
  EXPECT_EQ(Pixel(3, 0), 0x00aaaau);
  EXPECT_EQ(Pixel(0, 1), 0x00aaaau);
  EXPECT_EQ(Pixel(0, 2), 0x0000aau);
}

TEST_F(VgaTest, DispiTellsWhatItCan) {
  EXPECT_EQ(Dispi(vga::kDispiId), 0xb0c5);
  Dispi(vga::kDispiId, 0xb0c2);
  EXPECT_EQ(Dispi(vga::kDispiId), 0xb0c2);
  EXPECT_EQ(Dispi(vga::kDispiMemory64K), 256);
  Dispi(vga::kDispiEnable, vga::kDispiGetCaps);
  EXPECT_EQ(Dispi(vga::kDispiXres), 2560);
  EXPECT_EQ(Dispi(vga::kDispiBpp), 32);
  Dispi(vga::kDispiEnable, vga::kDispiEnabled);
  EXPECT_EQ(Dispi(vga::kDispiEnable), vga::kDispiGetCaps) << "there is no mode yet";
  // The same registers in BAR 2.
  EXPECT_EQ(memory.Read(kBar2 + 0x500, 2), 0xb0c2u);
  memory.Write(kBar2 + 0x500 + 2 * vga::kDispiYres, 2, 77);
  Dispi(vga::kDispiEnable, 0);
  EXPECT_EQ(Dispi(vga::kDispiYres), 77);
  memory.Write(kBar2 + 0x400 + 0xe, 2, 0xcc08);
  Out(0x3ce, 8);
  EXPECT_EQ(In(0x3cf), 0xcc);
}

TEST_F(VgaTest, LinearModesInAllDepths) {
  LinearMode(640, 480, 32);
  memory.Write(kBar0 + (2 * 640 + 7) * 4, 4, 0x123456);
  Draw();
  EXPECT_EQ(surface.width(), 640u);
  EXPECT_EQ(Pixel(7, 2), 0x123456u);
  LinearMode(640, 480, 16);
  EXPECT_EQ(Dispi(vga::kDispiVirtualHeight), 16 * 1024 * 1024 / 1280);
  memory.Write(kBar0 + (640 + 3) * 2, 2, 0xf800);
  Draw();
  EXPECT_EQ(Pixel(3, 1), 0xff0000u);
  LinearMode(640, 480, 15);
  memory.Write(kBar0, 2, 0x03e0);
  Draw();
  EXPECT_EQ(Pixel(0, 0), 0x00ff00u);
  LinearMode(640, 480, 24);
  memory.Write(kBar0 + 3, 4, 0x0000c0ffee);
  Draw();
  EXPECT_EQ(Pixel(1, 0), 0xc0ffeeu);
  LinearMode(640, 480, 8);
  DacColor(5, 0, 0, 63);
  memory.Write(kBar0 + 639, 1, 5);
  Draw();
  EXPECT_EQ(Pixel(639, 0), 0x0000ffu);
}

TEST_F(VgaTest, BanksOffsetsAndVirtualScreens) {
  LinearMode(640, 480, 8);
  DacColor(1, 63, 63, 63);
  Dispi(vga::kDispiBank, 2);
  Put(4, 1);
  EXPECT_EQ(memory.Read(kBar0 + 0x20004, 1), 1u);
  Dispi(vga::kDispiVirtualWidth, 1024);
  Dispi(vga::kDispiXoffset, 4);
  Dispi(vga::kDispiYoffset, 128);
  Draw();
  EXPECT_EQ(Pixel(0, 0), 0xffffffu);
}

TEST_F(VgaTest, WhatIsBeyondTheMemoryIsBlack) {
  LinearMode(2560, 1600, 32);
  std::ranges::fill(vga->memory(), uint8_t{0x11});
  Dispi(vga::kDispiYoffset, 0xffff);
  Dispi(vga::kDispiXoffset, 0xffff);
  Draw();
  EXPECT_EQ(Pixel(0, 0), 0u);
  Dispi(vga::kDispiYoffset, 100);
  Draw();
  EXPECT_EQ(Pixel(0, 0), 0x111111u);
  EXPECT_EQ(Pixel(2559, 1599), 0u);
}

TEST_F(VgaTest, AScreenThatIsOffIsBlack) {
  LinearMode(64, 64, 32);
  memory.Write(kBar0, 4, 0xffffff);
  Draw();
  EXPECT_EQ(Pixel(0, 0), 0xffffffu);
  In(0x3da);
  Out(0x3c0, 0);
  Draw();
  EXPECT_EQ(Pixel(0, 0), 0u);
}

TEST_F(VgaTest, TheRomDecodesWhileItIsEnabled) {
  vga->ConfigWrite(0x30, 4, 0xffffffff);
  EXPECT_EQ(vga->ConfigRead(0x30, 4), 0xfffff801u);
  vga->ConfigWrite(0x30, 4, kRomAt);
  EXPECT_EQ(memory.Read(kRomAt, 2), 0xffffu);
  vga->ConfigWrite(0x30, 4, kRomAt | 1);
  EXPECT_EQ(memory.Read(kRomAt, 2), 0xaa55u);
  EXPECT_EQ(memory.Read(kRomAt + 3, 1), 0xffu);
  vga->ConfigWrite(4, 2, 1);
  EXPECT_EQ(memory.Read(kRomAt, 2), 0xffffu);
}

TEST_F(VgaTest, AStillScreenHasNoChanges) {
  LinearMode(1024, 768, 32);
  Draw();
  surface.TakeChanged();
  memory.Write(kBar0 + (100 * 1024 + 200) * 4, 4, 0xff);
  Draw();
  EXPECT_EQ(surface.TakeChanged(), (std::vector<display::Rectangle>{{192, 64, 64, 64}}));
  memory.Write(kBar0 + (100 * 1024 + 200) * 4, 4, 0xff);
  Draw();
  EXPECT_FALSE(surface.changed());
}

struct VgaSubject final : bus::ConformanceSubject {
  bus::Device& device() override { return *vga; }
  std::vector<bus::ConformanceBlock> blocks() override {
    return {{&vga->ports(), Vga::kPortCount, 4},
            {&vga->dispi_io(), 3, 2},
            {&vga->window(), vga::kWindowSize, 8},
            {&bars, 0x20000000, 8}};
  }
  void Stimulate(uint64_t random) override {
    vga->ConfigWrite(0x10, 4, 0xe0000000);
    vga->ConfigWrite(0x18, 4, 0xe0100000);
    vga->ConfigWrite(4, 2, 3);
    if (random % 4 == 0) vga->ConfigWrite(random >> 8 & 0xfc, 4, static_cast<uint32_t>(random >> 16));
    if (random % 8 == 0) vga->Capture()->Draw(surface);
  }
  struct Bars final : bus::IoHandler {
    explicit Bars(bus::MemoryBus& owner) : memory(owner) {}
    uint64_t Read(uint64_t offset, unsigned size) override { return memory.Read(0xe0000000 + offset % 0x200000, size); }
    void Write(uint64_t offset, unsigned size, uint64_t value) override {
      memory.Write(0xe0000000 + offset % 0x200000, size, value);
    }
    bus::MemoryBus& memory;
  };
  bus::PortBus ports;
  bus::MemoryBus memory;
  TestMsiSink msi;
  Bars bars{memory};
  display::Surface surface;
  std::unique_ptr<Vga> vga =
      std::move(*Vga::Create({kMiB, std::vector<uint8_t>(3000, 1)}, PciWiring{&ports, &memory, &msi}, scheduler()));
};

TEST(Conformance, Vga) {
  bus::RunConformance([] { return std::make_unique<VgaSubject>(); });
}

TEST(VgaMemory, FollowsTheBaseAddressRegister) {
  struct Video final : Vga::VideoMemory {
    std::span<uint8_t> bytes() override { return memory; }
    void Clear(uint64_t size_bytes) override { std::fill_n(memory.begin(), size_bytes, uint8_t{0}); }
    void Place(std::optional<uint64_t> address) override { places.push_back(address); }
    std::vector<uint8_t> memory = std::vector<uint8_t>(kMiB);
    std::vector<std::optional<uint64_t>> places;
  } video;
  ManualScheduler scheduler;
  bus::PortBus ports;
  bus::MemoryBus memory;
  TestMsiSink msi;
  {
    const auto vga =
        std::move(*Vga::Create({.memory_bytes = kMiB, .video = &video}, {&ports, &memory, &msi}, scheduler));
    vga->Reset();
    vga->ConfigWrite(0x10, 4, 0xe0000000);
    vga->ConfigWrite(4, 2, 3);
    vga->ConfigWrite(4, 2, 3);
    vga->ConfigWrite(0x10, 4, 0xe8000000);
    vga->ConfigWrite(4, 2, 0);
    EXPECT_EQ(video.places, (std::vector<std::optional<uint64_t>>{0xe0000000, 0xe8000000, std::nullopt}));
    video.memory[5] = 0x77;
    vga->SetLinearMode(64, 64);
    EXPECT_EQ(video.memory[5], 0);
  }
}

}  // namespace
}  // namespace nacre::devices
