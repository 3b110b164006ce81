#include "x86/decoder.h"

#include <Zydis/Zydis.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <string>

#include "base/bits.h"
#include "x86/cpu_state.h"
#include "x86/fast_decoder.h"

namespace nacre::x86 {
namespace {

constexpr size_t kMaxLength = 15;

/// One decoder per code size. The extensions that no model has are off, so that their bytes are the NOPs which they
/// are on CPUs without them (SDM 2B "NOP": 0F 0D, 0F 18-1F). LZCNT and TZCNT stay on: see CpuModel::Adapt.
struct Decoders {
  ZydisDecoder of[3];

  Decoders() {
    constexpr ZydisMachineMode kMode[3] = {ZYDIS_MACHINE_MODE_LEGACY_16, ZYDIS_MACHINE_MODE_LEGACY_32,
                                           ZYDIS_MACHINE_MODE_LONG_64};
    constexpr ZydisStackWidth kStack[3] = {ZYDIS_STACK_WIDTH_16, ZYDIS_STACK_WIDTH_32, ZYDIS_STACK_WIDTH_64};
    for (int i = 0; i < 3; ++i) {
      ZydisDecoderInit(&of[i], kMode[i], kStack[i]);
      for (ZydisDecoderMode mode :
           {ZYDIS_DECODER_MODE_MPX, ZYDIS_DECODER_MODE_CET, ZYDIS_DECODER_MODE_CLDEMOTE, ZYDIS_DECODER_MODE_KNC,
            ZYDIS_DECODER_MODE_AMD_BRANCHES, ZYDIS_DECODER_MODE_WBNOINVD})
        ZydisDecoderEnableMode(&of[i], mode, ZYAN_FALSE);
    }
  }
};

const ZydisDecoder& DecoderFor(CodeSize size) {
  static const Decoders decoders;
  return decoders.of[static_cast<unsigned>(size)];
}

bool Reads(const ZydisDecodedOperand& operand) { return (operand.actions & ZYDIS_OPERAND_ACTION_MASK_READ) != 0; }
bool Writes(const ZydisDecodedOperand& operand) { return (operand.actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) != 0; }

struct Register {
  RegisterClass register_class = RegisterClass::kOther;
  uint8_t index = 0;
  uint8_t size = 0;
};

Register ToRegister(ZydisRegister reg) {
  const auto id = static_cast<uint8_t>(ZydisRegisterGetId(reg));
  switch (ZydisRegisterGetClass(reg)) {
    case ZYDIS_REGCLASS_GPR8: {
      // Zydis numbers AL CL DL BL, AH CH DH BH, SPL BPL SIL DIL, R8B...
      const int n = reg - ZYDIS_REGISTER_AL;
      if (n >= 4 && n < 8) return {RegisterClass::kGprHigh, static_cast<uint8_t>(n - 4), 1};
      return {RegisterClass::kGpr, static_cast<uint8_t>(n < 4 ? n : n - 4), 1};
    }
    case ZYDIS_REGCLASS_GPR16:
      return {RegisterClass::kGpr, id, 2};
    case ZYDIS_REGCLASS_GPR32:
      return {RegisterClass::kGpr, id, 4};
    case ZYDIS_REGCLASS_GPR64:
      return {RegisterClass::kGpr, id, 8};
    case ZYDIS_REGCLASS_SEGMENT:
      return {RegisterClass::kSegment, id, 2};
    case ZYDIS_REGCLASS_CONTROL:
      return {RegisterClass::kControl, id, 0};
    case ZYDIS_REGCLASS_DEBUG:
      return {RegisterClass::kDebug, id, 0};
    case ZYDIS_REGCLASS_MMX:
      return {RegisterClass::kMmx, id, 8};
    case ZYDIS_REGCLASS_XMM:
      return {RegisterClass::kVector, id, 16};
    case ZYDIS_REGCLASS_YMM:
      return {RegisterClass::kVector, id, 32};
    case ZYDIS_REGCLASS_ZMM:
      return {RegisterClass::kVector, id, 64};
    case ZYDIS_REGCLASS_MASK:
      return {RegisterClass::kMask, id, 8};
    case ZYDIS_REGCLASS_X87:
      if (reg >= ZYDIS_REGISTER_ST0 && reg <= ZYDIS_REGISTER_ST7) return {RegisterClass::kSt, id, 10};
      return {};
    default:
      return {};
  }
}

/// The GPR that an address register names, or kRipRegister or kNoRegister.
uint8_t AddressRegister(ZydisRegister reg) {
  if (reg == ZYDIS_REGISTER_NONE) return kNoRegister;
  if (reg == ZYDIS_REGISTER_RIP || reg == ZYDIS_REGISTER_EIP) return kRipRegister;
  return ToRegister(reg).index;
}

/// Builds the Instruction out of what Zydis found.
class Builder {
 public:
  Builder(const ZydisDecodedInstruction& zydis, const ZydisDecodedOperand* operands, const uint8_t* bytes,
          CodeSize code_size, Instruction& out)
      : z_(zydis), operands_(operands), bytes_(bytes), code_size_(code_size), out_(out) {}

