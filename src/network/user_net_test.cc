// A fake guest that speaks raw Ethernet through the NAT to real sockets on the host's loopback.

#include "network/user_net.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <functional>
#include <mutex>
#include <numeric>

#include "base/bits.h"

namespace nacre::network {
namespace {

using Bytes = std::vector<uint8_t>;

constexpr uint32_t kGuest = 0x0a00020f, kHost = 0x0a000202;  // 10.0.2.15, 10.0.2.2
const Bytes kGuestMac = {0x52, 0x54, 0, 0x12, 0x34, 0x56};
const Bytes kBroadcast(6, 0xff);

void Put16(Bytes& to, uint32_t value) {
  to.push_back(static_cast<uint8_t>(value >> 8));
  to.push_back(static_cast<uint8_t>(value));
}
void Put32(Bytes& to, uint32_t value) {
  Put16(to, value >> 16);
  Put16(to, value & 0xffff);
}
void Put(Bytes& to, std::span<const uint8_t> from) { to.insert(to.end(), from.begin(), from.end()); }
uint32_t Get16(std::span<const uint8_t> from, size_t at) { return uint32_t{from[at]} << 8 | from[at + 1]; }
uint32_t Get32(std::span<const uint8_t> from, size_t at) { return Get16(from, at) << 16 | Get16(from, at + 2); }

uint16_t Checksum(std::span<const uint8_t> data, uint32_t sum = 0) {
  for (size_t i = 0; i < data.size(); ++i) sum += i % 2 ? data[i] : uint32_t{data[i]} << 8;
  while (sum >> 16) sum = (sum & 0xffff) + (sum >> 16);
  return static_cast<uint16_t>(~sum);
}

Bytes Ip(uint8_t protocol, uint32_t from, uint32_t to, const Bytes& payload) {
  Bytes ip = {0x45, 0};
  Put16(ip, static_cast<uint32_t>(20 + payload.size()));
  Put32(ip, 0x12340000);
  ip.insert(ip.end(), {64, protocol, 0, 0});
  Put32(ip, from);
  Put32(ip, to);
  const uint16_t sum = Checksum(ip);
  ip[10] = static_cast<uint8_t>(sum >> 8);
  ip[11] = static_cast<uint8_t>(sum);
  Put(ip, payload);
  return ip;
}

/// Fills in the checksum of a TCP or UDP segment at `at`.
void SealSegment(Bytes& segment, uint8_t protocol, uint32_t from, uint32_t to, size_t at) {
  const uint32_t pseudo =
      (from >> 16) + (from & 0xffff) + (to >> 16) + (to & 0xffff) + protocol + static_cast<uint32_t>(segment.size());
  const uint16_t sum = Checksum(segment, pseudo);
  segment[at] = static_cast<uint8_t>(sum >> 8);
  segment[at + 1] = static_cast<uint8_t>(sum);
}

Bytes Udp(uint16_t from_port, uint16_t to_port, const Bytes& payload) {
  Bytes udp;
  Put16(udp, from_port);
  Put16(udp, to_port);
  Put16(udp, static_cast<uint32_t>(8 + payload.size()));
  Put16(udp, 0);
  Put(udp, payload);
  return udp;
}

constexpr uint8_t kFin = 1, kSyn = 2, kAck = 16;

Bytes Tcp(uint16_t from_port, uint16_t to_port, uint32_t sequence, uint32_t acknowledge, uint8_t flags,
          const Bytes& payload, uint32_t to = kHost) {
  Bytes tcp;
  Put16(tcp, from_port);
  Put16(tcp, to_port);
  Put32(tcp, sequence);
  Put32(tcp, acknowledge);
  const bool syn = (flags & kSyn) != 0;
  tcp.push_back(syn ? 0x60 : 0x50);
  tcp.push_back(flags);
  Put16(tcp, 0xffff);
  Put32(tcp, 0);
  if (syn) Put32(tcp, 0x0204ffb4);  // MSS 65460
  Put(tcp, payload);
  SealSegment(tcp, 6, kGuest, to, 16);
  return tcp;
}

class FakeGuest : public FrameReceiver {
 public:
  bool Receive(std::span<const uint8_t> frame) override {
    if (room == 0) {
      ++refused;
      return false;
    }
    --room;
    done = false;
    frames.emplace_back(frame.begin(), frame.end());
    return true;
  }
  void ReceiveDone() override { done = true; }
  void LinkChanged() override {}
  std::vector<Bytes> frames;
  size_t room = ~size_t{0};
  unsigned refused = 0;
  bool done = true;
};

class UserNetTest : public testing::Test {
 protected:
  ~UserNetTest() override { net_.reset(); }

