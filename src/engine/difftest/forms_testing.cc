// Finds every instruction form by decoding all opcodes with all relevant prefixes and ModRM bytes.

#include <Zydis/Zydis.h>

#include <algorithm>
#include <cstring>
#include <map>

#include "engine/difftest/test_case.h"
#include "x86/decoder.h"

namespace nacre::engine::difftest {
namespace {

using x86::CodeSize;
using x86::Encoding;
using x86::Instruction;
using x86::OperandKind;
using x86::RegisterClass;

/// Opcodes whose low three bits are a register.
bool RegisterInOpcode(const Instruction& insn) {
  if (insn.encoding != Encoding::kLegacy || insn.has(x86::kInsnModrm)) return false;
  if (insn.map == 0)
    return (insn.opcode >= 0x40 && insn.opcode < 0x60) || (insn.opcode & 0xf8) == 0x90 || (insn.opcode & 0xf0) == 0xb0;
  return insn.map == 1 && (insn.opcode & 0xf8) == 0xc8;
}

const char* OperandText(const x86::Operand& operand) {
  switch (operand.kind) {
    case OperandKind::kMemory:
      return "m";
    case OperandKind::kImmediate:
      return "i";
    case OperandKind::kRelative:
      return "rel";
    case OperandKind::kFarPointer:
      return "ptr";
    case OperandKind::kRegister:
      break;
    default:
      return "?";
  }
  switch (operand.register_class) {
    case RegisterClass::kGpr:
    case RegisterClass::kGprHigh:
      return "r";
    case RegisterClass::kSegment:
      return "sreg";
    case RegisterClass::kControl:
      return "cr";
    case RegisterClass::kDebug:
      return "dr";
    case RegisterClass::kSt:
      return "st";
    case RegisterClass::kMmx:
      return "mm";
    case RegisterClass::kVector:
      return "v";
    case RegisterClass::kMask:
      return "k";
    default:
      return "reg";
  }
}

class Enumerator {
 public:
  Enumerator(const x86::CpuModel& model, CodeSize size) : model_(model), size_(size) {}

  std::vector<Form> Run() {
    Legacy();
    Vex();
    Evex();
    std::vector<Form> forms;
    for (auto& [key, form] : forms_) forms.push_back(std::move(form));
    return forms;
  }

 private:
  void Try(const uint8_t* bytes, unsigned length) {
    uint8_t padded[15] = {};
    std::memcpy(padded, bytes, length);
    Instruction insn;
    if (x86::Decode(padded, size_, insn) != x86::DecodeStatus::kOk) return;
    if (insn.encoding == Encoding::kXop) return;
    Form form;
    form.insn = insn;
    form.key = FormKey(insn);
    forms_.try_emplace(form.key, std::move(form));
  }

  /// All ModRM bytes that can matter after `bytes`.
  void WithModrm(uint8_t* bytes, unsigned length, bool all_registers) {
    for (unsigned reg = 0; reg < 8; ++reg) {
      const uint8_t base = size_ == CodeSize::k16 ? 7 : 0;
      bytes[length] = static_cast<uint8_t>(reg << 3 | base);
      Try(bytes, length + 1);
      for (unsigned rm = all_registers ? 0 : 1; rm < (all_registers ? 8u : 2u); ++rm) {
        bytes[length] = static_cast<uint8_t>(0xc0 | reg << 3 | rm);
        Try(bytes, length + 1);
      }
    }
    bytes[length] = 3 << 3 | 4;  // [rax + index 1], register 3: gathers
    bytes[length + 1] = 1 << 3;
    Try(bytes, length + 2);
  }

  bool IsPrefix(unsigned opcode) const {
    switch (opcode) {
      case 0x26:
      case 0x2e:
      case 0x36:
      case 0x3e:
      case 0x64:
      case 0x65:
      case 0x66:
      case 0x67:
      case 0xf0:
      case 0xf2:
      case 0xf3:
        return true;
      default:
        return size_ == CodeSize::k64 && opcode >= 0x40 && opcode < 0x50;
    }
  }