  void Build() {
    out_ = Instruction{};
    out_.mnemonic = static_cast<uint16_t>(z_.mnemonic);
    out_.isa_set = static_cast<uint16_t>(z_.meta.isa_set);
    out_.length = z_.length;
    out_.code_size = code_size_;
    out_.operand_size = static_cast<uint8_t>(z_.operand_width / 8);
    out_.address_size = static_cast<uint8_t>(z_.address_width / 8);
    out_.branch = Branch();
    std::memcpy(out_.bytes, bytes_, z_.length);
    Layout();
    Prefixes();
    for (unsigned i = 0; i < z_.operand_count; ++i) AddOperand(operands_[i]);
    Immediates();
    ImplicitRegisters();
    Flags();
    Kinds();
  }

 private:
  bool Is(ZydisInstructionAttributes attribute) const { return (z_.attributes & attribute) != 0; }
  bool IsString() const {
    return z_.meta.category == ZYDIS_CATEGORY_STRINGOP || z_.meta.category == ZYDIS_CATEGORY_IOSTRINGOP;
  }

  /// Where modrm, sib, displacement, immediates and the opcode stand in the bytes.
  void Layout() {
    switch (z_.encoding) {
      case ZYDIS_INSTRUCTION_ENCODING_VEX:
        out_.encoding = Encoding::kVex;
        break;
      case ZYDIS_INSTRUCTION_ENCODING_EVEX:
        out_.encoding = Encoding::kEvex;
        break;
      case ZYDIS_INSTRUCTION_ENCODING_XOP:
        out_.encoding = Encoding::kXop;
        break;
      case ZYDIS_INSTRUCTION_ENCODING_3DNOW:
        out_.encoding = Encoding::k3dNow;
        break;
      default:
        out_.encoding = Encoding::kLegacy;
        break;
    }
    switch (z_.opcode_map) {
      case ZYDIS_OPCODE_MAP_0F:
      case ZYDIS_OPCODE_MAP_0F0F:
        out_.map = 1;
        break;
      case ZYDIS_OPCODE_MAP_0F38:
        out_.map = 2;
        break;
      case ZYDIS_OPCODE_MAP_0F3A:
        out_.map = 3;
        break;
      default:
        out_.map = static_cast<uint8_t>(z_.opcode_map);
        break;
    }
    out_.opcode = z_.opcode;
    const bool rex = Is(ZYDIS_ATTRIB_HAS_REX);
    switch (out_.encoding) {
      case Encoding::kVex:
        out_.prefix_count = z_.raw.vex.offset;
        out_.opcode_at = static_cast<uint8_t>(z_.raw.vex.offset + z_.raw.vex.size);
        break;
      case Encoding::kEvex:
        out_.prefix_count = z_.raw.evex.offset;
        out_.opcode_at = static_cast<uint8_t>(z_.raw.evex.offset + 4);
        break;
      case Encoding::kXop:
        out_.prefix_count = z_.raw.xop.offset;
        out_.opcode_at = static_cast<uint8_t>(z_.raw.xop.offset + 3);
        break;
      case Encoding::k3dNow:
        out_.prefix_count = static_cast<uint8_t>(z_.raw.prefix_count - (rex ? 1 : 0));
        out_.opcode_at = static_cast<uint8_t>(z_.length - 1);
        break;
      case Encoding::kLegacy:
        out_.prefix_count = static_cast<uint8_t>(z_.raw.prefix_count - (rex ? 1 : 0));
        out_.opcode_at = static_cast<uint8_t>(z_.raw.prefix_count + (out_.map == 0 ? 0 : out_.map == 1 ? 1 : 2));
        break;
    }
    if (rex) out_.rex = bytes_[z_.raw.rex.offset];
    if (Is(ZYDIS_ATTRIB_HAS_MODRM)) {
      out_.attributes |= kInsnModrm;
      out_.modrm_at = z_.raw.modrm.offset;
      out_.modrm = bytes_[z_.raw.modrm.offset];
    }
    if (Is(ZYDIS_ATTRIB_HAS_SIB)) {
      out_.attributes |= kInsnSib;
      out_.sib_at = z_.raw.sib.offset;
      out_.sib = bytes_[z_.raw.sib.offset];
    }
    if (z_.raw.disp.size != 0) {
      out_.displacement_at = z_.raw.disp.offset;
      out_.displacement_size = static_cast<uint8_t>(z_.raw.disp.size / 8);
    }
    if (z_.raw.imm[0].size != 0) {
      out_.immediate_at = z_.raw.imm[0].offset;
      out_.immediate_size = static_cast<uint8_t>(z_.raw.imm[0].size / 8);
    }
    out_.immediate2_size = static_cast<uint8_t>(z_.raw.imm[1].size / 8);
  }

