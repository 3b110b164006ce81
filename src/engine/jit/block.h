#pragma once
// Translated blocks and what hangs on them. A block is a run of guest instructions within one page, translated for one
// set of mode flags. Found by (physical address, RIP, flags); linked to others by patched jumps. Compiled into code
// that runs with guest vectors live (block_store_nosimd.cc, block_reuse_nosimd.cc): no allocation there. One thread.
//
// Room is divided into segments, each with a part of the code buffer and a part of the records, filled one after the
// other; when all are full, the oldest is emptied. A block's records (Block, links, sites, and the lists behind them)
// lie together, so that a block is copied or dropped as a whole. Records are named by their offset.

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/jit/code_segments.h"
#include "engine/jit/context.h"
#include "memory/address.h"
#include "x86/instruction.h"

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
  // Only outside 64-bit code. Of FS and GS the first bit of the kind is kFlagFs and kFlagGs.
  kFlagCode16 = 1 << 16,         ///< CS.D is clear
  kFlagStack16 = 1 << 17,        ///< SS.B is clear
  kFlagReal = 1 << 18,           ///< real-address mode or virtual-8086 mode
  kFlagPlainSegments = 1 << 19,  ///< with kFlagReal: no segment has attributes that a load there would change
  kFlagEsKind = 1 << 20,         ///< two bits each: SegmentKind; none of them with kFlagFlat
  kFlagSsKind = 1 << 22,
  kFlagDsKind = 1 << 24,
  kFlagFsLimited = 1 << 26,
  kFlagGsLimited = 1 << 27,
  kFlagIopl = 1 << 28,  ///< CLI, STI and PUSHF do not fault although CPL is not 0
  kFlagCsReadable = 1 << 29,
};

/// How accesses through a segment register are translated.
enum class SegmentKind : uint8_t {
  kNone,     ///< by the interpreter: not usable, not writable, or expand-down
  kWhole,    ///< any base, a limit of 4 GiB
  kSmall,    ///< any base, a limit of 64 KiB
  kLimited,  ///< base and limit are looked at
  kFlat,     ///< no base, a limit of 4 GiB
};

/// Of ES, SS, DS, FS and GS.
constexpr SegmentKind SegmentKindOf(uint32_t flags, unsigned segment) {
  constexpr uint32_t kShift[] = {20, 0, 22, 24};
  if (segment == x86::kFs)
    return static_cast<SegmentKind>((flags & kFlagFs ? 1 : 0) | (flags & kFlagFsLimited ? 2 : 0));
  if (segment == x86::kGs)
    return static_cast<SegmentKind>((flags & kFlagGs ? 1 : 0) | (flags & kFlagGsLimited ? 2 : 0));
  return flags & kFlagFlat ? SegmentKind::kFlat : static_cast<SegmentKind>(flags >> kShift[segment] & 3);
}

/// A code address and a distance within its segment, as addresses wrap there.
constexpr uint64_t MoveCode(uint64_t address, uint64_t distance, uint32_t flags) {
  if (flags & kFlagCode64) return address + distance;
  return (address & kCodeSegmentMask) | ((address + distance) & ~kCodeSegmentMask);
}

constexpr x86::CodeSize CodeSizeOf(uint32_t flags) {
  return flags & kFlagCode64 ? x86::CodeSize::k64 : flags & kFlagCode16 ? x86::CodeSize::k16 : x86::CodeSize::k32;
}

inline constexpr uint32_t kNone = 0xffffffff;
inline constexpr unsigned kMaxInstructions = 64;
/// Conditional branches within a block, and instructions in a block that has any.
inline constexpr unsigned kMaxSideExits = 4, kMaxWithSideExits = 32;
/// The most bytes of code, and of records, that a block of so many instructions can take; each is less than 64 KiB.
constexpr uint32_t BlockReserve(unsigned instructions, bool compact) {
  return 2048 + instructions * (compact ? 256 : 512);
}
inline constexpr uint32_t kBlockReserve = BlockReserve(kMaxInstructions, false);
inline constexpr uint32_t kCodeAlignment = 16;
static_assert(kBlockReserve <= UINT16_MAX);

/// What a link across pages expects in the slot of its target page while the id is not known: no page has it, negated
/// or not.
inline constexpr int32_t kUnknownPage = INT32_MIN;

