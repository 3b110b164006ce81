#include "x86/fast_decoder.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstring>
#include <mutex>
#include <new>

#include "base/bits.h"
#include "base/check.h"
#include "x86/cpu_state.h"
#include "x86/decoder.h"

namespace nacre::x86 {
namespace {

constexpr unsigned kMaxLength = 15;

/// What follows an opcode byte, and so which bits of ModRM choose the template. From kFirstPrefix on: no opcode.
enum class OpcodeKind : uint8_t {
  kNotMine,
  kPlain,    ///< no ModRM
  kModrm,    ///< ModRM; a register or memory
  kGroup,    ///< ... and its reg field is part of the opcode
  kEveryRm,  ///< ... and with mod 3 its rm field is, too
  kFirstPrefix,
  kRex = kFirstPrefix,  ///< outside 64-bit mode: kPlain
  kEscape,
  kEscape38,
  kEscape3a,
  kOperandSize,
  kRepeat,
  kLock,
  kSegment,
  kVex
};

struct OpcodeInfo {
  uint16_t slot = 0;  ///< of its first template, within a Class
  OpcodeKind kind = OpcodeKind::kNotMine;
  uint8_t mod3_step = 0, reg_mask = 0;  ///< template = slot + (mod 3 ? mod3_step : 0) + (reg & reg_mask)
};

/// One opcode map's rows: 0: one byte, 1: 0F, 2: 0F38, 3: 0F3A.
struct OpcodeTable {
  OpcodeInfo of[4][256];
  unsigned slots = 0;
};

constexpr unsigned SlotCount(OpcodeKind kind) {
  switch (kind) {
    case OpcodeKind::kPlain:
    case OpcodeKind::kRex:
      return 1;
    case OpcodeKind::kModrm:
      return 2;
    case OpcodeKind::kGroup:
      return 16;
    case OpcodeKind::kEveryRm:
      return 8 + 64;
    default:
      return 0;
  }
}

constexpr bool In(unsigned value, unsigned first, unsigned last) { return value >= first && value <= last; }

/// SDM 2D tables.
constexpr OpcodeKind OneByteKind(unsigned op) {
  using enum OpcodeKind;
  if (op == 0x0f) return kEscape;
  if (op == 0x66) return kOperandSize;
  if (op == 0xf0) return kLock;
  if (op == 0xf2 || op == 0xf3) return kRepeat;
  if (op == 0x26 || op == 0x2e || op == 0x36 || op == 0x3e || op == 0x64 || op == 0x65) return kSegment;
  if (op == 0xc4 || op == 0xc5) return kVex;
  // Address size, EVEX or BOUND, segment registers, far pointers, ENTER.
  if (op == 0x67 || op == 0x62 || op == 0x8c || op == 0x8e || op == 0x9a || op == 0xea || op == 0xc8) return kNotMine;
  if (In(op, 0x40, 0x4f)) return kRex;
  if (In(op, 0xd8, 0xdf)) return kEveryRm;
  if (In(op, 0x80, 0x83) || op == 0x8f || In(op, 0xc0, 0xc1) || In(op, 0xc6, 0xc7) || In(op, 0xd0, 0xd3) ||
      In(op, 0xf6, 0xf7) || In(op, 0xfe, 0xff))
    return kGroup;
  if ((op < 0x40 && (op & 7) < 4) || op == 0x63 || op == 0x69 || op == 0x6b || In(op, 0x84, 0x8d)) return kModrm;
  return kPlain;
}

/// SDM 2D tables.
constexpr OpcodeKind TwoByteKind(unsigned op) {
  using enum OpcodeKind;
  if (op == 0x38) return kEscape38;
  if (op == 0x3a) return kEscape3a;
  // 3DNow!, control and debug registers (mod means nothing), VMREAD or EXTRQ.
  if (op == 0x0f || In(op, 0x20, 0x27) || In(op, 0x78, 0x79)) return kNotMine;
  if (op == 0x01 || op == 0xae) return kEveryRm;
  if (op == 0x00 || op == 0x0d || op == 0x18 || In(op, 0x71, 0x73) || op == 0xba || op == 0xc7) return kGroup;
  if (In(op, 0x04, 0x0c) || op == 0x0e || In(op, 0x30, 0x37) || op == 0x77 || In(op, 0x80, 0x8f) ||
      In(op, 0xa0, 0xa2) || In(op, 0xa8, 0xaa) || In(op, 0xc8, 0xcf))
    return kPlain;
  return kModrm;
}

constexpr OpcodeKind VexKind(unsigned map, unsigned op) {
  using enum OpcodeKind;
  if (map == 0) return kNotMine;
  if (map == 1 && op == 0x77) return kPlain;
  if ((map == 1 && (In(op, 0x71, 0x73) || op == 0xae)) || (map == 2 && op == 0xf3)) return kGroup;
  return kModrm;
}

template <typename KindOf>
constexpr OpcodeTable MakeTable(KindOf kind_of) {
  OpcodeTable table;
  for (unsigned map = 0; map < 4; ++map) {
    for (unsigned op = 0; op < 256; ++op) {
      OpcodeInfo& info = table.of[map][op];
      info.kind = kind_of(map, op);
      info.slot = static_cast<uint16_t>(table.slots);
      table.slots += SlotCount(info.kind);
      const bool group = info.kind == OpcodeKind::kGroup || info.kind == OpcodeKind::kEveryRm;
      info.mod3_step = info.kind == OpcodeKind::kModrm ? 1 : group ? 8 : 0;
      info.reg_mask = group ? 7 : 0;
    }
  }
  return table;
}

constexpr OpcodeTable kLegacyTable = MakeTable([](unsigned map, unsigned op) {
  return map == 0 ? OneByteKind(op) : map == 1 ? TwoByteKind(op) : OpcodeKind::kModrm;
});
constexpr OpcodeTable kVexTable = MakeTable(VexKind);

/// Which prefixes a template is for. Legacy encodings: 66 is bit 0, one of the others bits 1-2, REX.W bit 3. VEX: pp,
/// L and W in the same places.
constexpr unsigned k66 = 1, kF3 = 2, kF2 = 4, kF0 = 6, kOneOf = 6, kW = 8, kClasses = 16;

/// The parts of an instruction that choose a template.
struct Key {
  bool vex = false, mode64 = false;
  uint8_t map = 0, opcode = 0, prefix_class = 0;
  OpcodeKind kind = OpcodeKind::kNotMine;
  uint8_t sub = 0;  ///< template within the opcode, see SlotCount
  uint16_t slot = 0;
};

/// Register numbers, a byte for each OperandPlace.
using Fields = uint64_t;

struct Parsed {
  Key key;
  uint8_t prefix_count = 0, rex = 0, opcode_at = 0;
  uint8_t modrm = 0;
  uint8_t r = 0, x = 0, b = 0, vvvv = 0;  ///< r, x, b: 0 or 8
  uint8_t segment = kNoOverride;
  bool segment_prefix = false;