  void Prefixes() {
    for (unsigned i = 0; i < out_.prefix_count; ++i) {
      switch (bytes_[i]) {
        case 0x66:
          out_.attributes |= kInsnOperandSizePrefix;
          break;
        case 0x67:
          out_.attributes |= kInsnAddressSizePrefix;
          break;
        case 0x2e:
        case 0x36:
        case 0x3e:
        case 0x26:
        case 0x64:
        case 0x65:
          out_.attributes |= kInsnSegmentPrefix;
          break;
        default:
          break;
      }
    }
    if (Is(ZYDIS_ATTRIB_HAS_LOCK)) out_.attributes |= kInsnLock;
    const bool compares = z_.mnemonic == ZYDIS_MNEMONIC_CMPSB || z_.mnemonic == ZYDIS_MNEMONIC_CMPSW ||
                          z_.mnemonic == ZYDIS_MNEMONIC_CMPSD || z_.mnemonic == ZYDIS_MNEMONIC_CMPSQ ||
                          z_.mnemonic == ZYDIS_MNEMONIC_SCASB || z_.mnemonic == ZYDIS_MNEMONIC_SCASW ||
                          z_.mnemonic == ZYDIS_MNEMONIC_SCASD || z_.mnemonic == ZYDIS_MNEMONIC_SCASQ;
    if (!IsString()) return;
    if (Is(ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE)) out_.attributes |= kInsnRep;
    // F2 repeats the strings that do not compare just as F3 does.
    if (Is(ZYDIS_ATTRIB_HAS_REPNE)) out_.attributes |= compares ? kInsnRepne : kInsnRep;
  }

  void NoteRegister(const Register& reg, bool read, bool written) {
    if (reg.register_class != RegisterClass::kGpr && reg.register_class != RegisterClass::kGprHigh) return;
    const auto bit = static_cast<uint16_t>(1u << reg.index);
    if (read || (written && reg.size < 4)) out_.gpr_read |= bit;
    if (written) out_.gpr_written |= bit;
  }

  void AddOperand(const ZydisDecodedOperand& source) {
    const bool visible = source.visibility != ZYDIS_OPERAND_VISIBILITY_HIDDEN;
    Operand operand;
    operand.read = Reads(source);
    operand.written = Writes(source);
    switch (source.type) {
      case ZYDIS_OPERAND_TYPE_REGISTER: {
        const Register reg = ToRegister(source.reg.value);
        operand.kind = OperandKind::kRegister;
        operand.place = PlaceOf(source.encoding);
        operand.register_class = reg.register_class;
        operand.index = reg.index;
        operand.size = reg.size;
        if (reg.size == 0) operand.size = static_cast<uint8_t>(std::min(source.size / 8, 255));
        // A conditional write keeps what was there.
        if (source.actions & ZYDIS_OPERAND_ACTION_CONDWRITE) operand.read = true;
        NoteRegister(reg, operand.read, operand.written);
        NoteVectorUse(source.reg.value, reg);
        break;
      }
      case ZYDIS_OPERAND_TYPE_MEMORY:
        operand.kind = OperandKind::kMemory;
        operand.size = MemorySize(source);
        AddMemory(source, visible);
        break;
      case ZYDIS_OPERAND_TYPE_IMMEDIATE:
        operand.kind = source.imm.is_relative ? OperandKind::kRelative : OperandKind::kImmediate;
        operand.size = static_cast<uint8_t>(source.size / 8);
        operand.read = true;
        if (immediates_++ == 0)
          out_.immediate = source.imm.value.u;
        else
          out_.immediate2 = static_cast<uint16_t>(source.imm.value.u);
        break;
      case ZYDIS_OPERAND_TYPE_POINTER:
        operand.kind = OperandKind::kFarPointer;
        operand.size = static_cast<uint8_t>(source.size / 8);
        operand.read = true;
        out_.immediate = source.ptr.offset;
        out_.immediate2 = source.ptr.segment;
        break;
      default:
        return;
    }
    if (visible && out_.operand_count < 5) out_.operand[out_.operand_count++] = operand;
  }