struct Block {
  uint64_t phys = 0;
  uint64_t rip = 0;   ///< see code_segments.h
  uint32_t code = 0;  ///< offset in the code buffer: the entry of indirect branches, which compares R10 with rip
  uint32_t page = 0;  ///< GuestMemory's index of its page
  uint32_t next_in_bucket = kNone;
  uint32_t next_in_page = kNone, previous_in_page = kNone;
  uint32_t first_incoming = kNone;  ///< link
  /// A block whose last instruction crosses pages has a stand-in on the second page: that, and of the stand-in, the
  /// block.
  uint32_t partner = kNone;
  // Reuse: blocks of the same bytes and flags at several addresses are a family, a ring, the first of which is in the
  // table of contents.
  uint32_t next_content = kNone;
  uint32_t next_relative = kNone, previous_relative = kNone;
  uint32_t born = 0;          ///< on the clock of BlockStore::Enter
  uint32_t flags = 0;         ///< BlockFlags
  uint16_t first_link = 0;    ///< bytes from this Block to its first Link, the rest by Link::next_of_block; 0: none
  uint16_t record_bytes = 0;  ///< of the whole group that starts with this Block
  uint16_t host_size = 0;     ///< hot and cold part
  uint16_t hot_size = 0;      ///< host code without its cold part
  uint16_t places = 0;        ///< bytes from this Block to its places; fixups, looks and bytes follow
  uint16_t fixup_count = 0;   ///< Fixups
  uint16_t guest_length = 0;  ///< bytes, within the page
  uint16_t look_first = 0;    ///< page offsets of successors' bytes that decided which flags are dead at the end:
  uint16_t look_last = 0;     ///< [first, last], empty when first > last
  uint16_t undefined_flags : 12 = 0;  ///< arithmetic flags that the manual leaves undefined at the end (for lockstep)
  bool valid : 1 = false;
  bool compact : 1 = false;   ///< see TranslateRequest
  bool listed : 1 = false;    ///< first of its family: in the table of contents
  bool stand_in : 1 = false;  ///< of `partner`; no lookup asks for it
  uint8_t instruction_count = 0;
  uint8_t place_count = 0;  ///< more than instructions in a loop (emit_loop.cc)
  uint8_t look_count = 0;   ///< Looks: what else than the body was looked at
  uint8_t body = 0;         ///< from `code` to where links enter; 0: no entry for indirect branches

  uint32_t entry() const { return code + body; }
};
static_assert(sizeof(Block) <= 88);

/// A direct exit of a block. Places are bytes from the start of the block's code.
struct Link {
  uint64_t target_rip = 0;
  uint32_t next_incoming = kNone, previous_incoming = kNone;
  uint32_t target_block = kNone;
  uint16_t owner = 0;            ///< bytes from the Block to this
  uint16_t next_of_block = 0;    ///< bytes from the Block to its next Link; 0: none
  uint16_t displacement = 0;     ///< of the jump, 32 bits
  uint16_t stub = 0;             ///< where it points while unlinked
  uint16_t page_id_place = 0;    ///< links across pages: the 32-bit immediate that names the target page; else 0
  uint16_t live_flags : 12 = 0;  ///< arithmetic flags that are right when the link is taken
  bool page_id_negated : 1 = false;
  bool in_place : 1 = false;  ///< unlinked it is a call of the way out, instead of a jump to `stub`, which makes one
};
static_assert(sizeof(Link) == 32);

/// REP-prefixed string instructions of 64-bit code that JitVcpu::FastString knows, gathers and scatters that FastGather
/// knows, and any repeated ones outside 64-bit code; `size` is the element's.
enum class StringKind : uint8_t { kOther, kMove, kStore, kGather, kSegments };

/// A place in a block that leaves it out of line.
struct Site {
  uint16_t owner = 0;         ///< bytes from the Block to this
  uint16_t guest_offset = 0;  ///< of the guest instruction
  uint16_t retry = 0;         ///< bytes from the start of the block's code: TLB misses go on here
  uint16_t mnemonic = 0;      ///< for statistics and fast paths; 0: undecodable or across pages
  uint8_t size = 0;
  uint8_t length : 4 = 0;  ///< bytes of the instruction, where `string` or the mnemonic has a fast path
  uint8_t context : 2 = 0;
  bool write : 1 = false;
  bool group : 1 = false;        ///< the check of an access group
  bool next_page : 1 = false;    ///< left because the page after that of `rip` was not known to be mapped as before
  bool control : 1 = false;      ///< a MOV to control register `to`
  bool has_address : 1 = false;  ///< JitContext::slow_address holds the memory operand's linear address
  bool predicted : 1 = false;    ///< the check at `retry` tries a TLB entry (prediction.h) until it gives up
  StringKind string : 3 = StringKind::kOther;
  /// Registers of MOV to control registers, `from` of INVPCID; of gathers: bytes of an index, scale; of kSegments: the
  /// source's segment, the opcode.
  uint8_t to = 0;
  union {
    uint8_t from = 0;
    uint8_t wrong;  ///< of a predicted one: failures in haste, one after another (4 bits), and when the last was
  };
  /// What selects elements of the operand in memory: which mask (ElementMask::which), and how many of its bits count.
  /// Of kSegments: flags below.
  uint8_t opmask = 0, opmask_bits = 0;
  uint8_t check_bytes = 0;  ///< from `retry` to behind the check, where R10 holds the addend

