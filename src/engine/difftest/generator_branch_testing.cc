// Targets of branches and far transfers, selectors.

#include "engine/difftest/generator_kinds.h"

#include <Zydis/Zydis.h>

#include <algorithm>
#include <cstring>

#include "base/bits.h"
#include "x86/decoder.h"

namespace nacre::engine::difftest {

using x86::CodeSize;
using x86::CpuState;
using x86::Encoding;
using x86::Instruction;
using x86::OperandKind;
using x86::RegisterClass;

// --- branches -------------------------------------------------------------------------------------------------------

/// Where only HLT stands: not on the instruction, nor on the jump after it.
uint64_t Generator::BranchTarget(const TestCase& test) {
  for (;;) {
    const uint64_t target = NACRE_DIFF_CODE + 0x20 + Below(NACRE_DIFF_CODE_BYTES - 0x40);
    if (target + 16 < test.state.rip || target > test.state.rip + 32) return target;
  }
}

bool Generator::ShapeBranch(TestCase& test) {
  Instruction& insn = test.insn;
  CpuState& state = test.state;
  switch (insn.branch) {
    case x86::BranchKind::kConditional:
    case x86::BranchKind::kJump:
    case x86::BranchKind::kCall: {
      uint64_t distance = BranchTarget(test) - (state.rip + insn.length);
      if (insn.immediate_size == 1) {
        distance = Chance(50) ? 32 + Below(90) : 0 - (48 + Below(70));
        if (Chance(10)) distance = 0;
      }
      std::memcpy(insn.bytes + insn.immediate_at, &distance, insn.immediate_size);
      break;
    }
    case x86::BranchKind::kIndirectJump:
    case x86::BranchKind::kIndirectCall: {
      const uint64_t target = BranchTarget(test);
      if (insn.operand[0].kind == OperandKind::kRegister) {
        if (insn.operand[0].index == x86::kRsp) return false;
        state.gpr[insn.operand[0].index] = target;
      } else if (uint8_t* at = Data(test, OperandAddress(insn, state), insn.operand_size)) {
        std::memcpy(at, &target, insn.operand_size);
      } else if (OperandAddress(insn, state) >= NACRE_DIFF_READONLY &&
                 OperandAddress(insn, state) < NACRE_DIFF_READONLY + kPageSize) {
        return false;  // zeros: a jump out of the code pages
      }
      break;
    }
    case x86::BranchKind::kReturn: {
      const uint64_t target = BranchTarget(test);
      if (uint8_t* at = Data(test, state.gpr[x86::kRsp], 8)) std::memcpy(at, &target, insn.operand_size);
      break;
    }
    case x86::BranchKind::kFar:
      return ShapeFar(test);
    default:
      return true;
  }
  return x86::Decode({insn.bytes, 15}, insn.code_size, insn) == x86::DecodeStatus::kOk;
}

/// Selectors of which host and guest agree: null, Linux' user segments with any RPL, the kernel's (not ours to use),
/// and what lies beyond both tables.
uint16_t Generator::Selector(bool code) {
  static constexpr uint16_t kUser[] = {NACRE_DIFF_CS32, NACRE_DIFF_SS, NACRE_DIFF_CS64};
  switch (Below(12)) {
    case 0:
      return static_cast<uint16_t>(Below(4));
    case 1:
      return static_cast<uint16_t>((kUser[Below(3)] & ~3) | Below(4));
    case 2:
      return static_cast<uint16_t>(0x10 | Below(4));
    case 3:
      return static_cast<uint16_t>(0x8000 | (random_() & 0x7fff));
    case 4:
      return static_cast<uint16_t>((random_() & 0x78) | 4 | Below(4));  // no LDT
    default:
      return code ? (Chance(70) ? NACRE_DIFF_CS64 : NACRE_DIFF_CS32) : uint16_t{NACRE_DIFF_SS};
  }
}

/// Far jumps, calls and returns, IRET, INT n.
bool Generator::ShapeFar(TestCase& test) {
  Instruction& insn = test.insn;
  const CpuState& state = test.state;
  const uint64_t target = BranchTarget(test);
  const uint16_t selector = Selector(true);
  const unsigned size = insn.operand_size;
  uint8_t* stack = Data(test, state.gpr[x86::kRsp], 5 * 8);
  switch (insn.mnemonic) {
    case ZYDIS_MNEMONIC_INT: {
      uint8_t& vector = insn.bytes[insn.immediate_at];
      // Those that Linux lets user code raise.
      while (vector == 3 || vector == 4 || vector == 0x80) vector = static_cast<uint8_t>(random_());
      break;
    }
    case ZYDIS_MNEMONIC_RET:
    case ZYDIS_MNEMONIC_IRET:
    case ZYDIS_MNEMONIC_IRETD:
    case ZYDIS_MNEMONIC_IRETQ: {
      if (!stack) return false;
      // AMD looks at the stack beyond the immediate before it checks the selector.
      if (insn.immediate_size == 2) StoreLe(insn.bytes + insn.immediate_at, static_cast<uint16_t>(Below(0x100)));
      const uint64_t flags = random_() & ~(x86::rflags::kTf | x86::rflags::kAc | x86::rflags::kNt | x86::rflags::kVm);
      const uint64_t frame[5] = {target, selector, flags, kDataMiddle + Below(0x100) * 8,
                                 Chance(90) ? uint64_t{NACRE_DIFF_SS} : Selector(false)};
      for (unsigned i = 0; i < 5; ++i) std::memcpy(stack + i * size, &frame[i], size);
      break;
    }
    default:
      if (insn.operand_count > 0 && insn.operand[0].kind == OperandKind::kFarPointer) {
        std::memcpy(insn.bytes + insn.immediate_at, &target, 4);
        StoreLe(insn.bytes + insn.immediate_at + 4, selector);
      } else if (insn.has_memory()) {
        const uint64_t address = OperandAddress(insn, state);
        uint8_t* at = Data(test, address, size + 2);
        if (!at) return address + size + 2 > kDataEnd && address < NACRE_DIFF_READONLY;  // a page fault
        std::memcpy(at, &target, size);
        StoreLe(at + size, selector);
      }
      break;
  }
  return x86::Decode({insn.bytes, 15}, insn.code_size, insn) == x86::DecodeStatus::kOk;
}

/// Instructions that take a selector.
void Generator::ShapeSelectors(TestCase& test) {
  const Instruction& insn = test.insn;
  CpuState& state = test.state;
  const uint16_t selector = Selector(false);
  const auto put = [&](const x86::Operand& operand, unsigned offset) {
    if (operand.kind == OperandKind::kRegister && operand.register_class == RegisterClass::kGpr) {
      if (operand.index != x86::kRsp)
        state.gpr[operand.index] = (state.gpr[operand.index] & ~uint64_t{0xffff}) | selector;
    } else if (uint8_t* at = Data(test, OperandAddress(insn, state) + offset, 2)) {
      StoreLe(at, selector);
    }
  };
  switch (insn.mnemonic) {
    case ZYDIS_MNEMONIC_VERR:
    case ZYDIS_MNEMONIC_VERW:
      put(insn.operand[0], 0);
      break;
    case ZYDIS_MNEMONIC_LAR:
    case ZYDIS_MNEMONIC_LSL:
      put(insn.operand[1], 0);
      break;
    case ZYDIS_MNEMONIC_LSS:
    case ZYDIS_MNEMONIC_LDS:
    case ZYDIS_MNEMONIC_LES:
      put(insn.operand[1], insn.operand_size);
      break;
    case ZYDIS_MNEMONIC_MOV:
      if (insn.operand[0].register_class == RegisterClass::kSegment) put(insn.operand[1], 0);
      break;
    case ZYDIS_MNEMONIC_POP:
      if (insn.operand[0].register_class == RegisterClass::kSegment)
        if (uint8_t* at = Data(test, state.gpr[x86::kRsp], 2)) StoreLe(at, selector);
      break;
    default:
      break;
  }
}

}  // namespace nacre::engine::difftest