  static constexpr uint8_t kNoOverride = 0xff;
};

/// A register operand to fill in. The default writes nothing new to an operand that is never used.
struct Patch {
  uint8_t operand = kNoOperand;
  OperandPlace place = OperandPlace::kNone;
  RegisterClass register_class = RegisterClass::kNone;
  uint8_t mask = 15;               ///< of its number; 7: MMX and x87 know no REX bit
  bool byte_register = false;      ///< AH to BH without REX
  uint16_t read = 0, written = 0;  ///< 1: the register enters that mask

  static constexpr uint8_t kNoOperand = 4;
};

struct Template {
  Instruction instruction;                             ///< `bytes` and all places empty
  uint64_t immediate_mask = 0, displacement_mask = 0;  ///< what the sign-extended value keeps; 0 without one
  uint64_t immediate = 0;                              ///< an implicit one
  uint16_t gpr_read = 0, gpr_written = 0;              ///< implicit ones only
  uint8_t patch_count = 0;
  uint8_t modrm_mask = 0;            ///< ff with ModRM
  uint8_t immediate_at_mask = 0;     ///< ff with an immediate
  uint8_t displacement_size = 0;     ///< without ModRM (MOV's memory offset)
  bool memory = false;               ///< ModRM names memory
  bool segment_overridable = false;  ///< the segment is that of a hidden operand
  bool uses_vvvv = false;
  bool shift_count = false;  ///< the immediate decides about flags
  Patch patches[4];
};

/// The bytes, with zeros behind them: parsing may look further than the instruction goes.
struct Window {
  alignas(16) uint8_t at[32];
  unsigned size;

