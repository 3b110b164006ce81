#include <algorithm>

#include "engine/jit/block.h"

namespace nacre::engine::jit {

BlockStore::BlockStore(uint64_t guest_pages, uint8_t* code)
    : code_(code), buckets_(kBuckets, kNone), page_first_(guest_pages, kNone) {}

uint32_t BlockStore::Bucket(uint64_t phys, uint64_t rip, uint32_t flags) {
  uint64_t hash = (phys ^ (rip >> 12) * 0x9e3779b97f4a7c15 ^ flags) * 0x9e3779b97f4a7c15;
  return static_cast<uint32_t>(hash >> 46) & (kBuckets - 1);
}

uint32_t BlockStore::Find(uint64_t phys, uint64_t rip, uint32_t flags) const {
  uint32_t index = buckets_[Bucket(phys, rip, flags)];
  while (index != kNone) {
    const Block& candidate = blocks_[index];
    if (candidate.phys == phys && candidate.rip == rip && candidate.flags == flags) return index;
    index = candidate.next_in_bucket;
  }
  return kNone;
}

uint32_t BlockStore::Add(const Block& block, uint64_t page_index) {
  const auto index = static_cast<uint32_t>(blocks_.size());
  blocks_.push_back(block);
  Block& added = blocks_.back();
  added.valid = true;
  added.page = static_cast<uint32_t>(page_index);
  uint32_t& bucket = buckets_[Bucket(block.phys, block.rip, block.flags)];
  added.next_in_bucket = bucket;
  bucket = index;
  if (page_first_[page_index] == kNone) pages_.push_back(static_cast<uint32_t>(page_index));
  added.next_in_page = page_first_[page_index];
  page_first_[page_index] = index;
  return index;
}

void BlockStore::AddAlias(uint32_t of, uint64_t page_index, uint64_t phys_page_start, unsigned bytes) {
  Block alias;
  alias.phys = phys_page_start;
  alias.code = blocks_[of].code;  // keeps FindByCode's order
  alias.flags = kNone;            // no lookup asks for it
  alias.alias_of = of;
  alias.guest_length = static_cast<uint16_t>(bytes);
  alias.look_first = 1;  // no look-ahead
  Add(alias, page_index);
}

void BlockStore::RemoveFromPage(uint32_t index) {
  uint32_t* at = &page_first_[blocks_[index].page];
  while (*at != index) at = &blocks_[*at].next_in_page;
  *at = blocks_[index].next_in_page;
}

void BlockStore::PatchJump(const Link& link, uint32_t target) {
  const uint32_t distance = target - (link.displacement + 4);
  __builtin_memcpy(code_ + link.displacement, &distance, 4);
}

void BlockStore::Remove(uint32_t index) {
  Block& block = blocks_[index];
  uint32_t* at = &buckets_[Bucket(block.phys, block.rip, block.flags)];
  while (*at != index) at = &blocks_[*at].next_in_bucket;
  *at = block.next_in_bucket;
  for (uint32_t incoming = block.first_incoming; incoming != kNone;) {
    Link& link = links_[incoming];
    PatchJump(link, link.stub);
    link.target_block = kNone;
    const uint32_t next = link.next_incoming;
    link.next_incoming = kNone;
    incoming = next;
  }
  block.first_incoming = kNone;
  block.valid = false;
}

unsigned BlockStore::InvalidateRange(uint64_t page_index, unsigned first, unsigned last,
                                     std::span<JumpCache* const> caches, const uint8_t* miss_target) {
  unsigned removed = 0;
  uint32_t* at = &page_first_[page_index];
  while (*at != kNone) {
    Block& block = blocks_[*at];
    const auto begin = static_cast<unsigned>(block.phys & kPageMask);
    const unsigned end = begin + block.guest_length;
    const bool body = end > first && begin <= last;
    const bool look_ahead = block.look_first <= last && block.look_last >= first && block.look_first <= block.look_last;
    if (!body && !look_ahead) {
      at = &block.next_in_page;
      continue;
    }
    const uint32_t index = *at;
    *at = block.next_in_page;
    uint32_t main = index;
    if (block.alias_of != kNone) {
      Remove(index);
      main = block.alias_of;
      if (!blocks_[main].valid) continue;
      RemoveFromPage(main);
      at = &page_first_[page_index];  // the main block may stand on this very page in front of `at`
    }
    const uint64_t rip = blocks_[main].rip;
    for (JumpCache* cache : caches) {
      const uint64_t entry = JumpIndex(rip);
      if (cache->negated_rip[entry] == uint64_t{0} - rip) {
        cache->negated_rip[entry] = ~uint64_t{0};
        cache->target[entry] = reinterpret_cast<uint64_t>(miss_target);
      }
    }
    Remove(main);
    ++removed;
  }
  return removed;
}

void BlockStore::Disconnect(uint32_t link_index) {
  Link& link = links_[link_index];
  if (link.target_block == kNone) return;
  uint32_t* at = &blocks_[link.target_block].first_incoming;
  while (*at != link_index) at = &links_[*at].next_incoming;
  *at = link.next_incoming;
  link.next_incoming = kNone;
  link.target_block = kNone;
}

void BlockStore::Connect(uint32_t link_index, uint32_t block_index, uint32_t page_id) {
  Link& link = links_[link_index];
  if (link.page_id_place && link.page_id != page_id) {
    const uint32_t immediate = link.page_id_negated ? 0 - page_id : page_id;
    __builtin_memcpy(code_ + link.page_id_place, &immediate, 4);
    link.page_id = page_id;
  }
  if (link.target_block == block_index) return;
  Disconnect(link_index);
  PatchJump(link, blocks_[block_index].entry());
  link.target_block = block_index;
  Block& target = blocks_[block_index];
  link.next_incoming = target.first_incoming;
  target.first_incoming = link_index;
}

uint32_t BlockStore::FindByCode(uint32_t offset) const {
  // Blocks are emitted at rising offsets.
  size_t low = 0, high = blocks_.size();
  while (low < high) {
    const size_t middle = (low + high) / 2;
    if (blocks_[middle].code <= offset)
      low = middle + 1;
    else
      high = middle;
  }
  while (low > 0 && blocks_[low - 1].alias_of != kNone) --low;
  if (low == 0) return kNone;
  const Block& block = blocks_[low - 1];
  return offset < block.code + block.host_size ? static_cast<uint32_t>(low - 1) : kNone;
}

uint16_t BlockStore::GuestOffset(const Block& block, uint32_t offset) const {
  const uint32_t in_block = offset - block.code;
  uint16_t guest_offset = 0;
  for (unsigned i = 0; i < block.place_count; ++i) {
    const InstructionPlace& place = places_[block.map_begin + i];
    if (place.host_offset > in_block) break;
    guest_offset = place.guest_offset;
  }
  return guest_offset;
}

void BlockStore::Clear() {
  blocks_.clear();
  links_.clear();
  sites_.clear();
  places_.clear();
  std::fill(buckets_.begin(), buckets_.end(), kNone);
  for (uint32_t page : pages_) page_first_[page] = kNone;
  pages_.clear();
}

}  // namespace nacre::engine::jit
