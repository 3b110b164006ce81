// Translations used again. The same bytes come back at another linear address (every process has its libraries
// elsewhere), in another physical page (copies, pages freed and read again), or in their old place (patched text,
// generated code): their translation is then revived, moved or copied, and what depends on its place is adjusted.
// Bytes are compared in full, those that were only looked at included.

#include <immintrin.h>

#include <algorithm>
#include <memory>

#include "base/check.h"
#include "engine/jit/jit_vcpu.h"

namespace nacre::engine::jit {
namespace {

/// No memcpy and memcmp of the library here: they would use the guest's vector registers.
void CopyWords(uint8_t* to, const uint8_t* from, uint32_t bytes) {
  for (uint32_t i = 0; i < bytes; i += 8) __builtin_memcpy(to + i, from + i, 8);
}

bool Same(const uint8_t* a, const uint8_t* b, unsigned bytes) {
  for (; bytes >= 8; bytes -= 8, a += 8, b += 8)
    if (LoadLe<uint64_t>(a) != LoadLe<uint64_t>(b)) return false;
  for (; bytes > 0; --bytes)
    if (*a++ != *b++) return false;
  return true;
}

constexpr unsigned kHashed = 8;

/// Bytes at the start of a block that are compared: the hashed ones always.
unsigned ComparedLength(const Block& block) {
  const auto room = static_cast<unsigned>(kPageSize - (block.phys & kPageMask));
  const unsigned hashed = room < kHashed ? room : kHashed;
  return block.guest_length > hashed ? block.guest_length : hashed;
}

/// Appends to a list of records.
class Appender {
 public:
  explicit Appender(uint8_t* at) : at_(at) {}
  template <typename T>
  void Add(const T& value) {
    __builtin_memcpy(at_, &value, sizeof value);
    at_ += sizeof value;
  }
  uint8_t* at() const { return at_; }

