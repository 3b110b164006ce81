#pragma once
// The driver's side for tests: rings in guest memory (split and packed), and a device behind a PCI transport
// with fake buses. Written from virtio 1.2 on its own, not from the device's code, so that the two check each
// other.

#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <deque>
#include <map>
#include <optional>
#include <vector>

#include "base/bits.h"
#include "base/manual_scheduler.h"
#include "devices/virtio/virtio_device.h"
#include "devices/virtio/virtio_pci.h"
#include "memory/guest_memory.h"

namespace nacre::devices {

struct TestBuffer {
  uint64_t address;
  uint32_t size;
  bool device_writes = false;
};

struct UsedEntry {
  uint32_t id;
  uint32_t written;
};

/// A driver of one ring. Memory: `base` .. `base` + 64 KiB for the ring, tables of indirect chains behind.
class RingDriver {
 public:
  static constexpr uint16_t kNext = 1, kWrite = 2, kIndirect = 4, kAvail = 0x80, kUsed = 0x8000;

  RingDriver(memory::GuestMemory& memory, uint64_t base, uint16_t size, bool packed)
      : memory_(memory), size_(size), packed_(packed) {
    setup.size = size;
    setup.descriptors = base;
    setup.driver_area = base + 0x8000;
    setup.device_area = base + 0xa000;
    tables_ = base + 0x10000;
    std::vector<uint8_t> zero(0x20000);
    EXPECT_TRUE(memory.Write(GuestPhys(base), zero));
    for (uint16_t i = 0; i < size; ++i) free_.push_back(i);
  }

  /// The same driver, going on in a copy of the memory.
  RingDriver(memory::GuestMemory& memory, const RingDriver& other)
      : setup(other.setup),
        memory_(memory),
        size_(other.size_),
        packed_(other.packed_),
        tables_(other.tables_),
        table_count_(other.table_count_),
        free_(other.free_),
        taken_(other.taken_),
        slots_(other.slots_),
        available_(other.available_),
        used_(other.used_),
        position_(other.position_),
        available_wrap_(other.available_wrap_),
        used_wrap_(other.used_wrap_) {}

  /// Returns the id under which the chain comes back.
  uint16_t Add(const std::vector<TestBuffer>& buffers, bool indirect = false) {
    return packed_ ? AddPacked(buffers, indirect) : AddSplit(buffers, indirect);
  }
  std::optional<UsedEntry> GetUsed() { return packed_ ? GetUsedPacked() : GetUsedSplit(); }
  /// As GetUsed where there must be one.
  UsedEntry Used() {
    const std::optional<UsedEntry> used = GetUsed();
    EXPECT_TRUE(used.has_value()) << "nothing was given back";
    return used.value_or(UsedEntry{~0u, ~0u});
  }

  void SetDescriptor(uint64_t table, unsigned index, uint64_t address, uint32_t size, uint16_t a, uint16_t b) {
    Poke<uint64_t>(table + index * 16, address);
    Poke<uint32_t>(table + index * 16 + 8, size);
    Poke<uint16_t>(table + index * 16 + 12, a);
    Poke<uint16_t>(table + index * 16 + 14, b);
  }
  /// Split: makes a head available, whatever it is.
  void Offer(uint16_t head) {
    Poke<uint16_t>(setup.driver_area + 4 + 2 * (available_ % size_), head);
    ++available_;
    Poke<uint16_t>(setup.driver_area + 2, available_);
  }
  template <typename T>
  void Poke(uint64_t address, T value) {
    EXPECT_TRUE(memory_.WriteValue(GuestPhys(address), value));
  }
  template <typename T>
  T Peek(uint64_t address) {
    T value{};
    EXPECT_TRUE(memory_.ReadValue(GuestPhys(address), value));
    return value;
  }
  /// 2.7.10, 2.8.10: no interrupts, all, or one when the device gets to `position`.
  void SuppressInterrupts(bool off) {
    if (packed_)
      Poke<uint16_t>(setup.driver_area + 2, off ? 1 : 0);
    else
      Poke<uint16_t>(setup.driver_area, off ? 1 : 0);
  }
  void InterruptAt(uint16_t position, bool wrap = true) {
    if (packed_) {
      Poke<uint16_t>(setup.driver_area, static_cast<uint16_t>(position | (wrap ? 0x8000 : 0)));
      Poke<uint16_t>(setup.driver_area + 2, 2);
    } else {
      Poke<uint16_t>(setup.driver_area + 4 + 2 * size_, position);
    }
  }
  uint16_t available_index() const { return available_; }
  bool packed() const { return packed_; }