  static OperandPlace PlaceOf(ZydisOperandEncoding encoding) {
    switch (encoding) {
      case ZYDIS_OPERAND_ENCODING_MODRM_REG:
        return OperandPlace::kModrmReg;
      case ZYDIS_OPERAND_ENCODING_MODRM_RM:
        return OperandPlace::kModrmRm;
      case ZYDIS_OPERAND_ENCODING_OPCODE:
        return OperandPlace::kOpcode;
      case ZYDIS_OPERAND_ENCODING_NDSNDD:
        return OperandPlace::kVexVvvv;
      case ZYDIS_OPERAND_ENCODING_IS4:
        return OperandPlace::kIs4;
      default:
        return OperandPlace::kNone;
    }
  }

  static uint8_t MemorySize(const ZydisDecodedOperand& source) {
    const unsigned size = source.size / 8;
    return source.mem.type == ZYDIS_MEMOP_TYPE_AGEN || size > 255 ? 0 : static_cast<uint8_t>(size);
  }

  void AddMemory(const ZydisDecodedOperand& source, bool visible) {
    const bool vsib = source.mem.type == ZYDIS_MEMOP_TYPE_VSIB;
    // Mod 0 with a SIB base of 5 is a displacement and no register, whatever REX.B (SDM 2A table 2-5, 2.2.1.2). Zydis
    // 4.0 says rBP or r13 with a 67 prefix.
    const bool no_base = visible && out_.has(kInsnSib) && (out_.modrm >> 6) == 0 && (out_.sib & 7) == 5;
    const uint8_t base = no_base ? kNoRegister : AddressRegister(source.mem.base);
    const uint8_t index = AddressRegister(source.mem.index);
    if (base < 16) out_.gpr_read |= static_cast<uint16_t>(1u << base);
    if (index < 16 && !vsib) out_.gpr_read |= static_cast<uint16_t>(1u << index);
    if (!visible && IsString() && base < 16) out_.gpr_written |= static_cast<uint16_t>(1u << base);
    if (vsib) out_.attributes |= kInsnVsib | kInsnVector;

    // A visible operand decides; without one, rSI before rDI (string sources take the override, destinations never do).
    const unsigned rank = visible ? 3 : base == kRsi ? 2 : 1;
    if (rank <= memory_rank_) return;
    memory_rank_ = rank;
    out_.base = base;
    out_.index = index;
    out_.scale = index == kNoRegister ? 0 : source.mem.scale;
    out_.displacement = no_base ? z_.raw.disp.value : visible ? source.mem.disp.value : 0;
    out_.segment = ResolveSegment(base, visible);
  }

  /// SDM 1 table 3-5: SS for stack and rBP/rSP bases, ES for string destinations, else DS; then the override, of which
  /// 64-bit mode knows FS and GS only (SDM 1 3.3.7.1).
  uint8_t ResolveSegment(uint8_t base, bool visible) const {
    if (!visible && IsString() && base == kRdi) return kEs;
    if (!visible && base == kRsp) return kSs;
    const bool long_mode = code_size_ == CodeSize::k64;
    int chosen = -1;
    for (unsigned i = 0; i < out_.prefix_count; ++i) {
      switch (bytes_[i]) {
        case 0x26:
          chosen = long_mode ? chosen : static_cast<int>(kEs);
          break;
        case 0x2e:
          chosen = long_mode ? chosen : static_cast<int>(kCs);
          break;
        case 0x36:
          chosen = long_mode ? chosen : static_cast<int>(kSs);
          break;
        case 0x3e:
          chosen = long_mode ? chosen : static_cast<int>(kDs);
          break;
        case 0x64:
          chosen = kFs;
          break;
        case 0x65:
          chosen = kGs;
          break;
        default:
          break;
      }
    }
    if (chosen >= 0) return static_cast<uint8_t>(chosen);
    return base == kRbp || base == kRsp ? kSs : kDs;
  }

