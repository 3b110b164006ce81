#include "engine/jit/translator.h"

#include <algorithm>

#include "base/check.h"

namespace nacre::engine::jit {

using x86::BranchKind;
using x86::CodeSize;
using x86::Instruction;

namespace {

/// How far LiveAt looks into a successor.
constexpr unsigned kLookAhead = 6;

/// A legacy string instruction of 64-bit code, of this opcode (bit 0: not bytes), without prefixes of segment and
/// address size.
bool IsFlatString(const Instruction& insn, uint8_t opcode) {
  return insn.code_size == CodeSize::k64 && insn.map == 0 && insn.encoding == x86::Encoding::kLegacy &&
         (insn.opcode & 0xfe) == opcode && !insn.has(x86::kInsnSegmentPrefix) && insn.address_size == 8;
}

/// REP MOVS and REP STOS.
bool IsRepeatedCopy(const Instruction& insn) {
  return insn.has(x86::kInsnRep) && (IsFlatString(insn, 0xa4) || IsFlatString(insn, 0xaa));
}

/// MOVS, STOS and LODS of one element: left to JitVcpu::FastInstruction.
bool IsSingleString(const Instruction& insn) {
  return !insn.has(x86::kInsnRep) && !insn.has(x86::kInsnRepne) &&
         (IsFlatString(insn, 0xa4) || IsFlatString(insn, 0xaa) || IsFlatString(insn, 0xac));
}

/// Instructions left to JitVcpu::FastInstruction with the address of their operand.
bool HasFastMemoryPath(const Instruction& insn) {
  switch (insn.zydis_mnemonic()) {
    case ZYDIS_MNEMONIC_XSAVE:
    case ZYDIS_MNEMONIC_XSAVE64:
    case ZYDIS_MNEMONIC_XSAVEOPT:
    case ZYDIS_MNEMONIC_XSAVEOPT64:
    case ZYDIS_MNEMONIC_XRSTOR:
    case ZYDIS_MNEMONIC_XRSTOR64:
    case ZYDIS_MNEMONIC_INVLPG:
    case ZYDIS_MNEMONIC_INVPCID:
      return insn.has_memory();
    default:
      return false;
  }
}

}  // namespace

/// Instructions whose successors run with the flags that this analysis gives them: those that are translated. The rest
/// goes to the interpreter, which may show all flags to the guest.
bool Translator::IsTransparent(const Instruction& insn) {
  switch (insn.zydis_mnemonic()) {
    case ZYDIS_MNEMONIC_PUSH:
    case ZYDIS_MNEMONIC_POP:
    case ZYDIS_MNEMONIC_LEAVE:
    case ZYDIS_MNEMONIC_CLD:
    case ZYDIS_MNEMONIC_CLI:
    case ZYDIS_MNEMONIC_STAC:
    case ZYDIS_MNEMONIC_CLAC:
    case ZYDIS_MNEMONIC_BT:
    case ZYDIS_MNEMONIC_BTS:
    case ZYDIS_MNEMONIC_BTR:
    case ZYDIS_MNEMONIC_BTC:
    case ZYDIS_MNEMONIC_SWAPGS:
      return true;
    default:
      return CanReEmit(insn) || IsNop(insn) || IsRepeatedCopy(insn) || IsGather(insn);
  }
}

Translator::Translator(const x86::CpuModel& model, codegen::CodeBuffer& buffer, BlockStore& store, const Stubs& stubs)
    : model_(model), buffer_(buffer), store_(store), stubs_(stubs) {
  store_.SetLinkExit(Offset(stubs_.exit_link));
}

void Translator::NoteFixup(const uint8_t* at, Fixup::Kind kind) {
  NACRE_CHECK(fixup_count_ < fixups_.size());
  fixups_[fixup_count_++] = {.at = static_cast<uint16_t>(at - start_), .kind = kind};
}

/// Leaves through a stub. `kind`: what `id` is.
void Translator::EmitExitTo(const uint8_t* stub, uint32_t id, Fixup::Kind kind) {
  code_.CallWithId(stub, id);
  NoteFixup(code_.at() - 4, kind);
}

void Translator::EmitStubJump(const uint8_t* stub) {
  code_.JumpTo(stub);
  NoteFixup(code_.at() - 4, Fixup::kStub);
}

/// A constant that is the block's RIP plus something known; without `wide` modulo 4 GiB.
void Translator::EmitRipImm(unsigned reg, uint64_t value, bool wide) {
  code_.LoadImm(reg, wide ? value : value & 0xffffffff);
  if (!wide)
    NoteFixup(code_.at() - 4, Fixup::kRipWrap);
  else if (value <= 0xffffffff)
    NoteFixup(code_.at() - 4, Fixup::kRipZero);
  else if (static_cast<int64_t>(value) == static_cast<int32_t>(value))
    NoteFixup(code_.at() - 4, Fixup::kRipSigned);
  else
    NoteFixup(code_.at() - 8, Fixup::kRip64);
}

void Translator::DecodeBlock() {
  unsigned offset = 0;
  const auto page_offset = static_cast<unsigned>(request_.phys & kPageMask);
  count_ = 0;
  ends_undecodable_ = false;
  crosses_page_ = truncated_ = false;
  side_exits_ = 0;
  while (count_ < request_.max_instructions) {
    const unsigned at = page_offset + offset;
    if (at >= kPageSize) break;
    Instruction& insn = insns_[count_];
    const size_t room = std::min<size_t>(15, kPageSize - at);
    x86::DecodeStatus status = x86::Decode({request_.page + at, room}, code_size(), insn);
    if (status == x86::DecodeStatus::kTruncated && request_.next_page) {
      uint8_t bytes[15];
      std::copy_n(request_.page + at, room, bytes);
      std::copy_n(request_.next_page, 15 - room, bytes + room);
      status = x86::Decode(bytes, code_size(), insn);
    }
    truncated_ = status == x86::DecodeStatus::kTruncated;
    // Invalid, or the next page is not there, or it reaches beyond the segment: the interpreter finds out.
    const bool inside =
        InSegment(request_.rip + offset) && (status != x86::DecodeStatus::kOk || EndsInSegment(offset, insn));
    if (status != x86::DecodeStatus::kOk || !inside || !model_.Adapt(insn)) {
      ends_undecodable_ = true;
      break;
    }
    const bool reemits = CanReEmit(insn);
    kinds_[count_] = static_cast<uint8_t>(
        (reemits ? kReEmits : 0) | (IsNop(insn) ? kNop : 0) |
        (reemits || IsTransparent(insn) || IsSegmentMove(insn) || CanTranslateString(insn) ? kTransparent : 0));
    offsets_[count_] = static_cast<uint16_t>(offset);
    offset += insn.length;
    ++count_;
    if (insn.length > room) {
      crosses_page_ = true;
      break;
    }
    if (insn.branch == BranchKind::kNone) continue;
    if (!GoesOnBehind(count_ - 1)) break;
    ++side_exits_;
  }
}

/// Whether an instruction that was decoded `offset` bytes from the block's start lies within the code segment.
bool Translator::EndsInSegment(unsigned offset, const Instruction& insn) const {
  return code64() || uint64_t{OffsetOf(request_.rip + offset)} + insn.length - 1 <= request_.segment.limit;
}

bool Translator::IsJcc(const Instruction& insn) {
  return (insn.map == 0 && (insn.opcode & 0xf0) == 0x70) || (insn.map == 1 && (insn.opcode & 0xf0) == 0x80);
}

/// Forward conditional branches within the page do not end a block: code behind them usually runs.
bool Translator::GoesOnBehind(unsigned index) const {
  const Instruction& insn = insns_[index];
  if (insn.branch != BranchKind::kConditional || !IsJcc(insn) || !CanBranch(insn)) return false;
  if (count_ == request_.max_instructions || count_ >= kMaxWithSideExits || side_exits_ == kMaxSideExits) return false;
  const uint64_t target = TargetOf(index);
  return SamePage(target) && SamePage(NextRip(index)) && target > RipOf(index) && InSegment(target);
}

unsigned Translator::WordSize(const Instruction& insn) {
  if (insn.code_size == CodeSize::k64) return 8;
  return (insn.code_size == CodeSize::k32) != insn.has(x86::kInsnOperandSizePrefix) ? 4 : 2;
}

uint64_t Translator::TargetOf(uint64_t next, const Instruction& insn) const {
  if (code64()) return next + insn.immediate;
  const uint32_t offset = OffsetOf(next) + static_cast<uint32_t>(insn.immediate);
  const uint32_t linear = request_.segment.base + (WordSize(insn) == 2 ? offset & 0xffff : offset);
  return (request_.rip & kCodeSegmentMask) | linear;
}

/// In 32-bit code branches that truncate EIP to 16 bits are left to the interpreter: their targets do not move with the
/// block.
bool Translator::CanBranch(const Instruction& insn) const { return code64() || code16() || WordSize(insn) == 4; }

void Translator::NoteLook(unsigned at, unsigned bytes) {
  look_first_ = std::min(look_first_, at);
  look_last_ = std::max(look_last_, at + bytes);
  for (Look& look : std::span(looks_).first(look_count_)) {
    if (at < look.offset || at > look.offset + look.length) continue;
    look.length = static_cast<uint16_t>(std::max<unsigned>(look.length, at + bytes - look.offset));
    return;
  }
  if (look_count_ < kMaxLooks)
    looks_[look_count_++] = {.offset = static_cast<uint16_t>(at), .length = static_cast<uint16_t>(bytes)};
  else
    reusable_ = false;
}

/// Arithmetic flags that may be read before they are written from `rip` on. Only code on the same page can be looked
/// at.
uint16_t Translator::LiveAt(uint64_t rip) {
  if (!SamePage(rip)) return kAllFlags;
  for (unsigned i = 0; i < looked_count_; ++i)
    if (looked_[i].rip == rip) return looked_[i].live;
  const uint16_t live = LookAhead(rip);
  if (looked_count_ < looked_.size()) looked_[looked_count_++] = {.rip = rip, .live = live};
  return live;
}

uint16_t Translator::LookAhead(uint64_t rip) {
  auto at = static_cast<unsigned>(rip & kPageMask);
  uint16_t undecided = kAllFlags, live = 0;
  Instruction insn;
  for (unsigned i = 0; i < kLookAhead && undecided; ++i) {
    const size_t room = std::min<size_t>(15, kPageSize - at);
    const bool decoded =
        room != 0 && x86::Decode({request_.page + at, room}, code_size(), insn) == x86::DecodeStatus::kOk;
    NoteLook(at, decoded ? insn.length : static_cast<unsigned>(room));
    if (!decoded) break;
    live |= insn.flags_read & undecided;
    undecided &= static_cast<uint16_t>(~(insn.flags_read | insn.flags_written));
    // A call's own access to the stack keeps the flags.
    if (insn.branch == BranchKind::kJump || insn.branch == BranchKind::kCall) {
      const uint64_t target = TargetOf(AlignDown(rip, kPageSize) + at + insn.length, insn);
      if (!SamePage(target)) break;
      at = static_cast<unsigned>(target & kPageMask);
      continue;
    }
    if (insn.branch != BranchKind::kNone || !IsTransparent(insn)) break;
    at += insn.length;
  }
  return live | undecided;
}

void Translator::ComputeLiveness() {
  uint16_t live = kAllFlags;  // at the end of compact code always
  look_first_ = kPageSize;
  look_last_ = 0;
  look_count_ = 0;
  looked_count_ = 0;
  if (count_ > 0 && !compact_) {
    const unsigned last = count_ - 1;
    const Instruction& insn = insns_[last];
    if (insn.branch == BranchKind::kNone && !ends_undecodable_) live = LiveAt(NextRip(last));
    if (insn.branch == BranchKind::kConditional) live = LiveAt(NextRip(last)) | LiveAt(TargetOf(last));
    if (insn.branch == BranchKind::kJump || insn.branch == BranchKind::kCall) live = LiveAt(TargetOf(last));
  }
  for (unsigned i = count_; i-- > 0;) {
    const Instruction& insn = insns_[i];
    if (IsSideExit(i)) live |= FlagsAt(TargetOf(i), false);
    // The interpreter takes over with all flags, and may deliver a fault that shows them.
    if (!Transparent(i) && insn.branch == BranchKind::kNone) live = kAllFlags;
    live = static_cast<uint16_t>((live & ~insn.flags_written) | insn.flags_read);
    live_before_[i] = live & kAllFlags;
  }
}

void Translator::EmitInterpretExit(uint64_t rip, const Instruction* insn) {
  Site site = SiteAt(rip);
  if (insn) {
    site.mnemonic = insn->mnemonic;
    site.length = insn->length & 15;
    site.context = context() & 3;
    if (insn->operand_count >= 1) site.to = insn->operand[0].index;
    site.control = insn->operand_count >= 1 && insn->operand[0].register_class == x86::RegisterClass::kControl;
    if (insn->operand_count >= 2) site.from = insn->operand[1].index;
    if (IsSingleString(*insn)) site.size = (insn->opcode & 1) ? insn->operand_size : 1;
    if (code64() && HasFastMemoryPath(*insn) && insn->address_size == 8) {
      EmitLinearAddress(*insn, rip + insn->length, 0);
      code_.Store(Context(offsetof(JitContext, slow_address)), kScratch2);
      site.has_address = true;
    }
  }
  cold_[cold_count_++] = {
      .kind = ColdExit::kInterpret, .displacement = code_.Jump(), .id = store_.AddSite(block_, site)};
}

/// Before an instruction that crosses into the next page: that page must be mapped as it was at translation.
void Translator::EmitNextPageCheck(unsigned index) {
  const size_t slot = ((request_.rip >> 12) + 1) % kPageSlots;
  const Mem slot_id = Context(offsetof(JitContext, code_pages) + context() * sizeof(CodePages) + 4 * slot);
  const bool live = live_before_[index] != 0;
  Site site = SiteAt(RipOf(index));
  site.next_page = true;
  ColdExit exit{.kind = ColdExit::kInterpret, .id = store_.AddSite(block_, site), .restore_rcx = live};
  if (live) {
    const Mem saved_rcx = Context(offsetof(JitContext, saved_rcx));
    code_.Store(saved_rcx, kHostRcx);
    code_.Load(kHostRcx, slot_id, false);
    code_.Lea(kHostRcx, {.base = kHostRcx, .disp = -static_cast<int32_t>(request_.next_page_id)}, false);
    uint8_t* same = code_.JumpIfRcxZero();
    exit.displacement = code_.Jump();
    code_.Bind8(same);
    code_.Load(kHostRcx, saved_rcx);
  } else {
    code_.CompareImm32(slot_id, request_.next_page_id);
    exit.displacement = code_.JumpIf(5);
  }
  cold_[cold_count_++] = exit;
}

/// Out of line to JitVcpu::SlowString, which comes back behind it.
void Translator::EmitRepeatedCopy(unsigned index) {
  const Instruction& insn = insns_[index];
  Site site = SiteAt(RipOf(index));
  site.mnemonic = insn.mnemonic;
  site.length = insn.length & 15;
  site.context = context() & 3;
  site.string = (insn.opcode & 0xfe) == 0xa4 ? StringKind::kMove : StringKind::kStore;
  site.size = (insn.opcode & 1) ? insn.operand_size : 1;
  const uint32_t id = store_.AddSite(block_, site);
  EmitExitTo(stubs_.string, id, Fixup::kSite);
  store_.site(id).retry = InBlock(code_.at());
}

/// The code of an instruction begins here.
void Translator::NotePlace(unsigned index) {
  NACRE_CHECK(place_count_ < places_.size());
  places_[place_count_++] = {static_cast<uint16_t>(code_.at() - start_), offsets_[index]};
}

bool Translator::EmitInstruction(unsigned index) {
  const Instruction& insn = insns_[index];
  if (insn.has(x86::kInsnBadLock)) return false;
  if (Nop(index)) return true;
  if (real() && insn.encoding != x86::Encoding::kLegacy) return false;  // #UD there
  if (insn.has(x86::kInsnX87) && !(request_.flags & kFlagX87)) return false;
  if (insn.has(x86::kInsnVector)) {
    const uint32_t needed = UsesAvx512(insn) ? kFlagAvx512 : insn.encoding == x86::Encoding::kVex ? kFlagAvx : kFlagSse;
    if (!(request_.flags & needed) || !(request_.flags & kFlagX87)) return false;
  }
  if (insn.branch != BranchKind::kNone) return EmitBranch(index);
  if (insn.mnemonic == ZYDIS_MNEMONIC_BT || insn.mnemonic == ZYDIS_MNEMONIC_BTS ||
      insn.mnemonic == ZYDIS_MNEMONIC_BTR || insn.mnemonic == ZYDIS_MNEMONIC_BTC) {
    if (insn.has_memory() && (insn.opcode & 0xe7) == 0xa3) {
      addend_of_ = -1;
      return EmitBitTest(index);
    }
  }
  if (StringOpcode(insn) != 0) return EmitString(index);
  if (IsRepeatedCopy(insn)) {
    addend_of_ = -1;
    EmitRepeatedCopy(index);
    return true;
  }
  if (IsGather(insn)) {
    addend_of_ = -1;
    return EmitGather(index);
  }
  bool handled = false;
  const bool ok = EmitSpecial(index, handled);
  if (handled) {
    if (insn.mnemonic != ZYDIS_MNEMONIC_PUSH && insn.mnemonic != ZYDIS_MNEMONIC_POP) addend_of_ = -1;
    return ok;
  }
  if (!ReEmits(index)) return false;
  return EmitGeneral(insn, index);
}

void Translator::EmitColdPart() {
  for (unsigned i = 0; i < cold_count_; ++i) {
    const ColdExit& exit = cold_[i];
    code_.Bind32(exit.displacement);
    if (exit.rip_check) {
      code_.Move(kHostRcx, kScratch2);
      if (exit.rip != 0) {
        EmitRipImm(kScratch2, exit.rip, WideRip(exit.rip));
        code_.Lea(kScratch1, {.base = kScratch1, .index = kScratch2});
      }
    }
    switch (exit.kind) {
      case ColdExit::kLink:
        store_.link(exit.id).stub = InBlock(code_.at());
        EmitExitTo(stubs_.exit_link, exit.id, Fixup::kLink);
        break;
      case ColdExit::kPoll:
        EmitExitTo(exit.restore_rcx ? stubs_.exit_poll_rcx : stubs_.exit_poll, exit.id, Fixup::kLinkAgain);
        break;
      case ColdExit::kInterpret:
        EmitExitTo(exit.restore_rcx ? stubs_.exit_interpret_rcx : stubs_.exit_interpret, exit.id, Fixup::kSite);
        break;
      case ColdExit::kSlow:
        EmitExitTo(exit.restore_rcx ? stubs_.slow_address_rcx : stubs_.slow[exit.context][exit.write ? 1 : 0], exit.id,
                   Fixup::kSite);
        break;
      case ColdExit::kMiss:
        EmitStubJump(stubs_.exit_lookup);
        break;
      case ColdExit::kLookup:
        EmitStubJump(stubs_.lookup[context()]);
        break;
    }
  }
}

/// The block's record, from what the passes found out. `done`: instructions that were emitted.
void Translator::Finish(Block& block, unsigned done) {
  // The bytes that decided the block's end were looked at, too: those of an instruction left to the interpreter.
  unsigned length = done == 0 ? 0 : static_cast<unsigned>(offsets_[done - 1]) + insns_[done - 1].length;
  if (done == 0 || insns_[done - 1].branch == BranchKind::kNone) length += 15;
  const auto page_offset = static_cast<unsigned>(request_.phys & kPageMask);
  length = std::min<unsigned>(length, static_cast<unsigned>(kPageSize) - page_offset);
  block.phys = request_.phys;
  block.rip = request_.rip;
  block.flags = request_.flags;
  block.guest_length = static_cast<uint16_t>(length);
  uint16_t undefined = 0;
  for (unsigned i = 0; i < done; ++i) {
    undefined = static_cast<uint16_t>((undefined & ~insns_[i].flags_written) | insns_[i].flags_undefined);
    if (IsSideExit(i) || i + 1 == done) block.undefined_flags = (block.undefined_flags | undefined) & kAllFlags;
  }
  block.look_first = static_cast<uint16_t>(look_first_);
  block.look_last = static_cast<uint16_t>(look_last_);
  block.instruction_count = static_cast<uint8_t>(done);
  block.compact = compact_;
  NACRE_CHECK(code_.at() - start_ <= BlockReserve(count_, compact_) - kCodeAlignment);
  block.host_size = static_cast<uint16_t>(code_.at() - start_);
  translated_instructions_ += done;
}

uint32_t Translator::Translate(const TranslateRequest& request) {
  request_ = request;
  exit_flags_ = request.flags & ~uint32_t{kFlagUngrouped};
  cold_count_ = 0;
  addend_of_ = -1;
  upwards_ = false;
  fixup_count_ = place_count_ = 0;
  reusable_ = true;
  compact_ = request.compact;
  DecodeBlock();
  if (truncated_ && !request.next_page_asked) return kWantsNextPage;
  const uint32_t reserve = BlockReserve(count_, compact_);
  if (!store_.HasRoom(reserve, reserve)) return kNone;
  if (truncated_ || crosses_page_) reusable_ = false;
  ComputeLiveness();
  if (compact_) {
    std::fill_n(plan_.begin(), count_, std::array<PlannedAccess, 2>{});
    group_count_ = stream_count_ = 0;
  } else {
    PlanGroups();
    PlanLoop();
  }

  block_ = store_.Begin(compact_);
  start_ = buffer_.write_base() + store_.block(block_).code;
  code_ = Assembler(buffer_.write_base() + store_.block(block_).code);
  EmitIndirectEntry();
  store_.block(block_).body = static_cast<uint8_t>(code_.at() - start_);
  if (stream_count_ != 0) EmitLoopEntry();
  unsigned done = 0;
  const uint32_t own_flags = exit_flags_;
  bool open = true;  // control falls out of the last instruction
  for (; done < count_ && open; ++done) {
    uint8_t* const before = code_.at();
    const unsigned cold_before = cold_count_, fixups_before = fixup_count_;
    NotePlace(done);
    if (crosses_page_ && done + 1 == count_) EmitNextPageCheck(done);
    EmitEarlyChecks(done);
    if (!EmitInstruction(done)) {
      code_ = Assembler(before);
      cold_count_ = cold_before;
      fixup_count_ = fixups_before;
      --place_count_;
      EmitInterpretExit(RipOf(done), &insns_[done]);
      open = false;
      break;
    }
    if (insns_[done].branch != BranchKind::kNone && !IsSideExit(done)) open = false;
    if (exit_flags_ != own_flags) {  // the mode changed: what follows is another block
      ++done;
      break;
    }
  }
  const uint64_t next = done == 0 ? request.rip : TruncateRip(NextRip(done - 1));
  if (open) {
    if (done == count_ && ends_undecodable_ && exit_flags_ == own_flags)
      EmitInterpretExit(next, nullptr);
    else
      EmitLinkExit(next, exit_flags_, next <= request.rip);  // poll where the address space wraps
  }
  store_.block(block_).hot_size = static_cast<uint16_t>(code_.at() - start_);
  EmitColdPart();
  const bool crosses = crosses_page_ && done == count_;
  Finish(store_.block(block_), done);
  store_.Finish(block_,
                {.places = std::span(places_).first(place_count_),
                 .fixups = std::span(fixups_).first(fixup_count_),
                 .looks = std::span(looks_).first(look_count_),
                 .page = request.page,
                 .reusable = reusable_},
                request.page_index);
  NACRE_CHECK(store_.block(block_).record_bytes + sizeof(Block) <= reserve);
  if (crosses) store_.AddAlias(block_, request.next_page_index, request.next_phys_page << 12, 15);
  return block_;
}

}  // namespace nacre::engine::jit
