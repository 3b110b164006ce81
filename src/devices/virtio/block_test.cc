#include "devices/virtio/block.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <set>

#include "devices/virtio/virtio_testing.h"
#include "storage/fault_io_testing.h"
#include "storage/raw_disk.h"

namespace nacre::devices {
namespace {

constexpr uint64_t kHeader = 0x40'0000, kData = 0x41'0000, kStatus = 0x40'1000;
constexpr uint64_t kDiskSize = 4 * kMiB;
constexpr uint64_t kFlush = Bit(9), kDiscardFeature = Bit(13), kWriteZeroes = Bit(14);

class VirtioBlockTest : public testing::TestWithParam<bool>, public VirtioBench {
 protected:
  VirtioBlockTest() {
    io = std::make_shared<storage::FaultIo>(std::move(*storage::AsyncIo::Create()));
    image = Fd(memfd_create("disk", MFD_CLOEXEC));
    EXPECT_EQ(0, ftruncate(image.get(), kDiskSize));
    PlugDisk({});
  }
  ~VirtioBlockTest() override { io->hold = false; }
  void PlugDisk(const VirtioBlock::Options& options, bool read_only = false) {
    Plug(MakeBlock(options, memory, scheduler, read_only));
  }
  std::unique_ptr<VirtioBlock> MakeBlock(const VirtioBlock::Options& options, memory::GuestMemory& ram,
                                         Scheduler& clock, bool read_only = false) {
    auto disk = storage::RawDisk::Adopt(Fd(dup(image.get())), kDiskSize, read_only, io);
    auto block = VirtioBlock::Create(options, std::move(disk), ram, clock);
    EXPECT_TRUE(block.has_value());
    return std::move(*block);
  }
  void PutHeader(uint32_t type, uint64_t sector) {
    memory.WriteValue(GuestPhys(kHeader), type);
    memory.WriteValue(GuestPhys(kHeader + 4), uint32_t{0});
    memory.WriteValue(GuestPhys(kHeader + 8), sector);
    memory.WriteValue(GuestPhys(kStatus), uint8_t{0xaa});
  }
  /// Adds and kicks; the completion comes through Wait.
  void Begin(uint32_t type, uint64_t sector, std::vector<TestBuffer> data, bool indirect = false) {
    PutHeader(type, sector);
    data.insert(data.begin(), {kHeader, 16});
    data.push_back({kStatus, 1, true});
    ring(0).Add(data, indirect);
    Kick(0);
  }
  std::optional<UsedEntry> Wait() {
    for (int turn = 0; turn < 1000; ++turn) {
      if (auto used = ring(0).GetUsed()) return used;
      io->Wait();
    }
    return std::nullopt;
  }
  uint8_t Run(uint32_t type, uint64_t sector, std::vector<TestBuffer> data, bool indirect = false) {
    Begin(type, sector, std::move(data), indirect);
    const std::optional<UsedEntry> used = Wait();
    EXPECT_TRUE(used.has_value());
    last_used = used.value_or(UsedEntry{});
    return ring(0).Peek<uint8_t>(kStatus);
  }
  std::vector<uint8_t> Image(uint64_t offset, size_t size) {
    std::vector<uint8_t> data(size);
    EXPECT_EQ(static_cast<ssize_t>(size), pread(image.get(), data.data(), size, static_cast<off_t>(offset)));
    return data;
  }
  void SetImage(uint64_t offset, std::span<const uint8_t> data) {
    EXPECT_EQ(static_cast<ssize_t>(data.size()),
              pwrite(image.get(), data.data(), data.size(), static_cast<off_t>(offset)));
  }
  static std::vector<uint8_t> Pattern(size_t size, unsigned seed) {
    std::vector<uint8_t> data(size);
    for (size_t i = 0; i < size; ++i) data[i] = static_cast<uint8_t>(i * 13 + i / 256 + seed);
    return data;
  }

