#pragma once
// The device's side of one virtqueue, split or packed (virtio 1.2, 2.7 and 2.8), with indirect descriptors
// and event suppression. The transport configures it from registers; the device pops chains and pushes them
// back used. All under the device lock; the driver's CPUs change the rings meanwhile, so every ring field is
// read once, then checked. Whatever breaks the rules of the rings makes the queue broken: it yields nothing
// more until reset, and the owner is told so that it sets DEVICE_NEEDS_RESET (2.1.2).

#include <cstdint>
#include <functional>

#include "devices/virtio/chain.h"
#include "memory/guest_memory.h"
#include "state/archive.h"

namespace nacre::devices {

/// What the driver chose for one queue, as the transport's registers hold it.
struct QueueSetup {
  uint16_t size = 0;
  uint64_t descriptors = 0;  ///< descriptor table, or packed descriptor ring
  uint64_t driver_area = 0;  ///< available ring, or driver event suppression
  uint64_t device_area = 0;  ///< used ring, or device event suppression
};

/// Features that change how rings work.
struct RingFeatures {
  bool packed = false;
  bool event_index = false;
  bool indirect = false;
};

class VirtQueue {
 public:
  /// The most descriptors in one chain, direct and indirect together: what a hostile chain may cost us.
  static constexpr unsigned kMaxChainDescriptors = 1024;

  /// `max_size`: a power of two up to 32768. `on_broken(reason)` runs once when the driver breaks the ring's
  /// rules.
  VirtQueue(memory::GuestMemory& memory, uint16_t max_size, std::function<void(const char*)> on_broken);

  // -- for the transport
  uint16_t max_size() const { return max_size_; }
  QueueSetup& setup() { return setup_; }
  const QueueSetup& setup() const { return setup_; }
  bool enabled() const { return enabled_; }
  bool broken() const { return broken_; }
  /// Starts from empty rings. False (and the queue is broken) when size or addresses are not what 2.7 and 2.8
  /// allow.
  bool Enable(RingFeatures features);
  void Reset();
  void Serialize(state::Archive& archive);

  // -- for the device
  /// Takes the next available chain; false when there is none or the queue is broken or disabled.
  bool Pop(Chain& chain);
  /// Takes back the latest Pop (chains in reverse order of their Pops): the driver's buffers are available
  /// again.
  void PutBack(const Chain& chain);
  /// True when Pop would find something (or find the queue broken).
  bool HasAvailable() const;
  /// Gives a chain back; the first `written_bytes` of its device-writable part were written.
  void Push(const Chain& chain, uint32_t written_bytes) {
    Stage(chain, written_bytes);
    Publish();
  }
  /// As Push, but the driver sees all staged chains at once at Publish (5.1.6.4.2: merged receive buffers).
  void Stage(const Chain& chain, uint32_t written_bytes);
  void Publish();
  /// True when the driver wants an interrupt for what was published since the last call
  /// (2.7.7, 2.7.10, 2.8.10).
  bool TakeInterrupt();
  /// Asks the driver for a notification at its next buffer. True when buffers came meanwhile: look again.
  bool EnableNotification();
  void DisableNotification();
  /// Chains popped and not yet given back.
  unsigned in_flight() const { return in_flight_; }
  /// For devices: the driver broke a rule of the device's own protocol.
  void Break(const char* reason);

 private:
  struct Descriptor {
    uint64_t address;
    uint32_t size_bytes;
    uint16_t flags;
    uint16_t next_or_id;  ///< split: next; packed: buffer id
  };
  struct Walk;

  bool MapRings();
  bool PopSplit(Chain& chain);
  bool PopPacked(Chain& chain);
  bool AddBuffer(const Descriptor& descriptor, Walk& walk, Chain& chain);
  bool AddIndirect(const Descriptor& table, Walk& walk, Chain& chain);
  Descriptor LoadSplit(const uint8_t* table, uint32_t index) const;
  void MarkRing(uint64_t address, uint64_t size_bytes) { memory_.MarkWritten(GuestPhys(address), size_bytes); }

  memory::GuestMemory& memory_;
  const uint16_t max_size_;
  std::function<void(const char*)> on_broken_;

  QueueSetup setup_;
  RingFeatures features_;
  bool enabled_ = false;
  bool broken_ = false;
  uint8_t* descriptors_ = nullptr;
  uint8_t* driver_area_ = nullptr;
  uint8_t* device_area_ = nullptr;

  // Split: free-running indices. Packed: positions in the ring, with a wrap counter.
  uint16_t next_available_ = 0;
  uint16_t next_used_ = 0;
  bool available_wrap_ = true;
  bool used_wrap_ = true;
  uint32_t unsignalled_ = 0;  ///< ring entries published since the last TakeInterrupt
  unsigned in_flight_ = 0;

  // Staged and not yet published. Packed: the first staged descriptor's flags, written last.
  uint16_t staged_ = 0;
  uint16_t staged_start_ = 0;
  uint16_t staged_flags_ = 0;
  uint32_t staged_entries_ = 0;
};

}  // namespace nacre::devices
