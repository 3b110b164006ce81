#pragma once
// Translated blocks and what hangs on them. A block is a run of guest instructions within one page, translated for one
// set of mode flags. Found by (physical address, RIP, flags); linked to others by patched jumps. Compiled into code
// that runs with guest vectors live (block_store_nosimd.cc): no allocation behind the caller's back there. One thread.

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "engine/jit/chunked_vector.h"
#include "engine/jit/context.h"
#include "memory/address.h"

namespace nacre::engine::jit {

/// What a translation depends on beside its bytes and address.
enum BlockFlags : uint32_t {
  kFlagContextMask = 3,  ///< kContextSupervisor, kContextUser, kContextSupervisorAc
  kFlagCode64 = 1 << 2,
  kFlagFlat = 1 << 3,  ///< CS, DS, ES, SS: base 0, limit 4 GiB, DS/ES/SS writable (always in 64-bit code)
  kFlagFs = 1 << 4,    ///< FS is usable with a limit of 4 GiB (always in 64-bit code)
  kFlagGs = 1 << 5,
  kFlagX87 = 1 << 6,  ///< x87/MMX may execute without #NM or #UD
  kFlagSse = 1 << 7,
  kFlagAvx = 1 << 8,
  kFlagCpl0 = 1 << 9,
  kFlagSmap = 1 << 10,       ///< CR4.SMAP: AC selects the context
  kFlagTsc = 1 << 12,        ///< RDTSC and RDTSCP do not fault
  kFlagFsGsBase = 1 << 13,   ///< CR4.FSGSBASE
  kFlagUngrouped = 1 << 14,  ///< every access with a check of its own: a shared check of the usual block has failed
  kFlagAvx512 = 1 << 15,     ///< with kFlagAvx: EVEX and opmask instructions may execute
  kFlagSingle = 1 << 11,     ///< one instruction a block, no links (budgets, lockstep)
};

inline constexpr uint32_t kNone = 0xffffffff;
inline constexpr unsigned kMaxInstructions = 64;

struct Block {
  uint64_t phys = 0;
  uint64_t rip = 0;
  uint32_t code = 0;       ///< offset in the code buffer: the entry of indirect branches, which compares R10 with rip
  uint32_t host_size = 0;  ///< hot and cold part
  uint32_t flags = 0;
  uint32_t page = 0;  ///< GuestMemory's index of its page
  uint32_t next_in_bucket = kNone;
  uint32_t next_in_page = kNone;
  uint32_t first_incoming = kNone;
  uint32_t alias_of = kNone;     ///< a stand-in on the second page of a block whose last instruction crosses pages
  uint32_t map_begin = 0;        ///< first InstructionPlace
  uint16_t guest_length = 0;     ///< bytes, within the page
  uint16_t undefined_flags = 0;  ///< arithmetic flags that the manual leaves undefined at the end (for lockstep)
  uint16_t look_first = 0;       ///< page offsets of successors' bytes that decided which flags are dead at the end:
  uint16_t look_last = 0;        ///< [first, last], empty when first > last
  uint8_t instruction_count = 0;
  uint8_t place_count = 0;  ///< more than instructions in a loop (emit_loop.cc)
  uint8_t body = 0;         ///< from `code` to where links enter
  bool valid = false;

