#include "devices/ethernet/e1000.h"
#include "base/fuzz_testing.h"

#include <gtest/gtest.h>
#include <zlib.h>

#include <cstdlib>
#include <numeric>
#include <random>

#include "bus/conformance_testing.h"
#include "devices/ethernet/e1000_testing.h"

namespace nacre::devices {
namespace {

using namespace e1000;

std::vector<uint8_t> Frame(size_t size, const std::vector<uint8_t>& to = {0x52, 0x54, 0, 1, 2, 3}, uint8_t seed = 1) {
  std::vector<uint8_t> frame(size);
  std::iota(frame.begin(), frame.end(), seed);
  std::ranges::copy(to, frame.begin());
  frame[12] = 0x88;  // a local experiment's type
  frame[13] = 0xb5;
  return frame;
}

class E1000Test : public testing::Test, public E1000Bench {
 protected:
  /// Checksum field and pseudo header, as a stack leaves it to the card.
  static std::vector<uint8_t> Ip4Tcp(size_t payload, bool for_segments) {
    std::vector<uint8_t> frame = Frame(54 + payload, {0x52, 0x55, 10, 0, 2, 2});
    frame[12] = 8;
    frame[13] = 0;
    const std::vector<uint8_t> ip{0x45, 0, 0, 0, 0x12, 0xfe, 0x40, 0, 64, 6, 0, 0, 10, 0, 2, 15, 10, 0, 2, 2};
    std::ranges::copy(ip, frame.begin() + 14);
    const size_t total = frame.size() - 14;
    if (!for_segments) {
      frame[16] = static_cast<uint8_t>(total >> 8);
      frame[17] = static_cast<uint8_t>(total);
    }
    const std::vector<uint8_t> tcp{0x30, 0x39, 0,    80,   0xff, 0xff, 0xff, 0xf0, 0, 0,
                                   0,    1,    0x50, 0x19, 0xff, 0xff, 0,    0,    0, 0};
    std::ranges::copy(tcp, frame.begin() + 34);
    const size_t length = for_segments ? 0 : total - 20;
    const std::vector<uint8_t> pseudo{
        10, 0, 2, 15, 10, 0, 2, 2, 0, 6, static_cast<uint8_t>(length >> 8), static_cast<uint8_t>(length)};
    StoreLe(&frame[50], network::OnesComplementSum(pseudo));
    return frame;
  }
  /// Of a finished frame: both sums are all ones.
  static void ExpectGoodIp4Tcp(const std::vector<uint8_t>& frame) {
    const size_t total = size_t{frame[16]} << 8 | frame[17];
    ASSERT_EQ(total + 14, frame.size());
    EXPECT_EQ(0xffff, network::OnesComplementSum(std::span(frame).subspan(14, 20)));
    std::vector<uint8_t> data(frame.begin() + 26, frame.begin() + 34);
    data.insert(data.end(), {0, 6, static_cast<uint8_t>((total - 20) >> 8), static_cast<uint8_t>(total - 20)});
    data.insert(data.end(), frame.begin() + 34, frame.end());
    EXPECT_EQ(0xffff, network::OnesComplementSum(data));
  }
  void QueueContext(uint8_t command, uint8_t header, uint16_t segment, uint32_t payload) {
    Queue(14 | 24 << 8 | 33u << 16 | uint64_t{34} << 32 | uint64_t{50} << 40,
          payload | uint64_t{static_cast<uint8_t>(command | kExtended)} << 24 | uint64_t{header} << 40 |
              uint64_t{segment} << 48);
  }
  void QueueData(uint64_t address, uint32_t size, uint8_t command, uint8_t options, uint16_t tag = 0) {
    Queue(address, size | 1u << 20 | uint64_t{static_cast<uint8_t>(command | kExtended)} << 24 |
                       uint64_t{options} << 40 | uint64_t{tag} << 48);
  }
  uint16_t EepromByBits(unsigned address) {
    constexpr uint32_t kClock = 1, kSelect = 2, kIn = 4, kOut = 8, kRequest = 64;
    const auto bit = [&](uint32_t in) {
      Set(kEecd, kRequest | kSelect | in);
      Set(kEecd, kRequest | kSelect | in | kClock);
      const bool out = (Reg(kEecd) & kOut) != 0;
      Set(kEecd, kRequest | kSelect | in);
      return out;
    };
    Set(kEecd, kRequest);
    Set(kEecd, kRequest | kSelect);
    for (int i = 8; i >= 0; --i) bit(TestBit(6u << 6 | address, static_cast<unsigned>(i)) ? kIn : 0);
    EXPECT_EQ(0u, Reg(kEecd) & kOut) << "a zero before the word";
    unsigned value = 0;
    for (int i = 0; i < 16; ++i) value = value << 1 | (bit(0) ? 1 : 0);
    Set(kEecd, kRequest);
    return static_cast<uint16_t>(value);
  }
  uint16_t Phy(unsigned number) {
    Set(kMdic, number << 16 | 1 << 21 | kMdicRead);
    EXPECT_NE(0u, Reg(kMdic) & kMdicReady);
    return static_cast<uint16_t>(Reg(kMdic));
  }
};

TEST_F(E1000Test, EepromByBothWays) {
  uint16_t sum = 0;
  for (unsigned i = 0; i < E1000Eeprom::kWords; ++i) {
    const uint16_t word = EepromByBits(i);
    Set(kEerd, i << 8 | kEerdStart);
    EXPECT_EQ(uint32_t{word} << 16 | kEerdDone, Reg(kEerd) & 0xffff0010) << i;
    sum = static_cast<uint16_t>(sum + word);
  }
  EXPECT_EQ(0xbaba, sum);
  EXPECT_EQ(0x5452, EepromByBits(0));
  EXPECT_EQ(0x0302, EepromByBits(2));
}

TEST_F(E1000Test, AddressStatusAndPhy) {
  EXPECT_EQ(0x0100'5452u, Reg(kReceiveAddress));
  EXPECT_EQ(0x8000'0302u, Reg(kReceiveAddress + 4));
  EXPECT_EQ(0x83u, Reg(kStatus)) << "1000 Mb/s, full duplex, link";
  EXPECT_EQ(0x0141, Phy(2));
  EXPECT_EQ(0x0c20, Phy(3));
  EXPECT_EQ(1 << 5 | 1 << 2, Phy(1) & (1 << 5 | 1 << 2));
  Set(kMdic, 2 << 16 | 2 << 21 | kMdicRead);
  EXPECT_NE(0u, Reg(kMdic) & kMdicError) << "no PHY has that address";
  backend->up = false;
  backend->receiver->LinkChanged();
  EXPECT_EQ(kLinkChange, Reg(kIcr));
  EXPECT_EQ(0u, Reg(kStatus) & kStatusLinkUp);
  EXPECT_EQ(0, Phy(1) & (1 << 2));
}

TEST_F(E1000Test, RegistersThroughThePorts) {
  ports.Write(kIo, 4, kReceiveAddress);
  EXPECT_EQ(0x0100'5452u, ports.Read(kIo + 4, 4));
  ports.Write(kIo, 4, kVet);
  ports.Write(kIo + 4, 4, 0x8100);
  EXPECT_EQ(0x8100u, Reg(kVet));
  ports.Write(kIo, 4, kCtrl);
  ports.Write(kIo + 4, 4, kCtrlReset);
  EXPECT_EQ(0u, Reg(kVet));
}

TEST_F(E1000Test, SendsAFrameOfTwoBuffers) {
  Start();
  const auto frame = Frame(100);
  Fill(kSendData, frame);
  Queue(kSendData, 40);
  Queue(kSendData + 40, 60 | uint64_t{kEndOfPacket | kReportStatus} << 24);
  Ring();
  ASSERT_EQ(1u, backend->sent.size());
  EXPECT_EQ(frame, backend->sent[0]);
  EXPECT_EQ(0, SendStatus(0));
  EXPECT_EQ(kDescriptorDone, SendStatus(1));
  EXPECT_TRUE(line.level);
  EXPECT_EQ(kTransmitDone | kTransmitQueueEmpty, Reg(kIcr));
  EXPECT_FALSE(line.level) << "reading the causes clears them";
  EXPECT_EQ(2u, Reg(kTdh));
  EXPECT_EQ(104u, Reg(kGoodOctetsSent));
  EXPECT_EQ(1u, Reg(kTotalSent));
  EXPECT_EQ(0u, Reg(kTotalSent)) << "cleared by reading";
}

TEST_F(E1000Test, ADescriptorMayBeEmpty) {
  Start();
  const auto frame = Frame(60);
  Fill(kSendData, frame);
  Queue(kSendData, 0);
  Queue(kSendData, 60 | uint64_t{kEndOfPacket} << 24);
  Ring();
  ASSERT_EQ(1u, backend->sent.size());
  EXPECT_EQ(frame, backend->sent[0]);
}

TEST_F(E1000Test, PadsShortFrames) {
  Start();
  Fill(kSendData, Frame(20));
  Queue(kSendData, 20 | uint64_t{kEndOfPacket} << 24);
  Ring();
  ASSERT_EQ(1u, backend->sent.size());
  EXPECT_EQ(60u, backend->sent[0].size());
  EXPECT_EQ(0, backend->sent[0][59]);
}

TEST_F(E1000Test, LegacyChecksum) {
  Start();
  const auto frame = Ip4Tcp(101, false);
  Fill(kSendData, frame);
  Queue(kSendData,
        frame.size() | uint64_t{50} << 16 | uint64_t{kEndOfPacket | kInsertChecksum} << 24 | uint64_t{34} << 40);
  Ring();
  ASSERT_EQ(1u, backend->sent.size());
  auto sent = backend->sent[0];
  std::vector<uint8_t> data(sent.begin() + 26, sent.begin() + 34);
  data.insert(data.end(), {0, 6, 0, 121});
  data.insert(data.end(), sent.begin() + 34, sent.end());
  EXPECT_EQ(0xffff, network::OnesComplementSum(data));
}

TEST_F(E1000Test, ContextsChecksumIpAndTcp) {
  Start();
  const auto frame = Ip4Tcp(333, false);
  Fill(kSendData, frame);
  QueueContext(kContextIp | kContextTcp, 0, 0, 0);
  QueueData(kSendData, 100, 0, kOptionIpChecksum | kOptionTcpChecksum);
  QueueData(kSendData + 100, static_cast<uint32_t>(frame.size() - 100), kEndOfPacket | kReportStatus, 0);
  Ring();
  ASSERT_EQ(1u, backend->sent.size());
  ExpectGoodIp4Tcp(backend->sent[0]);
  EXPECT_EQ(kDescriptorDone, SendStatus(2));
}

TEST_F(E1000Test, SegmentsTcp) {
  Start();
  constexpr size_t kPayload = 3000, kMss = 1460;
  const auto packet = Ip4Tcp(kPayload, true);
  Fill(kSendData, packet);
  QueueContext(kContextIp | kContextTcp | kSegmentation, 54, kMss, kPayload);
  QueueData(kSendData, 54, kSegmentation, kOptionIpChecksum | kOptionTcpChecksum);
  QueueData(kSendData + 54, kPayload, kSegmentation | kEndOfPacket | kReportStatus, 0);
  Ring();
  ASSERT_EQ(3u, backend->sent.size());
  std::vector<uint8_t> payload;
  for (size_t i = 0; i < 3; ++i) {
    const auto& frame = backend->sent[i];
    ExpectGoodIp4Tcp(frame);
    EXPECT_EQ(0x12fe + i, (frame[18] << 8 | frame[19])) << "identification";
    EXPECT_EQ(static_cast<uint32_t>(0xfffffff0 + i * kMss),
              (uint32_t{frame[38]} << 24 | uint32_t{frame[39]} << 16 | uint32_t{frame[40]} << 8 | frame[41]));
    EXPECT_EQ(i == 2 ? 0x19 : 0x10, frame[47]) << "FIN and PSH only at the end";
    payload.insert(payload.end(), frame.begin() + 54, frame.end());
  }
  EXPECT_EQ(std::vector<uint8_t>(packet.begin() + 54, packet.end()), payload);
  EXPECT_EQ(1u, backend->batches);
}

TEST_F(E1000Test, SenselessSegmentationSendsNothing) {
  Start();
  Fill(kSendData, Ip4Tcp(3000, true));
  for (const auto& [header, segment] : {std::pair<uint8_t, uint16_t>{54, 0}, {54, 1}, {20, 1460}, {255, 0}}) {
    QueueContext(kContextIp | kContextTcp | kSegmentation, header, segment, 3000);
    QueueData(kSendData, 3054, kSegmentation | kEndOfPacket | kReportStatus, 3);
    Ring();
    EXPECT_EQ(kDescriptorDone, SendStatus((next_send + kRing - 1) % kRing));
  }
  for (int i = 0; i < 5; ++i) QueueData(kSendData, 0xfffff, 0, 0);
  QueueData(kSendData, 100, kEndOfPacket, 0);
  Ring();
  EXPECT_TRUE(backend->sent.empty());
}

TEST_F(E1000Test, VlanTagsGoInAndOut) {
  Set(kCtrl, kCtrlVlanMode);
  Set(kVet, 0x8100);
  Start();
  const auto frame = Frame(64);
  Fill(kSendData, frame);
  Queue(kSendData, frame.size() | uint64_t{kEndOfPacket | kVlanInsert} << 24 | uint64_t{0x2123} << 48);
  Ring();
  ASSERT_EQ(1u, backend->sent.size());
  auto tagged = frame;
  tagged.insert(tagged.begin() + 12, {0x81, 0x00, 0x21, 0x23});
  EXPECT_EQ(tagged, backend->sent[0]);
  EXPECT_TRUE(backend->Offer(tagged));
  const auto received = Take();
  EXPECT_EQ(kDescriptorDone | kReceivedEnd | kReceivedVlan | kIgnoreChecksums, received.status);
  EXPECT_EQ(0x2123, received.tag);
  EXPECT_EQ(frame, received.data);
  // With the filter, only those that are asked for.
  Set(kRctl, Reg(kRctl) | kVlanFilter);
  EXPECT_TRUE(backend->Offer(tagged));
  EXPECT_EQ(0, Take().status);
  Set(kVfta + 4 * (0x123 / 32), 1u << (0x123 % 32));
  EXPECT_TRUE(backend->Offer(tagged));
  EXPECT_NE(0, Take().status);
}

TEST_F(E1000Test, ReceivesWithTheFcs) {
  Start(kBroadcastAccept);
  auto frame = Frame(300);
  EXPECT_TRUE(backend->Offer(frame));
  const auto received = Take();
  EXPECT_EQ(304, received.size);
  EXPECT_EQ(crc32(0, frame.data(), 300), LoadLe<uint32_t>(&received.data[300]));
  frame.insert(frame.end(), received.data.begin() + 300, received.data.end());
  EXPECT_EQ(frame, received.data);
  EXPECT_EQ(kReceiveTimer, Reg(kIcr));
  EXPECT_EQ(304u, Reg(kTotalOctetsReceived));
  EXPECT_EQ(304u, Reg(kTotalOctetsReceived));
  EXPECT_EQ(0u, Reg(kTotalOctetsReceived + 4));
  EXPECT_EQ(0u, Reg(kTotalOctetsReceived)) << "the upper half clears both";
}

TEST_F(E1000Test, AFrameInSeveralBuffers) {
  Start(kStripCrc | kLongPackets | 3 << kBufferSizeShift, 256);
  const auto frame = Frame(700);
  EXPECT_TRUE(backend->Offer(frame));
  std::vector<uint8_t> data;
  for (int i = 0; i < 3; ++i) {
    const auto part = Take();
    EXPECT_EQ(i == 2, (part.status & kReceivedEnd) != 0);
    data.insert(data.end(), part.data.begin(), part.data.end());
  }
  EXPECT_EQ(frame, data);
}

TEST_F(E1000Test, Filters) {
  Start(kStripCrc);
  const auto gets = [&](const std::vector<uint8_t>& to) {
    EXPECT_TRUE(backend->Offer(Frame(60, to)));
    const bool got = Take().status != 0;
    if (got) Set(kRdt, (Reg(kRdt) + 1) % kRing);
    return got;
  };
  const std::vector<uint8_t> all(6, 0xff), other{0x52, 0x54, 0, 9, 9, 9}, group{1, 0, 0x5e, 0, 0, 0xfb};
  EXPECT_FALSE(gets(all));
  EXPECT_FALSE(gets(other));
  EXPECT_FALSE(gets(group));
  EXPECT_TRUE(gets({0x52, 0x54, 0, 1, 2, 3}));
  Set(kRctl, Reg(kRctl) | kBroadcastAccept);
  EXPECT_TRUE(gets(all));
  const unsigned hash = (0xfb00 >> 4) & 0xfff;
  Set(kMta + 4 * (hash / 32), 1u << (hash % 32));
  EXPECT_TRUE(gets(group));
  EXPECT_FALSE(gets({1, 0, 0x5e, 0, 0, 0xfc}));
  Set(kRctl, Reg(kRctl) | kUnicastPromiscuous | kMulticastPromiscuous);
  EXPECT_TRUE(gets(other));
  EXPECT_TRUE(gets({1, 0, 0x5e, 0, 0, 0xfc}));
}

TEST_F(E1000Test, AFrameWaitsForABuffer) {
  Start(kStripCrc);
  for (unsigned i = 0; i < kRing - 1; ++i) EXPECT_TRUE(backend->Offer(Frame(60)));
  EXPECT_NE(0u, Reg(kIcr) & kReceiveLow);
  EXPECT_FALSE(backend->Offer(Frame(61)));
  for (unsigned i = 0; i < kRing - 1; ++i) EXPECT_EQ(60, Take().size);
  Set(kRdt, (kRing - 1 + 1) % kRing);
  EXPECT_EQ(61, Take().size);
  EXPECT_TRUE(backend->waiting.empty());
}

TEST_F(E1000Test, WithoutTheReceiverFramesAreDropped) {
  Start(kStripCrc);
  Set(kRctl, 0);
  EXPECT_TRUE(backend->Offer(Frame(60)));
  EXPECT_EQ(0, Take().status);
  Set(kRctl, kReceiveEnable);
  EXPECT_TRUE(backend->Offer(Frame(1515))) << "too long without LPE";
  EXPECT_EQ(0, Take().status);
  EXPECT_EQ(1u, Reg(kOversize));
}

TEST_F(E1000Test, ChecksumsThatCameAreGood) {
  Start(kStripCrc);
  Set(kRxcsum, kIpOffload | kTcpUdpOffload | 14);
  auto frame = Ip4Tcp(100, false);
  std::ranges::copy(kMac, frame.begin());
  EXPECT_TRUE(backend->Offer(frame));
  const auto received = Take();
  EXPECT_EQ(kDescriptorDone | kReceivedEnd | kTcpChecksumSeen | kIpChecksumSeen, received.status);
  EXPECT_EQ(network::OnesComplementSum(std::span(frame).subspan(14)), received.checksum);
}

TEST_F(E1000Test, InterruptsKeepTheirDistance) {
  Start();
  Set(kItr, 1000);  // 256 us
  Set(kIcs, kReceiveTimer);
  EXPECT_TRUE(line.level);
  Reg(kIcr);
  Set(kIcs, kReceiveTimer);
  EXPECT_FALSE(line.level);
  scheduler.Advance(200'000);
  EXPECT_FALSE(line.level);
  scheduler.Advance(60'000);
  EXPECT_TRUE(line.level);
  Set(kImc, 0xffffffff);
  EXPECT_FALSE(line.level);
  EXPECT_EQ(kReceiveTimer, Reg(kIcr));
  // A shorter interval holds for the interrupt that waits.
  Set(kIms, kReceiveTimer);
  Set(kIcs, kReceiveTimer);
  EXPECT_FALSE(line.level);
  Set(kItr, 100);
  EXPECT_FALSE(line.level);
  scheduler.Advance(26'000);
  EXPECT_TRUE(line.level);
}

TEST_F(E1000Test, LoopbackComesBack) {
  Start(kStripCrc | kLoopback);
  const auto frame = Frame(90);
  Fill(kSendData, frame);
  Queue(kSendData, frame.size() | uint64_t{kEndOfPacket} << 24);
  Ring();
  EXPECT_TRUE(backend->sent.empty());
  EXPECT_EQ(frame, Take().data);
}

TEST_F(E1000Test, ALongRingIsDoneInTurns) {
  Start();
  constexpr unsigned kCount = 1024;
  Set(kTdlen, kCount * kDescriptorSize);
  Fill(kSendData, Frame(60));
  constexpr uint64_t kRingAt = 0x30'0000;
  Set(kTdbal, kRingAt);
  for (unsigned i = 0; i < kCount; ++i) {
    memory->WriteValue(GuestPhys(kRingAt + i * 16), kSendData);
    memory->WriteValue(GuestPhys(kRingAt + i * 16 + 8), 60 | uint64_t{kEndOfPacket} << 24);
  }
  Set(kTdt, kCount - 1);
  EXPECT_LT(backend->sent.size(), kCount - 1);
  scheduler.Advance(1);
  EXPECT_EQ(kCount - 1, backend->sent.size());
}

TEST_F(E1000Test, RingsOutsideMemoryDoNothing) {
  Start();
  Set(kTdbah, 0x1000);
  Set(kTdt, 5);
  EXPECT_TRUE(backend->sent.empty());
  Set(kRdbah, 0x1000);
  EXPECT_TRUE(backend->Offer(Frame(60)));
  Start();
  Set(kTdbah, 0);
  Queue(kMemory - 10, 100 | uint64_t{kEndOfPacket} << 24);
  Ring();
  ASSERT_EQ(1u, backend->sent.size());
  EXPECT_EQ(std::vector<uint8_t>(100, 0xff), backend->sent[0]) << "nobody answers";
}

TEST_F(E1000Test, IsSavedInTheMiddleOfAPacket) {
  Start();
  const auto frame = Frame(100);
  Fill(kSendData, frame);
  Queue(kSendData, 40);
  Ring();
  const auto saved = bus::Save(*card);
  card->Reset();
  ASSERT_TRUE(bus::Load(*card, saved));
  EXPECT_EQ(saved, bus::Save(*card));
  Queue(kSendData + 40, 60 | uint64_t{kEndOfPacket} << 24);
  Ring();
  ASSERT_EQ(1u, backend->sent.size());
  EXPECT_EQ(frame, backend->sent[0]);
}

struct Subject final : bus::ConformanceSubject {
  Subject() : bench(&scheduler()) {}
  bus::Device& device() override { return *bench.card; }
  std::vector<bus::ConformanceBlock> blocks() override { return {{&bench.card->registers_io(), kEnd, 8}}; }
  void Stimulate(uint64_t random) override {
    bench.Enable();
    if ((random & 1) != 0) bench.Start();
    bench.backend->Offer(Frame(60 + random % 1400));
    bench.backend->waiting.clear();
    bench.backend->sent.clear();
  }
  E1000Bench bench;
};

TEST(Conformance, E1000) {
  bus::RunConformance([] { return std::make_unique<Subject>(); });
}

// A hostile driver with a seed; longer runs: base/fuzz_testing.h. Asserted: no crash, no sanitizer report, what it
// brought about can be saved and loaded, and the card works after a reset.
TEST(E1000Fuzz, RandomDriver) {
  std::mt19937_64 random(FuzzSeed(20261122));
  const auto below = [&](uint64_t end) { return random() % end; };
  const auto address = [&]() -> uint64_t {
    switch (below(8)) {
      case 0:
        return random() >> below(64);
      case 1:
        return E1000Bench::kMemory - below(64);
      default:
        return 0x10'0000 + below(0x20'0000);
    }
  };
  static constexpr unsigned kRegisters[] = {kCtrl,  kEecd, kEerd,  kMdic,  kIcr,   kItr, kIcs,   kIms,   kImc,
                                            kRctl,  kTctl, kRdbal, kRdbah, kRdlen, kRdh, kRdt,   kTdbal, kTdbah,
                                            kTdlen, kTdh,  kTdt,   kVet,   kVfta,  kMta, kRxcsum};
  E1000Bench bench;
  bench.Start();
  for (FuzzRun run(30'000); run.Next();) {
    switch (below(8)) {
      case 0:
        bench.Set(kRegisters[below(std::size(kRegisters))], static_cast<uint32_t>(random() >> below(64)));
        break;
      case 1:
        bench.memory_bus.Write(E1000Bench::kBase + below(E1000::kRegistersSize), 1u << below(4), random());
        bench.memory_bus.Read(E1000Bench::kBase + below(E1000::kRegistersSize), 1u << below(4));
        break;
      case 2:
      case 3: {  // a packet of some descriptors, most of them sensible
        for (uint64_t count = 1 + below(5); count > 0; --count) {
          uint64_t high = random();
          if (below(4) != 0) high &= ~uint64_t{0xff0f0000} << 8 | 0xffff;
          if (below(3) == 0) high |= uint64_t{kEndOfPacket | kReportStatus} << 24;
          if (below(2) == 0) high &= ~uint64_t{0xf0000};
          bench.Queue(below(3) == 0 ? random() : address(), high);
        }
        bench.Ring();
        break;
      }
      case 4: {
        auto frame = Frame(14 + below(below(8) == 0 ? 20000 : 1600));
        for (uint64_t count = below(20); count > 0; --count)
          frame[below(frame.size())] = static_cast<uint8_t>(random());
        bench.backend->Offer(std::move(frame));
        break;
      }
      case 5:
        bench.ports.Write(E1000Bench::kIo + 4 * below(2), 4, random() >> below(64));
        bench.scheduler.Advance(static_cast<int64_t>(below(100'000)));
        break;
      case 6:
        bench.memory->WriteValue(GuestPhys(E1000Bench::kReceiveRing + 16 * below(E1000Bench::kRing)), address());
        bench.Set(kRdt, static_cast<uint32_t>(below(E1000Bench::kRing)));
        break;
      default:
        if (below(64) == 0)
          bench.card->ConfigWrite(static_cast<unsigned>(below(256)), 4, static_cast<uint32_t>(random()));
        if (below(16) == 0) {
          const auto saved = bus::Save(*bench.card);
          ASSERT_TRUE(bus::Load(*bench.card, saved));
          ASSERT_EQ(saved, bus::Save(*bench.card));
        }
        if (below(4) == 0) bench.Enable();
        if (below(16) == 0) bench.Start(static_cast<uint32_t>(random()));
    }
    bench.backend->sent.clear();
    bench.backend->waiting.clear();
  }
  bench.card->Reset();
  bench.Enable();
  bench.Start();
  EXPECT_TRUE(bench.backend->Offer(Frame(100)));
  EXPECT_EQ(Frame(100), bench.Take().data);
}

}  // namespace
}  // namespace nacre::devices
