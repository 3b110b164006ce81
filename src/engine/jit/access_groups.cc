// Which memory accesses of a block share one TLB check. Accesses through the same base and index registers, which
// change between them by known amounts at most, or at constant addresses of one page, form a group: its first access
// checks the whole range and keeps its host address, the others load that. If the check fails the block is left for one
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
/// Changes beyond this, of addresses that wrap at 2^32 or far apart, end what is known of a register.
constexpr int64_t kMaxChange = 1 << 20;

bool IsPush(const Instruction& insn) {
  return insn.mnemonic == ZYDIS_MNEMONIC_PUSH || insn.branch == BranchKind::kCall ||
         insn.branch == BranchKind::kIndirectCall;
}

bool IsPop(const Instruction& insn) {
  return insn.mnemonic == ZYDIS_MNEMONIC_POP || insn.branch == BranchKind::kReturn;
}

bool Names(const Operand& operand, unsigned gpr) {
  return operand.kind == OperandKind::kRegister && operand.register_class == RegisterClass::kGpr &&
         operand.index == gpr;
}

/// ADD, SUB, INC, DEC and LEA of a register by a constant: the change. False: unknown. `word`: of addresses; outside
/// 64-bit code changes of the lower half are known, too.
bool ConstantChange(const Instruction& insn, unsigned gpr, unsigned word, int64_t& change) {
  const bool fits = insn.operand_size == word || (word == 4 && insn.operand_size == 2);
  if (!fits || insn.operand_count < 1 || !Names(insn.operand[0], gpr)) return false;
  switch (insn.zydis_mnemonic()) {
    case ZYDIS_MNEMONIC_INC:
      change = 1;
      return true;
    case ZYDIS_MNEMONIC_DEC:
      change = -1;
      return true;
    case ZYDIS_MNEMONIC_LEA:
      change = insn.displacement;
      return insn.base == gpr && insn.index == x86::kNoRegister && insn.address_size == insn.operand_size;
    case ZYDIS_MNEMONIC_ADD:
    case ZYDIS_MNEMONIC_SUB:
      if (insn.operand_count < 2 || insn.operand[1].kind != OperandKind::kImmediate) return false;
      change = static_cast<int64_t>(SignExtend(insn.immediate, 32));
      if (insn.mnemonic == ZYDIS_MNEMONIC_SUB) change = -change;
      return true;
    default:
      return false;
  }
}

/// Stack instructions whose pointer moves by an amount that is not looked for.
bool MovesStack(const Instruction& insn) {
  switch (insn.zydis_mnemonic()) {
    case ZYDIS_MNEMONIC_PUSHA:
    case ZYDIS_MNEMONIC_PUSHAD:
    case ZYDIS_MNEMONIC_POPA:
    case ZYDIS_MNEMONIC_POPAD:
    case ZYDIS_MNEMONIC_ENTER:
      return true;
    default:
      return false;
  }
}

}  // namespace

void Translator::PlanAccess(unsigned index, Part part, const AddressForm& form, int64_t offset, unsigned size,
                            bool write) {
  const int64_t end = offset + size;
  PlannedAccess& planned = plan_[index][part];
  for (unsigned i = group_count_; i-- > 0;) {
    Group& group = groups_[i];
    if (!(group.form == form)) continue;
    const int64_t low = std::min(group.low, offset), high = std::max(group.high, end);
    if (group.closed && (low < group.low || high > group.high || (write && !group.write))) continue;
    if (high - low > kMaxRange) continue;
    if (form.constant() && (low >> 12) != ((high - 1) >> 12)) continue;
    group.low = low;
    group.high = high;
    group.write |= write;
    ++group.count;
    planned.group = static_cast<int8_t>(i);
    access_offset_[index][part] = offset;
    return;
  }
  if (group_count_ == kAccessGroups || group_failures_.Excludes(RipOf(index))) return;
  groups_[group_count_] = {.low = offset, .high = end, .form = form, .count = 1, .write = write};
  PlanEarlyCheck(groups_[group_count_], index, part);
  planned = {.group = static_cast<int8_t>(group_count_), .leader = true, .distance = 0};
  access_offset_[index][part] = offset;
  ++group_count_;
}

/// A look-up in a table: the index comes from earlier instructions of the block, the base from before it. Such an
/// address is often what the code waits for, and tables are often small.
bool Translator::IsTableLookup(unsigned index, const std::array<unsigned, 16>& versions) const {
  const Instruction& insn = insns_[index];
  if (!code64() || insn.index >= 16) return false;
  return base_version_[insn.index] != versions[insn.index] &&
         (insn.base >= 16 || base_version_[insn.base] == versions[insn.base]);
}

