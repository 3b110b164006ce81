// Which differences count. What the manual leaves undefined, or what CPUs are free to do, is masked here and nowhere
// else.

#include <Zydis/Zydis.h>

#include <cstring>

#include "base/bits.h"
#include "engine/difftest/generator.h"
#include "engine/difftest/test_case.h"
#include "x86/decoder.h"

namespace nacre::engine::difftest {

namespace rf = x86::rflags;
using x86::Instruction;

/// SDM 2's "Flags Affected" sections.
uint64_t UndefinedFlags(const Instruction& insn, const x86::CpuState& before) {
  constexpr uint64_t kSfZfAfPf = rf::kSf | rf::kZf | rf::kAf | rf::kPf;
  const unsigned bits = insn.operand_size * 8;
  switch (insn.mnemonic) {
    case ZYDIS_MNEMONIC_AND:
    case ZYDIS_MNEMONIC_OR:
    case ZYDIS_MNEMONIC_XOR:
    case ZYDIS_MNEMONIC_TEST:
      return rf::kAf;
    case ZYDIS_MNEMONIC_MUL:
    case ZYDIS_MNEMONIC_IMUL:
      return kSfZfAfPf;
    case ZYDIS_MNEMONIC_DIV:
    case ZYDIS_MNEMONIC_IDIV:
      return rf::kArithmetic;
    case ZYDIS_MNEMONIC_BT:
    case ZYDIS_MNEMONIC_BTS:
    case ZYDIS_MNEMONIC_BTR:
    case ZYDIS_MNEMONIC_BTC:
      return rf::kOf | rf::kSf | rf::kAf | rf::kPf;
    case ZYDIS_MNEMONIC_BSF:
    case ZYDIS_MNEMONIC_BSR:
      return rf::kArithmetic & ~rf::kZf;
    case ZYDIS_MNEMONIC_LZCNT:
    case ZYDIS_MNEMONIC_TZCNT:
      return rf::kOf | rf::kSf | rf::kAf | rf::kPf;
    case ZYDIS_MNEMONIC_ANDN:
    case ZYDIS_MNEMONIC_BLSI:
    case ZYDIS_MNEMONIC_BLSR:
    case ZYDIS_MNEMONIC_BZHI:
    case ZYDIS_MNEMONIC_BLSMSK:
      return rf::kAf | rf::kPf;
    case ZYDIS_MNEMONIC_BEXTR:
      return rf::kSf | rf::kAf | rf::kPf;
    case ZYDIS_MNEMONIC_AAA:
    case ZYDIS_MNEMONIC_AAS:
      return rf::kOf | rf::kSf | rf::kZf | rf::kPf;
    case ZYDIS_MNEMONIC_AAM:
    case ZYDIS_MNEMONIC_AAD:
      return rf::kOf | rf::kAf | rf::kCf;
    case ZYDIS_MNEMONIC_DAA:
    case ZYDIS_MNEMONIC_DAS:
      return rf::kOf;
    default:
      break;
  }
  // Shifts, by their count.
  unsigned count = 0;
  switch (insn.mnemonic) {
    case ZYDIS_MNEMONIC_SHL:
    case ZYDIS_MNEMONIC_SHR:
    case ZYDIS_MNEMONIC_SAR:
    case ZYDIS_MNEMONIC_ROL:
    case ZYDIS_MNEMONIC_ROR:
    case ZYDIS_MNEMONIC_RCL:
    case ZYDIS_MNEMONIC_RCR:
    case ZYDIS_MNEMONIC_SHLD:
    case ZYDIS_MNEMONIC_SHRD: {
      const x86::Operand& last = insn.operand[insn.operand_count - 1];
      const uint64_t raw = last.kind == x86::OperandKind::kImmediate ? insn.immediate : before.gpr[x86::kRcx];
      count = static_cast<unsigned>(raw) & (bits == 64 ? 63 : 31);
      break;
    }
    default:
      return 0;
  }
  if (count == 0) return 0;
  uint64_t undefined = count == 1 ? 0 : rf::kOf;
  switch (insn.mnemonic) {
    case ZYDIS_MNEMONIC_SHL:
    case ZYDIS_MNEMONIC_SHR:
      return undefined | rf::kAf | (count >= bits ? rf::kCf : 0);
    case ZYDIS_MNEMONIC_SAR:
      return (undefined & ~rf::kOf) | (count == 1 ? 0 : rf::kOf) | rf::kAf;
    case ZYDIS_MNEMONIC_SHLD:
    case ZYDIS_MNEMONIC_SHRD:
      return count > bits ? rf::kArithmetic : undefined | rf::kAf;
    default:
      return undefined;
  }
}

namespace {

/// Bytes of the memory operand that may differ, as [first, last) pairs relative to it.
struct Masked {
  unsigned first, last;
};

std::span<const Masked> MaskedBytes(const Instruction& insn) {
  // FOP, FIP and FDP: AMD stores them only with a pending exception, we never have them. MXCSR_MASK: AMD has bit 17.
  static constexpr Masked kFxsave[] = {{6, 24}, {28, 32}, {416, 512}};
  // The same, and which components the CPU tracked as initial.
  static constexpr Masked kXsave[] = {{6, 24}, {28, 32}, {416, 513}};
  // The upper halves are reserved; then FIP to FDS.
  static constexpr Masked kEnvironment32[] = {{2, 4}, {6, 8}, {10, 28}};
  static constexpr Masked kEnvironment16[] = {{6, 14}};
  switch (insn.mnemonic) {
    case ZYDIS_MNEMONIC_FXSAVE:
    case ZYDIS_MNEMONIC_FXSAVE64:
      return kFxsave;
    case ZYDIS_MNEMONIC_XSAVE:
    case ZYDIS_MNEMONIC_XSAVE64:
      return kXsave;
    case ZYDIS_MNEMONIC_FNSTENV:
    case ZYDIS_MNEMONIC_FNSAVE:
      if (insn.operand_size == 2) return kEnvironment16;
      return kEnvironment32;
    default:
      return {};
  }
}

/// A conversion that Intel's CPUs finish, with its exceptions and MXCSR's flags, before they look at where it stores.
bool ConvertsBeforeStoring(const Instruction& insn) {
  return insn.mnemonic == ZYDIS_MNEMONIC_VCVTPS2PH && insn.has_memory();
}

bool IsVexMaskedStore(const Instruction& insn) {
  switch (insn.mnemonic) {
    case ZYDIS_MNEMONIC_VMASKMOVPS:
    case ZYDIS_MNEMONIC_VMASKMOVPD:
    case ZYDIS_MNEMONIC_VPMASKMOVD:
    case ZYDIS_MNEMONIC_VPMASKMOVQ:
      return insn.operand[0].kind == x86::OperandKind::kMemory;
    default:
      return false;
  }
}

/// Cases in which Intel's and AMD's CPUs choose another of several exceptions: either is right (SDM 3A 6.9).
bool EitherExceptionIsRight(const Instruction& insn, const Outcome& expected, const Outcome& got) {
  // An x87 store that an unmasked exception keeps from storing: Intel's CPUs do not access memory then.
  constexpr uint16_t kExceptionSummary = 0x80;
  if (insn.has(x86::kInsnX87) && expected.vector < 0 &&
      (got.vector == x86::kPageFault || got.vector == x86::kGeneralProtection || got.vector == x86::kStackFault))
    return (const_cast<x86::XsaveArea&>(expected.xsave).fsw() & kExceptionSummary) != 0;
  // A segment register on the stack: the access is of two bytes (Intel's newer CPUs) or of the operand size (SDM 2B
  // "PUSH"), which decides what is aligned.
  const bool stack = insn.mnemonic == ZYDIS_MNEMONIC_PUSH || insn.mnemonic == ZYDIS_MNEMONIC_POP;
  if (got.vector == x86::kAlignmentCheck && stack && insn.operand_size > 2 &&
      insn.operand[0].register_class == x86::RegisterClass::kSegment)
    return true;
  // Of 16 bits: Intel's CPUs read 16 (SDM 2B "MOVSXD"), AMD's 32 (APM 3).
  const bool memory_fault = got.vector == x86::kAlignmentCheck || got.vector == x86::kPageFault ||
                            got.vector == x86::kGeneralProtection || got.vector == x86::kStackFault;
  if (insn.mnemonic == ZYDIS_MNEMONIC_MOVSXD && insn.operand_size == 2 && expected.vector < 0) return memory_fault;
  if (ConvertsBeforeStoring(insn) && expected.vector == x86::kSimdError) return memory_fault;
  if (got.vector != x86::kPageFault) return false;
  // The lower bound fails before the upper one, on the next page, is read.
  return insn.mnemonic == ZYDIS_MNEMONIC_BOUND && expected.vector == x86::kBoundRange;
}

class Comparison {
 public:
  Comparison(const TestCase& test, const Outcome& expected, const Outcome& got, const Tolerance& tolerance)
      : test_(test), expected_(expected), got_(got), tolerance_(tolerance) {}

