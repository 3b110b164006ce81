#pragma once
// The port bus and the memory bus: maps from address ranges to register blocks (bus/device.h). The machine
// wires fixed blocks once; PCI base address registers come and go while the guest runs.
//
// Threads: under the machine's device lock, as every device. A handler may add and remove mappings, its own
// too, while it serves an access.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "bus/device.h"
#include "bus/doorbell.h"

namespace nacre::bus {

class AddressMap;

/// One mapped block; unmaps itself when destroyed. The map and the handler must outlive it.
class Mapping {
 public:
  Mapping() = default;
  Mapping(Mapping&& other) noexcept;
  Mapping& operator=(Mapping&& other) noexcept;
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping() { Remove(); }
  void Remove();
  bool mapped() const { return map_ != nullptr; }

 private:
  friend class AddressMap;
  Mapping(AddressMap* map, uint64_t id) : map_(map), id_(id) {}
  AddressMap* map_ = nullptr;
  uint64_t id_ = 0;
};

/// Traffic of the blocks of one name, for --engine-stats.
struct Traffic {
  std::string name;
  uint64_t reads = 0;
  uint64_t writes = 0;
};

class AddressMap {
 public:
  AddressMap(const AddressMap&) = delete;
  AddressMap& operator=(const AddressMap&) = delete;

  /// Maps [start, start + size_bytes), cut off at the end of the address space. Guests choose PCI addresses,
  /// so ranges may overlap: the block that was added first is seen. An empty range maps nothing.
  [[nodiscard]] Mapping Add(uint64_t start, uint64_t size_bytes, IoHandler& handler, std::string_view name);

  /// `size` is 1, 2, 4 or 8. An access that is not wholly inside one block is split into bytes; bytes that
  /// nobody claims read as all ones and swallow writes.
  uint64_t Read(uint64_t address, unsigned size) {
    if (Range* range = Find(address); range && size - 1 <= range->last - address) {
      ++range->block->reads;
      return range->block->handler->Read(address - range->block->start, size);
    }
    return ReadSplit(address, size);
  }
  void Write(uint64_t address, unsigned size, uint64_t value) {
    if (Range* range = Find(address); range && size - 1 <= range->last - address) {
      ++range->block->writes;
      return range->block->handler->Write(address - range->block->start, size, value);
    }
    WriteSplit(address, size, value);
  }
  /// True when some block claims this byte.
  bool Claims(uint64_t address) { return Find(address) != nullptr; }
  std::vector<Traffic> traffic() const;

 protected:
  explicit AddressMap(uint64_t last_address) : last_address_(last_address) {}
  ~AddressMap() = default;

 private:
  friend class Mapping;
  struct Block {
    uint64_t id = 0;
    uint64_t start = 0;
    uint64_t last = 0;
    IoHandler* handler = nullptr;
    uint64_t reads = 0;
    uint64_t writes = 0;
    std::string name;
  };
  /// A piece of a block that no older block covers.
  struct Range {
    uint64_t start = 0;
    uint64_t last = 0;
    Block* block = nullptr;
  };

  Range* Find(uint64_t address) {
    if (last_hit_ < ranges_.size()) {
      Range& range = ranges_[last_hit_];
      if (address >= range.start && address <= range.last) return &range;
    }
    return Search(address);
  }
  Range* Search(uint64_t address);
  uint64_t ReadSplit(uint64_t address, unsigned size);
  void WriteSplit(uint64_t address, unsigned size, uint64_t value);
  void Remove(uint64_t id);
  void Rebuild();
  void InsertUncovered(Block& block);

  const uint64_t last_address_;
  uint64_t next_id_ = 1;
  std::vector<std::unique_ptr<Block>> blocks_;  ///< oldest first
  std::vector<Range> ranges_;                   ///< sorted, disjoint
  size_t last_hit_ = 0;
  std::vector<Traffic> past_traffic_;  ///< of blocks that were removed
};

/// 64 Ki ports; accesses of 1, 2 and 4 bytes.
class PortBus final : public AddressMap {
 public:
  PortBus() : AddressMap(0xffff) {}
};

/// Guest-physical addresses outside RAM; accesses of 1, 2, 4 and 8 bytes.
class MemoryBus final : public AddressMap {
 public:
  MemoryBus() : AddressMap(~uint64_t{0}) {}
  /// Who serves the doorbells from now on; nullptr: nobody. What was rung and not seen yet rings now.
  void SetDoorbellHost(DoorbellHost* host);
  /// No CPU runs: what was rung and not seen yet rings now.
  void DrainDoorbells();

 private:
  void ForEachDoorbell(void (*apply)(DoorbellMapping&));
  friend class DoorbellMapping;
  std::vector<DoorbellMapping*> doorbells_;
  DoorbellHost* doorbell_host_ = nullptr;
};

}  // namespace nacre::bus
