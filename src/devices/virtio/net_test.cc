#include "devices/virtio/net.h"

#include <gtest/gtest.h>

#include <numeric>

#include "devices/virtio/virtio_testing.h"
#include "network/backend_testing.h"

namespace nacre::devices {
namespace {

using network::FakeNet;

constexpr uint64_t kData = 0x40'0000;
constexpr uint64_t kChecksum = Bit(0), kGuestChecksum = Bit(1), kMtu = Bit(3), kMac = Bit(5), kMerge = Bit(15),
                   kStatus = Bit(16);
constexpr unsigned kReceive = 0, kTransmit = 1;

class VirtioNetTest : public testing::TestWithParam<bool>, public VirtioBench {
 protected:
  VirtioNetTest() {
    auto net = std::make_unique<FakeNet>();
    backend = net.get();
    Plug(VirtioNet::Create({.mac = {0x52, 0x54, 0, 1, 2, 3}}, std::move(net), memory, scheduler));
  }
  static std::vector<uint8_t> Frame(size_t size, uint8_t seed = 0) {
    std::vector<uint8_t> frame(size);
    std::iota(frame.begin(), frame.end(), seed);
    return frame;
  }
  void Transmit(std::span<const uint8_t> head, std::span<const uint8_t> frame) {
    Fill(kData, head);
    Fill(kData + 0x100, frame);
    ring(kTransmit).Add(
        {{kData, static_cast<uint32_t>(head.size())}, {kData + 0x100, static_cast<uint32_t>(frame.size())}});
    Kick(kTransmit);
    EXPECT_TRUE(ring(kTransmit).GetUsed());
  }
  /// Takes one frame as the driver does: header, then num_buffers buffers of `size` bytes each.
  std::vector<uint8_t> TakeFrame() {
    std::vector<uint8_t> bytes;
    unsigned left = 1;
    for (unsigned i = 0; i < left; ++i) {
      const auto used = ring(kReceive).GetUsed();
      if (!used) {
        EXPECT_EQ(0u, i) << "a merged frame came in parts";
        return {};
      }
      const auto part = Get(buffers[static_cast<uint16_t>(used->id)], used->written);
      bytes.insert(bytes.end(), part.begin(), part.end());
      if (i == 0) left = LoadLe<uint16_t>(&bytes[10]);
    }
    header.assign(bytes.begin(), bytes.begin() + 12);
    return {bytes.begin() + 12, bytes.end()};
  }
  void AddBuffers(unsigned count, uint32_t size) {
    for (unsigned i = 0; i < count; ++i) {
      const uint64_t address = 0x60'0000 + 0x4000 * (next_buffer++ % 128);
      buffers[ring(kReceive).Add({{address, size, true}})] = address;
    }
  }

