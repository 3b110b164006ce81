// Shifts, rotates and double shifts, by the host's own instructions.

#include "engine/interp/handlers.h"
#include "engine/interp/host_flags.h"

namespace nacre::engine::interp {

using x86::Instruction;
using x86::OperandKind;

namespace {

INTERP_SHIFT(HostShl, "shl")
INTERP_SHIFT(HostShr, "shr")
INTERP_SHIFT(HostSar, "sar")
INTERP_SHIFT(HostRol, "rol")
INTERP_SHIFT(HostRor, "ror")
INTERP_SHIFT(HostRcl, "rcl")
INTERP_SHIFT(HostRcr, "rcr")

enum class Op { kShl, kShr, kSar, kRol, kRor, kRcl, kRcr };

template <Op op, typename T>
void Apply(uint64_t& rflags, T& a, uint8_t count) {
  if constexpr (op == Op::kShl) HostShl(rflags, a, count);
  if constexpr (op == Op::kShr) HostShr(rflags, a, count);
  if constexpr (op == Op::kSar) HostSar(rflags, a, count);
  if constexpr (op == Op::kRol) HostRol(rflags, a, count);
  if constexpr (op == Op::kRor) HostRor(rflags, a, count);
  if constexpr (op == Op::kRcl) HostRcl(rflags, a, count);
  if constexpr (op == Op::kRcr) HostRcr(rflags, a, count);
}

template <Op op, typename T>
bool Shift(Core& c, const Decoded& d) {
  uint8_t count;
  switch (d.insn.opcode) {
    case 0xd0:
    case 0xd1:
      count = 1;
      break;
    case 0xd2:
    case 0xd3:
      count = static_cast<uint8_t>(c.state->gpr[x86::kRcx]);
      break;
    default:
      count = static_cast<uint8_t>(d.insn.immediate);
      break;
  }
  uint64_t flags = c.state->rflags;
  INTERP_TRY(c.ModifyOperand<T>(d, 0, [&](T& value) { Apply<op>(flags, value, count); }));
  c.state->rflags = flags;
  return true;
}

template <Op op>
Handler ResolveShift(const Instruction& insn) {
  Handler handler = nullptr;
  WithSize(insn.operand[0].size, [&](auto typed) {
    handler = Shift<op, decltype(typed)>;
    return true;
  });
  return handler;
}

template <bool kLeft, typename T>
bool DoubleShift(Core& c, const Decoded& d) {
  const bool by_register = d.insn.opcode == 0xa5 || d.insn.opcode == 0xad;
  const auto count = static_cast<uint8_t>(by_register ? c.state->gpr[x86::kRcx] : d.insn.immediate);
  const T source = c.ReadReg<T>(d.reg[1]);
  uint64_t flags = c.state->rflags;
  INTERP_TRY(c.ModifyOperand<T>(d, 0, [&](T& value) {
    uint32_t ax = PackFlags(flags);
    if constexpr (kLeft) {
      asm(INTERP_FLAGS_IN "shld %%cl, %[source], %[value]" INTERP_FLAGS_OUT
          : "+&a"(ax), [value] "+&r"(value)
          : [source] "r"(source), "c"(count)
          : "cc");
    } else {
      asm(INTERP_FLAGS_IN "shrd %%cl, %[source], %[value]" INTERP_FLAGS_OUT
          : "+&a"(ax), [value] "+&r"(value)
          : [source] "r"(source), "c"(count)
          : "cc");
    }
    UnpackFlags(flags, ax);
  }));
  c.state->rflags = flags;
  return true;
}

template <bool kLeft>
Handler ResolveDouble(const Instruction& insn) {
  switch (insn.operand[0].size) {
    case 2:
      return DoubleShift<kLeft, uint16_t>;
    case 4:
      return DoubleShift<kLeft, uint32_t>;
    default:
      return DoubleShift<kLeft, uint64_t>;
  }
}

}  // namespace

void RegisterShift(HandlerTable& t) {
  t.Set(ZYDIS_MNEMONIC_SHL, ResolveShift<Op::kShl>);
  t.Set(ZYDIS_MNEMONIC_SHR, ResolveShift<Op::kShr>);
  t.Set(ZYDIS_MNEMONIC_SAR, ResolveShift<Op::kSar>);
  t.Set(ZYDIS_MNEMONIC_ROL, ResolveShift<Op::kRol>);
  t.Set(ZYDIS_MNEMONIC_ROR, ResolveShift<Op::kRor>);
  t.Set(ZYDIS_MNEMONIC_RCL, ResolveShift<Op::kRcl>);
  t.Set(ZYDIS_MNEMONIC_RCR, ResolveShift<Op::kRcr>);
  t.Set(ZYDIS_MNEMONIC_SHLD, ResolveDouble<true>);
  t.Set(ZYDIS_MNEMONIC_SHRD, ResolveDouble<false>);
}

}  // namespace nacre::engine::interp