 private:
  uint8_t* at_;
};

/// Returns how many PackedPlaces that were.
unsigned PackPlaces(Appender& to, std::span<const InstructionPlace> places) {
  unsigned host = 0, guest = 0, count = 0;
  for (const InstructionPlace& place : places) {
    NACRE_CHECK(place.host_offset >= host && (place.guest_offset >= guest || place.guest_offset == 0));
    unsigned distance = place.host_offset - host;
    for (; distance >= PackedPlace::kMore; distance -= PackedPlace::kMore, ++count)
      to.Add(PackedPlace{.host = PackedPlace::kMore});
    const unsigned step = place.guest_offset - guest;
    NACRE_CHECK(place.guest_offset < guest || step < PackedPlace::kStart);
    to.Add(PackedPlace{.host = static_cast<uint8_t>(distance),
                       .guest = place.guest_offset < guest ? PackedPlace::kStart : static_cast<uint8_t>(step)});
    ++count;
    host = place.host_offset;
    guest = place.guest_offset;
  }
  return count;
}

/// Returns how many PackedFixups that were.
unsigned PackFixups(Appender& to, std::span<const Fixup> fixups) {
  unsigned last = 0, count = 0;
  for (const Fixup& fixup : fixups) {
    NACRE_CHECK(fixup.at >= last);
    for (; fixup.at - last > PackedFixup::kMost; last += PackedFixup::kMost, ++count)
      to.Add(PackedFixup{.distance = PackedFixup::kMost, .kind = Fixup::kNothing});
    to.Add(PackedFixup{.distance = static_cast<uint16_t>((fixup.at - last) & PackedFixup::kMost), .kind = fixup.kind});
    ++count;
    last = fixup.at;
  }
  return count;
}

void AddTo32(uint8_t* at, uint32_t delta) { StoreLe<uint32_t>(at, LoadLe<uint32_t>(at) + delta); }

}  // namespace

std::span<const PackedPlace> BlockStore::PackedPlacesOf(const Block& of) {
  return {reinterpret_cast<const PackedPlace*>(reinterpret_cast<const uint8_t*>(&of) + of.places), of.place_count};
}

std::span<const PackedFixup> BlockStore::PackedFixupsOf(const Block& of) {
  return {reinterpret_cast<const PackedFixup*>(std::to_address(PackedPlacesOf(of).end())), of.fixup_count};
}

std::span<const Look> BlockStore::LooksOf(const Block& of) {
  return {reinterpret_cast<const Look*>(std::to_address(PackedFixupsOf(of).end())), of.look_count};
}

std::vector<InstructionPlace> BlockStore::PlacesOf(const Block& of) {
  std::vector<InstructionPlace> places;
  unsigned host = 0, guest = 0;
  for (const PackedPlace& packed : PackedPlacesOf(of)) {
    host += packed.host;
    guest = packed.guest == PackedPlace::kStart ? 0 : guest + packed.guest;
    if (packed.host == PackedPlace::kMore) continue;
    places.push_back({static_cast<uint16_t>(host), static_cast<uint16_t>(guest)});
  }
  return places;
}

std::vector<Fixup> BlockStore::FixupsOf(const Block& of) {
  std::vector<Fixup> fixups;
  ForEachFixup(of, [&](const Fixup& fixup) { fixups.push_back(fixup); });
  return fixups;
}

const uint8_t* BlockStore::BytesOf(const Block& of) {
  return reinterpret_cast<const uint8_t*>(std::to_address(LooksOf(of).end()));
}

uint32_t BlockStore::ContentHash(const uint8_t* bytes, unsigned room, uint32_t flags, unsigned page_offset) {
  uint64_t hash = 0;
  if (room >= kHashed) {
    hash = LoadLe<uint64_t>(bytes);
  } else {
    for (unsigned i = 0; i < room; ++i) hash = hash << 8 | bytes[i];
  }
  hash = (hash ^ flags ^ uint64_t{page_offset} << 40) * 0x9e3779b97f4a7c15;
  hash = (hash ^ hash >> 32) * 0x9e3779b97f4a7c15;
  return static_cast<uint32_t>(hash >> 40) & (kContents - 1);
}

void BlockStore::Finish(uint32_t id, const Lists& lists, uint64_t page_index) {
  Segment& segment = segments_[current_];
  Block& done = block(id);
  done.places = static_cast<uint16_t>(segment.record_at - id);
  Appender to(records_ + segment.record_at);
  const unsigned places = PackPlaces(to, lists.places);
  NACRE_CHECK(places <= UINT8_MAX);
  done.place_count = static_cast<uint8_t>(places);
  if (lists.reusable) {
    done.fixup_count = static_cast<uint16_t>(PackFixups(to, lists.fixups));
    done.look_count = static_cast<uint8_t>(lists.looks.size());
    for (const Look& look : lists.looks) to.Add(look);
    const uint8_t* body = lists.page + (done.phys & kPageMask);
    for (unsigned i = 0; i < ComparedLength(done); ++i) to.Add(body[i]);
    for (const Look& look : lists.looks)
      for (unsigned i = 0; i < look.length; ++i) to.Add(lists.page[look.offset + i]);
  }
  segment.record_at = static_cast<uint32_t>((to.at() - records_ + 7) & ~ptrdiff_t{7});
  segment.code_at = done.code + done.host_size;
  done.record_bytes = static_cast<uint16_t>(segment.record_at - id);
  NoteGranule(id);
  Enter(id, page_index);
  if (lists.reusable) List(id);
}

void BlockStore::List(uint32_t id) {
  Block& listed = block(id);
  const auto offset = static_cast<unsigned>(listed.phys & kPageMask);
  uint32_t& first = contents_[ContentHash(BytesOf(listed), kPageSize - offset, listed.flags, offset)];
  listed.next_content = first;
  listed.listed = true;
  first = id;
}

/// Leaves its family; the next relative takes its place in the table.
void BlockStore::Unlist(uint32_t id) {
  Block& leaving = block(id);
  const uint32_t heir = leaving.next_relative != id ? leaving.next_relative : kNone;
  if (heir != kNone) {
    block(heir).previous_relative = leaving.previous_relative;
    block(leaving.previous_relative).next_relative = heir;
  }
  leaving.next_relative = leaving.previous_relative = id;
  if (!leaving.listed) return;
  leaving.listed = false;
  const auto offset = static_cast<unsigned>(leaving.phys & kPageMask);
  uint32_t* at = &contents_[ContentHash(BytesOf(leaving), kPageSize - offset, leaving.flags, offset)];
  while (*at != id) at = &block(*at).next_content;
  if (heir != kNone) {
    block(heir).listed = true;
    block(heir).next_content = leaving.next_content;
    *at = heir;
  } else {
    *at = leaving.next_content;
  }
  leaving.next_content = kNone;
}

void BlockStore::Forget(uint32_t id) {
  ForgetJumps(block(id));
  Invalidate(id, true);
}

void BlockStore::UnlistFamily(uint32_t id) {
  for (uint32_t next = block(id).next_relative; next != id; next = block(id).next_relative) Unlist(next);
  Unlist(id);
}

bool BlockStore::SameContent(const Block& known, const Wanted& wanted) const {
  if (known.flags != wanted.flags || (known.body != 0) != wanted.indirect || (known.compact && !wanted.compact) ||
      ((known.phys ^ wanted.phys) & kPageMask) != 0)
    return false;
  const uint8_t* bytes = BytesOf(known);
  const unsigned length = ComparedLength(known);
  if (!Same(bytes, wanted.page + (wanted.phys & kPageMask), length)) return false;
  bytes += length;
  for (const Look& look : LooksOf(known)) {
    if (!Same(bytes, wanted.page + look.offset, look.length)) return false;
    bytes += look.length;
  }
  return true;
}

/// Whether the code can be adjusted to another RIP: constants keep their width, and what was forward stays forward,
/// because backward links look for requests.
bool BlockStore::CanMove(uint32_t moving_id, uint64_t rip) const {
  const Block& moving = block(moving_id);
  const uint64_t delta = rip - moving.rip;
  // Constants in code of other segments than the flat one do not move with it.
  const bool placed =
      (moving.flags & kFlagCode16) || (!(moving.flags & kFlagCode64) && ((moving.rip | rip) >> kCodeSegmentShift) != 0);
  if (placed) return delta == 0;
  for (uint32_t id = FirstLink(moving_id); id != kNone; id = NextLink(id)) {
    const uint64_t from = link(id).target_rip, to = MoveCode(from, delta, moving.flags);
    if ((from <= moving.rip) != (to <= rip)) return false;
  }
  bool can = true;
  ForEachFixup(moving, [&](const Fixup& fixup) {
    const uint8_t* at = code_ + moving.code + fixup.at;
    if (fixup.kind == Fixup::kRipSigned) {
      const uint64_t to = SignExtend(LoadLe<uint32_t>(at), 32) + delta;
      can &= to == SignExtend(to, 32);
    } else if (fixup.kind == Fixup::kRipNegated) {
      const uint64_t to = SignExtend(LoadLe<uint32_t>(at), 32) - delta;
      can &= to == SignExtend(to, 32);
    } else if (fixup.kind == Fixup::kRipZero) {
      can &= ((LoadLe<uint32_t>(at) + delta) >> 32) == 0;
    }
  });
  return can;
}

/// The code and the records stand where they shall; adjusts what depends on that and on RIP, which becomes `rip`. Links
/// lead nowhere afterwards.
void BlockStore::Relocate(uint32_t id, uint32_t code_delta, uint32_t record_delta, uint64_t rip) {
  Block& moved = block(id);
  const uint64_t rip_delta = rip - moved.rip;
  uint8_t* const code = code_ + moved.code;
  moved.rip = rip;
  ForEachFixup(moved, [&](const Fixup& fixup) {
    uint8_t* at = code + fixup.at;
    if (fixup.stub_before()) AddTo32(at - 4, 0 - code_delta);
    switch (fixup.kind) {
      case Fixup::kStub:
        AddTo32(at, 0 - code_delta);
        break;
      case Fixup::kLink: {
        AddTo32(at, record_delta);
        Link& own = link(LoadLe<uint32_t>(at));
        own.target_rip = MoveCode(own.target_rip, rip_delta, moved.flags);
        if (own.page_id_place) StoreLe<uint32_t>(code + own.page_id_place, static_cast<uint32_t>(kUnknownPage));
        own.next_incoming = own.previous_incoming = own.target_block = kNone;
        Unpatch(own);
        break;
      }
      case Fixup::kLinkAgain:
      case Fixup::kSite:
        AddTo32(at, record_delta);
        break;
      case Fixup::kRip64:
        StoreLe<uint64_t>(at, LoadLe<uint64_t>(at) + rip_delta);
        break;
      case Fixup::kRipNegated:
        AddTo32(at, 0 - static_cast<uint32_t>(rip_delta));
        break;
      case Fixup::kRipSigned:
      case Fixup::kRipZero:
      case Fixup::kRipWrap:
        AddTo32(at, static_cast<uint32_t>(rip_delta));
        break;
      case Fixup::kPageSlot: {
        const uint32_t place = LoadLe<uint32_t>(at) - offsetof(JitContext, code_pages);
        const uint32_t slot = place % sizeof(CodePages) / 4;
        const auto to = static_cast<uint32_t>((slot + (rip_delta >> 12)) % kPageSlots);
        AddTo32(at, (to - slot) * 4);
        break;
      }
      case Fixup::kNothing:
        break;
    }
  });
}

/// A copy at the current place, which belongs to no list yet.
uint32_t BlockStore::Copy(uint32_t id) {
  Segment& segment = segments_[current_];
  const Block& from = block(id);
  const uint32_t code = NextCode(from.compact);
  const uint32_t copy = segment.record_at;
  CopyWords(code_ + code, code_ + from.code, from.host_size);  // up to 7 bytes too much: there is room
  CopyWords(records_ + copy, records_ + id, from.record_bytes);
  segment.code_at = code + from.host_size;
  segment.record_at = copy + from.record_bytes;
  Block& to = block(copy);
  to.code = code;
  to.next_in_bucket = to.next_in_page = to.previous_in_page = to.first_incoming = kNone;
  to.next_content = kNone;
  to.next_relative = to.previous_relative = copy;
  to.valid = to.listed = false;
  return copy;
}

uint32_t BlockStore::Reuse(const Wanted& wanted) {
  const auto offset = static_cast<unsigned>(wanted.phys & kPageMask);
  uint32_t first = contents_[ContentHash(wanted.page + offset, kPageSize - offset, wanted.flags, offset)];
  for (unsigned tries = 0; first != kNone && !SameContent(block(first), wanted); first = block(first).next_content)
    if (++tries == kMaxTries) return kNone;
  if (first == kNone) return kNone;

  uint32_t dead = kNone, id = first;
  for (unsigned i = 0; i < kFamilyTries; ++i) {
    const Block& one = block(id);
    if (!one.valid && one.phys == wanted.phys && one.rip == wanted.rip) {  // its links are as good as they were
      Enter(id, wanted.page_index);
      ++counters_.revived;
      counters_.reused_instructions += one.instruction_count;
      return id;
    }
    if (!one.valid) dead = id;
    id = one.next_relative;
    if (id == first) break;
  }
  const uint32_t last = block(first).previous_relative;
  id = dead != kNone ? dead : clock_ - block(last).born > kOld ? last : kNone;
  if (!CanMove(id != kNone ? id : first, wanted.rip)) return kNone;
  if (id != kNone) {
    if (block(id).valid) {
      ForgetJumps(block(id));
      Invalidate(id, false);
      ++counters_.taken;
    }
    for (uint32_t out = FirstLink(id); out != kNone; out = NextLink(out)) Disconnect(out);
    Relocate(id, 0, 0, wanted.rip);
    ++counters_.moved;
  } else {
    const Block& from = block(first);
    const uint32_t reserve = BlockReserve(from.instruction_count, from.compact);
    // Copy aligns the code and copies whole words.
    if (!HasRoom(std::max(reserve, from.host_size + 2 * kCodeAlignment),
                 std::max<uint32_t>(reserve, from.record_bytes)))
      return kNone;
    id = Copy(first);
    Relocate(id, block(id).code - block(first).code, id - first, wanted.rip);
    NoteGranule(id);
    ++counters_.copied;
  }
  Block& made = block(id);
  made.phys = wanted.phys;
  Enter(id, wanted.page_index);
  if (id != first) {  // second in the family: the last one is the next to be moved
    Unlist(id);
    made.previous_relative = first;
    made.next_relative = block(first).next_relative;
    block(made.next_relative).previous_relative = id;
    block(first).next_relative = id;
  }
  counters_.reused_instructions += made.instruction_count;
  return id;
}

/// The block at `rip` by an earlier translation; kNone: there is none, or the page's bytes may not be read yet.
uint32_t JitVcpu::Reuse(uint64_t rip, uint32_t flags) {
  const CodePage* page = FetchPage(rip);
  if (!page) return kNone;
  const uint64_t page_index = memory_.PageIndex(page->host);
  if (!(code_page_table_.holders(page_index) & CodePageTable::Bit(config_.index))) return kNone;
  const uint64_t start = __rdtsc(), taken = store_->counters().taken;
  const uint32_t id = store_->Reuse({.phys = page->phys_page << 12 | (rip & kPageMask),
                                     .rip = rip,
                                     .page_index = page_index,
                                     .page = page->host,
                                     .flags = flags,
                                     .indirect = WantsIndirectEntry(),
                                     .compact = WantsCompact(page->phys_page << 12 | (rip & kPageMask))});
  if (id == kNone) return kNone;
  counters_.reuse_ticks += __rdtsc() - start;
  if (store_->counters().taken != taken) EmptyReturnStacks();  // returns may have been on their way into it
  // A block that has moved has taken its links with it.
  if (pending_link_ != kNone && pending_link_ - id < store_->block(id).record_bytes) pending_link_ = kNone;
  return id;
}

}  // namespace nacre::engine::jit
