#pragma once
// Guest instructions to a block of host code, in one pass. Called by the vCPU when no block exists. Guest vectors must
// have been saved by the caller (Zydis and the standard library may use vector registers). One thread.

#include <array>
#include <cstdint>

#include "codegen/code_buffer.h"
#include "engine/jit/assembler.h"
#include "engine/jit/block.h"
#include "engine/jit/context.h"
#include "engine/jit/reemit.h"
#include "engine/jit/stubs.h"
#include "x86/cpu_model.h"
#include "x86/decoder.h"

namespace nacre::engine::jit {

inline constexpr auto kAllFlags = static_cast<uint16_t>(x86::rflags::kArithmetic);

/// Instead of a block: an instruction reaches into the next page.
inline constexpr uint32_t kWantsNextPage = kNone - 1;

struct TranslateRequest {
  uint64_t rip = 0;  ///< see code_segments.h
  CodeSegment segment = {};
  uint64_t phys = 0;
  /// Host address of the page that holds it, or of a copy that nobody writes to: the bytes that are translated must be
  /// those that are remembered for Reuse.
  const uint8_t* page = nullptr;
  uint64_t page_index = 0;
  uint32_t flags = 0;
  unsigned max_instructions = kMaxInstructions;
  bool indirect = false;  ///< with an entry for indirect branches
  bool compact = false;   ///< for code that may not run often: small, quickly made, checks out of line
  // The page after it, if it is mapped for execution: an instruction may cross into it. Looked for when the translator
  // wants it.
  bool next_page_asked = false;
  const uint8_t* next_page = nullptr;
  uint64_t next_phys_page = 0;  ///< page number
  uint64_t next_page_index = 0;
  uint32_t next_page_id = 0;
};

/// Instructions whose shared check keeps failing: they get checks of their own at the next translation.
class GroupFailures {
 public:
  static constexpr unsigned kLimit = 32;
  /// True once, when the limit is reached.
  bool Note(uint64_t rip) {
    Entry& entry = entries_[Slot(rip)];
    if (entry.rip != rip) entry = {rip, 0};
    return entry.count <= kLimit && ++entry.count == kLimit;
  }
  bool Excludes(uint64_t rip) const {
    const Entry& entry = entries_[Slot(rip)];
    return entry.rip == rip && entry.count >= kLimit;
  }

 private:
  struct Entry {
    uint64_t rip = 0;
    uint32_t count = 0;
  };
  static constexpr unsigned kEntries = 1024;
  static unsigned Slot(uint64_t rip) { return static_cast<unsigned>((rip ^ rip >> 12) % kEntries); }
  std::array<Entry, kEntries> entries_{};
};

class Translator {
 public:
  Translator(const x86::CpuModel& model, codegen::CodeBuffer& buffer, BlockStore& store, const Stubs& stubs);

  /// The new block; kNone when the store's segment is full; kWantsNextPage.
  uint32_t Translate(const TranslateRequest& request);
  GroupFailures& group_failures() { return group_failures_; }
  uint64_t translated_instructions() const { return translated_instructions_; }

