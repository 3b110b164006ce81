#include "storage/vmdk_stream.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <random>

#include "base/fd.h"
#include "base/fuzz_testing.h"

namespace nacre::storage {
namespace {

constexpr uint64_t kMiB = 1 << 20;

class VmdkStreamTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string folder = testing::TempDir() + "vmdk.XXXXXX";
    ASSERT_TRUE(mkdtemp(folder.data()));
    folder_ = folder;
    io_ = *AsyncIo::Create();
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::string Path(const std::string& name) const { return (folder_ / name).string(); }

  std::unique_ptr<ImageDisk> NewDisk(const std::string& name, uint64_t size) {
    EXPECT_TRUE(CreateQcow2(Path(name), {.size_bytes = size}));
    auto disk = OpenImage({.path = Path(name), .format = ImageFormat::kQcow2}, io_);
    EXPECT_TRUE(disk);
    return std::move(*disk);
  }
  static void Put(ImageDisk& disk, uint64_t offset, std::vector<uint8_t> bytes) {
    ASSERT_EQ(0, RunRequest(disk, DiskRequest::Kind::kWrite, offset, bytes.size(), bytes.data()));
  }
  static std::vector<uint8_t> Content(Disk& disk) {
    std::vector<uint8_t> bytes(disk.size_bytes());
    EXPECT_EQ(0, RunRequest(disk, DiskRequest::Kind::kRead, 0, bytes.size(), bytes.data()));
    return bytes;
  }
  static std::vector<uint8_t> Noise(size_t size) {
    std::mt19937_64 random(size);
    std::vector<uint8_t> bytes(size);
    for (size_t i = 0; i < size; ++i) bytes[i] = static_cast<uint8_t>(i % 3 == 0 ? random() : i / 512);
    return bytes;
  }
  static std::vector<uint8_t> Stream(ImageDisk& disk) {
    std::vector<uint8_t> all;
    EXPECT_TRUE(WriteVmdkStream(disk, "disk1.vmdk", [&](std::span<const uint8_t> bytes) -> Status {
      all.insert(all.end(), bytes.begin(), bytes.end());
      return {};
    }));
    return all;
  }
  /// 100 MiB with data at both ends, across the ends of grains and tables, and zeros that were written.
  std::vector<uint8_t> Example(std::vector<uint8_t>* content = nullptr) {
    const auto disk = NewDisk("from.qcow2", 100 * kMiB + 512);
    Put(*disk, 0, Noise(512));
    Put(*disk, 64 * 1024 - 512, Noise(1024));
    Put(*disk, 32 * kMiB - 512, Noise(3 * kMiB));
    Put(*disk, 70 * kMiB, std::vector<uint8_t>(kMiB));
    Put(*disk, 100 * kMiB, Noise(512));
    if (content) *content = Content(*disk);
    return Stream(*disk);
  }
  /// As a part of a larger file.
  Status Read(const std::vector<uint8_t>& stream, Disk& to) {
    const Fd file(open(Path("stream").c_str(), O_RDWR | O_CREAT | O_TRUNC, 0600));
    constexpr uint64_t kBefore = 1536;
    EXPECT_EQ(static_cast<ssize_t>(stream.size()), pwrite(file.get(), stream.data(), stream.size(), kBefore));
    return ReadVmdkStream({.name = "stream", .fd = file.get(), .offset = kBefore, .size_bytes = stream.size()}, to);
  }