  QueueSetup setup;

 private:
  uint16_t AddSplit(const std::vector<TestBuffer>& buffers, bool indirect) {
    const uint64_t table = indirect ? NextTable() : setup.descriptors;
    std::vector<uint16_t> indices;
    indices.reserve(buffers.size());
    for (size_t i = 0; i < buffers.size(); ++i) indices.push_back(indirect ? static_cast<uint16_t>(i) : Take());
    for (size_t i = 0; i < buffers.size(); ++i) {
      const bool last = i + 1 == buffers.size();
      SetDescriptor(table, indices[i], buffers[i].address, buffers[i].size,
                    static_cast<uint16_t>((last ? 0 : kNext) | (buffers[i].device_writes ? kWrite : 0)),
                    last ? uint16_t{0} : indices[i + 1]);
    }
    uint16_t head = indices[0];
    if (indirect) {
      head = Take();
      SetDescriptor(setup.descriptors, head, table, static_cast<uint32_t>(buffers.size() * 16), kIndirect, 0);
    }
    taken_[head] = indirect ? std::vector<uint16_t>{head} : indices;
    Offer(head);
    return head;
  }

  uint16_t AddPacked(const std::vector<TestBuffer>& buffers, bool indirect) {
    const uint16_t id = Take();
    const uint64_t first = setup.descriptors + position_ * 16;
    const auto first_marks = Marks();
    uint16_t first_flags = 0;
    if (indirect) {
      const uint64_t table = NextTable();
      for (size_t i = 0; i < buffers.size(); ++i)
        SetDescriptor(table, static_cast<unsigned>(i), buffers[i].address, buffers[i].size, 0,
                      buffers[i].device_writes ? kWrite : 0);
      SetDescriptor(setup.descriptors, position_, table, static_cast<uint32_t>(buffers.size() * 16), id,
                    Peek<uint16_t>(first + 14));
      first_flags = kIndirect | first_marks;
      Advance();
      slots_[id] = 1;
    } else {
      for (size_t i = 0; i < buffers.size(); ++i) {
        auto flags = static_cast<uint16_t>(Marks() | (i + 1 == buffers.size() ? 0 : kNext) |
                                           (buffers[i].device_writes ? kWrite : 0));
        if (i == 0) {
          first_flags = flags;
          flags = Peek<uint16_t>(first + 14);
        }
        SetDescriptor(setup.descriptors, position_, buffers[i].address, buffers[i].size, id, flags);
        Advance();
      }
      slots_[id] = static_cast<uint16_t>(buffers.size());
    }
    Poke<uint16_t>(first + 14, first_flags);  // the list becomes available at once (2.8.6)
    return id;
  }

  std::optional<UsedEntry> GetUsedSplit() {
    if (Peek<uint16_t>(setup.device_area + 2) == used_) return std::nullopt;
    const uint64_t at = setup.device_area + 4 + 8 * (used_ % size_);
    ++used_;
    const UsedEntry entry{Peek<uint32_t>(at), Peek<uint32_t>(at + 4)};
    for (uint16_t index : taken_[static_cast<uint16_t>(entry.id)]) free_.push_back(index);
    taken_.erase(static_cast<uint16_t>(entry.id));
    return entry;
  }

  std::optional<UsedEntry> GetUsedPacked() {
    const uint64_t at = setup.descriptors + used_ * 16;
    const uint16_t flags = Peek<uint16_t>(at + 14);
    if (((flags & kAvail) != 0) != used_wrap_ || ((flags & kUsed) != 0) != used_wrap_) return std::nullopt;
    const UsedEntry entry{Peek<uint16_t>(at + 12), Peek<uint32_t>(at + 8)};
    used_ = static_cast<uint16_t>(used_ + slots_[static_cast<uint16_t>(entry.id)]);
    if (used_ >= size_) {
      used_ = static_cast<uint16_t>(used_ - size_);
      used_wrap_ = !used_wrap_;
    }
    free_.push_back(static_cast<uint16_t>(entry.id));
    return entry;
  }

