#include "memory/memory_image.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <random>

#include "state/archive.h"

namespace nacre::memory {
namespace {

constexpr uint64_t kPages = 1024;

class MemoryImageTest : public testing::Test {
 protected:
  MemoryImageTest() {
    std::string name = testing::TempDir() + "nacre-image-XXXXXX";
    folder_ = mkdtemp(name.data());
    memory_ = NewMemory();
  }
  ~MemoryImageTest() override { std::filesystem::remove_all(folder_); }

  static std::unique_ptr<GuestMemory> NewMemory() {
    return *GuestMemory::Create(kPages * kPageSize, GuestMemory::Backing::kAnonymous);
  }
  std::string Path(int number) const { return folder_ / std::to_string(number); }
  void Fill(uint64_t page, uint8_t value) { std::memset(memory_->host_base() + page * kPageSize, value, kPageSize); }
  /// As a snapshot does, but in one process.
  ImageMap Write(int number, const MemoryImage* parent) {
    auto writer = MemoryWriter::Create(Path(number), kPages, parent);
    EXPECT_TRUE(writer) << writer.error().message;
    EXPECT_EQ((*writer)->Write(memory_->host_base()), 0);
    return (*writer)->Map();
  }
  void Add(const MemoryImage* parent) {
    const auto number = static_cast<int>(layers_.size());
    layers_.insert(layers_.begin(), {Path(number), Write(number, parent)});
  }
  std::unique_ptr<MemoryImage> Open() {
    auto image = MemoryImage::Open(layers_);
    EXPECT_TRUE(image) << image.error().message;
    return image ? std::move(*image) : nullptr;
  }
  void ExpectSame(const MemoryImage& image) {
    auto copy = NewMemory();
    ASSERT_TRUE(image.MapInto(*copy));
    EXPECT_EQ(std::memcmp(copy->host_base(), memory_->host_base(), kPages * kPageSize), 0);
    size_t hint = 0;
    const std::vector<uint8_t> zeros(kPageSize);
    for (uint64_t page = 0; page < kPages; ++page) {
      const uint8_t* bytes = image.Page(page, hint);
      EXPECT_EQ(std::memcmp(bytes ? bytes : zeros.data(), memory_->host_base() + page * kPageSize, kPageSize), 0);
    }
    EXPECT_TRUE(image.Verify(go_on_));
  }