  uint32_t entry() const { return code + body; }
};

/// A direct exit of a block. Places are offsets in the code buffer.
struct Link {
  uint64_t target_rip = 0;
  uint32_t displacement = 0;   ///< of the jump, 32 bits
  uint32_t stub = 0;           ///< where it points while unlinked
  uint32_t page_id_place = 0;  ///< links across pages: the 32-bit immediate that names the target page; else 0
  uint32_t page_id = 0;        ///< 0: not known yet
  uint32_t next_incoming = kNone;
  uint32_t target_block = kNone;
  uint16_t target_flags = 0;
  uint16_t live_flags = 0;  ///< arithmetic flags that are right when the link is taken
  bool page_id_negated = false;
};

/// REP-prefixed string instructions of 64-bit code that JitVcpu::FastString knows, gathers and scatters that FastGather
/// knows; `size` is the element's.
enum class StringKind : uint8_t { kOther, kMove, kStore, kGather };

/// A place in a block that leaves it out of line.
struct Site {
  uint64_t rip = 0;       ///< of the guest instruction
  uint32_t retry = 0;     ///< offset in the code buffer: TLB misses go on here
  uint16_t mnemonic = 0;  ///< for statistics and fast paths; 0: undecodable or across pages
  uint8_t size = 0;
  uint8_t length : 4 = 0;  ///< bytes of the instruction, where `string` or the mnemonic has a fast path
  uint8_t context : 2 = 0;
  bool write : 1 = false;
  bool group : 1 = false;        ///< the check of an access group
  bool next_page : 1 = false;    ///< left because the page after that of `rip` was not known to be mapped as before
  bool control : 1 = false;      ///< a MOV to control register `to`
  bool has_address : 1 = false;  ///< JitContext::slow_address holds the memory operand's linear address
  StringKind string = StringKind::kOther;
  /// Registers of MOV to control registers, `from` of INVPCID; of gathers: bytes of an index, scale.
  uint8_t to = 0, from = 0;
  /// What selects elements of the operand in memory: which mask (ElementMask::which), and how many of its bits count.
  uint8_t opmask = 0, opmask_bits = 0;
};
static_assert(sizeof(Site) <= 24);

/// Host offset in a block to guest instruction, for host faults.
struct InstructionPlace {
  uint16_t host_offset = 0;
  uint16_t guest_offset = 0;
};

/// Storage of everything above; emptied as a whole when the code cache is full.
class BlockStore {
 public:
  /// `code`: the code buffer in its writable view, to which all offsets refer.
  BlockStore(uint64_t guest_pages, uint8_t* code);

  uint32_t Find(uint64_t phys, uint64_t rip, uint32_t flags) const;
  /// Adds a filled block; `page_index` is GuestMemory's.
  uint32_t Add(const Block& block, uint64_t page_index);
  /// Makes writes to the first `bytes` bytes of a second page invalidate block `of`.
  void AddAlias(uint32_t of, uint64_t page_index, uint64_t phys_page_start, unsigned bytes);
  /// Unlinks and forgets the blocks of a page that overlap [first, last] (byte offsets in the page). Returns how many.
  unsigned InvalidateRange(uint64_t page_index, unsigned first, unsigned last, std::span<JumpCache* const> caches,
                           const uint8_t* miss_target);
  bool PageHasBlocks(uint64_t page_index) const { return page_first_[page_index] != kNone; }
  /// Points a link at a block from now on. `page_id`: the pair of pages under which the target was found, used by links
  /// across pages.
  void Connect(uint32_t link, uint32_t block, uint32_t page_id);
  /// Block whose code contains an offset of the code buffer, or kNone.
  uint32_t FindByCode(uint32_t offset) const;
  /// Offset of the guest instruction in `block` that the code at `offset` belongs to.
  uint16_t GuestOffset(const Block& block, uint32_t offset) const;
  void Clear();

  Block& block(uint32_t index) { return blocks_[index]; }
  Link& link(uint32_t index) { return links_[index]; }
  Site& site(uint32_t index) { return sites_[index]; }

  uint32_t AddLink(const Link& link) {
    links_.push_back(link);
    return static_cast<uint32_t>(links_.size() - 1);
  }
  uint32_t AddSite(const Site& site) {
    sites_.push_back(site);
    return static_cast<uint32_t>(sites_.size() - 1);
  }
  ChunkedVector<InstructionPlace>& places() { return places_; }
  std::span<const uint32_t> pages_with_blocks() const { return pages_; }

 private:
  static constexpr uint32_t kBuckets = 1 << 18;
  static uint32_t Bucket(uint64_t phys, uint64_t rip, uint32_t flags);
  void Remove(uint32_t index);
  void RemoveFromPage(uint32_t index);
  void Disconnect(uint32_t link);

  void PatchJump(const Link& link, uint32_t target);

  uint8_t* code_;
  ChunkedVector<Block> blocks_;
  ChunkedVector<Link> links_;
  ChunkedVector<Site> sites_;
  ChunkedVector<InstructionPlace> places_;
  std::vector<uint32_t> buckets_;
  std::vector<uint32_t> page_first_;  ///< by page index
  std::vector<uint32_t> pages_;       ///< pages that ever got a block since Clear
};

}  // namespace nacre::engine::jit
