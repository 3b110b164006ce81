#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>

#include "base/bits.h"
#include "storage/host_file.h"
#include "storage/image.h"
#include "storage/qcow2_check.h"
#include "storage/qcow2_disk.h"
#include "storage/qcow2_testing.h"

namespace nacre::storage {
namespace {

using Kind = DiskRequest::Kind;

std::shared_ptr<AsyncIo> NewIo() {
  auto io = AsyncIo::Create();
  EXPECT_TRUE(io.has_value());
  return std::move(*io);
}

std::unique_ptr<ImageDisk> MustOpen(const std::string& path, std::shared_ptr<AsyncIo> io, bool read_only = false,
                                    std::optional<ImageFormat> format = {}) {
  auto disk = OpenImage({.path = path, .format = format, .read_only = read_only}, std::move(io));
  EXPECT_TRUE(disk.has_value()) << disk.error().message;
  return disk ? std::move(*disk) : nullptr;
}

void MustCreate(const std::string& path, const Qcow2Options& options) {
  const Status made = CreateQcow2(path, options);
  ASSERT_TRUE(made.has_value()) << made.error().message;
}

CheckReport MustCheck(const std::string& path, bool repair = false) {
  auto report = CheckQcow2(path, repair);
  EXPECT_TRUE(report.has_value()) << report.error().message;
  return report ? *report : CheckReport{};
}

void ExpectClean(const std::string& path, bool leaks_allowed = false) {
  const CheckReport report = MustCheck(path);
  EXPECT_EQ(0U, report.corruptions) << (report.faults.empty() ? "" : report.faults[0]);
  if (leaks_allowed) return;
  EXPECT_EQ(0U, report.leaks) << (report.faults.empty() ? "" : report.faults[0]);
}

void Patch(const std::string& path, uint64_t offset, std::vector<uint8_t> bytes) {
  const Fd fd(open(path.c_str(), O_RDWR | O_CLOEXEC));
  ASSERT_TRUE(WriteAt(path, fd.get(), offset, bytes.data(), bytes.size()).has_value());
}

std::vector<uint8_t> Noise(std::mt19937_64& random, size_t size) {
  std::vector<uint8_t> bytes(size);
  for (size_t i = 0; i + 8 <= size; i += 8) StoreLe(&bytes[i], random());
  return bytes;
}

std::vector<uint8_t> ReadAll(Disk& disk) {
  std::vector<uint8_t> bytes(disk.size_bytes());
  EXPECT_EQ(0, RunRequest(disk, Kind::kRead, 0, bytes.size(), bytes.data()));
  return bytes;
}

/// Random requests, several at a time that do not touch the same sectors but do share clusters; `model` follows.
void RandomRound(Disk& disk, std::vector<uint8_t>& model, std::mt19937_64& random, unsigned requests,
                 bool with_discard = true) {
  const uint64_t sectors = model.size() / kSectorSize;
  std::vector<std::unique_ptr<WaitedRequest>> running;
  std::vector<std::pair<uint64_t, uint64_t>> taken;
  for (unsigned i = 0; i < requests; ++i) {
    const uint64_t most = random() % 4 == 0 ? 600 : 24;
    const uint64_t size = 1 + random() % std::min(most, sectors);
    const uint64_t first = random() % (sectors - size + 1);
    if (std::ranges::any_of(taken, [&](auto& t) { return t.first < first + size && first < t.second; })) continue;
    const uint64_t at = first * kSectorSize, bytes = size * kSectorSize;
    const unsigned what = random() % 16;
    std::unique_ptr<WaitedRequest> request;
    if (what < 7) {
      request = std::make_unique<WaitedRequest>(Kind::kWrite, at, bytes, Noise(random, bytes));
    } else if (what < 12) {
      request = std::make_unique<WaitedRequest>(Kind::kRead, at, bytes);
    } else if (what < 14 || !with_discard) {
      request = std::make_unique<WaitedRequest>(Kind::kWriteZeroes, at, bytes);
      request->unmap = what == 12;
    } else if (what == 14) {
      request = std::make_unique<WaitedRequest>(Kind::kDiscard, at, bytes);
    } else {
      request = std::make_unique<WaitedRequest>(Kind::kFlush, 0, 0);
    }
    if (request->kind != Kind::kFlush) taken.emplace_back(first, first + size);
    disk.Start(*request);
    if (random() % 3 == 0) disk.Submit();
    running.push_back(std::move(request));
  }
  disk.Drain();
  for (const auto& request : running) {
    ASSERT_EQ(1, request->times_done);
    ASSERT_EQ(0, request->error);
    uint8_t* at = model.data() + request->offset;
    switch (request->kind) {
      case Kind::kRead:
        ASSERT_EQ(0, std::memcmp(at, request->data.data(), request->size_bytes)) << request->offset;
        break;
      case Kind::kWrite:
        std::memcpy(at, request->data.data(), request->size_bytes);
        break;
      case Kind::kWriteZeroes:
        std::memset(at, 0, request->size_bytes);
        break;
      case Kind::kDiscard: {  // anything may be there now: what it is must stay
        WaitedRequest read(Kind::kRead, request->offset, request->size_bytes);
        disk.Start(read);
        disk.Drain();
        ASSERT_EQ(0, read.error);
        for (uint64_t i = 0; i < request->size_bytes; ++i) ASSERT_TRUE(read.data[i] == 0 || read.data[i] == at[i]);
        std::memcpy(at, read.data.data(), request->size_bytes);
        break;
      }
      case Kind::kFlush:
        break;
    }
  }
}

struct Variant {
  const char* name;
  uint64_t cluster_size;
  unsigned refcount_bits;
  bool extended;
  unsigned version;
  int backing;  ///< 0 none, 1 raw, 2 qcow2, 3 a shorter one
};

class EveryVariant : public testing::TestWithParam<Variant> {};
INSTANTIATE_TEST_SUITE_P(
    Qcow2, EveryVariant,
    testing::Values(Variant{"Default", 65536, 16, false, 3, 0}, Variant{"Backing", 65536, 16, false, 3, 2},
                    Variant{"RawBacking", 65536, 16, false, 3, 1}, Variant{"ShortBacking", 16384, 16, false, 3, 3},
                    Variant{"Version2", 65536, 16, false, 2, 0}, Variant{"Version2Backing", 4096, 16, false, 2, 2},
                    Variant{"Smallest", 512, 1, false, 3, 0}, Variant{"SmallestBacking", 512, 64, false, 3, 2},
                    Variant{"Clusters4K", 4096, 2, false, 3, 2}, Variant{"Clusters2M", 2 << 20, 32, false, 3, 2},
                    Variant{"Extended", 65536, 8, true, 3, 0}, Variant{"ExtendedBacking", 16384, 4, true, 3, 2},
                    Variant{"Extended2M", 2 << 20, 16, true, 3, 1}),
    [](const auto& variant) { return std::string(variant.param.name); });

TEST_P(EveryVariant, RandomRequestsGiveWhatAFlatModelGives) {
  const Variant& variant = GetParam();
  constexpr uint64_t kSize = 9 * kMiB + 512 * 7;  // no whole number of clusters
  TempFolder folder;
  std::mt19937_64 random(variant.cluster_size * 31 + variant.refcount_bits);
  std::vector<uint8_t> model(kSize);
  Qcow2Options options{.size_bytes = kSize,
                       .cluster_size = variant.cluster_size,
                       .version = variant.version,
                       .refcount_bits = variant.refcount_bits,
                       .extended_l2 = variant.extended};
  if (variant.backing != 0) {
    const uint64_t below = variant.backing == 3 ? 5 * kMiB + 512 : kSize;
    options.backing = "base";
    options.backing_format = variant.backing == 1 ? ImageFormat::kRaw : ImageFormat::kQcow2;
    if (variant.backing == 1) {
      std::ofstream(folder / "base").put(0);
      ASSERT_EQ(0, truncate((folder / "base").c_str(), static_cast<off_t>(below)));
    } else {
      MustCreate(folder / "base", {.size_bytes = below});
    }
    auto base = MustOpen(folder / "base", NewIo(), false, options.backing_format);
    std::vector<uint8_t> base_model(below);
    for (int i = 0; i < 40; ++i) RandomRound(*base, base_model, random, 8);
    std::ranges::copy(base_model, model.begin());
  }
  MustCreate(folder / "disk", options);
  const bool long_run = !variant.extended && variant.cluster_size == 65536 && variant.backing != 1;
  const int opens = 5, rounds = long_run ? 100 : 16;  // of 20 requests: 10,000 or 1,600
  for (int open = 0; open < opens; ++open) {
    auto disk = MustOpen(folder / "disk", NewIo());
    ASSERT_TRUE(disk);
    ASSERT_EQ(kSize, disk->size_bytes());
    for (int round = 0; round < rounds; ++round) {
      RandomRound(*disk, model, random, 1 + random() % 40);
      if (HasFatalFailure()) return;
    }
    ASSERT_TRUE(model == ReadAll(*disk));
    disk.reset();
    ExpectClean(folder / "disk");
  }
  ASSERT_TRUE(model == ReadAll(*MustOpen(folder / "disk", NewIo(), true)));
}

TEST(Qcow2Test, AFlushedImageIsCleanAndWholeBeforeItIsClosed) {
  TempFolder folder;
  MustCreate(folder / "disk", {.size_bytes = 64 * kMiB});
  auto disk = MustOpen(folder / "disk", NewIo());
  std::mt19937_64 random(1);
  auto data = Noise(random, 3 * kMiB);
  ASSERT_EQ(0, RunRequest(*disk, Kind::kWrite, 5 * kMiB - 512, data.size(), data.data()));
  ASSERT_EQ(0, RunRequest(*disk, Kind::kFlush, 0, 0));
  std::filesystem::copy(folder / "disk", folder / "copy");
  ExpectClean(folder / "copy");
  auto copy = MustOpen(folder / "copy", NewIo(), true);
  std::vector<uint8_t> back(data.size());
  ASSERT_EQ(0, RunRequest(*copy, Kind::kRead, 5 * kMiB - 512, back.size(), back.data()));
  EXPECT_TRUE(data == back);
}

TEST(Qcow2Test, ADiskInUseIsLockedAndItsBackingFileIsShared) {
  TempFolder folder;
  MustCreate(folder / "base", {.size_bytes = kMiB});
  MustCreate(folder / "a", {.backing = "base", .backing_format = ImageFormat::kQcow2});
  MustCreate(folder / "b", {.backing = "base", .backing_format = ImageFormat::kQcow2});
  auto a = MustOpen(folder / "a", NewIo());
  auto b = MustOpen(folder / "b", NewIo());
  EXPECT_EQ(kMiB, a->size_bytes());
  EXPECT_EQ(2U, a->layers().size());
  EXPECT_FALSE(OpenImage({.path = folder / "a"}, NewIo()).has_value());
  EXPECT_FALSE(OpenImage({.path = folder / "base"}, NewIo()).has_value());
  EXPECT_TRUE(OpenImage({.path = folder / "base", .read_only = true}, NewIo()).has_value());
}

TEST(Qcow2Test, ARunningDiskGoesOnInAnOverlay) {
  for (const ImageFormat format : {ImageFormat::kQcow2, ImageFormat::kRaw}) {
    TempFolder folder;
    if (format == ImageFormat::kQcow2) {
      MustCreate(folder / "disk", {.size_bytes = 4 * kMiB});
    } else {
      std::ofstream(folder / "disk").put(0);
      ASSERT_EQ(0, truncate((folder / "disk").c_str(), 4 * kMiB));
    }
    std::mt19937_64 random(2);
    std::vector<uint8_t> model(4 * kMiB), before;
    {
      auto disk = MustOpen(folder / "disk", NewIo(), false, format);
      for (int i = 0; i < 20; ++i) RandomRound(*disk, model, random, 10);
      for (int depth = 0; depth < 3; ++depth) {
        const std::string name = "over" + std::to_string(depth);
        MustCreate(folder / name, {.size_bytes = disk->size_bytes(),
                                   .backing = depth == 0 ? "disk" : "over" + std::to_string(depth - 1),
                                   .backing_format = depth == 0 ? format : ImageFormat::kQcow2,
                                   .backing_in_use = true});
        const Status put = disk->PutOverlay(folder / name);
        ASSERT_TRUE(put.has_value()) << put.error().message;
        if (depth == 0) before = model;
        for (int i = 0; i < 20; ++i) RandomRound(*disk, model, random, 10);
        ASSERT_TRUE(model == ReadAll(*disk));
      }
      EXPECT_EQ(4U, disk->layers().size());
    }
    EXPECT_TRUE(before == ReadAll(*MustOpen(folder / "disk", NewIo(), true, format)));
    EXPECT_TRUE(model == ReadAll(*MustOpen(folder / "over2", NewIo())));
    ExpectClean(folder / "over2");
    if (format == ImageFormat::kQcow2) ExpectClean(folder / "disk");
  }
}

TEST(Qcow2Test, AnOverlayOfAnotherDiskIsRefused) {
  TempFolder folder;
  MustCreate(folder / "a", {.size_bytes = kMiB});
  MustCreate(folder / "b", {.size_bytes = kMiB});
  MustCreate(folder / "over", {.backing = "b", .backing_format = ImageFormat::kQcow2});
  auto disk = MustOpen(folder / "a", NewIo());
  EXPECT_FALSE(disk->PutOverlay(folder / "over").has_value());
  std::vector<uint8_t> data(512, 7);
  EXPECT_EQ(0, RunRequest(*disk, Kind::kWrite, 0, 512, data.data()));
}

TEST(Qcow2Test, AGuestCannotTurnAGuessedRawDiskIntoAnotherFormat) {
  TempFolder folder;
  std::ofstream(folder / "disk").put(0);
  ASSERT_EQ(0, truncate((folder / "disk").c_str(), kMiB));
  std::vector<uint8_t> header(4096, 1);
  std::memcpy(header.data(), "QFI\xfb", 4);
  {
    auto disk = MustOpen(folder / "disk", NewIo());
    EXPECT_EQ(EINVAL, RunRequest(*disk, Kind::kWrite, 0, header.size(), header.data()));
    header[0] = 'q';
    EXPECT_EQ(0, RunRequest(*disk, Kind::kWrite, 0, header.size(), header.data()));
    std::vector<uint8_t> back(4096);
    EXPECT_EQ(0, RunRequest(*disk, Kind::kRead, 0, back.size(), back.data()));
    EXPECT_EQ(header, back);
  }
  header[0] = 'Q';
  auto disk = MustOpen(folder / "disk", NewIo(), false, ImageFormat::kRaw);  // the user said raw
  EXPECT_EQ(0, RunRequest(*disk, Kind::kWrite, 0, header.size(), header.data()));
}

std::string OpenError(const std::string& path, bool read_only = false) {
  auto disk = OpenImage({.path = path, .format = ImageFormat::kQcow2, .read_only = read_only}, NewIo());
  return disk ? "" : disk.error().message;
}

TEST(Qcow2Test, WhatIsNotSupportedIsRefusedByName) {
  TempFolder folder;
  const auto fresh = [&] {
    std::filesystem::remove(folder / "disk");
    MustCreate(folder / "disk", {.size_bytes = kMiB});
    return folder / "disk";
  };
  Patch(fresh(), 72, {0, 0, 0, 0, 0, 0, 0, 0x80});
  EXPECT_NE(std::string::npos, OpenError(folder / "disk").find("unknown bit 7"));
  Patch(fresh(), 72, {0, 0, 0, 0, 0, 0, 0, 4});
  EXPECT_NE(std::string::npos, OpenError(folder / "disk").find("external file"));
  Patch(fresh(), 32, {0, 0, 0, 2});
  EXPECT_NE(std::string::npos, OpenError(folder / "disk").find("LUKS"));
  Patch(fresh(), 4, {0, 0, 0, 9});
  EXPECT_NE(std::string::npos, OpenError(folder / "disk").find("version 9"));
  Patch(fresh(), 72, {0, 0, 0, 0, 0, 0, 0, 2});
  EXPECT_NE(std::string::npos, OpenError(folder / "disk").find("marked as corrupt"));
  EXPECT_EQ("", OpenError(folder / "disk", true));
}

TEST(Qcow2Test, ALoopOfBackingFilesIsRefused) {
  TempFolder folder;
  MustCreate(folder / "a", {.size_bytes = kMiB});
  MustCreate(folder / "b", {.backing = "a", .backing_format = ImageFormat::kQcow2});
  std::filesystem::remove(folder / "a");
  std::filesystem::copy(folder / "b", folder / "c");
  std::filesystem::rename(folder / "c", folder / "a");  // b's copy: a names itself
  EXPECT_NE(std::string::npos, OpenError(folder / "a").find("its own backing file"));
  EXPECT_NE(std::string::npos, OpenError(folder / "b").find("its own backing file"));
}

TEST(Qcow2Test, ADirtyImageIsMendedWhenItIsOpened) {
  TempFolder folder;
  MustCreate(folder / "disk", {.size_bytes = kMiB, .lazy_refcounts = true});
  std::vector<uint8_t> data(kMiB, 3);
  { ASSERT_EQ(0, RunRequest(*MustOpen(folder / "disk", NewIo()), Kind::kWrite, 0, data.size(), data.data())); }
  Patch(folder / "disk", 72, {0, 0, 0, 0, 0, 0, 0, 1});
  Patch(folder / "disk", 2 * 65536 + 10, std::vector<uint8_t>(16, 0));  // refcounts of data clusters
  EXPECT_GT(MustCheck(folder / "disk").corruptions, 0U);
  EXPECT_TRUE(data == ReadAll(*MustOpen(folder / "disk", NewIo())));
  ExpectClean(folder / "disk");
}

TEST(Qcow2Test, RepairRebuildsLostRefcounts) {
  TempFolder folder;
  MustCreate(folder / "disk", {.size_bytes = 8 * kMiB, .cluster_size = 4096});
  std::mt19937_64 random(3);
  auto data = Noise(random, 8 * kMiB);
  { ASSERT_EQ(0, RunRequest(*MustOpen(folder / "disk", NewIo()), Kind::kWrite, 0, data.size(), data.data())); }
  Patch(folder / "disk", 4096, std::vector<uint8_t>(4096, 0));  // the whole refcount table
  EXPECT_GT(MustCheck(folder / "disk").corruptions, 0U);
  EXPECT_GT(MustCheck(folder / "disk", true).repaired, 0U);
  ExpectClean(folder / "disk");
  EXPECT_TRUE(data == ReadAll(*MustOpen(folder / "disk", NewIo())));
}

TEST(Qcow2Test, DiscardGivesSpaceBackAndItIsUsedAgain) {
  TempFolder folder;
  MustCreate(folder / "disk", {.size_bytes = 32 * kMiB});
  std::mt19937_64 random(4);
  auto data = Noise(random, 16 * kMiB);
  auto disk = MustOpen(folder / "disk", NewIo());
  uint64_t largest = 0;
  for (int i = 0; i < 4; ++i) {
    ASSERT_EQ(0, RunRequest(*disk, Kind::kWrite, 0, data.size(), data.data()));
    ASSERT_EQ(0, RunRequest(*disk, Kind::kFlush, 0, 0));
    largest = std::max<uint64_t>(largest, std::filesystem::file_size(folder / "disk"));
    ASSERT_EQ(0, RunRequest(*disk, Kind::kDiscard, 0, data.size()));
    ASSERT_EQ(0, RunRequest(*disk, Kind::kFlush, 0, 0));
  }
  EXPECT_LT(largest, 18 * kMiB);
  struct stat info {};
  ASSERT_EQ(0, stat((folder / "disk").c_str(), &info));
  EXPECT_LT(static_cast<uint64_t>(info.st_blocks) * 512, 2 * kMiB);
  disk.reset();
  ExpectClean(folder / "disk");
}

TEST(Qcow2Test, ASharedTableThatIsCopiedLeavesAClusterThatIsUsedAgain) {
  TempFolder folder;
  MustCreate(folder / "disk", {.size_bytes = 4 * kMiB, .cluster_size = 4096});
  std::mt19937_64 random(6);
  auto data = Noise(random, 4 * kMiB);
  {
    auto disk = MustOpen(folder / "disk", NewIo());
    ASSERT_EQ(0, RunRequest(*disk, Kind::kWrite, 0, kMiB, data.data()));
    ASSERT_EQ(0, RunRequest(*disk, Kind::kWrite, 2 * kMiB, kMiB, data.data() + 2 * kMiB));
    ASSERT_EQ(0, RunRequest(*disk, Kind::kDiscard, 0, kMiB));
  }
  Patch(folder / "disk", 3 * 4096 + 8, {0});  // the second L2 table, above free clusters, is said to be shared
  {
    auto disk = MustOpen(folder / "disk", NewIo());
    ASSERT_EQ(0, RunRequest(*disk, Kind::kWrite, 2 * kMiB, 4096, data.data() + 2 * kMiB));
    ASSERT_EQ(0, RunRequest(*disk, Kind::kFlush, 0, 0));
    ASSERT_EQ(0, RunRequest(*disk, Kind::kWrite, 0, 2 * kMiB, data.data()));
    ASSERT_EQ(0, RunRequest(*disk, Kind::kWrite, 3 * kMiB, kMiB, data.data() + 3 * kMiB));
    EXPECT_TRUE(data == ReadAll(*disk));
  }
  ExpectClean(folder / "disk");
}

TEST(Qcow2Test, PreallocatedImagesAreCleanAndReadAsZeros) {
  for (const Preallocation how : {Preallocation::kMetadata, Preallocation::kFalloc, Preallocation::kFull})
    for (const bool extended : {false, true}) {
      TempFolder folder;
      MustCreate(folder / "disk", {.size_bytes = 5 * kMiB, .extended_l2 = extended, .preallocation = how});
      ExpectClean(folder / "disk");
      EXPECT_EQ(80U, MustCheck(folder / "disk").allocated_clusters);
      auto disk = MustOpen(folder / "disk", NewIo());
      EXPECT_TRUE(std::vector<uint8_t>(5 * kMiB) == ReadAll(*disk));
    }
}

TEST(Qcow2Test, ATableThatIsTooSmallGrows) {
  TempFolder folder;
  // A refcount table of one cluster of 512 bytes counts 64 blocks of 64 clusters: 2 MiB.
  MustCreate(folder / "disk", {.size_bytes = 12 * kMiB, .cluster_size = 512, .refcount_bits = 64});
  std::mt19937_64 random(5);
  auto data = Noise(random, 12 * kMiB);
  { ASSERT_EQ(0, RunRequest(*MustOpen(folder / "disk", NewIo()), Kind::kWrite, 0, data.size(), data.data())); }
  ExpectClean(folder / "disk");
  EXPECT_TRUE(data == ReadAll(*MustOpen(folder / "disk", NewIo())));
}

}  // namespace
}  // namespace nacre::storage
