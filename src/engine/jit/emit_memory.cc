// Memory operands: linear address, TLB check, and the instruction itself re-emitted on the host address.

#include <bit>

#include "engine/jit/prediction.h"
#include "engine/jit/translator.h"

namespace nacre::engine::jit {

using x86::Instruction;
using x86::Operand;
using x86::OperandKind;
using x86::OperandPlace;
using x86::RegisterClass;

namespace {

Mem SegmentBase(unsigned segment) {
  return Context(offsetof(JitContext, state) + offsetof(x86::CpuState, segment) + segment * sizeof(x86::Segment) +
                 offsetof(x86::Segment, base));
}

/// BSF and BSR leave the destination alone when the source is zero.
bool KeepsDestination(const Instruction& insn) {
  return insn.mnemonic == ZYDIS_MNEMONIC_BSF || insn.mnemonic == ZYDIS_MNEMONIC_BSR;
}

}  // namespace

bool Translator::HasHighByte(const Instruction& insn) {
  for (unsigned i = 0; i < insn.operand_count; ++i)
    if (insn.operand[i].register_class == RegisterClass::kGprHigh) return true;
  return false;
}

uint8_t Translator::LoadGpr(unsigned gpr, uint8_t scratch) {
  if (!IsHomed(gpr)) return HostOf(gpr);
  code_.Load(scratch, GprSlot(gpr));
  return scratch;
}

void Translator::StoreGpr(unsigned gpr, uint8_t from) {
  if (IsHomed(gpr))
    code_.Store(GprSlot(gpr), from);
  else
    code_.Move(HostOf(gpr), from);
}

/// Whether the memory operand's address can be formed here.
bool Translator::CanAddress(const Instruction& insn) const {
  if (!Segmented(insn)) {
    if (insn.segment == x86::kFs) return (request_.flags & kFlagFs) != 0;
    if (insn.segment == x86::kGs) return (request_.flags & kFlagGs) != 0;
    return insn.address_size != 2 && flat();
  }
  const Operand* memory = insn.memory_operand();
  return memory && memory->size != 0 && MemoryMask(insn).which == 0 &&
         CanAddressSegment(insn.segment, OperandOffset(insn), memory->size, memory->written);
}

/// Leaves the linear address, moved by `adjust`, in R11. Uses R10. Keeps the flags.
void Translator::EmitLinearAddress(const Instruction& insn, uint64_t next_rip, int adjust) {
  const bool wide = insn.address_size == 8;
  if (insn.base == x86::kRipRegister) {
    EmitRipImm(kScratch2, next_rip + static_cast<uint64_t>(insn.displacement + adjust), wide);
  } else if (insn.base == x86::kNoRegister && insn.index == x86::kNoRegister) {
    const auto address = static_cast<uint64_t>(insn.displacement + adjust);
    code_.LoadImm(kScratch2, wide ? address : address & 0xffffffff);
  } else {
    Mem mem;
    mem.disp = static_cast<int32_t>(insn.displacement) + adjust;  // PlanAccess keeps away from the ends of the range
    if (insn.base != x86::kNoRegister) mem.base = LoadGpr(insn.base, kScratch2);
    if (insn.index != x86::kNoRegister) {
      mem.index = LoadGpr(insn.index, kScratch1);
      mem.scale = insn.scale;
    }
    if (wide && mem.index < 0 && mem.disp == 0)
      code_.Move(kScratch2, static_cast<unsigned>(mem.base));
    else
      code_.Lea(kScratch2, mem, wide);
  }
  if (insn.segment == x86::kFs || insn.segment == x86::kGs) {
    code_.Load(kScratch1, SegmentBase(insn.segment));
    code_.Lea(kScratch2, {.base = kScratch2, .index = kScratch1}, code64());
  }
}

/// R11 is a linear address: R10 becomes what has to be added to it for the host address, or out of line to the TLB miss
/// path, which comes back to the start of this check. Keeps the flags if they are live. `keep_address`: and R11;
/// otherwise R11 is free afterwards.
void Translator::EmitCheck(const Access& access, uint64_t rip, bool keep_address) {
  const size_t tlb = offsetof(JitContext, tlb) + context() * sizeof(DataTlb);
  const size_t tag = tlb + (access.write ? offsetof(DataTlb, write_tag) : offsetof(DataTlb, read_tag));
  if (compact_ && access.mask.which == 0 && std::has_single_bit(access.size) && access.size <= 64) {
    const bool keeps = access.flags_live || keep_address;
    code_.CallTo(stubs_.check[context()][access.write ? 1 : 0][std::countr_zero(access.size)][keeps ? 1 : 0]);
    NoteFixup(code_.at() - 4, Fixup::kStub);
    return;
  }
  Site place = SiteAt(rip);
  place.retry = InBlock(code_.at());
  place.context = context() & 3;
  place.size = static_cast<uint8_t>(access.size);
  place.write = access.write;
  place.group = access.group;
  place.predicted = access.predicted && !access.flags_live && !compact_ && context() != kContextSupervisorAc;
  place.opmask = access.mask.which;
  place.opmask_bits = access.mask.bits;
  const uint32_t site = store_.AddSite(block_, place);
  ColdExit exit{.kind = ColdExit::kSlow,
                .displacement = nullptr,
                .id = site,
                .restore_rcx = access.flags_live,
                .context = static_cast<uint8_t>(context()),
                .write = access.write};
  if (place.predicted)
    EmitPredictedIndex(code_, rip);
  else if (access.chased && !access.flags_live)
    EmitIndexSooner(code_, context());
  else
    EmitIndex(code_, context());
  exit.displacement = EmitTagCheck(code_, tag, access.size, access.flags_live);
  if (!access.flags_live && keep_address) code_.Sub(kScratch2, ContextIndexed(kScratch1, tag));
  code_.Load(kScratch1, ContextIndexed(kScratch1, tlb + offsetof(DataTlb, addend)));
  store_.site(site).check_bytes = static_cast<uint8_t>(InBlock(code_.at()) - place.retry);
  cold_[cold_count_++] = exit;
}

/// The same, but R10 becomes the host address.
void Translator::EmitCheckToHost(const Access& access, uint64_t rip) {
  EmitCheck(access, rip, true);
  code_.Lea(kScratch1, {.base = kScratch1, .index = kScratch2});
}

/// Whether the operand's linear address is a sum of 64-bit registers and a displacement, without truncation: then the
/// host address is the same sum with one more term.
bool Translator::IsRelative(const Instruction& insn) {
  return insn.address_size == 8 && insn.base != x86::kRipRegister &&
         (insn.base != x86::kNoRegister || insn.index != x86::kNoRegister);
}

/// R10 is what has to be added to linear addresses: the operand on the host. Uses R11.
Mem Translator::EmitRelative(const Instruction& insn) {
  Mem mem;
  mem.disp = static_cast<int32_t>(insn.displacement);
  unsigned base = insn.base, index = insn.index;
  const auto add = [&](int reg, unsigned scale) {
    code_.Lea(kScratch1, {.base = kScratch1, .index = reg, .scale = scale});
    addend_of_ = -1;
  };
  if (insn.segment == x86::kFs || insn.segment == x86::kGs) {
    code_.Load(kScratch2, SegmentBase(insn.segment));
    add(kScratch2, 1);
  }
  if (base != x86::kNoRegister && IsHomed(base)) {
    add(LoadGpr(base, kScratch2), 1);
    base = x86::kNoRegister;
  }
  if (index != x86::kNoRegister && IsHomed(index)) {
    add(LoadGpr(index, kScratch2), insn.scale);
    index = x86::kNoRegister;
  }
  if (base != x86::kNoRegister && index != x86::kNoRegister) {
    add(HostOf(base), 1);
    base = x86::kNoRegister;
  }
  mem.base = kScratch1;
  if (base != x86::kNoRegister) {
    mem.base = HostOf(base);
    mem.index = kScratch1;
  } else if (index != x86::kNoRegister) {
    mem.index = HostOf(index);
    mem.scale = insn.scale;
  }
  return mem;
}

/// R10 = what a group's first access has found.
void Translator::EmitLoadGroup(int group) {
  if (addend_of_ != group)
    code_.Load(kScratch1, Context(offsetof(JitContext, group_host) + 8 * static_cast<unsigned>(group)));
  addend_of_ = group;
}

void Translator::EmitStoreGroup(int group) {
  code_.Store(Context(offsetof(JitContext, group_host) + 8 * static_cast<unsigned>(group)), kScratch1);
  addend_of_ = group;
}

/// The access that a group's leader checks for all of them.
Translator::Access Translator::GroupAccess(int group, bool flags_live) const {
  const Group& of = groups_[static_cast<unsigned>(group)];
  return {.size = static_cast<unsigned>(of.high - of.low), .write = of.write, .flags_live = flags_live, .group = true};
}

/// The memory operand of an instruction on the host: through its group where it has one, else checked on its own. Uses
/// R10, which the operand may name, and R11.
Mem Translator::EmitAccess(unsigned index, Part part, unsigned size, bool write) {
  const Instruction& insn = insns_[index];
  if (Segmented(insn)) return EmitSegmentAccess(index, part, insn.segment, OperandOffset(insn), size, write);
  const PlannedAccess& planned = plan_[index][part];
  if (in_strip_ && part == kOperand && stream_of_[index] >= 0) return EmitStreamAccess(index);
  const bool relative = IsRelative(insn);
  if (planned.group >= 0 && !planned.leader) {
    EmitLoadGroup(planned.group);
  } else {
    Access access{.size = size, .write = write, .flags_live = live_before_[index] != 0, .mask = MemoryMask(insn)};
    if (planned.leader) access = GroupAccess(planned.group, access.flags_live);
    access.predicted = part == kOperand && table_lookup_[index];
    access.chased = part == kOperand && insn.base < 16 && (loaded_ >> insn.base & 1) != 0;
    addend_of_ = -1;
    EmitLinearAddress(insn, NextRip(index), planned.leader ? -planned.distance : 0);
    if (relative)
      EmitCheck(access, RipOf(index), false);
    else
      EmitCheckToHost(access, RipOf(index));
    if (planned.leader) EmitStoreGroup(planned.group);
  }
  if (relative) return EmitRelative(insn);
  return {.base = kScratch1, .disp = planned.group >= 0 ? planned.distance : 0};
}

bool Translator::EmitLea(const Instruction& insn, uint64_t next_rip) {
  if (code64() && (insn.address_size == 2 || insn.operand_size == 2)) return false;
  const unsigned to = insn.operand[0].index;
  const auto homed = [](unsigned gpr) { return gpr < 16 && IsHomed(gpr); };
  if (homed(to) || homed(insn.base) || homed(insn.index)) addend_of_ = -1;
  const uint8_t host = IsHomed(to) ? kScratch1 : HostOf(to);
  const bool wide = insn.operand_size == 8 && insn.address_size == 8;
  Mem mem;
  mem.disp = static_cast<int32_t>(insn.displacement);
  if (insn.address_size == 2 || insn.operand_size == 2) {
    addend_of_ = -1;
    if (insn.base != x86::kNoRegister) mem.base = HostOf(insn.base);
    if (insn.index != x86::kNoRegister) {
      mem.index = HostOf(insn.index);
      mem.scale = insn.scale;
    }
    code_.Lea(kScratch2, mem, false);
    if (insn.address_size == 2) code_.Op(kScratch2, kScratch2, 0xb7, false, 1);
    WriteSized(host, kScratch2, insn.operand_size);
    return true;
  }
  if (insn.base == x86::kRipRegister) {
    EmitRipImm(host, static_cast<uint64_t>(insn.displacement) + next_rip, wide);
  } else if (insn.base == x86::kNoRegister && insn.index == x86::kNoRegister) {
    const auto value = static_cast<uint64_t>(insn.displacement);
    code_.LoadImm(host, wide ? value : value & 0xffffffff);
  } else {
    if (insn.base != x86::kNoRegister) mem.base = LoadGpr(insn.base, kScratch1);
    if (insn.index != x86::kNoRegister) {
      mem.index = LoadGpr(insn.index, kScratch2);
      mem.scale = insn.scale;
    }
    code_.Lea(host, mem, wide);
  }
  if (IsHomed(to)) code_.Store(GprSlot(to), kScratch1);
  return true;
}

/// MOV between the accumulator and an absolute address (A0-A3).
bool Translator::EmitMovOffset(const Instruction& insn, unsigned index) {
  if (!CanAddress(insn)) return false;
  const Operand* memory = insn.memory_operand();
  if (!memory || memory->size == 0) return false;
  if (Segmented(insn)) {
    EmitSegmentAccess(index, kOperand, insn.segment, OperandOffset(insn), memory->size, memory->written);
  } else {
    EmitLinearAddress(insn, NextRip(index), 0);
    EmitCheckToHost({.size = memory->size, .write = memory->written, .flags_live = live_before_[index] != 0},
                    RipOf(index));
  }
  addend_of_ = -1;
  static constexpr uint8_t kOpcode[4] = {0x8a, 0x8b, 0x88, 0x89};
  code_.Op(kHostRax, {.base = kScratch1}, kOpcode[insn.opcode & 3], memory->size == 8, 0, memory->size == 2 ? 0x66 : 0);
  return true;
}

/// AH, CH, DH, BH cannot be named together with R10: borrow RDI for the address.
bool Translator::EmitHighByteMemory(const Instruction& insn, const RegisterMap& map, const Mem& memory) {
  const Mem saved = Context(offsetof(JitContext, saved_scratch));
  code_.Store(saved, kHostRdi);
  code_.Lea(kHostRdi, memory);
  const Mem at_rdi{.base = kHostRdi};
  code_ = Assembler(ReEmit(code_.at(), insn, map, &at_rdi));
  code_.Load(kHostRdi, saved);
  return true;
}

bool Translator::EmitGeneral(const Instruction& insn, unsigned index) {
  if (insn.mnemonic == ZYDIS_MNEMONIC_LEA) return EmitLea(insn, NextRip(index));
  if (insn.map == 0 && insn.encoding == x86::Encoding::kLegacy && insn.opcode >= 0xa0 && insn.opcode <= 0xa3)
    return EmitMovOffset(insn, index);
  const Operand* memory = insn.memory_operand();
  if (memory && !CanAddress(insn)) return false;

  RegisterMap map;
  for (unsigned gpr = 0; gpr < 16; ++gpr) map.host[gpr] = HostOf(gpr);
  uint8_t free_scratch[2] = {kScratch1, kScratch2};
  if (memory) free_scratch[0] = kScratch2;
  unsigned free_count = memory ? 1 : 2;
  uint16_t assigned = 0, to_store = 0, to_load = 0;
  bool any_extended = memory != nullptr;
  for (unsigned i = 0; i < insn.operand_count; ++i) {
    const Operand& operand = insn.operand[i];
    if (operand.kind != OperandKind::kRegister || operand.register_class != RegisterClass::kGpr) continue;
    if (operand.place == OperandPlace::kNone) {
      if (IsHomed(operand.index) || operand.index == x86::kRsp) return false;
      continue;
    }
    const auto bit = static_cast<uint16_t>(1u << operand.index);
    if (IsHomed(operand.index)) {
      if (!(assigned & bit)) {
        if (free_count == 0) return false;
        assigned |= bit;
        map.host[operand.index] = free_scratch[--free_count];
      }
      if (operand.read || operand.size < 4 || KeepsDestination(insn)) to_load |= bit;
      if (operand.written) to_store |= bit;
    }
    if (map.host[operand.index] >= 8) any_extended = true;
  }
  const bool high = HasHighByte(insn);
  if (high && any_extended && !memory) return false;
  if (high && memory && assigned) return false;

  Mem checked;
  if (!memory && free_count == 0) addend_of_ = -1;
  if (memory) checked = EmitAccess(index, kOperand, memory->size, memory->written);
  for (unsigned gpr : {10u, 11u, 15u})
    if (to_load >> gpr & 1) code_.Load(map.host[gpr], GprSlot(gpr));
  if (high && memory) {
    for (unsigned i = 0; i < insn.operand_count; ++i)  // SPL.. cannot appear with AH.., RSP neither
      if (insn.operand[i].register_class == RegisterClass::kGpr && map.host[insn.operand[i].index] >= 8) return false;
    return EmitHighByteMemory(insn, map, checked);
  }
  code_ = Assembler(ReEmit(code_.at(), insn, map, memory ? &checked : nullptr));
  for (unsigned gpr : {10u, 11u, 15u})
    if (to_store >> gpr & 1) code_.Store(GprSlot(gpr), map.host[gpr]);
  return true;
}

}  // namespace nacre::engine::jit
