// Loops of one block: it ends with a conditional branch to its own start. Where accesses move by a constant in each
// round (streams), the block holds its body twice. Each time round, the plain body is followed by a look at where the
// streams are: if all are on pages that the TLB knows, the second body runs, without checks, until one of them would
// leave its page, and then the look is taken again. The plain body does what the look refuses: the round at a page's
// end, misses, faults. Requests are polled with each look, so after at most a page of rounds.

#include <algorithm>
#include <bit>
#include <cstdlib>

#include "engine/jit/translator.h"

namespace nacre::engine::jit {

using x86::BranchKind;
using x86::Instruction;

namespace {

/// A loop's body is emitted twice; longer ones gain little.
constexpr unsigned kMaxLoop = 32;
/// Rounds of the plain body before a look, which costs as much as a few checks.
constexpr uint32_t kPlainRounds = 3;
/// Most of a page shall lie before a stream when it comes to one.
constexpr int64_t kMaxStreamBytes = 1024;

#define NACRE_CONTEXT(field) Context(offsetof(JitContext, field))

Mem StreamHost(unsigned stream) { return Context(offsetof(JitContext, stream_host) + 8 * stream); }

}  // namespace

/// Decides whether the block is such a loop, and what its streams are. After PlanGroups.
void Translator::PlanLoop() {
  stream_count_ = 0;
  if (count_ < 2 || count_ > kMaxLoop || ends_undecodable_ || crosses_page_ || !code64() ||
      (request_.flags & (kFlagUngrouped | kFlagSingle)) || !(request_.flags & kFlagFlat) || live_before_[0] != 0)
    return;
  const Instruction& last = insns_[count_ - 1];
  if (last.branch != BranchKind::kConditional || !IsJcc(last) || NextRip(count_ - 1) + last.immediate != request_.rip)
    return;
  for (unsigned i = 0; i + 1 < count_; ++i)  // emitted by EmitGeneral, or nothing at all
    if (!Nop(i) && !(ReEmits(i) && insns_[i].branch == BranchKind::kNone)) return;

  pinned_ = {-1, -1};
  const auto versions = base_version_;
  base_change_ = {};
  const auto version = [&](uint8_t gpr) { return gpr == x86::kNoRegister ? 0 : versions[gpr]; };
  const auto change = [&](uint8_t gpr) { return gpr == x86::kNoRegister ? 0 : base_change_[gpr]; };
  for (unsigned i = 0; i + 1 < count_; ++i) {
    StreamAccess& access = stream_access_[i];
    stream_of_[i] = -1;
    access.known = FormOf(i, access.form, access.offset) && access.form.base_version == version(access.form.base) &&
                   access.form.index_version == version(access.form.index);
    access.base_change = change(access.form.base);
    access.index_change = change(access.form.index);
    TrackBases(insns_[i]);
  }
  for (unsigned i = 0; i + 1 < count_; ++i) {  // a register with a new version has no step
    StreamAccess& access = stream_access_[i];
    for (const uint8_t gpr : {access.form.base, access.form.index})
      if (gpr != x86::kNoRegister && base_version_[gpr] != versions[gpr]) access.known = false;
  }
  MakeStreams();
  // What tells when to leave: a register that moves.
  counter_step_ = 0;
  for (unsigned s = 0; s < stream_count_ && counter_step_ == 0; ++s) {
    if (streams_[s].moving == x86::kNoRegister) continue;
    counter_ = streams_[s].moving;
    counter_step_ = base_change_[counter_];
  }
  if (counter_step_ == 0) stream_count_ = 0;
  if (stream_count_ != 0) PinStreams();
}

/// Streams whose host addresses stay in R10 and R11 while the second body runs, where nothing else needs these.
void Translator::PinStreams() {
  std::array<unsigned, kLoopStreams> uses{};
  for (unsigned i = 0; i + 1 < count_; ++i) {
    const Instruction& insn = insns_[i];
    if (Nop(i)) continue;
    for (const uint8_t gpr : {insn.base, insn.index})
      if (gpr < 16 && IsHomed(gpr)) return;
    for (unsigned o = 0; o < insn.operand_count; ++o)
      if (insn.operand[o].register_class == x86::RegisterClass::kGpr && IsHomed(insn.operand[o].index)) return;
    if (!insn.memory_operand() || insn.mnemonic == ZYDIS_MNEMONIC_LEA) continue;
    if (stream_of_[i] < 0) return;
    ++uses[static_cast<unsigned>(stream_of_[i])];
  }
  if (stream_count_ <= 2) {
    pinned_ = {0, static_cast<int8_t>(stream_count_ == 2 ? 1 : -1)};
    return;
  }
  pinned_[1] = static_cast<int8_t>(std::max_element(uses.begin(), uses.end()) - uses.begin());
}

void Translator::MakeStreams() {
  for (unsigned i = 0; i + 1 < count_; ++i) {
    const StreamAccess& access = stream_access_[i];
    if (!access.known) continue;
    Stream stream{.low = access.offset,
                  .high = access.offset + insns_[i].memory_operand()->size,
                  .form = access.form,
                  .leader = i,
                  .write = insns_[i].memory_operand()->written};
    const int64_t base_step = access.form.base == x86::kNoRegister ? 0 : base_change_[access.form.base];
    const int64_t index_step = access.form.index == x86::kNoRegister ? 0 : base_change_[access.form.index];
    if (base_step != 0 && index_step != 0) continue;
    if (base_step != 0) stream.moving = access.form.base;
    if (index_step != 0) {
      stream.moving = access.form.index;
      stream.moving_scale = access.form.scale;
    }
    stream.step = base_step + index_step * stream.moving_scale;
    if (std::abs(stream.step) > kMaxStreamBytes) continue;
    for (unsigned s = 0; s < stream_count_ && stream_of_[i] < 0; ++s) {
      Stream& known = streams_[s];
      const int64_t low = std::min(known.low, stream.low), high = std::max(known.high, stream.high);
      if (!(known.form == stream.form) || high - low > kMaxStreamBytes) continue;
      known.low = low;
      known.high = high;
      known.write |= stream.write;
      stream_of_[i] = static_cast<int8_t>(s);
    }
    if (stream_of_[i] >= 0 || stream_count_ == kLoopStreams) continue;
    stream_of_[i] = static_cast<int8_t>(stream_count_);
    streams_[stream_count_++] = stream;
  }
  // A group whose leader is in a stream checks nothing, so all of it must be.
  for (unsigned group = 0; group < group_count_; ++group) {
    bool all = true;
    for (unsigned i = 0; i + 1 < count_; ++i)
      all = all && (plan_[i][kOperand].group != static_cast<int>(group) || stream_of_[i] >= 0);
    for (unsigned i = 0; i + 1 < count_ && !all; ++i)
      if (plan_[i][kOperand].group == static_cast<int>(group)) stream_of_[i] = -1;
  }
}

/// The operand of an access in the second body, on the host. Keeps the flags.
Mem Translator::EmitStreamAccess(unsigned index) {
  const int stream_index = stream_of_[index];
  const Stream& stream = streams_[static_cast<unsigned>(stream_index)];
  const StreamAccess& access = stream_access_[index];
  Mem mem{.base = pinned_[1] == stream_index ? kScratch2 : kScratch1};
  if (pinned_[0] != stream_index && pinned_[1] != stream_index) {
    code_.Load(kScratch1, StreamHost(static_cast<unsigned>(stream_index)));
    addend_of_ = -1;
  }
  int64_t displacement = access.offset;
  if (stream.form.constant()) displacement -= stream.low;
  if (stream.moving != x86::kNoRegister) {
    mem.index = LoadGpr(stream.moving, kScratch2);
    mem.scale = stream.moving_scale;
    displacement -=
        (stream.moving == stream.form.base ? access.base_change : access.index_change) * stream.moving_scale;
  }
  mem.disp = static_cast<int32_t>(displacement);
  if (mem.index != kScratch2) return mem;
  code_.Lea(kScratch1, mem);  // R11 may be needed for a register operand
  return {.base = kScratch1};
}

/// Looks where a stream is, at the start of a round: sets its stream_host and counts the rounds that stay on the page.
/// Not on a page of the TLB: away by loop_misses_. Clobbers the flags, R10 and R11.
void Translator::EmitStreamSetUp(unsigned index, bool first_to_count) {
  const Stream& stream = streams_[index];
  const StreamAccess& access = stream_access_[stream.leader];
  const size_t tlb = offsetof(JitContext, tlb) + context() * sizeof(DataTlb);
  const size_t tag = tlb + (stream.write ? offsetof(DataTlb, write_tag) : offsetof(DataTlb, read_tag));
  const int64_t changed =
      access.base_change + (access.form.index == x86::kNoRegister ? 0 : access.index_change * access.form.scale);
  const auto room = static_cast<int32_t>(static_cast<int64_t>(kPageSize) - (stream.high - stream.low));
  EmitLinearAddress(insns_[stream.leader], NextRip(stream.leader),
                    static_cast<int>(stream.low - (access.offset - changed)));
  code_.Pext(kScratch1, kScratch2, Context(offsetof(JitContext, tlb_mask) + 8 * context()));
  code_.Add(kScratch2, ContextIndexed(kScratch1, tag));
  code_.CompareImm32(kScratch2, static_cast<uint32_t>(room));
  loop_misses_[index] = code_.JumpIf(7);  // above
  // R11 is what lies before the range on its page.
  if (stream.form.constant()) {
    code_.Sub(kScratch2, ContextIndexed(kScratch1, tag));
    code_.Add(kScratch2, ContextIndexed(kScratch1, tlb + offsetof(DataTlb, addend)));
    code_.Store(StreamHost(index), kScratch2);
    return;
  }
  if (stream.step != 0) {
    if (stream.step > 0) {
      code_.Negate(kScratch2);
      code_.Lea(kScratch2, {.base = kScratch2, .disp = room});
    }
    const auto step = static_cast<uint64_t>(std::abs(stream.step));
    code_.ShiftRight(kScratch2, static_cast<uint8_t>(std::bit_width(step - 1)));  // by more than the step, if anything
    uint8_t* fewer = nullptr;
    if (!first_to_count) {
      code_.Compare(kScratch2, NACRE_CONTEXT(loop_rounds));
      fewer = code_.JumpShort(0x73);  // not below
    }
    code_.Store(NACRE_CONTEXT(loop_rounds), kScratch2);
    if (fewer) code_.Bind8(fewer);
  }
  code_.Load(kScratch1, ContextIndexed(kScratch1, tlb + offsetof(DataTlb, addend)));
  const auto add = [&](uint8_t gpr, unsigned scale) {
    if (gpr == x86::kNoRegister || gpr == stream.moving) return;
    code_.Lea(kScratch1, {.base = kScratch1, .index = LoadGpr(gpr, kScratch2), .scale = scale});
  };
  add(stream.form.base, 1);
  add(stream.form.index, stream.form.scale);
  code_.Store(StreamHost(index), kScratch1);
}

/// Of n + 1 rounds: the counter after them to loop_limit.
void Translator::EmitLoopLimit() {
  code_.Load(kScratch1, NACRE_CONTEXT(loop_rounds));
  code_.MultiplyImm(kScratch1, kScratch1, static_cast<int32_t>(counter_step_));
  if (IsHomed(counter_))
    code_.Add(kScratch1, GprSlot(counter_));
  else
    code_.Lea(kScratch1, {.base = kScratch1, .index = HostOf(counter_)});
  code_.Lea(kScratch1, {.base = kScratch1, .disp = static_cast<int32_t>(counter_step_)});
  code_.Store(NACRE_CONTEXT(loop_limit), kScratch1);
}

/// What comes before the plain body.
void Translator::EmitLoopEntry() {
  code_.StoreImm32(NACRE_CONTEXT(loop_wait), kPlainRounds);
  loop_start_ = code_.at();
}

/// What follows the plain body of a loop, whose last instruction is number `index`.
void Translator::EmitLoop(unsigned index) {
  const unsigned condition = insns_[index].opcode & 15;
  uint8_t* const leave = code_.JumpIf(condition ^ 1);
  code_.SubImm8(NACRE_CONTEXT(loop_wait), 1);
  Assembler::Patch(code_.JumpIf(5), loop_start_);
  uint8_t* const look = code_.at();
  code_.CompareImm8(NACRE_CONTEXT(go), 0);
  uint8_t* const poll = code_.JumpIf(4);
  bool first_to_count = true;
  for (unsigned s = 0; s < stream_count_; ++s) {
    EmitStreamSetUp(s, first_to_count);
    first_to_count = first_to_count && streams_[s].step == 0;
  }
  EmitLoopLimit();
  if (pinned_[0] >= 0) code_.Load(kScratch1, StreamHost(static_cast<unsigned>(pinned_[0])));
  if (pinned_[1] >= 0) code_.Load(kScratch2, StreamHost(static_cast<unsigned>(pinned_[1])));

  uint8_t* const strip = code_.at();
  in_strip_ = true;
  addend_of_ = -1;
  bool complete = true;
  for (unsigned i = 0; i < index && complete; ++i) {
    NotePlace(i);
    EmitEarlyChecks(i);
    complete = EmitInstruction(i);
  }
  NACRE_CHECK(complete);  // as the first time
  NotePlace(index);
  in_strip_ = false;
  addend_of_ = -1;
  uint8_t* const leave_strip = code_.JumpIf(condition ^ 1);
  code_.Compare(LoadGpr(counter_, kScratch1), NACRE_CONTEXT(loop_limit));
  Assembler::Patch(code_.JumpIf(5), strip);
  Assembler::Patch(code_.Jump(), look);

  for (unsigned s = 0; s < stream_count_; ++s) code_.Bind32(loop_misses_[s]);
  uint8_t* const again = code_.Jump();
  const uint32_t id = NewColdLink(again, request_.rip, LiveAt(request_.rip));
  cold_[cold_count_++] = {.kind = ColdExit::kPoll, .displacement = poll, .id = id};
  code_.Bind32(leave);
  code_.Bind32(leave_strip);
  const uint64_t next = NextRip(index);
  EmitLinkExit(next, request_.flags, next <= RipOf(index));
}

}  // namespace nacre::engine::jit