/// Where the flags are live at a group's first access, but were not at an earlier instruction from which on its address
/// is known, the check goes there.
void Translator::PlanEarlyCheck(Group& group, unsigned index, Part part) {
  if (live_before_[index] == 0 || early_.index < 0 || group.form.segment != 0 ||
      group_failures_.Excludes(RipOf(static_cast<unsigned>(early_.index))))
    return;
  const AddressForm& form = group.form;
  int64_t change = 0;
  const auto follow = [&](unsigned gpr, unsigned scale) {
    if (gpr >= 16) return true;
    change += (base_change_[gpr] - early_.change[gpr]) * scale;
    return base_version_[gpr] == early_.version[gpr];
  };
  if (!follow(form.base, 1) || !follow(form.index, form.scale)) return;
  group.early_at = early_.index;
  group.early_change = static_cast<int32_t>(change);
  group.first = static_cast<uint8_t>(index);
  group.first_part = part;
}

/// What the instruction does to the registers that addresses are made of.
void Translator::TrackBases(const Instruction& insn) {
  const bool push = IsPush(insn), pop = insn.mnemonic == ZYDIS_MNEMONIC_POP;
  uint32_t written = insn.gpr_written;
  if (push || pop || MovesStack(insn)) written |= 1u << x86::kRsp;
  if (MovesStack(insn)) written |= 1u << x86::kRbp;
  for (unsigned gpr = 0; gpr < 16; ++gpr) {
    if (!(written >> gpr & 1)) continue;
    int64_t change = 0;
    bool known;
    if (gpr == x86::kRsp && (push || pop)) {
      const auto word = static_cast<int64_t>(WordSize(insn));
      change = push ? -word : word;
      known = CanUseStack(insn) && !(pop && insn.operand_count > 0 && Names(insn.operand[0], x86::kRsp));
      if (stack_size() == 2) ++narrow_version_[gpr];
    } else {
      known = ConstantChange(insn, gpr, code64() ? 8 : 4, change);
      if (insn.operand_size == 2) ++narrow_version_[gpr];
    }
    base_change_[gpr] += change;
    if (known && std::abs(base_change_[gpr]) <= kMaxChange) continue;
    ++base_version_[gpr];
    base_change_[gpr] = 0;
  }
  if (!IsSegmentMove(insn) && !pop) return;
  for (unsigned& version : segment_version_) ++version;  // any of them
}

/// What the memory operand's address is made of, and in `offset` its distance from where that was when the versions of
/// its registers began. False: no address that a group could share.
bool Translator::FormOf(unsigned index, AddressForm& form, int64_t& offset) const {
  const Instruction& insn = insns_[index];
  const Operand* memory = insn.memory_operand();
  const bool segmented = Segmented(insn);
  const bool translated = ReEmits(index) || insn.mnemonic == ZYDIS_MNEMONIC_PUSH ||
                          insn.branch == BranchKind::kIndirectCall || insn.branch == BranchKind::kIndirectJump;
  const bool bit_string = insn.map == 1 && (insn.opcode & 0xe7) == 0xa3;
  const bool absolute_mov = insn.map == 0 && insn.opcode >= 0xa0 && insn.opcode <= 0xa3;
  if (!memory || !translated || MemoryMask(insn).which != 0 || bit_string || absolute_mov || memory->size == 0 ||
      memory->size > 64 || insn.mnemonic == ZYDIS_MNEMONIC_LEA || !CanAddress(insn))
    return false;
  if (!segmented && (insn.address_size != (code64() ? 8 : 4) || insn.segment == x86::kFs || insn.segment == x86::kGs))
    return false;
  form = {};
  offset = insn.displacement;
  if (segmented) {
    form.segment = insn.segment + 1;
    form.segment_version = segment_version_[insn.segment];
    form.address_size = insn.address_size;
    if (insn.address_size == 2) offset = static_cast<int64_t>(SignExtend(static_cast<uint64_t>(offset), 16));
  }
  if (insn.base == x86::kRipRegister) {
    form.rip_relative = true;
    offset += static_cast<int64_t>(NextRip(index));
  } else if (insn.base != x86::kNoRegister) {
    form.base = insn.base;
    form.base_version = base_version_[insn.base];
    offset += base_change_[insn.base];
    if (form.address_size == 4) form.base_narrow = narrow_version_[insn.base];
  }
  if (insn.index != x86::kNoRegister) {
    form.index = insn.index;
    form.scale = insn.scale;
    form.index_version = base_version_[insn.index];
    offset += base_change_[insn.index] * insn.scale;
    if (form.address_size == 4) form.index_narrow = narrow_version_[insn.index];
  }
  if (form.constant() && segmented) offset = OperandOffset(insn).value();
  if (form.constant()) return code64() || segmented;
  return offset <= INT32_MAX / 2 && offset >= INT32_MIN / 2;
}

