#pragma once
// Network without privileges: a NAT in this process (libslirp). The guest sees 10.0.2.0/24 with a gateway
// (10.0.2.2, which is also the host's loopback), a DNS forwarder (10.0.2.3) and a DHCP server that
// gives 10.0.2.15; its TCP, UDP and ping become sockets of this process. Forwards open host ports that lead
// into the guest.
//
// Threads: under the device lock; driven by the event loop. Not in snapshots: connections of a saved guest
// are reset by the new NAT when the guest speaks on them.

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/event_loop.h"
#include "base/fd.h"
#include "base/result.h"
#include "network/backend.h"

struct Slirp;

namespace nacre::network {

/// A host port that leads into the guest. Addresses are dotted IPv4.
struct PortForward {
  bool udp = false;
  std::string host_address = "127.0.0.1";
  uint16_t host_port = 0;
  std::string guest_address = {};  ///< empty: the address that DHCP gives
  uint16_t guest_port = 0;
};

/// Reads "tcp:127.0.0.1:2222-:22", "udp::5353-10.0.2.15:53": protocol, host address (default 127.0.0.1) and
/// port, guest address (default: the guest's) and port.
Result<PortForward> ParsePortForward(std::string_view text);

struct UserNetOptions {
  std::string network = "10.0.2.0/24";
  std::string hostname = {};  ///< offered by DHCP
  std::string domain = {};    ///< offered by DHCP
  bool restricted = false;    ///< the guest reaches nothing but forwards into it
  uint16_t mtu = 65520;       ///< frames this large cost one pass through the NAT instead of 45
  std::vector<PortForward> forwards = {};
};

class UserNet final : public NetBackend {
 public:
  /// Ignores SIGPIPE in this process if nobody handles it: libslirp writes to sockets that peers close.
  static Result<std::unique_ptr<UserNet>> Create(const UserNetOptions& options, EventLoop& loop);
  ~UserNet() override;
  UserNet(const UserNet&) = delete;
  UserNet& operator=(const UserNet&) = delete;

  void Attach(FrameReceiver* receiver) override;
  void Send(std::span<const uint8_t> frame) override;
  void SendDone() override;
  void ReceiveReady() override;
  bool link_up() const override { return true; }
  uint16_t mtu() const override { return mtu_; }

  Status AddForward(const PortForward& forward);
  /// Frames lost because the guest did not take them.
  uint64_t dropped_frames() const { return dropped_frames_; }

 private:
  struct Callbacks;
  /// What epoll knows of one descriptor, by its number.
  struct Polled {
    uint32_t registered = 0;  ///< events epoll watches; 0: not in epoll
    uint32_t wanted = 0;
    uint32_t ready = 0;
    uint64_t fill = 0;  ///< the last Fill that wanted it
  };

  explicit UserNet(EventLoop& loop) : loop_(loop) {}
  Status Open(const UserNetOptions& options);
  void Deliver(std::span<const uint8_t> frame);
  bool FlushQueue();
  void HandleEvents();
  void Fill();
  void UpdatePolled(int fd);
  void Forget(int fd);
  Polled& PolledFor(int fd);

  EventLoop& loop_;
  Slirp* slirp_ = nullptr;
  uint16_t mtu_ = 1500;
  FrameReceiver* receiver_ = nullptr;
  Fd epoll_;
  std::unique_ptr<FdWatch> watch_;
  std::unique_ptr<Timer> timer_;
  std::vector<Polled> polled_;
  std::vector<int> active_;
  std::vector<int> next_active_;
  uint64_t fill_ = 0;
  std::deque<std::vector<uint8_t>> queue_;  ///< frames the receiver has no room for
  uint64_t queue_bytes_ = 0;
  uint64_t dropped_frames_ = 0;
  bool delivered_ = false;  ///< since the last ReceiveDone
};

}  // namespace nacre::network