  std::filesystem::path folder_;
  std::unique_ptr<GuestMemory> memory_;
  std::vector<ImageLayer> layers_;
  const std::atomic<bool> go_on_ = false;
};

TEST_F(MemoryImageTest, ZerosTakeNoRoom) {
  Fill(3, 0x11);
  Fill(700, 0x22);
  Add(nullptr);
  EXPECT_EQ(layers_[0].map.PagesHere(), 2u);
  struct stat info {};
  ASSERT_EQ(stat(Path(0).c_str(), &info), 0);
  EXPECT_EQ(info.st_size, static_cast<off_t>(kPages * kPageSize));
  EXPECT_LE(info.st_blocks * 512, 16 * static_cast<off_t>(kPageSize));
  ExpectSame(*Open());
}

TEST_F(MemoryImageTest, EmptyAndFullMemory) {
  Add(nullptr);
  ExpectSame(*Open());
  layers_.clear();
  std::filesystem::remove(Path(0));
  for (uint64_t page = 0; page < kPages; ++page) Fill(page, static_cast<uint8_t>(page | 1));
  Add(nullptr);
  EXPECT_EQ(layers_[0].map.PagesHere(), kPages);
  ExpectSame(*Open());
}

TEST_F(MemoryImageTest, ALayerHasOnlyWhatChanged) {
  for (uint64_t page = 100; page < 400; ++page) Fill(page, 0x33);
  Add(nullptr);
  const auto first = Open();
  Fill(150, 0x44);
  Fill(200, 0);     // zeros now
  Fill(900, 0x55);  // were zeros
  Add(first.get());
  EXPECT_EQ(layers_[0].map.PagesHere(), 2u);
  ExpectSame(*Open());
}

TEST_F(MemoryImageTest, LongChainsOfRandomChanges) {
  std::mt19937_64 random(11);
  std::unique_ptr<MemoryImage> image;
  for (int layer = 0; layer < 12; ++layer) {
    for (int change = 0; change < 60; ++change) {
      const uint64_t first = random() % kPages, count = std::min<uint64_t>(kPages - first, 1 + random() % 40);
      const auto value = static_cast<uint8_t>(random() % 5);
      for (uint64_t page = first; page < first + count; ++page) Fill(page, value);
    }
    Add(image.get());
    image = Open();
    ExpectSame(*image);
  }
}

TEST_F(MemoryImageTest, LayersCanBeTakenOutOfAChain) {
  std::mt19937_64 random(13);
  std::unique_ptr<MemoryImage> image;
  for (int layer = 0; layer < 6; ++layer) {
    for (int change = 0; change < 40; ++change) Fill(random() % kPages, static_cast<uint8_t>(random() % 4));
    Add(image.get());
    image = Open();
  }
  // From the newest, which is first: a middle one, the oldest, then all but one.
  for (const size_t gone : {2, 4, 3, 2, 1}) {
    ASSERT_TRUE(AdoptParent(layers_[gone - 1], layers_[gone]));
    std::filesystem::remove(layers_[gone].path);
    layers_.erase(layers_.begin() + static_cast<ptrdiff_t>(gone));
    ExpectSame(*Open());
  }
}

TEST_F(MemoryImageTest, DamageDoesNotMoveOn) {
  for (uint64_t page = 0; page < 100; ++page) Fill(page, 7);
  Add(nullptr);
  const auto image = Open();
  Fill(3, 8);
  Add(image.get());
  const int fd = open(layers_[1].path.c_str(), O_WRONLY | O_CLOEXEC);
  ASSERT_EQ(pwrite(fd, "x", 1, 50 * kPageSize), 1);
  close(fd);
  const Status status = AdoptParent(layers_[0], layers_[1]);
  ASSERT_FALSE(status);
  EXPECT_NE(status.error().message.find("0: damaged; nothing was changed"), std::string::npos);
}

TEST_F(MemoryImageTest, WritesDoNotReachTheFile) {
  Fill(20, 0x77);
  for (uint64_t page = 32; page < 64; ++page) Fill(page, 0x78);
  Add(nullptr);
  const auto image = Open();
  const auto copy = NewMemory();
  ASSERT_TRUE(image->MapInto(*copy));
  std::memset(copy->host_base(), 1, kPages * kPageSize);
  ExpectSame(*image);
}

TEST_F(MemoryImageTest, DiscardedPagesAreZerosNotTheFiles) {
  for (uint64_t page = 0; page < kPages; ++page) Fill(page, 0x66);
  Add(nullptr);
  const auto copy = NewMemory();
  ASSERT_TRUE(Open()->MapInto(*copy));
  const std::vector<uint8_t> zeros(256 * kPageSize);
  for (const uint64_t pages : {1, 256}) {  // small ones are cleared, large ones mapped anew
    EXPECT_TRUE(copy->Discard(GuestPhys(pages * kPageSize), pages * kPageSize));
    EXPECT_EQ(std::memcmp(copy->host_base() + pages * kPageSize, zeros.data(), pages * kPageSize), 0);
  }
  EXPECT_EQ(copy->host_base()[0], 0x66);
  EXPECT_EQ(copy->host_base()[512 * kPageSize], 0x66);
}

TEST_F(MemoryImageTest, DamageIsFoundInItsPiece) {
  for (uint64_t page = 0; page < kPages; ++page) Fill(page, 0x21);
  Add(nullptr);
  const auto image = Open();
  const int fd = open(Path(0).c_str(), O_WRONLY | O_CLOEXEC);
  ASSERT_EQ(pwrite(fd, "x", 1, 300 * kPageSize), 1);
  close(fd);
  const Status status = image->Verify(go_on_);
  ASSERT_FALSE(status);
  EXPECT_NE(status.error().message.find("damaged between bytes 1048576 and 2097152"), std::string::npos)
      << status.error().message;
  EXPECT_TRUE(image->Verify(true));  // asked to stop
}

TEST_F(MemoryImageTest, WrongFilesAreRefused) {
  Fill(1, 1);
  Add(nullptr);
  ASSERT_EQ(truncate(Path(0).c_str(), 4096), 0);
  EXPECT_FALSE(MemoryImage::Open(layers_));
  std::filesystem::remove(Path(0));
  EXPECT_FALSE(MemoryImage::Open(layers_));
  layers_[0].map.runs = {{0, kPages, PageSource::kParent}};
  EXPECT_FALSE(MemoryImage::Open(layers_));
}

TEST_F(MemoryImageTest, MapsAreSavedAndHostileOnesRejected) {
  for (uint64_t page = 5; page < 300; page += 3) Fill(page, 9);
  ImageMap map = Write(0, nullptr);
  const auto save = [](ImageMap& from) {
    state::Archive archive = state::Archive::ForSaving();
    from.Serialize(archive);
    return archive.Finish();
  };
  const auto load = [](std::span<const uint8_t> bytes, ImageMap& to) {
    state::Archive archive = state::Archive::ForLoading(bytes);
    if (archive.ok()) to.Serialize(archive);
    return archive.ok();
  };
  const std::vector<uint8_t> bytes = save(map);
  ImageMap loaded;
  ASSERT_TRUE(load(bytes, loaded));
  EXPECT_EQ(loaded.pages, map.pages);
  EXPECT_EQ(loaded.checksums, map.checksums);
  ASSERT_EQ(loaded.runs.size(), map.runs.size());
  EXPECT_EQ(loaded.runs.back().first, map.runs.back().first);

  const auto reject = [&](auto change) {
    ImageMap bad = map, to;
    change(bad);
    EXPECT_FALSE(load(save(bad), to));
  };
  reject([](ImageMap& bad) { bad.runs.pop_back(); });
  reject([](ImageMap& bad) { bad.runs[0].count = 0; });
  reject([](ImageMap& bad) { bad.runs[0].count = ~uint64_t{0} >> 3; });
  reject([](ImageMap& bad) { bad.runs[0].source = static_cast<PageSource>(3); });
  reject([](ImageMap& bad) { bad.checksums.pop_back(); });
  reject([](ImageMap& bad) { bad.pages = 0; });
  reject([](ImageMap& bad) { bad.pages = ~uint64_t{0}; });
  std::mt19937_64 random(3);
  for (int i = 0; i < 20000; ++i) {
    std::vector<uint8_t> bad = bytes;
    for (unsigned n = 1 + random() % 4; n > 0; --n) bad[random() % bad.size()] = static_cast<uint8_t>(random());
    ImageMap to;
    (void)load(bad, to);
  }
}

}  // namespace
}  // namespace nacre::memory