void Translator::PlanGroups() {
  for (unsigned i = 0; i < count_; ++i) plan_[i] = {};
  table_lookup_ = {};
  loaded_ = 0;
  const auto versions = base_version_;
  bool may_predict = true;  // an access may fault on the host, and EmitHighByteMemory's must not
  group_count_ = 0;
  base_change_ = {};
  early_.index = -1;
  if ((request_.flags & kFlagUngrouped) || count_ < 2) return;
  for (unsigned i = 0; i < count_; ++i) {
    const Instruction& insn = insns_[i];
    if (!Transparent(i) && insn.branch == BranchKind::kNone) break;  // the block may end here
    table_lookup_[i] = IsTableLookup(i, versions);
    if (insn.has_memory() && insn.mnemonic == ZYDIS_MNEMONIC_MOV) loaded_ |= insn.gpr_written;
    may_predict = may_predict && !(HasHighByte(insn) && insn.has_memory());
    if (live_before_[i] == 0) early_ = {static_cast<int>(i), base_version_, base_change_};
    AddressForm form;
    int64_t offset = 0;
    if (FormOf(i, form, offset))
      PlanAccess(i, kOperand, form, offset, insn.memory_operand()->size, insn.memory_operand()->written);
    if (CanUseStack(insn) && (IsPush(insn) || IsPop(insn))) {
      const bool push = IsPush(insn);
      const unsigned word = WordSize(insn);
      AddressForm stack{.base = x86::kRsp, .base_version = base_version_[x86::kRsp]};
      if (StackSegmented()) {
        stack.segment = x86::kSs + 1;
        stack.segment_version = segment_version_[x86::kSs];
        stack.address_size = static_cast<uint8_t>(stack_size());
        if (stack_size() == 4) stack.base_narrow = narrow_version_[x86::kRsp];
      }
      PlanAccess(i, kStack, stack, base_change_[x86::kRsp] - (push ? word : 0), word, push);
    }
    TrackBases(insn);
    // Another TLB from here on.
    if (insn.mnemonic == ZYDIS_MNEMONIC_STAC || insn.mnemonic == ZYDIS_MNEMONIC_CLAC) early_.index = -1;
    if (!IsSideExit(i)) continue;
    for (unsigned group = 0; group < group_count_; ++group) groups_[group].closed = true;
    early_.index = -1;  // what may not happen is not checked in advance
  }
  if (!may_predict) table_lookup_ = {};
  // Now the ranges are known. A group of one is none, unless its check is early.
  for (unsigned i = 0; i < count_; ++i) {
    for (unsigned part = 0; part < 2; ++part) {
      PlannedAccess& planned = plan_[i][part];
      if (planned.group < 0) continue;
      const Group& group = groups_[static_cast<unsigned>(planned.group)];
      if (group.count < 2 && group.early_at < 0) {
        planned = {};
        continue;
      }
      planned.distance = static_cast<int16_t>(access_offset_[i][part] - group.low);
      if (group.early_at >= 0) planned.leader = false;
    }
  }
}

/// The checks that were planned to be before this instruction.
void Translator::EmitEarlyChecks(unsigned index) {
  for (unsigned i = 0; i < group_count_; ++i) {
    const Group& group = groups_[i];
    if (group.early_at != static_cast<int>(index) || (in_strip_ && stream_of_[group.first] >= 0)) continue;
    const Instruction& insn = insns_[group.first];
    const int adjust = group.early_change - plan_[group.first][group.first_part].distance;
    addend_of_ = -1;
    bool relative = code64();
    if (group.first_part == kStack) {
      const int push = IsPush(insn) ? static_cast<int>(WordSize(insn)) : 0;
      EmitAddressPlus(kScratch2, HostOf(x86::kRsp), adjust - push);
    } else {
      EmitLinearAddress(insn, NextRip(group.first), adjust);
      relative = IsRelative(insn);
    }
    Access access = GroupAccess(static_cast<int>(i), false);
    access.predicted = group.first_part == kOperand && table_lookup_[group.first];
    if (relative)
      EmitCheck(access, RipOf(index), false);
    else
      EmitCheckToHost(access, RipOf(index));
    EmitStoreGroup(static_cast<int>(i));
  }
}

}  // namespace nacre::engine::jit