  uint16_t Take() {
    EXPECT_FALSE(free_.empty()) << "the test uses more descriptors than the ring has";
    if (free_.empty()) return 0;
    const uint16_t index = free_.front();
    free_.pop_front();
    return index;
  }
  uint16_t Marks() const { return available_wrap_ ? kAvail : kUsed; }
  void Advance() {
    if (++position_ == size_) {
      position_ = 0;
      available_wrap_ = !available_wrap_;
    }
  }
  uint64_t NextTable() { return tables_ + 0x400 * (table_count_++ % 64); }

  memory::GuestMemory& memory_;
  const uint16_t size_;
  const bool packed_;
  uint64_t tables_;
  unsigned table_count_ = 0;
  std::deque<uint16_t> free_;
  std::map<uint16_t, std::vector<uint16_t>> taken_;
  std::map<uint16_t, uint16_t> slots_;
  uint16_t available_ = 0;
  uint16_t used_ = 0;
  uint16_t position_ = 0;
  bool available_wrap_ = true;
  bool used_wrap_ = true;
};

struct TestMsi : bus::MsiSink {
  void Send(uint64_t address, uint32_t data) override {
    ++count;
    last_address = address;
    last_data = data;
    ++by_data[data];
  }
  unsigned count = 0;
  uint64_t last_address = 0;
  uint32_t last_data = 0;
  std::map<uint32_t, unsigned> by_data;
};

struct TestLine : bus::IrqLine {
  void Set(bool value) override { level = value; }
  bool level = false;
};

/// A device on a PCI bus of its own, and a driver that sets it up as an operating system does.
class VirtioBench {
 public:
  static constexpr uint64_t kBar0 = 0xe000'0000, kBar1 = 0xe010'0000, kRings = 0x10'0000;

  explicit VirtioBench(uint64_t memory_size = 16 * kMiB)
      : memory_owner(std::move(*memory::GuestMemory::Create(memory_size))), memory(*memory_owner) {}

  void Plug(std::unique_ptr<VirtioDevice> device) {
    pci = std::make_unique<VirtioPci>(std::move(device),
                                      PciWiring{.ports = &port_bus, .memory = &memory_bus, .msi = &msi});
    pci->SetIntxLine(&line);
    pci->Reset();
    PlaceBars();
  }
  void PlaceBars() {
    pci->ConfigWrite(pci::kBar0, 4, static_cast<uint32_t>(kBar0));
    pci->ConfigWrite(pci::kBar0 + 4, 4, static_cast<uint32_t>(kBar1));
    pci->ConfigWrite(pci::kCommand, 2, pci::kCommandMemory | pci::kCommandMaster);
  }
  VirtioDevice& device() { return pci->device(); }

