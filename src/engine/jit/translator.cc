#include "engine/jit/translator.h"

#include <algorithm>

#include "base/check.h"

namespace nacre::engine::jit {

using x86::BranchKind;
using x86::CodeSize;
using x86::Instruction;

namespace {

constexpr uint16_t kAllFlags = static_cast<uint16_t>(x86::rflags::kArithmetic);
/// The most host code that one block can take, hot and cold.
constexpr size_t kBlockReserve = kMaxInstructions * 512;
/// How far LiveAt looks into a successor.
constexpr unsigned kLookAhead = 6;

/// REP MOVS and REP STOS with 64-bit addresses and no segment prefix.
bool IsRepeatedCopy(const Instruction& insn) {
  return insn.code_size == CodeSize::k64 && insn.address_size == 8 && insn.has(x86::kInsnRep) &&
         !insn.has(x86::kInsnSegmentPrefix) && insn.map == 0 && insn.encoding == x86::Encoding::kLegacy &&
         ((insn.opcode & 0xfe) == 0xa4 || (insn.opcode & 0xfe) == 0xaa);
}

/// Instructions left to JitVcpu::FastInstruction with the address of their operand.
bool HasFastMemoryPath(const Instruction& insn) {
  switch (insn.zydis_mnemonic()) {
    case ZYDIS_MNEMONIC_XSAVE64:
    case ZYDIS_MNEMONIC_XSAVEOPT64:
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
      return IsNop(insn) || CanReEmit(insn) || IsRepeatedCopy(insn) || IsGather(insn);
  }
}

Translator::Translator(const x86::CpuModel& model, codegen::CodeBuffer& buffer, BlockStore& store, const Stubs& stubs,
                       uint8_t* code_start)
    : model_(model), buffer_(buffer), store_(store), stubs_(stubs), code_start_(code_start), at_(code_start) {}

void Translator::DecodeBlock() {
  const CodeSize code_size = code64() ? CodeSize::k64 : CodeSize::k32;
  unsigned offset = 0;
  const auto page_offset = static_cast<unsigned>(request_.phys & kPageMask);
  count_ = 0;
  ends_undecodable_ = false;
  crosses_page_ = false;
  while (count_ < request_.max_instructions) {
    const unsigned at = page_offset + offset;
    if (at >= kPageSize) break;
    Instruction& insn = insns_[count_];
    const size_t room = std::min<size_t>(15, kPageSize - at);
    x86::DecodeStatus status = x86::Decode({request_.page + at, room}, code_size, insn);
    if (status == x86::DecodeStatus::kTruncated && request_.next_page) {
      uint8_t bytes[15];
      std::copy_n(request_.page + at, room, bytes);
      std::copy_n(request_.next_page, 15 - room, bytes + room);
      status = x86::Decode(bytes, code_size, insn);
    }
    // Invalid, or the next page is not there: the interpreter finds out.
    if (status != x86::DecodeStatus::kOk || !model_.Adapt(insn)) {
      ends_undecodable_ = true;
      break;
    }
    offsets_[count_] = static_cast<uint16_t>(offset);
    offset += insn.length;
    ++count_;
    if (insn.length > room) {
      crosses_page_ = true;
      break;
    }
    if (insn.branch != BranchKind::kNone) break;
  }
}

/// Arithmetic flags that may be read before they are written from `rip` on. Only code on the same page can be looked
/// at.
uint16_t Translator::LiveAt(uint64_t rip) {
  if (!SamePage(rip)) return kAllFlags;
  const CodeSize code_size = code64() ? CodeSize::k64 : CodeSize::k32;
  auto at = static_cast<unsigned>(rip & kPageMask);
  uint16_t undecided = kAllFlags, live = 0;
  Instruction insn;
  for (unsigned i = 0; i < kLookAhead && undecided; ++i) {
    const size_t room = std::min<size_t>(15, kPageSize - at);
    look_first_ = std::min(look_first_, at);
    look_last_ = std::max(look_last_, static_cast<unsigned>(at + room));
    if (room == 0 || x86::Decode({request_.page + at, room}, code_size, insn) != x86::DecodeStatus::kOk) break;
    live |= insn.flags_read & undecided;
    undecided &= static_cast<uint16_t>(~(insn.flags_read | insn.flags_written));
    // A call's own access to the stack keeps the flags.
    if (insn.branch == BranchKind::kJump || insn.branch == BranchKind::kCall) {
      const uint64_t target = TruncateRip(AlignDown(rip, kPageSize) + at + insn.length + insn.immediate);
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
  uint16_t live = kAllFlags;
  look_first_ = kPageSize;
  look_last_ = 0;
  if (count_ > 0) {
    const unsigned last = count_ - 1;
    const Instruction& insn = insns_[last];
    if (insn.branch == BranchKind::kNone && !ends_undecodable_) live = LiveAt(NextRip(last));
    if (insn.branch == BranchKind::kConditional)
      live = LiveAt(NextRip(last)) | LiveAt(TruncateRip(NextRip(last) + insn.immediate));
    if (insn.branch == BranchKind::kJump || insn.branch == BranchKind::kCall)
      live = LiveAt(TruncateRip(NextRip(last) + insn.immediate));
  }
  for (unsigned i = count_; i-- > 0;) {
    const Instruction& insn = insns_[i];
    // The interpreter takes over with all flags, and may deliver a fault that shows them.
    if (!IsTransparent(insn) && insn.branch == BranchKind::kNone) live = kAllFlags;
    live = static_cast<uint16_t>((live & ~insn.flags_written) | insn.flags_read);
    live_before_[i] = live & kAllFlags;
  }
}

void Translator::EmitInterpretExit(uint64_t rip, const Instruction* insn) {
  Site site;
  site.rip = rip;
  if (insn) {
    site.mnemonic = insn->mnemonic;
    site.length = insn->length & 15;
    site.context = context() & 3;
    if (insn->operand_count >= 1) site.to = insn->operand[0].index;
    site.control = insn->operand_count >= 1 && insn->operand[0].register_class == x86::RegisterClass::kControl;
    if (insn->operand_count >= 2) site.from = insn->operand[1].index;
    if (code64() && HasFastMemoryPath(*insn) && insn->address_size == 8) {
      EmitLinearAddress(*insn, rip + insn->length, 0);
      code_.Store(Context(offsetof(JitContext, slow_address)), kScratch2);
      site.has_address = true;
    }
  }
  cold_[cold_count_++] = {.kind = ColdExit::kInterpret, .displacement = code_.Jump(), .id = store_.AddSite(site)};
}

/// Before an instruction that crosses into the next page: that page must be mapped as it was at translation.
void Translator::EmitNextPageCheck(unsigned index) {
  const size_t slot = ((request_.rip >> 12) + 1) % kPageSlots;
  const Mem slot_id = Context(offsetof(JitContext, code_pages) + context() * sizeof(CodePages) + 4 * slot);
  const bool live = live_before_[index] != 0;
  Site site;
  site.rip = RipOf(index);
  site.next_page = true;
  ColdExit exit{.kind = ColdExit::kInterpret, .id = store_.AddSite(site), .restore_rcx = live};
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
  Site site;
  site.rip = RipOf(index);
  site.mnemonic = insn.mnemonic;
  site.length = insn.length & 15;
  site.context = context() & 3;
  site.string = (insn.opcode & 0xfe) == 0xa4 ? StringKind::kMove : StringKind::kStore;
  site.size = (insn.opcode & 1) ? insn.operand_size : 1;
  const uint32_t id = store_.AddSite(site);
  code_.StoreImm32(Context(offsetof(JitContext, exit_id)), id);
  code_.JumpTo(stubs_.string);
  store_.site(id).retry = Offset(code_.at());
}

/// The code of an instruction begins here.
void Translator::NotePlace(unsigned index) {
  store_.places().push_back({static_cast<uint16_t>(code_.at() - start_), offsets_[index]});
}

bool Translator::EmitInstruction(unsigned index) {
  const Instruction& insn = insns_[index];
  if (insn.has(x86::kInsnBadLock)) return false;
  if (IsNop(insn)) return true;
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
  if (!CanReEmit(insn)) return false;
  return EmitGeneral(insn, index);
}

void Translator::EmitColdPart() {
  for (unsigned i = 0; i < cold_count_; ++i) {
    const ColdExit& exit = cold_[i];
    code_.Bind32(exit.displacement);
    if (exit.restore_rcx) code_.Load(kHostRcx, Context(offsetof(JitContext, saved_rcx)));
    if (exit.kind == ColdExit::kLookup || exit.kind == ColdExit::kMiss) {
      code_.JumpTo(exit.kind == ColdExit::kLookup ? stubs_.lookup[context()] : stubs_.exit_lookup);
      continue;
    }
    if (exit.kind == ColdExit::kLink) store_.link(exit.id).stub = Offset(code_.at());
    code_.StoreImm32(Context(offsetof(JitContext, exit_id)), exit.id);
    switch (exit.kind) {
      case ColdExit::kLink:
        code_.JumpTo(stubs_.exit_link);
        break;
      case ColdExit::kPoll:
        code_.JumpTo(stubs_.exit_poll);
        break;
      case ColdExit::kInterpret:
        code_.JumpTo(stubs_.exit_interpret);
        break;
      case ColdExit::kSlow:
        code_.JumpTo(exit.restore_rcx ? stubs_.slow_address : stubs_.slow[exit.context][exit.write ? 1 : 0]);
        break;
      case ColdExit::kMiss:
      case ColdExit::kLookup:
        break;
    }
  }
}

uint32_t Translator::Translate(const TranslateRequest& request) {
  if (static_cast<size_t>(at_ - buffer_.write_base()) + kBlockReserve > buffer_.size_bytes()) return kNone;
  request_ = request;
  exit_flags_ = request.flags & ~uint32_t{kFlagUngrouped};
  cold_count_ = 0;
  addend_of_ = -1;
  DecodeBlock();
  ComputeLiveness();
  PlanGroups();
  PlanLoop();

  code_ = Assembler(at_);
  code_.Align(16);
  uint8_t* const start = code_.at();
  start_ = start;
  EmitIndirectEntry();
  Block block;
  block.phys = request.phys;
  block.rip = request.rip;
  block.flags = request.flags;
  block.code = Offset(start);
  block.body = static_cast<uint8_t>(code_.at() - start);
  block.map_begin = static_cast<uint32_t>(store_.places().size());

  if (stream_count_ != 0) EmitLoopEntry();
  unsigned done = 0;
  const uint32_t own_flags = exit_flags_;
  bool open = true;  // control falls out of the last instruction
  for (; done < count_ && open; ++done) {
    uint8_t* const before = code_.at();
    const unsigned cold_before = cold_count_;
    NotePlace(done);
    if (crosses_page_ && done + 1 == count_) EmitNextPageCheck(done);
    EmitEarlyChecks(done);
    if (!EmitInstruction(done)) {
      code_ = Assembler(before);
      cold_count_ = cold_before;
      store_.places().pop_back();
      EmitInterpretExit(RipOf(done), &insns_[done]);
      open = false;
      break;
    }
    if (insns_[done].branch != BranchKind::kNone) open = false;
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
  hot_bytes_ = static_cast<uint32_t>(code_.at() - start);
  EmitColdPart();

  // An instruction left to the interpreter counts as looked at: its bytes decided the block's end.
  unsigned length = done == 0 ? 0 : static_cast<unsigned>(offsets_[done - 1]) + insns_[done - 1].length;
  const auto page_offset = static_cast<unsigned>(request.phys & kPageMask);
  length = std::min<unsigned>(length + 15, static_cast<unsigned>(kPageSize) - page_offset);
  block.guest_length = static_cast<uint16_t>(std::max(1u, length));
  for (unsigned i = 0; i < done; ++i)
    block.undefined_flags =
        static_cast<uint16_t>((block.undefined_flags & ~insns_[i].flags_written) | insns_[i].flags_undefined);
  block.look_first = static_cast<uint16_t>(look_first_);
  block.look_last = static_cast<uint16_t>(look_last_);
  block.instruction_count = static_cast<uint8_t>(done);
  block.place_count = static_cast<uint8_t>(store_.places().size() - block.map_begin);
  block.host_size = static_cast<uint32_t>(code_.at() - start);
  NACRE_CHECK(block.host_size <= kBlockReserve);
  at_ = code_.at();
  translated_instructions_ += done;
  const uint32_t index = store_.Add(block, request.page_index);
  if (crosses_page_ && done == count_)
    store_.AddAlias(index, request.next_page_index, request.next_phys_page << 12, 15);
  return index;
}

}  // namespace nacre::engine::jit
