#include "devices/virtio/vsock.h"

#include <gtest/gtest.h>

#include <deque>
#include <random>

#include "base/fuzz_testing.h"
#include "devices/virtio/virtio_testing.h"

namespace nacre::devices {
namespace {

constexpr uint64_t kData = 0x40'0000;
constexpr uint16_t kRequest = 1, kResponse = 2, kReset = 3, kShutdown = 4, kRw = 5, kCreditUpdate = 6,
                   kCreditRequest = 7;

/// What a program of the host does with its end.
struct TestPeer {
  std::string input, output;  ///< for the guest, of the guest
  size_t room = 1 << 20;      ///< Write takes so much
  bool ended = false, writes_ended = false, closed = false, broken = false, want_read = false, want_write = false;
  std::optional<uint32_t> accepted;
  std::function<void()> ready;
};

class TestStream final : public VsockStream {
 public:
  explicit TestStream(std::shared_ptr<TestPeer> peer) : peer_(std::move(peer)) {}
  ~TestStream() override { peer_->closed = true; }
  int64_t Read(std::span<uint8_t> to) override {
    if (peer_->broken) return kBroken;
    if (peer_->input.empty()) return peer_->ended ? 0 : kNotNow;
    const size_t size = std::min(to.size(), peer_->input.size());
    std::copy_n(peer_->input.begin(), size, to.begin());
    peer_->input.erase(0, size);
    return static_cast<int64_t>(size);
  }
  int64_t Write(std::span<const uint8_t> from) override {
    if (peer_->broken) return kBroken;
    const size_t size = std::min(from.size(), peer_->room);
    if (size == 0) return kNotNow;
    peer_->room -= size;
    peer_->output.append(from.begin(), from.begin() + static_cast<ptrdiff_t>(size));
    return static_cast<int64_t>(size);
  }
  void EndWrites() override { peer_->writes_ended = true; }
  void SetReady(std::function<void()> ready) override { peer_->ready = std::move(ready); }
  void Want(bool read, bool write) override {
    peer_->want_read = read;
    peer_->want_write = write;
  }
  void Accepted(uint32_t host_port) override { peer_->accepted = host_port; }

 private:
  std::shared_ptr<TestPeer> peer_;
};

class TestHost final : public VsockHost {
 public:
  std::unique_ptr<VsockStream> Connect(uint32_t port) override {
    if (port == 9) return nullptr;
    peers.push_back(std::make_shared<TestPeer>());
    return std::make_unique<TestStream>(peers.back());
  }
  void SetGuest(VsockGuest* to) override { guest = to; }
  std::vector<std::shared_ptr<TestPeer>> peers;
  VsockGuest* guest = nullptr;
};

struct Packet {
  uint64_t source_cid = 3, target_cid = 2;
  uint32_t source_port = 0, target_port = 0, length = 0;
  uint16_t type = 1, op = 0;
  uint32_t flags = 0, buffer = 4096, forwarded = 0;
  std::string data = {};
};

class VsockBench : public VirtioBench {
 public:
  VsockBench() {
    auto created = VirtioVsock::Create(3, host, memory, scheduler);
    EXPECT_TRUE(created.has_value());
    device = created->get();
    Plug(std::move(*created));
  }
  ~VsockBench() { pci.reset(); }
  void Begin(bool packed) {
    Start(0, packed);
    for (int i = 0; i < 16; ++i) Offer();
  }
  void Offer(uint32_t size = 4096) {
    const uint64_t at = kData + 0x10'0000 + 0x2000ull * (offered_++ % 32);
    places_[ring(0).Add({{at, size, true}})] = at;
  }
  void Send(const Packet& packet) {
    uint8_t bytes[44];
    StoreLe(&bytes[0], packet.source_cid);
    StoreLe(&bytes[8], packet.target_cid);
    StoreLe(&bytes[16], packet.source_port);
    StoreLe(&bytes[20], packet.target_port);
    StoreLe(&bytes[24], packet.length != 0 ? packet.length : static_cast<uint32_t>(packet.data.size()));
    StoreLe(&bytes[28], packet.type);
    StoreLe(&bytes[30], packet.op);
    StoreLe(&bytes[32], packet.flags);
    StoreLe(&bytes[36], packet.buffer);
    StoreLe(&bytes[40], packet.forwarded);
    Fill(kData, bytes);
    Fill(kData + 44, {reinterpret_cast<const uint8_t*>(packet.data.data()), packet.data.size()});
    ring(1).Add({{kData, static_cast<uint32_t>(44 + packet.data.size())}});
    Kick(1);
    EXPECT_TRUE(ring(1).GetUsed());
  }
  /// What the device sent, with a new buffer in its place.
  std::optional<Packet> Receive() {
    const auto used = ring(0).GetUsed();
    if (!used) return std::nullopt;
    const auto bytes = Get(places_[static_cast<uint16_t>(used->id)], used->written);
    Offer();
    Kick(0);
    if (bytes.size() < 44) return Packet{};
    Packet packet{.source_cid = LoadLe<uint64_t>(&bytes[0]),
                  .target_cid = LoadLe<uint64_t>(&bytes[8]),
                  .source_port = LoadLe<uint32_t>(&bytes[16]),
                  .target_port = LoadLe<uint32_t>(&bytes[20]),
                  .length = LoadLe<uint32_t>(&bytes[24]),
                  .type = LoadLe<uint16_t>(&bytes[28]),
                  .op = LoadLe<uint16_t>(&bytes[30]),
                  .flags = LoadLe<uint32_t>(&bytes[32]),
                  .buffer = LoadLe<uint32_t>(&bytes[36]),
                  .forwarded = LoadLe<uint32_t>(&bytes[40])};
    packet.data.assign(bytes.begin() + 44, bytes.end());
    return packet;
  }
  uint16_t Op() {
    const auto packet = Receive();
    return packet ? packet->op : uint16_t{0};
  }
  /// A connection of the guest's port 1000 to the host's port 5.
  TestPeer& Connected(uint32_t buffer = 4096) {
    Send({.source_port = 1000, .target_port = 5, .op = kRequest, .buffer = buffer});
    EXPECT_EQ(Op(), kResponse);
    return *host.peers.back();
  }
  Packet ToHost(uint16_t op) const { return {.source_port = 1000, .target_port = 5, .op = op}; }

