// Where the memory operands of a case lie and what stands there.

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
  // Both ends of the pages, where what the writemask excludes must not fault.
  if (test.insn.has(x86::kInsnMaskedMemory) && Chance(30))
    address = Chance(70) ? kDataEnd - Below(size + 1) : NACRE_DIFF_DATA - Below(size + 1);
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
    if (insn.base < 16 && insn.base != x86::kRsp)
      state.gpr[insn.base] = (state.gpr[insn.base] & 0xffffffff) | random_() << 32;
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
    if (Chance(5)) at[514 + Below(62)] = static_cast<uint8_t>(random_());  // the host may have components below
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
    case ZYDIS_MNEMONIC_CMPXCHG8B:
    case ZYDIS_MNEMONIC_CMPXCHG16B:
      if (Chance(50)) {
        const unsigned half = insn.mnemonic == ZYDIS_MNEMONIC_CMPXCHG8B ? 4 : 8;
        std::memcpy(at, &state.gpr[x86::kRax], half);
        std::memcpy(at + half, &state.gpr[x86::kRdx], half);
      }
      break;
    case ZYDIS_MNEMONIC_LDMXCSR:
    case ZYDIS_MNEMONIC_VLDMXCSR:
      // Bit 17 is AMD's; the rest of the upper half is reserved everywhere.
      StoreLe(at, static_cast<uint32_t>((random_() & 0xffff) | (Chance(10) ? random_() << 20 : 0)));
      break;
    case ZYDIS_MNEMONIC_FXRSTOR:
    case ZYDIS_MNEMONIC_FXRSTOR64:
    case ZYDIS_MNEMONIC_XRSTOR:
    case ZYDIS_MNEMONIC_XRSTOR64:
      ShapeXrstor(test, at);
      StoreLe(at + 24, static_cast<uint32_t>((random_() & 0xffff) | (Chance(5) ? random_() << 20 : 0)));
      break;
    default:
      break;
  }
}

bool Generator::PlaceGather(TestCase& test) {
  Instruction& insn = test.insn;
  CpuState& state = test.state;
  if (!PlaceOperand(test, kDataMiddle + Below(64))) return false;
  if (insn.base == x86::kNoRegister) return false;  // needs a displacement that is all of the address: rare
  // The index vector: small, either sign; with EVEX sometimes one element beyond the pages.
  const unsigned lane_bytes = (insn.opcode & 1) == 0 ? 4 : 8;
  const unsigned width = options_.avx512 && (state.xcr0 & x86::kAvx512Components) != 0 ? 64 : 32;
  const bool evex = insn.encoding == Encoding::kEvex;
  const uint64_t far_lane = evex && Chance(30) ? Below(width / lane_bytes) : ~uint64_t{0};
  for (unsigned at = 0; at < width; at += lane_bytes) {
    x86::XsaveArea& area = state.xsave;
    uint8_t* lane = insn.index >= 16 ? area.zmm(insn.index) + at
                    : at < 16        ? area.xmm(insn.index) + at
                    : at < 32        ? area.ymm_high(insn.index) + at - 16
                                     : area.zmm_high(insn.index) + at - 32;
    int64_t value = static_cast<int64_t>(Below(400)) - 200;
    if (at / lane_bytes == far_lane) value = 0x1800 / insn.scale;
    if (lane_bytes == 4)
      StoreLe(lane, static_cast<int32_t>(value));
    else
      StoreLe(lane, value);
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
      for (uint64_t i = Below(64); i < sizeof test.data; i += 1 + Below(200))
        test.data[i] ^= static_cast<uint8_t>(random_());
      if (Chance(50)) state.gpr[x86::kRax] = fill * uint64_t{0x0101010101010101};
      if (insn.code_size != CodeSize::k64) state.gpr[x86::kRax] &= 0xffffffff;
    }
    return true;
  }
  const uint64_t gs = insn.segment == x86::kGs ? state.segment[x86::kGs].base : 0;
  switch (insn.mnemonic) {
    case ZYDIS_MNEMONIC_XLAT:
      state.gpr[x86::kRbx] = pointer(kDataMiddle + Below(64) - gs);
      break;
    case ZYDIS_MNEMONIC_MASKMOVQ:
    case ZYDIS_MNEMONIC_MASKMOVDQU:
    case ZYDIS_MNEMONIC_VMASKMOVDQU:
      state.gpr[x86::kRdi] = pointer(kDataMiddle - Below(64) - gs);
      break;
    case ZYDIS_MNEMONIC_LEAVE:
      state.gpr[x86::kRbp] = kDataMiddle + Below(256);
      break;
    case ZYDIS_MNEMONIC_ENTER: {
      state.gpr[x86::kRbp] = kDataMiddle + Below(32) * 8;
      StoreLe(test.insn.bytes + insn.immediate_at, static_cast<uint16_t>(Below(0x100)));
      return x86::Decode({test.insn.bytes, insn.length}, insn.code_size, test.insn) == x86::DecodeStatus::kOk;
    }
    case ZYDIS_MNEMONIC_POPF:
    case ZYDIS_MNEMONIC_POPFD:
    case ZYDIS_MNEMONIC_POPFQ: {
      // No single-step trap, no alignment checks.
      uint8_t* at = Data(test, state.gpr[x86::kRsp], 8);
      if (!at) return false;
      StoreLe(at, random_() & ~(x86::rflags::kTf | x86::rflags::kAc | x86::rflags::kNt));
      break;
    }
    default:
      break;
  }
  return true;
}

}  // namespace nacre::engine::difftest
