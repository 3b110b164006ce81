#pragma once
// virtio-vsock (virtio 1.2, 5.10): stream sockets between programs of the guest and of the host, by port numbers and
// with credit. What the host's ports lead to is VsockHost's business. Under the device lock.

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "devices/virtio/virtio_device.h"

namespace nacre::devices {

/// The host's end of one connection. Nothing here blocks. Destroying it closes it.
class VsockStream {
 public:
  static constexpr int64_t kNotNow = -1, kBroken = -2;
  virtual ~VsockStream() = default;
  /// Bytes, 0 at the end, or one of the above.
  virtual int64_t Read(std::span<uint8_t> to) = 0;
  /// Bytes taken, or one of the above.
  virtual int64_t Write(std::span<const uint8_t> from) = 0;
  virtual void EndWrites() = 0;
  /// `ready` is called, from the event loop, when it can be read or written as is wanted, or is broken.
  virtual void SetReady(std::function<void()> ready) = 0;
  virtual void Want(bool read, bool write) = 0;
  /// The guest has accepted a connection that the host asked for; `host_port` is its number on this side.
  virtual void Accepted(uint32_t host_port) = 0;
};

/// The device's side, for who listens on the host.
class VsockGuest {
 public:
  virtual ~VsockGuest() = default;
  /// A program of the host wants the guest's `port`. False: no driver, or too many connections.
  virtual bool ConnectToGuest(uint32_t port, std::unique_ptr<VsockStream> stream) = 0;
};

class VsockHost {
 public:
  virtual ~VsockHost() = default;
  /// The guest wants the host's `port`; null: nobody is there.
  virtual std::unique_ptr<VsockStream> Connect(uint32_t port) = 0;
  /// Null: the device goes.
  virtual void SetGuest(VsockGuest* guest) = 0;
};

class VirtioVsock final : public VirtioDevice, public VsockGuest {
 public:
  static constexpr uint64_t kHostCid = 2, kFirstCid = 3, kLastCid = 0xfffffffe;
  static constexpr size_t kMaxConnections = 512;
  /// What the guest may send on one connection before it is written on: the most that waits here.
  static constexpr uint32_t kBuffer = 64 * 1024;

  /// `host` must outlive it.
  static Result<std::unique_ptr<VirtioVsock>> Create(uint64_t cid, VsockHost& host, memory::GuestMemory& memory,
                                                     Scheduler& scheduler);
  ~VirtioVsock() override;

  std::span<const uint8_t> config() const override { return config_; }
  bool ConnectToGuest(uint32_t port, std::unique_ptr<VsockStream> stream) override;
  size_t connections() const { return connections_.size(); }

 private:
  /// 5.10.6: struct virtio_vsock_hdr.
  struct Header {
    uint64_t source_cid = 0, target_cid = 0;
    uint32_t source_port = 0, target_port = 0, length = 0;
    uint16_t type = 0, op = 0;
    uint32_t flags = 0, buffer = 0, forwarded = 0;
  };
  struct Key {
    uint32_t host_port, guest_port;
    auto operator<=>(const Key&) const = default;
  };
  struct Connection {
    std::unique_ptr<VsockStream> stream;
    bool open = false;            ///< false: the guest has not answered yet
    bool host_ended = false;      ///< it was told that no more comes from here
    bool told = false;            ///< something to be read may be there
    uint32_t guest_shutdown = 0;  ///< flags: the guest will not receive, will not send
    bool writes_ended = false;
    uint32_t guest_buffer = 0, guest_forwarded = 0, sent = 0;  ///< towards the guest
    uint32_t received = 0, forwarded = 0, told_forwarded = 0;  ///< from the guest; counters wrap
    std::vector<uint8_t> waiting;                              ///< from the guest, for the stream
  };
  using Place = std::map<Key, Connection>::iterator;

  VirtioVsock(uint64_t cid, VsockHost& host, memory::GuestMemory& memory, Scheduler& scheduler);
  void OnQueue(unsigned index) override;
  void OnReset() override;
  void SerializeState(state::Archive& archive) override;
  void OnLoaded() override;

  void TakePacket(const Chain& chain);
  void Handle(const Header& header, const Chain& chain);
  void HandleRequest(const Key& key, const Header& header);
  void HandleData(Place place, const Header& header, const Chain& chain);
  void HandleShutdown(Place place, uint32_t flags);
  /// Writes what waits; the connection may be gone afterwards.
  bool FlushToHost(Place place);
  void Ready(const Key& key);
  void Refuse(const Header& header);
  void Say(const Key& key, uint16_t op, uint32_t flags = 0);
  void Drop(Place place, bool say);
  bool SendOutbox(bool& moved);
  void Deliver();
  bool DeliverData(Place place);
  void SendEvent();
  static void Store(const Header& header, std::span<uint8_t> bytes);

  const uint64_t cid_;
  VsockHost& host_;
  std::array<uint8_t, 8> config_{};
  std::map<Key, Connection> connections_;
  std::vector<Header> outbox_;  ///< packets without data, in their order
  uint32_t next_port_ = 0;
  bool event_waits_ = false;  ///< TRANSPORT_RESET is to be told
  Chain chain_;
};

}  // namespace nacre::devices