  explicit Window(std::span<const uint8_t> bytes) {
    std::memset(at, 0, sizeof at);
    size = static_cast<unsigned>(std::min<size_t>(bytes.size(), kMaxLength));
    // In one piece where possible: what is loaded from it next does not have to wait for two stores.
    if (bytes.size() > kMaxLength)
      std::memcpy(at, bytes.data(), kMaxLength + 1);
    else if (size != 0)
      std::memcpy(at, bytes.data(), size);
  }
  /// 1, 2, 4 or 8 bytes, sign-extended. Of 0 bytes: something.
  uint64_t Signed(unsigned where, unsigned count) const {
    const unsigned shift = (64 - count * 8) & 63;
    return static_cast<uint64_t>(static_cast<int64_t>(LoadLe<uint64_t>(at + where) << shift) >> shift);
  }
};

/// SDM 2A 2.3.5, figure 2-9.
bool ParseVex(const Window& w, unsigned at, Parsed& p) {
  const bool three = w.at[at] == 0xc4;
  const unsigned first = w.at[at + 1];
  const unsigned last = three ? w.at[at + 2] : first;
  const unsigned map = three ? first & 31 : 1;
  if (map == 0 || map > 3) return false;
  p.r = (first & 0x80) != 0 ? 0 : 8;
  if (three) {
    p.x = (first & 0x40) != 0 ? 0 : 8;
    p.b = (first & 0x20) != 0 ? 0 : 8;
  }
  p.vvvv = static_cast<uint8_t>(~(last >> 3) & 15);
  p.opcode_at = static_cast<uint8_t>(at + (three ? 3 : 2));
  p.key.vex = true;
  p.key.map = static_cast<uint8_t>(map);
  p.key.prefix_class = static_cast<uint8_t>((last & 7) | (three && (last & 0x80) != 0 ? kW : 0));
  return true;
}

void ParseSegment(uint8_t byte, Parsed& p) {
  p.segment_prefix = true;
  // 64-bit mode knows FS and GS only (SDM 1 3.3.7.1).
  if (byte >= 0x64)
    p.segment = byte == 0x64 ? kFs : kGs;
  else if (!p.key.mode64)
    p.segment = static_cast<uint8_t>((byte - 0x26) >> 3);
}

/// Prefixes up to the opcode.
bool ParsePrefixes(const Window& w, Parsed& p, const OpcodeInfo*& info) {
  unsigned at = 0;
  unsigned prefix_class = 0;
  const auto& one_byte = kLegacyTable.of[0];
  info = &one_byte[w.at[0]];
  for (; info->kind > OpcodeKind::kEscape3a; info = &one_byte[w.at[++at]]) {
    unsigned one = 0;
    switch (info->kind) {
      case OpcodeKind::kOperandSize:
        prefix_class |= k66;
        continue;
      case OpcodeKind::kSegment:
        ParseSegment(w.at[at], p);
        continue;
      case OpcodeKind::kRepeat:
        one = w.at[at] == 0xf2 ? kF2 : kF3;
        break;
      case OpcodeKind::kLock:
        one = kF0;
        break;
      default:  // kVex
        p.prefix_count = static_cast<uint8_t>(at);
        if (!p.key.mode64 || prefix_class != 0 || !ParseVex(w, at, p)) return false;
        info = &kVexTable.of[p.key.map][w.at[p.opcode_at]];
        return true;
    }
    if ((prefix_class & kOneOf) != 0 && (prefix_class & kOneOf) != one) return false;
    prefix_class |= one;
  }
  p.prefix_count = static_cast<uint8_t>(at);
  const unsigned first = w.at[at];
  const unsigned is_rex = (first & 0xf0) == 0x40 && p.key.mode64 ? 1 : 0;  // no branch: nobody could predict it
  p.rex = static_cast<uint8_t>(first & (0 - is_rex));
  p.r = (p.rex & 4) << 1;
  p.x = (p.rex & 2) << 2;
  p.b = static_cast<uint8_t>((p.rex & 1) << 3);
  prefix_class |= p.rex & kW;
  at += is_rex;
  info = &one_byte[w.at[at]];
  if (info->kind >= OpcodeKind::kFirstPrefix && info->kind != OpcodeKind::kEscape &&
      (info->kind != OpcodeKind::kRex || p.key.mode64))
    return false;
  if (info->kind == OpcodeKind::kEscape) {
    p.key.map = 1;
    info = &kLegacyTable.of[1][w.at[++at]];
    if (info->kind >= OpcodeKind::kFirstPrefix) {
      p.key.map = info->kind == OpcodeKind::kEscape38 ? 2 : 3;
      info = &kLegacyTable.of[p.key.map][w.at[++at]];
    }
  }
  p.opcode_at = static_cast<uint8_t>(at);
  p.key.prefix_class = static_cast<uint8_t>(prefix_class);
  return true;
}

/// Everything up to ModRM, and the template's key.
bool Parse(const Window& w, Parsed& p) {
  const OpcodeInfo* info;
  if (!ParsePrefixes(w, p, info)) return false;
  p.key.kind = info->kind == OpcodeKind::kRex ? OpcodeKind::kPlain : info->kind;
  p.key.opcode = w.at[p.opcode_at];
  p.modrm = w.at[p.opcode_at + 1];
  const bool mod3 = p.modrm >= 0xc0;
  unsigned sub = (mod3 ? info->mod3_step : 0u) + ((p.modrm >> 3) & info->reg_mask);
  if (info->kind == OpcodeKind::kNotMine) return false;
  if (info->kind == OpcodeKind::kEveryRm && mod3) {
    if ((p.rex & 7) != 0) return false;
    sub = 8 + (p.modrm & 63);
  }
  if (p.b != 0 && p.key.opcode == 0x90 && p.key.map == 0) return false;  // XCHG, no NOP
  p.key.sub = static_cast<uint8_t>(sub);
  p.key.slot = static_cast<uint16_t>(info->slot + sub);
  return true;
}

/// SDM 2A tables 2-2, 2-3 and 2.2.1: the memory operand that ModRM names.
struct Address {
  uint8_t sib = 0, sib_at = 0, displacement_at = 0, displacement_size = 0;
  uint8_t base = kNoRegister, index = kNoRegister, scale = 0;