  std::filesystem::path folder_;
  std::shared_ptr<AsyncIo> io_;
};

TEST_F(VmdkStreamTest, WhatIsWrittenIsRead) {
  std::vector<uint8_t> content;
  const auto stream = Example(&content);
  EXPECT_TRUE(LooksLikeVmdkStream(stream));
  EXPECT_LT(stream.size(), 5 * kMiB);
  const auto to = NewDisk("to.qcow2", content.size());
  ASSERT_TRUE(Read(stream, *to));
  EXPECT_EQ(content, Content(*to));
}

TEST_F(VmdkStreamTest, QemuReadsIt) {
  if (system("qemu-img --version >/dev/null 2>&1") != 0) GTEST_SKIP() << "qemu-img is not there";
  std::vector<uint8_t> content;
  const auto stream = Example(&content);
  const Fd file(open(Path("x.vmdk").c_str(), O_RDWR | O_CREAT, 0600));
  ASSERT_EQ(static_cast<ssize_t>(stream.size()), write(file.get(), stream.data(), stream.size()));
  const std::string command = "qemu-img compare -q -f vmdk -F qcow2 " + Path("x.vmdk") + " " + Path("from.qcow2");
  EXPECT_EQ(0, system(command.c_str()));
}

TEST_F(VmdkStreamTest, QemusAreRead) {
  if (system("qemu-img --version >/dev/null 2>&1") != 0) GTEST_SKIP() << "qemu-img is not there";
  std::vector<uint8_t> content;
  Example(&content);
  const std::string command =
      "qemu-img convert -f qcow2 -O vmdk -o subformat=streamOptimized " + Path("from.qcow2") + " " + Path("x.vmdk");
  ASSERT_EQ(0, system(command.c_str()));
  const Fd file(open(Path("x.vmdk").c_str(), O_RDONLY));
  const VmdkSource source{
      .name = "x", .fd = file.get(), .offset = 0, .size_bytes = std::filesystem::file_size(Path("x.vmdk"))};
  EXPECT_GE(*VmdkStreamDiskBytes(source), content.size());
  const auto to = NewDisk("to.qcow2", *VmdkStreamDiskBytes(source));
  ASSERT_TRUE(ReadVmdkStream(source, *to));
  auto got = Content(*to);
  got.resize(content.size());
  EXPECT_EQ(content, got);
}

TEST_F(VmdkStreamTest, AnEmptyDisk) {
  const auto disk = NewDisk("from.qcow2", 64 * kMiB);
  const auto stream = Stream(*disk);
  EXPECT_LT(stream.size(), 70 * 1024);
  const auto to = NewDisk("to.qcow2", 64 * kMiB);
  EXPECT_TRUE(Read(stream, *to));
}

TEST_F(VmdkStreamTest, AStreamThatIsCutOffIsRefused) {
  const auto stream = Example();
  const auto to = NewDisk("to.qcow2", 101 * kMiB);
  for (const size_t left : {stream.size() - 512, stream.size() / 2, size_t{512}, size_t{100}}) {
    const auto done = Read({stream.begin(), stream.begin() + static_cast<ptrdiff_t>(left)}, *to);
    ASSERT_FALSE(done);
    EXPECT_NE(std::string::npos, done.error().message.find("cut off")) << done.error().message;
  }
}

TEST_F(VmdkStreamTest, ItCanBeStopped) {
  const auto disk = NewDisk("from.qcow2", 100 * kMiB);
  const auto sink = [](std::span<const uint8_t>) { return Status(); };
  const auto done = WriteVmdkStream(*disk, "x", sink, [](uint64_t at, uint64_t) { return at < 40 * kMiB; });
  ASSERT_FALSE(done);
  EXPECT_EQ(ECANCELED, done.error().code);
}

TEST_F(VmdkStreamTest, FuzzDamagedStreams) {
  const auto stream = Example();
  const auto to = NewDisk("to.qcow2", 101 * kMiB);
  std::mt19937_64 random(FuzzSeed(1));
  FuzzRun run(30);
  while (run.Next()) {
    auto damaged = stream;
    for (unsigned i = 0; i <= random() % 4; ++i) {
      // Mostly headers and markers, which stand at the starts of sectors.
      const size_t at = random() % (damaged.size() / 512) * 512 + random() % (random() % 2 ? 90 : 512);
      const size_t size = std::min<size_t>(random() % 9, damaged.size() - at);
      for (size_t k = 0; k < size; ++k) damaged[at + k] = static_cast<uint8_t>(random() % 3 == 0 ? 0xff : random());
    }
    damaged.resize(random() % 5 == 0 ? random() % damaged.size() : damaged.size());
    static_cast<void>(Read(damaged, *to));  // whatever it says, nothing outside is touched
  }
}

}  // namespace
}  // namespace nacre::storage
