// Decimal arithmetic (SDM 2A "AAA" to "DAS"). Flags that the manual leaves undefined are as AMD and Intel leave them
// where both agree: AAM and AAD clear OF, AF and CF.

#include <bit>

#include "engine/interp/handlers.h"

namespace nacre::engine::interp {

namespace rf = x86::rflags;

namespace {

constexpr uint8_t kAl = 0, kAh = 1;  // byte offsets of the registers

void ResultFlags(Core& c, uint8_t value) {
  uint64_t flags = c.state->rflags & ~(rf::kSf | rf::kZf | rf::kPf);
  if (value & 0x80) flags |= rf::kSf;
  if (value == 0) flags |= rf::kZf;
  if (std::popcount(value) % 2 == 0) flags |= rf::kPf;
  c.state->rflags = flags;
}

void SetFlag(Core& c, uint64_t flag, bool on) {
  c.state->rflags = on ? c.state->rflags | flag : c.state->rflags & ~flag;
}

template <bool kAdd>
bool AsciiAdjust(Core& c, const Decoded&) {
  auto ax = c.ReadReg<uint16_t>(kAl);
  const bool adjust = (ax & 0xf) > 9 || (c.state->rflags & rf::kAf);
  if (adjust) ax = static_cast<uint16_t>(kAdd ? ax + 0x106 : ax - 0x106);
  SetFlag(c, rf::kAf, adjust);
  SetFlag(c, rf::kCf, adjust);
  c.WriteReg<uint16_t>(kAl, ax & 0xff0f);
  ResultFlags(c, static_cast<uint8_t>(ax & 0xf));
  SetFlag(c, rf::kOf, false);
  return true;
}

template <bool kAdd>
bool DecimalAdjust(Core& c, const Decoded&) {
  const auto old = c.ReadReg<uint8_t>(kAl);
  const bool old_carry = c.state->rflags & rf::kCf;
  uint8_t al = old;
  bool carry = false;
  const bool low = (old & 0xf) > 9 || (c.state->rflags & rf::kAf);
  if (low) {
    carry = old_carry || (kAdd ? old > 0xf9 : old < 6);
    al = static_cast<uint8_t>(kAdd ? al + 6 : al - 6);
  }
  if (old > 0x99 || old_carry) {
    al = static_cast<uint8_t>(kAdd ? al + 0x60 : al - 0x60);
    carry = true;
  }
  SetFlag(c, rf::kAf, low);
  SetFlag(c, rf::kCf, carry);
  c.WriteReg<uint8_t>(kAl, al);
  ResultFlags(c, al);
  SetFlag(c, rf::kOf, false);
  return true;
}

bool Aam(Core& c, const Decoded& d) {
  const auto base = static_cast<uint8_t>(d.insn.immediate);
  if (base == 0) return c.Fault(x86::kDivideError);
  const auto al = c.ReadReg<uint8_t>(kAl);
  c.WriteReg<uint8_t>(kAh, al / base);
  c.WriteReg<uint8_t>(kAl, al % base);
  ResultFlags(c, al % base);
  c.state->rflags &= ~(rf::kOf | rf::kAf | rf::kCf);
  return true;
}

bool Aad(Core& c, const Decoded& d) {
  const auto al = static_cast<uint8_t>(c.ReadReg<uint8_t>(kAl) + c.ReadReg<uint8_t>(kAh) * d.insn.immediate);
  c.WriteReg<uint16_t>(kAl, al);
  ResultFlags(c, al);
  c.state->rflags &= ~(rf::kOf | rf::kAf | rf::kCf);
  return true;
}

}  // namespace

void RegisterBcd(HandlerTable& t) {
  t.Set(ZYDIS_MNEMONIC_AAA, AsciiAdjust<true>);
  t.Set(ZYDIS_MNEMONIC_AAS, AsciiAdjust<false>);
  t.Set(ZYDIS_MNEMONIC_DAA, DecimalAdjust<true>);
  t.Set(ZYDIS_MNEMONIC_DAS, DecimalAdjust<false>);
  t.Set(ZYDIS_MNEMONIC_AAM, Aam);
  t.Set(ZYDIS_MNEMONIC_AAD, Aad);
}

}  // namespace nacre::engine::interp