  Address() = default;
  Address(const Window& w, const Parsed& p) {
    unsigned at = p.opcode_at + 2u;
    const unsigned mod = p.modrm >> 6;
    unsigned low = p.modrm & 7;
    if (low == 4) {
      sib_at = static_cast<uint8_t>(at);
      sib = w.at[at++];
      low = sib & 7;
      const unsigned number = ((sib >> 3) & 7u) | p.x;
      if (number != 4) {
        index = static_cast<uint8_t>(number);
        scale = static_cast<uint8_t>(1u << (sib >> 6));
      }
    }
    displacement_size = mod == 1 ? 1 : mod == 2 ? 4 : 0;
    if (mod == 0 && low == 5) {
      displacement_size = 4;
      base = sib_at == 0 && p.key.mode64 ? kRipRegister : kNoRegister;
    } else {
      base = static_cast<uint8_t>(low | p.b);
    }
    if (displacement_size != 0) displacement_at = static_cast<uint8_t>(at);
  }
};

/// Sets of general registers.
struct GprMasks {
  uint32_t read, written;
};

void FillMemory(const Window& w, const Parsed& p, const Address& address, GprMasks& gpr, Instruction& out) {
  out.sib = address.sib;
  out.sib_at = address.sib_at;
  out.displacement_at = address.displacement_at;
  out.displacement_size = address.displacement_size;
  out.base = address.base;
  out.index = address.index;
  out.scale = address.scale;
  const uint64_t value = w.Signed(address.displacement_at, address.displacement_size);
  out.displacement = address.displacement_size != 0 ? static_cast<int64_t>(value) : 0;
  const uint8_t segment = address.base == kRbp || address.base == kRsp ? kSs : kDs;
  out.segment = p.segment != Parsed::kNoOverride ? p.segment : segment;
  // kNoRegister and kRipRegister shift their bits out of the mask.
  static_assert((kNoRegister & 31) >= 16 && (kRipRegister & 31) >= 16);
  gpr.read |= 1u << (address.base & 31) | 1u << (address.index & 31);
}

void FillRegister(const Patch& patch, Fields fields, bool no_rex, GprMasks& gpr, Instruction& out) {
  unsigned number = static_cast<unsigned>(fields >> (static_cast<unsigned>(patch.place) * 8)) & patch.mask;
  const unsigned high = (patch.byte_register & no_rex & (number >= 4)) ? 1 : 0;
  number -= high * 4;
  static_assert(static_cast<unsigned>(RegisterClass::kGprHigh) == static_cast<unsigned>(RegisterClass::kGpr) + 1);
  Operand& operand = out.operand[patch.operand];
  operand.register_class = static_cast<RegisterClass>(static_cast<unsigned>(patch.register_class) + high);
  operand.index = static_cast<uint8_t>(number);
  gpr.read |= static_cast<uint32_t>(patch.read) << number;
  gpr.written |= static_cast<uint32_t>(patch.written) << number;
}

void FillRegisters(const Parsed& p, const Template& t, GprMasks& gpr, Instruction& out) {
  using enum OperandPlace;
  const auto field = [](OperandPlace place, unsigned number) {
    return uint64_t{number} << (static_cast<unsigned>(place) * 8);
  };
  const Fields fields = field(kModrmReg, ((p.modrm >> 3) & 7u) | p.r) | field(kModrmRm, (p.modrm & 7u) | p.b) |
                        field(kOpcode, (p.key.opcode & 7u) | p.b) | field(kVexVvvv, p.vvvv);
  // Two without asking: most instructions have one or two, and nobody could predict which.
  FillRegister(t.patches[0], fields, p.rex == 0, gpr, out);
  FillRegister(t.patches[1], fields, p.rex == 0, gpr, out);
  for (unsigned i = 2; i < t.patch_count; ++i) FillRegister(t.patches[i], fields, p.rex == 0, gpr, out);
}

/// The instruction's bytes, without those behind it.
void FillBytes(const Window& w, unsigned length, Instruction& out) {
  const uint64_t low = MaskToSize(LoadLe<uint64_t>(w.at), length);
  const uint64_t high = length <= 7 ? 0 : MaskToSize(LoadLe<uint64_t>(w.at + 7), length - 7);
  std::memcpy(out.bytes, &low, 8);
  std::memcpy(out.bytes + 7, &high, 8);
}

/// A template and the parsed bytes make the instruction. False: not to be decoded here after all, `out` is untouched.
bool Fill(const Window& w, const Parsed& p, const Template& t, Instruction& out) {
  if (p.vvvv != 0 && !t.uses_vvvv) return false;
  unsigned length = p.opcode_at + 1u + (t.modrm_mask & 1);
  const unsigned displacement_at = length;
  length += t.displacement_size;
  Address address;
  if (t.memory) address = Address(w, p);
  length += (address.sib_at != 0 ? 1u : 0u) + address.displacement_size;
  const unsigned immediate_at = length;
  length += t.instruction.immediate_size;
  if (length > w.size) return false;
  const uint64_t immediate = w.Signed(immediate_at, t.instruction.immediate_size) & t.immediate_mask;
  // Counts of 0 and 1 treat the flags in a way of their own.
  if (t.shift_count && (immediate & (t.instruction.operand_size == 8 ? 63 : 31)) <= 1) return false;
  GprMasks gpr{t.gpr_read, t.gpr_written};
  out = t.instruction;
  out.length = static_cast<uint8_t>(length);
  out.prefix_count = p.prefix_count;
  out.opcode_at = p.opcode_at;
  out.rex = p.rex;
  out.modrm = p.modrm & t.modrm_mask;
  out.modrm_at = static_cast<uint8_t>((p.opcode_at + 1u) & t.modrm_mask);
  out.immediate = immediate | t.immediate;
  out.immediate_at = static_cast<uint8_t>(immediate_at & t.immediate_at_mask);
  out.attributes =
      t.instruction.attributes | (p.segment_prefix ? kInsnSegmentPrefix : 0u) | (address.sib_at != 0 ? kInsnSib : 0u);
  FillRegisters(p, t, gpr, out);
  if (t.memory) {
    FillMemory(w, p, address, gpr, out);
  } else if (p.segment != Parsed::kNoOverride && t.segment_overridable) {
    out.segment = p.segment;
  }
  out.gpr_read = static_cast<uint16_t>(gpr.read);
  out.gpr_written = static_cast<uint16_t>(gpr.written);
  if (t.displacement_size != 0) {
    out.displacement_at = static_cast<uint8_t>(displacement_at);
    out.displacement = static_cast<int64_t>(w.Signed(displacement_at, t.displacement_size) & t.displacement_mask);
  }
  FillBytes(w, length, out);
  return true;
}

/// How an example of an encoding is chosen.
struct Example {
  uint8_t reg = 0, rm = 0, vvvv = 0;
  bool extended = false;  ///< REX.R, X, B
  uint8_t mod = 0;        ///< for memory operands
  uint8_t segment = 0;    ///< prefix, if any
  uint8_t tail = 0xff;    ///< SIB, displacement and immediate
};

/// An instruction of `key`'s encoding.
std::array<uint8_t, kMaxLength> MakeExample(const Key& key, const Example& e) {
  std::array<uint8_t, kMaxLength> bytes;
  bytes.fill(e.tail);
  unsigned n = 0;
  const unsigned c = key.prefix_class;
  if (e.segment != 0) bytes[n++] = e.segment;
  if (key.vex) {
    bytes[n++] = 0xc4;
    bytes[n++] = static_cast<uint8_t>((e.extended ? 0 : 0xe0) | key.map);
    bytes[n++] = static_cast<uint8_t>(((c & kW) != 0 ? 0x80 : 0) | (~e.vvvv & 15) << 3 | (c & 7));
  } else {
    constexpr uint8_t kOne[4] = {0, 0xf3, 0xf2, 0xf0};
    if (c & k66) bytes[n++] = 0x66;
    if (c & kOneOf) bytes[n++] = kOne[(c & kOneOf) >> 1];
    const unsigned rex = ((c & kW) != 0 ? 0x48 : 0) | (e.extended && key.mode64 ? 0x47 : 0);
    if (rex != 0) bytes[n++] = static_cast<uint8_t>(rex);
    if (key.map != 0) bytes[n++] = 0x0f;
    if (key.map >= 2) bytes[n++] = key.map == 2 ? 0x38 : 0x3a;
  }
  bytes[n++] = key.opcode;
  const unsigned memory = e.mod << 6;
  switch (key.kind) {
    case OpcodeKind::kModrm:
      bytes[n++] = static_cast<uint8_t>((key.sub == 0 ? memory : 0xc0) | e.reg << 3 | e.rm);
      break;
    case OpcodeKind::kGroup:
      bytes[n++] = static_cast<uint8_t>((key.sub < 8 ? memory : 0xc0) | (key.sub & 7) << 3 | e.rm);
      break;
    case OpcodeKind::kEveryRm:
      bytes[n++] = static_cast<uint8_t>(key.sub < 8 ? memory | key.sub << 3 | e.rm : 0xc0 | (key.sub - 8));
      break;
    default:
      break;
  }
  return bytes;
}

/// Builds the template of an encoding out of Zydis's view of examples.
class TemplateBuilder {
 public:
  explicit TemplateBuilder(const Key& key) : key_(key) {}