  std::string Run() {
    if (EitherExceptionIsRight(test_.insn, expected_, got_)) return {};
    if (expected_.vector != got_.vector) {
      Line("exception", fmt::format("{}", Exception(expected_)), fmt::format("{}", Exception(got_)));
    } else if (expected_.vector >= 0) {
      Check("error code", expected_.error_code, got_.error_code);
      // Which byte of an element that crosses into the page, CPUs tell differently.
      const uint64_t mask = IsVexMaskedStore(test_.insn) ? ~kPageMask : ~uint64_t{0};
      Check("cr2", expected_.cr2 & mask, got_.cr2 & mask);
    }
    Check("rip", expected_.rip, got_.rip);
    Registers();
    Flags();
    Check("gs.base", expected_.gs_base, got_.gs_base);
    // An interrupt of the host: IRET to user code clears a null selector's RPL (SDM 2A "IRET").
    const auto selector = [](uint16_t value) { return value < 4 ? 0 : value; };
    Check("es", selector(expected_.es), selector(got_.es));
    Check("cs", expected_.cs, got_.cs);
    Check("ss", expected_.ss, got_.ss);
    Check("ds", selector(expected_.ds), selector(got_.ds));
    Vectors();
    Memory();
    return std::move(text_);
  }

 private:
  static std::string Exception(const Outcome& outcome) {
    return outcome.vector < 0 ? "none"
                              : fmt::format("{}({:#x}) cr2 {:#x}", outcome.vector, outcome.error_code, outcome.cr2);
  }
  void Line(std::string_view what, std::string_view expected, std::string_view got) {
    text_ += fmt::format("  {:<12} expected {} got {}\n", what, expected, got);
  }
  void Check(std::string_view what, uint64_t expected, uint64_t got) {
    if (expected != got) Line(what, fmt::format("{:#x}", expected), fmt::format("{:#x}", got));
  }
  static std::string Hex(const uint8_t* bytes, size_t size) {
    std::string text;
    for (size_t i = size; i-- > 0;) text += fmt::format("{:02x}", bytes[i]);
    return text;
  }
  void Bytes(const char* what, unsigned index, const uint8_t* expected, const uint8_t* got, size_t size) {
    if (std::memcmp(expected, got, size) == 0) return;
    Line(fmt::format(fmt::runtime(what), index), Hex(expected, size), Hex(got, size));
  }