  void NoteVectorUse(ZydisRegister reg, const Register& mapped) {
    switch (mapped.register_class) {
      case RegisterClass::kMmx:
      case RegisterClass::kVector:
      case RegisterClass::kMask:
        out_.attributes |= kInsnVector;
        if (mapped.register_class == RegisterClass::kVector && mapped.size > widest_) widest_ = mapped.size;
        break;
      case RegisterClass::kOther:
        if (reg == ZYDIS_REGISTER_MXCSR) out_.attributes |= kInsnVector;
        break;
      default:
        break;
    }
  }

  void Immediates() {
    // VBLENDVPS and its kin carry a register in an immediate byte, which is no operand of its own.
    if (immediates_ == 0 && z_.raw.imm[0].size != 0 && out_.immediate == 0) out_.immediate = z_.raw.imm[0].value.u;
  }

  void ImplicitRegisters() {
    switch (z_.mnemonic) {
      case ZYDIS_MNEMONIC_XLAT:
        out_.gpr_read |= 1u << kRax;
        break;
      case ZYDIS_MNEMONIC_BSF:
      case ZYDIS_MNEMONIC_BSR:
        // A zero source leaves the destination.
        out_.gpr_read |= out_.gpr_written;
        out_.operand[0].read = true;
        break;
      case ZYDIS_MNEMONIC_PUSHA:
      case ZYDIS_MNEMONIC_PUSHAD:
        out_.gpr_read |= 0xff;
        out_.gpr_written |= 1u << kRsp;
        break;
      case ZYDIS_MNEMONIC_POPA:
      case ZYDIS_MNEMONIC_POPAD:
        out_.gpr_written |= 0xff;
        out_.gpr_read |= z_.mnemonic == ZYDIS_MNEMONIC_POPA ? 0xff : 1u << kRsp;
        break;
      case ZYDIS_MNEMONIC_CMPXCHG:
        out_.gpr_read |= out_.gpr_written;
        break;
      default:
        break;
    }
    if (out_.has(kInsnRep) || out_.has(kInsnRepne)) {
      // No iteration at all leaves every register.
      out_.gpr_written |= 1u << kRcx;
      out_.gpr_read |= static_cast<uint16_t>(out_.gpr_written | 1u << kRcx);
    }
  }

  void Flags() {
    switch (z_.mnemonic) {
      case ZYDIS_MNEMONIC_VPTEST:
      case ZYDIS_MNEMONIC_VTESTPS:
      case ZYDIS_MNEMONIC_VTESTPD:
        out_.flags_written = rflags::kArithmetic;  // Zydis 4.0 knows of none
        return;
      default:
        break;
    }
    if (!z_.cpu_flags) return;
    const ZydisAccessedFlags& flags = *z_.cpu_flags;
    constexpr auto kMask = static_cast<ZydisAccessedFlagsMask>(rflags::kArithmetic);
    out_.flags_read = static_cast<uint16_t>(flags.tested & kMask);
    out_.flags_undefined = static_cast<uint16_t>(flags.undefined & kMask);
    out_.flags_written = static_cast<uint16_t>((flags.modified | flags.set_0 | flags.set_1 | flags.undefined) & kMask);
    bool conditional = out_.has(kInsnRep) || out_.has(kInsnRepne);
    if (z_.meta.category == ZYDIS_CATEGORY_SHIFT || z_.meta.category == ZYDIS_CATEGORY_ROTATE) ShiftFlags(conditional);
    if (conditional) out_.flags_read |= out_.flags_written;
  }