  void Legacy() {
    static constexpr uint8_t kPrefixes[][2] = {{0, 0},       {0x66, 0},    {0xf3, 0}, {0xf2, 0},
                                               {0x66, 0xf2}, {0x66, 0xf3}, {0xf0, 0}, {0x66, 0xf0}};
    for (const auto& prefixes : kPrefixes) {
      for (unsigned rex = 0; rex < (size_ == CodeSize::k64 ? 2u : 1u); ++rex) {
        for (unsigned map = 0; map < 4; ++map) {
          for (unsigned opcode = 0; opcode < 256; ++opcode) {
            if (map == 0 && IsPrefix(opcode)) continue;
            uint8_t bytes[15] = {};
            unsigned n = 0;
            for (uint8_t prefix : prefixes)
              if (prefix != 0) bytes[n++] = prefix;
            if (rex != 0) bytes[n++] = 0x48;
            if (map != 0) bytes[n++] = 0x0f;
            if (map == 2) bytes[n++] = 0x38;
            if (map == 3) bytes[n++] = 0x3a;
            bytes[n++] = static_cast<uint8_t>(opcode);
            const bool x87 = map == 0 && opcode >= 0xd8 && opcode <= 0xdf;
            const bool group = map == 1 && (opcode == 0x01 || opcode == 0xae || opcode == 0xc7);
            WithModrm(bytes, n, x87 || group);
          }
        }
      }
    }
  }

  void Vex() {
    for (unsigned map = 1; map < 4; ++map) {
      for (unsigned opcode = 0; opcode < 256; ++opcode) {
        for (unsigned p1 = 0; p1 < 16; ++p1) {
          for (unsigned vvvv : {15u, 13u}) {
            uint8_t bytes[15] = {0xc4, static_cast<uint8_t>(0xe0 | map),
                                 static_cast<uint8_t>((p1 & 8) << 4 | vvvv << 3 | (p1 & 7)),
                                 static_cast<uint8_t>(opcode)};
            WithModrm(bytes, 4, false);
          }
        }
      }
    }
  }

  void Evex() {
    for (unsigned map : {1u, 2u, 3u, 5u, 6u}) {
      for (unsigned opcode = 0; opcode < 256; ++opcode) {
        const bool group = (map == 1 && opcode >= 0x71 && opcode <= 0x73) || (map == 2 && (opcode & 0xfe) == 0xc6);
        // Every pp, W, L'L, b, with and without a writemask, with and without a second source.
        for (unsigned bits = 0; bits < 0x100; ++bits) {
          const unsigned vvvv = (bits & 0x80) != 0 ? 13 : 15;
          const unsigned p1 = (bits & 4) << 5 | vvvv << 3 | 4 | (bits & 3);
          const unsigned p2 = (bits & 0x18) << 2 | (bits & 0x20) >> 1 | 8 | (bits >> 6 & 1);
          uint8_t bytes[15] = {0x62, static_cast<uint8_t>(0xf0 | map), static_cast<uint8_t>(p1),
                               static_cast<uint8_t>(p2), static_cast<uint8_t>(opcode)};
          for (unsigned reg = group ? 0 : 3; reg < (group ? 8u : 4u); ++reg) {
            bytes[5] = static_cast<uint8_t>(reg << 3);
            Try(bytes, 6);
            bytes[5] = static_cast<uint8_t>(0xc0 | reg << 3 | 1);
            Try(bytes, 6);
          }
          bytes[5] = 3 << 3 | 4;
          bytes[6] = 1 << 3;
          Try(bytes, 7);
        }
      }
    }
  }