  void Registers() {
    static constexpr const char* kNames[] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                             "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};
    const Instruction& insn = test_.insn;
    const bool long_mode = insn.code_size == x86::CodeSize::k64;
    // SHLD and SHRD of 16 bits by more than 16: an undefined result (SDM 2B).
    const bool undefined_result = (insn.mnemonic == ZYDIS_MNEMONIC_SHLD || insn.mnemonic == ZYDIS_MNEMONIC_SHRD) &&
                                  UndefinedFlags(insn, test_.state) == rf::kArithmetic;
    // With a 67 prefix and ECX 0, Intel's CPUs clear the upper halves of the registers of a repeated string, AMD's
    // leave them; so do Intel's, of some instructions and registers, where the first iteration faults.
    const bool short_string =
        (insn.has(x86::kInsnRep) || insn.has(x86::kInsnRepne)) && insn.address_size == 4 && long_mode;
    const bool none_done =
        short_string && (expected_.vector >= 0 || static_cast<uint32_t>(test_.state.gpr[x86::kRcx]) == 0);
    for (unsigned i = 0; i < (long_mode ? 16u : 8u); ++i) {
      if (undefined_result && insn.operand[0].index == i) continue;
      const bool half = none_done && (i == x86::kRcx || i == x86::kRsi || i == x86::kRdi);
      const uint64_t mask = long_mode && !half ? ~uint64_t{0} : 0xffffffff;
      Check(kNames[i], expected_.gpr[i] & mask, got_.gpr[i] & mask);
    }
  }