  /// SDM 2B "SAL/SAR/SHL/SHR", "RCL/RCR/ROL/ROR", "SHLD": a masked count of 0 leaves the flags.
  void ShiftFlags(bool& conditional) {
    switch (z_.mnemonic) {
      case ZYDIS_MNEMONIC_SHL:
      case ZYDIS_MNEMONIC_SHR:
      case ZYDIS_MNEMONIC_SAR:
      case ZYDIS_MNEMONIC_SHLD:
      case ZYDIS_MNEMONIC_SHRD:
      case ZYDIS_MNEMONIC_ROL:
      case ZYDIS_MNEMONIC_ROR:
      case ZYDIS_MNEMONIC_RCL:
      case ZYDIS_MNEMONIC_RCR:
        break;
      default:
        return;  // BMI2's, which write none
    }
    if (immediates_ == 0) {
      conditional = true;
      return;
    }
    const unsigned count = static_cast<unsigned>(out_.immediate) & (out_.operand_size == 8 ? 63 : 31);
    if (count == 0) {
      out_.flags_written = 0;
      out_.flags_undefined = 0;
    } else if (count == 1) {
      out_.flags_undefined &= static_cast<uint16_t>(~rflags::kOf);
    }
    const bool through_carry = z_.mnemonic == ZYDIS_MNEMONIC_RCL || z_.mnemonic == ZYDIS_MNEMONIC_RCR;
    if (through_carry && out_.operand_size < 4) conditional = true;
  }

  void Kinds() {
    if (z_.meta.isa_ext == ZYDIS_ISA_EXT_X87) out_.attributes |= kInsnX87;
    if (z_.mnemonic == ZYDIS_MNEMONIC_FISTTP) out_.attributes |= kInsnX87;
    if (VectorWithoutOperand()) out_.attributes |= kInsnVector;
    if (Privileged()) out_.attributes |= kInsnPrivileged;
    if (out_.encoding == Encoding::kEvex) out_.attributes |= kInsnVector;
    const bool vector = out_.has(kInsnVector);
    if (out_.encoding != Encoding::kLegacy && out_.encoding != Encoding::k3dNow)
      out_.vector_length = static_cast<uint8_t>(z_.avx.vector_length / 8);
    if (vector && out_.vector_length == 0) out_.vector_length = widest_;
    if (!vector) out_.vector_length = 0;
    if (out_.encoding == Encoding::kEvex) Writemask();
  }

  /// The writemask and what it selects in memory (SDM 2A 2.7.3, 2.8: exception types whose name ends in NF suppress no
  /// faults).
  void Writemask() {
    out_.opmask = z_.raw.evex.aaa;
    for (unsigned i = 0; i < z_.operand_count; ++i) {
      const ZydisDecodedOperand& memory = operands_[i];
      if (memory.type != ZYDIS_OPERAND_TYPE_MEMORY) continue;
      out_.memory_element = static_cast<uint8_t>(memory.element_size / 8);
      out_.opmask_bits = static_cast<uint8_t>(BroadcastCount());
      if (out_.opmask_bits == 0) out_.opmask_bits = static_cast<uint8_t>(memory.element_count);
      if (out_.opmask != 0 && SuppressesFaults()) out_.attributes |= kInsnMaskedMemory;
    }
  }

  bool SuppressesFaults() const {
    switch (z_.meta.exception_class) {
      case ZYDIS_EXCEPTION_CLASS_E1:
      case ZYDIS_EXCEPTION_CLASS_E2:
      case ZYDIS_EXCEPTION_CLASS_E3:
      case ZYDIS_EXCEPTION_CLASS_E4:
      case ZYDIS_EXCEPTION_CLASS_E5:
      case ZYDIS_EXCEPTION_CLASS_E6:
      case ZYDIS_EXCEPTION_CLASS_E10:
      case ZYDIS_EXCEPTION_CLASS_E11:
        return true;
      default:
        return false;
    }
  }

  /// To how many elements a broadcast operand is spread; 0: it is no broadcast.
  unsigned BroadcastCount() const {
    switch (z_.avx.broadcast.mode) {
      case ZYDIS_BROADCAST_MODE_1_TO_2:
        return 2;
      case ZYDIS_BROADCAST_MODE_1_TO_4:
      case ZYDIS_BROADCAST_MODE_2_TO_4:
        return 4;
      case ZYDIS_BROADCAST_MODE_1_TO_8:
      case ZYDIS_BROADCAST_MODE_2_TO_8:
      case ZYDIS_BROADCAST_MODE_4_TO_8:
        return 8;
      case ZYDIS_BROADCAST_MODE_1_TO_16:
      case ZYDIS_BROADCAST_MODE_2_TO_16:
      case ZYDIS_BROADCAST_MODE_4_TO_16:
      case ZYDIS_BROADCAST_MODE_8_TO_16:
        return 16;
      case ZYDIS_BROADCAST_MODE_1_TO_32:
        return 32;
      case ZYDIS_BROADCAST_MODE_1_TO_64:
        return 64;
      default:
        return 0;
    }
  }

