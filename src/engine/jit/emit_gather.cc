// Gathers and scatters: their registers go through the context to JitVcpu::FastGather and back, which does the elements
// through the TLB. What it cannot do it leaves to the interpreter, with nothing changed yet.

#include "engine/jit/translator.h"

namespace nacre::engine::jit {

using x86::Instruction;
using x86::Operand;
using x86::OperandKind;

namespace {

constexpr int32_t kIndexAt = static_cast<int32_t>(offsetof(JitContext, gather_index));
constexpr int32_t kValueAt = static_cast<int32_t>(offsetof(JitContext, gather_value));
constexpr int32_t kMaskAt = static_cast<int32_t>(offsetof(JitContext, gather_mask));

}  // namespace

/// In 64-bit code without a 67 prefix, where an address wraps only at 64 bits.
bool Translator::IsGather(const Instruction& insn) {
  const bool known = insn.encoding == x86::Encoding::kVex || insn.encoding == x86::Encoding::kEvex;
  return known && insn.has(x86::kInsnVsib) && insn.map == 2 && insn.code_size == x86::CodeSize::k64 &&
         insn.address_size == 8 &&
         ((insn.opcode >= 0x90 && insn.opcode <= 0x93) || (insn.opcode >= 0xa0 && insn.opcode <= 0xa3));
}

bool Translator::EmitGather(unsigned index) {
  const Instruction& insn = insns_[index];
  const Operand* memory = insn.memory_operand();
  if (!memory || Segmented(insn) || !CanAddress(insn)) return false;
  const bool evex = insn.encoding == x86::Encoding::kEvex, scatter = insn.operand[0].kind == OperandKind::kMemory;
  const unsigned bytes = insn.vector_length;
  const unsigned value = scatter ? insn.operand[insn.operand_count - 1].index : insn.operand[0].index;
  const unsigned vector_mask = evex ? 0 : insn.operand[2].index;
  const uint8_t index_bytes = (insn.opcode & 1) != 0 ? 8 : 4;

  Instruction base = insn;
  base.index = x86::kNoRegister;
  EmitLinearAddress(base, NextRip(index), 0);
  code_.Store(Context(offsetof(JitContext, slow_address)), kScratch2);
  uint8_t* at = EmitVectorMove(code_.at(), insn.index, bytes, evex, true, kIndexAt);
  at = EmitVectorMove(at, value, bytes, evex, true, kValueAt);
  at = evex ? EmitOpmaskMove(at, insn.opmask, true, kMaskAt)
            : EmitVectorMove(at, vector_mask, bytes, false, true, kMaskAt);
  code_ = Assembler(at);

  Site site = SiteAt(RipOf(index));
  site.mnemonic = insn.mnemonic;
  site.length = insn.length & 15;
  site.context = context() & 3;
  site.string = StringKind::kGather;
  site.write = scatter;
  site.size = memory->size;
  site.to = index_bytes;
  site.from = insn.scale;
  site.opmask = insn.opmask;
  site.opmask_bits = static_cast<uint8_t>(bytes / (index_bytes > memory->size ? index_bytes : memory->size));
  const uint32_t id = store_.AddSite(block_, site);
  EmitExitTo(stubs_.string, id, Fixup::kSite);
  store_.site(id).retry = InBlock(code_.at());

  at = code_.at();
  if (!scatter) at = EmitVectorMove(at, value, bytes, evex, false, kValueAt);
  at = evex ? EmitOpmaskMove(at, insn.opmask, false, kMaskAt)
            : EmitVectorMove(at, vector_mask, bytes, false, false, kMaskAt);
  code_ = Assembler(at);
  return true;
}

}  // namespace nacre::engine::jit
