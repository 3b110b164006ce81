#include "bus/bus.h"

#include <algorithm>
#include <utility>

#include "base/bits.h"
#include "base/check.h"

namespace nacre::bus {

Mapping::Mapping(Mapping&& other) noexcept : map_(std::exchange(other.map_, nullptr)), id_(other.id_) {}

Mapping& Mapping::operator=(Mapping&& other) noexcept {
  if (this != &other) {
    Remove();
    map_ = std::exchange(other.map_, nullptr);
    id_ = other.id_;
  }
  return *this;
}

void Mapping::Remove() {
  if (AddressMap* map = std::exchange(map_, nullptr)) map->Remove(id_);
}

Mapping AddressMap::Add(uint64_t start, uint64_t size_bytes, IoHandler& handler, std::string_view name) {
  if (size_bytes == 0 || start > last_address_) return {};
  auto block = std::make_unique<Block>();
  block->id = next_id_++;
  block->start = start;
  block->last = size_bytes - 1 > last_address_ - start ? last_address_ : start + (size_bytes - 1);
  block->handler = &handler;
  block->name = name;
  blocks_.push_back(std::move(block));
  Rebuild();
  return Mapping(this, blocks_.back()->id);
}

void AddressMap::Remove(uint64_t id) {
  const auto found = std::ranges::find(blocks_, id, [](const auto& block) { return block->id; });
  NACRE_CHECK(found != blocks_.end());
  const Block& block = **found;
  auto past = std::ranges::find(past_traffic_, block.name, &Traffic::name);
  if (past == past_traffic_.end()) past = past_traffic_.insert(past, Traffic{block.name, 0, 0});
  past->reads += block.reads;
  past->writes += block.writes;
  blocks_.erase(found);
  Rebuild();
}

void AddressMap::Rebuild() {
  ranges_.clear();
  last_hit_ = 0;
  for (const auto& block : blocks_) InsertUncovered(*block);
}

void AddressMap::InsertUncovered(Block& block) {
  std::vector<Range> pieces;
  uint64_t at = block.start;  // everything of the block before this is placed or covered
  bool rest = true;
  for (const Range& older : ranges_) {
    if (older.last < at) continue;
    if (older.start > block.last) break;
    if (older.start > at) pieces.push_back({at, older.start - 1, &block});
    if (older.last >= block.last) {
      rest = false;
      break;
    }
    at = older.last + 1;
  }
  if (rest) pieces.push_back({at, block.last, &block});
  ranges_.insert(ranges_.end(), pieces.begin(), pieces.end());
  std::ranges::sort(ranges_, {}, &Range::start);
}

AddressMap::Range* AddressMap::Search(uint64_t address) {
  const auto after = std::ranges::upper_bound(ranges_, address, {}, &Range::start);
  if (after == ranges_.begin()) return nullptr;
  const auto found = after - 1;
  if (address > found->last) return nullptr;
  last_hit_ = static_cast<size_t>(found - ranges_.begin());
  return &*found;
}

uint64_t AddressMap::ReadSplit(uint64_t address, unsigned size) {
  uint64_t value = 0;
  for (unsigned i = 0; i < size; ++i) {
    uint64_t byte = 0xff;
    if (Range* range = address + i <= last_address_ ? Find(address + i) : nullptr) {
      ++range->block->reads;
      byte = range->block->handler->Read(address + i - range->block->start, 1) & 0xff;
    }
    value |= byte << (8 * i);
  }
  return value;
}

void AddressMap::WriteSplit(uint64_t address, unsigned size, uint64_t value) {
  for (unsigned i = 0; i < size; ++i) {
    // Looked up for each byte: a handler may have moved the blocks.
    Range* range = address + i <= last_address_ ? Find(address + i) : nullptr;
    if (!range) continue;
    ++range->block->writes;
    range->block->handler->Write(address + i - range->block->start, 1, (value >> (8 * i)) & 0xff);
  }
}

std::vector<Traffic> AddressMap::traffic() const {
  std::vector<Traffic> result = past_traffic_;
  for (const auto& block : blocks_) {
    auto found = std::ranges::find(result, block->name, &Traffic::name);
    if (found == result.end()) found = result.insert(found, Traffic{block->name, 0, 0});
    found->reads += block->reads;
    found->writes += block->writes;
  }
  std::ranges::sort(result, [](const Traffic& a, const Traffic& b) { return a.reads + a.writes > b.reads + b.writes; });
  return result;
}

}  // namespace nacre::bus
