#include "engine/difftest/generator.h"

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

namespace {

bool IsString(const Instruction& insn) {
  switch (insn.mnemonic) {
    case ZYDIS_MNEMONIC_MOVSB: case ZYDIS_MNEMONIC_MOVSW: case ZYDIS_MNEMONIC_MOVSQ: case ZYDIS_MNEMONIC_STOSB:
    case ZYDIS_MNEMONIC_STOSW: case ZYDIS_MNEMONIC_STOSD: case ZYDIS_MNEMONIC_STOSQ: case ZYDIS_MNEMONIC_LODSB:
    case ZYDIS_MNEMONIC_LODSW: case ZYDIS_MNEMONIC_LODSD: case ZYDIS_MNEMONIC_LODSQ: case ZYDIS_MNEMONIC_SCASB:
    case ZYDIS_MNEMONIC_SCASW: case ZYDIS_MNEMONIC_SCASD: case ZYDIS_MNEMONIC_SCASQ: case ZYDIS_MNEMONIC_CMPSB:
    case ZYDIS_MNEMONIC_CMPSW: case ZYDIS_MNEMONIC_CMPSQ: return true;
    // These names are also of SSE2 instructions.
    case ZYDIS_MNEMONIC_MOVSD: case ZYDIS_MNEMONIC_CMPSD: return insn.map == 0;
    default: return false;
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
/// Atomic accesses stay within a cache line: some kernels punish split locks.
bool IsLocked(const Instruction& insn) {
  return insn.has(x86::kInsnLock) || (insn.mnemonic == ZYDIS_MNEMONIC_XCHG && insn.has_memory());
}
bool IsX87State(const Instruction& insn) {
  return insn.mnemonic == ZYDIS_MNEMONIC_FNSTENV || insn.mnemonic == ZYDIS_MNEMONIC_FLDENV ||
         insn.mnemonic == ZYDIS_MNEMONIC_FNSAVE || insn.mnemonic == ZYDIS_MNEMONIC_FRSTOR;
}
/// Outside 64-bit code VEX.W means nothing to these for Intel, but something or #UD for AMD.
bool WidthDisputed(const Instruction& insn) {
  return insn.code_size != CodeSize::k64 && insn.encoding == Encoding::kVex && insn.map == 3 &&
         (insn.opcode == 0x16 || insn.opcode == 0x22 || insn.opcode == 0x60 || insn.opcode == 0x61) &&
         insn.bytes[insn.prefix_count] == 0xc4 && (insn.bytes[insn.prefix_count + 2] & 0x80);
}
/// Intel requires their operand to be aligned, AMD does not.
bool IsSha(const Instruction& insn) {
  return insn.isa_set == ZYDIS_ISA_SET_SHA;
}
bool TouchesNothing(const Instruction& insn) {
  return insn.mnemonic == ZYDIS_MNEMONIC_LEA || insn.mnemonic == ZYDIS_MNEMONIC_NOP;
}
unsigned OperandBytes(const Instruction& insn) {
  if (IsBigState(insn)) return IsXrstor(insn) || insn.mnemonic == ZYDIS_MNEMONIC_XSAVE || insn.mnemonic == ZYDIS_MNEMONIC_XSAVE64 ? 832 : 512;
  const x86::Operand* operand = insn.memory_operand();
  return operand && operand->size != 0 ? operand->size : 8;
}

constexpr uint64_t kDataEnd = NACRE_DIFF_DATA + NACRE_DIFF_DATA_BYTES;
constexpr uint64_t kDataMiddle = NACRE_DIFF_DATA + NACRE_DIFF_DATA_BYTES / 2;

}  // namespace

Generator::Generator(const Guest& guest, const Options& options) : guest_(guest), options_(options) {
  random_.Seed(1);
  InterestingBytes(base_data_.data(), base_data_.size());
}

// --- values ---------------------------------------------------------------------------------------------------------

uint64_t Generator::InterestingInteger() {
  switch (Below(10)) {
    case 0: return 0;
    case 1: return ~uint64_t{0};
    case 2: return Below(64);
    case 3: return 0 - Below(64);
    case 4: return Bit(static_cast<unsigned>(Below(64)));
    case 5: return Bit(static_cast<unsigned>(Below(64))) - 1;
    case 6: {
      static constexpr uint64_t kEdges[] = {0x7f,       0x80,       0xff,       0x7fff,     0x8000,
                                            0xffff,     0x7fffffff, 0x80000000, 0xffffffff, 0x7fffffffffffffff,
                                            0x8000000000000000};
      return kEdges[Below(std::size(kEdges))];
    }
    case 7: {
      // Edges in both halves.
      const uint64_t low = InterestingInteger() & 0xffffffff;
      return low | random_() << 32;
    }
    default: return random_();
  }
}

void Generator::InterestingFloat(uint8_t* to, unsigned width) {
  const unsigned exponent_bits = width == 2 ? 5 : width == 4 ? 8 : 11;
  const unsigned mantissa_bits = width * 8 - 1 - exponent_bits;
  const uint64_t bias = Bit(exponent_bits - 1) - 1;
  const uint64_t sign = Chance(50) ? Bit(width * 8 - 1) : 0;
  const uint64_t top = Bit(exponent_bits) - 1;
  uint64_t exponent = 0, mantissa = 0;
  switch (Below(10)) {
    case 0: break;                                                          // zero
    case 1: mantissa = Chance(50) ? Below(16) + 1 : random_(); break;       // denormal
    case 2: exponent = top; break;                                          // infinity
    case 3: exponent = top, mantissa = Bit(mantissa_bits - 1) | random_(); break;               // quiet NaN
    case 4: exponent = top, mantissa = (random_() & (Bit(mantissa_bits - 1) - 1)) | 1; break;   // signalling NaN
    case 5: exponent = bias + Below(3) - 1, mantissa = 0; break;            // 0.5, 1, 2
    case 6: exponent = bias + Below(mantissa_bits + 2), mantissa = random_(); break;  // near integers
    case 7: exponent = 1 + Below(3), mantissa = random_(); break;           // near underflow
    case 8: exponent = top - 1 - Below(3), mantissa = random_(); break;     // near overflow
    default: exponent = bias - 8 + Below(16), mantissa = random_(); break;
  }
  const uint64_t value = sign | (exponent & top) << mantissa_bits | (mantissa & (Bit(mantissa_bits) - 1));
  std::memcpy(to, &value, width);
}

void Generator::InterestingExtended(uint8_t* to) {
  uint64_t mantissa = random_() | Bit(63);
  uint64_t exponent = 0x3fff - 40 + Below(80);
  switch (Below(12)) {
    case 0: mantissa = 0, exponent = 0; break;
    case 1: mantissa = random_() >> 1, exponent = 0; break;                    // denormal
    case 2: exponent = 0; break;                                               // pseudo-denormal
    case 3: mantissa = Bit(63), exponent = 0x7fff; break;                      // infinity
    case 4: mantissa |= Bit(62), exponent = 0x7fff; break;                     // quiet NaN
    case 5: mantissa = (mantissa & ~Bit(62)) | 1, exponent = 0x7fff; break;    // signalling NaN
    case 6: mantissa = random_() >> 1; break;                                  // unnormal: unsupported
    case 7: mantissa = Bit(63), exponent = 0x3fff + Below(3) - 1; break;
    case 8: exponent = 0x3fff + Below(66); break;                              // integers and beyond
    case 9: exponent = Chance(50) ? 1 + Below(70) : 0x7ffe - Below(70); break;
    default: break;
  }
  std::memcpy(to, &mantissa, 8);
  const auto high = static_cast<uint16_t>(exponent | (Chance(50) ? 0x8000 : 0));
  std::memcpy(to + 8, &high, 2);
}

void Generator::InterestingBytes(uint8_t* to, size_t bytes) {
  for (size_t at = 0; at < bytes;) {
    uint8_t chunk[16] = {};
    size_t width = 8;
    switch (Below(6)) {
      case 0: width = 4; InterestingFloat(chunk, 4); break;
      case 1: width = 8; InterestingFloat(chunk, 8); break;
      case 2: width = 2; InterestingFloat(chunk, 2); break;
      case 3: width = 1 + Below(2), chunk[0] = static_cast<uint8_t>(InterestingInteger()), chunk[1] = static_cast<uint8_t>(random_()); break;
      default: StoreLe(chunk, InterestingInteger()); break;
    }
    // Runs of one kind: vectors of floats rather than a mixture, mostly.
    width = std::min(width, bytes - at);
    std::memcpy(to + at, chunk, width);
    at += width;
  }
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

// --- registers ------------------------------------------------------------------------------------------------------

void Generator::FillMxcsr(TestCase& test) {
  uint32_t mxcsr = 0x1f80;
  if (Chance(60)) mxcsr |= static_cast<uint32_t>(Below(4)) << 13;  // rounding
  if (Chance(15)) mxcsr |= 0x8000;                                 // flush to zero
  if (Chance(15)) mxcsr |= 0x40;                                   // denormals are zero
  if (Chance(30)) mxcsr |= static_cast<uint32_t>(Below(64));       // sticky flags
  if (Chance(12)) mxcsr &= ~(static_cast<uint32_t>(Below(64)) << 7);
  test.state.xsave.mxcsr() = mxcsr;
}

void Generator::FillX87(TestCase& test) {
  x86::XsaveArea& area = test.state.xsave;
  uint16_t control = 0x37f;
  if (Chance(50)) control = static_cast<uint16_t>((control & ~0xf00) | Below(16) << 8);
  if (Chance(12)) control &= static_cast<uint16_t>(~Below(64));
  area.fcw() = control;
  auto status = static_cast<uint16_t>((random_() & 0x4700) | Below(8) << 11);
  if (Chance(25)) status |= static_cast<uint16_t>(Below(128));
  // ES and B follow the flags (SDM 1 8.1.3.3).
  if (status & ~control & 0x3f) status |= 0x8080;
  // Most cases shall not end in the pending exception.
  if ((status & 0x80) && Chance(80)) status &= static_cast<uint16_t>(~0x80ff);
  area.fsw() = status;
  area.ftw() = Chance(60) ? 0xff : static_cast<uint8_t>(random_());
  for (unsigned i = 0; i < 8; ++i) {
    InterestingExtended(area.st(i));
    std::memset(area.st(i) + 10, 0, 6);
  }
}

void Generator::FillRegisters(TestCase& test) {
  CpuState& state = test.state;
  for (uint64_t& reg : state.gpr) reg = InterestingInteger();
  state.gpr[x86::kRsp] = kDataMiddle + Below(128) * 8;
  if (Chance(10)) state.gpr[x86::kRsp] += Below(8);
  if (test.insn.code_size != CodeSize::k64)
    for (unsigned i = 0; i < 16; ++i) state.gpr[i] = i < 8 ? state.gpr[i] & 0xffffffff : 0;
  state.rflags |= random_() & x86::rflags::kArithmetic;
  if (Chance(30)) state.rflags |= x86::rflags::kDf;
  if (test.insn.has(x86::kInsnX87) || test.insn.has(x86::kInsnVector) || IsBigState(test.insn)) {
    for (unsigned i = 0; i < 16; ++i) {
      const unsigned kind = static_cast<unsigned>(Below(5));
      uint8_t bytes[32];
      if (kind == 0)
        for (unsigned at = 0; at < 32; at += 4) InterestingFloat(bytes + at, 4);
      else if (kind == 1)
        for (unsigned at = 0; at < 32; at += 8) InterestingFloat(bytes + at, 8);
      else
        InterestingBytes(bytes, 32);
      std::memcpy(state.xsave.xmm(i), bytes, 16);
      if (options_.avx) std::memcpy(state.xsave.ymm_high(i), bytes + 16, 16);
    }
    FillX87(test);
    FillMxcsr(test);
  } else {
    state.xsave.fcw() = 0x37f;
  }
  if (options_.gs) state.segment[x86::kGs].base = 0x1000 + Below(0x800) * 8;
}

/// What particular instructions want of their registers, so that the cases are not all faults.
void Generator::ShapeRegisters(TestCase& test) {
  CpuState& state = test.state;
  const Instruction& insn = test.insn;
  if (insn.has(x86::kInsnRep) || insn.has(x86::kInsnRepne)) state.gpr[x86::kRcx] = Below(20);
  switch (insn.mnemonic) {
    case ZYDIS_MNEMONIC_DIV: case ZYDIS_MNEMONIC_IDIV:
      if (Chance(75)) {
        const unsigned bits = insn.operand_size * 8;
        const bool negative = insn.mnemonic == ZYDIS_MNEMONIC_IDIV && TestBit(state.gpr[x86::kRax], bits - 1);
        if (bits == 8)
          state.gpr[x86::kRax] = SignExtend(Below(0x4000), 16);
        else
          state.gpr[x86::kRdx] = negative ? ~uint64_t{0} : Chance(60) ? 0 : Below(16);
      }
      break;
    case ZYDIS_MNEMONIC_LOOP: case ZYDIS_MNEMONIC_LOOPE: case ZYDIS_MNEMONIC_LOOPNE: case ZYDIS_MNEMONIC_JRCXZ:
    case ZYDIS_MNEMONIC_JECXZ: case ZYDIS_MNEMONIC_JCXZ:
      if (Chance(50)) state.gpr[x86::kRcx] = (state.gpr[x86::kRcx] & 0xffffffff00000000) | Below(3);
      break;
    case ZYDIS_MNEMONIC_PCMPESTRI: case ZYDIS_MNEMONIC_PCMPESTRM: case ZYDIS_MNEMONIC_VPCMPESTRI:
    case ZYDIS_MNEMONIC_VPCMPESTRM:
      if (Chance(60)) state.gpr[x86::kRax] = Below(34) - 17, state.gpr[x86::kRdx] = Below(34) - 17;
      break;
    case ZYDIS_MNEMONIC_XSAVE: case ZYDIS_MNEMONIC_XSAVE64: case ZYDIS_MNEMONIC_XRSTOR: case ZYDIS_MNEMONIC_XRSTOR64:
      // Components that the host has and the guest has not would differ.
      state.gpr[x86::kRax] &= 7;
      state.gpr[x86::kRdx] = 0;
      break;
    case ZYDIS_MNEMONIC_WRGSBASE:
      if (Chance(80)) state.gpr[insn.operand[0].index] = SignExtend(state.gpr[insn.operand[0].index], 48);
      break;
    case ZYDIS_MNEMONIC_CMPXCHG:
      if (Chance(50) && insn.operand[0].kind == OperandKind::kRegister &&
          insn.operand[0].register_class == RegisterClass::kGpr && insn.operand[0].index != x86::kRsp)
        state.gpr[insn.operand[0].index] = state.gpr[x86::kRax];
      break;
    default: break;
  }
}

// --- memory ---------------------------------------------------------------------------------------------------------

/// Mostly inside the data pages, in all alignments; sometimes at their end, beyond, read-only or not canonical.
uint64_t Generator::PickAddress(const TestCase& test, unsigned size) {
  const bool locked = IsLocked(test.insn);
  // Stores in several parts that fault half-way may have stored something.
  const bool wild = !test.insn.has(x86::kInsnVsib) && !locked && !IsBitTest(test.insn) && !IsBigState(test.insn) &&
                    !IsX87State(test.insn);
  const uint64_t kind = Below(100);
  uint64_t address = NACRE_DIFF_DATA + 0x400 + Below(NACRE_DIFF_DATA_BYTES - 0x800 - std::min(size, 0x400u));
  if (locked || kind < 35) {
    address &= ~uint64_t{63};
    if (size <= 32 && locked) address += Below(64 / size) * size;
  } else if (kind < 60) {
    address &= ~uint64_t{std::bit_ceil(size) - 1};
  } else if (kind < 90) {
    if (kind < 66) address = kDataMiddle - Below(size + 1);
  } else if (wild && kind < 94) {
    address = kDataEnd - Below(size + 1);  // up to and over the end
    if (address + size <= kDataEnd) address = kDataEnd - size;
    if (Chance(50)) address = kDataEnd - Below(size);
  } else if (wild && kind < 96) {
    address = NACRE_DIFF_READONLY + Below(kPageSize - size);
  } else if (wild && kind < 97) {
    address = NACRE_DIFF_DATA - 0x400 + Below(0x300);
  } else if (wild && kind < 98 && test.insn.code_size == CodeSize::k64) {
    address = 0x0000900000000000 + Below(0x10000);
  }
  return address;
}

/// Chooses registers and displacement so that the operand lies at `target`.
bool Generator::PlaceOperand(TestCase& test, uint64_t target) {
  Instruction& insn = test.insn;
  CpuState& state = test.state;
  const uint64_t segment_base = insn.segment == x86::kGs ? state.segment[x86::kGs].base : 0;
  const uint64_t want = target - segment_base;
  const bool patchable = insn.displacement_size >= 4;
  const auto patch = [&](uint64_t displacement) {
    std::memcpy(insn.bytes + insn.displacement_at, &displacement, insn.displacement_size);
    insn.displacement = static_cast<int64_t>(SignExtend(displacement, insn.displacement_size * 8));
  };
  const bool has_index = insn.index < 16 && !insn.has(x86::kInsnVsib);
  if (insn.base == x86::kRipRegister) {
    patch(want - (state.rip + insn.length));
  } else if (insn.base == x86::kNoRegister && !has_index) {
    if (!patchable) return false;
    patch(want);
  } else if (insn.base == x86::kNoRegister) {
    state.gpr[insn.index] = Below(0x100);
    patch(want - state.gpr[insn.index] * insn.scale);
  } else {
    if (patchable) patch(Chance(70) ? Below(0x400) - 0x200 : random_() & 0xffffff);
    const auto displacement = static_cast<uint64_t>(insn.displacement);
    if (has_index && insn.index == insn.base) {
      state.gpr[insn.base] = (want - displacement) / (1u + insn.scale);
    } else {
      const bool rsp = insn.base == x86::kRsp;
      if (has_index && rsp) state.gpr[insn.index] = Below(0x40);
      const uint64_t index = has_index ? state.gpr[insn.index] * insn.scale : 0;
      if (rsp && patchable) patch(Below(0x200));
      state.gpr[insn.base] = want - index - static_cast<uint64_t>(insn.displacement);
    }
  }
  if (insn.code_size == CodeSize::k64 && insn.address_size == 4) {
    // The upper halves do not count.
    if (insn.base < 16 && insn.base != x86::kRsp) state.gpr[insn.base] = (state.gpr[insn.base] & 0xffffffff) | random_() << 32;
    if (insn.base == x86::kRsp) state.gpr[x86::kRsp] &= 0xffffffff;
  }
  if (insn.code_size != CodeSize::k64)
    for (uint64_t& reg : state.gpr) reg &= 0xffffffff;
  Instruction again;
  if (x86::Decode({insn.bytes, 15}, insn.code_size, again) != x86::DecodeStatus::kOk || again.length != insn.length)
    return false;
  insn = again;
  return true;
}

bool Generator::OperandSafe(const TestCase& test) const {
  const Instruction& insn = test.insn;
  if (TouchesNothing(insn)) return true;
  const uint64_t address = OperandAddress(insn, test.state);
  const unsigned size = OperandBytes(insn);
  if (address >= NACRE_DIFF_DATA - 0x1000 && address + size <= kDataEnd + 0x1000) return true;
  if (address >= NACRE_DIFF_READONLY && address + size <= NACRE_DIFF_READONLY + 0x1000) return true;
  if (insn.code_size == CodeSize::k64 && insn.address_size == 8 && address >= 0x0000800000000000 &&
      address < 0xffff7fff00000000)
    return true;
  return false;
}

uint8_t* Generator::Data(TestCase& test, uint64_t address, unsigned size) {
  if (address < NACRE_DIFF_DATA || address + size > kDataEnd) return nullptr;
  return test.data + (address - NACRE_DIFF_DATA);
}

/// Random contents around what the instruction touches.
void Generator::FillMemory(TestCase& test, uint64_t address) {
  const Instruction& insn = test.insn;
  const unsigned size = std::max(OperandBytes(insn), 32u);
  uint8_t* at = Data(test, address, size);
  if (!at) return;
  const x86::Operand* operand = insn.memory_operand();
  if (insn.has(x86::kInsnX87) && operand && operand->size == 10) return InterestingExtended(at);
  if (insn.has(x86::kInsnX87) && operand && (operand->size == 4 || operand->size == 8) && Chance(70))
    return InterestingFloat(at, operand->size);
  const unsigned kind = static_cast<unsigned>(Below(4));
  for (unsigned i = 0; i + 8 <= size; i += 8) {
    if (kind == 0) {
      InterestingFloat(at + i, 4);
      InterestingFloat(at + i + 4, 4);
    } else if (kind == 1) {
      InterestingFloat(at + i, 8);
    } else {
      InterestingBytes(at + i, 8);
    }
  }
}

/// An image that XRSTOR takes, mostly (SDM 1 13.8).
void Generator::ShapeXrstor(TestCase& test, uint8_t* at) {
  if (IsXrstor(test.insn)) {
    std::memset(at + 512, 0, 64);
    at[512] = static_cast<uint8_t>(Below(8));
    if (Chance(5)) at[512 + Below(64)] = static_cast<uint8_t>(random_());
  }
  for (unsigned i = 0; i < 8; ++i) InterestingExtended(at + 32 + 16 * i);
}

/// What particular instructions want of their operand in memory.
void Generator::ShapeMemory(TestCase& test, uint64_t address) {
  const Instruction& insn = test.insn;
  const CpuState& state = test.state;
  uint8_t* at = Data(test, address, OperandBytes(insn));
  if (!at) return;
  switch (insn.mnemonic) {
    case ZYDIS_MNEMONIC_CMPXCHG:
      if (Chance(50)) std::memcpy(at, &state.gpr[x86::kRax], insn.operand_size);
      break;
    case ZYDIS_MNEMONIC_CMPXCHG8B: case ZYDIS_MNEMONIC_CMPXCHG16B:
      if (Chance(50)) {
        const unsigned half = insn.mnemonic == ZYDIS_MNEMONIC_CMPXCHG8B ? 4 : 8;
        std::memcpy(at, &state.gpr[x86::kRax], half);
        std::memcpy(at + half, &state.gpr[x86::kRdx], half);
      }
      break;
    case ZYDIS_MNEMONIC_LDMXCSR: case ZYDIS_MNEMONIC_VLDMXCSR:
      // Bit 17 is AMD's; the rest of the upper half is reserved everywhere.
      StoreLe(at, static_cast<uint32_t>((random_() & 0xffff) | (Chance(10) ? random_() << 20 : 0)));
      break;
    case ZYDIS_MNEMONIC_FXRSTOR: case ZYDIS_MNEMONIC_FXRSTOR64: case ZYDIS_MNEMONIC_XRSTOR:
    case ZYDIS_MNEMONIC_XRSTOR64:
      ShapeXrstor(test, at);
      StoreLe(at + 24, static_cast<uint32_t>((random_() & 0xffff) | (Chance(5) ? random_() << 20 : 0)));
      break;
    default: break;
  }
}

bool Generator::PlaceGather(TestCase& test) {
  Instruction& insn = test.insn;
  CpuState& state = test.state;
  if (!PlaceOperand(test, kDataMiddle + Below(64))) return false;
  if (insn.base == x86::kNoRegister) return false;  // needs a displacement that is all of the address: rare
  // The index vector: small, either sign. Dword or qword elements: a pattern that is small as both.
  const bool dword = insn.opcode == 0x90 || insn.opcode == 0x92;
  for (unsigned half = 0; half < 2; ++half) {
    uint8_t* lanes = half == 0 ? state.xsave.xmm(insn.index) : state.xsave.ymm_high(insn.index);
    for (unsigned i = 0; i < 2; ++i) {
      if (dword) {
        StoreLe(lanes + 8 * i, static_cast<int32_t>(Below(400)) - 200);
        StoreLe(lanes + 8 * i + 4, static_cast<int32_t>(Below(400)) - 200);
      } else {
        StoreLe(lanes + 8 * i, static_cast<int64_t>(Below(400)) - 200);
      }
    }
  }
  return true;
}

/// Memory that no operand names: strings, the stack, XLAT, MASKMOV.
bool Generator::PlaceImplicitMemory(TestCase& test) {
  const Instruction& insn = test.insn;
  CpuState& state = test.state;
  const bool narrow = insn.address_size == 4 && insn.code_size == CodeSize::k64;
  const auto pointer = [&](uint64_t address) { return narrow ? address | random_() << 32 : address; };
  if (IsString(insn)) {
    // 20 elements either way stay within the pages; sometimes they run over the end.
    const uint64_t room = Chance(8) ? 0x40 : 0x400;
    const uint64_t gs = insn.segment == x86::kGs ? state.segment[x86::kGs].base : 0;
    state.gpr[x86::kRsi] = pointer(NACRE_DIFF_DATA + room + Below(NACRE_DIFF_DATA_BYTES - 2 * room) - gs);
    state.gpr[x86::kRdi] = pointer(NACRE_DIFF_DATA + room + Below(NACRE_DIFF_DATA_BYTES - 2 * room));
    if (Chance(20)) state.gpr[x86::kRdi] = pointer((state.gpr[x86::kRsi] & 0xffffffff) + gs + Below(17) - 8);
    if (narrow && (insn.has(x86::kInsnRep) || insn.has(x86::kInsnRepne))) state.gpr[x86::kRcx] |= random_() << 32;
    // Equal runs, or comparisons end at once.
    if (Chance(60)) {
      const auto fill = static_cast<uint8_t>(state.gpr[x86::kRax]);
      std::memset(test.data, fill, sizeof test.data);
      for (uint64_t i = Below(64); i < sizeof test.data; i += 1 + Below(200)) test.data[i] ^= static_cast<uint8_t>(random_());
      if (Chance(50)) state.gpr[x86::kRax] = fill * uint64_t{0x0101010101010101};
      if (insn.code_size != CodeSize::k64) state.gpr[x86::kRax] &= 0xffffffff;
    }
    return true;
  }
  const uint64_t gs = insn.segment == x86::kGs ? state.segment[x86::kGs].base : 0;
  switch (insn.mnemonic) {
    case ZYDIS_MNEMONIC_XLAT: state.gpr[x86::kRbx] = pointer(kDataMiddle + Below(64) - gs); break;
    case ZYDIS_MNEMONIC_MASKMOVQ: case ZYDIS_MNEMONIC_MASKMOVDQU: case ZYDIS_MNEMONIC_VMASKMOVDQU:
      state.gpr[x86::kRdi] = pointer(kDataMiddle - Below(64) - gs);
      break;
    case ZYDIS_MNEMONIC_LEAVE: state.gpr[x86::kRbp] = kDataMiddle + Below(256); break;
    case ZYDIS_MNEMONIC_ENTER: {
      state.gpr[x86::kRbp] = kDataMiddle + Below(32) * 8;
      StoreLe(test.insn.bytes + insn.immediate_at, static_cast<uint16_t>(Below(0x100)));
      return x86::Decode({test.insn.bytes, insn.length}, insn.code_size, test.insn) == x86::DecodeStatus::kOk;
    }
    case ZYDIS_MNEMONIC_POPF: case ZYDIS_MNEMONIC_POPFD: case ZYDIS_MNEMONIC_POPFQ: {
      // No single-step trap, no alignment checks.
      uint8_t* at = Data(test, state.gpr[x86::kRsp], 8);
      if (!at) return false;
      StoreLe(at, random_() & ~(x86::rflags::kTf | x86::rflags::kAc | x86::rflags::kNt));
      break;
    }
    default: break;
  }
  return true;
}

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
    case x86::BranchKind::kConditional: case x86::BranchKind::kJump: case x86::BranchKind::kCall: {
      uint64_t distance = BranchTarget(test) - (state.rip + insn.length);
      if (insn.immediate_size == 1) {
        distance = Chance(50) ? 32 + Below(90) : 0 - (48 + Below(70));
        if (Chance(10)) distance = 0;
      }
      std::memcpy(insn.bytes + insn.immediate_at, &distance, insn.immediate_size);
      break;
    }
    case x86::BranchKind::kIndirectJump: case x86::BranchKind::kIndirectCall: {
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
    case x86::BranchKind::kFar: return ShapeFar(test);
    default: return true;
  }
  return x86::Decode({insn.bytes, 15}, insn.code_size, insn) == x86::DecodeStatus::kOk;
}

/// Selectors of which host and guest agree: null, Linux' user segments with any RPL, the kernel's (not ours to use), and
/// what lies beyond both tables.
uint16_t Generator::Selector(bool code) {
  static constexpr uint16_t kUser[] = {NACRE_DIFF_CS32, NACRE_DIFF_SS, NACRE_DIFF_CS64};
  switch (Below(12)) {
    case 0: return static_cast<uint16_t>(Below(4));
    case 1: return static_cast<uint16_t>((kUser[Below(3)] & ~3) | Below(4));
    case 2: return static_cast<uint16_t>(0x10 | Below(4));
    case 3: return static_cast<uint16_t>(0x8000 | (random_() & 0x7fff));
    case 4: return static_cast<uint16_t>((random_() & 0x78) | 4 | Below(4));  // no LDT
    default: return code ? (Chance(70) ? NACRE_DIFF_CS64 : NACRE_DIFF_CS32) : uint16_t{NACRE_DIFF_SS};
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
    case ZYDIS_MNEMONIC_RET: case ZYDIS_MNEMONIC_IRET: case ZYDIS_MNEMONIC_IRETD: case ZYDIS_MNEMONIC_IRETQ: {
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
      if (operand.index != x86::kRsp) state.gpr[operand.index] = (state.gpr[operand.index] & ~uint64_t{0xffff}) | selector;
    } else if (uint8_t* at = Data(test, OperandAddress(insn, state) + offset, 2)) {
      StoreLe(at, selector);
    }
  };
  switch (insn.mnemonic) {
    case ZYDIS_MNEMONIC_VERR: case ZYDIS_MNEMONIC_VERW: put(insn.operand[0], 0); break;
    case ZYDIS_MNEMONIC_LAR: case ZYDIS_MNEMONIC_LSL: put(insn.operand[1], 0); break;
    case ZYDIS_MNEMONIC_LSS: case ZYDIS_MNEMONIC_LDS: case ZYDIS_MNEMONIC_LES: put(insn.operand[1], insn.operand_size); break;
    case ZYDIS_MNEMONIC_MOV:
      if (insn.operand[0].register_class == RegisterClass::kSegment) put(insn.operand[1], 0);
      break;
    case ZYDIS_MNEMONIC_POP:
      if (insn.operand[0].register_class == RegisterClass::kSegment)
        if (uint8_t* at = Data(test, state.gpr[x86::kRsp], 2)) StoreLe(at, selector);
      break;
    default: break;
  }
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
