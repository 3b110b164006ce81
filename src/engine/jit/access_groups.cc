// Which memory accesses of a block share one TLB check. Accesses through one base register that does not change between
// them (RSP may change by known amounts), or at constant addresses of one page, form a group: its first access checks
// the whole range and keeps its host address, the others load that. If the check fails the block is left for one
// without groups, in which each access faults where it must.

#include <algorithm>

#include "engine/jit/translator.h"

namespace nacre::engine::jit {

using x86::BranchKind;
using x86::Instruction;
using x86::Operand;
using x86::OperandKind;
using x86::RegisterClass;

namespace {

constexpr int64_t kMaxRange = 240;
constexpr unsigned kConstantBase = 16;

bool IsPush(const Instruction& insn) {
  return insn.mnemonic == ZYDIS_MNEMONIC_PUSH || insn.branch == BranchKind::kCall ||
         insn.branch == BranchKind::kIndirectCall;
}

bool IsPop(const Instruction& insn) {
  return insn.mnemonic == ZYDIS_MNEMONIC_POP || insn.branch == BranchKind::kReturn;
}

bool NamesRsp(const Operand& operand) {
  return operand.kind == OperandKind::kRegister && operand.register_class == RegisterClass::kGpr &&
         operand.index == x86::kRsp;
}

/// ADD, SUB and LEA of RSP by a constant: the change. False: unknown.
bool ConstantRspChange(const Instruction& insn, bool code64, int64_t& change) {
  if (insn.operand_size != (code64 ? 8 : 4) || insn.operand_count < 2 || !NamesRsp(insn.operand[0])) return false;
  if (insn.mnemonic == ZYDIS_MNEMONIC_LEA) {
    change = insn.displacement;
    return insn.base == x86::kRsp && insn.index == x86::kNoRegister && insn.address_size == insn.operand_size;
  }
  if (insn.operand[1].kind != OperandKind::kImmediate) return false;
  const auto immediate = static_cast<int64_t>(SignExtend(insn.immediate, 32));
  change = insn.mnemonic == ZYDIS_MNEMONIC_SUB ? -immediate : immediate;
  return insn.mnemonic == ZYDIS_MNEMONIC_ADD || insn.mnemonic == ZYDIS_MNEMONIC_SUB;
}

}  // namespace

void Translator::PlanAccess(unsigned index, Part part, unsigned base, int64_t offset, unsigned size, bool write) {
  const int64_t end = offset + size;
  PlannedAccess& planned = plan_[index][part];
  for (unsigned i = group_count_; i-- > 0;) {
    Group& group = groups_[i];
    if (group.base != base || group.version != base_version_[base]) continue;
    const int64_t low = std::min(group.low, offset), high = std::max(group.high, end);
    if (high - low > kMaxRange) continue;
    if (base == kConstantBase && (low >> 12) != ((high - 1) >> 12)) continue;
    group.low = low;
    group.high = high;
    group.write |= write;
    ++group.count;
    planned.group = static_cast<int8_t>(i);
    access_offset_[index][part] = offset;
    return;
  }
  if (group_count_ == kAccessGroups || group_failures_.Excludes(RipOf(index))) return;
  groups_[group_count_] = {
      .low = offset, .high = end, .base = base, .version = base_version_[base], .count = 1, .write = write};
  planned = {.group = static_cast<int8_t>(group_count_), .leader = true, .distance = 0};
  access_offset_[index][part] = offset;
  ++group_count_;
}

/// What the instruction does to the registers that addresses are made of.
void Translator::TrackBases(const Instruction& insn) {
  int64_t change = 0;
  bool rsp_known = true;
  const int64_t word = code64() ? 8 : 4;
  if (IsPush(insn))
    change = -word;
  else if (insn.mnemonic == ZYDIS_MNEMONIC_POP)
    change = word;
  else if (insn.gpr_written >> x86::kRsp & 1)
    rsp_known = ConstantRspChange(insn, code64(), change);
  if (insn.mnemonic == ZYDIS_MNEMONIC_POP && insn.operand_count > 0 && NamesRsp(insn.operand[0])) rsp_known = false;
  if (insn.operand_size == 2 && (IsPush(insn) || IsPop(insn))) rsp_known = false;
  if (rsp_known) {
    rsp_offset_ += change;
  } else {
    ++base_version_[x86::kRsp];
    rsp_offset_ = 0;
  }
  for (unsigned gpr = 0; gpr < 16; ++gpr)
    if (gpr != x86::kRsp && (insn.gpr_written >> gpr & 1)) ++base_version_[gpr];
}

void Translator::PlanGroups() {
  for (unsigned i = 0; i < count_; ++i) plan_[i] = {};
  group_count_ = 0;
  rsp_offset_ = 0;
  if ((request_.flags & kFlagUngrouped) || count_ < 2 || !(request_.flags & kFlagFlat)) return;
  const unsigned word = code64() ? 8 : 4;
  for (unsigned i = 0; i < count_; ++i) {
    const Instruction& insn = insns_[i];
    if (!IsTransparent(insn) && insn.branch == BranchKind::kNone) break;  // the block may end here
    const Operand* memory = insn.memory_operand();
    const bool translated = CanReEmit(insn) || insn.mnemonic == ZYDIS_MNEMONIC_PUSH ||
                            insn.branch == BranchKind::kIndirectCall || insn.branch == BranchKind::kIndirectJump;
    const bool bit_string = insn.map == 1 && (insn.opcode & 0xe7) == 0xa3;
    const bool absolute_mov = insn.map == 0 && insn.opcode >= 0xa0 && insn.opcode <= 0xa3;
    if (memory && translated && MemoryMask(insn).which == 0 && !bit_string && !absolute_mov && memory->size > 0 &&
        memory->size <= 64 && insn.mnemonic != ZYDIS_MNEMONIC_LEA && insn.index == x86::kNoRegister &&
        insn.address_size == word && insn.segment != x86::kFs && insn.segment != x86::kGs && CanAddress(insn)) {
      const bool constant = insn.base == x86::kRipRegister || insn.base == x86::kNoRegister;
      int64_t offset = insn.displacement;
      if (insn.base == x86::kRipRegister) offset += static_cast<int64_t>(NextRip(i));
      if (insn.base == x86::kRsp) offset += rsp_offset_;
      const bool far_away = !constant && (offset > INT32_MAX / 2 || offset < INT32_MIN / 2);
      if (!far_away && (code64() || !constant))
        PlanAccess(i, kOperand, constant ? kConstantBase : insn.base, offset, memory->size, memory->written);
    }
    if (insn.operand_size != 2) {
      if (IsPush(insn)) PlanAccess(i, kStack, x86::kRsp, rsp_offset_ - word, word, true);
      if (IsPop(insn)) PlanAccess(i, kStack, x86::kRsp, rsp_offset_, word, false);
    }
    TrackBases(insn);
  }
  // Now the ranges are known. A group of one is no group.
  for (unsigned i = 0; i < count_; ++i) {
    for (unsigned part = 0; part < 2; ++part) {
      PlannedAccess& planned = plan_[i][part];
      if (planned.group < 0) continue;
      const Group& group = groups_[static_cast<unsigned>(planned.group)];
      if (group.count < 2)
        planned = {};
      else
        planned.distance = static_cast<int16_t>(access_offset_[i][part] - group.low);
    }
  }
}

}  // namespace nacre::engine::jit