  /// False: not for the fast path.
  bool Build(Template& t) {
    if (Pointless()) return false;
    Instruction a;
    if (!Ask({.reg = 0, .rm = 1, .vvvv = 0}, a)) return false;
    if (!Suitable(a) || !AddPatches(a, t)) return false;
    t.instruction = a;
    Instruction& kept = t.instruction;
    kept.prefix_count = kept.opcode_at = kept.modrm_at = kept.immediate_at = kept.displacement_at = 0;
    kept.rex = kept.modrm = kept.length = 0;
    kept.gpr_read = kept.gpr_written = 0;
    kept.attributes &= ~static_cast<uint32_t>(kInsnSib);
    std::memset(kept.bytes, 0, sizeof kept.bytes);
    t.memory = a.has(kInsnModrm) && a.has_memory();
    t.modrm_mask = a.has(kInsnModrm) ? 0xff : 0;
    t.immediate_at_mask = a.immediate_size != 0 ? 0xff : 0;
    t.immediate_mask = a.immediate_size != 0 ? a.immediate : 0;
    t.immediate = a.immediate_size != 0 ? 0 : a.immediate;
    if (!t.memory) {
      t.displacement_size = a.displacement_size;
      t.displacement_mask = static_cast<uint64_t>(a.displacement);
    }
    t.shift_count = !key_.vex && ((key_.map == 0 && (key_.opcode & 0xfe) == 0xc0) ||
                                  (key_.map == 1 && (key_.opcode == 0xa4 || key_.opcode == 0xac)));
    return Implicit(a, t) && Proven(t);
  }

