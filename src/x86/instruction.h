#pragma once
// One decoded instruction in our own compact form, made once by Decode (x86/decoder.h, Zydis inside) and used by the
// interpreter and the translator. Plain data, no pointers; may be cached and copied. Any thread.

#include <cstdint>
#include <type_traits>

#include <Zydis/Mnemonic.h>

namespace nacre::x86 {

/// The code segment's default size (SDM 1 3.3): what the same bytes mean depends on it.
enum class CodeSize : uint8_t { k16, k32, k64 };

enum class OperandKind : uint8_t { kNone, kRegister, kMemory, kImmediate, kRelative, kFarPointer };
enum class RegisterClass : uint8_t {
  kNone,
  kGpr,      ///< `index` 0-15, `size` 1, 2, 4, 8
  kGprHigh,  ///< AH CH DH BH: `index` 0-3, `size` 1
  kSegment,
  kControl,
  kDebug,
  kSt,
  kMmx,
  kVector /* xmm/ymm/zmm by size */,
  kMask,
  kOther
};

/// Where a register operand is encoded: what re-emission must patch.
enum class OperandPlace : uint8_t {
  kNone /* implicit, memory, immediate */,
  kModrmReg,
  kModrmRm,
  kOpcode,
  kVexVvvv,
  kIs4
};

struct Operand {
  OperandKind kind = OperandKind::kNone;
  RegisterClass register_class = RegisterClass::kNone;
  uint8_t index = 0;
  uint8_t size = 0;  ///< bytes (memory of unknown size, LEA and the like: 0; XSAVE areas: 0)
  OperandPlace place = OperandPlace::kNone;
  bool read = false, written = false;

  bool operator==(const Operand&) const = default;
};

enum class Encoding : uint8_t { kLegacy, kVex, kEvex, k3dNow, kXop };

enum class BranchKind : uint8_t { kNone, kConditional, kJump, kCall, kIndirectJump, kIndirectCall, kReturn, kFar };

inline constexpr uint8_t kNoRegister = 0xff;
inline constexpr uint8_t kRipRegister = 0xfe;  ///< `base` of a RIP-relative operand

/// Attributes, see Instruction::attributes.
enum InsnAttribute : uint32_t {
  kInsnModrm = 1 << 0,
  kInsnSib = 1 << 1,
  kInsnLock = 1 << 2,
  kInsnRep = 1 << 3,    ///< F3 acting as REP/REPE
  kInsnRepne = 1 << 4,  ///< F2 acting as REPNE
  kInsnOperandSizePrefix = 1 << 5,
  kInsnAddressSizePrefix = 1 << 6,
  kInsnSegmentPrefix = 1 << 7,
  kInsnX87 = 1 << 8,
  kInsnVector = 1 << 9,       ///< reads or writes MMX, XMM, YMM, ZMM, mask registers or MXCSR
  kInsnPrivileged = 1 << 10,  ///< #GP unless CPL 0
  kInsnVsib = 1 << 11,        ///< memory operand with a vector index (gather, scatter)
  kInsnBadLock = 1 << 12,     ///< LOCK where it is not allowed: #UD
  /// EVEX with a writemask: elements of the memory operand that it excludes are not accessed and cannot fault.
  kInsnMaskedMemory = 1 << 13,
};

struct Instruction {
  uint16_t mnemonic = 0;  ///< ZydisMnemonic
  uint16_t isa_set = 0;   ///< ZydisISASet: which CPU feature it belongs to
  uint8_t length = 0;     ///< 1-15
  CodeSize code_size = CodeSize::k64;
  Encoding encoding = Encoding::kLegacy;
  uint8_t map = 0;  ///< 0: one byte, 1: 0F, 2: 0F38, 3: 0F3A
  uint8_t opcode = 0;
  uint8_t modrm = 0, sib = 0, rex = 0;  ///< rex: 0 when absent (also for VEX)
  uint8_t operand_size = 0;             ///< effective: 2, 4, 8 (8-bit forms: 1)
  uint8_t address_size = 0;             ///< effective: 2, 4, 8
  uint8_t vector_length = 0;            ///< bytes: 0, 16, 32, 64
  BranchKind branch = BranchKind::kNone;
  uint32_t attributes = 0;

  // Memory operand (if any): segment already resolved from default and prefix.
  uint8_t segment = 0;                              ///< SegmentIndex
  uint8_t base = kNoRegister, index = kNoRegister;  ///< Gpr numbers (index: vector register number with kInsnVsib)
  uint8_t scale = 0;                                ///< 1, 2, 4, 8; 0 without index
  int64_t displacement = 0;
  uint64_t immediate =
      0;  ///< sign- or zero-extended as the instruction uses it; relative: signed distance; far: offset
  uint16_t immediate2 = 0;  ///< ENTER's level, far pointer's selector, second immediate

  // Places inside bytes[]; 0 when absent. For re-emission.
  uint8_t prefix_count = 0;  ///< legacy prefixes before REX/VEX
  uint8_t opcode_at = 0, modrm_at = 0, sib_at = 0, displacement_at = 0, displacement_size = 0, immediate_at = 0,
          immediate_size = 0, immediate2_size = 0;

  /// The operands that assembly text shows, in Intel order. Hidden ones (PUSH's stack, a string's [rSI], MUL's rDX) are
  /// only in gpr_read, gpr_written and, the source or only one of them, in segment, base and index above.
  uint8_t operand_count = 0;
  Operand operand[5];

  // Arithmetic flags as RFLAGS bits (CF PF AF ZF SF OF; DF and others are not listed here).
  uint16_t flags_read = 0, flags_written = 0, flags_undefined = 0;  ///< written includes undefined
  uint16_t gpr_read = 0, gpr_written = 0;  ///< masks by Gpr number, implicit and address registers included

  // EVEX (SDM 2A 2.7). Its other fields (zeroing, rounding, broadcast) are only in bytes[]; what a broadcast reads is
  // the memory operand's size.
  uint8_t opmask = 0;          ///< the writemask, k1 to k7; 0: none
  uint8_t opmask_bits = 0;     ///< with a memory operand: how many low bits of a writemask count
  uint8_t memory_element = 0;  ///< bytes of an element of the memory operand; mask bit i selects element i, modulo
                               ///< their number where it is broadcast

  uint8_t bytes[15] = {};

  bool operator==(const Instruction&) const = default;
  bool has(InsnAttribute attribute) const { return (attributes & attribute) != 0; }
  bool has_memory() const { return memory_operand() != nullptr; }
  const Operand* memory_operand() const {
    for (unsigned i = 0; i < operand_count; ++i)
      if (operand[i].kind == OperandKind::kMemory) return &operand[i];
    return nullptr;
  }
  ZydisMnemonic zydis_mnemonic() const { return static_cast<ZydisMnemonic>(mnemonic); }
};

static_assert(std::is_trivially_copyable_v<Instruction>);

}  // namespace nacre::x86