  static constexpr uint8_t kNarrowString = 1;  ///< addresses of 16 bits
  static constexpr uint8_t kUntilEqual = 2;    ///< REPNE
  static constexpr uint8_t kMostWrong = 15;
  bool given_up() const { return (wrong & 15) == kMostWrong; }
};
static_assert(sizeof(Site) == 16);

/// Host offset in a block to guest instruction, for host faults. Kept as the distances from the last place.
struct InstructionPlace {
  uint16_t host_offset = 0;
  uint16_t guest_offset = 0;
};
struct PackedPlace {
  uint8_t host = 0;   ///< kMore: no place of its own, it only adds
  uint8_t guest = 0;  ///< kStart: back at the block's start (the second body of a loop)
  static constexpr uint8_t kMore = 0xff, kStart = 0xff;
};

/// A place in a block's code that depends on where the block, its records or its guest address are. Whatever the
/// translator emits that does must be noted as one, or the block marked as not reusable.
struct Fixup {
  enum Kind : uint8_t {
    kStub,        ///< 32-bit displacement to a stub
    kLink,        ///< 32-bit offset of a Link; exactly one for each link
    kLinkAgain,   ///< another one of the same link
    kSite,        ///< 32-bit offset of a Site; exactly one for each site
    kRip64,       ///< 64-bit constant that moves with RIP
    kRipSigned,   ///< ... sign-extended from 32 bits
    kRipZero,     ///< ... zero-extended from 32 bits
    kRipNegated,  ///< the same of the negated RIP, sign-extended from 32 bits
    kRipWrap,     ///< ... counted modulo 4 GiB
    kPageSlot,    ///< 32-bit displacement of JitContext::code_pages[].page_id[slot of a page relative to RIP]
    kNothing
  };
  uint16_t at = 0;  ///< from the block's start
  Kind kind = kStub;

  /// Before the 32 bits stands the displacement of a call of a stub.
  bool stub_before() const { return kind == kLink || kind == kLinkAgain || kind == kSite; }
};
/// Fixups in the order of `at`, kept as the distance from the last one.
struct PackedFixup {
  uint16_t distance : 12 = 0;
  uint16_t kind : 4 = 0;
  static constexpr unsigned kMost = 0xfff;
};
static_assert(sizeof(PackedFixup) == 2);

/// Bytes of the page, beside the block's own, that were decoded to know which flags are dead at its end.
struct Look {
  uint16_t offset = 0, length = 0;
};
inline constexpr unsigned kMaxLooks = 16;

/// Storage of everything above.
class BlockStore {
 public:
  /// `code`: the code buffer in its writable view, to which all offsets refer, usable from `code_begin` on.
  /// `record_bytes` is address space; pages are taken as they are touched.
  BlockStore(uint64_t guest_pages, uint8_t* code, uint32_t code_begin, uint32_t code_end, uint64_t record_bytes);
  ~BlockStore();
  BlockStore(const BlockStore&) = delete;
  BlockStore& operator=(const BlockStore&) = delete;

  /// Blocks that go leave no way to them in these (null: none), which grow and shrink while the store lives; their
  /// entries lead to `miss_target` then. `exec`: the code buffer in its executable view, in which targets are.
  void WatchJumpCaches(std::span<JumpCache* const> caches, const uint8_t* exec, const uint8_t* miss_target);

  uint32_t Find(uint64_t phys, uint64_t rip, uint32_t flags) const;

  // Translation: Begin, then links, sites and code from Block::code on, then Finish.
  /// False: the current segment is too full for so many bytes.
  bool HasRoom(uint32_t code_bytes, uint32_t record_bytes) const;
  /// Goes on to the next segment and drops what it holds. Returns how many blocks that were.
  unsigned NextSegment();
  uint32_t Begin(bool compact);
  uint32_t AddLink(uint32_t block, const Link& link);
  uint32_t AddSite(uint32_t block, const Site& site);
  struct Lists {
    std::span<const InstructionPlace> places;
    std::span<const Fixup> fixups;
    std::span<const Look> looks;
    const uint8_t* page = nullptr;  ///< the guest's bytes
    bool reusable = false;
  };
  /// The block, which the caller has filled in but for what follows from its lists, becomes findable.
  void Finish(uint32_t block, const Lists& lists, uint64_t page_index);
  /// Makes writes to the first `bytes` bytes of a second page invalidate block `of`, which must be the newest.
  void AddAlias(uint32_t of, uint64_t page_index, uint64_t phys_page_start, unsigned bytes);