  uint64_t Common(unsigned offset, unsigned size) {
    return memory_bus.Read(kBar0 + VirtioPci::kCommonOffset + offset, size);
  }
  void SetCommon(unsigned offset, unsigned size, uint64_t value) {
    memory_bus.Write(kBar0 + VirtioPci::kCommonOffset + offset, size, value);
  }
  uint64_t Config(unsigned offset, unsigned size) {
    return memory_bus.Read(kBar0 + VirtioPci::kDeviceOffset + offset, size);
  }
  uint8_t Status() { return static_cast<uint8_t>(Common(20, 1)); }
  uint64_t OfferedFeatures() {
    SetCommon(0, 4, 1);
    const uint64_t high = Common(4, 4);
    SetCommon(0, 4, 0);
    return high << 32 | Common(4, 4);
  }
  /// Reset to FEATURES_OK (3.1.1). Returns whether the device kept FEATURES_OK.
  bool Negotiate(uint64_t features) {
    SetCommon(20, 1, 0);
    SetCommon(20, 1, 1);
    SetCommon(20, 1, 3);
    for (unsigned half = 0; half < 2; ++half) {
      SetCommon(8, 4, half);
      SetCommon(12, 4, Bits(features, 32 * half, 32));
    }
    SetCommon(20, 1, 11);
    return (Status() & 8) != 0;
  }
  void SetUpQueue(unsigned index, uint16_t size, bool packed, uint16_t vector = VirtioPci::kNoVector) {
    rings[index] = std::make_unique<RingDriver>(memory, kRings + index * 0x2'0000, size, packed);
    const QueueSetup& setup = rings[index]->setup;
    SetCommon(22, 2, index);
    SetCommon(24, 2, size);
    SetCommon(26, 2, vector);
    for (unsigned half = 0; half < 2; ++half) {
      SetCommon(32 + 4 * half, 4, Bits(setup.descriptors, 32 * half, 32));
      SetCommon(40 + 4 * half, 4, Bits(setup.driver_area, 32 * half, 32));
      SetCommon(48 + 4 * half, 4, Bits(setup.device_area, 32 * half, 32));
    }
    SetCommon(28, 2, 1);
  }
  void EnableMsix(unsigned vectors) {
    for (unsigned i = 0; i < vectors; ++i) {
      memory_bus.Write(kBar1 + 16 * i, 4, 0xfee0'0000);
      memory_bus.Write(kBar1 + 16 * i + 8, 4, 0x40 + i);
      memory_bus.Write(kBar1 + 16 * i + 12, 4, 0);
    }
    const unsigned at = FindCapability(pci::kCapMsix);
    ASSERT_NE(0u, at);
    pci->ConfigWrite(at + 2, 2, 0x8000);
  }
  unsigned FindCapability(uint8_t id, uint8_t type = 0) {
    for (unsigned at = pci->ConfigRead(pci::kCapabilities, 1); at != 0; at = pci->ConfigRead(at + 1, 1))
      if (pci->ConfigRead(at, 1) == id && (type == 0 || pci->ConfigRead(at + 3, 1) == type)) return at;
    return 0;
  }
  /// The whole way to DRIVER_OK, with every queue that the device has, without MSI-X.
  void Start(uint64_t features, bool packed, uint16_t queue_size = 64) {
    features |= Bit(virtio_feature::kVersion1);
    if (packed) features |= Bit(virtio_feature::kRingPacked);
    ASSERT_TRUE(Negotiate(features));
    const auto count = static_cast<unsigned>(Common(18, 2));
    for (unsigned i = 0; i < count; ++i) SetUpQueue(i, queue_size, packed);
    SetCommon(20, 1, 15);
    ASSERT_EQ(15, Status());
  }
  void Kick(unsigned queue) {
    memory_bus.Write(kBar0 + VirtioPci::kNotifyOffset + queue * VirtioPci::kNotifyMultiplier, 2, queue);
  }
  RingDriver& ring(unsigned index) { return *rings[index]; }
  uint8_t ReadIsr() { return static_cast<uint8_t>(memory_bus.Read(kBar0 + VirtioPci::kIsrOffset, 1)); }

  void Fill(uint64_t address, std::span<const uint8_t> data) {
    if (data.empty()) return;
    EXPECT_TRUE(memory.Write(GuestPhys(address), data));
  }
  std::vector<uint8_t> Get(uint64_t address, size_t size) {
    std::vector<uint8_t> data(size);
    EXPECT_TRUE(memory.Read(GuestPhys(address), data));
    return data;
  }

  /// Saves, and loads into `other` (a bench with the same memory content and the same kind of device).
  void CopyStateTo(VirtioBench& other) {
    for (const memory::Region& region : memory.regions())
      std::memcpy(other.memory.HostPointer(region.start, region.size_bytes),
                  memory.HostPointer(region.start, region.size_bytes), region.size_bytes);
    auto saving = state::Archive::ForSaving();
    pci->Serialize(saving);
    const std::vector<uint8_t> bytes = saving.Finish();
    auto loading = state::Archive::ForLoading(bytes);
    other.pci->Serialize(loading);
    ASSERT_TRUE(loading.ok()) << loading.status().error().message;
    other.rings = std::move(rings);
    for (auto& [index, ring] : other.rings) {
      auto moved = std::make_unique<RingDriver>(other.memory, *ring);
      ring = std::move(moved);
    }
  }

  std::unique_ptr<memory::GuestMemory> memory_owner;
  memory::GuestMemory& memory;
  ManualScheduler scheduler;
  bus::PortBus port_bus;
  bus::MemoryBus memory_bus;
  TestMsi msi;
  TestLine line;
  std::unique_ptr<VirtioPci> pci;
  std::map<unsigned, std::unique_ptr<RingDriver>> rings;
};

}  // namespace nacre::devices