  /// Vector instructions (MXCSR is state of theirs) whose operands do not show it.
  bool VectorWithoutOperand() const {
    switch (z_.mnemonic) {
      case ZYDIS_MNEMONIC_VZEROUPPER:
      case ZYDIS_MNEMONIC_VZEROALL:
      case ZYDIS_MNEMONIC_EMMS:
      case ZYDIS_MNEMONIC_LDMXCSR:
      case ZYDIS_MNEMONIC_STMXCSR:
      case ZYDIS_MNEMONIC_VLDMXCSR:
      case ZYDIS_MNEMONIC_VSTMXCSR:
      case ZYDIS_MNEMONIC_CVTSD2SI:
      case ZYDIS_MNEMONIC_CVTTSD2SI:
      case ZYDIS_MNEMONIC_CVTSS2SI:
      case ZYDIS_MNEMONIC_CVTTSS2SI:
      case ZYDIS_MNEMONIC_VCVTSD2SI:
      case ZYDIS_MNEMONIC_VCVTTSD2SI:
      case ZYDIS_MNEMONIC_VCVTSS2SI:
      case ZYDIS_MNEMONIC_VCVTTSS2SI:
        return true;
      default:
        return false;
    }
  }

  /// SDM 3A 5.9 and the instructions' pages. STAC and CLAC are not among them: they raise #UD, not #GP.
  bool Privileged() const {
    switch (z_.mnemonic) {
      case ZYDIS_MNEMONIC_CLTS:
      case ZYDIS_MNEMONIC_HLT:
      case ZYDIS_MNEMONIC_INVD:
      case ZYDIS_MNEMONIC_WBINVD:
      case ZYDIS_MNEMONIC_INVLPG:
      case ZYDIS_MNEMONIC_INVPCID:
      case ZYDIS_MNEMONIC_LGDT:
      case ZYDIS_MNEMONIC_LIDT:
      case ZYDIS_MNEMONIC_LLDT:
      case ZYDIS_MNEMONIC_LTR:
      case ZYDIS_MNEMONIC_LMSW:
      case ZYDIS_MNEMONIC_RDMSR:
      case ZYDIS_MNEMONIC_WRMSR:
      case ZYDIS_MNEMONIC_SWAPGS:
      case ZYDIS_MNEMONIC_SYSRET:
      case ZYDIS_MNEMONIC_SYSEXIT:
      case ZYDIS_MNEMONIC_XSETBV:
      case ZYDIS_MNEMONIC_XSAVES:
      case ZYDIS_MNEMONIC_XSAVES64:
      case ZYDIS_MNEMONIC_XRSTORS:
      case ZYDIS_MNEMONIC_XRSTORS64:
        return true;
      case ZYDIS_MNEMONIC_MOV:
        for (unsigned i = 0; i < out_.operand_count; ++i)
          if (out_.operand[i].register_class == RegisterClass::kControl ||
              out_.operand[i].register_class == RegisterClass::kDebug)
            return true;
        return false;
      default:
        return false;
    }
  }