  const x86::CpuModel& model_;
  CodeSize size_;
  std::map<std::string, Form> forms_;
};

/// Why a form cannot be compared with the bare host, or nullptr.
const char* Excluded(const Instruction& insn) {
  switch (insn.mnemonic) {
    case ZYDIS_MNEMONIC_CPUID:
      return "the host's own CPUID";
    case ZYDIS_MNEMONIC_RDTSC:
    case ZYDIS_MNEMONIC_RDTSCP:
    case ZYDIS_MNEMONIC_RDRAND:
    case ZYDIS_MNEMONIC_RDSEED:
    case ZYDIS_MNEMONIC_RDPID:
    case ZYDIS_MNEMONIC_RDPMC:
    case ZYDIS_MNEMONIC_XGETBV:
      return "not deterministic";
    case ZYDIS_MNEMONIC_SYSCALL:
    case ZYDIS_MNEMONIC_SYSENTER:
    case ZYDIS_MNEMONIC_INT1:
    case ZYDIS_MNEMONIC_INT3:
    case ZYDIS_MNEMONIC_INTO:
      return "enters the kernel";
    case ZYDIS_MNEMONIC_SYSEXIT:
      return "undefined in long mode for AMD";
    case ZYDIS_MNEMONIC_SGDT:
    case ZYDIS_MNEMONIC_SIDT:
    case ZYDIS_MNEMONIC_SLDT:
    case ZYDIS_MNEMONIC_STR:
    case ZYDIS_MNEMONIC_SMSW:
      return "emulated by Linux under UMIP";
    case ZYDIS_MNEMONIC_LFS:
    case ZYDIS_MNEMONIC_LGS:
      return "FS holds the host's thread, GS the test's base";
    case ZYDIS_MNEMONIC_VMCALL:
    case ZYDIS_MNEMONIC_VMMCALL:
      return "calls the hypervisor";
    case ZYDIS_MNEMONIC_RDFSBASE:
    case ZYDIS_MNEMONIC_WRFSBASE:
      return "FS holds the host's thread";
    case ZYDIS_MNEMONIC_XSAVEOPT:
    case ZYDIS_MNEMONIC_XSAVEOPT64:
      return "writes what the CPU tracked as modified";
    default:
      break;
  }
  if (insn.isa_set == ZYDIS_ISA_SET_PREFETCH_NOP && !insn.has_memory()) return "a NOP for Intel, undefined for AMD";
  const bool to_segment = insn.operand_count > 0 && insn.operand[0].register_class == RegisterClass::kSegment &&
                          (insn.mnemonic == ZYDIS_MNEMONIC_MOV || insn.mnemonic == ZYDIS_MNEMONIC_POP);
  if (to_segment && insn.operand[0].index >= x86::kFs) return "FS holds the host's thread, GS the test's base";
  const bool far_pointer = insn.branch == x86::BranchKind::kFar || insn.mnemonic == ZYDIS_MNEMONIC_LSS;
  if (far_pointer && insn.has_memory() && insn.operand_size == 8) return "m16:64 is Intel's only";
  if (insn.branch == x86::BranchKind::kFar && insn.operand_size == 2 && insn.mnemonic != ZYDIS_MNEMONIC_INT)
    return "a 16-bit target lies outside the code pages";
  const bool near_branch = insn.branch != x86::BranchKind::kNone && insn.branch != x86::BranchKind::kFar;
  if (near_branch && insn.code_size == CodeSize::k64 && insn.has(x86::kInsnOperandSizePrefix))
    return "66 before a near branch: Intel and AMD differ";
  if (near_branch && insn.code_size == CodeSize::k32 && insn.operand_size == 2)
    return "a 16-bit target lies outside the code pages";
  if (insn.address_size == 2 && (insn.has_memory() || insn.base < 16)) return "16-bit addresses reach no test data";
  return nullptr;
}

}  // namespace

std::string FormKey(const Instruction& insn) {
  const unsigned opcode = RegisterInOpcode(insn) ? insn.opcode & 0xf8 : insn.opcode;
  std::string key = fmt::format("{}", x86::MnemonicName(insn.mnemonic));
  if (insn.has(x86::kInsnLock)) key += " LOCK";
  if (insn.has(x86::kInsnRep)) key += " REP";
  if (insn.has(x86::kInsnRepne)) key += " REPNE";
  for (unsigned i = 0; i < insn.operand_count; ++i) {
    const x86::Operand& operand = insn.operand[i];
    key += fmt::format("{}{}{}", i == 0 ? " " : ",", OperandText(operand), operand.size * 8);
    if (operand.register_class == RegisterClass::kSegment) key += fmt::format("#{}", operand.index);
  }
  static constexpr const char* kMaps[] = {"", "0F", "0F38", "0F3A", "?", "MAP5", "MAP6"};
  static constexpr const char* kEncodings[] = {"", "VEX ", "EVEX ", "", "XOP "};
  const bool known_map = insn.map < std::size(kMaps);
  key += fmt::format(" [{}{}{:02X} o{} l{}", kEncodings[static_cast<unsigned>(insn.encoding)],
                     known_map ? kMaps[insn.map] : "?", opcode, insn.operand_size * 8, insn.vector_length * 8);
  // Rounding, SAE or broadcast.
  if (insn.encoding == Encoding::kEvex && (insn.bytes[insn.prefix_count + 3] & 0x10)) key += " b";
  if (insn.address_size == 2) key += " a16";
  return key + "]";
}

std::vector<Form> EnumerateForms(const x86::CpuModel& model, CodeSize size) {
  std::vector<Form> forms = Enumerator(model, size).Run();
  for (Form& form : forms) {
    form.name = form.key;
    Instruction adapted = form.insn;
    if (!model.Adapt(adapted))
      form.reason = "not in the CPU model";
    else
      form.reason = Excluded(form.insn);
  }
  return forms;
}

}  // namespace nacre::engine::difftest