 private:
  bool Ask(const Example& example, Instruction& out) const {
    return DecodeByZydis(MakeExample(key_, example), key_.mode64 ? CodeSize::k64 : CodeSize::k32, out) ==
           DecodeStatus::kOk;
  }

  bool FixedRm() const { return key_.kind == OpcodeKind::kEveryRm && key_.sub >= 8; }

  /// Prefixes that hardly change anything would take most of the templates, and nobody writes them.
  bool Pointless() const {
    if (key_.vex) return false;
    const unsigned one = key_.prefix_class & kOneOf;
    if (FixedRm()) return one != 0 || (key_.prefix_class & k66) != 0;
    return (key_.kind == OpcodeKind::kGroup || key_.kind == OpcodeKind::kEveryRm) && (one == kF2 || one == kF3);
  }

  /// The table above and Zydis must agree about the layout; what no patch can fill in is refused.
  bool Suitable(const Instruction& a) const {
    if (a.encoding != (key_.vex ? Encoding::kVex : Encoding::kLegacy)) return false;
    if (a.map != key_.map || a.opcode != key_.opcode) return false;
    if (a.has(kInsnModrm) != (key_.kind != OpcodeKind::kPlain)) return false;
    if (a.immediate2_size != 0 || a.has(kInsnVsib) || a.operand_count > Patch::kNoOperand) return false;
    unsigned memory = 0;
    for (unsigned i = 0; i < a.operand_count; ++i) memory += a.operand[i].kind == OperandKind::kMemory ? 1 : 0;
    if (!a.has(kInsnModrm)) return memory <= 1;
    const bool mod3 = a.modrm >= 0xc0;
    return memory == (mod3 ? 0u : 1u) && (mod3 || a.base == kRcx);
  }