 private:
  /// A jump out of the hot part, whose code is emitted after it.
  struct ColdExit {
    /// kMiss leaves for the dispatcher, kLookup looks into the jump cache; both with the RIP in R10.
    enum Kind : uint8_t { kLink, kPoll, kInterpret, kSlow, kMiss, kLookup } kind;
    uint8_t* displacement = nullptr;
    uint32_t id = 0;
    bool restore_rcx = false;
    uint8_t context = 0;
    bool write = false;
    bool rip_check = false;  ///< RCX is in R11, and R10 less by `rip`, if that is not 0
    uint64_t rip = 0;
  };
  struct Access {
    unsigned size = 0;
    bool write = false;
    bool flags_live = true;
    bool group = false;
    bool predicted = false;  ///< see prediction.h; only where the flags are dead
    bool chased = false;     ///< its base comes from memory: the code may wait for it
    ElementMask mask = {};
  };
  /// Which of an instruction's two possible accesses.
  enum Part : uint8_t { kOperand, kStack };
  /// Accesses through one unchanged base share one check, done by the first of them for the whole range.
  struct PlannedAccess {
    int8_t group = -1;  ///< index of JitContext::group_host; -1: a check of its own
    bool leader = false;
    int16_t distance = 0;  ///< from the start of the group's range
  };
  /// The registers of an address (without displacement) at one time.
  struct AddressForm {
    uint8_t base = x86::kNoRegister, index = x86::kNoRegister, scale = 1;
    unsigned base_version = 0, index_version = 0;
    bool rip_relative = false;  ///< kept apart from absolute: in a block used elsewhere their distance is another
    // Where segments count (emit_segment.cc); 0 elsewhere. Registers of 32-bit addresses have another narrow version
    // after each change of their lower half only.
    uint8_t segment = 0;  ///< plus 1
    uint8_t address_size = 0;
    unsigned segment_version = 0, base_narrow = 0, index_narrow = 0;
    bool constant() const { return base == x86::kNoRegister && index == x86::kNoRegister; }
    bool operator==(const AddressForm&) const = default;
  };
  /// Accesses of a loop that move by the same step in each round (emit_loop.cc).
  struct Stream {
    int64_t low = 0, high = 0;  ///< range of the first round, relative to the form
    AddressForm form;
    unsigned leader = 0;                ///< an instruction with such an access
    uint8_t moving = x86::kNoRegister;  ///< the register that changes from round to round, and
    uint8_t moving_scale = 1;
    int64_t step = 0;  ///< by how many bytes that moves the stream
    bool write = false;
  };
  struct StreamAccess {
    AddressForm form;
    int64_t offset = 0;       ///< as FormOf
    int64_t base_change = 0;  ///< of the registers, from the start of the round
    int64_t index_change = 0;
    bool known = false;
  };
  struct Group {
    int64_t low = 0, high = 0;
    AddressForm form;
    unsigned count = 0;
    bool write = false;
    // Checked before instruction `early_at` instead of by its first access, between which its address changes by
    // `early_change`.
    int early_at = -1;
    int32_t early_change = 0;
    uint8_t first = 0;
    Part first_part = kOperand;
    bool closed = false;  ///< a side exit has come: nothing more may be asked for in advance
  };
  /// The latest instruction before which the flags are dead, and what was known of the registers there.
  struct EarlyPlace {
    int index = -1;
    std::array<unsigned, 16> version{};
    std::array<int64_t, 16> change{};
  };

  // translator.cc
  void DecodeBlock();
  static bool IsJcc(const x86::Instruction& insn);
  bool EndsInSegment(unsigned offset, const x86::Instruction& insn) const;
  bool CanBranch(const x86::Instruction& insn) const;
  bool GoesOnBehind(unsigned index) const;
  /// A conditional branch within the block: not taken, the block goes on.
  bool IsSideExit(unsigned index) const {
    return insns_[index].branch == x86::BranchKind::kConditional && index + 1 < count_;
  }
  void ComputeLiveness();
  uint16_t LiveAt(uint64_t rip);
  uint16_t LookAhead(uint64_t rip);
  static bool IsTransparent(const x86::Instruction& insn);
  /// The same and its parts of an instruction of the block, found out once.
  bool Transparent(unsigned index) const { return (kinds_[index] & kTransparent) != 0; }
  bool ReEmits(unsigned index) const { return (kinds_[index] & kReEmits) != 0; }
  bool Nop(unsigned index) const { return (kinds_[index] & kNop) != 0; }
  bool EmitInstruction(unsigned index);  ///< false: the interpreter must do it; the block ends before it
  void EmitInterpretExit(uint64_t rip, const x86::Instruction* insn);
  void EmitNextPageCheck(unsigned index);
  void EmitRepeatedCopy(unsigned index);
  void NotePlace(unsigned index);
  void EmitColdPart();
  void Finish(Block& block, unsigned done);
  // What depends on the block's place goes through these, so that the block can be used elsewhere (see Fixup).
  void NoteFixup(const uint8_t* at, Fixup::Kind kind);
  void EmitExitTo(const uint8_t* stub, uint32_t id, Fixup::Kind kind);
  void EmitStubJump(const uint8_t* stub);
  void EmitRipImm(unsigned reg, uint64_t value, bool wide);
  void NoteLook(unsigned at, unsigned bytes);
  uint64_t RipOf(unsigned index) const { return request_.rip + offsets_[index]; }
  uint64_t NextRip(unsigned index) const { return RipOf(index) + insns_[index].length; }
  bool code64() const { return (request_.flags & kFlagCode64) != 0; }
  bool code16() const { return (request_.flags & kFlagCode16) != 0; }
  bool flat() const { return (request_.flags & kFlagFlat) != 0; }
  bool real() const { return (request_.flags & kFlagReal) != 0; }
  bool plain_segments() const { return (request_.flags & kFlagPlainSegments) != 0; }
  x86::CodeSize code_size() const { return CodeSizeOf(request_.flags); }
  unsigned context() const { return request_.flags & kFlagContextMask; }
  uint64_t TruncateRip(uint64_t rip) const { return MoveCode(request_.rip, rip - request_.rip, request_.flags); }
  /// Where a direct branch leads that ends before `next`.
  uint64_t TargetOf(uint64_t next, const x86::Instruction& insn) const;
  uint64_t TargetOf(unsigned index) const { return TargetOf(NextRip(index), insns_[index]); }
  /// EIP at a code address.
  uint32_t OffsetOf(uint64_t rip) const { return static_cast<uint32_t>(rip) - request_.segment.base; }
  bool InSegment(uint64_t rip) const { return code64() || OffsetOf(rip) <= request_.segment.limit; }
  /// Bytes of the operand of branches and stack instructions.
  static unsigned WordSize(const x86::Instruction& insn);
  /// Whether a constant of 64 bits is needed for a code address.
  bool WideRip(uint64_t rip) const { return code64() || rip >> kCodeSegmentShift != 0; }

