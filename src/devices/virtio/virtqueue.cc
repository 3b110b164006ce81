#include "devices/virtio/virtqueue.h"

#include <atomic>
#include <bit>

#include "base/check.h"

namespace nacre::devices {
namespace {

constexpr uint16_t kNext = 1;        // VIRTQ_DESC_F_NEXT
constexpr uint16_t kWrite = 2;       // VIRTQ_DESC_F_WRITE
constexpr uint16_t kIndirect = 4;    // VIRTQ_DESC_F_INDIRECT
constexpr uint16_t kAvail = 1 << 7;  // 2.8.1
constexpr uint16_t kUsed = 1 << 15;
constexpr uint64_t kDescriptorSize = 16;

// Offsets within the available and used rings (2.7.6, 2.7.8) and the event suppression structures (2.8.14).
constexpr uint64_t kRingFlags = 0;
constexpr uint64_t kRingIndex = 2;
constexpr uint64_t kRingEntries = 4;
constexpr uint64_t kEventOffset = 0;
constexpr uint64_t kEventFlags = 2;
constexpr uint16_t kEventEnable = 0;
constexpr uint16_t kEventDisable = 1;
constexpr uint16_t kEventAtOffset = 2;

// Ring fields are naturally aligned: Enable checks the alignment of 2.7 and 2.8.
uint16_t LoadAcquire(uint8_t* at) {
  return std::atomic_ref<uint16_t>(*reinterpret_cast<uint16_t*>(at)).load(std::memory_order_acquire);
}
void StoreRelease(uint8_t* at, uint16_t value) {
  std::atomic_ref<uint16_t>(*reinterpret_cast<uint16_t*>(at)).store(value, std::memory_order_release);
}
void FullFence() { std::atomic_thread_fence(std::memory_order_seq_cst); }

/// 2.7.10: did the index pass `event` while it went from `old_index` to `new_index`?
bool PassedEvent(uint16_t event, uint16_t new_index, uint16_t old_index) {
  return static_cast<uint16_t>(new_index - event - 1) < static_cast<uint16_t>(new_index - old_index);
}

}  // namespace

/// How far one chain has been followed.
struct VirtQueue::Walk {
  unsigned descriptors = 0;
  bool writable_seen = false;
};

VirtQueue::VirtQueue(memory::GuestMemory& memory, uint16_t max_size, std::function<void(const char*)> on_broken)
    : memory_(memory), max_size_(max_size), on_broken_(std::move(on_broken)) {
  NACRE_CHECK(std::has_single_bit(max_size) && max_size <= 32768);
  setup_.size = max_size;
}

void VirtQueue::Reset() {
  setup_ = QueueSetup{.size = max_size_};
  features_ = {};
  enabled_ = broken_ = false;
  descriptors_ = driver_area_ = device_area_ = nullptr;
  next_available_ = next_used_ = 0;
  available_wrap_ = used_wrap_ = true;
  unsignalled_ = 0;
  in_flight_ = 0;
  staged_ = 0;
  staged_entries_ = 0;
}

void VirtQueue::Break(const char* reason) {
  if (broken_) return;
  broken_ = true;
  on_broken_(reason);
}

bool VirtQueue::Enable(RingFeatures features) {
  features_ = features;
  if (!MapRings()) {
    Break("queue size or ring addresses are not valid");
    return false;
  }
  enabled_ = true;
  return true;
}

bool VirtQueue::MapRings() {
  const uint64_t size = setup_.size;
  if (size == 0 || size > max_size_) return false;
  uint64_t driver_size = 4, device_size = 4, driver_align = 4, device_align = 4;
  if (!features_.packed) {
    if (!std::has_single_bit(size)) return false;  // 2.7
    driver_size = kRingEntries + 2 * size + 2;
    device_size = kRingEntries + 8 * size + 2;
    driver_align = 2;
  }
  if (setup_.descriptors % 16 != 0 || setup_.driver_area % driver_align != 0 || setup_.device_area % device_align != 0)
    return false;
  descriptors_ = memory_.HostPointer(GuestPhys(setup_.descriptors), size * kDescriptorSize);
  driver_area_ = memory_.HostPointer(GuestPhys(setup_.driver_area), driver_size);
  device_area_ = memory_.HostPointer(GuestPhys(setup_.device_area), device_size);
  return descriptors_ && driver_area_ && device_area_;
}

bool VirtQueue::Pop(Chain& chain) {
  if (!enabled_ || broken_ || !HasAvailable()) return false;
  if (in_flight_ >= setup_.size) {  // each chain holds a descriptor of the ring until it is used
    Break("more chains are available than the ring has descriptors");
    return false;
  }
  chain.Clear();
  const bool ok = features_.packed ? PopPacked(chain) : PopSplit(chain);
  if (ok) ++in_flight_;
  return ok;
}

bool VirtQueue::HasAvailable() const {
  if (!enabled_ || broken_) return false;
  if (!features_.packed) return LoadAcquire(driver_area_ + kRingIndex) != next_available_;
  const uint16_t flags = LoadAcquire(descriptors_ + next_available_ * kDescriptorSize + 14);
  return ((flags & kAvail) != 0) == available_wrap_ && ((flags & kUsed) != 0) != available_wrap_;
}

VirtQueue::Descriptor VirtQueue::LoadSplit(const uint8_t* table, uint32_t index) const {
  const uint8_t* at = table + index * kDescriptorSize;
  return {LoadLe<uint64_t>(at), LoadLe<uint32_t>(at + 8), LoadLe<uint16_t>(at + 12), LoadLe<uint16_t>(at + 14)};
}

bool VirtQueue::AddBuffer(const Descriptor& descriptor, Walk& walk, Chain& chain) {
  if (++walk.descriptors > kMaxChainDescriptors) {
    Break("a descriptor chain is too long");
    return false;
  }
  const bool writable = (descriptor.flags & kWrite) != 0;
  if (!writable && walk.writable_seen) {  // 2.7.4.2
    Break("a device-readable descriptor follows a device-writable one");
    return false;
  }
  walk.writable_seen |= writable;
  if (descriptor.size_bytes == 0) return true;
  uint8_t* host = memory_.HostPointer(GuestPhys(descriptor.address), descriptor.size_bytes);
  if (!host) {
    Break("a descriptor points outside RAM");
    return false;
  }
  chain.Add({GuestPhys(descriptor.address), host, descriptor.size_bytes}, writable);
  return true;
}

bool VirtQueue::AddIndirect(const Descriptor& table, Walk& walk, Chain& chain) {
  const uint32_t count = table.size_bytes / kDescriptorSize;
  if (!features_.indirect || (table.flags & kNext) != 0 || count == 0 ||
      table.size_bytes % kDescriptorSize != 0) {  // 2.7.5.3.1
    Break("an indirect descriptor is malformed or was not negotiated");
    return false;
  }
  const uint8_t* host = memory_.HostPointer(GuestPhys(table.address), table.size_bytes);
  if (!host) {
    Break("an indirect table lies outside RAM");
    return false;
  }
  // Packed tables are followed in order (2.8.7), split ones by their links; AddBuffer's bound ends every
  // loop.
  uint32_t index = 0;
  while (true) {
    Descriptor entry;
    if (features_.packed) {
      const uint8_t* at = host + index * kDescriptorSize;
      entry = {LoadLe<uint64_t>(at), LoadLe<uint32_t>(at + 8), LoadLe<uint16_t>(at + 14), 0};
    } else {
      entry = LoadSplit(host, index);
    }
    if ((entry.flags & kIndirect) != 0) {
      Break("an indirect table holds an indirect descriptor");
      return false;
    }
    if (!AddBuffer(entry, walk, chain)) return false;
    if (features_.packed) {
      if (++index == count) return true;
      continue;
    }
    if ((entry.flags & kNext) == 0) return true;
    index = entry.next_or_id;
    if (index >= count) {
      Break("an indirect table links outside itself");
      return false;
    }
  }
}

bool VirtQueue::PopSplit(Chain& chain) {
  const uint16_t index = LoadAcquire(driver_area_ + kRingIndex);
  if (static_cast<uint16_t>(index - next_available_) > setup_.size) {
    Break("the available index ran past the ring");
    return false;
  }
  const uint16_t slot = next_available_ & (setup_.size - 1);
  const uint16_t head = LoadLe<uint16_t>(driver_area_ + kRingEntries + 2 * slot);
  Walk walk;
  uint32_t at = head;
  for (uint32_t followed = 0;; ++followed) {
    if (at >= setup_.size || followed >= setup_.size) {
      Break(at >= setup_.size ? "a descriptor index is outside the table" : "a descriptor chain loops");
      return false;
    }
    const Descriptor descriptor = LoadSplit(descriptors_, at);
    const bool indirect = (descriptor.flags & kIndirect) != 0;
    if (indirect ? !AddIndirect(descriptor, walk, chain) : !AddBuffer(descriptor, walk, chain)) return false;
    ++chain.slots;
    if (indirect || (descriptor.flags & kNext) == 0) break;
    at = descriptor.next_or_id;
  }
  ++next_available_;
  chain.id = head;
  return true;
}

bool VirtQueue::PopPacked(Chain& chain) {
  Walk walk;
  uint16_t position = next_available_;
  uint16_t slots = 0;
  while (true) {
    if (slots >= setup_.size) {
      Break("a descriptor chain is longer than the ring");
      return false;
    }
    const uint8_t* at = descriptors_ + position * kDescriptorSize;
    const Descriptor descriptor = {LoadLe<uint64_t>(at), LoadLe<uint32_t>(at + 8), LoadLe<uint16_t>(at + 14),
                                   LoadLe<uint16_t>(at + 12)};
    ++slots;
    if (++position == setup_.size) position = 0;
    const bool indirect = (descriptor.flags & kIndirect) != 0;
    if (indirect ? !AddIndirect(descriptor, walk, chain) : !AddBuffer(descriptor, walk, chain)) return false;
    if (!indirect && (descriptor.flags & kNext) != 0) continue;
    chain.id = descriptor.next_or_id;  // 2.8.6: the id of the list's last descriptor
    break;
  }
  if (position <= next_available_) available_wrap_ = !available_wrap_;
  next_available_ = position;
  chain.slots = slots;
  return true;
}

void VirtQueue::PutBack(const Chain& chain) {
  if (!enabled_) return;
  NACRE_CHECK(in_flight_ > 0);
  --in_flight_;
  if (!features_.packed) {
    --next_available_;
    return;
  }
  if (chain.slots > next_available_) {
    next_available_ = static_cast<uint16_t>(next_available_ + setup_.size);
    available_wrap_ = !available_wrap_;
  }
  next_available_ = static_cast<uint16_t>(next_available_ - chain.slots);
}

void VirtQueue::Stage(const Chain& chain, uint32_t written_bytes) {
  if (!enabled_) return;
  NACRE_CHECK(in_flight_ > 0);
  --in_flight_;
  if (broken_) return;
  if (!features_.packed) {
    const uint16_t slot = static_cast<uint16_t>(next_used_ + staged_) & (setup_.size - 1);
    uint8_t* entry = device_area_ + kRingEntries + 8 * slot;
    StoreLe<uint32_t>(entry, chain.id);
    StoreLe<uint32_t>(entry + 4, written_bytes);
    MarkRing(setup_.device_area + kRingEntries + 8 * slot, 8);
    ++staged_;
    return;
  }
  uint8_t* at = descriptors_ + next_used_ * kDescriptorSize;
  StoreLe<uint32_t>(at + 8, written_bytes);
  StoreLe<uint16_t>(at + 12, chain.id);
  const uint16_t flags = static_cast<uint16_t>((used_wrap_ ? kAvail | kUsed : 0) | (written_bytes > 0 ? kWrite : 0));
  if (staged_ == 0) {
    staged_start_ = next_used_;
    staged_flags_ = flags;
  } else {
    StoreRelease(at + 14, flags);
    MarkRing(setup_.descriptors + next_used_ * kDescriptorSize, kDescriptorSize);
  }
  ++staged_;
  staged_entries_ += chain.slots;
  next_used_ = static_cast<uint16_t>(next_used_ + chain.slots);
  if (next_used_ >= setup_.size) {
    next_used_ = static_cast<uint16_t>(next_used_ - setup_.size);
    used_wrap_ = !used_wrap_;
  }
}

void VirtQueue::Publish() {
  if (!enabled_ || broken_ || staged_ == 0) return;
  if (!features_.packed) {
    next_used_ = static_cast<uint16_t>(next_used_ + staged_);
    StoreRelease(device_area_ + kRingIndex, next_used_);
    MarkRing(setup_.device_area + kRingIndex, 2);
    unsignalled_ += staged_;
  } else {
    StoreRelease(descriptors_ + staged_start_ * kDescriptorSize + 14, staged_flags_);
    MarkRing(setup_.descriptors + staged_start_ * kDescriptorSize, kDescriptorSize);
    unsignalled_ += staged_entries_;
  }
  staged_ = 0;
  staged_entries_ = 0;
}

bool VirtQueue::TakeInterrupt() {
  if (!enabled_ || broken_ || unsignalled_ == 0) return false;
  FullFence();  // the used entries must be seen before the driver's suppression is read
  bool wanted = true;
  const bool whole_lap = unsignalled_ >= setup_.size;
  const auto old_index = static_cast<uint16_t>(next_used_ - unsignalled_);
  if (!features_.packed) {
    if (!features_.event_index)
      wanted = (LoadAcquire(driver_area_ + kRingFlags) & 1) == 0;
    else
      wanted =
          whole_lap || PassedEvent(LoadAcquire(driver_area_ + kRingEntries + 2 * setup_.size), next_used_, old_index);
  } else {
    const uint16_t flags = LoadAcquire(driver_area_ + kEventFlags) & 3;
    wanted = flags != kEventDisable;
    if (flags == kEventAtOffset && features_.event_index && !whole_lap) {
      const uint16_t event = LoadAcquire(driver_area_ + kEventOffset);
      auto offset = static_cast<uint16_t>(event & 0x7fff);
      if (((event >> 15) != 0) != used_wrap_) offset = static_cast<uint16_t>(offset - setup_.size);
      wanted = PassedEvent(offset, next_used_, old_index);
    }
  }
  unsignalled_ = 0;
  return wanted;
}

bool VirtQueue::EnableNotification() {
  if (!enabled_ || broken_) return false;
  if (!features_.packed) {
    if (features_.event_index) {
      const uint64_t at = kRingEntries + 8 * uint64_t{setup_.size};
      StoreRelease(device_area_ + at, next_available_);
      MarkRing(setup_.device_area + at, 2);
    } else {
      StoreRelease(device_area_ + kRingFlags, 0);
      MarkRing(setup_.device_area + kRingFlags, 2);
    }
  } else {
    if (features_.event_index)
      StoreRelease(device_area_ + kEventOffset,
                   static_cast<uint16_t>(next_available_ | (available_wrap_ ? 0x8000 : 0)));
    StoreRelease(device_area_ + kEventFlags, features_.event_index ? kEventAtOffset : kEventEnable);
    MarkRing(setup_.device_area, 4);
  }
  FullFence();
  return HasAvailable();
}

void VirtQueue::DisableNotification() {
  if (!enabled_ || broken_) return;
  if (features_.packed) {
    StoreRelease(device_area_ + kEventFlags, kEventDisable);
    MarkRing(setup_.device_area, 4);
  } else if (!features_.event_index) {  // with event indices a stale index is silence enough
    StoreRelease(device_area_ + kRingFlags, 1);
    MarkRing(setup_.device_area + kRingFlags, 2);
  }
}

void VirtQueue::Serialize(state::Archive& archive) {
  if (!archive.loading()) NACRE_CHECK(in_flight_ == 0 && staged_ == 0);
  archive.Field(1, setup_.size);
  archive.Field(2, setup_.descriptors);
  archive.Field(3, setup_.driver_area);
  archive.Field(4, setup_.device_area);
  archive.Field(5, enabled_);
  archive.Field(6, broken_);
  archive.Field(7, features_.packed);
  archive.Field(8, features_.event_index);
  archive.Field(9, features_.indirect);
  archive.Field(10, next_available_);
  archive.Field(11, next_used_);
  archive.Field(12, available_wrap_);
  archive.Field(13, used_wrap_);
  archive.Field(14, unsignalled_);
  if (!archive.loading()) return;
  in_flight_ = 0;
  staged_ = 0;
  staged_entries_ = 0;
  if (!enabled_) return;
  const bool positions_ok = !features_.packed || (next_available_ < setup_.size && next_used_ < setup_.size);
  if (!MapRings() || !positions_ok) {
    enabled_ = false;
    archive.Reject("virtqueue: ring addresses or positions are not valid");
  }
}

}  // namespace nacre::devices
