// Random values: integers, floats of every width, registers and control words.

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

// --- values ---------------------------------------------------------------------------------------------------------

uint64_t Generator::InterestingInteger() {
  switch (Below(10)) {
    case 0:
      return 0;
    case 1:
      return ~uint64_t{0};
    case 2:
      return Below(64);
    case 3:
      return 0 - Below(64);
    case 4:
      return Bit(static_cast<unsigned>(Below(64)));
    case 5:
      return Bit(static_cast<unsigned>(Below(64))) - 1;
    case 6: {
      static constexpr uint64_t kEdges[] = {0x7f,
                                            0x80,
                                            0xff,
                                            0x7fff,
                                            0x8000,
                                            0xffff,
                                            0x7fffffff,
                                            0x80000000,
                                            0xffffffff,
                                            0x7fffffffffffffff,
                                            0x8000000000000000};
      return kEdges[Below(std::size(kEdges))];
    }
    case 7: {
      // Edges in both halves.
      const uint64_t low = InterestingInteger() & 0xffffffff;
      return low | random_() << 32;
    }
    default:
      return random_();
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
    case 0:
      break;  // zero
    case 1:
      mantissa = Chance(50) ? Below(16) + 1 : random_();
      break;  // denormal
    case 2:
      exponent = top;
      break;  // infinity
    case 3:
      exponent = top, mantissa = Bit(mantissa_bits - 1) | random_();
      break;  // quiet NaN
    case 4:
      exponent = top, mantissa = (random_() & (Bit(mantissa_bits - 1) - 1)) | 1;
      break;  // signalling NaN
    case 5:
      exponent = bias + Below(3) - 1, mantissa = 0;
      break;  // 0.5, 1, 2
    case 6:
      exponent = bias + Below(mantissa_bits + 2), mantissa = random_();
      break;  // near integers
    case 7:
      exponent = 1 + Below(3), mantissa = random_();
      break;  // near underflow
    case 8:
      exponent = top - 1 - Below(3), mantissa = random_();
      break;  // near overflow
    default:
      exponent = bias - 8 + Below(16), mantissa = random_();
      break;
  }
  const uint64_t value = sign | (exponent & top) << mantissa_bits | (mantissa & (Bit(mantissa_bits) - 1));
  std::memcpy(to, &value, width);
}

void Generator::InterestingExtended(uint8_t* to) {
  uint64_t mantissa = random_() | Bit(63);
  uint64_t exponent = 0x3fff - 40 + Below(80);
  switch (Below(12)) {
    case 0:
      mantissa = 0, exponent = 0;
      break;
    case 1:
      mantissa = random_() >> 1, exponent = 0;
      break;  // denormal
    case 2:
      exponent = 0;
      break;  // pseudo-denormal
    case 3:
      mantissa = Bit(63), exponent = 0x7fff;
      break;  // infinity
    case 4:
      mantissa |= Bit(62), exponent = 0x7fff;
      break;  // quiet NaN
    case 5:
      mantissa = (mantissa & ~Bit(62)) | 1, exponent = 0x7fff;
      break;  // signalling NaN
    case 6:
      mantissa = random_() >> 1;
      break;  // unnormal: unsupported
    case 7:
      mantissa = Bit(63), exponent = 0x3fff + Below(3) - 1;
      break;
    case 8:
      exponent = 0x3fff + Below(66);
      break;  // integers and beyond
    case 9:
      exponent = Chance(50) ? 1 + Below(70) : 0x7ffe - Below(70);
      break;
    default:
      break;
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
      case 0:
        width = 4;
        InterestingFloat(chunk, 4);
        break;
      case 1:
        width = 8;
        InterestingFloat(chunk, 8);
        break;
      case 2:
        width = 2;
        InterestingFloat(chunk, 2);
        break;
      case 3:
        width = 1 + Below(2), chunk[0] = static_cast<uint8_t>(InterestingInteger()),
        chunk[1] = static_cast<uint8_t>(random_());
        break;
      default:
        StoreLe(chunk, InterestingInteger());
        break;
    }
    // Runs of one kind: vectors of floats rather than a mixture, mostly.
    width = std::min(width, bytes - at);
    std::memcpy(to + at, chunk, width);
    at += width;
  }
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
  // Alignment checks. Of vectors, x87 state and operands of several parts, what is checked differs between CPUs.
  const Instruction& insn = test.insn;
  const bool parts = insn.branch == x86::BranchKind::kFar || insn.mnemonic == ZYDIS_MNEMONIC_LSS ||
                     insn.mnemonic == ZYDIS_MNEMONIC_LDS || insn.mnemonic == ZYDIS_MNEMONIC_LES ||
                     insn.mnemonic == ZYDIS_MNEMONIC_BOUND || insn.mnemonic == ZYDIS_MNEMONIC_ENTER;
  const bool vector = insn.has(x86::kInsnX87) || insn.has(x86::kInsnVector) || IsBigState(insn);
  if (!vector && !parts && Chance(4)) state.rflags |= x86::rflags::kAc;
  if (test.insn.has(x86::kInsnX87) || test.insn.has(x86::kInsnVector) || IsBigState(test.insn)) {
    FillVectors(test);
    FillX87(test);
    FillMxcsr(test);
  } else {
    state.xsave.fcw() = 0x37f;
  }
  if (options_.gs) state.segment[x86::kGs].base = 0x1000 + Below(0x800) * 8;
}