  // access_groups.cc
  void PlanGroups();
  void PlanAccess(unsigned index, Part part, const AddressForm& form, int64_t offset, unsigned size, bool write);
  bool FormOf(unsigned index, AddressForm& form, int64_t& offset) const;
  bool IsTableLookup(unsigned index, const std::array<unsigned, 16>& versions) const;
  void PlanEarlyCheck(Group& group, unsigned index, Part part);
  void TrackBases(const x86::Instruction& insn);
  void EmitEarlyChecks(unsigned index);

  // emit_loop.cc
  void PlanLoop();
  void MakeStreams();
  void PinStreams();
  void EmitLoopEntry();
  void EmitLoop(unsigned index);
  void EmitStreamSetUp(unsigned stream, bool first_to_count);
  void EmitLoopLimit();
  Mem EmitStreamAccess(unsigned index);

  // emit_memory.cc
  static bool IsRelative(const x86::Instruction& insn);
  static bool HasHighByte(const x86::Instruction& insn);
  Access GroupAccess(int group, bool flags_live) const;
  Mem EmitAccess(unsigned index, Part part, unsigned size, bool write);
  Mem EmitRelative(const x86::Instruction& insn);
  void EmitLoadGroup(int group);
  void EmitStoreGroup(int group);
  bool CanAddress(const x86::Instruction& insn) const;
  void EmitLinearAddress(const x86::Instruction& insn, uint64_t next_rip, int adjust);
  void EmitCheck(const Access& access, uint64_t rip, bool keep_address);
  void EmitCheckToHost(const Access& access, uint64_t rip);
  bool EmitGeneral(const x86::Instruction& insn, unsigned index);
  bool EmitHighByteMemory(const x86::Instruction& insn, const RegisterMap& map, const Mem& memory);
  bool EmitLea(const x86::Instruction& insn, uint64_t next_rip);
  bool EmitMovOffset(const x86::Instruction& insn, unsigned index);
  uint8_t LoadGpr(unsigned gpr, uint8_t scratch);  ///< host register that holds it (scratch when homed)
  void StoreGpr(unsigned gpr, uint8_t from);

