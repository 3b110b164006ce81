#include <sys/mman.h>

#include <algorithm>

#include "base/check.h"
#include "engine/jit/block.h"

namespace nacre::engine::jit {
namespace {

bool LooksAhead(const Block& block) { return block.look_first <= block.look_last; }
unsigned BeginOf(const Block& block) { return static_cast<unsigned>(block.phys & kPageMask); }

bool DependsOn(const Block& block, unsigned first, unsigned last) {
  const bool body = BeginOf(block) + block.guest_length > first && BeginOf(block) <= last;
  return body || (LooksAhead(block) && block.look_first <= last && block.look_last >= first);
}

}  // namespace

BlockStore::BlockStore(uint64_t guest_pages, uint8_t* code, uint32_t code_begin, uint32_t code_end,
                       uint64_t record_bytes)
    : code_(code),
      record_capacity_(AlignDown(record_bytes, kPageSize)),
      buckets_(kBuckets, kNone),
      contents_(kContents, kNone),
      page_first_(guest_pages, kNone),
      first_in_granule_(code_end / kGranule + 1, kNone) {
  void* records =
      mmap(nullptr, record_capacity_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  NACRE_CHECK(records != MAP_FAILED);
  (void)madvise(records, record_capacity_, MADV_HUGEPAGE);  // fewer faults; refusal costs speed only
  records_ = static_cast<uint8_t*>(records);
  const uint64_t code_room = AlignDown(code_end - code_begin, kGranule);
  const uint64_t count =
      std::min({uint64_t{kMaxSegments}, code_room / (2 * kBlockReserve), record_capacity_ / (2 * kBlockReserve)});
  NACRE_CHECK(count > 0);
  segments_.resize(count);
  const auto code_step = static_cast<uint32_t>(AlignDown(code_room / count, kGranule));
  const auto record_step = static_cast<uint32_t>(AlignDown(record_capacity_ / count, kPageSize));
  auto code_at = static_cast<uint32_t>(AlignUp(code_begin, kGranule));
  uint32_t record_at = 0;
  for (Segment& segment : segments_) {
    segment = {.code_begin = code_at,
               .code_end = std::min(code_at + code_step, code_end),
               .code_at = code_at,
               .record_begin = record_at,
               .record_end = record_at + record_step,
               .record_at = record_at};
    code_at += code_step;
    record_at += record_step;
  }
}

BlockStore::~BlockStore() { munmap(records_, record_capacity_); }

uint32_t BlockStore::Bucket(uint64_t phys, uint64_t rip, uint32_t flags) {
  uint64_t hash = (phys ^ (rip >> 12) * 0x9e3779b97f4a7c15 ^ flags) * 0x9e3779b97f4a7c15;
  return static_cast<uint32_t>(hash >> 46) & (kBuckets - 1);
}

uint32_t BlockStore::Find(uint64_t phys, uint64_t rip, uint32_t flags) const {
  uint32_t id = buckets_[Bucket(phys, rip, flags)];
  while (id != kNone) {
    const Block& candidate = block(id);
    if (candidate.phys == phys && candidate.rip == rip && candidate.flags == flags && !candidate.stand_in) return id;
    id = candidate.next_in_bucket;
  }
  return kNone;
}

bool BlockStore::HasRoom(uint32_t code_bytes, uint32_t record_bytes) const {
  const Segment& segment = segments_[current_];
  return segment.code_end - segment.code_at >= code_bytes && segment.record_end - segment.record_at >= record_bytes;
}

unsigned BlockStore::NextSegment() {
  current_ = (current_ + 1) % static_cast<unsigned>(segments_.size());
  const uint64_t before = counters_.blocks_dropped;
  if (!segments_[current_].empty()) {
    ++counters_.segments_dropped;
    DropSegment(segments_[current_]);
  }
  return static_cast<unsigned>(counters_.blocks_dropped - before);
}

void BlockStore::DropSegment(Segment& segment) {
  ForgetJumps(segment);
  for (uint32_t id = segment.record_begin; id < segment.record_at; id += block(id).record_bytes) {
    const Block& dropped = block(id);
    if (dropped.stand_in) continue;
    if (dropped.valid) {
      Invalidate(id, false);
      ++counters_.blocks_dropped;
    }
    for (uint32_t out = FirstLink(id); out != kNone; out = NextLink(out)) Disconnect(out);
    Unlist(id);
  }
  segment.code_at = segment.code_begin;
  segment.record_at = segment.record_begin;
  for (uint32_t i = segment.code_begin / kGranule; i < (segment.code_end + kGranule - 1) / kGranule; ++i)
    first_in_granule_[i] = kNone;
}

uint32_t BlockStore::Begin(bool compact) {
  Segment& segment = segments_[current_];
  segment.code_at = NextCode(compact);
  const uint32_t id = Allocate<Block>();
  block(id) = Block{.code = segment.code_at, .next_relative = id, .previous_relative = id};
  return id;
}

uint32_t BlockStore::AddLink(uint32_t of, const Link& added) {
  const uint32_t id = Allocate<Link>();
  link(id) = added;
  link(id).owner = static_cast<uint16_t>(id - of);
  link(id).next_of_block = block(of).first_link;
  block(of).first_link = link(id).owner;
  return id;
}

uint32_t BlockStore::AddSite(uint32_t of, const Site& added) {
  const uint32_t id = Allocate<Site>();
  site(id) = added;
  site(id).owner = static_cast<uint16_t>(id - of);
  return id;
}

/// For FindByCode.
void BlockStore::NoteGranule(uint32_t id) {
  uint32_t& first = first_in_granule_[block(id).code / kGranule];
  if (first == kNone) first = id;
}

/// Makes a block findable and its page's.
void BlockStore::Enter(uint32_t id, uint64_t page_index) {
  Block& entered = block(id);
  entered.valid = true;
  entered.born = ++clock_;
  entered.page = static_cast<uint32_t>(page_index);
  uint32_t& bucket = buckets_[Bucket(entered.phys, entered.rip, entered.flags)];
  entered.next_in_bucket = bucket;
  bucket = id;
  CodeLines& known = code_lines_[page_index % code_lines_.size()];
  if (known.page == page_index) known.lines |= LinesOf(entered);
  uint32_t& first = page_first_[page_index];
  entered.previous_in_page = kNone;
  entered.next_in_page = first;
  if (first != kNone) block(first).previous_in_page = id;
  first = id;
}

void BlockStore::AddAlias(uint32_t of, uint64_t page_index, uint64_t phys_page_start, unsigned bytes) {
  const uint32_t id = Allocate<Block>();
  Block& alias = block(id);
  alias = Block{.phys = phys_page_start,
                .code = block(of).code,
                .partner = of,
                .record_bytes = sizeof(Block),
                .guest_length = static_cast<uint16_t>(bytes),
                .look_first = 1,  // no look-ahead
                .stand_in = true};
  block(of).partner = id;
  Enter(id, page_index);
}

void BlockStore::RemoveFromPage(uint32_t id) {
  Block& removed = block(id);
  if (removed.previous_in_page != kNone)
    block(removed.previous_in_page).next_in_page = removed.next_in_page;
  else
    page_first_[removed.page] = removed.next_in_page;
  if (removed.next_in_page != kNone) block(removed.next_in_page).previous_in_page = removed.previous_in_page;
  removed.next_in_page = removed.previous_in_page = kNone;
}

void BlockStore::PatchJump(const Link& patched, uint32_t target) {
  const uint32_t at = OwnerOf(patched).code + patched.displacement, distance = target - (at + 4);
  __builtin_memcpy(code_ + at, &distance, 4);
  if (patched.in_place) code_[at - 1] = target == link_exit_ ? 0xe8 : 0xe9;
}

void BlockStore::Unpatch(const Link& patched) {
  PatchJump(patched, patched.in_place ? link_exit_ : OwnerOf(patched).code + patched.stub);
}

/// Nothing leads to the block any more.
void BlockStore::Remove(uint32_t id) {
  Block& removed = block(id);
  uint32_t* at = &buckets_[Bucket(removed.phys, removed.rip, removed.flags)];
  while (*at != id) at = &block(*at).next_in_bucket;
  *at = removed.next_in_bucket;
  RemoveFromPage(id);
  for (uint32_t incoming = removed.first_incoming; incoming != kNone;) {
    Link& from = link(incoming);
    Unpatch(from);
    from.target_block = kNone;
    incoming = from.next_incoming;
    from.next_incoming = from.previous_incoming = kNone;
  }
  removed.first_incoming = kNone;
  removed.valid = false;
}

/// Takes a valid block (no stand-in) and its stand-in out of use.
void BlockStore::Invalidate(uint32_t id, bool for_good) {
  Block& main = block(id);
  if (main.partner != kNone && block(main.partner).valid) Remove(main.partner);
  Remove(id);
  if (for_good) UnlistFamily(id);
}

void BlockStore::WatchJumpCaches(std::span<JumpCache* const> caches, const uint8_t* exec, const uint8_t* miss_target) {
  jump_caches_ = caches;
  exec_ = reinterpret_cast<uint64_t>(exec);
  miss_target_ = reinterpret_cast<uint64_t>(miss_target);
}

void BlockStore::ForgetJumps(const Block& of) {
  const uint64_t entry = JumpIndex(of.rip);
  for (JumpCache* cache : jump_caches_) {
    if (!cache || cache->negated_rip[entry] != uint64_t{0} - of.rip) continue;
    cache->negated_rip[entry] = ~uint64_t{0};
    cache->target[entry] = miss_target_;
  }
}

/// Of all blocks of a segment.
void BlockStore::ForgetJumps(const Segment& segment) {
  if (segment.code_end - segment.code_begin < kSmallSegment) {  // looking through the caches would take longer
    for (uint32_t id = segment.record_begin; id < segment.record_at; id += block(id).record_bytes)
      if (block(id).valid && !block(id).stand_in) ForgetJumps(block(id));
    return;
  }
  const uint64_t first = exec_ + segment.code_begin, bytes = segment.code_end - segment.code_begin;
  for (JumpCache* cache : jump_caches_) {
    if (!cache) continue;
    for (unsigned i = 0; i < kJumpCacheEntries; ++i) {
      if (cache->target[i] - first >= bytes) continue;
      cache->negated_rip[i] = ~uint64_t{0};
      cache->target[i] = miss_target_;
    }
  }
}

unsigned BlockStore::InvalidateRange(uint64_t page_index, unsigned first, unsigned last, bool for_good) {
  unsigned removed = 0;
  for (uint32_t id = page_first_[page_index]; id != kNone;) {
    const Block& candidate = block(id);
    const uint32_t next = candidate.next_in_page;
    if (DependsOn(candidate, first, last)) {
      const uint32_t main = candidate.stand_in ? candidate.partner : id;
      ForgetJumps(block(main));
      Invalidate(main, for_good);
      ++removed;
      // With a stand-in on this very page `next` may have gone as well.
      id = next != kNone && !block(next).valid ? page_first_[page_index] : next;
    } else {
      id = next;
    }
  }
  return removed;
}

bool BlockStore::HoldsCode(uint64_t page_index, unsigned first, unsigned last) {
  CodeLines& known = code_lines_[page_index % code_lines_.size()];
  if (known.page == page_index && !(known.lines & LinesOf(first, last))) return false;
  known = {.page = page_index};
  bool holds = false;
  for (uint32_t id = page_first_[page_index]; id != kNone; id = block(id).next_in_page) {
    known.lines |= LinesOf(block(id));
    holds = holds || DependsOn(block(id), first, last);
  }
  return holds;
}

uint64_t BlockStore::LinesOf(const Block& of) {
  const unsigned end = std::min<unsigned>(BeginOf(of) + of.guest_length, kPageSize);
  const uint64_t body = end > BeginOf(of) ? LinesOf(BeginOf(of), end - 1) : 0;
  return body | (LooksAhead(of) ? LinesOf(of.look_first, std::min<unsigned>(of.look_last, kPageMask)) : 0);
}

void BlockStore::InvalidateCrossing() {
  for (const Segment& segment : segments_)
    for (uint32_t id = segment.record_begin; id < segment.record_at; id += block(id).record_bytes)
      if (block(id).stand_in && block(id).valid) {
        ForgetJumps(block(block(id).partner));
        Invalidate(block(id).partner, true);
      }
}

void BlockStore::Disconnect(uint32_t id) {
  Link& from = link(id);
  if (from.target_block == kNone) return;
  if (from.previous_incoming != kNone)
    link(from.previous_incoming).next_incoming = from.next_incoming;
  else
    block(from.target_block).first_incoming = from.next_incoming;
  if (from.next_incoming != kNone) link(from.next_incoming).previous_incoming = from.previous_incoming;
  from.next_incoming = from.previous_incoming = kNone;
  from.target_block = kNone;
}

void BlockStore::Connect(uint32_t link_id, uint32_t block_id, uint32_t page_id) {
  Link& from = link(link_id);
  if (from.page_id_place) {
    uint8_t* const place = code_ + OwnerOf(from).code + from.page_id_place;
    const uint32_t immediate = from.page_id_negated ? 0 - page_id : page_id;
    if (LoadLe<uint32_t>(place) != immediate) StoreLe<uint32_t>(place, immediate);
  }
  if (from.target_block == block_id) return;
  Disconnect(link_id);
  Block& target = block(block_id);
  PatchJump(from, target.entry());
  from.target_block = block_id;
  from.previous_incoming = kNone;
  from.next_incoming = target.first_incoming;
  if (target.first_incoming != kNone) link(target.first_incoming).previous_incoming = link_id;
  target.first_incoming = link_id;
}

uint32_t BlockStore::FindByCode(uint32_t offset) const {
  // Blocks of a segment are emitted at rising offsets, and none is longer than kBlockReserve.
  const Segment* segment = nullptr;
  for (const Segment& one : segments_)
    if (offset >= one.code_begin && offset < one.code_at) segment = &one;
  if (!segment) return kNone;
  for (uint32_t granule = offset / kGranule; granule >= segment->code_begin / kGranule; --granule) {
    uint32_t id = first_in_granule_[granule];
    if (id == kNone || block(id).code > offset) {
      if (granule == 0) return kNone;
      continue;
    }
    for (; id < segment->record_at && block(id).code <= offset; id += block(id).record_bytes)
      if (offset < block(id).code + block(id).host_size) return id;
    return kNone;
  }
  return kNone;
}

uint16_t BlockStore::GuestOffset(const Block& of, uint32_t offset) const {
  const uint32_t in_block = offset - of.code;
  unsigned host = 0, guest = 0;
  for (const PackedPlace& place : PackedPlacesOf(of)) {
    host += place.host;
    if (host > in_block) break;
    guest = place.guest == PackedPlace::kStart ? 0 : guest + place.guest;
  }
  return static_cast<uint16_t>(guest);
}

uint64_t BlockStore::code_bytes() const {
  uint64_t bytes = 0;
  for (const Segment& segment : segments_) bytes += segment.code_at - segment.code_begin;
  return bytes;
}

uint64_t BlockStore::record_bytes() const {
  uint64_t bytes = 0;
  for (const Segment& segment : segments_) bytes += segment.record_at - segment.record_begin;
  return bytes;
}

void BlockStore::Clear() {
  for (Segment& segment : segments_) DropSegment(segment);
  current_ = 0;
}

}  // namespace nacre::engine::jit