  bool AddPatches(const Instruction& a, Template& t) const {
    for (unsigned i = 0; i < a.operand_count; ++i) {
      const Operand& operand = a.operand[i];
      if (operand.kind != OperandKind::kRegister || operand.place == OperandPlace::kNone) continue;
      if (operand.place == OperandPlace::kIs4 || t.patch_count == std::size(t.patches)) return false;
      Patch patch{.operand = static_cast<uint8_t>(i), .place = operand.place, .register_class = operand.register_class};
      switch (operand.register_class) {
        case RegisterClass::kGpr:
        case RegisterClass::kGprHigh:
          patch.register_class = RegisterClass::kGpr;
          patch.byte_register = operand.size == 1;
          if (patch.byte_register && key_.vex) return false;
          patch.read = operand.read || (operand.written && operand.size < 4);
          patch.written = operand.written;
          break;
        case RegisterClass::kVector:
          break;
        case RegisterClass::kMmx:
        case RegisterClass::kSt:
          patch.mask = 7;
          break;
        default:
          return false;
      }
      if (operand.place == OperandPlace::kVexVvvv) t.uses_vvvv = true;
      t.patches[t.patch_count++] = patch;
    }
    return true;
  }

  /// Registers and segments that do not come from ModRM: what examples without a register in common have in common.
  bool Implicit(const Instruction& a, Template& t) const {
    Instruction b;
    const bool plain = key_.kind == OpcodeKind::kPlain;
    const bool nop = key_.map == 0 && key_.opcode == 0x90;
    const Example other{
        .reg = 6, .rm = 7, .vvvv = static_cast<uint8_t>(t.uses_vvvv ? 5 : 0), .extended = plain && !nop};
    if (!Ask(other, b)) return false;
    t.gpr_read = a.gpr_read & b.gpr_read;
    t.gpr_written = a.gpr_written & b.gpr_written;
    // PUSH and its like in 32-bit code: without REX.B both examples name the same register, which is also patched in.
    if (!t.memory) {
      Instruction with_segment;
      if (!Ask({.reg = 0, .rm = 1, .segment = 0x64}, with_segment)) return false;
      t.segment_overridable = with_segment.segment != a.segment;
    }
    return true;
  }

