#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <random>

#include "base/bits.h"
#include "storage/fault_io_testing.h"
#include "storage/raw_disk.h"
#include "storage/snapshot_disk.h"

namespace nacre::storage {
namespace {

class TestRequest : public DiskRequest {
 public:
  void Done(int result) override {
    ++times_done;
    error = result;
  }
  TestRequest& Set(Kind what, uint64_t at, std::vector<uint8_t>& data) {
    kind = what;
    offset = at;
    size_bytes = data.size();
    vectors = {{data.data(), data.size()}};
    return *this;
  }
  int times_done = 0;
  int error = -1;
};

using Kind = DiskRequest::Kind;

class TempImage {
 public:
  explicit TempImage(uint64_t size_bytes, const char* start = "") {
    path = testing::TempDir() + "nacre-disk-XXXXXX";
    Fd fd(mkstemp(path.data()));
    EXPECT_EQ(0, ftruncate(fd.get(), static_cast<off_t>(size_bytes)));
    EXPECT_EQ(static_cast<ssize_t>(strlen(start)), pwrite(fd.get(), start, strlen(start), 0));
  }
  ~TempImage() { unlink(path.c_str()); }
  std::string path;
};

std::vector<uint8_t> Pattern(size_t size, uint8_t seed) {
  std::vector<uint8_t> data(size);
  for (size_t i = 0; i < size; ++i) data[i] = static_cast<uint8_t>(seed + i * 7 + i / 512);
  return data;
}

int RunOne(Disk& disk, Kind kind, uint64_t offset, std::vector<uint8_t>& data) {
  TestRequest request;
  disk.Start(request.Set(kind, offset, data));
  EXPECT_EQ(0, request.times_done);
  disk.Drain();
  EXPECT_EQ(1, request.times_done);
  return request.error;
}

int RunRange(Disk& disk, Kind kind, uint64_t offset, uint64_t size, bool unmap = false) {
  TestRequest request;
  request.kind = kind;
  request.offset = offset;
  request.size_bytes = size;
  request.unmap = unmap;
  disk.Start(request);
  disk.Drain();
  EXPECT_EQ(1, request.times_done);
  return request.error;
}

std::unique_ptr<RawDisk> MustOpen(const std::string& path, std::shared_ptr<AsyncIo> io, bool read_only = false) {
  auto disk = RawDisk::Open({.path = path, .read_only = read_only}, std::move(io));
  EXPECT_TRUE(disk.has_value()) << disk.error().message;
  return std::move(*disk);
}

class EveryEngine : public testing::TestWithParam<AsyncIo::Engine> {
 protected:
  std::shared_ptr<AsyncIo> Io() {
    auto io = AsyncIo::Create(GetParam());
    if (!io) return nullptr;
    return std::move(*io);
  }
};
INSTANTIATE_TEST_SUITE_P(Io, EveryEngine, testing::Values(AsyncIo::Engine::kIoUring, AsyncIo::Engine::kThreads),
                         [](const auto& engine) {
                           return std::string(engine.param == AsyncIo::Engine::kThreads ? "Threads" : "Uring");
                         });

TEST_P(EveryEngine, ReadsBackWhatWasWrittenThroughSeveralVectors) {
  auto io = Io();
  if (!io) GTEST_SKIP() << "io_uring is not permitted here";
  TempImage image(kMiB);
  auto disk = MustOpen(image.path, io);
  EXPECT_EQ(kMiB, disk->size_bytes());
  auto data = Pattern(8192, 3);
  TestRequest request;
  request.Set(Kind::kWrite, 4096, data);
  request.vectors = {{data.data(), 100}, {data.data() + 100, 8000}, {data.data() + 8100, 92}};
  disk->Start(request);
  disk->Drain();
  EXPECT_EQ(0, request.error);
  std::vector<uint8_t> back(8192);
  EXPECT_EQ(0, RunOne(*disk, Kind::kRead, 4096, back));
  EXPECT_EQ(data, back);
  EXPECT_EQ(0, RunRange(*disk, Kind::kFlush, 0, 0));
}

TEST_P(EveryEngine, CompletionsArriveThroughTheEventDescriptor) {
  auto io = Io();
  if (!io) GTEST_SKIP() << "io_uring is not permitted here";
  TempImage image(4 * kMiB);
  auto disk = MustOpen(image.path, io);
  std::vector<std::vector<uint8_t>> data;
  std::vector<TestRequest> requests(1000);
  for (size_t i = 0; i < requests.size(); ++i) data.push_back(Pattern(4096, static_cast<uint8_t>(i)));
  for (size_t i = 0; i < requests.size(); ++i) disk->Start(requests[i].Set(Kind::kWrite, i * 4096, data[i]));
  disk->Submit();
  const auto all_done = [&] {
    return std::all_of(requests.begin(), requests.end(), [](const auto& r) { return r.times_done == 1; });
  };
  while (!all_done()) {
    pollfd wait{io->event_fd(), POLLIN, 0};
    ASSERT_EQ(1, poll(&wait, 1, 10'000)) << "a completion raised no event";
    io->HandleEvents();
  }
  for (size_t i = 0; i < requests.size(); ++i) {
    EXPECT_EQ(0, requests[i].error);
    std::vector<uint8_t> back(4096);
    ASSERT_EQ(0, RunOne(*disk, Kind::kRead, i * 4096, back));
    ASSERT_EQ(data[i], back);
  }
}

TEST_P(EveryEngine, WriteZeroesAndDiscard) {
  auto io = Io();
  if (!io) GTEST_SKIP() << "io_uring is not permitted here";
  TempImage image(kMiB);
  auto disk = MustOpen(image.path, io);
  auto data = Pattern(kMiB, 9);
  ASSERT_EQ(0, RunOne(*disk, Kind::kWrite, 0, data));
  EXPECT_EQ(0, RunRange(*disk, Kind::kWriteZeroes, 512, 1024));
  EXPECT_EQ(0, RunRange(*disk, Kind::kWriteZeroes, 65536, 131072, true));
  EXPECT_EQ(0, RunRange(*disk, Kind::kDiscard, 524288, 131072));
  std::fill(data.begin() + 512, data.begin() + 1536, 0);
  std::fill(data.begin() + 65536, data.begin() + 65536 + 131072, 0);
  std::fill(data.begin() + 524288, data.begin() + 524288 + 131072, 0);
  std::vector<uint8_t> back(kMiB);
  ASSERT_EQ(0, RunOne(*disk, Kind::kRead, 0, back));
  EXPECT_TRUE(data == back);
  struct stat info {};
  ASSERT_EQ(0, stat(image.path.c_str(), &info));
  EXPECT_EQ(static_cast<off_t>(kMiB), info.st_size);
}

std::shared_ptr<FaultIo> Faulty() { return std::make_shared<FaultIo>(std::move(*AsyncIo::Create())); }

TEST(RawDisk, ZeroesAreWrittenWhereTheFileSystemCannotAllocate) {
  auto io = Faulty();
  io->fault = [](IoOperation& operation) -> std::optional<int64_t> {
    if (operation.kind == IoOperation::Kind::kAllocate) return -EOPNOTSUPP;
    return std::nullopt;
  };
  TempImage image(16 * kMiB);
  auto disk = MustOpen(image.path, io);
  auto data = Pattern(16 * kMiB, 1);
  ASSERT_EQ(0, RunOne(*disk, Kind::kWrite, 0, data));
  EXPECT_EQ(0, RunRange(*disk, Kind::kWriteZeroes, 512, 10 * kMiB, true));
  EXPECT_EQ(0, RunRange(*disk, Kind::kDiscard, 12 * kMiB, kMiB));
  std::fill(data.begin() + 512, data.begin() + 512 + static_cast<long>(10 * kMiB), 0);
  std::vector<uint8_t> back(16 * kMiB);
  ASSERT_EQ(0, RunOne(*disk, Kind::kRead, 0, back));
  EXPECT_TRUE(data == back);
}

TEST(RawDisk, ShortTransfersAreContinued) {
  auto io = Faulty();
  unsigned spoiled = 0;
  // A short transfer: only the first vector goes through.
  io->fault = [&](IoOperation& operation) -> std::optional<int64_t> {
    if (operation.vector_count > 1) {
      operation.vector_count = 1;
      ++spoiled;
    }
    return spoiled % 5 == 4 ? std::optional<int64_t>(-EINTR) : std::nullopt;
  };
  TempImage image(kMiB);
  auto disk = MustOpen(image.path, io);
  auto data = Pattern(65536, 5);
  std::vector<uint8_t> back(65536);
  for (auto [kind, buffer] : {std::pair{Kind::kWrite, &data}, std::pair{Kind::kRead, &back}}) {
    TestRequest request;
    request.Set(kind, 8192, *buffer);
    request.vectors.clear();
    for (size_t at = 0; at < buffer->size(); at += 4096) request.vectors.push_back({buffer->data() + at, 4096});
    disk->Start(request);
    io->fault = [&, first = io->fault](IoOperation& operation) -> std::optional<int64_t> {
      const auto result = first(operation);
      if (result) ++spoiled;
      return result;
    };
    disk->Drain();
    EXPECT_EQ(0, request.error);
  }
  EXPECT_GT(spoiled, 16u);
  EXPECT_EQ(data, back);
}

TEST(RawDisk, HostErrorsReachTheRequest) {
  auto io = Faulty();
  TempImage image(kMiB);
  auto disk = MustOpen(image.path, io);
  std::vector<uint8_t> data(4096);
  for (int error : {EIO, ENOSPC, EDQUOT}) {
    io->fault = [error](IoOperation&) { return std::optional<int64_t>(-error); };
    EXPECT_EQ(error, RunOne(*disk, Kind::kWrite, 0, data));
    EXPECT_EQ(error, RunOne(*disk, Kind::kRead, 0, data));
    EXPECT_EQ(error, RunRange(*disk, Kind::kFlush, 0, 0));
    EXPECT_EQ(error, RunRange(*disk, Kind::kWriteZeroes, 0, 512));
  }
}

TEST(RawDisk, AnImageThatShrinksWhileInUseIsAnIoError) {
  TempImage image(kMiB);
  auto disk = MustOpen(image.path, std::move(*AsyncIo::Create()));
  ASSERT_EQ(0, truncate(image.path.c_str(), 4096));
  std::vector<uint8_t> data(8192);
  EXPECT_EQ(EIO, RunOne(*disk, Kind::kRead, 0, data));
  EXPECT_EQ(EIO, RunOne(*disk, Kind::kRead, 65536, data));
}

TEST(RawDisk, RangesAreChecked) {
  TempImage image(kMiB);
  auto disk = MustOpen(image.path, std::move(*AsyncIo::Create()));
  std::vector<uint8_t> data(1024);
  EXPECT_EQ(EINVAL, RunOne(*disk, Kind::kRead, kMiB - 512, data));
  EXPECT_EQ(EINVAL, RunOne(*disk, Kind::kRead, kMiB, data));
  EXPECT_EQ(EINVAL, RunOne(*disk, Kind::kWrite, ~uint64_t{511}, data));
  EXPECT_EQ(EINVAL, RunOne(*disk, Kind::kWrite, 100, data));
  EXPECT_EQ(EINVAL, RunRange(*disk, Kind::kDiscard, 512, ~uint64_t{511}));
}

TEST(RawDisk, ReadOnlyRefusesWrites) {
  TempImage image(kMiB, "hello");
  auto disk = MustOpen(image.path, std::move(*AsyncIo::Create()), true);
  std::vector<uint8_t> data(512);
  EXPECT_EQ(0, RunOne(*disk, Kind::kRead, 0, data));
  EXPECT_EQ(0, memcmp(data.data(), "hello", 5));
  EXPECT_EQ(EROFS, RunOne(*disk, Kind::kWrite, 0, data));
  EXPECT_EQ(EROFS, RunRange(*disk, Kind::kWriteZeroes, 0, 512));
  EXPECT_EQ(0, RunRange(*disk, Kind::kFlush, 0, 0));
}

std::string OpenError(const RawDiskOptions& options) {
  auto disk = RawDisk::Open(options, std::move(*AsyncIo::Create()));
  return disk ? "opened" : disk.error().message;
}

TEST(RawDisk, RefusesWhatIsNoDiskAndSaysWhatToDo) {
  using testing::TempDir;
  EXPECT_NE(std::string::npos, OpenError({.path = TempDir() + "no-such-image"}).find("No such file"));
  EXPECT_NE(std::string::npos, OpenError({.path = TempDir()}).find("is a directory"));
  EXPECT_NE(std::string::npos, OpenError({.path = "/dev/null"}).find("neither a file nor a block device"));
  TempImage empty(0), odd(1000), qcow(4096, "QFI\xfb");
  EXPECT_NE(std::string::npos, OpenError({.path = empty.path}).find("truncate -s 10G"));
  EXPECT_NE(std::string::npos, OpenError({.path = odd.path}).find("truncate -s %512"));
  EXPECT_NE(std::string::npos, OpenError({.path = qcow.path}).find("is a qcow2 image"));
  EXPECT_EQ("opened", OpenError({.path = qcow.path, .format_given = true}));
}

TEST(RawDisk, OneImageIsNotWrittenByTwo) {
  TempImage image(kMiB);
  auto io = std::shared_ptr<AsyncIo>(std::move(*AsyncIo::Create()));
  {
    auto writer = MustOpen(image.path, io);
    EXPECT_NE(std::string::npos, OpenError({.path = image.path}).find("in use by another program"));
    EXPECT_NE(std::string::npos, OpenError({.path = image.path, .read_only = true}).find("in use"));
  }
  auto reader = MustOpen(image.path, io, true);
  auto second_reader = MustOpen(image.path, io, true);
  EXPECT_NE(std::string::npos, OpenError({.path = image.path}).find("in use"));
}

TEST(SectorSet, RunsOfMixedChunks) {
  SectorSet set;
  EXPECT_EQ(100'000u, set.RunLength(0, 100'000));
  set.Add(10, 5);
  set.Add(32'768, 32'768);
  EXPECT_EQ(10u, set.RunLength(0, 100'000));
  EXPECT_EQ(5u, set.RunLength(10, 100));
  EXPECT_EQ(32'753u, set.RunLength(15, 90'000));
  EXPECT_EQ(32'768u, set.RunLength(32'768, 60'000));
  EXPECT_FALSE(set.Contains(99'999));
  set.Add(0, 100'000);
  EXPECT_EQ(99'990u, set.RunLength(10, 99'990));
  const uint64_t far = uint64_t{1} << 54;  // the last sectors of the largest file
  set.Add(far, 1);
  EXPECT_TRUE(set.Contains(far));
  EXPECT_EQ(100u, set.RunLength(far + 1, 100));
}

TEST(SnapshotDisk, BehavesAsADiskAndLeavesTheOneBelowAlone) {
  constexpr uint64_t kSize = 2 * kMiB;
  TempImage image(kSize);
  auto io = std::shared_ptr<AsyncIo>(std::move(*AsyncIo::Create()));
  const auto original = Pattern(kSize, 77);
  {
    auto writer = MustOpen(image.path, io);
    auto data = original;
    ASSERT_EQ(0, RunOne(*writer, Kind::kWrite, 0, data));
  }
  auto snapshot = SnapshotDisk::Create(MustOpen(image.path, io, true), io, testing::TempDir());
  ASSERT_TRUE(snapshot.has_value()) << snapshot.error().message;
  SnapshotDisk& disk = **snapshot;
  EXPECT_FALSE(disk.read_only());

  auto model = original;
  std::mt19937 random(1);
  for (int step = 0; step < 600; ++step) {
    const uint64_t sector = random() % (kSize / 512 - 40);
    const uint64_t size = (1 + random() % 40) * 512;
    std::vector<uint8_t> data = Pattern(size, static_cast<uint8_t>(random()));
    switch (random() % 4) {
      case 0: {
        ASSERT_EQ(0, RunOne(disk, Kind::kWrite, sector * 512, data));
        std::copy(data.begin(), data.end(), model.begin() + static_cast<long>(sector * 512));
        break;
      }
      case 1: {
        ASSERT_EQ(0, RunRange(disk, Kind::kWriteZeroes, sector * 512, size, (random() & 1) != 0));
        std::fill_n(model.begin() + static_cast<long>(sector * 512), size, 0);
        break;
      }
      default: {
        TestRequest request;
        request.Set(Kind::kRead, sector * 512, data);
        request.vectors = {{data.data(), 300}, {data.data() + 300, data.size() - 300}};
        disk.Start(request);
        disk.Drain();
        ASSERT_EQ(0, request.error);
        ASSERT_TRUE(std::equal(data.begin(), data.end(), model.begin() + static_cast<long>(sector * 512)));
      }
    }
  }
  EXPECT_EQ(0, RunRange(disk, Kind::kFlush, 0, 0));
  EXPECT_EQ(EINVAL, RunRange(disk, Kind::kDiscard, kSize, 512));
  snapshot->reset();
  auto again = MustOpen(image.path, io, true);
  std::vector<uint8_t> back(kSize);
  ASSERT_EQ(0, RunOne(*again, Kind::kRead, 0, back));
  EXPECT_TRUE(back == original);
}

TEST(SnapshotDisk, AFailedWriteLeavesTheOldContent) {
  auto io = Faulty();
  TempImage image(kMiB, "below");
  auto snapshot = SnapshotDisk::Create(MustOpen(image.path, io, true), io, testing::TempDir());
  ASSERT_TRUE(snapshot.has_value());
  io->fault = [](IoOperation& operation) -> std::optional<int64_t> {
    if (operation.kind == IoOperation::Kind::kWrite) return -ENOSPC;
    return std::nullopt;
  };
  std::vector<uint8_t> data(512, 0xee);
  EXPECT_EQ(ENOSPC, RunOne(**snapshot, Kind::kWrite, 0, data));
  EXPECT_EQ(0, RunOne(**snapshot, Kind::kRead, 0, data));
  EXPECT_EQ(0, memcmp(data.data(), "below", 5));
}

TEST(SnapshotDisk, SaysWhereTheTemporaryFileCouldNotGo) {
  auto io = std::shared_ptr<AsyncIo>(std::move(*AsyncIo::Create()));
  TempImage image(kMiB);
  auto snapshot = SnapshotDisk::Create(MustOpen(image.path, io, true), io, "/no/such/directory");
  ASSERT_FALSE(snapshot.has_value());
  EXPECT_NE(std::string::npos, snapshot.error().message.find("TMPDIR"));
}

}  // namespace
}  // namespace nacre::storage