  FakeNet* backend;
  std::map<uint16_t, uint64_t> buffers;
  unsigned next_buffer = 0;
  std::vector<uint8_t> header;
};
INSTANTIATE_TEST_SUITE_P(Rings, VirtioNetTest, testing::Bool(),
                         [](const auto& kind) { return std::string(kind.param ? "Packed" : "Split"); });

TEST_P(VirtioNetTest, Clause5_1_4_Configuration) {
  EXPECT_EQ(0x0302'0100'5452u, Config(0, 8) & 0xffff'ffff'ffff);
  EXPECT_EQ(1u, Config(6, 2)) << "link up";
  EXPECT_EQ(65520u, Config(10, 2));
  EXPECT_NE(0u, OfferedFeatures() & kMac);
}

TEST_P(VirtioNetTest, TransmitsFramesWithoutTheHeader) {
  Start(kMac, GetParam());
  const auto frame = Frame(60);
  backend->batches = 0;
  Transmit(std::vector<uint8_t>(12), frame);
  ASSERT_EQ(1u, backend->sent.size());
  EXPECT_EQ(frame, backend->sent[0]);
  EXPECT_EQ(1u, backend->batches);
}

TEST_P(VirtioNetTest, Clause5_1_6_2_ChecksumsAreCompleted) {
  Start(kChecksum, GetParam());
  std::vector<uint8_t> head(12);
  head[0] = 1;
  StoreLe<uint16_t>(&head[6], 34);
  StoreLe<uint16_t>(&head[8], 6);
  // A UDP datagram of 3 bytes whose checksum field holds the pseudo header's sum.
  std::vector<uint8_t> frame(34);
  const std::vector<uint8_t> udp = {0x12, 0x34, 0x00, 0x35, 0x00, 0x0b, 0x1e, 0x27, 'a', 'b', 'c'};
  frame.insert(frame.end(), udp.begin(), udp.end());
  Transmit(head, frame);
  ASSERT_EQ(1u, backend->sent.size());
  uint32_t sum = 0;
  for (size_t i = 0; i < udp.size(); ++i) {
    const uint8_t byte = udp[i];
    sum += i % 2 ? byte : uint32_t{byte} << 8;
  }
  while (sum >> 16) sum = (sum & 0xffff) + (sum >> 16);
  const auto expected = static_cast<uint16_t>(~sum);
  EXPECT_EQ(expected >> 8, backend->sent[0][40]);
  EXPECT_EQ(expected & 0xff, backend->sent[0][41]);
}

TEST_P(VirtioNetTest, ChecksumRequestsOutsideTheFrameAreDropped) {
  Start(kChecksum, GetParam());
  for (auto [start, offset] : {std::pair{59, 0}, {0, 59}, {65535, 65535}, {60, 0}}) {
    std::vector<uint8_t> head(12);
    head[0] = 1;
    StoreLe(&head[6], static_cast<uint16_t>(start));
    StoreLe(&head[8], static_cast<uint16_t>(offset));
    Transmit(head, Frame(60));
  }
  EXPECT_TRUE(backend->sent.empty());
  EXPECT_EQ(15, Status());
}

TEST_P(VirtioNetTest, FramesOfImpossibleSizeAreDropped) {
  Start(kMac, GetParam());
  Transmit(std::vector<uint8_t>(12), Frame(13));
  Transmit(std::vector<uint8_t>(3), {});
  Transmit(std::vector<uint8_t>(12), Frame(66'000));
  std::vector<uint8_t> segmented(12);
  segmented[1] = 1;  // gso_type
  Transmit(segmented, Frame(60));
  EXPECT_TRUE(backend->sent.empty());
  Transmit(std::vector<uint8_t>(12), Frame(65'534));
  EXPECT_EQ(1u, backend->sent.size());
}

TEST_P(VirtioNetTest, ReceivesIntoOneBuffer) {
  Start(kMac | kMerge | kGuestChecksum, GetParam());
  AddBuffers(4, 2048);
  Kick(kReceive);
  EXPECT_TRUE(backend->Offer(Frame(1514, 9)));
  EXPECT_EQ(Frame(1514, 9), TakeFrame());
  EXPECT_EQ(2, header[0]) << "VIRTIO_NET_HDR_F_DATA_VALID";
  EXPECT_EQ(1u, LoadLe<uint16_t>(&header[10]));
  EXPECT_TRUE(line.level);
}

TEST_P(VirtioNetTest, Clause5_1_6_4_2_LargeFramesAreMerged) {
  Start(kMac | kMerge | kMtu, GetParam());
  for (int lap = 0; lap < 5; ++lap) {
    AddBuffers(43, 1536);
    Kick(kReceive);
    EXPECT_TRUE(backend->Offer(Frame(65'534, 3)));
    EXPECT_EQ(Frame(65'534, 3), TakeFrame());
    EXPECT_EQ(43u, LoadLe<uint16_t>(&header[10]));
  }
}

TEST_P(VirtioNetTest, FramesWaitForBuffersAndNoneIsLost) {
  for (uint64_t event_index : {uint64_t{0}, Bit(virtio_feature::kEventIndex)}) {
    buffers.clear();
    Start(kMac | kMerge | event_index, GetParam());
    AddBuffers(3, 1024);
    Kick(kReceive);
    EXPECT_TRUE(backend->Offer(Frame(1500, 1)));
    EXPECT_FALSE(backend->Offer(Frame(3000, 2))) << "one buffer is too little";
    EXPECT_EQ(Frame(1500, 1), TakeFrame());
    EXPECT_EQ(Frame(0), TakeFrame());
    // The driver must be told to notify: flag or index, as negotiated.
    const QueueSetup& setup = ring(kReceive).setup;
    if (event_index != 0 && !GetParam())
      EXPECT_EQ(ring(kReceive).available_index(), ring(kReceive).Peek<uint16_t>(setup.device_area + 4 + 8 * 64));
    else
      EXPECT_EQ(event_index ? 2 : 0, ring(kReceive).Peek<uint16_t>(setup.device_area + (GetParam() ? 2 : 0)));
    AddBuffers(2, 1024);
    Kick(kReceive);
    EXPECT_EQ(Frame(3000, 2), TakeFrame());
    EXPECT_TRUE(backend->waiting.empty());
  }
}

TEST_P(VirtioNetTest, WithoutMergingAFrameThatDoesNotFitIsDropped) {
  Start(kMac, GetParam());
  AddBuffers(2, 1526);
  Kick(kReceive);
  EXPECT_TRUE(backend->Offer(Frame(3000)));
  EXPECT_TRUE(backend->Offer(Frame(1514, 4)));
  EXPECT_EQ(Frame(1514, 4), TakeFrame());
}

TEST_P(VirtioNetTest, AFrameThatAFullRingCannotTakeIsDropped) {
  Start(kMac | kMerge, GetParam(), 8);
  AddBuffers(8, 128);
  Kick(kReceive);
  EXPECT_TRUE(backend->Offer(Frame(2000)));
  EXPECT_TRUE(backend->Offer(Frame(60, 7)));
  EXPECT_EQ(Frame(60, 7), TakeFrame());
}

TEST_P(VirtioNetTest, FramesBeforeTheDriverAreDropped) {
  EXPECT_TRUE(backend->Offer(Frame(60)));
  Start(kMac, GetParam());
  EXPECT_FALSE(backend->Offer(Frame(60))) << "now they wait";
  SetCommon(20, 1, 0);
  EXPECT_TRUE(backend->waiting.empty()) << "a reset lets them go";
}

TEST_P(VirtioNetTest, LinkChangesAreToldWithANewGeneration) {
  Start(kMac | kStatus, GetParam());
  const uint64_t generation = Common(21, 1);
  backend->up = false;
  backend->receiver->LinkChanged();
  EXPECT_EQ(0u, Config(6, 2));
  EXPECT_NE(generation, Common(21, 1));
  EXPECT_EQ(2, ReadIsr());
}

TEST_P(VirtioNetTest, StateMovesOn) {
  Start(kMac | kMerge, GetParam());
  AddBuffers(4, 2048);
  Kick(kReceive);
  EXPECT_TRUE(backend->Offer(Frame(100, 1)));
  VirtioBench other;
  auto net = std::make_unique<FakeNet>();
  FakeNet* other_backend = net.get();
  other.Plug(VirtioNet::Create({}, std::move(net), other.memory, other.scheduler));
  CopyStateTo(other);
  EXPECT_TRUE(other_backend->Offer(Frame(200, 2)));
  EXPECT_EQ(112u, other.ring(kReceive).Used().written);
  EXPECT_EQ(212u, other.ring(kReceive).Used().written);
  EXPECT_EQ(0x52u, other.Config(0, 1)) << "the MAC address is the machine's, not the saved one";
}

}  // namespace
}  // namespace nacre::devices