  TestHost host;
  VirtioVsock* device = nullptr;

 private:
  unsigned offered_ = 0;
  std::map<uint16_t, uint64_t> places_;
};

class VirtioVsockTest : public testing::TestWithParam<bool>, public VsockBench {
 protected:
  VirtioVsockTest() { Begin(GetParam()); }
};
INSTANTIATE_TEST_SUITE_P(Rings, VirtioVsockTest, testing::Bool(),
                         [](const auto& kind) { return std::string(kind.param ? "Packed" : "Split"); });

TEST_P(VirtioVsockTest, TheGuestConnectsAndBothSpeak) {
  EXPECT_EQ(3u, Config(0, 8));
  TestPeer& peer = Connected();
  Packet hello = ToHost(kRw);
  hello.data = "hello";
  Send(hello);
  EXPECT_EQ(peer.output, "hello");
  EXPECT_TRUE(peer.want_read);
  peer.input = "world";
  peer.ready();
  const auto packet = Receive();
  ASSERT_TRUE(packet);
  EXPECT_EQ(packet->data, "world");
  EXPECT_EQ(packet->forwarded, 5u);
  EXPECT_EQ(packet->buffer, VirtioVsock::kBuffer);
  EXPECT_EQ((std::pair{packet->source_port, packet->target_port}), (std::pair{5u, 1000u}));
  EXPECT_EQ((std::pair{packet->source_cid, packet->target_cid}), (std::pair<uint64_t, uint64_t>{2, 3}));
}

TEST_P(VirtioVsockTest, TheHostConnects) {
  auto peer = std::make_shared<TestPeer>();
  ASSERT_TRUE(device->ConnectToGuest(22, std::make_unique<TestStream>(peer)));
  const auto request = Receive();
  ASSERT_TRUE(request);
  EXPECT_EQ(request->op, kRequest);
  EXPECT_EQ(request->target_port, 22u);
  peer->input = "early";
  EXPECT_FALSE(peer->accepted);
  Send({.source_port = 22, .target_port = request->source_port, .op = kResponse});
  EXPECT_EQ(peer->accepted, request->source_port);
  EXPECT_EQ(Receive()->data, "early");
  auto refused = std::make_shared<TestPeer>();
  ASSERT_TRUE(device->ConnectToGuest(23, std::make_unique<TestStream>(refused)));
  Send({.source_port = 23, .target_port = Receive()->source_port, .op = kReset});
  EXPECT_TRUE(refused->closed);
  EXPECT_FALSE(peer->closed);
}

TEST_P(VirtioVsockTest, NobodyThere) {
  Send({.source_port = 1000, .target_port = 9, .op = kRequest});
  EXPECT_EQ(Op(), kReset);
  for (const uint16_t op : {kResponse, kShutdown, kRw, kCreditUpdate, kCreditRequest, uint16_t{77}}) {
    Send({.source_port = 1, .target_port = 2, .op = op});
    EXPECT_EQ(Op(), kReset);
  }
  Send({.source_port = 1, .target_port = 2, .op = kReset});
  EXPECT_FALSE(Receive());
  Send({.source_port = 1, .target_port = 5, .type = 2, .op = kRequest});
  EXPECT_EQ(Receive()->type, 2) << "Clause 5.10.6: an unknown type is reset";
}

TEST_P(VirtioVsockTest, Clause5_10_6_4_1_OtherSourcesAndTargetsAreDropped) {
  Send({.source_cid = 4, .source_port = 1, .target_port = 5, .op = kRequest});
  Send({.target_cid = 5, .source_port = 1, .target_port = 5, .op = kRequest});
  EXPECT_FALSE(Receive());
  EXPECT_TRUE(host.peers.empty());
}

TEST_P(VirtioVsockTest, Clause5_10_6_3_CreditTowardsTheGuestIsKept) {
  TestPeer& peer = Connected(100);
  peer.input = std::string(250, 'x');
  peer.ready();
  EXPECT_EQ(Receive()->data.size(), 100u);
  EXPECT_FALSE(Receive());
  Packet update = ToHost(kCreditUpdate);
  update.buffer = 100;
  update.forwarded = 60;
  Send(update);
  EXPECT_EQ(Receive()->data.size(), 60u);
  update.forwarded = 160;
  update.buffer = 0;
  Send(update);
  EXPECT_FALSE(Receive());
  update.buffer = ~0u;
  Send(update);
  EXPECT_EQ(Receive()->data.size(), 90u);
}

TEST_P(VirtioVsockTest, Clause5_10_6_3_AGuestWithoutCreditIsReset) {
  TestPeer& peer = Connected();
  peer.room = 0;
  Packet data = ToHost(kRw);
  data.data = std::string(4000, 'x');
  for (uint32_t sent = 0; sent + 4000 <= VirtioVsock::kBuffer; sent += 4000) Send(data);
  EXPECT_FALSE(peer.closed);
  EXPECT_FALSE(Receive());
  Send(ToHost(kCreditRequest));
  const auto told = Receive();
  EXPECT_EQ((std::pair{told->op, told->forwarded}), (std::pair{kCreditUpdate, 0u}));
  Send(data);
  EXPECT_EQ(Op(), kReset);
  EXPECT_TRUE(peer.closed);
}

TEST_P(VirtioVsockTest, ASlowHostGetsAllAndCreditComesBack) {
  TestPeer& peer = Connected();
  peer.room = 1000;
  Packet data = ToHost(kRw);
  data.data = std::string(3000, 'x');
  for (int i = 0; i < 15; ++i) Send(data);
  EXPECT_EQ(peer.output.size(), 1000u);
  EXPECT_TRUE(peer.want_write);
  peer.room = 1 << 20;
  peer.ready();
  EXPECT_EQ(peer.output.size(), 45'000u);
  const auto told = Receive();
  EXPECT_EQ((std::pair{told->op, told->forwarded}), (std::pair{kCreditUpdate, 45'000u}));
}

TEST_P(VirtioVsockTest, BothWaysToEnd) {
  TestPeer& peer = Connected();
  peer.input = "last";
  peer.ended = true;
  peer.ready();
  EXPECT_EQ(Receive()->data, "last");
  scheduler.Advance(1);
  const auto ended = Receive();
  ASSERT_TRUE(ended);
  EXPECT_EQ((std::pair{ended->op, ended->flags}), (std::pair{kShutdown, 2u}));
  Packet shutdown = ToHost(kShutdown);
  shutdown.flags = 2;
  Send(shutdown);
  EXPECT_TRUE(peer.writes_ended);
  EXPECT_FALSE(peer.closed);
  Packet late = ToHost(kRw);
  late.data = "late";
  shutdown.flags = 1;
  Send(shutdown);
  EXPECT_EQ(Op(), kReset);
  EXPECT_TRUE(peer.closed);
  EXPECT_EQ(device->connections(), 0u);
  Send(late);
  EXPECT_EQ(Op(), kReset);
}

TEST_P(VirtioVsockTest, ABrokenHostResets) {
  TestPeer& peer = Connected();
  peer.broken = true;
  peer.ready();
  EXPECT_EQ(Op(), kReset);
  EXPECT_EQ(device->connections(), 0u);
}

TEST_P(VirtioVsockTest, ConnectionsAreBounded) {
  for (uint32_t port = 0; port < VirtioVsock::kMaxConnections; ++port) {
    Send({.source_port = port, .target_port = 5, .op = kRequest});
    EXPECT_EQ(Op(), kResponse);
  }
  Send({.source_port = 9999, .target_port = 5, .op = kRequest});
  EXPECT_EQ(Op(), kReset);
  EXPECT_FALSE(device->ConnectToGuest(1, std::make_unique<TestStream>(std::make_shared<TestPeer>())));
  Send({.source_port = 7, .target_port = 5, .op = kRequest});
  EXPECT_EQ(Op(), kReset) << "the same again";
  EXPECT_EQ(device->connections(), VirtioVsock::kMaxConnections - 1);
  SetCommon(20, 1, 0);
  EXPECT_EQ(device->connections(), 0u);
  for (const auto& peer : host.peers) EXPECT_TRUE(peer->closed);
}

TEST_P(VirtioVsockTest, ALoadedGuestLearnsThatItsConnectionsAreGone) {
  Connected();
  VsockBench other;
  CopyStateTo(other);
  EXPECT_EQ(other.device->connections(), 0u);
  EXPECT_EQ(device->connections(), 1u);
  other.ring(2).Add({{kData, 8, true}});
  other.Kick(2);
  EXPECT_EQ(other.ring(2).Used().written, 4u);
  EXPECT_EQ(other.Get(kData, 4), std::vector<uint8_t>(4)) << "VIRTIO_VSOCK_EVENT_TRANSPORT_RESET";
  other.ring(2).Add({{kData, 8, true}});
  other.Kick(2);
  EXPECT_FALSE(other.ring(2).GetUsed());
}

TEST_P(VirtioVsockTest, BuffersTooSmall) {
  SetCommon(20, 1, 0);
  Start(0, GetParam());
  for (const uint32_t size : {1u, 43u, 44u, 45u, 100u}) Offer(size);
  Send({.source_port = 1000, .target_port = 5, .op = kRequest});
  TestPeer& peer = *host.peers.back();
  peer.input = "abc";
  peer.ready();
  while (const auto used = ring(0).GetUsed()) EXPECT_LE(used->written, 100u);
  EXPECT_EQ(15, Status());
}

TEST(VirtioVsock, CidsThatCannotBe) {
  VsockBench bench;
  for (const uint64_t cid : {uint64_t{0}, uint64_t{1}, uint64_t{2}, uint64_t{0xffffffff}, ~uint64_t{0}})
    EXPECT_FALSE(VirtioVsock::Create(cid, bench.host, bench.memory, bench.scheduler));
}

// A hostile driver and a host that does anything. Asserted: no crash, bounded connections, and something arrives.
TEST(VirtioVsockFuzz, AnyPackets) {
  std::mt19937_64 random(FuzzSeed(20261122));
  const auto below = [&](uint64_t limit) { return static_cast<uint32_t>(random() % limit); };
  VsockBench bench;
  bench.Begin(false);
  size_t delivered = 0;
  for (FuzzRun run(20'000); run.Next();) {
    Packet packet{.source_cid = below(32) ? 3 : random(),
                  .target_cid = below(32) ? 2 : random(),
                  .source_port = below(4),
                  .target_port = below(8) ? 5 + below(2) : below(10),
                  .type = static_cast<uint16_t>(below(32) ? 1 : random()),
                  .op = static_cast<uint16_t>(below(16) ? below(8) : random()),
                  .flags = below(4),
                  .buffer = below(8) ? below(10'000) : static_cast<uint32_t>(random()),
                  .forwarded = below(8) ? 0 : static_cast<uint32_t>(random())};
    if (below(3) == 0) packet.op = kRw;
    if (packet.op == kRw) packet.data = std::string(below(3000), 'd');
    if (below(16) == 0) packet.length = static_cast<uint32_t>(random() >> below(64));
    bench.Send(packet);
    if (!bench.host.peers.empty()) {
      const auto peer = bench.host.peers[below(bench.host.peers.size())];
      peer->room = below(5000);
      if (below(4) == 0) peer->input += std::string(below(5000), 'h');
      if (below(64) == 0) peer->ended = true;
      if (below(128) == 0) peer->broken = true;
      if (peer->ready && !peer->closed) {
        const auto ready = peer->ready;
        ready();
      }
      std::erase_if(bench.host.peers, [](const auto& one) { return one->closed; });
    }
    if (below(8) == 0) {
      auto peer = std::make_shared<TestPeer>();
      if (bench.device->ConnectToGuest(below(4), std::make_unique<TestStream>(peer))) bench.host.peers.push_back(peer);
    }
    for (uint32_t i = below(6); i != 0; --i) {
      const auto received = bench.Receive();
      if (received) delivered += received->data.size();
    }
    bench.scheduler.Advance(1);
    ASSERT_LE(bench.device->connections(), VirtioVsock::kMaxConnections);
    if (below(2000) == 0 || bench.Status() != 15) {
      bench.SetCommon(20, 1, 0);
      ASSERT_EQ(bench.device->connections(), 0u);
      bench.host.peers.clear();
      bench.Begin(below(2) != 0);
    }
  }
  EXPECT_GT(delivered, 0u);
}

}  // namespace
}  // namespace nacre::devices
