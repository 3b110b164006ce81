#pragma once
// What a vCPU has cached of the guest's translations, by address space (PCID), so that a load of CR3 drops nothing.
//
// Generated code finds its TLB, code pages and jump caches relative to the GS base. Each address space has a view of
// the JitContext of its own: the vCPU's state and all that belongs to every address space are the same memory in all
// views, the rest is private to each. A switch of address spaces moves the GS base and copies nothing.
//
//   shared            state and glue; supervisor: data TLB, code pages, jump cache; supervisor with AC: code
//   one per space     user: data TLB, code pages, jump cache; supervisor with AC: data TLB
//
// The shared ones hold global pages' entries over a switch and lose the others. Used by the vCPU's thread only.

#include <array>
#include <cstdint>

#include "base/bits.h"
#include "base/result.h"
#include "engine/jit/context.h"

namespace nacre::engine::jit {

inline constexpr unsigned kSpaces = 8;  ///< Linux uses six PCIDs and 0
inline constexpr uint32_t kNoPcid = 0xffffffff;

inline bool IsCanonical(uint64_t address) { return SignExtend(address, 48) == address; }

/// Linear addresses [first, last]; empty when first > last, or both are 0.
struct LinearRange {
  uint64_t first = 0, last = 0;
  bool Contains(uint64_t address) const { return address >= first && address <= last && last != 0; }
  /// Rounded out to 1 GiB, the largest page.
  void Add(uint64_t address) {
    const uint64_t low = address & ~(kGiB - 1), high = address | (kGiB - 1);
    first = last == 0 || low < first ? low : first;
    last = high > last ? high : last;
  }
};

/// About one DataTlb.
struct DataNotes {
  static constexpr uint8_t kGlobal = 1, kLarge = 2;
  static constexpr unsigned kFilled = 64;
  bool non_global = false;        ///< it holds entries of pages that are not global
  uint32_t entries = 0;           ///< its size
  uint32_t fills = 0;             ///< since the last flush of what is not global
  uint32_t conflicts = 0;         ///< fills that took the place of another page, since the last flush or change of size
  uint32_t filled_left = 0;       ///< free places of `filled`, from its start; 0: what else is filled is not known
  LinearRange large;              ///< holds all entries of large pages
  uint16_t filled[kFilled] = {};  ///< entries filled since everything was flushed
  uint8_t entry[kTlbEntries] = {};

  void NoteFill(unsigned index) {
    if (filled_left != 0) filled[--filled_left] = static_cast<uint16_t>(index);
  }
};

/// About one CodePages and one JumpCache.
struct CodeNotes {
  static constexpr unsigned kJumps = 2000, kSlots = 128;
  bool non_global = false;
  uint32_t mode_flags = 0;  ///< BlockFlags that the jump cache was filled under
  LinearRange large;
  uint16_t jump_count = 0;  ///< filled entries of the jump cache; more than kJumps: not all of them are in `jump`
  uint16_t jump[kJumps] = {};
  LinearRange pages;        ///< holds all pages that were noted
  uint16_t slot_count = 0;  ///< used page slots; more than kSlots: not all of them are in `slot`
  uint16_t slot[kSlots] = {};
  /// Which page of the slot may have code in the jump cache: SeenTag, or kSeveral.
  uint16_t page_seen[kPageSlots] = {};

  static constexpr uint16_t kSeveral = 0xffff;
  static constexpr uint16_t SeenTag(uint64_t linear_page) {
    return static_cast<uint16_t>(linear_page / kPageSlots % (kSeveral - 1) + 1);
  }
  void NotePage(uint64_t linear_page) {
    pages.Add(linear_page << 12);
    const auto at = static_cast<uint16_t>(linear_page % kPageSlots);
    uint16_t& seen = page_seen[at];
    if (seen == SeenTag(linear_page)) return;
    if (seen == 0 && slot_count <= kSlots) {
      if (slot_count < kSlots) slot[slot_count] = at;
      ++slot_count;
    }
    seen = seen == 0 ? SeenTag(linear_page) : kSeveral;
  }
  bool MayHold(uint64_t linear_page) const {
    const uint16_t seen = page_seen[linear_page % kPageSlots];
    return (seen == SeenTag(linear_page) || seen == kSeveral) && pages.Contains(linear_page << 12);
  }
};

/// A page that code was fetched from.
struct CodePage {
  uint64_t key = 0;  ///< (linear page number * 2 + user) + 1; 0: empty
  uint64_t generation = 0;
  uint64_t phys_page = 0;
  const uint8_t* host = nullptr;
  uint32_t id = 0;  ///< of the pair of pages (JitVcpu::PageIdOf); 0: not asked for yet
  bool global = false, large = false;
};
inline constexpr unsigned kCodePages = 2048;

/// The private part of a view that generated code does not see. All zero is empty.
struct AddressSpace {
  DataNotes data[kContexts - 1];  ///< of user and of supervisor with AC
  CodeNotes code;                 ///< of user
  LinearRange global;             ///< holds everything cached here of global pages
  LinearRange large_code;         ///< holds the large pages in `pages`
  uint64_t generation[2] = {};    ///< of the valid entries of `pages`: those that are not global, and global ones
  CodePage pages[kCodePages];
};

struct AddressSpaceView {
  JitContext context;
  alignas(kPageSize) AddressSpace space;
};

/// The mapping that holds the views, and what is shared by them.
class AddressSpaces {
 public:
  static Result<AddressSpaces> Create();
  AddressSpaces() = default;
  AddressSpaces(AddressSpaces&& other) noexcept;
  AddressSpaces& operator=(AddressSpaces&& other) noexcept;
  AddressSpaces(const AddressSpaces&) = delete;
  AddressSpaces& operator=(const AddressSpaces&) = delete;
  ~AddressSpaces();

  AddressSpaceView& view(unsigned index) { return views_[index]; }

 private:
  AddressSpaceView* views_ = nullptr;
};

}  // namespace nacre::engine::jit