  // Reuse (block_reuse_nosimd.cc)
  struct Wanted {
    uint64_t phys = 0, rip = 0, page_index = 0;
    const uint8_t* page = nullptr;
    uint32_t flags = 0;
    bool indirect = false;  ///< with an entry for indirect branches
    bool compact = false;   ///< a compact one will do
  };
  /// A block of the same bytes and flags, dead or alive, made into the wanted one: revived, moved or copied. kNone:
  /// there is none, or no room.
  uint32_t Reuse(const Wanted& wanted);
  /// Takes a block out of use for good.
  void Forget(uint32_t block);
  static std::vector<Fixup> FixupsOf(const Block& block);  ///< for tools: allocates
  /// Unlinks and forgets the blocks of a page that overlap [first, last] (byte offsets in the page). Returns how many.
  /// `for_good`: their translation is not to be used again for the same bytes.
  unsigned InvalidateRange(uint64_t page_index, unsigned first, unsigned last, bool for_good = false);
  /// The same for all blocks with an instruction that crosses pages: the ids of pages that they hold are void.
  void InvalidateCrossing();
  /// Whether translations depend on bytes [first, last] of a page.
  bool HoldsCode(uint64_t page_index, unsigned first, unsigned last);
  bool PageHasBlocks(uint64_t page_index) const { return page_first_[page_index] != kNone; }
  /// Points a link at a block from now on. `page_id`: the pair of pages under which the target was found, used by links
  /// across pages.
  void Connect(uint32_t link, uint32_t block, uint32_t page_id);
  /// Block whose code contains an offset of the code buffer, or kNone.
  uint32_t FindByCode(uint32_t offset) const;
  /// Offset of the guest instruction in `block` that the code at `offset` belongs to.
  uint16_t GuestOffset(const Block& block, uint32_t offset) const;
  /// Drops everything.
  void Clear();

  static std::vector<InstructionPlace> PlacesOf(const Block& block);  ///< for tools: allocates

  Block& block(uint32_t id) { return *At<Block>(id); }
  const Block& block(uint32_t id) const { return *At<Block>(id); }
  Link& link(uint32_t id) { return *At<Link>(id); }
  const Link& link(uint32_t id) const { return *At<Link>(id); }
  Site& site(uint32_t id) { return *At<Site>(id); }
  template <typename Record>
  static const Block& OwnerOf(const Record& record) {
    return *reinterpret_cast<const Block*>(reinterpret_cast<const uint8_t*>(&record) - record.owner);
  }
  /// Of the guest instruction.
  static uint64_t RipOf(const Site& site) {
    const Block& owner = OwnerOf(site);
    return MoveCode(owner.rip, site.guest_offset, owner.flags);
  }
  /// Offset in the code buffer.
  static uint32_t RetryOf(const Site& site) { return OwnerOf(site).code + site.retry; }
  /// First and next link of a block; kNone: no more.
  uint32_t FirstLink(uint32_t of) const { return block(of).first_link ? of + block(of).first_link : kNone; }
  uint32_t NextLink(uint32_t id) const {
    const Link& from = link(id);
    return from.next_of_block ? id - from.owner + from.next_of_block : kNone;
  }
  /// Where the way out of links that are not patched is, as an offset in the code buffer.
  void SetLinkExit(uint32_t offset) { link_exit_ = offset; }
  uint32_t code_at() const { return segments_[current_].code_at; }
  unsigned segment_count() const { return static_cast<unsigned>(segments_.size()); }
  /// Code and records of all segments.
  uint64_t code_bytes() const;
  uint64_t record_bytes() const;

  struct Counters {
    uint64_t revived = 0, moved = 0, copied = 0;  ///< blocks that Reuse found
    uint64_t taken = 0;                           ///< ... of `moved`: those that were valid where they stood
    uint64_t reused_instructions = 0;
    uint64_t segments_dropped = 0, blocks_dropped = 0;
  };
  const Counters& counters() const { return counters_; }

