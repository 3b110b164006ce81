// Page faults that the TLB miss path has found, delivered through a 64-bit interrupt gate to 64-bit code of CPL 0
// without the interpreter (SDM 3A 6.14). False: nothing has changed, the interpreter finds and delivers the fault.

#include "engine/jit/jit_vcpu.h"

namespace nacre::engine::jit {

using x86::CpuState;
using x86::Segment;

namespace {

/// A page fault's gate and where it leads.
struct Gate {
  uint64_t low = 0, high = 0;
  unsigned ist() const { return static_cast<unsigned>(low >> 32) & 7; }
  uint16_t selector() const { return static_cast<uint16_t>(low >> 16); }
  uint64_t offset() const { return (low & 0xffff) | ((low >> 32) & 0xffff0000) | high << 32; }
  bool usable() const {  // present, system, 64-bit interrupt or trap gate
    const auto access = static_cast<unsigned>(low >> 40) & 0xff;
    return (access & 0x90) == 0x80 && (access & 0xe) == 0xe && IsCanonical(offset());
  }
  bool clears_if() const { return !((low >> 40) & 1); }
};

}  // namespace

/// The stack of a handler at CPL 0: RSP before anything is pushed, aligned.
bool JitVcpu::HandlerStack(unsigned ist, uint64_t& rsp) {
  const CpuState& state = context_->state;
  rsp = state.gpr[x86::kRsp];
  if (ist != 0 || state.cpl() != 0) {
    const unsigned at = ist != 0 ? 0x24 + (ist - 1) * 8 : 4;
    if (at + 7 > state.tr.limit) return false;
    const uint8_t* field = HostFor(kContextSupervisor, state.tr.base + at, 8, false);
    if (!field) return false;
    rsp = LoadLe<uint64_t>(field);
  }
  rsp &= ~uint64_t{15};
  return IsCanonical(rsp);
}

bool JitVcpu::DeliverPageFault(uint64_t address, uint32_t error_code) {
  CpuState& state = context_->state;
  constexpr unsigned kVector = x86::kPageFault;
  if (!state.code64() || state.interrupt_shadow || state.idtr.limit < kVector * 16 + 15) return false;
  const uint8_t* entry = HostFor(kContextSupervisor, state.idtr.base + kVector * 16, 16, false);
  if (!entry) return false;
  const Gate gate{LoadLe<uint64_t>(entry), LoadLe<uint64_t>(entry + 8)};
  uint64_t code = 0;
  if (!gate.usable() || !ReadDescriptor(gate.selector(), code)) return false;
  // Code, present, DPL 0, not conforming, accessed, L without D. Base and limit count for nothing.
  constexpr uint64_t kRelevant = 0x0060'fd00'0000'0000, kWanted = 0x0020'9900'0000'0000;
  if ((code & kRelevant) != kWanted) return false;
  uint64_t rsp;
  if (!HandlerStack(gate.ist(), rsp)) return false;
  constexpr unsigned kFrame = 48;
  uint8_t* frame = HostFor(kContextSupervisor, rsp - kFrame, kFrame, true);
  if (!frame) return false;

  const uint64_t rflags = WholeFlags();
  const bool inner = state.cpl() != 0;
  StoreLe<uint64_t>(frame, error_code);
  StoreLe<uint64_t>(frame + 8, state.rip);
  StoreLe<uint64_t>(frame + 16, state.segment[x86::kCs].selector);
  StoreLe<uint64_t>(frame + 24, rflags | x86::rflags::kRf);
  StoreLe<uint64_t>(frame + 32, state.gpr[x86::kRsp]);
  StoreLe<uint64_t>(frame + 40, state.segment[x86::kSs].selector);
  state.cr2 = address;
  state.gpr[x86::kRsp] = rsp - kFrame;
  state.rip = gate.offset();
  const auto high = static_cast<uint32_t>(code >> 32);
  const uint32_t limit = static_cast<uint32_t>(code & 0xffff) | (high & 0xf0000);
  const bool pages = (high & 1u << 23) != 0;
  state.segment[x86::kCs] = {
      .base = (code >> 16 & 0xffffff) | (code >> 32 & 0xff000000),
      .limit = pages ? limit << 12 | 0xfff : limit,
      .attributes = (high >> 8 & 0xff) | (high >> 8 & 0xf000),
      .selector = static_cast<uint16_t>(gate.selector() & ~3),
  };
  if (inner)
    state.segment[x86::kSs] = {.base = 0, .limit = 0, .attributes = Segment::kUnusable | Segment::kDb, .selector = 0};
  SetFlags(rflags & ~(x86::rflags::kTf | x86::rflags::kNt | x86::rflags::kRf | x86::rflags::kVm |
                      (gate.clears_if() ? x86::rflags::kIf : 0)));
  mode_known_ = false;
  return true;
}

}  // namespace nacre::engine::jit