  std::shared_ptr<storage::FaultIo> io;
  Fd image;
  UsedEntry last_used{};
};
INSTANTIATE_TEST_SUITE_P(Rings, VirtioBlockTest, testing::Bool(),
                         [](const auto& kind) { return std::string(kind.param ? "Packed" : "Split"); });

TEST_P(VirtioBlockTest, Clause5_2_4_Configuration) {
  EXPECT_EQ(kDiskSize / 512, Config(0, 8));
  EXPECT_EQ(254u, Config(12, 4)) << "seg_max";
  EXPECT_EQ(512u, Config(20, 4));
  EXPECT_EQ(0u, OfferedFeatures() & Bit(5));
}

TEST_P(VirtioBlockTest, WritesAndReadsThroughScatteredBuffers) {
  Start(kFlush | Bit(virtio_feature::kIndirectDesc), GetParam());
  const auto data = Pattern(4096, 1);
  Fill(kData, data);
  EXPECT_EQ(0, Run(1, 8, {{kData, 1000}, {kData + 1000, 3096}}));
  EXPECT_EQ(1u, last_used.written);
  EXPECT_EQ(data, Image(4096, 4096));
  EXPECT_EQ(0, Run(0, 8, {{kData + 0x2000, 512, true}, {kData + 0x4000, 3584, true}}, true));
  EXPECT_EQ(4097u, last_used.written);
  auto back = Get(kData + 0x2000, 512);
  const auto rest = Get(kData + 0x4000, 3584);
  back.insert(back.end(), rest.begin(), rest.end());
  EXPECT_EQ(data, back);
  EXPECT_TRUE(line.level);
}

TEST_P(VirtioBlockTest, ReadsMarkPagesDirty) {
  Start(kFlush, GetParam());
  for (uint64_t page = 0; page < memory.size_bytes() / kPageSize; ++page) memory.PageFlags(page) = 0;
  EXPECT_EQ(0, Run(0, 0, {{kData, 8192, true}}));
  EXPECT_NE(0, memory.PageFlags(kData / kPageSize) & memory::GuestMemory::kDirty);
  EXPECT_NE(0, memory.PageFlags(kData / kPageSize + 1) & memory::GuestMemory::kDirty);
  EXPECT_EQ(0, memory.PageFlags(kData / kPageSize + 2) & memory::GuestMemory::kDirty);
}

TEST_P(VirtioBlockTest, Clause5_2_6_FlushReachesTheFile) {
  Start(kFlush, GetParam());
  unsigned syncs = 0;
  io->fault = [&](storage::IoOperation& operation) -> std::optional<int64_t> {
    syncs += operation.kind == storage::IoOperation::Kind::kSync;
    return std::nullopt;
  };
  EXPECT_EQ(0, Run(1, 0, {{kData, 512}}));
  EXPECT_EQ(0u, syncs);
  EXPECT_EQ(0, Run(4, 0, {}));
  EXPECT_EQ(1u, syncs);
}

TEST_P(VirtioBlockTest, Clause5_2_6_2_WithoutFlushEveryWriteIsWrittenThrough) {
  Start(0, GetParam());
  unsigned syncs = 0;
  io->fault = [&](storage::IoOperation& operation) -> std::optional<int64_t> {
    syncs += operation.kind == storage::IoOperation::Kind::kSync;
    return std::nullopt;
  };
  EXPECT_EQ(0, Run(1, 0, {{kData, 512}}));
  EXPECT_EQ(1u, syncs);
}

TEST_P(VirtioBlockTest, DiscardAndWriteZeroes) {
  Start(kFlush | kDiscardFeature | kWriteZeroes, GetParam());
  SetImage(0, Pattern(65536, 1));
  const auto range = [&](uint64_t sector, uint32_t sectors, uint32_t flags) {
    memory.WriteValue(GuestPhys(kData), sector);
    memory.WriteValue(GuestPhys(kData + 8), sectors);
    memory.WriteValue(GuestPhys(kData + 12), flags);
  };
  range(8, 16, 0);
  EXPECT_EQ(0, Run(13, 0, {{kData, 16}}));
  EXPECT_EQ(std::vector<uint8_t>(8192), Image(4096, 8192));
  range(32, 8, 1);
  EXPECT_EQ(0, Run(13, 0, {{kData, 16}}));
  EXPECT_EQ(std::vector<uint8_t>(4096), Image(16384, 4096));
  range(64, 8, 0);
  EXPECT_EQ(0, Run(11, 0, {{kData, 16}}));
  range(0, 8, 1);
  EXPECT_EQ(2, Run(11, 0, {{kData, 16}})) << "5.2.6.2: unmap makes no sense for a discard";
  range(0, 8, 2);
  EXPECT_EQ(2, Run(13, 0, {{kData, 16}})) << "unknown flags";
  range(kDiskSize / 512 - 4, 8, 0);
  EXPECT_EQ(1, Run(13, 0, {{kData, 16}})) << "past the end";
  range(~uint64_t{0}, 8, 0);
  EXPECT_EQ(1, Run(11, 0, {{kData, 16}}));
  range(0, 0xffffffff, 0);
  EXPECT_EQ(1, Run(11, 0, {{kData, 16}}));
  EXPECT_EQ(1, Run(11, 0, {{kData, 8}}));
  EXPECT_EQ(1, Run(11, 0, {{kData, 32}})) << "one segment a request";
}

TEST_P(VirtioBlockTest, GetIdGivesTheSerial) {
  PlugDisk({.serial = "NACRE-0001"});
  Start(kFlush, GetParam());
  EXPECT_EQ(0, Run(8, 0, {{kData, 20, true}}));
  std::vector<uint8_t> expected(20);
  std::memcpy(expected.data(), "NACRE-0001", 10);
  EXPECT_EQ(expected, Get(kData, 20));
  EXPECT_EQ(0, Run(8, 0, {{kData, 4, true}})) << "a short buffer gets a short answer";
}

TEST_P(VirtioBlockTest, MistakesOfTheGuestAreStatusIoError) {
  Start(kFlush, GetParam());
  EXPECT_EQ(1, Run(0, kDiskSize / 512, {{kData, 512, true}}));
  EXPECT_EQ(1, Run(0, kDiskSize / 512 - 1, {{kData, 1024, true}}));
  EXPECT_EQ(1, Run(0, ~uint64_t{0}, {{kData, 512, true}}));
  EXPECT_EQ(1, Run(0, uint64_t{1} << 55, {{kData, 512, true}}));
  EXPECT_EQ(1, Run(0, 0, {{kData, 100, true}}));
  EXPECT_EQ(1, Run(1, 0, {{kData, 511}}));
  EXPECT_EQ(2, Run(99, 0, {{kData, 512}})) << "unknown types are unsupported";
  EXPECT_EQ(2, Run(11, 0, {{kData, 16}})) << "discard was not negotiated";
  EXPECT_EQ(15, Status());
}

TEST_P(VirtioBlockTest, Clause5_2_6_2_AReadOnlyDiskRefusesWrites) {
  PlugDisk({}, true);
  EXPECT_NE(0u, OfferedFeatures() & Bit(5));
  Start(kFlush | Bit(5), GetParam());
  EXPECT_EQ(1, Run(1, 0, {{kData, 512}}));
  EXPECT_EQ(0, Run(0, 0, {{kData, 512, true}}));
  EXPECT_EQ(0, Run(4, 0, {}));
}

TEST_P(VirtioBlockTest, RequestsWithoutHeaderOrStatusNeedReset) {
  for (const auto& buffers : std::vector<std::vector<TestBuffer>>{
           {{kHeader, 16}}, {{kHeader, 15}, {kStatus, 1, true}}, {{kStatus, 1, true}}, {{kHeader, 0}}}) {
    Start(kFlush, GetParam());
    ring(0).Add(buffers);
    Kick(0);
    EXPECT_NE(0, Status() & virtio_status::kNeedsReset);
  }
}

TEST_P(VirtioBlockTest, HostErrorsBecomeStatusIoError) {
  Start(kFlush | kWriteZeroes, GetParam());
  for (int error : {EIO, ENOSPC}) {
    io->fault = [error](storage::IoOperation&) { return std::optional<int64_t>(-error); };
    EXPECT_EQ(1, Run(0, 0, {{kData, 512, true}}));
    EXPECT_EQ(1u, last_used.written);
    EXPECT_EQ(1, Run(1, 0, {{kData, 512}}));
    EXPECT_EQ(1, Run(4, 0, {}));
  }
  io->fault = nullptr;
  EXPECT_EQ(0, Run(0, 0, {{kData, 512, true}}));
}

TEST_P(VirtioBlockTest, ManyRequestsAtOnce) {
  Start(kFlush | Bit(virtio_feature::kIndirectDesc) | Bit(virtio_feature::kEventIndex), GetParam());
  const auto data = Pattern(64 * 4096, 5);
  Fill(kData, data);
  for (unsigned i = 0; i < 64; ++i) {
    const uint64_t header = 0x20'0000 + 64 * i;
    memory.WriteValue(GuestPhys(header), uint32_t{1});
    memory.WriteValue(GuestPhys(header + 8), uint64_t{i * 8});
    ring(0).Add({{header, 16}, {kData + i * 4096, 4096}, {header + 32, 1, true}}, true);
  }
  Kick(0);
  std::set<uint32_t> ids;
  for (unsigned i = 0; i < 64; ++i) {
    EXPECT_TRUE(ids.insert(Wait().value_or(UsedEntry{~0u, 0}).id).second);
  }
  EXPECT_EQ(data, Image(0, data.size()));
}

TEST_P(VirtioBlockTest, Clause2_4_ResetWaitsForWhatIsInFlightAndForgetsIt) {
  Start(kFlush, GetParam());
  SetImage(0, Pattern(512, 3));
  io->hold = true;
  Begin(0, 0, {{kData, 512, true}});
  EXPECT_FALSE(ring(0).GetUsed());
  auto old_ring = std::move(rings[0]);
  SetCommon(20, 1, 0);
  EXPECT_FALSE(old_ring->GetUsed()) << "the old driver's ring is no longer the device's";
  uint8_t status = 0;
  memory.ReadValue(GuestPhys(kStatus), status);
  EXPECT_EQ(0xaa, status);
  io->hold = false;
  Fill(kData, std::vector<uint8_t>(512));
  io->HandleEvents();
  EXPECT_EQ(std::vector<uint8_t>(512), Get(kData, 512)) << "nothing writes to the buffer after the reset";
  Start(kFlush, GetParam());
  EXPECT_EQ(0, Run(0, 0, {{kData, 512, true}}));
}

TEST_P(VirtioBlockTest, QuiesceCompletesWhatIsInFlightAndTheStateMovesOn) {
  Start(kFlush, GetParam());
  SetImage(0, Pattern(512, 3));
  io->hold = true;
  Begin(0, 0, {{kData, 512, true}});
  EXPECT_FALSE(ring(0).GetUsed());
  device().Quiesce();
  io->hold = false;
  EXPECT_EQ(Pattern(512, 3), Get(kData, 512));
  VirtioBench other;
  other.Plug(MakeBlock({}, other.memory, other.scheduler));
  CopyStateTo(other);
  ASSERT_TRUE(other.ring(0).GetUsed());
  other.ring(0).Add({{kHeader, 16}, {kData + 4096, 512, true}, {kStatus, 1, true}});
  other.Kick(0);
  for (int turn = 0; turn < 1000 && !other.ring(0).GetUsed(); ++turn) io->Wait();
  EXPECT_EQ(Pattern(512, 3), other.Get(kData + 4096, 512));
}

TEST_P(VirtioBlockTest, ASaveOfADiskOfAnotherSizeIsRejected) {
  auto saving = state::Archive::ForSaving();
  pci->Serialize(saving);
  const auto bytes = saving.Finish();
  auto disk = storage::RawDisk::Adopt(Fd(dup(image.get())), kDiskSize / 2, false, io);
  Plug(std::move(*VirtioBlock::Create({}, std::move(disk), memory, scheduler)));
  auto loading = state::Archive::ForLoading(bytes);
  pci->Serialize(loading);
  EXPECT_FALSE(loading.ok());
}

TEST_P(VirtioBlockTest, SeveralQueues) {
  PlugDisk({.queues = 4, .queue_size = 64});
  EXPECT_NE(0u, OfferedFeatures() & Bit(12));
  EXPECT_EQ(4u, Config(34, 2));
  Start(kFlush | Bit(12), GetParam());
  for (unsigned queue = 0; queue < 4; ++queue) {
    PutHeader(1, queue);
    Fill(kData, Pattern(512, queue));
    ring(queue).Add({{kHeader, 16}, {kData, 512}, {kStatus, 1, true}});
    Kick(queue);
    while (!ring(queue).GetUsed()) io->Wait();
    EXPECT_EQ(Pattern(512, queue), Image(512 * queue, 512));
  }
}

TEST(VirtioBlock, OptionsAreChecked) {
  VirtioBench bench;
  auto io = std::shared_ptr<storage::AsyncIo>(std::move(*storage::AsyncIo::Create()));
  const auto fails = [&](const VirtioBlock::Options& options) {
    auto disk = storage::RawDisk::Adopt(Fd(memfd_create("d", 0)), 512, false, io);
    return !VirtioBlock::Create(options, std::move(disk), bench.memory, bench.scheduler).has_value();
  };
  EXPECT_TRUE(fails({.queues = 0}));
  EXPECT_TRUE(fails({.queue_size = 100}));
  EXPECT_TRUE(fails({.serial = "123456789012345678901"}));
  EXPECT_FALSE(fails({.serial = "12345678901234567890"}));
}

}  // namespace
}  // namespace nacre::devices
