#include "engine/difftest/generator.h"

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

uint64_t OperandAddress(const Instruction& insn, const CpuState& state) {
  uint64_t address = static_cast<uint64_t>(insn.displacement);
  if (insn.base < 16)
    address += state.gpr[insn.base];
  else if (insn.base == x86::kRipRegister)
    address += state.rip + insn.length;
  if (insn.index < 16 && !insn.has(x86::kInsnVsib)) address += state.gpr[insn.index] * insn.scale;
  address = MaskToSize(address, insn.address_size);
  if (insn.segment == x86::kGs) address += state.segment[x86::kGs].base;
  return insn.code_size == CodeSize::k64 ? address : MaskToSize(address, 4);
}

bool IsString(const Instruction& insn) {
  switch (insn.mnemonic) {
    case ZYDIS_MNEMONIC_MOVSB:
    case ZYDIS_MNEMONIC_MOVSW:
    case ZYDIS_MNEMONIC_MOVSQ:
    case ZYDIS_MNEMONIC_STOSB:
    case ZYDIS_MNEMONIC_STOSW:
    case ZYDIS_MNEMONIC_STOSD:
    case ZYDIS_MNEMONIC_STOSQ:
    case ZYDIS_MNEMONIC_LODSB:
    case ZYDIS_MNEMONIC_LODSW:
    case ZYDIS_MNEMONIC_LODSD:
    case ZYDIS_MNEMONIC_LODSQ:
    case ZYDIS_MNEMONIC_SCASB:
    case ZYDIS_MNEMONIC_SCASW:
    case ZYDIS_MNEMONIC_SCASD:
    case ZYDIS_MNEMONIC_SCASQ:
    case ZYDIS_MNEMONIC_CMPSB:
    case ZYDIS_MNEMONIC_CMPSW:
    case ZYDIS_MNEMONIC_CMPSQ:
      return true;
    // These names are also of SSE2 instructions.
    case ZYDIS_MNEMONIC_MOVSD:
    case ZYDIS_MNEMONIC_CMPSD:
      return insn.map == 0;
    default:
      return false;
  }
}

bool IsXrstor(const Instruction& insn) {
  return insn.mnemonic == ZYDIS_MNEMONIC_XRSTOR || insn.mnemonic == ZYDIS_MNEMONIC_XRSTOR64;
}
bool IsFxrstor(const Instruction& insn) {
  return insn.mnemonic == ZYDIS_MNEMONIC_FXRSTOR || insn.mnemonic == ZYDIS_MNEMONIC_FXRSTOR64;
}
bool IsBigState(const Instruction& insn) {
  return IsXrstor(insn) || IsFxrstor(insn) || insn.mnemonic == ZYDIS_MNEMONIC_XSAVE ||
         insn.mnemonic == ZYDIS_MNEMONIC_XSAVE64 || insn.mnemonic == ZYDIS_MNEMONIC_FXSAVE ||
         insn.mnemonic == ZYDIS_MNEMONIC_FXSAVE64;
}
bool IsBitTest(const Instruction& insn) {
  return insn.mnemonic == ZYDIS_MNEMONIC_BT || insn.mnemonic == ZYDIS_MNEMONIC_BTS ||
         insn.mnemonic == ZYDIS_MNEMONIC_BTR || insn.mnemonic == ZYDIS_MNEMONIC_BTC;
}
bool IsLocked(const Instruction& insn) {
  return insn.has(x86::kInsnLock) || (insn.mnemonic == ZYDIS_MNEMONIC_XCHG && insn.has_memory());
}
bool IsX87State(const Instruction& insn) {
  return insn.mnemonic == ZYDIS_MNEMONIC_FNSTENV || insn.mnemonic == ZYDIS_MNEMONIC_FLDENV ||
         insn.mnemonic == ZYDIS_MNEMONIC_FNSAVE || insn.mnemonic == ZYDIS_MNEMONIC_FRSTOR;
}
bool WidthDisputed(const Instruction& insn) {
  return insn.code_size != CodeSize::k64 && insn.encoding == Encoding::kVex && insn.map == 3 &&
         (insn.opcode == 0x16 || insn.opcode == 0x22 || insn.opcode == 0x60 || insn.opcode == 0x61) &&
         insn.bytes[insn.prefix_count] == 0xc4 && (insn.bytes[insn.prefix_count + 2] & 0x80);
}
bool IsSha(const Instruction& insn) { return insn.isa_set == ZYDIS_ISA_SET_SHA; }
bool TouchesNothing(const Instruction& insn) {
  return insn.mnemonic == ZYDIS_MNEMONIC_LEA || insn.mnemonic == ZYDIS_MNEMONIC_NOP;
}
unsigned OperandBytes(const Instruction& insn) {
  if (IsBigState(insn))
    return IsXrstor(insn) || insn.mnemonic == ZYDIS_MNEMONIC_XSAVE || insn.mnemonic == ZYDIS_MNEMONIC_XSAVE64 ? 832
                                                                                                              : 512;
  const x86::Operand* operand = insn.memory_operand();
  return operand && operand->size != 0 ? operand->size : 8;
}

