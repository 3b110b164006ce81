// virtio-gpu: each command's effect and its errors, bounds, EDID, cursor, save and restore, hostile commands.

#include "devices/virtio/gpu.h"
#include "base/fuzz_testing.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <numeric>
#include <random>

#include "devices/virtio/gpu_testing.h"

namespace nacre::devices {
namespace {

class VirtioGpuTest : public testing::TestWithParam<bool>, public GpuBench {
 protected:
  VirtioGpuTest() { Start(Bit(1), GetParam(), 16); }
  /// Resource 1, 64 x 32, shown, with backing at kPicture.
  void ShowOne() {
    ASSERT_EQ(Create(1, 64, 32), kOk);
    ASSERT_EQ(Attach(1, {{kPicture, 64 * 32 * 4}}), kOk);
    ASSERT_EQ(Scanout(1, {0, 0, 64, 32}), kOk);
  }
  void Paint(uint64_t pixel, uint32_t color) { memory.WriteValue(GuestPhys(kPicture + pixel * 4), color); }
};
INSTANTIATE_TEST_SUITE_P(Rings, VirtioGpuTest, testing::Bool(),
                         [](const auto& ring) { return ring.param ? "Packed" : "Split"; });

// 5.7.6.8: VIRTIO_GPU_CMD_GET_DISPLAY_INFO
TEST_P(VirtioGpuTest, TellsOfOneScreen) {
  EXPECT_EQ(Config(8, 4), 1u);
  EXPECT_EQ(Ask(0x100, {}), 0x1101u);
  ASSERT_EQ(answer.size(), 24u + 16 * 24);
  EXPECT_EQ(LoadLe<uint32_t>(&answer[24 + 8]), VirtioGpu::kFirstWidth);
  EXPECT_EQ(LoadLe<uint32_t>(&answer[24 + 12]), VirtioGpu::kFirstHeight);
  EXPECT_EQ(LoadLe<uint32_t>(&answer[24 + 16]), 1u);
  EXPECT_EQ(LoadLe<uint32_t>(&answer[48 + 16]), 0u);
  EXPECT_EQ(Draw().width(), VirtioGpu::kFirstWidth);
  EXPECT_FALSE(gpu->active());
}

TEST_P(VirtioGpuTest, EdidIsSound) {
  EXPECT_EQ(Ask(0x10a, {0, 0}), 0x1104u);
  ASSERT_EQ(answer.size(), 24u + 8 + 1024);
  EXPECT_EQ(LoadLe<uint32_t>(&answer[24]), 128u);
  const uint8_t* const edid = &answer[32];
  EXPECT_EQ(std::accumulate(edid, edid + 128, 0u) % 256, 0u);
  EXPECT_EQ(edid[56] | (edid[58] >> 4) << 8, static_cast<int>(VirtioGpu::kFirstWidth));
  EXPECT_EQ(edid[59] | (edid[61] >> 4) << 8, static_cast<int>(VirtioGpu::kFirstHeight));
  EXPECT_EQ(Ask(0x10a, {1, 0}), kBadScanout);
}

TEST_P(VirtioGpuTest, AFenceComesBack) {
  const uint32_t request[] = {0x100, 1, 0x89abcdef, 0x01234567, 7, 0};
  AskRaw({reinterpret_cast<const uint8_t*>(request), sizeof(request)});
  EXPECT_EQ(LoadLe<uint32_t>(&answer[4]), 1u);
  EXPECT_EQ(LoadLe<uint64_t>(&answer[8]), 0x0123456789abcdefu);
  EXPECT_EQ(LoadLe<uint32_t>(&answer[16]), 7u);
  Ask(0x100, {});
  EXPECT_EQ(LoadLe<uint32_t>(&answer[4]), 0u);
}

TEST_P(VirtioGpuTest, WhatIsTransferredIsShown) {
  ShowOne();
  const uint64_t before = gpu->generation();
  Paint(0, 0x112233);
  Paint(64 * 31 + 63, 0x445566);
  EXPECT_EQ(Pixel(0, 0), 0u);
  EXPECT_EQ(Transfer(1, {0, 0, 64, 32}, 0), kOk);
  EXPECT_EQ(gpu->generation(), before);
  EXPECT_EQ(Flush(1, {0, 0, 64, 32}), kOk);
  EXPECT_NE(gpu->generation(), before);
  EXPECT_EQ(Pixel(0, 0), 0x112233u);
  EXPECT_EQ(Pixel(63, 31), 0x445566u);
  EXPECT_EQ(Draw().width(), 64u);
  EXPECT_EQ(surface.height(), 32u);
  EXPECT_TRUE(gpu->active());
  // A part of the resource as the screen.
  EXPECT_EQ(Scanout(1, {60, 30, 4, 2}), kOk);
  EXPECT_EQ(Pixel(3, 1), 0x445566u);
  EXPECT_EQ(Draw().width(), 4u);
}

TEST_P(VirtioGpuTest, BackingInPieces) {
  ASSERT_EQ(Create(1, 64, 32), kOk);
  // Pieces that break inside a row, and an empty one; as Linux has pages in any order.
  ASSERT_EQ(Attach(1, {{kPicture + 0x8000, 100}, {kPicture, 0}, {kPicture, 64 * 32 * 4 - 100}}), kOk);
  ASSERT_EQ(Scanout(1, {0, 0, 64, 32}), kOk);
  for (uint32_t i = 0; i < 25; ++i) memory.WriteValue(GuestPhys(kPicture + 0x8000 + i * 4), 0x100 + i);
  for (uint32_t i = 25; i < 64 * 32; ++i) Paint(i - 25, 0x100 + i);
  // Where a row of the rectangle is, its first byte is at offset + row * stride.
  ASSERT_EQ(Transfer(1, {20, 0, 10, 2}, 20 * 4), kOk);
  EXPECT_EQ(Pixel(20, 0), 0x100u + 20);
  EXPECT_EQ(Pixel(29, 0), 0x100u + 29);
  EXPECT_EQ(Pixel(20, 1), 0x100u + 84);
  EXPECT_EQ(Pixel(30, 0), 0u);
  EXPECT_EQ(Pixel(19, 1), 0u);
  // The backing ends at the last byte.
  EXPECT_EQ(Transfer(1, {0, 31, 64, 1}, 31 * 256), kOk);
  EXPECT_EQ(Pixel(63, 31), 0x100u + 64 * 32 - 1);
  EXPECT_EQ(Transfer(1, {0, 31, 64, 1}, 31 * 256 + 4), kBadParameter);
  EXPECT_EQ(Transfer(1, {0, 0, 64, 32}, ~uint64_t{0}), kBadParameter);
}

TEST_P(VirtioGpuTest, FormatsNameTheOrderOfBytes) {
  const std::pair<uint32_t, uint32_t> formats[] = {{1, 0x00112233},   {2, 0x00112233},  {3, 0x33221100},
                                                   {4, 0x33221100},   {67, 0x00332211}, {68, 0x11223300},
                                                   {121, 0x11223300}, {134, 0x00332211}};
  for (const auto& [format, word] : formats) {
    ASSERT_EQ(Create(1, 64, 32, format), kOk);
    ASSERT_EQ(Attach(1, {{kPicture, 64 * 32 * 4}}), kOk);
    ASSERT_EQ(Scanout(1, {0, 0, 64, 32}), kOk);
    Paint(5, word);
    Transfer(1, {0, 0, 64, 32}, 0);
    EXPECT_EQ(Pixel(5, 0), 0x112233u) << format;
    ASSERT_EQ(Ask(0x102, {1, 0}), kOk);
  }
  EXPECT_EQ(Create(1, 64, 32, 5), kBadParameter);
}

TEST_P(VirtioGpuTest, ErrorsHaveTheirNames) {
  ShowOne();
  EXPECT_EQ(Create(0, 4, 4), kBadResource);
  EXPECT_EQ(Create(1, 4, 4), kBadResource);
  EXPECT_EQ(Create(2, 0, 4), kBadParameter);
  EXPECT_EQ(Create(2, 4, VirtioGpu::kMaxSide + 1), kBadParameter);
  EXPECT_EQ(Scanout(9, {0, 0, 4, 4}), kBadResource);
  EXPECT_EQ(Scanout(1, {0, 0, 4, 4}, 1), kBadScanout);
  EXPECT_EQ(Scanout(1, {61, 0, 4, 4}), kBadParameter);
  EXPECT_EQ(Scanout(1, {~0u, 0, 4, 4}), kBadParameter);
  EXPECT_EQ(Scanout(1, {0, 0, 0, 4}), kBadParameter);
  EXPECT_EQ(Transfer(9, {0, 0, 4, 4}, 0), kBadResource);
  EXPECT_EQ(Transfer(1, {0, 29, 4, 4}, 0), kBadParameter);
  EXPECT_EQ(Flush(9, {0, 0, 4, 4}), kBadResource);
  EXPECT_EQ(Flush(1, {0, 0, 65, 4}), kBadParameter);
  EXPECT_EQ(Attach(9, {{kPicture, 4}}), kBadResource);
  EXPECT_EQ(Attach(1, {{kPicture, 4}}), kUnspecified);  // it has some
  EXPECT_EQ(Ask(0x107, {1, 0}), kOk);
  EXPECT_EQ(Transfer(1, {0, 0, 4, 4}, 0), kBadParameter);
  EXPECT_EQ(Attach(1, {{0xfff0'0000, 4}}), kBadParameter);
  EXPECT_EQ(Ask(0x106, {1, 100, 0, 0}), kBadParameter);  // entries that are not there
  EXPECT_EQ(Ask(0x106, {1, ~0u}), kNoMemory);
  EXPECT_EQ(Ask(0x107, {9, 0}), kBadResource);
  EXPECT_EQ(Ask(0x102, {9, 0}), kBadResource);
  EXPECT_EQ(Ask(0x109, {}), kUnspecified);
  EXPECT_EQ(Ask(0x300, {}), kUnspecified);     // on the wrong queue
  EXPECT_EQ(Ask(0x100, {}, 1), kUnspecified);  // as well
  const uint8_t little[8] = {};
  EXPECT_EQ(AskRaw(little), kUnspecified);
  EXPECT_EQ(AskRaw(little, 0, 3), 0u);
  EXPECT_EQ(Status() & virtio_status::kNeedsReset, 0);
}

TEST_P(VirtioGpuTest, WhatAGuestMakesTheHostHoldIsBounded) {
  const uint32_t side = 4096;  // 64 MiB
  for (uint32_t id = 1; id <= 4; ++id) ASSERT_EQ(Create(id, side, side), kOk);
  EXPECT_EQ(Create(5, 1, 1), kNoMemory);
  ASSERT_EQ(Ask(0x102, {2, 0}), kOk);
  EXPECT_EQ(Create(5, side, side), kOk);
  for (const uint32_t id : {1, 3, 4, 5}) ASSERT_EQ(Ask(0x102, {id, 0}), kOk);
  for (uint32_t id = 1; id <= VirtioGpu::kMaxResources; ++id) ASSERT_EQ(Create(id, 1, 1), kOk);
  EXPECT_EQ(Create(0x10000, 1, 1), kNoMemory);
  SetCommon(20, 1, 0);
  Start(0, GetParam(), 16);
  EXPECT_EQ(Create(1, side, side), kOk);
}

TEST_P(VirtioGpuTest, TheScreenGoesDarkWithItsResource) {
  ShowOne();
  ASSERT_EQ(Ask(0x102, {1, 0}), kOk);
  EXPECT_FALSE(gpu->active());
  EXPECT_EQ(Draw().width(), VirtioGpu::kFirstWidth);
  ShowOne();
  ASSERT_EQ(Scanout(0, {}), kOk);
  EXPECT_FALSE(gpu->active());
}

TEST_P(VirtioGpuTest, AFrameOutlivesItsResource) {
  ShowOne();
  Paint(0, 0x778899);
  Transfer(1, {0, 0, 64, 32}, 0);
  const auto frame = gpu->Capture();
  ASSERT_EQ(Ask(0x102, {1, 0}), kOk);
  frame->Draw(surface);
  EXPECT_EQ(surface.row(0)[0], 0x778899u);
}

TEST_P(VirtioGpuTest, TheCursorHasAPictureAndAPlace) {
  ASSERT_EQ(Create(3, 64, 64, 1), kOk);
  ASSERT_EQ(Attach(3, {{kPicture, 64 * 64 * 4}}), kOk);
  Paint(1, 0xff00ff00);
  ASSERT_EQ(Transfer(3, {0, 0, 64, 64}, 0), kOk);
  EXPECT_FALSE(gpu->cursor().image);
  EXPECT_EQ(Ask(0x300, {0, 10, 20, 0, 3, 4, 99, 0}, 1), kOk);
  display::Cursor cursor = gpu->cursor();
  ASSERT_TRUE(cursor.image);
  EXPECT_EQ(cursor.image->argb[1], 0xff00ff00u);
  EXPECT_EQ(cursor.image->hot_x, 4u);
  EXPECT_EQ(cursor.image->hot_y, 63u);
  EXPECT_EQ(Ask(0x301, {0, 11, 0xfffffff0, 0, 0, 0, 0, 0}, 1), kOk);
  EXPECT_EQ(gpu->cursor().image, cursor.image);
  EXPECT_EQ(gpu->cursor().x, 11);
  EXPECT_EQ(gpu->cursor().y, static_cast<int>(display::Surface::kMaxHeight));
  ASSERT_EQ(Create(4, 32, 32), kOk);
  EXPECT_EQ(Ask(0x300, {0, 0, 0, 0, 4, 0, 0, 0}, 1), kBadResource);
  EXPECT_EQ(Ask(0x300, {1, 0, 0, 0, 3, 0, 0, 0}, 1), kBadScanout);
  EXPECT_EQ(Ask(0x300, {0, 0, 0, 0, 0, 0, 0, 0}, 1), kOk);
  EXPECT_FALSE(gpu->cursor().image);
}

// 5.7.4: events_read, events_clear
TEST_P(VirtioGpuTest, ASizeThatIsAskedFor) {
  const uint64_t generation = Common(21, 1);
  EXPECT_FALSE(gpu->RequestSize(10, 600));
  EXPECT_FALSE(gpu->RequestSize(800, 100000));
  EXPECT_TRUE(gpu->RequestSize(VirtioGpu::kFirstWidth, VirtioGpu::kFirstHeight));
  EXPECT_EQ(Config(0, 4), 0u);
  EXPECT_TRUE(gpu->RequestSize(1280, 720));
  EXPECT_EQ(Config(0, 4), 1u);
  EXPECT_NE(Common(21, 1), generation);
  EXPECT_NE(ReadIsr() & 2, 0);
  Ask(0x100, {});
  EXPECT_EQ(LoadLe<uint32_t>(&answer[24 + 8]), 1280u);
  memory_bus.Write(kBar0 + VirtioPci::kDeviceOffset + 4, 4, 1);
  EXPECT_EQ(Config(0, 4), 0u);
}

TEST_P(VirtioGpuTest, AllOfItIsSaved) {
  ShowOne();
  Paint(7, 0xabcdef);
  Transfer(1, {0, 0, 64, 32}, 0);
  ASSERT_EQ(Create(2, 64, 64, 1), kOk);
  ASSERT_EQ(Ask(0x300, {0, 1, 2, 0, 2, 3, 4, 0}, 1), kOk);
  GpuBench other;
  CopyStateTo(other);
  EXPECT_EQ(other.Pixel(7, 0), 0xabcdefu);
  ASSERT_TRUE(other.gpu->cursor().image);
  EXPECT_EQ(other.gpu->cursor().image->hot_x, 3u);
  EXPECT_EQ(other.gpu->cursor().y, 2);
  other.memory.WriteValue(GuestPhys(kPicture + 8 * 4), 0x123456u);
  EXPECT_EQ(other.Transfer(1, {0, 0, 64, 32}, 0), kOk);
  EXPECT_EQ(other.Pixel(8, 0), 0x123456u);
  EXPECT_EQ(other.Create(2, 4, 4), kBadResource);
}

// Commands that are nearly right, in any order, and pictures of what they leave.
TEST(VirtioGpuFuzz, RandomCommands) {
  std::mt19937_64 random(FuzzSeed(20261122));
  const auto below = [&](uint64_t limit) { return static_cast<uint32_t>(random() % limit); };
  FuzzRun run(20'000);
  constexpr uint32_t kTypes[] = {0x101, 0x101, 0x102, 0x103, 0x104, 0x105, 0x105, 0x106, 0x106, 0x107, 0x100, 0x10a};
  auto bench = std::make_unique<GpuBench>();
  bench->Start(Bit(1), false, 16);
  unsigned fine = 0;
  while (run.Next()) {
    const bool cursor = below(8) == 0;
    const uint32_t type = below(64) == 0 ? static_cast<uint32_t>(random())
                          : cursor       ? 0x300 + below(2)
                                         : kTypes[below(std::size(kTypes))];
    const auto number = [&] { return below(16) == 0 ? static_cast<uint32_t>(random() >> below(64)) : below(100); };
    const uint32_t id = 1 + below(6);
    std::vector<uint32_t> words;
    if (type == 0x101) {
      words = {id, below(8) ? 1 + below(4) : number(), number(), number()};
    } else if (type == 0x106) {
      const uint32_t count = below(40);
      words = {id, below(8) ? count : number()};
      for (uint32_t i = 0; i < count; ++i)
        words.insert(words.end(), {below(16) ? below(16 * kMiB - 8192) : number(), 0, below(8192), 0});
    } else if (type == 0x103 || type == 0x104 || type == 0x105) {
      words = {number(), number(), number(), number(), below(8) ? 0 : number(), below(8) ? 0 : number(), id, 0};
      if (type != 0x105) words[4] = type == 0x104 ? id : below(8) == 0;
      if (type == 0x103) words[5] = below(6) ? id : 0;
    } else if (type == 0x300 || type == 0x301) {
      words = {0, number(), number(), 0, below(4) ? id : 0, number(), number(), 0};
    } else {
      words = {id, 0};
    }
    if (below(32) == 0) words.resize(below(12));
    const uint32_t told = bench->Ask(type, words, cursor ? 1 : 0);
    ASSERT_GE(told, 0x1100u);
    fine += told == GpuBench::kOk;
    if (below(8) == 0) bench->Draw();
    if (below(64) == 0) bench->gpu->RequestSize(number(), number());
    if (below(512) == 0) {
      bench->SetCommon(20, 1, 0);
      bench->Start(Bit(1), below(2) != 0, 16);
    }
  }
  EXPECT_GT(fine, run.cases() / 20) << "too little of it was right";
  bench->SetCommon(20, 1, 0);
  bench->Start(Bit(1), false, 16);
  EXPECT_EQ(bench->Create(1, 64, 64), GpuBench::kOk);
}

}  // namespace
}  // namespace nacre::devices
