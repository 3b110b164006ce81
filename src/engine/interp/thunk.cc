#include "engine/interp/thunk.h"

#include <cstddef>
#include <cstring>
#include <utility>

#include "base/bits.h"
#include "base/check.h"
#include "engine/interp/thunk_abi.h"

extern "C" {
void NacreThunkSse(nacre::engine::interp::ThunkContext* context, const uint8_t* snippet);
void NacreThunkAvx(nacre::engine::interp::ThunkContext* context, const uint8_t* snippet);
void NacreThunkAvx512(nacre::engine::interp::ThunkContext* context, const uint8_t* snippet);
void NacreThunkX87(nacre::engine::interp::ThunkContext* context, const uint8_t* snippet);
}

namespace nacre::engine::interp {
namespace {

using x86::CodeSize;
using x86::Encoding;
using x86::Instruction;

static_assert(offsetof(ThunkContext, xsave) == NACRE_THUNK_XSAVE);
static_assert(offsetof(ThunkContext, rax) == NACRE_THUNK_RAX);
static_assert(offsetof(ThunkContext, rcx) == NACRE_THUNK_RCX);
static_assert(offsetof(ThunkContext, rdx) == NACRE_THUNK_RDX);
static_assert(offsetof(ThunkContext, bounce) == NACRE_THUNK_BOUNCE);
static_assert(offsetof(ThunkContext, flags) == NACRE_THUNK_FLAGS);
static_assert(offsetof(ThunkContext, fx) == NACRE_THUNK_FX);
static_assert(x86::XsaveArea::kAvxOffset == NACRE_XSAVE_YMM_HIGH);
static_assert(x86::XsaveArea::kOpmaskOffset == NACRE_XSAVE_OPMASK);
static_assert(x86::XsaveArea::kZmmHi256Offset == NACRE_XSAVE_ZMM_HIGH);
static_assert(x86::XsaveArea::kHi16ZmmOffset == NACRE_XSAVE_ZMM16);

constexpr uint8_t kRet = 0xc3;
constexpr uint8_t kRdiIndirect = 7;  // ModRM.rm with mod 00: [RDI]
constexpr uint8_t kRexR = 4, kRexX = 2, kRexB = 1;

class Writer {
 public:
  explicit Writer(CanonicalBytes& out) : out_(out) {}
  void Byte(uint8_t value) {
    NACRE_CHECK(out_.length < out_.bytes.size());
    out_.bytes[out_.length++] = value;
  }