  /// Decodes further examples in both ways.
  bool Proven(const Template& t) const {
    constexpr Example kExamples[] = {{.reg = 5, .rm = 6, .vvvv = 3, .mod = 1, .tail = 0x95},
                                     {.reg = 2, .rm = 4, .vvvv = 7, .mod = 2, .tail = 0x6a},
                                     {.reg = 7, .rm = 5, .vvvv = 12, .extended = true, .mod = 0, .tail = 0x33},
                                     {.reg = 4, .rm = 4, .vvvv = 9, .extended = true, .mod = 1, .segment = 0x65}};
    for (Example example : kExamples) {
      if (!t.uses_vvvv) example.vvvv = 0;
      if (example.extended && FixedRm()) continue;
      const auto bytes = MakeExample(key_, example);
      const Window window(bytes);
      Parsed parsed;
      parsed.key.mode64 = key_.mode64;
      Instruction ours, theirs;
      if (!Parse(window, parsed) || !Fill(window, parsed, t, ours)) continue;
      if (!Ask(example, theirs) || !(ours == theirs)) return false;
    }
    return true;
  }

  const Key key_;
};

/// All templates. A slot holds 0 (not yet asked), kRefused or the number of its template plus kFirst.
class Store {
 public:
  /// The template of `parsed`, which is what Parse makes of `window`.
  const Template* Find(const Window& window, const Parsed& parsed) {
    unsigned value = SlotOf(parsed.key).load(std::memory_order_acquire);
    if (value == kUnknown) [[unlikely]]
      value = Make(window, parsed.key.mode64);
    return value == kRefused ? nullptr : At(value - kFirst);
  }

  unsigned count() {
    const std::lock_guard lock(mutex_);
    return count_;
  }

 private:
  enum : uint16_t { kUnknown, kRefused, kFirst };

  std::atomic<uint16_t>& SlotOf(const Key& key) {
    if (key.vex) return vex_[key.prefix_class][key.slot];
    return legacy_[key.mode64 ? 1 : 0][key.prefix_class][key.slot];
  }
  const Template* At(unsigned number) const {
    return std::launder(reinterpret_cast<const Template*>(storage_ + number * sizeof(Template)));
  }

  /// Parses again, so that the caller's Parsed can live in registers.
  [[gnu::noinline, gnu::cold]] unsigned Make(const Window& window, bool mode64) {
    Parsed parsed;
    parsed.key.mode64 = mode64;
    NACRE_CHECK(Parse(window, parsed));
    Template made;
    const bool mine = TemplateBuilder(parsed.key).Build(made);
    std::atomic<uint16_t>& slot = SlotOf(parsed.key);
    const std::lock_guard lock(mutex_);
    if (const unsigned value = slot.load(std::memory_order_relaxed); value != kUnknown) return value;
    unsigned value = kRefused;
    if (mine && count_ < kMaxFastTemplates) {
      new (storage_ + count_ * sizeof(Template)) Template(made);
      value = kFirst + count_++;
    }
    slot.store(static_cast<uint16_t>(value), std::memory_order_release);
    return value;
  }

  std::mutex mutex_;
  unsigned count_ = 0;
  std::atomic<uint16_t> legacy_[2][kClasses][kLegacyTable.slots] = {};
  std::atomic<uint16_t> vex_[kClasses][kVexTable.slots] = {};
  alignas(64) std::byte storage_[kMaxFastTemplates * sizeof(Template)] = {};
};

constinit Store store;  // zeros: no page of it is touched before use

}  // namespace

[[gnu::flatten]] bool FastDecode(std::span<const uint8_t> bytes, CodeSize code_size, Instruction& out) {
  if (code_size == CodeSize::k16) return false;
  const Window window(bytes);
  Parsed parsed;
  parsed.key.mode64 = code_size == CodeSize::k64;
  if (!Parse(window, parsed)) return false;
  const Template* found = store.Find(window, parsed);
  return found != nullptr && Fill(window, parsed, *found, out);
}

unsigned FastTemplateCount() { return store.count(); }

}  // namespace nacre::x86
