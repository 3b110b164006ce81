// Damaged and hostile images: opened, read, written, checked and repaired. Nothing may crash, hang or read elsewhere.
// NACRE_FUZZ_CASES and NACRE_FUZZ_SEED in the environment make longer and other series.

#include <fcntl.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>

#include "base/bits.h"
#include "storage/host_file.h"
#include "storage/image.h"
#include "storage/image_tools.h"
#include "storage/qcow2_check.h"
#include "storage/qcow2_format.h"
#include "storage/qcow2_testing.h"

namespace nacre::storage {
namespace {

using namespace qcow2;
using Kind = DiskRequest::Kind;

uint64_t FromEnvironment(const char* name, uint64_t fallback) {
  const char* text = getenv(name);
  return text ? strtoull(text, nullptr, 10) : fallback;
}

class Qcow2Fuzz : public testing::Test {
 protected:
  static constexpr uint64_t kSize = 2 * kMiB;

  /// Whole images, as bytes.
  void MakeSeeds() {
    unsigned number = 0;
    for (const Qcow2Options& options :
         {Qcow2Options{.size_bytes = kSize, .cluster_size = 4096},
          Qcow2Options{.size_bytes = kSize, .cluster_size = 4096, .version = 2},
          Qcow2Options{.size_bytes = kSize, .cluster_size = 16384, .extended_l2 = true},
          Qcow2Options{.size_bytes = kSize, .cluster_size = 512, .refcount_bits = 1},
          Qcow2Options{.size_bytes = kSize, .backing = "base", .backing_format = ImageFormat::kQcow2}}) {
      if (number == 4) {
        ASSERT_TRUE(CreateQcow2(folder_ / "base", {.size_bytes = kSize, .cluster_size = 4096}).has_value());
      }
      const std::string path = folder_ / ("seed" + std::to_string(number++));
      ASSERT_TRUE(CreateQcow2(path, options).has_value());
      {
        auto disk = OpenImage({.path = path}, io_);
        std::vector<uint8_t> data(256 * kKiB, 0x5a);
        ASSERT_EQ(0, RunRequest(**disk, Kind::kWrite, 0, data.size(), data.data()));
        ASSERT_EQ(0, RunRequest(**disk, Kind::kWrite, kMiB + 512, 4096, data.data()));
        ASSERT_EQ(0, RunRequest(**disk, Kind::kWriteZeroes, 64 * kKiB, 64 * kKiB, nullptr, true));
      }
      seeds_.push_back(Load(path));
    }
    Compress(seeds_[0]);
  }

  /// Makes the first data cluster a compressed one.
  void Compress(std::vector<uint8_t>& image) {
    const Header header = *ParseHeader(image);
    const uint64_t table = LoadBe<uint64_t>(&image[header.l1_offset]) & kOffsetMask;
    const uint64_t host = LoadBe<uint64_t>(&image[table]) & kOffsetMask;
    std::vector<uint8_t> cluster(4096, 0x77);
    z_stream stream{};
    ASSERT_EQ(Z_OK, deflateInit2(&stream, 6, Z_DEFLATED, -12, 8, Z_DEFAULT_STRATEGY));
    stream.next_in = cluster.data();
    stream.avail_in = static_cast<uInt>(cluster.size());
    stream.next_out = &image[host];
    stream.avail_out = 4096;
    ASSERT_EQ(Z_STREAM_END, deflate(&stream, Z_FINISH));
    deflateEnd(&stream);
    StoreBe(&image[table], host | kCompressed);
  }

  static std::vector<uint8_t> Load(const std::string& path) {
    const Fd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
    std::vector<uint8_t> bytes(std::filesystem::file_size(path));
    EXPECT_TRUE(ReadAt(path, fd.get(), 0, bytes.data(), bytes.size()).has_value());
    return bytes;
  }

  void Damage(std::vector<uint8_t>& image, std::mt19937_64& random) {
    const auto header = ParseHeader(image);
    const uint64_t cluster = header ? header->geometry.cluster_size() : 4096;
    std::vector<uint64_t> places{0, 0, 0};  // offsets of tables
    if (header) {
      places = {0, header->l1_offset, header->refcount_table_offset};
      for (uint64_t i = 0; i < 2 && header->l1_offset + i * 8 + 8 <= image.size(); ++i)
        places.push_back(LoadBe<uint64_t>(&image[header->l1_offset + i * 8]) & kOffsetMask);
      if (header->refcount_table_offset + 8 <= image.size())
        places.push_back(LoadBe<uint64_t>(&image[header->refcount_table_offset]) & kOffsetMask);
    }
    for (unsigned changes = 1 + random() % 4; changes > 0; --changes) {
      const uint64_t place = places[random() % places.size()];
      const uint64_t reach = place == 0 ? 112 : random() % 2 == 0 ? 64 : cluster;
      const uint64_t at = AlignDown(place + random() % reach, random() % 2 == 0 ? 8 : 4);
      if (at + 8 > image.size()) continue;
      const uint64_t old = LoadBe<uint64_t>(&image[at]);
      uint64_t value = old;
      switch (random() % 8) {
        case 0:
          value = random();
          break;
        case 1:
          value = old ^ Bit(random() % 64);
          break;
        case 2:  // another cluster of the file, with flags
          value = (random() % (image.size() / cluster + 2) * cluster) | (random() % 4 << 62) | random() % 2;
          break;
        case 3:
          value = 0;
          break;
        case 4:
          value = ~uint64_t{0};
          break;
        case 5:
          value = old + cluster;
          break;
        case 6:
          value = old | kCompressed;
          break;
        default:
          value = LoadBe<uint64_t>(&image[AlignDown(random() % (image.size() - 8), 8)]);
      }
      StoreBe(&image[at], value);
    }
    if (random() % 8 == 0) image.resize(512 + random() % image.size());
  }

