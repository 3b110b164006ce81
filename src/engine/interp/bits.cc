// Bit tests and scans, BMI1, BMI2, POPCNT, BSWAP, CRC32.

#include "engine/interp/handlers.h"
#include "engine/interp/host_flags.h"

namespace nacre::engine::interp {

using x86::Instruction;
using x86::OperandKind;

namespace {

INTERP_BINARY(HostBt, "bt")
INTERP_BINARY(HostBts, "bts")
INTERP_BINARY(HostBtr, "btr")
INTERP_BINARY(HostBtc, "btc")
INTERP_BINARY(HostPopcnt, "popcnt")
INTERP_BINARY(HostLzcnt, "lzcnt")
INTERP_BINARY(HostTzcnt, "tzcnt")
INTERP_BINARY(HostBlsi, "blsi")
INTERP_BINARY(HostBlsr, "blsr")
INTERP_BINARY(HostBlsmsk, "blsmsk")

enum class BitOp { kTest, kSet, kReset, kComplement };

template <BitOp op, typename T>
void ApplyBit(uint64_t& rflags, T& value, T bit) {
  if constexpr (op == BitOp::kTest) HostBt(rflags, value, bit);
  if constexpr (op == BitOp::kSet) HostBts(rflags, value, bit);
  if constexpr (op == BitOp::kReset) HostBtr(rflags, value, bit);
  if constexpr (op == BitOp::kComplement) HostBtc(rflags, value, bit);
}

template <BitOp op, typename T>
bool BitTest(Core& c, const Decoded& d) {
  constexpr unsigned kBits = sizeof(T) * 8;
  const bool by_register = d.insn.operand[1].kind == OperandKind::kRegister;
  const T bit = by_register ? c.ReadReg<T>(d.reg[1]) : static_cast<T>(d.insn.immediate);
  const auto masked = static_cast<T>(bit & (kBits - 1));
  uint64_t flags = c.state->rflags;
  const auto change = [&](T& value) { ApplyBit<op>(flags, value, masked); };
  if (d.insn.operand[0].kind == OperandKind::kRegister) {
    if constexpr (op == BitOp::kTest) {
      T value = c.ReadReg<T>(d.reg[0]);  // written back, a 32-bit one would lose its upper half
      change(value);
    } else {
      INTERP_TRY(c.ModifyOperand<T>(d, 0, change, false));
    }
  } else {
    // A register names a bit anywhere around the operand: the string starts at the operand (SDM 2A "BT").
    uint64_t offset = c.EffectiveAddress(d);
    if (by_register) {
      const auto distance = static_cast<int64_t>(SignExtend(bit, kBits)) >> (kBits == 16 ? 4 : kBits == 32 ? 5 : 6);
      offset = MaskToSize(offset + static_cast<uint64_t>(distance) * sizeof(T), d.insn.address_size);
    }
    if constexpr (op == BitOp::kTest) {
      T value;
      INTERP_TRY(c.ReadSegment<T>(c.OperandSegment(d), offset, value));
      change(value);
    } else {
      INTERP_TRY(c.ModifyMemory<T>(c.OperandSegment(d), offset, change, d.insn.has(x86::kInsnLock)));
    }
  }
  c.state->rflags = flags;
  return true;
}

template <BitOp op>
Handler ResolveBitTest(const Instruction& insn) {
  switch (insn.operand[0].size) {
    case 2:
      return BitTest<op, uint16_t>;
    case 4:
      return BitTest<op, uint32_t>;
    default:
      return BitTest<op, uint64_t>;
  }
}

/// BSF and BSR get the whole 64-bit destination: what a zero source leaves in it is the host's answer.
template <bool kForward, typename T>
bool BitScan(Core& c, const Decoded& d) {
  T source;
  INTERP_TRY(c.LoadOperand<T>(d, 1, source));
  uint64_t& result = c.state->gpr[d.reg[0] / 8];
  uint32_t ax = PackFlags(c.state->rflags);
#define INTERP_SCAN(INSN, MODIFIER)                                                         \
  asm(INTERP_FLAGS_IN INSN " %" MODIFIER "[source], %" MODIFIER "[result]" INTERP_FLAGS_OUT \
      : "+&a"(ax), [result] "+&r"(result)                                                   \
      : [source] "r"(source)                                                                \
      : "cc")
  if constexpr (kForward) {
    if constexpr (sizeof(T) == 2) INTERP_SCAN("bsf", "w");
    if constexpr (sizeof(T) == 4) INTERP_SCAN("bsf", "k");
    if constexpr (sizeof(T) == 8) INTERP_SCAN("bsf", "q");
  } else {
    if constexpr (sizeof(T) == 2) INTERP_SCAN("bsr", "w");
    if constexpr (sizeof(T) == 4) INTERP_SCAN("bsr", "k");
    if constexpr (sizeof(T) == 8) INTERP_SCAN("bsr", "q");
  }
  UnpackFlags(c.state->rflags, ax);
  return true;
}

template <bool kForward>
Handler ResolveBitScan(const Instruction& insn) {
  switch (insn.operand[0].size) {
    case 2:
      return BitScan<kForward, uint16_t>;
    case 4:
      return BitScan<kForward, uint32_t>;
    default:
      return BitScan<kForward, uint64_t>;
  }
}

enum class CountOp { kPopcnt, kLzcnt, kTzcnt };

template <CountOp op, typename T>
bool Count(Core& c, const Decoded& d) {
  T source;
  INTERP_TRY(c.LoadOperand<T>(d, 1, source));
  T result = 0;
  if constexpr (op == CountOp::kPopcnt) HostPopcnt(c.state->rflags, result, source);
  if constexpr (op == CountOp::kLzcnt) HostLzcnt(c.state->rflags, result, source);
  if constexpr (op == CountOp::kTzcnt) HostTzcnt(c.state->rflags, result, source);
  c.WriteReg<T>(d.reg[0], result);
  return true;
}

template <CountOp op>
Handler ResolveCount(const Instruction& insn) {
  switch (insn.operand[0].size) {
    case 2:
      return Count<op, uint16_t>;
    case 4:
      return Count<op, uint32_t>;
    default:
      return Count<op, uint64_t>;
  }
}

enum class LowestOp { kIsolate, kReset, kMask };

template <LowestOp op, typename T>
bool Lowest(Core& c, const Decoded& d) {
  T source;
  INTERP_TRY(c.LoadOperand<T>(d, 1, source));
  T result = 0;
  if constexpr (op == LowestOp::kIsolate) HostBlsi(c.state->rflags, result, source);
  if constexpr (op == LowestOp::kReset) HostBlsr(c.state->rflags, result, source);
  if constexpr (op == LowestOp::kMask) HostBlsmsk(c.state->rflags, result, source);
  c.WriteReg<T>(d.reg[0], result);
  return true;
}

template <LowestOp op>
Handler ResolveLowest(const Instruction& insn) {
  return insn.operand[0].size == 8 ? Lowest<op, uint64_t> : Lowest<op, uint32_t>;
}

/// BMI's three-operand instructions: a = b INSN c, in Intel's order of operands.
#define INTERP_THREE(NAME, INSN)                                  \
  template <typename T>                                           \
  bool NAME(Core& core, const Decoded& d) {                       \
    T b, c, a = 0;                                                \
    INTERP_TRY(core.LoadOperand<T>(d, 1, b));                     \
    INTERP_TRY(core.LoadOperand<T>(d, 2, c));                     \
    uint32_t ax = PackFlags(core.state->rflags);                  \
    asm(INTERP_FLAGS_IN INSN " %[c], %[b], %[a]" INTERP_FLAGS_OUT \
        : "+&a"(ax), [a] "+&r"(a)                                 \
        : [b] "r"(b), [c] "r"(c)                                  \
        : "cc");                                                  \
    UnpackFlags(core.state->rflags, ax);                          \
    core.WriteReg<T>(d.reg[0], a);                                \
    return true;                                                  \
  }                                                               \
  Handler Resolve##NAME(const Instruction& insn) { return insn.operand[0].size == 8 ? NAME<uint64_t> : NAME<uint32_t>; }
INTERP_THREE(Andn, "andn")
INTERP_THREE(Bextr, "bextr")
INTERP_THREE(Bzhi, "bzhi")
INTERP_THREE(Pdep, "pdep")
INTERP_THREE(Pext, "pext")
INTERP_THREE(Sarx, "sarx")
INTERP_THREE(Shlx, "shlx")
INTERP_THREE(Shrx, "shrx")

template <typename T>
bool Rorx(Core& c, const Decoded& d) {
  T value;
  INTERP_TRY(c.LoadOperand<T>(d, 1, value));
  constexpr unsigned kBits = sizeof(T) * 8;
  const unsigned count = d.insn.immediate & (kBits - 1);
  if (count != 0) value = static_cast<T>((value >> count) | (value << (kBits - count)));
  c.WriteReg<T>(d.reg[0], value);
  return true;
}
Handler ResolveRorx(const Instruction& insn) { return insn.operand[0].size == 8 ? Rorx<uint64_t> : Rorx<uint32_t>; }

bool Bswap(Core& c, const Decoded& d) {
  if (d.insn.operand[0].size == 8) {
    c.WriteReg<uint64_t>(d.reg[0], __builtin_bswap64(c.ReadReg<uint64_t>(d.reg[0])));
  } else if (d.insn.operand[0].size == 4) {
    c.WriteReg<uint32_t>(d.reg[0], __builtin_bswap32(c.ReadReg<uint32_t>(d.reg[0])));
  } else {
    c.WriteReg<uint16_t>(d.reg[0], 0);  // undefined by the manual; zero on every CPU seen
  }
  return true;
}

template <typename T>
bool Crc32(Core& c, const Decoded& d) {
  T source;
  INTERP_TRY(c.LoadOperand<T>(d, 1, source));
  uint64_t crc = c.ReadReg<uint32_t>(d.reg[0]);
  if constexpr (sizeof(T) == 8) {
    asm("crc32q %[source], %q[crc]" : [crc] "+r"(crc) : [source] "r"(source));
  } else {
    auto narrow = static_cast<uint32_t>(crc);
    asm("crc32 %[source], %[crc]" : [crc] "+r"(narrow) : [source] "q"(source));
    crc = narrow;
  }
  c.WriteReg<uint64_t>(d.reg[0], crc);
  return true;
}
Handler ResolveCrc32(const Instruction& insn) {
  Handler handler = nullptr;
  WithSize(insn.operand[1].size, [&](auto typed) {
    handler = Crc32<decltype(typed)>;
    return true;
  });
  return handler;
}

}  // namespace

void RegisterBits(HandlerTable& t) {
  t.Set(ZYDIS_MNEMONIC_BT, ResolveBitTest<BitOp::kTest>);
  t.Set(ZYDIS_MNEMONIC_BTS, ResolveBitTest<BitOp::kSet>);
  t.Set(ZYDIS_MNEMONIC_BTR, ResolveBitTest<BitOp::kReset>);
  t.Set(ZYDIS_MNEMONIC_BTC, ResolveBitTest<BitOp::kComplement>);
  t.Set(ZYDIS_MNEMONIC_BSF, ResolveBitScan<true>);
  t.Set(ZYDIS_MNEMONIC_BSR, ResolveBitScan<false>);
  t.Set(ZYDIS_MNEMONIC_POPCNT, ResolveCount<CountOp::kPopcnt>);
  t.Set(ZYDIS_MNEMONIC_LZCNT, ResolveCount<CountOp::kLzcnt>);
  t.Set(ZYDIS_MNEMONIC_TZCNT, ResolveCount<CountOp::kTzcnt>);
  t.Set(ZYDIS_MNEMONIC_BLSI, ResolveLowest<LowestOp::kIsolate>);
  t.Set(ZYDIS_MNEMONIC_BLSR, ResolveLowest<LowestOp::kReset>);
  t.Set(ZYDIS_MNEMONIC_BLSMSK, ResolveLowest<LowestOp::kMask>);
  t.Set(ZYDIS_MNEMONIC_ANDN, ResolveAndn);
  t.Set(ZYDIS_MNEMONIC_BEXTR, ResolveBextr);
  t.Set(ZYDIS_MNEMONIC_BZHI, ResolveBzhi);
  t.Set(ZYDIS_MNEMONIC_PDEP, ResolvePdep);
  t.Set(ZYDIS_MNEMONIC_PEXT, ResolvePext);
  t.Set(ZYDIS_MNEMONIC_SARX, ResolveSarx);
  t.Set(ZYDIS_MNEMONIC_SHLX, ResolveShlx);
  t.Set(ZYDIS_MNEMONIC_SHRX, ResolveShrx);
  t.Set(ZYDIS_MNEMONIC_RORX, ResolveRorx);
  t.Set(ZYDIS_MNEMONIC_BSWAP, Bswap);
  t.Set(ZYDIS_MNEMONIC_CRC32, ResolveCrc32);
}

}  // namespace nacre::engine::interp
