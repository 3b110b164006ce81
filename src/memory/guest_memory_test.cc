#include "memory/guest_memory.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <vector>

#include "base/bits.h"

namespace nacre::memory {
namespace {

std::unique_ptr<GuestMemory> Make(uint64_t size, GuestMemory::Backing backing = GuestMemory::Backing::kFile) {
  auto memory = GuestMemory::Create(size, backing);
  if (!memory) ADD_FAILURE() << memory.error().message;
  return std::move(memory).value();
}

class Listener : public CodeWriteListener {
 public:
  void OnCodeWrite(GuestPhys address, uint64_t size_bytes) override { calls.emplace_back(address, size_bytes); }
  std::vector<std::pair<GuestPhys, uint64_t>> calls;
};

TEST(GuestMemory, SizesAreChecked) {
  EXPECT_FALSE(GuestMemory::Create(0).has_value());
  EXPECT_FALSE(GuestMemory::Create(kMiB - 4096).has_value());
  EXPECT_FALSE(GuestMemory::Create(kMiB + 1).has_value());
  EXPECT_FALSE(GuestMemory::Create(2048 * kGiB).has_value());
  EXPECT_FALSE(GuestMemory::Create(~uint64_t{0}).has_value());
}

TEST(GuestMemory, SmallMemoryIsOneRegion) {
  const auto memory = Make(kMiB);
  ASSERT_EQ(memory->regions().size(), 1u);
  EXPECT_EQ(memory->regions()[0].start, GuestPhys(0));
  EXPECT_EQ(memory->regions()[0].size_bytes, kMiB);
  EXPECT_NE(memory->HostPointer(GuestPhys(kMiB - 1), 1), nullptr);
  EXPECT_EQ(memory->HostPointer(GuestPhys(kMiB), 1), nullptr);
}

TEST(GuestMemory, RangesMustEndInsideTheRegion) {
  const auto memory = Make(kMiB);
  EXPECT_TRUE(memory->IsRam(GuestPhys(kMiB - 8), 8));
  EXPECT_FALSE(memory->IsRam(GuestPhys(kMiB - 8), 9));
  EXPECT_TRUE(memory->IsRam(GuestPhys(0), kMiB));
  EXPECT_FALSE(memory->IsRam(GuestPhys(1), kMiB));
  EXPECT_FALSE(memory->IsRam(GuestPhys(8), ~uint64_t{0}));  // would wrap
  EXPECT_FALSE(memory->IsRam(GuestPhys(~uint64_t{0}), 2));
}

TEST(GuestMemory, RamAboveThreeGigabytesStartsAtFour) {
  const uint64_t size = GuestMemory::kLowLimit + 4 * kMiB;
  const auto memory = Make(size);
  ASSERT_EQ(memory->regions().size(), 2u);
  EXPECT_EQ(memory->regions()[1].start, GuestPhys(4 * kGiB));
  EXPECT_EQ(memory->regions()[1].size_bytes, 4 * kMiB);
  EXPECT_EQ(memory->regions()[1].offset, GuestMemory::kLowLimit);
  EXPECT_FALSE(memory->IsRam(GuestPhys(GuestMemory::kLowLimit), 1));
  EXPECT_FALSE(memory->IsRam(GuestPhys(GuestMemory::kLowLimit - 1), 2));
  EXPECT_FALSE(memory->IsRam(GuestPhys(4 * kGiB - 1), 1));
  EXPECT_FALSE(memory->IsRam(GuestPhys(4 * kGiB - 1), 2));
  EXPECT_TRUE(memory->IsRam(GuestPhys(4 * kGiB), 4 * kMiB));
  EXPECT_FALSE(memory->IsRam(GuestPhys(4 * kGiB), 4 * kMiB + 1));
  EXPECT_EQ(memory->HostPointer(GuestPhys(4 * kGiB), 1), memory->host_base() + GuestMemory::kLowLimit);
}

TEST(GuestMemory, ReadWriteAllOrNothing) {
  const auto memory = Make(kMiB);
  ASSERT_TRUE(memory->WriteValue(GuestPhys(kMiB - 8), uint64_t{0x1122334455667788}));
  uint32_t value = 0;
  ASSERT_TRUE(memory->ReadValue(GuestPhys(kMiB - 6), value));
  EXPECT_EQ(value, 0x33445566u);
  uint8_t bytes[16];
  std::memset(bytes, 0xaa, sizeof bytes);
  EXPECT_FALSE(memory->Write(GuestPhys(kMiB - 8), bytes));
  uint64_t same = 0;
  ASSERT_TRUE(memory->ReadValue(GuestPhys(kMiB - 8), same));
  EXPECT_EQ(same, 0x1122334455667788u);
  EXPECT_FALSE(memory->Read(GuestPhys(kMiB - 8), bytes));
  EXPECT_EQ(bytes[0], 0xaa);
}

TEST(GuestMemory, WritesSetDirtyOnEveryPageTheyTouch) {
  const auto memory = Make(kMiB);
  const uint8_t bytes[2] = {1, 2};
  ASSERT_TRUE(memory->Write(GuestPhys(2 * kPageSize - 1), bytes));
  for (uint64_t page = 0; page < 4; ++page)
    EXPECT_EQ(memory->PageFlags(page).load() & GuestMemory::kDirty, page == 1 || page == 2 ? GuestMemory::kDirty : 0);
  memory->MarkWritten(GuestPhys(5 * kPageSize), 0);
  EXPECT_EQ(memory->PageFlags(5).load(), 0);
}

TEST(GuestMemory, WritesToCodePagesReachTheListener) {
  const auto memory = Make(kMiB);
  Listener listener;
  memory->SetCodeWriteListener(&listener);
  const uint8_t bytes[4] = {};
  ASSERT_TRUE(memory->Write(GuestPhys(0x3000), bytes));
  EXPECT_TRUE(listener.calls.empty());
  memory->SetCodePage(GuestPhys(0x3123), true);
  ASSERT_TRUE(memory->Write(GuestPhys(0x2ffe), bytes));  // crosses into the code page
  ASSERT_EQ(listener.calls.size(), 1u);
  EXPECT_EQ(listener.calls[0].first, GuestPhys(0x2ffe));
  EXPECT_EQ(listener.calls[0].second, 4u);
  ASSERT_TRUE(memory->Write(GuestPhys(0x2ffc), bytes));  // ends just before it
  EXPECT_EQ(listener.calls.size(), 1u);
  memory->SetCodePage(GuestPhys(0x3000), false);
  ASSERT_TRUE(memory->Write(GuestPhys(0x3000), bytes));
  EXPECT_EQ(listener.calls.size(), 1u);
}

TEST(GuestMemory, PageIndexOfHighMemoryFollowsTheLow) {
  const auto memory = Make(GuestMemory::kLowLimit + kMiB);
  ASSERT_TRUE(memory->WriteValue(GuestPhys(4 * kGiB + kPageSize), uint8_t{1}));
  EXPECT_EQ(memory->PageFlags(GuestMemory::kLowLimit / kPageSize + 1).load(), GuestMemory::kDirty);
}

TEST(GuestMemory, BothBackingsStartAtAHugePage) {
  EXPECT_EQ(reinterpret_cast<uint64_t>(Make(kMiB)->host_base()) % (2 * kMiB), 0U);
  EXPECT_EQ(reinterpret_cast<uint64_t>(Make(kMiB, GuestMemory::Backing::kAnonymous)->host_base()) % (2 * kMiB), 0U);
}

TEST(GuestMemory, OnlyAFileHasASecondView) {
  const auto file = Make(kMiB);
  ASSERT_TRUE(file->WriteValue(GuestPhys(0x1000), uint8_t{7}));
  const auto view = GuestMemory::CreatePrivateView(*file);
  ASSERT_TRUE(view.has_value()) << view.error().message;
  uint8_t seen = 0;
  ASSERT_TRUE((*view)->ReadValue(GuestPhys(0x1000), seen));
  EXPECT_EQ(seen, 7);
  EXPECT_FALSE(GuestMemory::CreatePrivateView(*Make(kMiB, GuestMemory::Backing::kAnonymous)).has_value());
}

class GuestMemoryBackings : public testing::TestWithParam<GuestMemory::Backing> {};
INSTANTIATE_TEST_SUITE_P(All, GuestMemoryBackings,
                         testing::Values(GuestMemory::Backing::kFile, GuestMemory::Backing::kAnonymous));

TEST_P(GuestMemoryBackings, DiscardZeroesWholePagesOnly) {
  const auto memory = Make(kMiB, GetParam());
  std::vector<uint8_t> ones(4 * kPageSize, 1);
  ASSERT_TRUE(memory->Write(GuestPhys(0x1000), ones));
  EXPECT_TRUE(memory->Discard(GuestPhys(0x1800), 2 * kPageSize));  // only the page at 0x2000 lies inside
  uint8_t before = 0, inside = 1, after = 0;
  ASSERT_TRUE(memory->ReadValue(GuestPhys(0x1fff), before));
  ASSERT_TRUE(memory->ReadValue(GuestPhys(0x2000), inside));
  ASSERT_TRUE(memory->ReadValue(GuestPhys(0x3000), after));
  EXPECT_EQ(before, 1);
  EXPECT_EQ(inside, 0);
  EXPECT_EQ(after, 1);
  EXPECT_FALSE(memory->Discard(GuestPhys(0x1800), 100));
  EXPECT_FALSE(memory->Discard(GuestPhys(kMiB - kPageSize), 2 * kPageSize));
  EXPECT_FALSE(memory->Discard(GuestPhys(~uint64_t{0} - 100), kPageSize * 2));
  EXPECT_FALSE(memory->Discard(GuestPhys(0), 0));
}

TEST(GuestMemory, A20LeavesBit20OutForCpusOnly) {
  auto memory = *GuestMemory::Create(4 * kMiB);
  const auto view = *GuestMemory::CreatePrivateView(*memory);
  const auto page = [&](uint64_t address) { return memory->FindPage(GuestPhys(address)).host - memory->host_base(); };
  const auto size_of = [](const std::vector<Region>& layout, uint64_t start) {
    uint64_t size = 0;
    for (const Region& region : layout)
      if (region.start.value <= start && start < region.start.value + region.size_bytes) size = region.size_bytes;
    return size;
  };
  EXPECT_EQ(page(3 * kMiB), static_cast<ptrdiff_t>(3 * kMiB));
  EXPECT_EQ(memory->Layout().size(), 1u);
  memory->SetA20(false);
  EXPECT_EQ(page(3 * kMiB), static_cast<ptrdiff_t>(2 * kMiB));
  EXPECT_EQ(page(kMiB + kPageSize), static_cast<ptrdiff_t>(kPageSize));
  EXPECT_EQ(memory->OnBus(GuestPhys(0x1b8000)).value, 0xb8000u);
  EXPECT_EQ(view->OnBus(GuestPhys(0x1b8000)).value, 0xb8000u) << "a view sees it too";
  EXPECT_EQ(memory->HostPointer(GuestPhys(kMiB), 4) - memory->host_base(), static_cast<ptrdiff_t>(kMiB));
  const std::vector<Region> off = memory->Layout();
  ASSERT_EQ(off.size(), 3u);
  EXPECT_EQ(off[1], (Region{GuestPhys(kMiB), kMiB, 0}));
  EXPECT_EQ(off[2], (Region{GuestPhys(2 * kMiB), 2 * kMiB, 2 * kMiB}));
  memory->SetA20(true);
  EXPECT_EQ(page(3 * kMiB), static_cast<ptrdiff_t>(3 * kMiB));
  // With windows the last piece stays as it is.
  memory->SetLowPages(GuestPhys(0xa0000), GuestPhys(0xbffff), LowPage::kNothing);
  const std::vector<Region> on = memory->Layout();
  memory->SetA20(false);
  EXPECT_EQ(size_of(on, 2 * kMiB), 2 * kMiB);
  EXPECT_EQ(on.back(), memory->Layout().back());
  EXPECT_EQ(size_of(memory->Layout(), 0x1b8000), 0u);
}

TEST(GuestMemory, TakeDirtyGivesWhatWasWrittenOnce) {
  auto memory = GuestMemory::Create(3 * kMiB).value();
  std::vector<uint64_t> pages(memory->page_bitmap_words());
  memory->TakeDirty(pages);
  EXPECT_EQ(std::vector<uint64_t>(12), pages);
  const uint8_t bytes[2] = {};
  ASSERT_TRUE(memory->Write(GuestPhys(0x40fff), bytes));
  ASSERT_TRUE(memory->Write(GuestPhys(0x2ff000), bytes));
  memory->TakeDirty(pages);
  EXPECT_EQ(pages[1], 3u) << "pages 0x40 and 0x41";
  EXPECT_EQ(pages[11], Bit(63));
  pages.assign(12, 0);
  memory->TakeDirty(pages);
  EXPECT_EQ(std::vector<uint64_t>(12), pages);
  ASSERT_TRUE(memory->Write(GuestPhys(0x40000), bytes));
  memory->TakeDirty(pages);
  EXPECT_EQ(pages[1], 1u);
}

class VideoMemory : public testing::TestWithParam<GuestMemory::Backing> {};
INSTANTIATE_TEST_SUITE_P(Backings, VideoMemory,
                         testing::Values(GuestMemory::Backing::kFile, GuestMemory::Backing::kAnonymous));

TEST_P(VideoMemory, CpusSeeItWhereItIsPlaced) {
  const auto memory = std::move(*GuestMemory::Create(4 * kMiB, GetParam(), 64 * kKiB, kMiB));
  constexpr GuestPhys kAt(0xe0000000), kLast(0xe0000000 + kMiB - kPageSize);
  EXPECT_EQ(memory->video().size(), kMiB);
  EXPECT_EQ(memory->FindPage(kAt).host, nullptr);
  ASSERT_TRUE(memory->PlaceVideo(kAt));
  EXPECT_EQ(memory->FindPage(kAt).host, memory->video().data());
  EXPECT_TRUE(memory->FindPage(kAt).writable);
  EXPECT_EQ(memory->FindPage(kLast).host, memory->video().data() + kMiB - kPageSize);
  EXPECT_EQ(memory->FindPage(kAt + kMiB).host, nullptr);
  EXPECT_FALSE(memory->MayHoldCode(memory->video().data()));
  EXPECT_TRUE(memory->MayHoldCode(memory->rom()));
  EXPECT_FALSE(memory->IsRam(kAt, 4096));  // not for devices
  memory->MarkWritten(kAt, 8);
  const std::vector<Region> layout = memory->Layout();
  EXPECT_NE(std::ranges::find(layout, Region{kAt, kMiB, 4 * kMiB + 64 * kKiB}), layout.end());
  ASSERT_TRUE(memory->PlaceVideo(GuestPhys(0x800000000)));
  EXPECT_EQ(memory->FindPage(kAt).host, nullptr);
  EXPECT_NE(memory->FindPage(GuestPhys(0x800000000)).host, nullptr);
  EXPECT_EQ(memory->Layout().back().start, GuestPhys(0x800000000));
  memory->MarkWritten(kAt, 8);  // who wrote there before it went
  EXPECT_FALSE(memory->PlaceVideo(std::nullopt));
  EXPECT_EQ(memory->FindPage(GuestPhys(0x800000000)).host, nullptr);
  EXPECT_EQ(memory->Layout().size(), layout.size() - 1);
}

TEST_P(VideoMemory, NothingElseIsHidden) {
  const auto memory = std::move(*GuestMemory::Create(GuestMemory::kLowLimit + kGiB, GetParam(), 64 * kKiB, kMiB));
  for (const uint64_t at : {uint64_t{0}, uint64_t{0xa0000}, GuestMemory::kLowLimit - kPageSize, uint64_t{0xfeb80000},
                            uint64_t{0xfec00000}, uint64_t{0xfff00000}, 4 * kGiB, 5 * kGiB - kPageSize,
                            uint64_t{0xe0000800}, Bit(52) - kPageSize, ~uint64_t{0} - kMiB + 1})
    EXPECT_FALSE(memory->PlaceVideo(GuestPhys(at))) << at;
  for (const uint64_t at : {GuestMemory::kLowLimit, uint64_t{0xfeb00000}, 5 * kGiB})
    EXPECT_TRUE(memory->PlaceVideo(GuestPhys(at))) << at;
}

TEST_P(VideoMemory, IsCleared) {
  const auto memory = std::move(*GuestMemory::Create(4 * kMiB, GetParam(), 0, kMiB));
  std::ranges::fill(memory->video(), uint8_t{7});
  memory->ClearVideo(8192);
  EXPECT_EQ(memory->video()[0], 0);
  EXPECT_EQ(memory->video()[8191], 0);
  EXPECT_EQ(memory->video()[8192], 7);
}

}  // namespace
}  // namespace nacre::memory