  void Flags() {
    uint64_t mask = rf::kArithmetic | rf::kDf | rf::kNt | rf::kAc | rf::kId;
    if (expected_.vector < 0) mask &= ~UndefinedFlags(test_.insn, test_.state);
    if (expected_.vector >= 0 && tolerance_.fault_flags) mask &= ~uint64_t{test_.insn.flags_written};
    // REPE CMPS and the like that fault in the middle: Intel restores the flags (SDM 2B "REP"), AMD does not.
    if (expected_.vector >= 0 && (test_.insn.has(x86::kInsnRep) || test_.insn.has(x86::kInsnRepne)))
      mask &= ~rf::kArithmetic;
    Check("rflags", expected_.rflags & mask, got_.rflags & mask);
  }

  void Vectors() {
    auto& want = const_cast<x86::XsaveArea&>(expected_.xsave);
    auto& have = const_cast<x86::XsaveArea&>(got_.xsave);
    const bool long_mode = test_.insn.code_size == x86::CodeSize::k64;
    if (expected_.vector < 0 || !ConvertsBeforeStoring(test_.insn)) Check("mxcsr", want.mxcsr(), have.mxcsr());
    // Whether an instruction turns to MMX mode also when it ends in an exception, no manual says; CPUs differ.
    const bool open = expected_.vector >= 0 && MixesMmx();
    if (!open) {
      Check("fcw", want.fcw(), have.fcw());
      Check("fsw", want.fsw(), have.fsw());
      Check("ftw", want.ftw(), have.ftw());
      for (unsigned i = 0; i < 8; ++i) Bytes("st{}", i, want.st(i), have.st(i), 10);
    }
    for (unsigned i = 0; i < (long_mode ? 16u : 8u); ++i) {
      Bytes("xmm{}", i, want.xmm(i), have.xmm(i), 16);
      Bytes("ymm{} high", i, want.ymm_high(i), have.ymm_high(i), 16);
      Bytes("zmm{} high", i, want.zmm_high(i), have.zmm_high(i), 32);
      Bytes("zmm{}", i + 16, want.zmm(i + 16), have.zmm(i + 16), 64);
    }
    for (unsigned i = 0; i < 8; ++i) Bytes("k{}", i, want.opmask(i), have.opmask(i), 8);
  }

  bool MixesMmx() const {
    bool mmx = false;
    for (unsigned i = 0; i < test_.insn.operand_count; ++i)
      mmx |= test_.insn.operand[i].register_class == x86::RegisterClass::kMmx;
    return mmx;
  }