 private:
  static constexpr uint32_t kBuckets = 1 << 18;
  static constexpr uint32_t kContents = 1 << 18;
  static constexpr unsigned kMaxSegments = 16;
  static constexpr uint32_t kGranule = 4096;  ///< bytes of code for each entry of first_in_granule_
  static constexpr uint32_t kSmallSegment = 512 * 1024;
  static constexpr unsigned kMaxTries = 32;    ///< candidates of one content hash that are compared
  static constexpr unsigned kFamilyTries = 8;  ///< relatives that are asked whether they are dead
  /// A block may be moved away from an address where it is valid when that many others have been entered since: code at
  /// several addresses of one program must not fight for it.
  static constexpr uint32_t kOld = 16384;

  struct Segment {
    uint32_t code_begin = 0, code_end = 0, code_at = 0;
    uint32_t record_begin = 0, record_end = 0, record_at = 0;  ///< groups of records, one after the other
    bool empty() const { return record_at == record_begin; }
  };

  template <typename T>
  T* At(uint32_t id) const {
    return reinterpret_cast<T*>(records_ + id);
  }
  template <typename T>
  uint32_t Allocate() {
    Segment& segment = segments_[current_];
    const uint32_t id = segment.record_at;
    segment.record_at += (sizeof(T) + 7) & ~size_t{7};
    return id;
  }
  static uint32_t Bucket(uint64_t phys, uint64_t rip, uint32_t flags);
  void NoteGranule(uint32_t id);
  static uint64_t LinesOf(const Block& block);
  /// Where the next block's code starts: code for speed is aligned.
  uint32_t NextCode(bool compact) const {
    const uint32_t alignment = compact ? 4 : kCodeAlignment;
    return (segments_[current_].code_at + alignment - 1) & ~(alignment - 1);
  }
  void Enter(uint32_t id, uint64_t page_index);
  void Remove(uint32_t id);
  void RemoveFromPage(uint32_t id);
  void Invalidate(uint32_t id, bool for_good);
  void ForgetJumps(const Block& block);
  void ForgetJumps(const Segment& segment);
  void Disconnect(uint32_t link);
  void DropSegment(Segment& segment);
  void PatchJump(const Link& link, uint32_t target);
  void Unpatch(const Link& link);

  // block_reuse_nosimd.cc
  static std::span<const PackedPlace> PackedPlacesOf(const Block& block);
  static std::span<const PackedFixup> PackedFixupsOf(const Block& block);
  static std::span<const Look> LooksOf(const Block& block);
  static const uint8_t* BytesOf(const Block& block);
  static uint32_t ContentHash(const uint8_t* bytes, unsigned room, uint32_t flags, unsigned page_offset);
  bool SameContent(const Block& block, const Wanted& wanted) const;
  template <typename Function>
  static void ForEachFixup(const Block& of, Function function) {
    Fixup fixup;
    for (const PackedFixup& packed : PackedFixupsOf(of)) {
      fixup.at = static_cast<uint16_t>(fixup.at + packed.distance);
      fixup.kind = static_cast<Fixup::Kind>(packed.kind);
      if (fixup.kind != Fixup::kNothing) function(fixup);
    }
  }
  bool CanMove(uint32_t block, uint64_t rip) const;
  void List(uint32_t id);
  void Unlist(uint32_t id);
  void UnlistFamily(uint32_t id);
  uint32_t Copy(uint32_t id);
  void Relocate(uint32_t id, uint32_t code_delta, uint32_t record_delta, uint64_t rip);

  /// Which lines of 64 bytes of a page translations depend on, or have depended on.
  struct CodeLines {
    uint64_t page = ~uint64_t{0};
    uint64_t lines = 0;
  };
  static uint64_t LinesOf(unsigned first, unsigned last) {
    return ~uint64_t{0} >> (63 - last / 64) & ~uint64_t{0} << first / 64;
  }

  std::array<CodeLines, 16> code_lines_{};
  uint8_t* code_;
  uint8_t* records_ = nullptr;
  uint64_t record_capacity_;
  std::span<JumpCache* const> jump_caches_;
  uint64_t exec_ = 0, miss_target_ = 0;
  uint32_t link_exit_ = 0;
  std::vector<Segment> segments_;
  unsigned current_ = 0;
  uint32_t clock_ = 0;  ///< blocks that have been entered
  std::vector<uint32_t> buckets_;
  std::vector<uint32_t> contents_;
  std::vector<uint32_t> page_first_;        ///< by page index
  std::vector<uint32_t> first_in_granule_;  ///< by code offset / kGranule
  Counters counters_;
};

}  // namespace nacre::engine::jit