Generator::Generator(const Guest& guest, const Options& options) : guest_(guest), options_(options) {
  random_.Seed(1);
  InterestingBytes(base_data_.data(), base_data_.size());
}

// --- encoding -------------------------------------------------------------------------------------------------------

void Generator::EncodeModrm(const Instruction& model, uint8_t* bytes, unsigned& n) {
  const bool memory = (model.modrm >> 6) != 3;
  const unsigned mod = memory ? Below(3) : 3;
  const auto reg = static_cast<unsigned>(Chance(70) ? Below(8) : (model.modrm >> 3) & 7);
  auto rm = static_cast<unsigned>(Below(8));
  if (model.has(x86::kInsnVsib)) rm = 4;
  // Groups and x87: what is an opcode stays (the key tells); half of the time as the representative has it.
  const bool keep = Chance(50);
  bytes[n++] = static_cast<uint8_t>(mod << 6 | (keep ? (model.modrm >> 3 & 7) : reg) << 3 |
                                    (memory || !keep ? rm : model.modrm & 7));
  if (memory && rm == 4) bytes[n++] = static_cast<uint8_t>(random_());
  const uint64_t displacement = random_();
  std::memcpy(bytes + n, &displacement, std::min(8u, 15 - n));
}

void Generator::EncodeEvex(const Instruction& model, uint8_t* evex) {
  std::memcpy(evex, model.bytes + model.prefix_count, 4);
  const bool long_mode = model.code_size == CodeSize::k64;
  // Outside 64-bit code R and X are 1, else it is BOUND.
  const uint8_t free = long_mode ? 0xf0 : 0x30;
  evex[1] = static_cast<uint8_t>((evex[1] & ~free) | (random_() & free));
  if (Chance(60)) evex[2] = static_cast<uint8_t>((evex[2] & ~0x78) | (random_() & 0x78));
  if (Chance(10)) evex[2] ^= 0x80;  // W, where it is ignored
  if (Chance(50)) evex[3] ^= 8;     // V'
  if (model.opmask != 0) {
    evex[3] = static_cast<uint8_t>((evex[3] & ~7) | (1 + Below(7)));
    if (Chance(40)) evex[3] ^= 0x80;  // zeroing
  }
  // L'L is the rounding mode there.
  if ((evex[3] & 0x10) && model.modrm >= 0xc0) evex[3] ^= static_cast<uint8_t>(random_() & 0x60);
}

