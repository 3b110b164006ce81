// MUL, IMUL, DIV, IDIV, MULX, ADCX, ADOX, and the sign extensions of the accumulator.

#include <limits>
#include <type_traits>

#include "engine/interp/handlers.h"
#include "engine/interp/host_flags.h"

namespace nacre::engine::interp {

using x86::Instruction;

namespace {

INTERP_BINARY(HostImul, "imul")

/// low:high = low INSN b with the host's flags; the accumulator is needed for the flags as well, hence the moves,
/// which change none.
#define INTERP_WIDENING(NAME, INSN, TYPE, A)                                                           \
  void NAME(uint64_t& rflags, TYPE& low, TYPE& high, TYPE b) {                                         \
    uint32_t ax = PackFlags(rflags);                                                                   \
    asm(INTERP_FLAGS_IN "mov %[low], %%" A "\n\t" INSN " %[b]\n\tmov %%" A ", %[low]" INTERP_FLAGS_OUT \
        : "+&a"(ax), [low] "+&r"(low), "=&d"(high)                                                     \
        : [b] "r"(b)                                                                                   \
        : "cc");                                                                                       \
    UnpackFlags(rflags, ax);                                                                           \
  }
INTERP_WIDENING(HostMul, "mul", uint16_t, "ax")
INTERP_WIDENING(HostMul, "mul", uint32_t, "eax")
INTERP_WIDENING(HostMul, "mul", uint64_t, "rax")
INTERP_WIDENING(HostImulWide, "imul", uint16_t, "ax")
INTERP_WIDENING(HostImulWide, "imul", uint32_t, "eax")
INTERP_WIDENING(HostImulWide, "imul", uint64_t, "rax")

#define INTERP_WIDENING8(NAME, INSN)                                                                     \
  void NAME(uint64_t& rflags, uint16_t& product, uint8_t b) {                                            \
    uint32_t ax = PackFlags(rflags);                                                                     \
    asm(INTERP_FLAGS_IN "mov %[product], %%ax\n\t" INSN " %[b]\n\tmov %%ax, %[product]" INTERP_FLAGS_OUT \
        : "+&a"(ax), [product] "+&r"(product)                                                            \
        : [b] "q"(b)                                                                                     \
        : "cc");                                                                                         \
    UnpackFlags(rflags, ax);                                                                             \
  }
INTERP_WIDENING8(HostMul8, "mul")
INTERP_WIDENING8(HostImul8, "imul")

template <bool kSigned, typename T>
bool Multiply(Core& c, const Decoded& d) {
  T source;
  INTERP_TRY(c.LoadOperand<T>(d, 0, source));
  x86::CpuState& s = *c.state;
  if constexpr (sizeof(T) == 1) {
    uint16_t product = static_cast<uint8_t>(s.gpr[x86::kRax]);
    if constexpr (kSigned)
      HostImul8(s.rflags, product, source);
    else
      HostMul8(s.rflags, product, source);
    c.WriteReg<uint16_t>(x86::kRax * 8, product);
  } else {
    T low = static_cast<T>(s.gpr[x86::kRax]), high;
    if constexpr (kSigned)
      HostImulWide(s.rflags, low, high, source);
    else
      HostMul(s.rflags, low, high, source);
    c.WriteReg<T>(x86::kRax * 8, low);
    c.WriteReg<T>(x86::kRdx * 8, high);
  }
  return true;
}

/// IMUL with two or three operands.
template <typename T>
bool Imul(Core& c, const Decoded& d) {
  T a, b;
  if (d.insn.operand_count == 3) {
    INTERP_TRY(c.LoadOperand<T>(d, 1, a));
    b = static_cast<T>(d.insn.immediate);
  } else {
    a = c.ReadReg<T>(d.reg[0]);
    INTERP_TRY(c.LoadOperand<T>(d, 1, b));
  }
  HostImul(c.state->rflags, a, b);
  c.WriteReg<T>(d.reg[0], a);
  return true;
}

Handler ResolveImul(const Instruction& insn) {
  Handler handler = nullptr;
  WithSize(insn.operand[0].size, [&](auto typed) {
    using T = decltype(typed);
    if (insn.operand_count == 1) {
      handler = Multiply<true, T>;
    } else {
      if constexpr (sizeof(T) > 1) handler = Imul<T>;
    }
    return true;
  });
  return handler;
}

Handler ResolveMul(const Instruction& insn) {
  Handler handler = nullptr;
  WithSize(insn.operand[0].size, [&](auto typed) {
    handler = Multiply<false, decltype(typed)>;
    return true;
  });
  return handler;
}

template <typename T>
struct Wider;
template <>
struct Wider<uint8_t> {
  using U = uint16_t;
  using S = int16_t;
};
template <>
struct Wider<uint16_t> {
  using U = uint32_t;
  using S = int32_t;
};
template <>
struct Wider<uint32_t> {
  using U = uint64_t;
  using S = int64_t;
};
template <>
struct Wider<uint64_t> {
  using U = unsigned __int128;
  using S = __int128;
};

/// The flags are undefined; they stay.
template <bool kSigned, typename T>
bool Divide(Core& c, const Decoded& d) {
  T divisor;
  INTERP_TRY(c.LoadOperand<T>(d, 0, divisor));
  if (divisor == 0) return c.Fault(x86::kDivideError);
  x86::CpuState& s = *c.state;
  using U = typename Wider<T>::U;
  using S = typename Wider<T>::S;
  U dividend;
  if constexpr (sizeof(T) == 1) {
    dividend = static_cast<uint16_t>(s.gpr[x86::kRax]);
  } else {
    dividend = static_cast<U>(static_cast<U>(static_cast<T>(s.gpr[x86::kRdx])) << (sizeof(T) * 8)) |
               static_cast<T>(s.gpr[x86::kRax]);
  }
  T quotient, remainder;
  if constexpr (kSigned) {
    using I = std::make_signed_t<T>;
    const auto n = static_cast<S>(dividend);
    const auto by = static_cast<I>(divisor);
    // The smallest dividend over -1 overflows on our side too.
    if (by == -1) {
      const U negated = static_cast<U>(0 - dividend);
      const auto q = static_cast<S>(negated);
      if (q < std::numeric_limits<I>::min() || q > std::numeric_limits<I>::max() || (n < 0 && q < 0))
        return c.Fault(x86::kDivideError);
      quotient = static_cast<T>(q);
      remainder = 0;
    } else {
      const S q = static_cast<S>(n / by);
      if (q < std::numeric_limits<I>::min() || q > std::numeric_limits<I>::max()) return c.Fault(x86::kDivideError);
      quotient = static_cast<T>(q);
      remainder = static_cast<T>(n % by);
    }
  } else {
    const U q = static_cast<U>(dividend / divisor);
    if (q > std::numeric_limits<T>::max()) return c.Fault(x86::kDivideError);
    quotient = static_cast<T>(q);
    remainder = static_cast<T>(dividend % divisor);
  }
  if constexpr (sizeof(T) == 1) {
    c.WriteReg<uint16_t>(x86::kRax * 8, static_cast<uint16_t>(quotient | (remainder << 8)));
  } else {
    c.WriteReg<T>(x86::kRax * 8, quotient);
    c.WriteReg<T>(x86::kRdx * 8, remainder);
  }
  return true;
}

template <bool kSigned>
Handler ResolveDivide(const Instruction& insn) {
  Handler handler = nullptr;
  WithSize(insn.operand[0].size, [&](auto typed) {
    handler = Divide<kSigned, decltype(typed)>;
    return true;
  });
  return handler;
}

template <typename T>
bool Mulx(Core& c, const Decoded& d) {
  T source;
  INTERP_TRY(c.LoadOperand<T>(d, 2, source));
  const auto product = static_cast<unsigned __int128>(source) * static_cast<T>(c.state->gpr[x86::kRdx]);
  // Of two equal destinations the first keeps the high half: it is written last.
  c.WriteReg<T>(d.reg[1], static_cast<T>(product));
  c.WriteReg<T>(d.reg[0], static_cast<T>(product >> (sizeof(T) * 8)));
  return true;
}

template <uint64_t kFlag, typename T>
bool AddWithFlag(Core& c, const Decoded& d) {
  T source;
  INTERP_TRY(c.LoadOperand<T>(d, 1, source));
  uint64_t& flags = c.state->rflags;
  const auto sum = static_cast<unsigned __int128>(c.ReadReg<T>(d.reg[0])) + source + ((flags & kFlag) ? 1 : 0);
  c.WriteReg<T>(d.reg[0], static_cast<T>(sum));
  flags = (sum >> (sizeof(T) * 8)) != 0 ? flags | kFlag : flags & ~kFlag;
  return true;
}

Handler ResolveMulx(const Instruction& insn) { return insn.operand[0].size == 8 ? Mulx<uint64_t> : Mulx<uint32_t>; }
template <uint64_t kFlag>
Handler ResolveAddWithFlag(const Instruction& insn) {
  return insn.operand[0].size == 8 ? AddWithFlag<kFlag, uint64_t> : AddWithFlag<kFlag, uint32_t>;
}

/// CBW CWDE CDQE: the accumulator from its lower half.
template <typename From, typename To>
bool ExtendAccumulator(Core& c, const Decoded&) {
  c.WriteReg<To>(0, static_cast<To>(static_cast<std::make_signed_t<To>>(static_cast<From>(c.state->gpr[x86::kRax]))));
  return true;
}
/// CWD CDQ CQO: rDX from the accumulator's sign.
template <typename T>
bool SignToRdx(Core& c, const Decoded&) {
  using I = std::make_signed_t<T>;
  const auto value = static_cast<I>(c.state->gpr[x86::kRax]);
  c.WriteReg<T>(x86::kRdx * 8, static_cast<T>(value < 0 ? -1 : 0));
  return true;
}

}  // namespace

void RegisterMultiply(HandlerTable& t) {
  t.Set(ZYDIS_MNEMONIC_MUL, ResolveMul);
  t.Set(ZYDIS_MNEMONIC_IMUL, ResolveImul);
  t.Set(ZYDIS_MNEMONIC_DIV, ResolveDivide<false>);
  t.Set(ZYDIS_MNEMONIC_IDIV, ResolveDivide<true>);
  t.Set(ZYDIS_MNEMONIC_MULX, ResolveMulx);
  t.Set(ZYDIS_MNEMONIC_ADCX, ResolveAddWithFlag<x86::rflags::kCf>);
  t.Set(ZYDIS_MNEMONIC_ADOX, ResolveAddWithFlag<x86::rflags::kOf>);
  t.Set(ZYDIS_MNEMONIC_CBW, ExtendAccumulator<int8_t, uint16_t>);
  t.Set(ZYDIS_MNEMONIC_CWDE, ExtendAccumulator<int16_t, uint32_t>);
  t.Set(ZYDIS_MNEMONIC_CDQE, ExtendAccumulator<int32_t, uint64_t>);
  t.Set(ZYDIS_MNEMONIC_CWD, SignToRdx<uint16_t>);
  t.Set(ZYDIS_MNEMONIC_CDQ, SignToRdx<uint32_t>);
  t.Set(ZYDIS_MNEMONIC_CQO, SignToRdx<uint64_t>);
}

}  // namespace nacre::engine::interp
