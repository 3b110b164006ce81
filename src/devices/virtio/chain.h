#pragma once
// One request that the driver made available: the buffers of a descriptor chain, already checked to be guest
// RAM and resolved to host addresses. Made by VirtQueue::Pop, used by the virtio devices under the device
// lock. The buffers' bytes stay shared with the guest, who may change them at any time: read each byte once.

#include <sys/uio.h>

#include <cstdint>
#include <span>
#include <vector>

#include "memory/guest_memory.h"

namespace nacre::devices {

/// One contiguous piece of guest RAM.
struct GuestBuffer {
  GuestPhys address;
  uint8_t* host = nullptr;
  uint32_t size_bytes = 0;
};

class Chain {
 public:
  std::span<const GuestBuffer> readable() const { return readable_; }
  std::span<const GuestBuffer> writable() const { return writable_; }
  uint64_t readable_bytes() const { return readable_bytes_; }
  uint64_t writable_bytes() const { return writable_bytes_; }

  /// Copies from the device-readable part, starting `offset` bytes into it. Returns the bytes copied.
  uint64_t Read(uint64_t offset, std::span<uint8_t> to) const;
  /// Copies into the device-writable part and marks the pages written. Returns the bytes copied.
  uint64_t Write(memory::GuestMemory& memory, uint64_t offset, std::span<const uint8_t> from) const;
  /// Appends host vectors of [offset, offset + size_bytes) of a part; the range must lie inside it.
  static void Slice(std::span<const GuestBuffer> part, uint64_t offset, uint64_t size_bytes, std::vector<iovec>& to);
  /// After a back end wrote through Slice's vectors.
  void MarkWritten(memory::GuestMemory& memory, uint64_t offset, uint64_t size_bytes) const;

  void Clear();
  void Add(const GuestBuffer& buffer, bool device_writes);
  /// Identity on the ring: the head index (split) or buffer id (packed), and the descriptors taken from the
  /// ring.
  uint16_t id = 0;
  uint16_t slots = 0;

 private:
  std::vector<GuestBuffer> readable_;
  std::vector<GuestBuffer> writable_;
  uint64_t readable_bytes_ = 0;
  uint64_t writable_bytes_ = 0;
};

}  // namespace nacre::devices