  void Use(const std::string& path, std::mt19937_64& random) {
    for (const bool read_only : {true, false}) {
      auto disk = OpenImage({.path = path, .format = ImageFormat::kQcow2, .read_only = read_only}, io_);
      if (!disk) continue;
      std::vector<std::unique_ptr<WaitedRequest>> requests;
      for (int i = 0; i < 24; ++i) {
        const uint64_t size = std::min<uint64_t>((1 + random() % 64) * kSectorSize, (*disk)->size_bytes());
        const uint64_t reach = random() % 4 == 0 ? (*disk)->size_bytes() : std::min(kSize, (*disk)->size_bytes());
        const uint64_t at = AlignDown(random() % (reach - size + 1), kSectorSize);
        const auto kind = static_cast<Kind>(random() % 5);
        if (kind == Kind::kFlush)
          requests.push_back(std::make_unique<WaitedRequest>(kind, 0, 0));
        else
          requests.push_back(std::make_unique<WaitedRequest>(
              kind, at, size, kind == Kind::kWrite ? std::vector<uint8_t>(size, 0xa5) : std::vector<uint8_t>{}));
        (*disk)->Start(*requests.back());
        if (random() % 2 == 0) (*disk)->Submit();
      }
      (*disk)->Drain();
      for (const auto& request : requests) ASSERT_EQ(1, request->times_done);
    }
  }

  TempFolder folder_;
  std::shared_ptr<AsyncIo> io_ = *AsyncIo::Create();
  std::vector<std::vector<uint8_t>> seeds_;
};

TEST_F(Qcow2Fuzz, DamagedImagesDoNoHarm) {
  MakeSeeds();
  if (HasFatalFailure()) return;
  const uint64_t cases = FromEnvironment("NACRE_FUZZ_CASES", 100);
  const uint64_t seed = FromEnvironment("NACRE_FUZZ_SEED", 1);
  for (uint64_t number = 0; number < cases; ++number) {
    SCOPED_TRACE("NACRE_FUZZ_SEED=" + std::to_string(seed) + " case " + std::to_string(number));
    std::mt19937_64 random(seed * 1'000'003 + number);
    std::vector<uint8_t> image = seeds_[random() % seeds_.size()];
    Damage(image, random);
    const std::string path = folder_ / "image";
    {
      const Fd fd(open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
      ASSERT_TRUE(WriteAt(path, fd.get(), 0, image.data(), image.size()).has_value());
    }
    (void)DescribeImage({.path = path, .format = ImageFormat::kQcow2});
    Use(path, random);
    (void)CheckQcow2(path, false);
    if (random() % 2 == 0) {
      const auto repaired = CheckQcow2(path, true);
      // What is called clean is clean, and can be used.
      if (repaired && repaired->corruptions + repaired->leaks == 0) {
        const auto again = CheckQcow2(path, false);
        ASSERT_TRUE(again.has_value());
        ASSERT_EQ(0U, again->corruptions + again->leaks);
        Use(path, random);
      }
    }
    if (random() % 4 == 0) (void)ResizeQcow2(path, kSize * 2);
    if (HasFatalFailure()) return;
  }
}

TEST_F(Qcow2Fuzz, SnapshotTablesAndDescriptorsOfAnyKindAreParsed) {
  std::mt19937_64 random(FromEnvironment("NACRE_FUZZ_SEED", 1));
  for (int i = 0; i < 20000; ++i) {
    std::vector<uint8_t> table(random() % 512);
    for (uint8_t& byte : table) byte = random() % 3 == 0 ? static_cast<uint8_t>(random()) : 0;
    uint64_t bytes = 0;
    (void)ParseSnapshots(table, static_cast<uint32_t>(random() % 8), &bytes);
    for (unsigned bits = kMinClusterBits; bits <= kMaxClusterBits; ++bits) {
      const Geometry geometry{.cluster_bits = bits, .refcount_order = 4, .extended = false, .version = 3};
      const CompressedRange range = DecodeCompressed(geometry, random() >> 2);
      ASSERT_LE(range.size_bytes, 2 * geometry.cluster_size() + 512);
    }
  }
}

}  // namespace
}  // namespace nacre::storage