  // emit_segment.cc
  /// The offset of an access in its segment.
  struct SegmentOffset {
    uint8_t base = x86::kNoRegister, index = x86::kNoRegister;
    unsigned scale = 1;
    int64_t displacement = 0;
    unsigned address_size = 2;
    bool constant() const { return base == x86::kNoRegister && index == x86::kNoRegister; }
    uint32_t value() const { return static_cast<uint32_t>(displacement) & (address_size == 2 ? 0xffff : 0xffffffff); }
  };
  static SegmentOffset OperandOffset(const x86::Instruction& insn);
  /// Of the stack, `distance` bytes from its pointer.
  SegmentOffset StackOffset(int distance) const {
    return {.base = x86::kRsp, .displacement = distance, .address_size = stack_size()};
  }
  unsigned stack_size() const { return code64() ? 8 : (request_.flags & kFlagStack16) ? 2 : 4; }
  SegmentKind KindOf(unsigned segment) const { return SegmentKindOf(request_.flags, segment); }
  bool Segmented(const x86::Instruction& insn) const;
  bool StackSegmented() const { return !code64() && (!flat() || stack_size() == 2); }
  bool CanAddressSegment(unsigned segment, const SegmentOffset& offset, unsigned bytes, bool write) const;
  void EmitSegmentAddress(unsigned segment, const SegmentOffset& offset, unsigned bytes, bool range, bool group,
                          bool live, uint64_t rip);
  void EmitSegmentLinear(unsigned segment, bool narrow, unsigned bytes, bool range, bool group, bool live,
                         uint64_t rip);
  void EmitLimitExit(bool group, bool live, uint64_t rip, uint8_t* jump);
  void EmitAtMost(uint8_t reg, int64_t most, bool group, bool live, uint64_t rip);
  void EmitWithinLimit(unsigned segment, unsigned bytes, bool group, bool live, uint64_t rip);
  Mem EmitSegmentAccess(unsigned index, Part part, unsigned segment, const SegmentOffset& offset, unsigned size,
                        bool write, bool range = false);
  void EmitMoveStack(int32_t distance);
  void LoadSized(uint8_t reg, const Mem& mem, unsigned size);  ///< zero-extended
  void StoreSized(const Mem& mem, uint8_t reg, unsigned size);
  void WriteSized(uint8_t to, uint8_t from, unsigned size);  ///< of 2 bytes: the rest stays
  bool IsSegmentMove(const x86::Instruction& insn) const;
  bool EmitLoadSegment(unsigned index);
  bool EmitLoadPointer(unsigned index);
  bool EmitStoreSegment(unsigned index);
  void EmitSetSegment(unsigned segment);
  bool EmitPopSegment(unsigned index);
  bool EmitPopMemory(unsigned index);
  bool EmitPushAll(unsigned index);
  bool EmitPopAll(unsigned index);
  bool EmitEnter(unsigned index);
  bool EmitTranslate(unsigned index);
  bool EmitFar(unsigned index);
  bool EmitFarReturn(unsigned index);
  void EmitFarTarget();
  void EmitFarPointer();
  void EmitCodeAddress();

  // emit_string.cc
  static uint8_t StringOpcode(const x86::Instruction& insn);
  bool CanTranslateString(const x86::Instruction& insn) const;
  bool EmitString(unsigned index);
  void EmitUpwardsOnly(unsigned index);
  void EmitRepeatedString(unsigned index);

  // emit_interrupt.cc
  void EmitFlagsImage();
  uint64_t ChangeableFlags(unsigned size) const;
  void EmitImageCheck(uint64_t rip);
  void EmitSetFlags(uint64_t changeable);
  bool EmitPopFlags(unsigned index);
  bool EmitInterrupt(unsigned index);
  bool EmitInterruptReturn(unsigned index);

  // emit_gather.cc
  static bool IsGather(const x86::Instruction& insn);  ///< or a scatter that EmitGather takes
  bool EmitGather(unsigned index);

  // emit_special.cc
  bool EmitSpecial(unsigned index, bool& handled);
  bool CanUseStack(const x86::Instruction& insn) const;
  bool EmitPush(unsigned index);
  bool EmitPop(unsigned index);
  bool EmitLeave(unsigned index);
  bool EmitPushFlags(unsigned index);
  void EmitAddressPlus(uint8_t to, uint8_t from, int32_t disp);
  Mem EmitStackAccess(unsigned index, unsigned size, bool write);
  void EmitClearDirection();
  void EmitSwapGs();
  bool EmitRdtsc(bool with_aux);
  bool EmitReadBase(const x86::Instruction& insn);
  bool EmitWriteBase(unsigned index);
  bool EmitMovFromSystem(const x86::Instruction& insn, bool& handled);
  bool EmitBitTest(unsigned index);
  bool EmitCacheLineFlush(unsigned index);
  bool EmitSti(unsigned index);

  // emit_branch.cc
  bool EmitBranch(unsigned index);
  void EmitConditional(unsigned index);
  void EmitCounterBranch(unsigned index);
  void EmitNarrowCounterBranch(unsigned index);
  void EmitTargetCheck(unsigned index);
  bool EmitCall(unsigned index);
  bool EmitIndirect(unsigned index);
  bool EmitReturn(unsigned index);
  void EmitPushReturnAddress(unsigned index);
  void EmitRipCheck(uint64_t rip, ColdExit::Kind otherwise);
  void EmitIndirectEntry();
  void EmitReturnPoint(unsigned index);
  bool PairsCalls() const { return !(request_.flags & kFlagSingle) && context() != kContextSupervisorAc; }
  void EmitLinkExit(uint64_t target_rip, uint32_t target_flags, bool poll, bool call = false);
  uint32_t NewLink(uint8_t* displacement, uint64_t target_rip, uint16_t live_flags);
  uint32_t NewColdLink(uint8_t* displacement, uint64_t target_rip, uint16_t live_flags);
  uint16_t FlagsAt(uint64_t target_rip, bool poll);
  uint32_t Offset(const uint8_t* in_write_view) const {
    return static_cast<uint32_t>(in_write_view - buffer_.write_base());
  }
  /// Bytes from the start of the block's code.
  uint16_t InBlock(const uint8_t* at) const { return static_cast<uint16_t>(at - start_); }
  Site SiteAt(uint64_t rip) const {
    Site site;
    site.guest_offset = static_cast<uint16_t>(rip - request_.rip);
    return site;
  }
  bool SamePage(uint64_t rip) const { return (rip ^ request_.rip) < kPageSize; }

