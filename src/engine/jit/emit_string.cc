// String instructions outside 64-bit code, through any segments: single elements in the block, repeated ones by
// JitVcpu::FastSegmentString. Going down (DF set) single ones are left to the interpreter.

#include "engine/jit/translator.h"
#include "x86/string_segment.h"

namespace nacre::engine::jit {

using x86::Instruction;

namespace {

constexpr uint8_t kMovs = 0xa4, kCmps = 0xa6, kStos = 0xaa, kLods = 0xac, kScas = 0xae;

bool ReadsSource(uint8_t opcode) { return opcode == kMovs || opcode == kCmps || opcode == kLods; }
bool UsesDestination(uint8_t opcode) { return opcode != kLods; }

}  // namespace

/// The opcode without its lowest bit (elements are not bytes), or 0.
uint8_t Translator::StringOpcode(const Instruction& insn) {
  if (insn.encoding != x86::Encoding::kLegacy || insn.map != 0 || insn.code_size == x86::CodeSize::k64) return 0;
  const auto opcode = static_cast<uint8_t>(insn.opcode & 0xfe);
  return opcode == kMovs || opcode == kCmps || opcode == kStos || opcode == kLods || opcode == kScas ? opcode : 0;
}

/// Whether EmitString takes it.
bool Translator::CanTranslateString(const Instruction& insn) const {
  const uint8_t opcode = StringOpcode(insn);
  if (opcode == 0) return false;
  const unsigned source = x86::StringSegment(insn);
  if (ReadsSource(opcode) &&
      (source == x86::kCs ? !(request_.flags & kFlagCsReadable) : KindOf(source) == SegmentKind::kNone))
    return false;
  return !UsesDestination(opcode) || KindOf(x86::kEs) != SegmentKind::kNone;
}

bool Translator::EmitString(unsigned index) {
  const Instruction& insn = insns_[index];
  if (!CanTranslateString(insn)) return false;
  if (insn.has(x86::kInsnRep) || insn.has(x86::kInsnRepne)) {
    EmitRepeatedString(index);
    return true;
  }
  const uint8_t opcode = StringOpcode(insn);
  const unsigned size = (insn.opcode & 1) ? WordSize(insn) : 1;
  const unsigned source = x86::StringSegment(insn);
  const bool narrow = insn.address_size == 2;
  EmitUpwardsOnly(index);
  const SegmentOffset from{.base = x86::kRsi, .address_size = insn.address_size};
  const SegmentOffset to{.base = x86::kRdi, .address_size = insn.address_size};
  const auto whole = static_cast<uint8_t>(insn.opcode & 1);
  const uint8_t prefix = size == 2 ? 0x66 : 0;
  const Mem saved = Context(offsetof(JitContext, saved_scratch));
  const auto advance = [&](uint8_t reg) {
    if (narrow) code_.Byte(0x66);
    code_.Lea(reg, {.base = reg, .disp = static_cast<int32_t>(size)}, false);
  };
  if (opcode == kLods) {
    code_.Op(kHostRax, EmitSegmentAccess(index, kOperand, source, from, size, false), 0x8a | whole, false, 0, prefix);
    advance(kHostRsi);
    return true;
  }
  if (ReadsSource(opcode)) {
    LoadSized(kScratch2, EmitSegmentAccess(index, kOperand, source, from, size, false), size);
    code_.Store(saved, kScratch2);
  }
  const Mem at = EmitSegmentAccess(index, kStack, x86::kEs, to, size, opcode == kMovs || opcode == kStos);
  if (ReadsSource(opcode)) code_.Load(kScratch2, saved);
  const uint8_t value = ReadsSource(opcode) ? kScratch2 : kHostRax;
  code_.Op(value, at, (opcode == kMovs || opcode == kStos ? 0x88 : 0x3a) | whole, false, 0, prefix);
  if (ReadsSource(opcode)) advance(kHostRsi);
  advance(kHostRdi);
  return true;
}

/// Away where DF is set, unless the block has looked before.
void Translator::EmitUpwardsOnly(unsigned index) {
  if (upwards_) return;
  upwards_ = true;
  const Mem rflags = Context(offsetof(JitContext, state) + offsetof(x86::CpuState, rflags));
  if (live_before_[index] == 0) {
    code_.Op(0, rflags, 0xf7, false);  // TEST
    code_.Value(static_cast<uint32_t>(x86::rflags::kDf));
    EmitLimitExit(false, false, RipOf(index), code_.JumpIf(5));
    return;
  }
  const Mem saved_rcx = Context(offsetof(JitContext, saved_rcx));
  code_.Store(saved_rcx, kHostRcx);
  code_.Load(kHostRcx, rflags);
  code_.Pext(kHostRcx, kHostRcx, Context(offsetof(JitContext, direction_mask)));
  uint8_t* const clear = code_.JumpIfRcxZero();
  EmitLimitExit(false, true, RipOf(index), code_.Jump());
  code_.Bind8(clear);
  code_.Load(kHostRcx, saved_rcx);
}

/// Out of line to JitVcpu::SlowString, which comes back behind it.
void Translator::EmitRepeatedString(unsigned index) {
  const Instruction& insn = insns_[index];
  Site site = SiteAt(RipOf(index));
  site.mnemonic = insn.mnemonic;
  site.length = insn.length & 15;
  site.context = context() & 3;
  site.string = StringKind::kSegments;
  site.size = (insn.opcode & 1) ? static_cast<uint8_t>(WordSize(insn)) : 1;
  site.to = static_cast<uint8_t>(x86::StringSegment(insn));
  site.from = StringOpcode(insn);
  site.opmask_bits = static_cast<uint8_t>((insn.address_size == 2 ? Site::kNarrowString : 0) |
                                          (insn.has(x86::kInsnRepne) ? Site::kUntilEqual : 0));
  const uint32_t id = store_.AddSite(block_, site);
  EmitExitTo(stubs_.string, id, Fixup::kSite);
  store_.site(id).retry = InBlock(code_.at());
  addend_of_ = -1;
}

}  // namespace nacre::engine::jit
