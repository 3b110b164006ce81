#include "engine/jit/reemit.h"

#include <array>
#include <cstring>

#include "base/check.h"

namespace nacre::engine::jit {
namespace {

using x86::Encoding;
using x86::Instruction;
using x86::Operand;
using x86::OperandKind;
using x86::OperandPlace;
using x86::RegisterClass;

struct Range {
  uint8_t first, last;
};

template <size_t N>
constexpr std::array<bool, 256> Set(const Range (&ranges)[N]) {
  std::array<bool, 256> set{};
  for (const Range& range : ranges)
    for (unsigned i = range.first; i <= range.last; ++i) set[i] = true;
  return set;
}

// Opcodes by map. Groups with members that must not run are settled in AllowedInGroup.
constexpr Range kOneByteRanges[] = {{0x00, 0x05}, {0x08, 0x0d}, {0x10, 0x15}, {0x18, 0x1d}, {0x20, 0x25}, {0x28, 0x2d},
                                    {0x30, 0x35}, {0x38, 0x3d}, {0x40, 0x4f},  // INC, DEC of 32-bit code; REX otherwise
                                    {0x63, 0x63}, {0x69, 0x69}, {0x6b, 0x6b}, {0x80, 0x81}, {0x83, 0x8b}, {0x8d, 0x8d},
                                    {0x90, 0x99}, {0x9b, 0x9b}, {0x9e, 0x9f}, {0xa0, 0xa3}, {0xa8, 0xa9}, {0xb0, 0xc1},
                                    {0xc6, 0xc7}, {0xd0, 0xd3}, {0xd8, 0xdf}, {0xf5, 0xf9}, {0xfe, 0xff}};
constexpr Range kMap1Ranges[] = {{0x10, 0x17}, {0x28, 0x2f}, {0x40, 0x76}, {0x7e, 0x7f}, {0x77, 0x77},
                                 {0x7c, 0x7d}, {0x90, 0x9f}, {0xa3, 0xa5}, {0xab, 0xad}, {0xae, 0xb1},
                                 {0xb3, 0xb3}, {0xb6, 0xb8}, {0xba, 0xf6}, {0xf8, 0xfe}};
constexpr Range kMap2Ranges[] = {{0x00, 0x0b}, {0x10, 0x10}, {0x14, 0x15}, {0x17, 0x17}, {0x1c, 0x1e},
                                 {0x20, 0x25}, {0x28, 0x2b}, {0x30, 0x41}, {0xc8, 0xcd}, {0xcf, 0xcf},
                                 {0xdb, 0xdf}, {0xf0, 0xf1}, {0xf6, 0xf6}};
constexpr Range kMap3Ranges[] = {{0x08, 0x0f}, {0x14, 0x17}, {0x20, 0x22}, {0x40, 0x42}, {0x44, 0x44},
                                 {0x60, 0x63}, {0xcc, 0xcc}, {0xce, 0xcf}, {0xdf, 0xdf}};
constexpr Range kVex1Ranges[] = {{0x10, 0x17}, {0x28, 0x2f}, {0x41, 0x4b}, {0x50, 0x7f}, {0x90, 0x93}, {0x98, 0x99},
                                 {0xae, 0xae}, {0xc2, 0xc2}, {0xc4, 0xc6}, {0xd0, 0xf6}, {0xf8, 0xfe}};
constexpr Range kVex2Ranges[] = {{0x00, 0x41}, {0x45, 0x47}, {0x58, 0x5a}, {0x78, 0x79}, {0x8c, 0x8c},
                                 {0x8e, 0x8e}, {0x96, 0xbf}, {0xcf, 0xcf}, {0xdb, 0xdf}, {0xf2, 0xf7}};
constexpr Range kVex3Ranges[] = {{0x00, 0x22}, {0x30, 0x33}, {0x38, 0x39}, {0x40, 0x4c},
                                 {0x60, 0x63}, {0xce, 0xcf}, {0xdf, 0xdf}, {0xf0, 0xf0}};
constexpr Range kEvex1Ranges[] = {{0x10, 0x17}, {0x28, 0x2f}, {0x51, 0x51}, {0x54, 0x76}, {0x78, 0x7b}, {0x7e, 0x7f},
                                  {0xc2, 0xc2}, {0xc4, 0xc6}, {0xd1, 0xd6}, {0xd8, 0xef}, {0xf1, 0xf6}, {0xf8, 0xfe}};
constexpr Range kEvex2Ranges[] = {{0x00, 0x00}, {0x04, 0x04}, {0x0b, 0x0d}, {0x10, 0x16}, {0x18, 0x2d}, {0x30, 0x40},
                                  {0x42, 0x47}, {0x4c, 0x55}, {0x58, 0x5b}, {0x62, 0x66}, {0x70, 0x73}, {0x75, 0x7f},
                                  {0x83, 0x83}, {0x88, 0x8b}, {0x8d, 0x8d}, {0x8f, 0x8f}, {0x96, 0x9f}, {0xa6, 0xaf},
                                  {0xb4, 0xbf}, {0xc4, 0xc4}, {0xcf, 0xcf}, {0xdc, 0xdf}};
constexpr Range kEvex3Ranges[] = {{0x00, 0x01}, {0x03, 0x05}, {0x08, 0x0b}, {0x0f, 0x0f}, {0x14, 0x1b}, {0x1d, 0x23},
                                  {0x25, 0x27}, {0x38, 0x3b}, {0x3e, 0x3f}, {0x42, 0x44}, {0x50, 0x51}, {0x54, 0x57},
                                  {0x66, 0x67}, {0x70, 0x73}, {0xc2, 0xc2}, {0xce, 0xcf}};
constexpr Range kEvex5Ranges[] = {{0x10, 0x11}, {0x1d, 0x1d}, {0x2a, 0x2a}, {0x2c, 0x2f},
                                  {0x51, 0x51}, {0x58, 0x5f}, {0x6e, 0x6e}, {0x78, 0x7e}};
constexpr Range kEvex6Ranges[] = {{0x13, 0x13}, {0x2c, 0x2d}, {0x42, 0x43}, {0x4c, 0x4f}, {0x56, 0x57},
                                  {0x96, 0x9f}, {0xa6, 0xaf}, {0xb6, 0xbf}, {0xd6, 0xd7}};
constexpr auto kOneByte = Set(kOneByteRanges);
constexpr auto kMap1 = Set(kMap1Ranges);
constexpr auto kMap2 = Set(kMap2Ranges);
constexpr auto kMap3 = Set(kMap3Ranges);
constexpr auto kVex1 = Set(kVex1Ranges);
constexpr auto kVex2 = Set(kVex2Ranges);
constexpr auto kVex3 = Set(kVex3Ranges);
constexpr std::array<bool, 256> kNoOpcode{};
constexpr std::array<bool, 256> kEvex[] = {kNoOpcode, Set(kEvex1Ranges), Set(kEvex2Ranges), Set(kEvex3Ranges),
                                           kNoOpcode, Set(kEvex5Ranges), Set(kEvex6Ranges)};

/// Mnemonics inside allowed opcodes that need the interpreter: control instructions, those that store FPU environments
/// (host addresses would leak), those whose memory operand is not where ModRM says.
bool NeedsInterpreter(const Instruction& insn) {
  switch (insn.zydis_mnemonic()) {
    case ZYDIS_MNEMONIC_FNSTENV:
    case ZYDIS_MNEMONIC_FLDENV:
    case ZYDIS_MNEMONIC_FNSAVE:
    case ZYDIS_MNEMONIC_FRSTOR:
    case ZYDIS_MNEMONIC_FXSAVE:
    case ZYDIS_MNEMONIC_FXSAVE64:
    case ZYDIS_MNEMONIC_FXRSTOR:
    case ZYDIS_MNEMONIC_FXRSTOR64:
    case ZYDIS_MNEMONIC_MASKMOVQ:
    case ZYDIS_MNEMONIC_MASKMOVDQU:
    case ZYDIS_MNEMONIC_VMASKMOVDQU:
    case ZYDIS_MNEMONIC_UD0:
    case ZYDIS_MNEMONIC_UD1:
    case ZYDIS_MNEMONIC_UD2:
      return true;
    default:
      return false;
  }
}

bool IsBitTest(const Instruction& insn) {
  return insn.map == 1 && insn.encoding == Encoding::kLegacy &&
         (insn.opcode == 0xa3 || insn.opcode == 0xab || insn.opcode == 0xb3 || insn.opcode == 0xbb);
}

bool AllowedInGroup(const Instruction& insn) {
  const unsigned extension = (insn.modrm >> 3) & 7;
  const bool memory = insn.modrm < 0xc0;
  if (insn.encoding == Encoding::kVex) {
    if (insn.map == 1 && insn.opcode == 0xae) return memory && (extension == 2 || extension == 3);
    return true;
  }
  if (insn.encoding == Encoding::kEvex) return true;
  if (insn.map == 0) {
    switch (insn.opcode) {
      case 0x8c:
      case 0x8e:
      case 0x8f:
        return false;  // segment registers, POP r/m
      case 0xc2:
      case 0xc3:
      case 0xc4:
      case 0xc5:
      case 0x9a:
        return false;
      case 0xfe:
      case 0xff:
        return extension <= 1;
      case 0xc6:
      case 0xc7:
        return extension == 0;
      default:
        return true;
    }
  }
  if (insn.map == 1) {
    if (insn.opcode == 0xae)  // LDMXCSR, STMXCSR; the fences
      return memory ? (extension == 2 || extension == 3) && !(insn.has(x86::kInsnRep) || insn.has(x86::kInsnRepne))
                    : insn.mnemonic == ZYDIS_MNEMONIC_LFENCE || insn.mnemonic == ZYDIS_MNEMONIC_MFENCE ||
                          insn.mnemonic == ZYDIS_MNEMONIC_SFENCE;
    if (insn.opcode == 0xb9) return false;
    if (insn.opcode == 0xc7) return memory && extension == 1;  // CMPXCHG8B/16B
  }
  return true;
}

struct Fields {
  unsigned reg, rm, vvvv;
  bool rex_needed;  ///< SPL BPL SIL DIL
};

/// The register numbers to encode after renaming. `reg`, `rm`, `vvvv` hold the original ones.
void Rename(const Instruction& insn, const RegisterMap& map, Fields& fields) {
  for (unsigned i = 0; i < insn.operand_count; ++i) {
    const Operand& operand = insn.operand[i];
    if (operand.kind != OperandKind::kRegister || operand.register_class != RegisterClass::kGpr) continue;
    const uint8_t host = map.host[operand.index];
    if (operand.size == 1 && operand.place != OperandPlace::kNone && host >= 4) fields.rex_needed = true;
    switch (operand.place) {
      case OperandPlace::kModrmReg:
        fields.reg = host;
        break;
      case OperandPlace::kModrmRm:
      case OperandPlace::kOpcode:
        fields.rm = host;
        break;
      case OperandPlace::kVexVvvv:
        fields.vvvv = host;
        break;
      default:
        break;
    }
  }
}

unsigned TailAt(const Instruction& insn) {
  if (insn.displacement_size) return insn.displacement_at + insn.displacement_size;
  if (insn.has(x86::kInsnSib)) return insn.sib_at + 1u;
  if (insn.has(x86::kInsnModrm)) return insn.modrm_at + 1u;
  return insn.opcode_at + 1u;
}

/// Whether 66 means the size of the operand, rather than being part of the opcode or meaning nothing.
bool SizedByPrefix(const Instruction& insn) {
  if (insn.has(x86::kInsnVector) || insn.has(x86::kInsnX87)) return false;
  if (insn.map == 1) return insn.opcode != 0xae && insn.opcode != 0xc7;  // fences, CMPXCHG8B
  if (insn.map == 2) return insn.opcode == 0xf0 || insn.opcode == 0xf1;  // MOVBE, CRC32; not ADCX
  return insn.map == 0;
}

uint8_t* EmitModRmAndTail(uint8_t* at, const Instruction& insn, unsigned reg, unsigned rm, const Mem* memory) {
  if (insn.has(x86::kInsnModrm)) {
    if (memory)
      at = EncodeMemory(at, reg, *memory, insn.encoding != Encoding::kEvex);
    else
      *at++ = static_cast<uint8_t>(0xc0 | (reg & 7) << 3 | (rm & 7));
  }
  for (unsigned i = TailAt(insn); i < insn.length; ++i) *at++ = insn.bytes[i];
  return at;
}

/// The fourth bits of the registers that REX.B and REX.X, or what stands in their place, extend.
struct HighBits {
  bool b, x;
};
HighBits HighBitsOf(unsigned rm, const Mem* memory) {
  if (!memory) return {(rm & 8) != 0, (rm & 16) != 0};
  return {memory->base >= 8, memory->index >= 8};
}

/// VEX.W chooses the width of a general register, and means nothing outside 64-bit code (SDM 2A 2.3.5.6 and the
/// instructions' pages); where it chooses something else it counts everywhere.
bool WidthIsVexW(const Instruction& insn) {
  const uint8_t op = insn.opcode;
  if (insn.map == 1) return op == 0x2a || op == 0x2c || op == 0x2d || op == 0x6e || op == 0x7e;
  if (insn.map == 2) return op == 0xf2 || op == 0xf3 || (op >= 0xf5 && op <= 0xf7);
  return op == 0x16 || op == 0x22 || op == 0xf0;
}

uint8_t* ReEmitVex(uint8_t* at, const Instruction& insn, const RegisterMap& map, const Mem* memory) {
  const uint8_t* vex = insn.bytes + insn.prefix_count;
  const bool three = vex[0] == 0xc4;
  const bool long_mode = insn.code_size == x86::CodeSize::k64;
  uint8_t last = three ? vex[2] : vex[1];
  if (!long_mode) last |= 0x40;  // there are 8 registers: B and the top bits of vvvv and is4 are ignored
  if (!long_mode && three && WidthIsVexW(insn)) last &= 0x7f;
  const unsigned r = (vex[1] & 0x80) ? 0 : 8;
  const unsigned b = three && long_mode && !(vex[1] & 0x20) ? 8 : 0;
  Fields fields{.reg = r | ((insn.modrm >> 3) & 7u),
                .rm = b | (insn.modrm & 7u),
                .vvvv = (~last >> 3) & 15u,
                .rex_needed = false};
  Rename(insn, map, fields);
  const HighBits high = HighBitsOf(fields.rm, memory);
  *at++ = 0xc4;
  *at++ = static_cast<uint8_t>((fields.reg >= 8 ? 0 : 0x80) | (high.x ? 0 : 0x40) | (high.b ? 0 : 0x20) | insn.map);
  *at++ = static_cast<uint8_t>((three ? last & 0x80 : 0) | (~fields.vvvv & 15) << 3 | (last & 7));
  *at++ = insn.opcode;
  at = EmitModRmAndTail(at, insn, fields.reg, fields.rm, memory);
  if (!long_mode && insn.map == 3 && insn.opcode >= 0x4a && insn.opcode <= 0x4c) at[-1] &= 0x7f;
  return at;
}

/// The same of EVEX.W.
bool WidthIsEvexW(const Instruction& insn, unsigned prefix) {
  const uint8_t op = insn.opcode;
  if (insn.map == 2) return op == 0x7c;
  if (insn.map == 3) return op == 0x16 || op == 0x22;
  if (insn.map != 1 && insn.map != 5) return false;
  if (prefix == 1) return op == 0x6e || op == 0x7e;
  return prefix >= 2 && (op == 0x2a || op == 0x2c || op == 0x2d || op == 0x78 || op == 0x79 || op == 0x7b);
}

/// SDM 2A 2.7.1. Displacements of one byte would count in units of the operand's size; so they get four.
uint8_t* ReEmitEvex(uint8_t* at, const Instruction& insn, const RegisterMap& map, const Mem* memory) {
  const uint8_t* evex = insn.bytes + insn.prefix_count;
  uint8_t p0 = evex[1], p1 = evex[2], p2 = evex[3];
  if (insn.code_size != x86::CodeSize::k64) {  // there are 8 registers
    p0 |= 0xf0;
    p1 |= 0x40;
    p2 |= 8;
    if (WidthIsEvexW(insn, p1 & 3)) p1 &= 0x7f;
  }
  Fields fields{.reg = ((p0 & 0x80) ? 0 : 8u) | ((p0 & 0x10) ? 0 : 16u) | ((insn.modrm >> 3) & 7u),
                .rm = ((p0 & 0x20) ? 0 : 8u) | ((p0 & 0x40) ? 0 : 16u) | (insn.modrm & 7u),
                .vvvv = 0,
                .rex_needed = false};
  Rename(insn, map, fields);
  const HighBits high = HighBitsOf(fields.rm, memory);
  p0 = static_cast<uint8_t>((p0 & 0x0f) | (fields.reg & 8 ? 0 : 0x80) | (fields.reg & 16 ? 0 : 0x10) |
                            (high.b ? 0 : 0x20) | (high.x ? 0 : 0x40));
  *at++ = 0x62;
  *at++ = p0;
  *at++ = p1;
  *at++ = p2;
  *at++ = insn.opcode;
  return EmitModRmAndTail(at, insn, fields.reg, fields.rm, memory);
}

}  // namespace

ElementMask MemoryMask(const Instruction& insn) {
  if (insn.has(x86::kInsnMaskedMemory)) return {insn.opmask, insn.opmask_bits};
  if (insn.encoding != Encoding::kVex || insn.map != 2 || !insn.has_memory()) return {};
  const uint8_t op = insn.opcode;
  if (!(op >= 0x2c && op <= 0x2f) && op != 0x8c && op != 0x8e) return {};
  const bool qwords = op < 0x80 ? (op & 1) != 0 : (insn.bytes[insn.prefix_count + 2] & 0x80) != 0;
  const uint8_t element = qwords ? 8 : 4;
  return {static_cast<uint8_t>((qwords ? ElementMask::kQwords : ElementMask::kDwords) + insn.operand[1].index),
          static_cast<uint8_t>(insn.vector_length / element)};
}

uint8_t* EmitVectorMove(uint8_t* at, unsigned reg, unsigned bytes, bool evex, bool store, int32_t displacement) {
  const unsigned length = bytes == 64 ? 2 : bytes == 32 ? 1 : 0;
  *at++ = 0x65;
  if (evex) {
    *at++ = 0x62;
    *at++ = static_cast<uint8_t>(0x61 | (reg & 8 ? 0 : 0x80) | (reg & 16 ? 0 : 0x10));
    *at++ = 0x7c;
    *at++ = static_cast<uint8_t>(length << 5 | 8);
  } else {
    *at++ = 0xc4;
    *at++ = static_cast<uint8_t>(0x61 | (reg & 8 ? 0 : 0x80));
    *at++ = static_cast<uint8_t>(0x78 | length << 2);
  }
  *at++ = store ? 0x11 : 0x10;  // VMOVUPS
  *at++ = static_cast<uint8_t>((reg & 7) << 3 | 4);
  *at++ = 0x25;
  std::memcpy(at, &displacement, 4);
  return at + 4;
}

uint8_t* EmitOpmaskMove(uint8_t* at, unsigned reg, bool store, int32_t displacement) {
  const uint8_t bytes[] = {
      0x65, 0xc4, 0xe1, 0xf8, static_cast<uint8_t>(store ? 0x91 : 0x90), static_cast<uint8_t>((reg & 7) << 3 | 4),
      0x25};  // KMOVQ
  std::memcpy(at, bytes, sizeof bytes);
  std::memcpy(at + sizeof bytes, &displacement, 4);
  return at + sizeof bytes + 4;
}

bool UsesAvx512(const Instruction& insn) {
  if (insn.encoding == Encoding::kEvex) return true;
  if (insn.encoding != Encoding::kVex) return false;
  for (unsigned i = 0; i < insn.operand_count; ++i)
    if (insn.operand[i].register_class == RegisterClass::kMask) return true;
  return false;
}

bool CanReEmit(const Instruction& insn) {
  using namespace x86;
  if (insn.branch != BranchKind::kNone || insn.has(kInsnPrivileged) || insn.has(kInsnVsib) || insn.has(kInsnBadLock))
    return false;
  const uint8_t op = insn.opcode;
  if (insn.encoding == Encoding::kVex) {
    const auto& set = insn.map == 1 ? kVex1 : insn.map == 2 ? kVex2 : kVex3;
    if (insn.map < 1 || insn.map > 3 || !set[op]) return false;
  } else if (insn.encoding == Encoding::kEvex) {
    if (insn.map >= std::size(kEvex) || !kEvex[insn.map][op]) return false;
  } else if (insn.encoding == Encoding::kLegacy) {
    const auto& set = insn.map == 0 ? kOneByte : insn.map == 1 ? kMap1 : insn.map == 2 ? kMap2 : kMap3;
    if (insn.map > 3 || !set[op]) return false;
    if (insn.map == 0 && op == 0x63 && insn.code_size != CodeSize::k64) return false;  // ARPL
    if (IsBitTest(insn) && insn.has_memory()) return false;  // the bit offset reaches beyond the operand
  } else {
    return false;
  }
  if (!AllowedInGroup(insn) || NeedsInterpreter(insn)) return false;
  if (insn.mnemonic == ZYDIS_MNEMONIC_LEA) return true;
  const Operand* memory = insn.memory_operand();
  if (memory && (memory->size == 0 || memory->size > 64)) return false;
  return true;
}

bool IsNop(const Instruction& insn) {
  switch (insn.zydis_mnemonic()) {
    case ZYDIS_MNEMONIC_NOP:
    case ZYDIS_MNEMONIC_PAUSE:
    case ZYDIS_MNEMONIC_ENDBR64:
    case ZYDIS_MNEMONIC_ENDBR32:
    case ZYDIS_MNEMONIC_PREFETCHT0:
    case ZYDIS_MNEMONIC_PREFETCHT1:
    case ZYDIS_MNEMONIC_PREFETCHT2:
    case ZYDIS_MNEMONIC_PREFETCHNTA:
    case ZYDIS_MNEMONIC_PREFETCHW:
      return !insn.has(x86::kInsnBadLock);
    default:
      return false;
  }
}

uint8_t* ReEmit(uint8_t* at, const Instruction& insn, const RegisterMap& map, const Mem* memory) {
  if (insn.encoding == Encoding::kEvex) return ReEmitEvex(at, insn, map, memory);
  if (insn.encoding == Encoding::kVex) return ReEmitVex(at, insn, map, memory);
  // In 16-bit code 66 makes operands wider.
  const bool sized = insn.code_size == x86::CodeSize::k16 && SizedByPrefix(insn);
  if (sized && insn.operand_size == 2) *at++ = 0x66;
  for (unsigned i = 0; i < insn.prefix_count; ++i) {
    const uint8_t prefix = insn.bytes[i];
    if (sized && prefix == 0x66) continue;
    if (prefix == 0x66 || prefix == 0xf2 || prefix == 0xf3 || prefix == 0xf0) *at++ = prefix;
  }
  const bool in_opcode = !insn.has(x86::kInsnModrm);
  Fields fields{.reg = ((insn.rex & 4u) << 1) | ((insn.modrm >> 3) & 7u),
                .rm = ((insn.rex & 1u) << 3) | ((in_opcode ? insn.opcode : insn.modrm) & 7u),
                .vvvv = 0,
                .rex_needed = false};
  Rename(insn, map, fields);
  uint8_t opcode = insn.opcode;
  bool modrm_added = false;
  if (insn.map == 0 && opcode >= 0x40 && opcode <= 0x4f) {  // one-byte INC/DEC do not exist in 64-bit code
    fields.reg = opcode >= 0x48 ? 1 : 0;
    opcode = 0xff;
    modrm_added = true;
  }
  bool has_opcode_register = false;
  for (unsigned i = 0; i < insn.operand_count; ++i)
    has_opcode_register |= insn.operand[i].place == OperandPlace::kOpcode;
  if (has_opcode_register && !modrm_added) opcode = static_cast<uint8_t>((opcode & ~7) | (fields.rm & 7));
  const HighBits high = HighBitsOf(fields.rm, memory);
  const bool uses_reg = insn.has(x86::kInsnModrm), uses_rm = uses_reg || has_opcode_register;
  const auto rex = static_cast<uint8_t>(0x40 | (insn.rex & 8) | (uses_reg && fields.reg >= 8 ? 4 : 0) |
                                        (uses_rm && high.b ? 1 : 0) | (memory && high.x ? 2 : 0));
  if (rex != 0x40 || fields.rex_needed) *at++ = rex;
  if (insn.map >= 1) *at++ = 0x0f;
  if (insn.map == 2) *at++ = 0x38;
  if (insn.map == 3) *at++ = 0x3a;
  *at++ = opcode;
  if (modrm_added) {
    *at++ = static_cast<uint8_t>(0xc0 | fields.reg << 3 | (fields.rm & 7));
    return at;
  }
  return EmitModRmAndTail(at, insn, fields.reg, fields.rm, memory);
}

}  // namespace nacre::engine::jit
