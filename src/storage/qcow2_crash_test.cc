// A loss of power at any moment: writes to an image are noted, and images are made of every state that the file may
// then have: what a finished sync covered is there, of everything else any part in any combination, by sectors.

#include <fcntl.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <map>

#include "base/bits.h"
#include "storage/host_file.h"
#include "storage/image.h"
#include "storage/qcow2_check.h"
#include "storage/qcow2_disk.h"
#include "storage/qcow2_testing.h"

namespace nacre::storage {
namespace {

using Kind = DiskRequest::Kind;

struct CrashCase {
  const char* name;
  Qcow2Options options;
  bool backing;
  bool resize;
};

/// What a sector may hold: numbers of writes, 0 for zeros, kBase for the backing file's content.
constexpr uint64_t kBase = ~uint64_t{0};
struct Candidate {
  uint64_t value;
  size_t from_event;  ///< issued when so many file operations had been
};
class FlushRequest : public WaitedRequest {
 public:
  explicit FlushRequest(RecordingIo& io) : WaitedRequest(Kind::kFlush, 0, 0), io_(&io) {}
  void Done(int result) override {
    WaitedRequest::Done(result);
    done_event = io_->events.size();
  }
  size_t done_event = 0;

 private:
  RecordingIo* io_;
};

class CrashTest : public testing::TestWithParam<CrashCase> {
 protected:
  static constexpr uint64_t kSize = 3 * kMiB;
  static constexpr uint64_t kSectors = kSize / kSectorSize;

  static void FillSector(uint8_t* to, uint64_t value, uint64_t sector) {
    for (uint64_t i = 0; i < kSectorSize; i += 16) {
      StoreLe(to + i, value);
      StoreLe(to + i + 8, sector);
    }
  }
  static std::vector<uint8_t> SectorOf(uint64_t value, uint64_t sector) {
    std::vector<uint8_t> bytes(kSectorSize);
    if (value != 0) FillSector(bytes.data(), value, sector);
    return bytes;
  }

  void SetUp() override {
    Qcow2Options options = GetParam().options;
    options.size_bytes = kSize;
    if (GetParam().backing) {
      ASSERT_TRUE(CreateQcow2(folder_ / "base", {.size_bytes = kSize}).has_value());
      auto io = AsyncIo::Create();
      auto base = OpenImage({.path = folder_ / "base"}, std::move(*io));
      std::vector<uint8_t> bytes(kSize);
      for (uint64_t s = 0; s < kSectors; ++s) FillSector(&bytes[s * kSectorSize], kBase, s);
      ASSERT_EQ(0, RunRequest(**base, Kind::kWrite, 0, kSize, bytes.data()));
      options.backing = "base";
      options.backing_format = ImageFormat::kQcow2;
    }
    ASSERT_TRUE(CreateQcow2(folder_ / "disk", options).has_value());
    start_ = Load(folder_ / "disk");
    history_.assign(kSectors, {});
    for (auto& sector : history_) sector.push_back({GetParam().backing ? kBase : 0, 0});
  }

  static std::vector<uint8_t> Load(const std::string& path) {
    const Fd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
    std::vector<uint8_t> bytes(std::filesystem::file_size(path));
    EXPECT_TRUE(ReadAt(path, fd.get(), 0, bytes.data(), bytes.size()).has_value());
    return bytes;
  }

  void Run(std::mt19937_64& random);
  std::vector<uint8_t> Crash(size_t events, std::mt19937_64& random) const;
  void Expect(const std::vector<uint8_t>& image, size_t events, bool ask_qemu);

