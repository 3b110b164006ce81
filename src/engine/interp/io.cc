// IN and OUT, their permission (SDM 1 19.5) and breakpoints (SDM 3B 17.2.4).

#include "engine/interp/handlers.h"

namespace nacre::engine::interp {

bool Core::CheckPort(uint16_t port, unsigned size) {
  if (!state->protected_mode()) return true;
  if (!state->virtual8086() && state->cpl() <= iopl()) return true;
  const x86::Segment& tr = state->tr;
  const bool wide = tr.type() == kTss32 || tr.type() == kTss32Busy;
  if (tr.unusable() || !tr.present() || !wide || tr.limit < 0x67) return Gp();
  uint16_t base;
  INTERP_TRY(SystemRead(tr.base + 0x66, &base, 2));
  const uint32_t at = base + port / 8u;
  if (at + 1 > tr.limit) return Gp();
  uint16_t bits;
  INTERP_TRY(SystemRead(tr.base + at, &bits, 2));
  const auto mask = static_cast<uint16_t>(((1u << size) - 1) << (port & 7));
  return (bits & mask) == 0 ? true : Gp();
}

void Core::CheckIoBreakpoints(uint16_t port, unsigned size) {
  if (!(state->dr7 & 0xff) || !(state->cr4 & x86::cr4::kDe)) return;
  for (unsigned i = 0; i < 4; ++i) {
    if (!Bits(state->dr7, i * 2, 2) || Bits(state->dr7, 16 + i * 4, 2) != 2) continue;
    const uint64_t length = Bits(state->dr7, 18 + i * 4, 2) + 1;  // 1, 2 or 4
    const uint64_t start = state->dr[i] & ~(length - 1);
    if (port < start + length && start < port + size) debug_hits |= static_cast<uint32_t>(Bit(i));
  }
}

namespace {

uint16_t Port(Core& c, const Decoded& d) {
  const bool immediate = d.insn.opcode >= 0xe4 && d.insn.opcode <= 0xe7;
  return static_cast<uint16_t>(immediate ? d.insn.immediate & 0xff : c.state->gpr[x86::kRdx]);
}

/// Ports are at most 32 bits wide, whatever REX.W says; the low opcode bit tells bytes from words.
unsigned PortSize(const Decoded& d) {
  if (!(d.insn.opcode & 1)) return 1;
  return d.operand_size == 2 ? 2 : 4;
}

bool In(Core& c, const Decoded& d) {
  const uint16_t port = Port(c, d);
  const unsigned size = PortSize(d);
  INTERP_TRY(c.CheckPort(port, size));
  c.WriteGpr(x86::kRax, size, c.config.host->PortRead(port, size));
  c.CheckIoBreakpoints(port, size);
  return true;
}

bool Out(Core& c, const Decoded& d) {
  const uint16_t port = Port(c, d);
  const unsigned size = PortSize(d);
  INTERP_TRY(c.CheckPort(port, size));
  c.config.host->PortWrite(port, size, static_cast<uint32_t>(c.ReadGpr(x86::kRax, size)));
  c.CheckIoBreakpoints(port, size);
  return true;
}

}  // namespace

void RegisterIo(HandlerTable& t) {
  t.Set(ZYDIS_MNEMONIC_IN, In);
  t.Set(ZYDIS_MNEMONIC_OUT, Out);
}

}  // namespace nacre::engine::interp