  BranchKind Branch() const {
    if (z_.meta.branch_type == ZYDIS_BRANCH_TYPE_FAR) return BranchKind::kFar;
    switch (z_.meta.category) {
      case ZYDIS_CATEGORY_COND_BR:
        return z_.mnemonic == ZYDIS_MNEMONIC_XBEGIN || z_.mnemonic == ZYDIS_MNEMONIC_XABORT ? BranchKind::kNone
                                                                                            : BranchKind::kConditional;
      case ZYDIS_CATEGORY_UNCOND_BR:
        return Is(ZYDIS_ATTRIB_IS_RELATIVE) && operands_[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE
                   ? BranchKind::kJump
                   : BranchKind::kIndirectJump;
      case ZYDIS_CATEGORY_CALL:
        return operands_[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE ? BranchKind::kCall : BranchKind::kIndirectCall;
      case ZYDIS_CATEGORY_RET:
        return FarReturn() ? BranchKind::kFar : BranchKind::kReturn;
      case ZYDIS_CATEGORY_SYSCALL:
      case ZYDIS_CATEGORY_SYSRET:
      case ZYDIS_CATEGORY_INTERRUPT:
        return BranchKind::kFar;
      default:
        return FarReturn() ? BranchKind::kFar : BranchKind::kNone;
    }
  }
  bool FarReturn() const {
    switch (z_.mnemonic) {
      case ZYDIS_MNEMONIC_IRET:
      case ZYDIS_MNEMONIC_IRETD:
      case ZYDIS_MNEMONIC_IRETQ:
      case ZYDIS_MNEMONIC_SYSENTER:
      case ZYDIS_MNEMONIC_SYSEXIT:
      case ZYDIS_MNEMONIC_SYSCALL:
      case ZYDIS_MNEMONIC_SYSRET:
        return true;
      default:
        return false;
    }
  }

  const ZydisDecodedInstruction& z_;
  const ZydisDecodedOperand* operands_;
  const uint8_t* bytes_;
  const CodeSize code_size_;
  Instruction& out_;
  unsigned immediates_ = 0;
  unsigned memory_rank_ = 0;
  uint8_t widest_ = 0;
};

}  // namespace

DecodeStatus Decode(std::span<const uint8_t> bytes, CodeSize code_size, Instruction& out) {
  if (FastDecode(bytes, code_size, out)) return DecodeStatus::kOk;
  return DecodeByZydis(bytes, code_size, out);
}

DecodeStatus DecodeByZydis(std::span<const uint8_t> bytes, CodeSize code_size, Instruction& out) {
  const size_t size = std::min(bytes.size(), kMaxLength);
  if (size == 0) return DecodeStatus::kTruncated;
  uint8_t copy[kMaxLength];  // the bytes may be those in `out`
  std::memcpy(copy, bytes.data(), size);
  ZydisDecodedInstruction zydis;
  ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT];
  const ZydisDecoder& decoder = DecoderFor(code_size);
  const ZyanStatus status = ZydisDecoderDecodeFull(&decoder, copy, size, &zydis, operands);
  if (!ZYAN_SUCCESS(status)) {
    if (status == ZYDIS_STATUS_NO_MORE_DATA)
      return size < kMaxLength ? DecodeStatus::kTruncated : DecodeStatus::kTooLong;
    return status == ZYDIS_STATUS_INSTRUCTION_TOO_LONG ? DecodeStatus::kTooLong : DecodeStatus::kInvalid;
  }
  // Knights Corner's encoding, which no x86-64 CPU has.
  if (zydis.encoding == ZYDIS_INSTRUCTION_ENCODING_MVEX) return DecodeStatus::kInvalid;
  if (zydis.mnemonic == ZYDIS_MNEMONIC_PAUSE && (zydis.attributes & ZYDIS_ATTRIB_HAS_REX) && zydis.raw.rex.B) {
    // With REX.B, 90 is XCHG with r8, and F3 means nothing.
    uint8_t without[kMaxLength];
    for (size_t i = 0; i < size; ++i) without[i] = copy[i] == 0xf3 && i < zydis.raw.rex.offset ? 0x2e : copy[i];
    ZydisDecoderDecodeFull(&decoder, without, size, &zydis, operands);
  }
  Builder(zydis, operands, copy, code_size, out).Build();
  return DecodeStatus::kOk;
}

const char* MnemonicName(uint16_t mnemonic) {
  static const auto names = [] {
    std::array<std::string, ZYDIS_MNEMONIC_MAX_VALUE + 1> upper;
    for (size_t i = 0; i < upper.size(); ++i) {
      upper[i] = ZydisMnemonicGetString(static_cast<ZydisMnemonic>(i));
      for (char& c : upper[i])
        if (c >= 'a' && c <= 'z') c = static_cast<char>(c - 'a' + 'A');
    }
    return upper;
  }();
  return mnemonic < names.size() ? names[mnemonic].c_str() : "INVALID";
}

void Format(const Instruction& instruction, uint64_t address, char (&text)[128]) {
  static const auto formatter = [] {
    ZydisFormatter made;
    ZydisFormatterInit(&made, ZYDIS_FORMATTER_STYLE_INTEL);
    return made;
  }();
  ZydisDecodedInstruction zydis;
  ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT];
  text[0] = 0;
  if (!ZYAN_SUCCESS(ZydisDecoderDecodeFull(&DecoderFor(instruction.code_size), instruction.bytes, instruction.length,
                                           &zydis, operands)) ||
      !ZYAN_SUCCESS(ZydisFormatterFormatInstruction(&formatter, &zydis, operands, zydis.operand_count_visible, text,
                                                    sizeof text, address, nullptr))) {
    std::strncpy(text, "(bad)", sizeof text);
  }
}

}  // namespace nacre::x86
