// MOV and its kin, two-operand arithmetic, INC DEC NEG NOT, XADD, CMPXCHG, XCHG, conditions.

#include "engine/interp/handlers.h"
#include "engine/interp/host_flags.h"

namespace nacre::engine::interp {

using x86::Instruction;
using x86::OperandKind;

namespace {

INTERP_BINARY(HostAdd, "add")
INTERP_BINARY(HostAdc, "adc")
INTERP_BINARY(HostSub, "sub")
INTERP_BINARY(HostSbb, "sbb")
INTERP_BINARY(HostAnd, "and")
INTERP_BINARY(HostOr, "or")
INTERP_BINARY(HostXor, "xor")
INTERP_BINARY(HostCmp, "cmp")
INTERP_BINARY(HostTest, "test")
INTERP_UNARY(HostInc, "inc")
INTERP_UNARY(HostDec, "dec")
INTERP_UNARY(HostNeg, "neg")

enum class Op { kAdd, kAdc, kSub, kSbb, kAnd, kOr, kXor, kCmp, kTest, kInc, kDec, kNeg };

template <Op op, typename T>
inline void Apply(uint64_t& rflags, T& a, T b) {
  if constexpr (op == Op::kAdd) HostAdd(rflags, a, b);
  if constexpr (op == Op::kAdc) HostAdc(rflags, a, b);
  if constexpr (op == Op::kSub) HostSub(rflags, a, b);
  if constexpr (op == Op::kSbb) HostSbb(rflags, a, b);
  if constexpr (op == Op::kAnd) HostAnd(rflags, a, b);
  if constexpr (op == Op::kOr) HostOr(rflags, a, b);
  if constexpr (op == Op::kXor) HostXor(rflags, a, b);
  if constexpr (op == Op::kCmp) HostCmp(rflags, a, b);
  if constexpr (op == Op::kTest) HostTest(rflags, a, b);
  if constexpr (op == Op::kInc) HostInc(rflags, a);
  if constexpr (op == Op::kDec) HostDec(rflags, a);
  if constexpr (op == Op::kNeg) HostNeg(rflags, a);
}

constexpr bool OnlyReads(Op op) { return op == Op::kCmp || op == Op::kTest; }

/// The general form.
template <Op op, typename T>
bool Binary(Core& c, const Decoded& d) {
  T source{};
  if (d.insn.operand_count > 1) INTERP_TRY(c.LoadOperand<T>(d, 1, source));
  const uint64_t before = c.state->rflags;
  uint64_t flags = before;
  if constexpr (OnlyReads(op)) {
    T value;
    INTERP_TRY(c.LoadOperand<T>(d, 0, value));
    Apply<op>(flags, value, source);
  } else {
    INTERP_TRY(c.ModifyOperand<T>(d, 0, [&](T& value) {
      flags = before;
      Apply<op>(flags, value, source);
    }));
  }
  c.state->rflags = flags;
  return true;
}

/// Register and register or immediate: the most common form by far.
template <Op op, typename T, bool kImmediate>
bool BinaryRegister(Core& c, const Decoded& d) {
  T value = c.ReadReg<T>(d.reg[0]);
  const T source = kImmediate ? static_cast<T>(d.insn.immediate) : c.ReadReg<T>(d.reg[1]);
  Apply<op>(c.state->rflags, value, source);
  if constexpr (!OnlyReads(op)) c.WriteReg<T>(d.reg[0], value);
  return true;
}

template <Op op>
Handler ResolveBinary(const Instruction& insn) {
  Handler handler = nullptr;
  WithSize(insn.operand[0].size, [&](auto typed) {
    using T = decltype(typed);
    handler = Binary<op, T>;
    if (insn.operand_count == 2 && insn.operand[0].kind == OperandKind::kRegister) {
      if (insn.operand[1].kind == OperandKind::kRegister) handler = BinaryRegister<op, T, false>;
      if (insn.operand[1].kind == OperandKind::kImmediate) handler = BinaryRegister<op, T, true>;
    }
    return true;
  });
  return handler;
}

template <typename T>
bool Not(Core& c, const Decoded& d) {
  return c.ModifyOperand<T>(d, 0, [](T& value) { value = static_cast<T>(~value); });
}

template <typename T>
bool Xadd(Core& c, const Decoded& d) {
  const T addend = c.ReadReg<T>(d.reg[1]);
  const uint64_t before = c.state->rflags;
  uint64_t flags = before;
  T old{};
  INTERP_TRY(c.ModifyOperand<T>(d, 0, [&](T& value) {
    old = value;
    flags = before;
    HostAdd(flags, value, addend);
  }));
  // Two registers: the exchange is written first, the sum last (XADD r, r of one register leaves the sum).
  if (d.insn.operand[0].kind == OperandKind::kRegister) {
    const T sum = c.ReadReg<T>(d.reg[0]);
    c.WriteReg<T>(d.reg[1], old);
    c.WriteReg<T>(d.reg[0], sum);
  } else {
    c.WriteReg<T>(d.reg[1], old);
  }
  c.state->rflags = flags;
  return true;
}

template <typename T>
bool Xchg(Core& c, const Decoded& d) {
  // With memory it is always locked (SDM 3A 8.1.2.1).
  const bool swapped = d.insn.operand[1].kind == OperandKind::kMemory;
  const unsigned memory = swapped ? 1 : 0, other = swapped ? 0 : 1;
  const T in = c.ReadReg<T>(d.reg[other]);
  T out{};
  INTERP_TRY(c.ModifyOperand<T>(
      d, memory,
      [&](T& value) {
        out = value;
        value = in;
      },
      true));
  c.WriteReg<T>(d.reg[other], out);
  return true;
}

template <typename T>
bool Cmpxchg(Core& c, const Decoded& d) {
  const T replacement = c.ReadReg<T>(d.reg[1]);
  const T accumulator = c.ReadReg<T>(0);
  T seen{};
  if (d.insn.operand[0].kind == OperandKind::kRegister) {
    seen = c.ReadReg<T>(d.reg[0]);
    // With 32-bit operands the register that "keeps" its value still loses its upper half (it is written).
    if (seen == accumulator)
      c.WriteReg<T>(d.reg[0], replacement);
    else
      c.WriteReg<T>(0, seen);
  } else {
    INTERP_TRY(c.ModifyOperand<T>(d, 0, [&](T& value) {
      seen = value;
      if (seen == accumulator) value = replacement;  // else the old value is written back
    }));
    if (seen != accumulator) c.WriteReg<T>(0, seen);
  }
  T compared = accumulator;
  HostCmp(c.state->rflags, compared, seen);
  return true;
}

bool Cmpxchg8b(Core& c, const Decoded& d) {
  x86::CpuState& s = *c.state;
  const uint64_t expected = (s.gpr[x86::kRdx] << 32) | (s.gpr[x86::kRax] & 0xffffffff);
  const uint64_t replacement = (s.gpr[x86::kRcx] << 32) | (s.gpr[x86::kRbx] & 0xffffffff);
  uint64_t seen = 0;
  INTERP_TRY(c.ModifyOperand<uint64_t>(d, 0, [&](uint64_t& value) {
    seen = value;
    if (seen == expected) value = replacement;
  }));
  if (seen == expected) {
    s.rflags |= x86::rflags::kZf;
  } else {
    s.rflags &= ~x86::rflags::kZf;
    s.gpr[x86::kRax] = seen & 0xffffffff;
    s.gpr[x86::kRdx] = seen >> 32;
  }
  return true;
}

bool Cmpxchg16b(Core& c, const Decoded& d) {
  x86::CpuState& s = *c.state;
  uint64_t linear;
  MemRef ref;
  const uint64_t offset = c.EffectiveAddress(d);
  // Only in 64-bit mode. Alignment is checked before the address: it is #GP(0) even on a stack outside the canonical.
  linear = d.insn.segment >= x86::kFs ? offset + s.segment[d.insn.segment].base : offset;
  if (linear & 15) return c.Gp();
  INTERP_TRY(c.Linear(c.OperandSegment(d), offset, 16, x86::Access::kWrite, linear));
  INTERP_TRY(c.Translate(linear, 16, x86::Access::kWrite, ref));
  unsigned __int128 expected = (static_cast<unsigned __int128>(s.gpr[x86::kRdx]) << 64) | s.gpr[x86::kRax];
  const uint64_t low = s.gpr[x86::kRbx], high = s.gpr[x86::kRcx];
  bool equal;
  uint64_t seen[2] = {static_cast<uint64_t>(expected), static_cast<uint64_t>(expected >> 64)};
  if (ref.host[0]) {
    asm volatile("lock cmpxchg16b %[memory]"
                 : [memory] "+m"(*reinterpret_cast<char(*)[16]>(ref.host[0])), "+a"(seen[0]), "+d"(seen[1]),
                   "=@ccz"(equal)
                 : "b"(low), "c"(high)
                 : "memory");
    c.Written(ref.host[0], ref.phys[0], 16);
  } else {
    uint64_t value[2];
    c.LoadRef(ref, value);
    equal = value[0] == seen[0] && value[1] == seen[1];
    seen[0] = value[0];
    seen[1] = value[1];
    if (equal) {
      value[0] = low;
      value[1] = high;
    }
    c.StoreRef(ref, value);
  }
  if (equal) {
    s.rflags |= x86::rflags::kZf;
  } else {
    s.rflags &= ~x86::rflags::kZf;
    s.gpr[x86::kRax] = seen[0];
    s.gpr[x86::kRdx] = seen[1];
  }
  return true;
}

// ---- Moves.

template <typename T>
bool Mov(Core& c, const Decoded& d) {
  T value;
  INTERP_TRY(c.LoadOperand<T>(d, 1, value));
  return c.StoreOperand<T>(d, 0, value);
}
template <typename T>
bool MovLoad(Core& c, const Decoded& d) {
  T value;
  INTERP_TRY(c.ReadSegment<T>(c.OperandSegment(d), c.EffectiveAddress(d), value));
  c.WriteReg<T>(d.reg[0], value);
  return true;
}
template <typename T>
bool MovStore(Core& c, const Decoded& d) {
  return c.WriteSegment<T>(c.OperandSegment(d), c.EffectiveAddress(d), c.ReadReg<T>(d.reg[1]));
}
template <typename T>
bool MovRegister(Core& c, const Decoded& d) {
  c.WriteReg<T>(d.reg[0], c.ReadReg<T>(d.reg[1]));
  return true;
}

bool IsGpr(const x86::Operand& operand) {
  return operand.kind == OperandKind::kRegister &&
         (operand.register_class == x86::RegisterClass::kGpr || operand.register_class == x86::RegisterClass::kGprHigh);
}

Handler ResolveMov(const Instruction& insn) {
  Handler handler = nullptr;
  for (unsigned i = 0; i < 2; ++i) {
    if (insn.operand[i].kind != OperandKind::kRegister || IsGpr(insn.operand[i])) continue;
    switch (insn.operand[i].register_class) {
      case x86::RegisterClass::kSegment:
        return i == 0 ? MovToSegment : MovFromSegment;
      case x86::RegisterClass::kControl:
        return i == 0 ? MovToControl : MovFromControl;
      case x86::RegisterClass::kDebug:
        return i == 0 ? MovToDebug : MovFromDebug;
      default:
        return InvalidOpcode;  // test registers
    }
  }
  WithSize(insn.operand[0].size, [&](auto typed) {
    using T = decltype(typed);
    handler = Mov<T>;
    const bool to_gpr = IsGpr(insn.operand[0]);
    if (to_gpr && insn.operand[1].kind == OperandKind::kMemory) handler = MovLoad<T>;
    if (to_gpr && IsGpr(insn.operand[1])) handler = MovRegister<T>;
    if (insn.operand[0].kind == OperandKind::kMemory && IsGpr(insn.operand[1])) handler = MovStore<T>;
    return true;
  });
  return handler;
}

template <typename From, typename To>
bool Extend(Core& c, const Decoded& d) {
  From value;
  INTERP_TRY(c.LoadOperand<From>(d, 1, value));
  using Wide = std::conditional_t<std::is_signed_v<From>, std::make_signed_t<To>, To>;
  c.WriteReg<To>(d.reg[0], static_cast<To>(static_cast<Wide>(value)));
  return true;
}

template <bool kSigned>
Handler ResolveExtend(const Instruction& insn) {
  Handler handler = InvalidOpcode;
  WithSize(insn.operand[1].size, [&](auto from) {
    return WithSize(insn.operand[0].size, [&](auto to) {
      using From = std::conditional_t<kSigned, std::make_signed_t<decltype(from)>, decltype(from)>;
      handler = Extend<From, decltype(to)>;
      return true;
    });
  });
  return handler;
}

template <typename T>
bool Lea(Core& c, const Decoded& d) {
  c.WriteReg<T>(d.reg[0], static_cast<T>(c.EffectiveAddress(d)));
  return true;
}

template <typename T>
bool Movbe(Core& c, const Decoded& d) {
  T value;
  INTERP_TRY(c.LoadOperand<T>(d, 1, value));
  if constexpr (sizeof(T) == 2) value = __builtin_bswap16(value);
  if constexpr (sizeof(T) == 4) value = __builtin_bswap32(value);
  if constexpr (sizeof(T) == 8) value = __builtin_bswap64(value);
  return c.StoreOperand<T>(d, 0, value);
}

template <typename T>
bool Cmov(Core& c, const Decoded& d) {
  // The source is read (and faults) whatever the condition; a 32-bit destination is zero-extended even if it stays.
  T value;
  INTERP_TRY(c.LoadOperand<T>(d, 1, value));
  if (!Condition(c.state->rflags, d.insn.opcode & 15)) value = c.ReadReg<T>(d.reg[0]);
  c.WriteReg<T>(d.reg[0], value);
  return true;
}

bool Setcc(Core& c, const Decoded& d) {
  return c.StoreOperand<uint8_t>(d, 0, Condition(c.state->rflags, d.insn.opcode & 15));
}

INTERP_RESOLVE(Not)
INTERP_RESOLVE(Xadd)
INTERP_RESOLVE(Xchg)
INTERP_RESOLVE(Cmpxchg)
INTERP_RESOLVE(Lea)
INTERP_RESOLVE(Movbe)
INTERP_RESOLVE(Cmov)
INTERP_RESOLVE(MovStore)

}  // namespace

void RegisterMove(HandlerTable& t) {
  t.Set(ZYDIS_MNEMONIC_MOV, ResolveMov);
  t.Set(ZYDIS_MNEMONIC_MOVNTI, ResolveMovStore);
  t.Set(ZYDIS_MNEMONIC_MOVZX, ResolveExtend<false>);
  t.Set(ZYDIS_MNEMONIC_MOVSX, ResolveExtend<true>);
  t.Set(ZYDIS_MNEMONIC_MOVSXD, ResolveExtend<true>);
  t.Set(ZYDIS_MNEMONIC_LEA, ResolveLea);
  t.Set(ZYDIS_MNEMONIC_MOVBE, ResolveMovbe);
  t.Set(ZYDIS_MNEMONIC_XCHG, ResolveXchg);
}

void RegisterAlu(HandlerTable& t) {
  t.Set(ZYDIS_MNEMONIC_ADD, ResolveBinary<Op::kAdd>);
  t.Set(ZYDIS_MNEMONIC_ADC, ResolveBinary<Op::kAdc>);
  t.Set(ZYDIS_MNEMONIC_SUB, ResolveBinary<Op::kSub>);
  t.Set(ZYDIS_MNEMONIC_SBB, ResolveBinary<Op::kSbb>);
  t.Set(ZYDIS_MNEMONIC_AND, ResolveBinary<Op::kAnd>);
  t.Set(ZYDIS_MNEMONIC_OR, ResolveBinary<Op::kOr>);
  t.Set(ZYDIS_MNEMONIC_XOR, ResolveBinary<Op::kXor>);
  t.Set(ZYDIS_MNEMONIC_CMP, ResolveBinary<Op::kCmp>);
  t.Set(ZYDIS_MNEMONIC_TEST, ResolveBinary<Op::kTest>);
  t.Set(ZYDIS_MNEMONIC_INC, ResolveBinary<Op::kInc>);
  t.Set(ZYDIS_MNEMONIC_DEC, ResolveBinary<Op::kDec>);
  t.Set(ZYDIS_MNEMONIC_NEG, ResolveBinary<Op::kNeg>);
  t.Set(ZYDIS_MNEMONIC_NOT, ResolveNot);
  t.Set(ZYDIS_MNEMONIC_XADD, ResolveXadd);
  t.Set(ZYDIS_MNEMONIC_CMPXCHG, ResolveCmpxchg);
  t.Set(ZYDIS_MNEMONIC_CMPXCHG8B, Cmpxchg8b);
  t.Set(ZYDIS_MNEMONIC_CMPXCHG16B, Cmpxchg16b);
}

void RegisterConditions(HandlerTable& t) {
  constexpr ZydisMnemonic kCmovs[] = {
      ZYDIS_MNEMONIC_CMOVO, ZYDIS_MNEMONIC_CMOVNO, ZYDIS_MNEMONIC_CMOVB,  ZYDIS_MNEMONIC_CMOVNB,
      ZYDIS_MNEMONIC_CMOVZ, ZYDIS_MNEMONIC_CMOVNZ, ZYDIS_MNEMONIC_CMOVBE, ZYDIS_MNEMONIC_CMOVNBE,
      ZYDIS_MNEMONIC_CMOVS, ZYDIS_MNEMONIC_CMOVNS, ZYDIS_MNEMONIC_CMOVP,  ZYDIS_MNEMONIC_CMOVNP,
      ZYDIS_MNEMONIC_CMOVL, ZYDIS_MNEMONIC_CMOVNL, ZYDIS_MNEMONIC_CMOVLE, ZYDIS_MNEMONIC_CMOVNLE};
  for (ZydisMnemonic mnemonic : kCmovs) t.Set(mnemonic, ResolveCmov);
  constexpr ZydisMnemonic kSets[] = {
      ZYDIS_MNEMONIC_SETO, ZYDIS_MNEMONIC_SETNO, ZYDIS_MNEMONIC_SETB,  ZYDIS_MNEMONIC_SETNB,
      ZYDIS_MNEMONIC_SETZ, ZYDIS_MNEMONIC_SETNZ, ZYDIS_MNEMONIC_SETBE, ZYDIS_MNEMONIC_SETNBE,
      ZYDIS_MNEMONIC_SETS, ZYDIS_MNEMONIC_SETNS, ZYDIS_MNEMONIC_SETP,  ZYDIS_MNEMONIC_SETNP,
      ZYDIS_MNEMONIC_SETL, ZYDIS_MNEMONIC_SETNL, ZYDIS_MNEMONIC_SETLE, ZYDIS_MNEMONIC_SETNLE};
  for (ZydisMnemonic mnemonic : kSets) t.Set(mnemonic, Setcc);
}

}  // namespace nacre::engine::interp