bool Generator::Encode(const Form& form, TestCase& test) {
  const Instruction& model = form.insn;
  const bool long_mode = model.code_size == CodeSize::k64;
  for (int attempt = 0; attempt < 40; ++attempt) {
    uint8_t bytes[24];
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(Chance(30) ? InterestingInteger() : random_());
    unsigned n = 0;
    const bool memory = model.has_memory() || model.base < 16;
    if (memory && long_mode && Chance(6)) bytes[n++] = 0x67;
    if (memory && Chance(6)) {
      static constexpr uint8_t kSegments[] = {0x2e, 0x36, 0x3e, 0x26, 0x65};
      const uint8_t prefix = kSegments[Below(5)];
      if (prefix != 0x65 || (options_.gs && long_mode)) bytes[n++] = prefix;
    }
    for (unsigned i = 0; i < model.prefix_count; ++i) bytes[n++] = model.bytes[i];
    if (model.encoding == Encoding::kVex) {
      const uint8_t* vex = model.bytes + model.prefix_count;
      bytes[n] = 0xc4;
      // Outside 64-bit code R and X are 1 (else it is LES), B and the top bit of vvvv mean nothing.
      const uint8_t free = long_mode ? 0xe0 : 0x20;
      bytes[n + 1] = static_cast<uint8_t>((vex[1] & ~free) | (random_() & free));
      bytes[n + 2] = Chance(60) ? static_cast<uint8_t>((vex[2] & ~0x78) | (random_() & 0x78)) : vex[2];
      if (Chance(20)) bytes[n + 2] ^= 0x80;  // W, where it is ignored
      n += 3;
    } else if (model.encoding == Encoding::kEvex) {
      EncodeEvex(model, bytes + n);
      n += 4;
    } else {
      if (long_mode && (model.rex != 0 || Chance(60)))
        bytes[n++] = static_cast<uint8_t>(0x40 | (model.rex & 8) | (random_() & 7));
      if (model.map != 0) bytes[n++] = 0x0f;
      if (model.map == 2) bytes[n++] = 0x38;
      if (model.map == 3) bytes[n++] = 0x3a;
    }
    bytes[n++] = model.has(x86::kInsnModrm) || Chance(50) ? model.opcode
                                                          : static_cast<uint8_t>((model.opcode & 0xf8) | Below(8));
    if (model.has(x86::kInsnModrm)) EncodeModrm(model, bytes, n);
    if (x86::Decode({bytes, 15}, model.code_size, test.insn) == x86::DecodeStatus::kOk &&
        FormKey(test.insn) == form.key && !WidthDisputed(test.insn))
      return true;
  }
  test.insn = model;
  return true;
}

void Generator::PlaceCode(TestCase& test) {
  // Sometimes across the two code pages. Room before and after for branch targets.
  const uint64_t offset = Chance(5) ? kPageSize - 1 - Below(14) : 0x200 + Below(0x1a00);
  test.state.rip = NACRE_DIFF_CODE + offset;
}

// --- a case ---------------------------------------------------------------------------------------------------------

bool Generator::Make(const Form& form, uint64_t seed, TestCase& test) {
  random_.Seed(seed);
  std::ranges::copy(base_data_, test.data);
  guest_.SetUp(test.state, form.insn.code_size);
  if (!Encode(form, test)) return false;
  PlaceCode(test);
  FillRegisters(test);
  ShapeRegisters(test);
  Instruction& insn = test.insn;
  const unsigned size = OperandBytes(insn);
  if (insn.has(x86::kInsnVsib)) {
    if (!PlaceGather(test)) return false;
  } else if (insn.has_memory()) {
    if (!PlaceOperand(test, PickAddress(test, size))) return false;
    if (IsSha(insn) && (OperandAddress(insn, test.state) & 15) != 0) return false;
    const auto uses = [&](unsigned reg) { return insn.base == reg || insn.index == reg; };
    if (IsBigState(insn) && (uses(x86::kRax) || uses(x86::kRdx))) return false;  // the component mask
    if (IsBitTest(insn) && insn.operand[1].kind == OperandKind::kRegister) {
      // The bit number moves the address: keep it near.
      const unsigned reg = insn.operand[1].index;
      if (reg == insn.base || reg == insn.index) return false;
      const int64_t bits = static_cast<int64_t>(Below(0x1000)) - 0x800;
      uint64_t& offset = test.state.gpr[reg];
      offset = static_cast<uint64_t>(bits);
      if (insn.operand_size == 2) offset = (random_() << 16) | (offset & 0xffff);
      if (insn.has(x86::kInsnLock)) offset = Below(insn.operand_size * 8);  // within the aligned operand
      if (insn.code_size != CodeSize::k64) offset &= 0xffffffff;
    }
    if (!OperandSafe(test)) return false;
  }
  const uint64_t address = insn.has_memory() ? OperandAddress(insn, test.state) : test.state.gpr[x86::kRsp];
  FillMemory(test, address);
  if (!PlaceImplicitMemory(test)) return false;
  ShapeMemory(test, address);
  ShapeSelectors(test);
  if (insn.branch != x86::BranchKind::kNone && !ShapeBranch(test)) return false;
  return true;
}

}  // namespace nacre::engine::difftest