  TempFolder folder_;
  std::vector<uint8_t> start_;
  std::vector<RecordingIo::Event> events_;
  std::vector<std::vector<Candidate>> history_;  ///< by sector, oldest first
  /// After a flush: how many of each sector's candidates there were when it began.
  struct Flushed {
    size_t event;
    std::vector<uint32_t> known;
  };
  std::vector<Flushed> flushed_;
};

void CrashTest::Run(std::mt19937_64& random) {
  auto real = AsyncIo::Create();
  auto io = std::make_shared<RecordingIo>(std::move(*real));
  Qcow2Disk::Parts parts;
  parts.path = folder_ / "disk";
  parts.fd = Fd(open(parts.path.c_str(), O_RDWR | O_CLOEXEC));
  io->fd = parts.fd.get();
  parts.header = *ReadQcow2Header(parts.path, parts.fd.get());
  if (GetParam().backing) parts.backing = *OpenImage({.path = folder_ / "base", .read_only = true}, io);
  auto disk = *Qcow2Disk::Create(std::move(parts), io);
  uint64_t number = 0;
  const auto known = [&] {
    std::vector<uint32_t> counts;
    for (const auto& sector : history_) counts.push_back(static_cast<uint32_t>(sector.size()));
    return counts;
  };
  for (int round = 0; round < 24; ++round) {
    std::vector<std::unique_ptr<WaitedRequest>> requests;
    std::vector<std::pair<uint64_t, uint64_t>> taken;
    auto before = known();  // each candidate in it was issued and done before this round
    FlushRequest flush(*io);
    const bool flushes = random() % 2 == 0;
    for (int i = 0; i < 6; ++i) {
      const uint64_t size = 1 + random() % (random() % 3 == 0 ? 300 : 12);
      const uint64_t first = random() % (kSectors - size + 1);
      if (std::ranges::any_of(taken, [&](auto& t) { return t.first < first + size && first < t.second; })) continue;
      taken.emplace_back(first, first + size);
      const unsigned what = random() % 8;
      uint64_t value = 0;
      std::vector<uint8_t> data;
      Kind kind = what < 5 ? Kind::kWrite : what < 7 ? Kind::kWriteZeroes : Kind::kDiscard;
      if (kind == Kind::kWrite) {
        value = ++number;
        data.resize(size * kSectorSize);
        for (uint64_t s = 0; s < size; ++s) FillSector(&data[s * kSectorSize], value, first + s);
      }
      auto request = std::make_unique<WaitedRequest>(kind, first * kSectorSize, size * kSectorSize, std::move(data));
      request->unmap = what == 5;
      for (uint64_t s = first; s < first + size; ++s) {
        history_[s].push_back({value, io->events.size()});
      }
      disk->Start(*request);
      requests.push_back(std::move(request));
      if (flushes && requests.size() == 2) disk->Start(flush);
    }
    disk->Drain();
    for (const auto& request : requests) {
      ASSERT_EQ(0, request->error);
      if (request->kind != Kind::kDiscard) continue;
      // What a discard leaves, the old content or zeros, it leaves for good.
      std::vector<uint8_t> left(request->size_bytes);
      ASSERT_EQ(0, RunRequest(*disk, Kind::kRead, request->offset, left.size(), left.data()));
      for (uint64_t s = 0; s < left.size() / kSectorSize; ++s) {
        auto& sector = history_[request->offset / kSectorSize + s];
        const uint64_t old = sector[sector.size() - 2].value;
        const bool zero = LoadLe<uint64_t>(&left[s * kSectorSize]) == 0;
        sector.push_back({zero ? 0 : old, sector.back().from_event});
      }
    }
    if (flush.times_done > 0) flushed_.push_back({flush.done_event, std::move(before)});
    if (round % 5 == 4) {
      auto now = known();
      FlushRequest alone(*io);
      disk->Start(alone);
      disk->Drain();
      ASSERT_EQ(0, alone.error);
      flushed_.push_back({alone.done_event, std::move(now)});
    }
    if (GetParam().resize && round == 20) {
      auto now = known();
      const Status resized = disk->Resize(512 * kMiB);
      ASSERT_TRUE(resized.has_value()) << resized.error().message;
      flushed_.push_back({io->events.size(), std::move(now)});
      break;
    }
  }
  auto last = known();
  disk.reset();
  flushed_.push_back({io->events.size(), std::move(last)});
  events_ = std::move(io->events);
}

std::vector<uint8_t> CrashTest::Crash(size_t events, std::mt19937_64& random) const {
  std::set<size_t> sure;
  for (size_t i = 0; i < events; ++i)
    if (events_[i].sync && events_[i].done_at <= events)
      sure.insert(events_[i].covered.begin(), events_[i].covered.end());
  std::vector<uint8_t> image = start_;
  const unsigned bias = random() % 5;  // from nothing to everything that is not sure
  for (size_t i = 0; i < events; ++i) {
    const RecordingIo::Event& event = events_[i];
    if (event.sync) continue;
    const bool whole = sure.contains(i) || bias == 4;
    for (uint64_t at = 0; at < event.bytes.size();) {
      const uint64_t place = event.offset + at;
      const uint64_t piece = std::min(kSectorSize - place % kSectorSize, event.bytes.size() - at);
      if (whole || (bias != 0 && random() % 4 < bias)) {
        if (image.size() < place + piece && event.extends) image.resize(place + piece);
        if (place + piece <= image.size())
          std::copy_n(event.bytes.begin() + static_cast<ptrdiff_t>(at), piece,
                      image.begin() + static_cast<ptrdiff_t>(place));
      }
      at += piece;
    }
  }
  return image;
}

void CrashTest::Expect(const std::vector<uint8_t>& image, size_t events, bool ask_qemu) {
  const std::string path = folder_ / "crashed";
  {
    const Fd fd(open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
    ASSERT_TRUE(WriteAt(path, fd.get(), 0, image.data(), image.size()).has_value());
    const auto report = CheckQcow2File(path, fd.get(), false);
    ASSERT_TRUE(report.has_value()) << report.error().message;
    ASSERT_EQ(0U, report->corruptions) << report->faults[0];
  }
  if (ask_qemu) {
    const int status = system(("qemu-img check -q '" + path + "' >/dev/null 2>&1").c_str());
    ASSERT_TRUE(WIFEXITED(status));
    ASSERT_TRUE(WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == 3) << WEXITSTATUS(status);
  }
  auto io = AsyncIo::Create();
  auto disk = OpenImage({.path = path, .format = ImageFormat::kQcow2, .read_only = true}, std::move(*io));
  ASSERT_TRUE(disk.has_value()) << disk.error().message;
  std::vector<uint8_t> bytes(kSize);
  ASSERT_EQ(0, RunRequest(**disk, Kind::kRead, 0, kSize, bytes.data()));
  const Flushed* flushed = nullptr;
  for (const Flushed& one : flushed_)
    if (one.event <= events) flushed = &one;
  for (uint64_t s = 0; s < kSectors; ++s) {
    const uint8_t* at = &bytes[s * kSectorSize];
    bool found = false;
    for (size_t i = flushed ? flushed->known[s] - 1 : 0; i < history_[s].size() && !found; ++i) {
      const Candidate& candidate = history_[s][i];
      if (i > 0 && candidate.from_event > events) break;
      found = std::memcmp(at, SectorOf(candidate.value, s).data(), kSectorSize) == 0;
    }
    ASSERT_TRUE(found) << "sector " << s << " holds " << LoadLe<uint64_t>(at) << " after " << events << " operations";
  }
}

TEST_P(CrashTest, EveryStateOfTheFileIsCleanAndHoldsWhatWasFlushed) {
  std::mt19937_64 random(GetParam().options.cluster_size + GetParam().backing);
  Run(random);
  if (HasFatalFailure()) return;
  const bool qemu = system("qemu-img --version >/dev/null 2>&1") == 0;
  if (!qemu) fmt::print("qemu-img is not there: only our own check looks at these images\n");
  const char* text = getenv("NACRE_FUZZ_CASES");
  const size_t rounds = text ? std::max<size_t>(1, strtoull(text, nullptr, 10) / events_.size()) : 1;
  size_t states = 0;
  for (size_t round = 0; round < rounds; ++round) {
    const size_t step = text ? 1 : std::max<size_t>(1, events_.size() / 50);
    for (size_t events = 0; events <= events_.size(); events += step) {
      const auto image = Crash(events, random);
      Expect(image, events, qemu && ++states % 16 == 0);
      if (HasFatalFailure()) return;
    }
  }
  Expect(Crash(events_.size(), random), events_.size(), qemu);
}

INSTANTIATE_TEST_SUITE_P(
    Qcow2, CrashTest,
    testing::Values(CrashCase{"Default", {}, false, false}, CrashCase{"Backing", {}, true, false},
                    CrashCase{"Clusters4K", {.cluster_size = 4096}, true, false},
                    CrashCase{"Clusters512", {.cluster_size = 512, .refcount_bits = 64}, false, false},
                    CrashCase{"Version2", {.cluster_size = 4096, .version = 2}, true, false},
                    CrashCase{"Extended", {.cluster_size = 16384, .extended_l2 = true}, true, false},
                    CrashCase{"Resize", {.cluster_size = 4096}, false, true}),
    [](const auto& one) { return std::string(one.param.name); });

}  // namespace
}  // namespace nacre::storage