  void Memory() {
    const Instruction& insn = test_.insn;
    if (std::memcmp(expected_.data, got_.data, sizeof got_.data) == 0) return;
    const uint64_t operand = insn.has_memory() ? OperandAddress(insn, test_.state) - NACRE_DIFF_DATA : ~uint64_t{0};
    const bool undefined_result = (insn.mnemonic == ZYDIS_MNEMONIC_SHLD || insn.mnemonic == ZYDIS_MNEMONIC_SHRD) &&
                                  UndefinedFlags(insn, test_.state) == rf::kArithmetic;
    unsigned lines = 0;
    for (uint64_t i = 0; i < sizeof got_.data && lines < 8; ++i) {
      if (expected_.data[i] == got_.data[i]) continue;
      bool masked = undefined_result && i >= operand && i < operand + 2;
      // FBSTP across pages may have stored a part.
      masked |= expected_.vector >= 0 && insn.has(x86::kInsnX87) && i >= operand && i < operand + 10;
      // 32-bit pushes of segment registers write two bytes (Intel's newer CPUs) or four (SDM 2B "PUSH").
      masked |= insn.mnemonic == ZYDIS_MNEMONIC_PUSH && insn.operand_size == 4 &&
                insn.operand[0].register_class == x86::RegisterClass::kSegment &&
                i - (got_.gpr[x86::kRsp] - NACRE_DIFF_DATA) - 2 < 2;
      // FLAGS on the stack: undefined ones there are what they were.
      for (const Masked& m : MaskedBytes(insn)) masked |= i >= operand + m.first && i < operand + m.last;
      if (masked) continue;
      ++lines;
      Line(fmt::format("[{:#x}]", NACRE_DIFF_DATA + i), fmt::format("{:02x}", expected_.data[i]),
           fmt::format("{:02x}", got_.data[i]));
    }
  }

  const TestCase& test_;
  const Outcome& expected_;
  const Outcome& got_;
  const Tolerance& tolerance_;
  std::string text_;
};

}  // namespace

std::string Differences(const TestCase& test, const Outcome& expected, const Outcome& got, const Tolerance& tolerance) {
  return Comparison(test, expected, got, tolerance).Run();
}

std::string Describe(const TestCase& test) {
  const Instruction& insn = test.insn;
  auto& state = const_cast<x86::CpuState&>(test.state);
  char text[128];
  x86::Format(insn, state.rip, text);
  std::string out;
  for (unsigned i = 0; i < insn.length; ++i) out += fmt::format("{:02x} ", insn.bytes[i]);
  out += fmt::format("  {}{}\n", text, insn.code_size == x86::CodeSize::k32 ? " (32-bit)" : "");
  out += fmt::format("  rip {:x} rflags {:x}", state.rip, state.rflags);
  for (unsigned i = 0; i < 16; ++i) out += fmt::format("{}{:x}", i % 8 == 0 ? "\n  gpr " : " ", state.gpr[i]);
  if (insn.has_memory()) {
    const uint64_t at = OperandAddress(insn, state) - NACRE_DIFF_DATA;
    out += fmt::format("\n  operand at {:#x}:", at + NACRE_DIFF_DATA);
    for (uint64_t i = at; i < at + 32 && at < sizeof test.data && i < sizeof test.data; ++i)
      out += fmt::format(" {:02x}", test.data[i]);
  }
  if (insn.has(x86::kInsnX87))
    out += fmt::format("\n  fcw {:x} fsw {:x} ftw {:x}", state.xsave.fcw(), state.xsave.fsw(), state.xsave.ftw());
  for (unsigned i = 0; i < insn.operand_count; ++i) {
    const x86::Operand& operand = insn.operand[i];
    const uint8_t* bytes = nullptr;
    unsigned size = 16;
    if (operand.register_class == x86::RegisterClass::kSt || operand.register_class == x86::RegisterClass::kMmx)
      bytes = state.xsave.st(operand.index), size = 10;
    if (operand.register_class == x86::RegisterClass::kMask) bytes = state.xsave.opmask(operand.index), size = 8;
    if (operand.register_class == x86::RegisterClass::kVector && operand.index < 16)
      bytes = state.xsave.xmm(operand.index);
    if (operand.register_class == x86::RegisterClass::kVector && operand.index >= 16)
      bytes = state.xsave.zmm(operand.index), size = operand.size;
    if (!bytes) continue;
    out += fmt::format("\n  operand {}: ", i);
    for (unsigned b = size; b-- > 0;) out += fmt::format("{:02x}", bytes[b]);
  }
  if (insn.has(x86::kInsnVector)) out += fmt::format("\n  mxcsr {:x}", state.xsave.mxcsr());
  return out + "\n";
}

}  // namespace nacre::engine::difftest
