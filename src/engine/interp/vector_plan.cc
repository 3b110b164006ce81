#include <Zydis/Mnemonic.h>

#include <algorithm>

#include "engine/interp/vector_impl.h"

namespace nacre::engine::interp {
namespace {

using x86::Encoding;
using x86::Instruction;
using x86::Operand;
using x86::OperandKind;
using x86::RegisterClass;

bool HasClass(const Instruction& insn, RegisterClass wanted) {
  return std::any_of(insn.operand, insn.operand + insn.operand_count, [wanted](const Operand& operand) {
    return operand.kind == OperandKind::kRegister && operand.register_class == wanted;
  });
}

bool UsesAvx512(const Instruction& insn) {
  return insn.encoding == Encoding::kEvex || HasClass(insn, RegisterClass::kMask);
}

VectorKind StateKind(const Instruction& insn) {
  switch (insn.zydis_mnemonic()) {
    case ZYDIS_MNEMONIC_FWAIT:
      return VectorKind::kWait;
    case ZYDIS_MNEMONIC_FXSAVE:
    case ZYDIS_MNEMONIC_FXSAVE64:
      return VectorKind::kFxsave;
    case ZYDIS_MNEMONIC_FXRSTOR:
    case ZYDIS_MNEMONIC_FXRSTOR64:
      return VectorKind::kFxrstor;
    case ZYDIS_MNEMONIC_XSAVE:
    case ZYDIS_MNEMONIC_XSAVE64:
      return VectorKind::kXsave;
    case ZYDIS_MNEMONIC_XSAVEOPT:
    case ZYDIS_MNEMONIC_XSAVEOPT64:
      return VectorKind::kXsaveopt;
    case ZYDIS_MNEMONIC_XRSTOR:
    case ZYDIS_MNEMONIC_XRSTOR64:
      return VectorKind::kXrstor;
    default:
      return VectorKind::kNative;
  }
}

bool IsCompactSave(const Instruction& insn) {
  switch (insn.zydis_mnemonic()) {
    case ZYDIS_MNEMONIC_XSAVEC:
    case ZYDIS_MNEMONIC_XSAVEC64:
    case ZYDIS_MNEMONIC_XSAVES:
    case ZYDIS_MNEMONIC_XSAVES64:
    case ZYDIS_MNEMONIC_XRSTORS:
    case ZYDIS_MNEMONIC_XRSTORS64:
      return true;
    default:
      return false;
  }
}

VectorKind KindOf(const Instruction& insn) {
  switch (insn.zydis_mnemonic()) {
    case ZYDIS_MNEMONIC_LDMXCSR:
    case ZYDIS_MNEMONIC_VLDMXCSR:
      return VectorKind::kLdmxcsr;
    case ZYDIS_MNEMONIC_STMXCSR:
    case ZYDIS_MNEMONIC_VSTMXCSR:
      return VectorKind::kStmxcsr;
    case ZYDIS_MNEMONIC_VZEROUPPER:
      return VectorKind::kVzeroupper;
    case ZYDIS_MNEMONIC_VZEROALL:
      return VectorKind::kVzeroall;
    case ZYDIS_MNEMONIC_VMASKMOVPS:
    case ZYDIS_MNEMONIC_VMASKMOVPD:
    case ZYDIS_MNEMONIC_VPMASKMOVD:
    case ZYDIS_MNEMONIC_VPMASKMOVQ:
      return insn.operand[0].kind == OperandKind::kMemory ? VectorKind::kMaskedStore : VectorKind::kMaskedLoad;
    case ZYDIS_MNEMONIC_MASKMOVDQU:
    case ZYDIS_MNEMONIC_VMASKMOVDQU:
    case ZYDIS_MNEMONIC_MASKMOVQ:
      return VectorKind::kByteMaskedStore;
    default:
      break;
  }
  if (insn.has(x86::kInsnVsib)) {
    if (insn.encoding == Encoding::kVex) return VectorKind::kGather;
    return insn.operand[0].kind == OperandKind::kMemory ? VectorKind::kScatter : VectorKind::kOpmaskGather;
  }
  return StateKind(insn);
}

VectorGuard GuardOf(const Instruction& insn, VectorKind kind) {
  switch (kind) {
    case VectorKind::kWait:
      return VectorGuard::kWait;
    case VectorKind::kFxsave:
    case VectorKind::kFxrstor:
      return VectorGuard::kFxsave;
    case VectorKind::kXsave:
    case VectorKind::kXsaveopt:
    case VectorKind::kXrstor:
      return VectorGuard::kXsave;
    default:
      break;
  }
  if (UsesAvx512(insn)) return VectorGuard::kEvex;
  if (insn.encoding == Encoding::kVex) return VectorGuard::kVex;
  if (insn.has(x86::kInsnX87)) return VectorGuard::kX87;
  const bool mxcsr = kind == VectorKind::kLdmxcsr || kind == VectorKind::kStmxcsr;
  return mxcsr || HasClass(insn, RegisterClass::kVector) ? VectorGuard::kSse : VectorGuard::kMmx;
}

/// x87 instructions that do not wait for a pending exception (SDM 1 8.6).
bool IsNonWaiting(const Instruction& insn) {
  switch (insn.zydis_mnemonic()) {
    case ZYDIS_MNEMONIC_FNINIT:
    case ZYDIS_MNEMONIC_FNCLEX:
    case ZYDIS_MNEMONIC_FNSTCW:
    case ZYDIS_MNEMONIC_FNSTSW:
    case ZYDIS_MNEMONIC_FNSTENV:
    case ZYDIS_MNEMONIC_FNSAVE:
    case ZYDIS_MNEMONIC_FENI8087_NOP:
    case ZYDIS_MNEMONIC_FDISI8087_NOP:
    case ZYDIS_MNEMONIC_FSETPM287_NOP:
      return true;
    default:
      return false;
  }
}

/// Sizes that the operand does not tell.
uint16_t MemoryBytes(const Instruction& insn, const Operand& memory) {
  const bool narrow = insn.operand_size == 2;
  switch (insn.zydis_mnemonic()) {
    case ZYDIS_MNEMONIC_FNSTENV:
    case ZYDIS_MNEMONIC_FLDENV:
      return narrow ? 14 : 28;
    case ZYDIS_MNEMONIC_FNSAVE:
    case ZYDIS_MNEMONIC_FRSTOR:
      return narrow ? 94 : 108;
    case ZYDIS_MNEMONIC_VCVTSI2SS:
    case ZYDIS_MNEMONIC_VCVTSI2SD:
    case ZYDIS_MNEMONIC_VCVTSI2SH:
    case ZYDIS_MNEMONIC_VCVTUSI2SS:
    case ZYDIS_MNEMONIC_VCVTUSI2SD:
    case ZYDIS_MNEMONIC_VCVTUSI2SH:
      return insn.code_size == x86::CodeSize::k64 ? memory.size : 4;
    default:
      return memory.size;
  }
}

uint8_t AlignmentOf(const Instruction& insn, unsigned memory_bytes) {
  switch (insn.zydis_mnemonic()) {
    case ZYDIS_MNEMONIC_MOVUPS:
    case ZYDIS_MNEMONIC_MOVUPD:
    case ZYDIS_MNEMONIC_MOVDQU:
    case ZYDIS_MNEMONIC_LDDQU:
    case ZYDIS_MNEMONIC_PCMPESTRI:
    case ZYDIS_MNEMONIC_PCMPESTRM:
    case ZYDIS_MNEMONIC_PCMPISTRI:
    case ZYDIS_MNEMONIC_PCMPISTRM:
      return 1;
    case ZYDIS_MNEMONIC_VMOVAPS:
    case ZYDIS_MNEMONIC_VMOVAPD:
    case ZYDIS_MNEMONIC_VMOVDQA:
    case ZYDIS_MNEMONIC_VMOVDQA32:
    case ZYDIS_MNEMONIC_VMOVDQA64:
    case ZYDIS_MNEMONIC_VMOVNTPS:
    case ZYDIS_MNEMONIC_VMOVNTPD:
    case ZYDIS_MNEMONIC_VMOVNTDQ:
    case ZYDIS_MNEMONIC_VMOVNTDQA:
      return static_cast<uint8_t>(memory_bytes);
    default:
      return insn.encoding == Encoding::kLegacy && !insn.has(x86::kInsnX87) && memory_bytes == 16 ? 16 : 1;
  }
}

void PlanGpr(const Instruction& insn, VectorPlan& plan) {
  plan.implicit_written =
      static_cast<uint16_t>(insn.gpr_written & (1u << x86::kRax | 1u << x86::kRcx | 1u << x86::kRdx));
  if (insn.has(x86::kInsnX87)) return;  // FNSTSW AX names its register without ModRM
  for (unsigned i = 0; i < insn.operand_count; ++i) {
    const Operand& operand = insn.operand[i];
    if (operand.kind != OperandKind::kRegister || operand.register_class != RegisterClass::kGpr) continue;
    // CVT(T)xx2SI, MOVMSKPx, PMOVMSKB, PEXTRW of map 1 name it in ModRM.reg, all others in ModRM.rm.
    const bool in_reg = insn.map == 1 && (insn.opcode == 0x2c || insn.opcode == 0x2d || insn.opcode == 0x50 ||
                                          insn.opcode == 0xd7 || insn.opcode == 0xc5);
    plan.gpr_place = in_reg || operand.place == x86::OperandPlace::kModrmReg ? GprPlace::kReg : GprPlace::kRm;
    plan.gpr = operand.index;
    plan.gpr_written = operand.written;
    plan.implicit_written = 0;
    return;
  }
}

/// Their operand in memory holds the selected elements without gaps (SDM 2C "VPCOMPRESSD", "VPEXPANDD").
bool IsPacked(const Instruction& insn) {
  switch (insn.zydis_mnemonic()) {
    case ZYDIS_MNEMONIC_VCOMPRESSPS:
    case ZYDIS_MNEMONIC_VCOMPRESSPD:
    case ZYDIS_MNEMONIC_VPCOMPRESSB:
    case ZYDIS_MNEMONIC_VPCOMPRESSW:
    case ZYDIS_MNEMONIC_VPCOMPRESSD:
    case ZYDIS_MNEMONIC_VPCOMPRESSQ:
    case ZYDIS_MNEMONIC_VEXPANDPS:
    case ZYDIS_MNEMONIC_VEXPANDPD:
    case ZYDIS_MNEMONIC_VPEXPANDB:
    case ZYDIS_MNEMONIC_VPEXPANDW:
    case ZYDIS_MNEMONIC_VPEXPANDD:
    case ZYDIS_MNEMONIC_VPEXPANDQ:
      return true;
    default:
      return false;
  }
}

uint8_t ElementBytes(const Instruction& insn) {
  if (insn.encoding == Encoding::kEvex) return insn.memory_element;
  switch (insn.zydis_mnemonic()) {
    case ZYDIS_MNEMONIC_VMASKMOVPS:
    case ZYDIS_MNEMONIC_VPMASKMOVD:
    case ZYDIS_MNEMONIC_VGATHERDPS:
    case ZYDIS_MNEMONIC_VGATHERQPS:
    case ZYDIS_MNEMONIC_VPGATHERDD:
    case ZYDIS_MNEMONIC_VPGATHERQD:
      return 4;
    default:
      return 8;
  }
}

}  // namespace

VectorPlan MakePlan(const Instruction& insn) {
  VectorPlan plan;
  std::copy_n(insn.bytes, insn.length, plan.bytes.begin());
  plan.length = insn.length;
  plan.code_size = insn.code_size;
  const bool known = insn.encoding != Encoding::kXop && insn.encoding != Encoding::k3dNow;
  if (!known || IsCompactSave(insn) || insn.has(x86::kInsnLock)) return plan;
  plan.kind = KindOf(insn);
  plan.guard = GuardOf(insn, plan.kind);
  const bool mmx = HasClass(insn, RegisterClass::kMmx) || insn.zydis_mnemonic() == ZYDIS_MNEMONIC_EMMS;
  // These two may enter MMX state even with a memory operand; the host decides.
  const bool converts =
      insn.zydis_mnemonic() == ZYDIS_MNEMONIC_CVTPI2PS || insn.zydis_mnemonic() == ZYDIS_MNEMONIC_CVTPI2PD;
  plan.x87_state = insn.has(x86::kInsnX87) || mmx || converts;
  plan.x87_pending = mmx || plan.kind == VectorKind::kWait || (insn.has(x86::kInsnX87) && !IsNonWaiting(insn));
  plan.element_bytes = ElementBytes(insn);
  plan.flags_written = insn.flags_written;
  PlanGpr(insn, plan);
  if (const Operand* memory = insn.memory_operand()) {
    plan.memory_bytes = MemoryBytes(insn, *memory);
    plan.memory_read = memory->read;
    plan.memory_written = memory->written;
    plan.alignment = AlignmentOf(insn, plan.memory_bytes);
    plan.masked_memory = insn.has(x86::kInsnMaskedMemory) && plan.kind == VectorKind::kNative;
    plan.packed_memory = plan.masked_memory && IsPacked(insn);
    plan.x87_result = plan.memory_written && insn.has(x86::kInsnX87) && plan.x87_pending;
  }
  return plan;
}

}  // namespace nacre::engine::interp
