// Stack instructions and the system instructions that are frequent enough to have a template of their own. All of them
// keep the host's flags.

#include "engine/jit/translator.h"

namespace nacre::engine::jit {

using x86::Instruction;
using x86::OperandKind;
using x86::RegisterClass;

namespace {

Mem StateField(size_t offset) { return Context(offsetof(JitContext, state) + offset); }
#define NACRE_STATE(field) StateField(offsetof(x86::CpuState, field))

Mem SavedScratch() { return Context(offsetof(JitContext, saved_scratch)); }

}  // namespace

void Translator::EmitAddressPlus(uint8_t to, uint8_t from, int32_t disp) {
  if (disp == 0 && to != from)
    code_.Move(to, from, code64());
  else
    code_.Lea(to, {.base = from, .disp = disp}, code64());
}

/// The stack slot that a push (write) or pop (read) of `size` bytes touches.
Mem Translator::EmitStackAccess(unsigned index, unsigned size, bool write) {
  if (StackSegmented())
    return EmitSegmentAccess(index, kStack, x86::kSs, StackOffset(write ? -static_cast<int32_t>(size) : 0), size,
                             write);
  const PlannedAccess& planned = plan_[index][kStack];
  const int32_t offset = write ? -static_cast<int32_t>(size) : 0;
  if (planned.group >= 0 && !planned.leader) {
    EmitLoadGroup(planned.group);
  } else {
    Access access{.size = size, .write = write, .flags_live = live_before_[index] != 0};
    if (planned.leader) access = GroupAccess(planned.group, access.flags_live);
    addend_of_ = -1;
    EmitAddressPlus(kScratch2, kHostR15, planned.leader ? offset - planned.distance : offset);
    if (code64())
      EmitCheck(access, RipOf(index), false);
    else
      EmitCheckToHost(access, RipOf(index));
    if (planned.leader) EmitStoreGroup(planned.group);
  }
  if (code64()) return {.base = kHostR15, .index = kScratch1, .disp = offset};
  return {.base = kScratch1, .disp = planned.group >= 0 ? planned.distance : 0};
}

/// Whether pushes and pops of the instruction can be translated.
bool Translator::CanUseStack(const Instruction& insn) const {
  return code64() ? insn.operand_size != 2 : KindOf(x86::kSs) != SegmentKind::kNone;
}

bool Translator::EmitPush(unsigned index) {
  const Instruction& insn = insns_[index];
  const unsigned size = WordSize(insn);
  if (!CanUseStack(insn) || insn.operand_count == 0) return false;
  const x86::Operand& operand = insn.operand[0];
  switch (operand.kind) {
    case OperandKind::kImmediate: {
      if (static_cast<int64_t>(insn.immediate) != static_cast<int32_t>(insn.immediate) && code64()) return false;
      const Mem slot = EmitStackAccess(index, size, true);
      if (size == 2) {
        code_.Op(0, slot, 0xc7, false, 0, 0x66);
        code_.Value(static_cast<uint16_t>(insn.immediate));
      } else {
        code_.StoreImm32(slot, static_cast<uint32_t>(insn.immediate), code64());
      }
      break;
    }
    case OperandKind::kRegister: {
      if (operand.register_class == RegisterClass::kSegment && !code64()) {
        const Mem slot = EmitStackAccess(index, size, true);
        LoadSized(kScratch2,
                  StateField(offsetof(x86::CpuState, segment) + operand.index * sizeof(x86::Segment) +
                             offsetof(x86::Segment, selector)),
                  2);
        StoreSized(slot, kScratch2, size);
        break;
      }
      if (operand.register_class != RegisterClass::kGpr) return false;
      const Mem slot = EmitStackAccess(index, size, true);
      StoreSized(slot, LoadGpr(operand.index, kScratch2), size);
      break;
    }
    case OperandKind::kMemory: {
      if (!CanAddress(insn) || operand.size != size) return false;
      LoadSized(kScratch2, EmitAccess(index, kOperand, size, false), size);
      code_.Store(SavedScratch(), kScratch2);
      const Mem slot = EmitStackAccess(index, size, true);
      code_.Load(kScratch2, SavedScratch());
      StoreSized(slot, kScratch2, size);
      break;
    }
    default:
      return false;
  }
  EmitMoveStack(-static_cast<int32_t>(size));
  return true;
}

bool Translator::EmitPop(unsigned index) {
  const Instruction& insn = insns_[index];
  const unsigned size = WordSize(insn);
  if (!CanUseStack(insn) || insn.operand_count == 0) return false;
  const x86::Operand& operand = insn.operand[0];
  if (operand.kind == OperandKind::kMemory) return EmitPopMemory(index);
  if (operand.register_class == RegisterClass::kSegment) return EmitPopSegment(index);
  if (operand.kind != OperandKind::kRegister || operand.register_class != RegisterClass::kGpr) return false;
  const Mem slot = EmitStackAccess(index, size, false);
  if (operand.index == x86::kRsp) {
    if (size == 2) {
      EmitMoveStack(2);
      code_.Op(kHostR15, slot, 0x8b, false, 0, 0x66);
    } else {
      code_.Load(kHostR15, slot, code64());
    }
    return true;
  }
  const uint8_t to = IsHomed(operand.index) ? kScratch2 : HostOf(operand.index);
  code_.Op(to, slot, 0x8b, code64(), 0, size == 2 ? 0x66 : 0);
  if (IsHomed(operand.index)) code_.Store(GprSlot(operand.index), kScratch2);
  EmitMoveStack(static_cast<int32_t>(size));
  return true;
}

bool Translator::EmitLeave(unsigned index) {
  const Instruction& insn = insns_[index];
  const unsigned size = WordSize(insn);
  if (!CanUseStack(insn)) return false;
  const Access access{.size = size, .write = false, .flags_live = live_before_[index] != 0};
  if (StackSegmented()) {
    EmitSegmentAddress(x86::kSs, {.base = x86::kRbp, .address_size = stack_size()}, size, false, false,
                       access.flags_live, RipOf(index));
  } else {
    code_.Move(kScratch2, kHostRbp, code64());
  }
  EmitCheckToHost(access, RipOf(index));
  LoadSized(kScratch1, {.base = kScratch1}, size);
  if (stack_size() == 2) {
    code_.Byte(0x66);
    code_.Lea(kHostR15, {.base = kHostRbp, .disp = static_cast<int32_t>(size)}, false);
  } else {
    EmitAddressPlus(kHostR15, kHostRbp, static_cast<int32_t>(size));
  }
  WriteSized(kHostRbp, kScratch1, size);
  return true;
}

/// Arithmetic flags from the host, IF from its own word, the rest from the state.
bool Translator::EmitPushFlags(unsigned index) {
  const unsigned size = WordSize(insns_[index]);
  // In virtual-8086 mode IOPL decides, and VM is not pushed.
  const bool v86 = real() && context() == kContextUser;
  if (code64() ? !(request_.flags & kFlagCpl0) : v86 && (!(request_.flags & kFlagIopl) || size != 2)) return false;
  if (!CanUseStack(insns_[index])) return false;
  EmitFlagsImage();
  if (StackSegmented())
    EmitSegmentAddress(x86::kSs, StackOffset(-static_cast<int32_t>(size)), size, false, false, true, RipOf(index));
  else
    EmitAddressPlus(kScratch2, kHostR15, -static_cast<int32_t>(size));
  EmitCheckToHost({.size = size, .write = true, .flags_live = true}, RipOf(index));
  code_.Load(kScratch2, SavedScratch());
  StoreSized({.base = kScratch1}, kScratch2, size);
  EmitMoveStack(-static_cast<int32_t>(size));
  return true;
}

void Translator::EmitClearDirection() {
  const Mem flags = NACRE_STATE(rflags);
  const Mem all_but_df = Context(offsetof(JitContext, not_direction_mask));
  code_.Load(kScratch1, flags);
  code_.Pext(kScratch1, kScratch1, all_but_df);
  code_.Pdep(kScratch1, kScratch1, all_but_df);
  code_.Store(flags, kScratch1);
}

void Translator::EmitSwapGs() {
  const Mem base =
      StateField(offsetof(x86::CpuState, segment) + x86::kGs * sizeof(x86::Segment) + offsetof(x86::Segment, base));
  const Mem kernel = StateField(offsetof(x86::CpuState, msr) + offsetof(x86::Msrs, kernel_gs_base));
  code_.Load(kScratch1, base);
  code_.Load(kScratch2, kernel);
  code_.Store(base, kScratch2);
  code_.Store(kernel, kScratch1);
}

/// IF := 1 unless a request waits: then the interpreter does it, with the interrupt shadow.
bool Translator::EmitSti(unsigned index) {
  const Mem saved_rcx = Context(offsetof(JitContext, saved_rcx));
  code_.Store(saved_rcx, kHostRcx);
  code_.Load(kHostRcx, Context(offsetof(JitContext, no_request)));
  uint8_t* waiting = code_.JumpIfRcxZero();
  uint8_t* over = code_.JumpShort(0xeb);
  code_.Bind8(waiting);
  const uint32_t site = store_.AddSite(block_, SiteAt(RipOf(index)));
  cold_[cold_count_++] = {.kind = ColdExit::kInterpret, .displacement = code_.Jump(), .id = site, .restore_rcx = true};
  code_.Bind8(over);
  code_.Load(kHostRcx, saved_rcx);
  code_.StoreImm32(Context(offsetof(JitContext, interrupt_flag)), 1, true);
  return true;
}

/// RDTSC, RDTSCP: the host's counter plus the offset, without flags.
bool Translator::EmitRdtsc(bool with_aux) {
  if (!(request_.flags & kFlagTsc)) return false;
  code_.Byte(0x0f);
  code_.Byte(0x31);
  code_.RotateRight(kScratch1, kHostRdx, 32);
  code_.Lea(kScratch1, {.base = kScratch1, .index = kHostRax});
  code_.Load(kScratch2, NACRE_STATE(tsc_offset));
  code_.Lea(kScratch1, {.base = kScratch1, .index = kScratch2});
  code_.Move(kHostRax, kScratch1, false);
  code_.RotateRight(kHostRdx, kScratch1, 32);
  code_.Move(kHostRdx, kHostRdx, false);
  if (with_aux) code_.Load(kHostRcx, StateField(offsetof(x86::CpuState, msr) + offsetof(x86::Msrs, tsc_aux)), false);
  return true;
}

/// RDFSBASE, RDGSBASE.
bool Translator::EmitReadBase(const Instruction& insn) {
  if (!(request_.flags & kFlagFsGsBase) || !code64()) return false;
  const unsigned segment = insn.mnemonic == ZYDIS_MNEMONIC_RDFSBASE ? x86::kFs : x86::kGs;
  const Mem base =
      StateField(offsetof(x86::CpuState, segment) + segment * sizeof(x86::Segment) + offsetof(x86::Segment, base));
  const unsigned to = insn.operand[0].index;
  const uint8_t host = IsHomed(to) ? kScratch1 : HostOf(to);
  code_.Load(host, base, insn.operand_size == 8);
  if (IsHomed(to)) code_.Store(GprSlot(to), kScratch1);
  return true;
}

/// WRFSBASE, WRGSBASE with an address that is canonical: bits 63 to 47 are all the same.
bool Translator::EmitWriteBase(unsigned index) {
  const Instruction& insn = insns_[index];
  if (!(request_.flags & kFlagFsGsBase) || !code64()) return false;
  const unsigned segment = insn.mnemonic == ZYDIS_MNEMONIC_WRFSBASE ? x86::kFs : x86::kGs;
  const Mem base =
      StateField(offsetof(x86::CpuState, segment) + segment * sizeof(x86::Segment) + offsetof(x86::Segment, base));
  const bool wide = insn.operand_size == 8;
  const uint8_t from = LoadGpr(insn.operand[0].index, kScratch1);
  if (from != kScratch1 || !wide) code_.Move(kScratch1, from, wide);
  if (wide) {
    const Mem saved_rcx = Context(offsetof(JitContext, saved_rcx));
    code_.Store(saved_rcx, kHostRcx);
    code_.LoadImm(kHostRcx, 47);
    for (const int byte : {0xc4, 0x42, 0xf2, 0xf7, 0xda}) code_.Byte(static_cast<uint8_t>(byte));  // SARX R11, R10, RCX
    code_.Move(kHostRcx, kScratch2);
    uint8_t* lower = code_.JumpIfRcxZero();
    code_.Lea(kHostRcx, {.base = kHostRcx, .disp = 1});
    uint8_t* upper = code_.JumpIfRcxZero();
    const uint32_t site = store_.AddSite(block_, SiteAt(RipOf(index)));
    cold_[cold_count_++] = {
        .kind = ColdExit::kInterpret, .displacement = code_.Jump(), .id = site, .restore_rcx = true};
    code_.Bind8(lower);
    code_.Bind8(upper);
    code_.Load(kHostRcx, saved_rcx);
  }
  code_.Store(base, kScratch1);
  return true;
}

/// MOV from CR0, CR2, CR3, CR4 at CPL 0, and from a segment register to a general one.
bool Translator::EmitMovFromSystem(const Instruction& insn, bool& handled) {
  const x86::Operand& to = insn.operand[0];
  const x86::Operand& from = insn.operand[1];
  handled = to.kind == OperandKind::kRegister && to.register_class == RegisterClass::kGpr &&
            from.kind == OperandKind::kRegister &&
            (from.register_class == RegisterClass::kControl || from.register_class == RegisterClass::kSegment);
  if (!handled) return true;
  const uint8_t host = IsHomed(to.index) ? kScratch1 : HostOf(to.index);
  const bool control = from.register_class == RegisterClass::kControl;
  if (!control && to.size == 2 && from.index < x86::kSegmentCount) {
    if (IsHomed(to.index)) code_.Load(kScratch1, GprSlot(to.index));
    code_.Op(host,
             StateField(offsetof(x86::CpuState, segment) + from.index * sizeof(x86::Segment) +
                        offsetof(x86::Segment, selector)),
             0x8b, false, 0, 0x66);
    if (IsHomed(to.index)) code_.Store(GprSlot(to.index), kScratch1);
    return true;
  }
  if (control) {
    if (!(request_.flags & kFlagCpl0) || !code64()) return false;
    switch (from.index) {
      case 0:
        code_.Load(host, NACRE_STATE(cr0));
        break;
      case 2:
        code_.Load(host, NACRE_STATE(cr2));
        break;
      case 3:
        code_.Load(host, NACRE_STATE(cr3));
        break;
      case 4:
        code_.Load(host, NACRE_STATE(cr4));
        break;
      default:
        return false;
    }
  } else {
    if (to.size < 4 || from.index >= x86::kSegmentCount) return false;
    code_.Op(host,
             StateField(offsetof(x86::CpuState, segment) + from.index * sizeof(x86::Segment) +
                        offsetof(x86::Segment, selector)),
             0xb7, false, 1);  // MOVZX
  }
  if (IsHomed(to.index)) code_.Store(GprSlot(to.index), kScratch1);
  return true;
}

/// BT, BTS, BTR, BTC with a memory operand and a register bit offset, which may reach beyond the operand.
bool Translator::EmitBitTest(unsigned index) {
  const Instruction& insn = insns_[index];
  const unsigned size = insn.operand_size;
  const x86::Operand& offset = insn.operand[1];
  if (size == 2 || Segmented(insn) || !CanAddress(insn) || offset.register_class != RegisterClass::kGpr) return false;
  // The offset belongs to the effective address, which wraps before a segment base is added.
  if (code64() && insn.address_size == 4 && (insn.segment == x86::kFs || insn.segment == x86::kGs)) return false;
  EmitLinearAddress(insn, NextRip(index), 0);
  // R10 = offset / operand bits, towards minus infinity: SARX with the count in RCX.
  code_.Store(SavedScratch(), kHostRcx);
  if (IsHomed(offset.index))
    code_.Load(kScratch1, GprSlot(offset.index));
  else
    code_.Move(kScratch1, HostOf(offset.index));
  if (size == 4) code_.Op(kScratch1, kScratch1, 0x63);  // MOVSXD
  code_.LoadImm(kHostRcx, size == 8 ? 6 : 5);
  for (const int byte : {0xc4, 0x42, 0xf2, 0xf7, 0xd2}) code_.Byte(static_cast<uint8_t>(byte));  // SARX R10, R10, RCX
  code_.Load(kHostRcx, SavedScratch());
  code_.Lea(kScratch2, {.base = kScratch2, .index = kScratch1, .scale = size}, insn.address_size == 8);
  const bool write = insn.mnemonic != ZYDIS_MNEMONIC_BT;
  EmitCheckToHost({.size = size, .write = write, .flags_live = live_before_[index] != 0}, RipOf(index));
  if (IsHomed(offset.index))
    code_.Load(kScratch2, GprSlot(offset.index));
  else
    code_.Move(kScratch2, HostOf(offset.index));
  code_.Pext(kScratch2, kScratch2,
             size == 8 ? Context(offsetof(JitContext, bit_in_64_mask)) : Context(offsetof(JitContext, bit_in_32_mask)));
  if (insn.has(x86::kInsnLock)) code_.Byte(0xf0);
  code_.Op(kScratch2, {.base = kScratch1}, insn.opcode, size == 8, 1);
  return true;
}

/// CLFLUSH, CLFLUSHOPT, CLWB: guest RAM is coherent, so there is nothing to do once the address is found readable.
bool Translator::EmitCacheLineFlush(unsigned index) {
  if (Segmented(insns_[index]) || !CanAddress(insns_[index])) return false;
  addend_of_ = -1;
  EmitLinearAddress(insns_[index], NextRip(index), 0);
  EmitCheck({.size = 1, .write = false, .flags_live = live_before_[index] != 0}, RipOf(index), false);
  return true;
}

bool Translator::EmitSpecial(unsigned index, bool& handled) {
  const Instruction& insn = insns_[index];
  const bool cpl0 = (request_.flags & kFlagCpl0) != 0;
  const bool interrupts = (request_.flags & (kFlagCpl0 | kFlagIopl)) != 0;
  const bool smap = (request_.flags & kFlagSmap) != 0;
  handled = true;
  switch (insn.zydis_mnemonic()) {
    case ZYDIS_MNEMONIC_PUSH:
      return EmitPush(index);
    case ZYDIS_MNEMONIC_POP:
      return EmitPop(index);
    case ZYDIS_MNEMONIC_LEAVE:
      return EmitLeave(index);
    case ZYDIS_MNEMONIC_PUSHF:
    case ZYDIS_MNEMONIC_PUSHFD:
    case ZYDIS_MNEMONIC_PUSHFQ:
      return EmitPushFlags(index);
    case ZYDIS_MNEMONIC_POPF:
    case ZYDIS_MNEMONIC_POPFD:
      upwards_ = false;
      return EmitPopFlags(index);
    case ZYDIS_MNEMONIC_CLD:
      EmitClearDirection();
      return true;
    case ZYDIS_MNEMONIC_SWAPGS:
      if (!cpl0 || !code64()) return false;
      EmitSwapGs();
      return true;
    case ZYDIS_MNEMONIC_CLI:
      if (!interrupts) return false;
      code_.StoreImm32(Context(offsetof(JitContext, interrupt_flag)), 0, true);
      return true;
    case ZYDIS_MNEMONIC_MOV:
      if (insn.operand[0].register_class == RegisterClass::kSegment) return EmitLoadSegment(index);
      if (!code64() && insn.operand[0].kind == OperandKind::kMemory &&
          insn.operand[1].register_class == RegisterClass::kSegment)
        return EmitStoreSegment(index);
      return EmitMovFromSystem(insn, handled);
    case ZYDIS_MNEMONIC_RDTSC:
      return EmitRdtsc(false);
    case ZYDIS_MNEMONIC_RDTSCP:
      return EmitRdtsc(true);
    case ZYDIS_MNEMONIC_RDFSBASE:
    case ZYDIS_MNEMONIC_RDGSBASE:
      return EmitReadBase(insn);
    case ZYDIS_MNEMONIC_WRFSBASE:
    case ZYDIS_MNEMONIC_WRGSBASE:
      return EmitWriteBase(index);
    case ZYDIS_MNEMONIC_CLFLUSH:
    case ZYDIS_MNEMONIC_CLFLUSHOPT:
    case ZYDIS_MNEMONIC_CLWB:
      return EmitCacheLineFlush(index);
    case ZYDIS_MNEMONIC_STI:
      return interrupts && EmitSti(index);
    case ZYDIS_MNEMONIC_LES:
    case ZYDIS_MNEMONIC_LDS:
    case ZYDIS_MNEMONIC_LFS:
    case ZYDIS_MNEMONIC_LGS:
      return EmitLoadPointer(index);
    case ZYDIS_MNEMONIC_PUSHA:
    case ZYDIS_MNEMONIC_PUSHAD:
      return EmitPushAll(index);
    case ZYDIS_MNEMONIC_POPA:
    case ZYDIS_MNEMONIC_POPAD:
      return EmitPopAll(index);
    case ZYDIS_MNEMONIC_ENTER:
      return EmitEnter(index);
    case ZYDIS_MNEMONIC_XLAT:
      return EmitTranslate(index);
    case ZYDIS_MNEMONIC_STAC:
    case ZYDIS_MNEMONIC_CLAC: {
      if (!cpl0 || !smap) return false;
      const bool set = insn.mnemonic == ZYDIS_MNEMONIC_STAC;
      if (set == (context() == kContextSupervisorAc)) return true;  // AC is what it shall be
      code_.Load(kScratch1, NACRE_STATE(rflags));
      constexpr auto kAc = static_cast<int32_t>(x86::rflags::kAc);
      code_.Lea(kScratch1, {.base = kScratch1, .disp = set ? kAc : -kAc});
      code_.Store(NACRE_STATE(rflags), kScratch1);
      const uint32_t flags = (request_.flags & ~kFlagContextMask) | (set ? kContextSupervisorAc : kContextSupervisor);
      exit_flags_ = flags;
      return true;
    }
    default:
      handled = false;
      return true;
  }
}

}  // namespace nacre::engine::jit
