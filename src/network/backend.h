#pragma once
// Between a network card (virtio-net) and what it is plugged into (user_net.h; later a switch, a tap):
// Ethernet frames without FCS, both ways, one at a time, in batches.
//
// Threads: all under the device lock (bus/device.h).

#include <cstdint>
#include <span>

namespace nacre::network {

/// The card's side.
class FrameReceiver {
 public:
  virtual ~FrameReceiver() = default;
  /// Takes (copies) a frame or drops it for good: true. False: no room now; offer it again after
  /// ReceiveReady.
  virtual bool Receive(std::span<const uint8_t> frame) = 0;
  /// The last Receive of a batch was made: the guest may be interrupted.
  virtual void ReceiveDone() = 0;
  /// The back end's link_up() changed.
  virtual void LinkChanged() = 0;
};

/// The network's side. Receive may be called from inside Send.
class NetBackend {
 public:
  virtual ~NetBackend() = default;
  /// One receiver at most; null takes it away. Without one, frames are dropped.
  virtual void Attach(FrameReceiver* receiver) = 0;
  /// Takes (copies) a frame from the guest; what cannot be sent is dropped, as on a wire.
  virtual void Send(std::span<const uint8_t> frame) = 0;
  /// The last Send of a batch was made.
  virtual void SendDone() = 0;
  /// The receiver, which had no room, has some again.
  virtual void ReceiveReady() = 0;
  virtual bool link_up() const = 0;
  /// The largest payload of a frame (without the Ethernet header) that makes sense here.
  virtual uint16_t mtu() const = 0;
};

}  // namespace nacre::network