  const x86::CpuModel& model_;
  codegen::CodeBuffer& buffer_;
  BlockStore& store_;
  const Stubs& stubs_;
  Assembler code_{nullptr};
  uint32_t block_ = kNone;          ///< the one in the making
  const uint8_t* start_ = nullptr;  ///< its code

  TranslateRequest request_;
  unsigned count_ = 0;  ///< decoded instructions
  unsigned side_exits_ = 0;
  bool ends_undecodable_ = false;
  bool crosses_page_ = false;  ///< the last instruction does
  bool truncated_ = false;     ///< the last instruction would
  uint32_t exit_flags_ = 0;    ///< mode flags after the last instruction (STAC and CLAC change them)
  std::array<x86::Instruction, kMaxInstructions> insns_;
  static constexpr uint8_t kReEmits = 1, kNop = 2, kTransparent = 4;
  std::array<uint8_t, kMaxInstructions> kinds_{};
  std::array<uint16_t, kMaxInstructions> offsets_{};
  std::array<uint16_t, kMaxInstructions> live_before_{};  ///< arithmetic flags that must survive up to the instruction
  std::array<std::array<PlannedAccess, 2>, kMaxInstructions> plan_{};
  std::array<Group, kAccessGroups> groups_{};
  std::array<std::array<int64_t, 2>, kMaxInstructions> access_offset_{};
  unsigned group_count_ = 0;
  bool upwards_ = false;  ///< DF has been found clear in this block
  int addend_of_ = -1;    ///< the group whose JitContext::group_host R10 holds
  GroupFailures group_failures_;
  uint32_t loaded_ = 0;                                ///< GPRs that the block loads from memory
  std::array<bool, kMaxInstructions> table_lookup_{};  ///< the operand's TLB entry is predicted
  std::array<unsigned, 16> base_version_{};            ///< by Gpr
  std::array<int64_t, 16> base_change_{};              ///< by Gpr: known change since its version began
  std::array<unsigned, 16> narrow_version_{};          ///< see AddressForm
  std::array<unsigned, x86::kSegmentCount> segment_version_{};
  std::array<Stream, kLoopStreams> streams_{};
  unsigned stream_count_ = 0;  ///< 0: the block is no loop, or one without streams
  bool in_strip_ = false;      ///< the loop's body is emitted for the second time, by streams
  uint8_t counter_ = 0;        ///< the register that tells when to leave the pages
  int64_t counter_step_ = 0;
  std::array<int8_t, kMaxInstructions> stream_of_{};
  std::array<uint8_t*, kLoopStreams> loop_misses_{};
  std::array<int8_t, 2> pinned_{};       ///< streams in R10 and R11; -1: none
  const uint8_t* loop_start_ = nullptr;  ///< of the plain body
  std::array<StreamAccess, kMaxInstructions> stream_access_{};
  EarlyPlace early_;
  std::array<ColdExit, kMaxInstructions * 8> cold_;
  unsigned cold_count_ = 0;
  unsigned look_first_ = 0, look_last_ = 0;  ///< see Block
  struct Looked {
    uint64_t rip = 0;
    uint16_t live = 0;
  };
  std::array<Looked, 2 + kMaxSideExits> looked_{};  ///< what LiveAt has found for this block's successors
  unsigned looked_count_ = 0;
  std::array<InstructionPlace, kMaxInstructions> places_;
  unsigned place_count_ = 0;
  std::array<Fixup, kMaxInstructions * 8> fixups_;
  unsigned fixup_count_ = 0;
  std::array<Look, kMaxLooks> looks_;
  unsigned look_count_ = 0;
  bool reusable_ = false;
  bool compact_ = false;
  uint64_t translated_instructions_ = 0;
};

}  // namespace nacre::engine::jit