  void Start(const UserNetOptions& options = {}) {
    auto net = UserNet::Create(options, *loop_);
    ASSERT_TRUE(net.has_value()) << net.error().message;
    net_ = std::move(*net);
    net_->Attach(&guest_);
  }
  void Send(const Bytes& destination, uint16_t type, const Bytes& payload) {
    Bytes frame;
    Put(frame, destination);
    Put(frame, kGuestMac);
    Put16(frame, type);
    Put(frame, payload);
    net_->Send(frame);
    net_->SendDone();
  }
  void SendIp(const Bytes& ip) { Send(gateway_mac_, 0x0800, ip); }
  /// The next frame that `wanted` accepts; others are dropped. Empty after some seconds.
  Bytes Next(const std::function<bool(std::span<const uint8_t>)>& wanted) {
    for (int turn = 0; turn < 300; ++turn) {
      while (!guest_.frames.empty()) {
        Bytes frame = std::move(guest_.frames.front());
        guest_.frames.erase(guest_.frames.begin());
        if (frame.size() >= 34 && wanted(frame)) return frame;
      }
      loop_->RunOnce(50);
    }
    return {};
  }
  Bytes NextIp(uint8_t protocol) {
    return Next([protocol](auto frame) { return Get16(frame, 12) == 0x0800 && frame[23] == protocol; });
  }
  void Arp() {
    Bytes arp = {0, 1, 8, 0, 6, 4, 0, 1};
    Put(arp, kGuestMac);
    Put32(arp, kGuest);
    Put(arp, Bytes(6));
    Put32(arp, kHost);
    Send(kBroadcast, 0x0806, arp);
    const Bytes reply = Next([](auto frame) { return Get16(frame, 12) == 0x0806 && Get16(frame, 20) == 2; });
    ASSERT_GE(reply.size(), 42u);
    EXPECT_EQ(kHost, Get32(reply, 28));
    gateway_mac_.assign(reply.begin() + 22, reply.begin() + 28);
  }