 private:
  CanonicalBytes& out_;
};

bool HasMemoryForm(const Instruction& insn) { return insn.has(x86::kInsnModrm) && (insn.modrm >> 6) != 3; }

uint8_t RewriteModrm(const Instruction& insn, GprPlace gpr) {
  uint8_t modrm = insn.modrm;
  if (HasMemoryForm(insn)) modrm = static_cast<uint8_t>((modrm & 0x38) | kRdiIndirect);
  if (gpr == GprPlace::kReg) modrm &= static_cast<uint8_t>(~0x38);
  if (gpr == GprPlace::kRm && !HasMemoryForm(insn)) modrm &= static_cast<uint8_t>(~0x07);
  return modrm;
}

// VEX.W chooses the width of a general register; outside 64-bit code it is ignored (SDM 2A 2.3.5.6 and the
// instructions' pages: VCVTSI2SS, VCVTTSS2SI, VMOVD, VPEXTRD, VPINSRD).
bool WidthIsVexW(const Instruction& insn) {
  if (insn.map == 1)
    return insn.opcode == 0x2a || insn.opcode == 0x2c || insn.opcode == 0x2d || insn.opcode == 0x6e ||
           insn.opcode == 0x7e;
  return insn.map == 3 && (insn.opcode == 0x16 || insn.opcode == 0x22);
}

void WriteVex(const Instruction& insn, GprPlace gpr, Writer& writer) {
  const uint8_t* at = insn.bytes + insn.prefix_count;
  uint8_t p0 = 0;  // inverted R X B, map
  uint8_t p1 = 0;  // W, inverted vvvv, L, pp
  if (at[0] == 0xc5) {
    p0 = static_cast<uint8_t>((at[1] & 0x80) | 0x61);
    p1 = at[1] & 0x7f;
  } else {
    p0 = at[1];
    p1 = at[2];
  }
  if (insn.code_size != CodeSize::k64) {
    // Registers 8 to 15 do not exist there (SDM 2A 2.3.5.1, 2.3.5.6).
    p0 |= 0xe0;
    p1 |= 0x40;
    if (WidthIsVexW(insn)) p1 &= 0x7f;
  }
  if (HasMemoryForm(insn)) p0 |= (kRexX | kRexB) << 5;
  if (gpr == GprPlace::kRm) p0 |= kRexB << 5;
  if (gpr == GprPlace::kReg) p0 |= kRexR << 5;
  writer.Byte(0xc4);
  writer.Byte(p0);
  writer.Byte(p1);
  writer.Byte(insn.opcode);
}

// The same of EVEX.W for scalar conversions from and to general registers, VMOVD, VPEXTRD, VPINSRD and VPBROADCASTD.
bool WidthIsEvexW(const Instruction& insn, uint8_t prefix) {
  if (insn.map == 2) return insn.opcode == 0x7c;
  if (insn.map == 3) return insn.opcode == 0x16 || insn.opcode == 0x22;
  if (insn.map != 1 && insn.map != 5) return false;
  if (prefix == 1) return insn.opcode == 0x6e || insn.opcode == 0x7e;
  if (prefix < 2) return false;
  return insn.opcode == 0x2a || insn.opcode == 0x2c || insn.opcode == 0x2d || insn.opcode == 0x78 ||
         insn.opcode == 0x79 || insn.opcode == 0x7b;
}

void WriteEvex(const Instruction& insn, GprPlace gpr, Writer& writer) {
  const uint8_t* at = insn.bytes + insn.prefix_count;
  uint8_t p0 = at[1];  // inverted R X B R', 0, map
  uint8_t p1 = at[2];  // W, inverted vvvv, 1, pp
  uint8_t p2 = at[3];  // z, L'L, b, inverted V', aaa
  if (insn.code_size != CodeSize::k64) {
    // Registers 8 to 31 do not exist there (SDM 2A 2.7.1).
    p0 |= 0xf0;
    p1 |= 0x40;
    p2 |= 0x08;
    if (WidthIsEvexW(insn, p1 & 3)) p1 &= 0x7f;
  }
  if (HasMemoryForm(insn) || gpr == GprPlace::kRm) p0 |= 0x60;
  if (gpr == GprPlace::kReg) p0 |= 0x90;
  writer.Byte(0x62);
  writer.Byte(p0);
  writer.Byte(p1);
  writer.Byte(p2);
  writer.Byte(insn.opcode);
}

void WriteLegacy(const Instruction& insn, GprPlace gpr, Writer& writer) {
  if (insn.has(x86::kInsnX87)) {
    // Only FLDENV, FNSTENV, FRSTOR and FNSAVE have an operand size, and its default is the code segment's.
    if (insn.operand_size == 2) writer.Byte(0x66);
  } else {
    for (unsigned i = 0; i < insn.prefix_count; ++i)
      if (insn.bytes[i] == 0x66 || insn.bytes[i] == 0xf2 || insn.bytes[i] == 0xf3) writer.Byte(insn.bytes[i]);
    uint8_t rex = insn.rex;
    if (HasMemoryForm(insn)) rex &= static_cast<uint8_t>(~(kRexX | kRexB));
    if (gpr == GprPlace::kRm) rex &= static_cast<uint8_t>(~kRexB);
    if (gpr == GprPlace::kReg) rex &= static_cast<uint8_t>(~kRexR);
    if (rex != 0) writer.Byte(rex);
  }
  if (insn.map != 0) writer.Byte(0x0f);
  if (insn.map == 2) writer.Byte(0x38);
  if (insn.map == 3) writer.Byte(0x3a);
  writer.Byte(insn.opcode);
}

}  // namespace

CanonicalBytes Canonicalize(const Instruction& insn, GprPlace gpr) {
  CanonicalBytes out;
  Writer writer(out);
  if (insn.encoding == Encoding::kVex)
    WriteVex(insn, gpr, writer);
  else if (insn.encoding == Encoding::kEvex)
    WriteEvex(insn, gpr, writer);
  else
    WriteLegacy(insn, gpr, writer);
  if (insn.has(x86::kInsnModrm)) writer.Byte(RewriteModrm(insn, gpr));
  const unsigned immediate_bytes = insn.immediate_size + insn.immediate2_size;
  for (unsigned i = 0; i < immediate_bytes; ++i) {
    uint8_t byte = insn.bytes[insn.immediate_at + i];
    // A register in the immediate: outside 64-bit code its top bit is ignored (SDM 2A 2.3.8).
    const bool is4 = insn.encoding == Encoding::kVex && insn.map == 3 && insn.opcode >= 0x4a && insn.opcode <= 0x4c;
    if (is4 && insn.code_size != CodeSize::k64) byte &= 0x7f;
    writer.Byte(byte);
  }
  return out;
}

size_t ThunkRunner::Hash::operator()(const CanonicalBytes& key) const {
  uint64_t low = 0, high = 0;
  std::memcpy(&low, key.bytes.data(), 8);
  std::memcpy(&high, key.bytes.data() + 8, 7);
  return (low * 0x9e3779b97f4a7c15) ^ ((high + key.length) * 0xc2b2ae3d27d4eb4f);
}

ThunkRunner::ThunkRunner() : host_avx_(__builtin_cpu_supports("avx")) {
  auto buffer = codegen::CodeBuffer::Create(kSlots * kSlotBytes);
  NACRE_CHECK(buffer.has_value());
  buffer_ = std::move(*buffer);
  auto range = HostFaultRange::Register(buffer_.exec_base(), buffer_.size_bytes(), *this);
  NACRE_CHECK(range.has_value());
  range_ = std::move(*range);
  context_.bounce = context_.memory;
}

const uint8_t* ThunkRunner::Snippet(const CanonicalBytes& canonical) {
  if (const auto found = slots_.find(canonical); found != slots_.end())
    return buffer_.exec_base() + found->second * kSlotBytes;
  if (next_slot_ == kSlots) {
    slots_.clear();
    next_slot_ = 0;
    ++generation_;
  }
  // The last byte of a slot is a RET too: where a fault leads.
  uint8_t* slot = buffer_.write_base() + next_slot_ * kSlotBytes;
  std::memcpy(slot, canonical.bytes.data(), canonical.length);
  std::memset(slot + canonical.length, kRet, kSlotBytes - canonical.length);
  slots_.emplace(canonical, next_slot_);
  return buffer_.exec_base() + next_slot_++ * kSlotBytes;
}

bool ThunkRunner::OnHostFault(int signal, const siginfo_t&, ucontext_t& context) {
  // Snippets touch no memory but the bounce buffer: any other signal is a bug of ours.
  if (signal != SIGFPE && signal != SIGILL) return false;
  context_.fault_signal = signal;
  auto& rip = context.uc_mcontext.gregs[REG_RIP];
  const auto offset = static_cast<uint64_t>(rip) - reinterpret_cast<uintptr_t>(buffer_.exec_base());
  rip += static_cast<greg_t>(kSlotBytes - 1 - offset % kSlotBytes);
  return true;
}

bool ThunkRunner::RunVector(x86::XsaveArea& area, const uint8_t* snippet, bool avx512) {
  context_.xsave = area.bytes;
  context_.fault_signal = 0;
  if (avx512)
    NacreThunkAvx512(&context_, snippet);
  else if (host_avx_)
    NacreThunkAvx(&context_, snippet);
  else
    NacreThunkSse(&context_, snippet);
  return context_.fault_signal == 0;
}

bool ThunkRunner::RunX87(x86::XsaveArea& area, const uint8_t* snippet) {
  context_.xsave = area.bytes;
  context_.fault_signal = 0;
  NacreThunkX87(&context_, snippet);
  // FOP, FIP and FDP would be those of the snippet on the host.
  std::memset(context_.fx + 6, 0, 18);
  return context_.fault_signal == 0;
}

}  // namespace nacre::engine::interp
