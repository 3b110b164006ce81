#include "x86/cpu_state.h"

namespace nacre::x86 {
namespace {

constexpr uint32_t kReset = Segment::kP | Segment::kS | 3;  // read/write data, accessed

/// What RESET and INIT do alike (SDM 3A table 10-1).
void ResetCommon(CpuState& state) {
  for (uint64_t& reg : state.gpr) reg = 0;
  state.gpr[kRdx] = 0x600;  // family 6
  state.rip = 0xfff0;
  state.rflags = rflags::kFixed1;
  for (Segment& segment : state.segment) segment = {0, 0xffff, kReset, 0};
  state.segment[kCs] = {0xffff0000, 0xffff, kReset, 0xf000};
  state.ldtr = {0, 0xffff, Segment::kP | 2, 0};
  state.tr = {0, 0xffff, Segment::kP | 11, 0};
  state.gdtr = state.idtr = {0, 0xffff};
  state.cr2 = state.cr3 = state.cr4 = 0;
  for (uint64_t& reg : state.dr) reg = 0;
  state.dr6 = 0xffff0ff0;
  state.dr7 = 0x400;
  for (uint64_t& entry : state.pdpte) entry = 0;
  state.msr.efer = 0;
  state.interrupt_shadow = state.shadow_is_mov_ss = state.nmi_masked = false;
  state.halted = state.wait_for_sipi = state.pending_debug = false;
}

}  // namespace

void ResetCpuState(CpuState& state) {
  state = CpuState{};
  ResetCommon(state);
  state.cr0 = cr0::kCd | cr0::kNw | cr0::kEt;
  state.xsave.fcw() = 0x40;
  state.xsave.ftw() = 0xff;  // full tag word 5555h: eight zeros
  state.xsave.mxcsr() = 0x1f80;
}

void InitCpuState(CpuState& state, bool bootstrap_processor) {
  const uint64_t cache_bits = state.cr0 & (cr0::kCd | cr0::kNw);
  ResetCommon(state);
  state.cr0 = cache_bits | cr0::kEt;
  state.wait_for_sipi = !bootstrap_processor;
}

}  // namespace nacre::x86