void Generator::FillVectors(TestCase& test) {
  x86::XsaveArea& area = test.state.xsave;
  const bool avx512 = options_.avx512 && (test.state.xcr0 & x86::kAvx512Components) != 0;
  const unsigned width = avx512 ? 64 : 32;
  for (unsigned i = 0; i < (avx512 ? 32u : 16u); ++i) {
    const unsigned kind = static_cast<unsigned>(Below(5));
    uint8_t bytes[64];
    if (kind == 0)
      for (unsigned at = 0; at < width; at += 4) InterestingFloat(bytes + at, 4);
    else if (kind == 1)
      for (unsigned at = 0; at < width; at += 8) InterestingFloat(bytes + at, 8);
    else
      InterestingBytes(bytes, width);
    if (i >= 16) {
      std::memcpy(area.zmm(i), bytes, 64);
      continue;
    }
    std::memcpy(area.xmm(i), bytes, 16);
    if (options_.avx) std::memcpy(area.ymm_high(i), bytes + 16, 16);
    if (avx512) std::memcpy(area.zmm_high(i), bytes + 32, 32);
  }
  for (unsigned i = 0; avx512 && i < 8; ++i) {
    uint64_t mask = random_();
    if (Chance(20)) mask = InterestingInteger();
    if (Chance(20)) mask &= random_() & random_();
    StoreLe(area.opmask(i), mask);
  }
}

/// What particular instructions want of their registers, so that the cases are not all faults.
void Generator::ShapeRegisters(TestCase& test) {
  CpuState& state = test.state;
  const Instruction& insn = test.insn;
  if (insn.has(x86::kInsnRep) || insn.has(x86::kInsnRepne)) state.gpr[x86::kRcx] = Below(20);
  switch (insn.mnemonic) {
    case ZYDIS_MNEMONIC_DIV:
    case ZYDIS_MNEMONIC_IDIV:
      if (Chance(75)) {
        const unsigned bits = insn.operand_size * 8;
        const bool negative = insn.mnemonic == ZYDIS_MNEMONIC_IDIV && TestBit(state.gpr[x86::kRax], bits - 1);
        if (bits == 8)
          state.gpr[x86::kRax] = SignExtend(Below(0x4000), 16);
        else
          state.gpr[x86::kRdx] = negative ? ~uint64_t{0} : Chance(60) ? 0 : Below(16);
      }
      break;
    case ZYDIS_MNEMONIC_LOOP:
    case ZYDIS_MNEMONIC_LOOPE:
    case ZYDIS_MNEMONIC_LOOPNE:
    case ZYDIS_MNEMONIC_JRCXZ:
    case ZYDIS_MNEMONIC_JECXZ:
    case ZYDIS_MNEMONIC_JCXZ:
      if (Chance(50)) state.gpr[x86::kRcx] = (state.gpr[x86::kRcx] & 0xffffffff00000000) | Below(3);
      break;
    case ZYDIS_MNEMONIC_PCMPESTRI:
    case ZYDIS_MNEMONIC_PCMPESTRM:
    case ZYDIS_MNEMONIC_VPCMPESTRI:
    case ZYDIS_MNEMONIC_VPCMPESTRM:
      if (Chance(60)) state.gpr[x86::kRax] = Below(34) - 17, state.gpr[x86::kRdx] = Below(34) - 17;
      break;
    case ZYDIS_MNEMONIC_XSAVE:
    case ZYDIS_MNEMONIC_XSAVE64:
    case ZYDIS_MNEMONIC_XRSTOR:
    case ZYDIS_MNEMONIC_XRSTOR64:
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
    default:
      break;
  }
}

}  // namespace nacre::engine::difftest