  std::mutex lock_;
  std::unique_ptr<EventLoop> loop_ = std::move(*EventLoop::Create(lock_));
  FakeGuest guest_;
  std::unique_ptr<UserNet> net_;
  Bytes gateway_mac_;
};

/// A socket bound to a free port of the loopback.
struct HostSocket {
  explicit HostSocket(int type) : fd(socket(AF_INET, type | SOCK_CLOEXEC, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof(address);
    EXPECT_EQ(0, bind(fd.get(), reinterpret_cast<sockaddr*>(&address), length));
    EXPECT_EQ(0, getsockname(fd.get(), reinterpret_cast<sockaddr*>(&address), &length));
    port = ntohs(address.sin_port);
    if (type == SOCK_STREAM) {
      EXPECT_EQ(0, listen(fd.get(), 5));
    }
  }
  Fd fd;
  uint16_t port = 0;
};

TEST_F(UserNetTest, AnswersArpForTheGateway) {
  Start();
  Arp();
  EXPECT_EQ(6u, gateway_mac_.size());
  EXPECT_TRUE(guest_.done) << "a batch was not closed";
}

TEST_F(UserNetTest, GivesAnAddressByDhcp) {
  Start({.hostname = "nacre"});
  Bytes dhcp = {1, 1, 6, 0};
  Put32(dhcp, 0x11223344);
  dhcp.resize(28);
  Put(dhcp, kGuestMac);
  dhcp.resize(236);
  Put32(dhcp, 0x63825363);
  dhcp.insert(dhcp.end(), {53, 1, 1, 255});
  Send(kBroadcast, 0x0800, Ip(17, 0, 0xffffffff, Udp(68, 67, dhcp)));
  const Bytes offer = NextIp(17);
  ASSERT_GT(offer.size(), 282u);
  EXPECT_EQ(68u, Get16(offer, 36));
  EXPECT_EQ(0x11223344u, Get32(offer, 46));
  EXPECT_EQ(kGuest, Get32(offer, 58)) << "yiaddr";
  const std::string text(offer.begin(), offer.end());
  EXPECT_NE(std::string::npos, text.find("nacre"));
}

TEST_F(UserNetTest, TheGatewayAnswersPing) {
  Start();
  Arp();
  Bytes echo = {8, 0, 0, 0, 0, 7, 0, 1, 'n', 'a', 'c', 'r', 'e', '!'};
  const uint16_t sum = Checksum(echo);
  echo[2] = static_cast<uint8_t>(sum >> 8);
  echo[3] = static_cast<uint8_t>(sum);
  SendIp(Ip(1, kGuest, kHost, echo));
  const Bytes reply = NextIp(1);
  ASSERT_GE(reply.size(), 48u);
  EXPECT_EQ(0, reply[34]) << "echo reply";
  EXPECT_EQ(0, memcmp(&reply[42], "nacre!", 6));
}

TEST_F(UserNetTest, UdpReachesTheHostsLoopbackAndBack) {
  Start();
  Arp();
  HostSocket server(SOCK_DGRAM);
  SendIp(Ip(17, kGuest, kHost, Udp(4000, server.port, {'h', 'i'})));
  char buffer[16];
  sockaddr_in from{};
  socklen_t length = sizeof(from);
  ASSERT_EQ(2, recvfrom(server.fd.get(), buffer, sizeof(buffer), 0, reinterpret_cast<sockaddr*>(&from), &length));
  ASSERT_EQ(5, sendto(server.fd.get(), "there", 5, 0, reinterpret_cast<sockaddr*>(&from), length));
  const Bytes reply = NextIp(17);
  ASSERT_EQ(14u + 20 + 8 + 5, reply.size());
  EXPECT_EQ(kHost, Get32(reply, 26));
  EXPECT_EQ(4000u, Get16(reply, 36));
  EXPECT_EQ(0, memcmp(&reply[42], "there", 5));
}

TEST_F(UserNetTest, ATcpStreamSurvivesAReceiverThatIsOftenFull) {
  Start();
  Arp();
  HostSocket server(SOCK_STREAM);
  SendIp(Ip(6, kGuest, kHost, Tcp(5000, server.port, 1000, 0, kSyn, {})));
  const Bytes syn = NextIp(6);
  ASSERT_GE(syn.size(), 54u);
  ASSERT_EQ(kSyn | kAck, syn[47]);
  uint32_t expected = Get32(syn, 38) + 1;
  SendIp(Ip(6, kGuest, kHost, Tcp(5000, server.port, 1001, expected, kAck, {'G', 'O'})));

  Fd peer(accept4(server.fd.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  ASSERT_TRUE(peer.valid());
  for (int turn = 0; turn < 100; ++turn) loop_->RunOnce(0);
  char go[2];
  ASSERT_EQ(2, read(peer.get(), go, 2));
  Bytes sent(2 * kMiB);
  for (size_t i = 0; i < sent.size(); ++i) sent[i] = static_cast<uint8_t>(i * 31 + i / 4096);
  size_t written = 0;
  Bytes got;
  guest_.room = 0;
  for (int turn = 0; turn < 200'000 && got.size() < sent.size(); ++turn) {
    if (written < sent.size()) {
      const ssize_t n = write(peer.get(), sent.data() + written, sent.size() - written);
      if (n > 0) written += static_cast<size_t>(n);
    }
    loop_->RunOnce(guest_.room == 0 ? 0 : 5);
    if (guest_.room == 0) {  // now and then the guest has room for one frame
      guest_.room = 1;
      net_->ReceiveReady();
    }
    while (!guest_.frames.empty()) {
      const Bytes frame = std::move(guest_.frames.front());
      guest_.frames.erase(guest_.frames.begin());
      if (frame.size() < 54 || frame[23] != 6) continue;
      const size_t header = 34 + (frame[46] >> 4) * 4u;
      const size_t size = 14 + Get16(frame, 16) - header;
      if (Get32(frame, 38) == expected) {
        got.insert(got.end(), frame.begin() + static_cast<long>(header),
                   frame.begin() + static_cast<long>(header + size));
        expected += static_cast<uint32_t>(size);
      }
      SendIp(Ip(6, kGuest, kHost, Tcp(5000, server.port, 1003, expected, kAck, {})));
    }
  }
  EXPECT_TRUE(got == sent) << got.size() << " of " << sent.size();
  EXPECT_GT(guest_.refused, 0u);
  EXPECT_EQ(0u, net_->dropped_frames());
}

TEST_F(UserNetTest, AForwardLeadsAHostConnectionIntoTheGuest) {
  uint16_t port;
  {
    HostSocket probe(SOCK_STREAM);
    port = probe.port;
  }
  Start({.forwards = {{.host_port = port, .guest_port = 22}}});
  Arp();
  Fd client(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(port);
  ASSERT_EQ(0, connect(client.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)));
  // The NAT may ask for the guest's address first; the ARP above told it.
  const Bytes syn = NextIp(6);
  ASSERT_GE(syn.size(), 54u);
  EXPECT_EQ(kSyn, syn[47] & kSyn);
  EXPECT_EQ(kGuest, Get32(syn, 30));
  EXPECT_EQ(22u, Get16(syn, 36));
  const auto peer_port = static_cast<uint16_t>(Get16(syn, 34));
  const uint32_t peer = Get32(syn, 26);
  SendIp(Ip(6, kGuest, peer, Tcp(22, peer_port, 500, Get32(syn, 38) + 1, kSyn | kAck, {}, peer)));
  SendIp(Ip(6, kGuest, peer, Tcp(22, peer_port, 501, Get32(syn, 38) + 1, kAck, {'S', 'S', 'H'}, peer)));
  for (int turn = 0; turn < 20; ++turn) loop_->RunOnce(5);
  char banner[3];
  ASSERT_EQ(3, recv(client.get(), banner, 3, MSG_DONTWAIT));
  EXPECT_EQ(0, memcmp(banner, "SSH", 3));
}

TEST_F(UserNetTest, ATakenPortIsAClearError) {
  HostSocket taken(SOCK_STREAM);
  auto net = UserNet::Create({.forwards = {{.host_port = taken.port, .guest_port = 22}}}, *loop_);
  ASSERT_FALSE(net.has_value());
  EXPECT_NE(std::string::npos, net.error().message.find("another program listens there")) << net.error().message;
}

TEST_F(UserNetTest, ARestrictedGuestReachesNothing) {
  Start({.restricted = true});
  Arp();
  HostSocket server(SOCK_DGRAM);
  SendIp(Ip(17, kGuest, kHost, Udp(4000, server.port, {'h', 'i'})));
  char buffer[16];
  EXPECT_EQ(-1, recv(server.fd.get(), buffer, sizeof(buffer), MSG_DONTWAIT));
}

TEST_F(UserNetTest, GarbageFramesAreHarmless) {
  Start();
  Arp();
  uint32_t state = 12345;
  const auto next = [&] { return state = state * 1664525 + 1013904223; };
  for (int i = 0; i < 3000; ++i) {
    Bytes frame(next() % 300);
    for (uint8_t& byte : frame) byte = static_cast<uint8_t>(next() >> 24);
    if (frame.size() > 40 && (i & 1)) {
      frame[12] = 8;
      frame[13] = 0;
      frame[14] = 0x45;
      // Nothing but the gateway: random destinations would become connections to real hosts.
      for (size_t at = 0; at < 4; ++at) frame[30 + at] = static_cast<uint8_t>(kHost >> (24 - 8 * at));
    } else if (frame.size() > 14) {
      frame[12] = 8;
      frame[13] = 6;
    }
    net_->Send(frame);
  }
  net_->SendDone();
  Arp();
}

TEST(PortForward, Parses) {
  const auto full = ParsePortForward("tcp:127.0.0.1:2222-10.0.2.15:22");
  ASSERT_TRUE(full.has_value());
  EXPECT_FALSE(full->udp);
  EXPECT_EQ("127.0.0.1", full->host_address);
  EXPECT_EQ(2222, full->host_port);
  EXPECT_EQ("10.0.2.15", full->guest_address);
  EXPECT_EQ(22, full->guest_port);
  const auto brief = ParsePortForward("udp::53-:5353");
  ASSERT_TRUE(brief.has_value());
  EXPECT_TRUE(brief->udp);
  EXPECT_EQ("127.0.0.1", brief->host_address);
  for (const char* wrong : {"", "tcp", "tcp:2222-:22", "tcp::2222", "tcp::0-:22", "tcp::99999-:22", "icmp::1-:2",
                            "tcp:host:22-:22", "tcp::22x-:22"}) {
    const auto result = ParsePortForward(wrong);
    ASSERT_FALSE(result.has_value()) << wrong;
    EXPECT_NE(std::string::npos, result.error().message.find("as in tcp:127.0.0.1:2222-:22"));
  }
}

}  // namespace
}  // namespace nacre::network
