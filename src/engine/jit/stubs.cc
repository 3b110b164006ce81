#include "engine/jit/stubs.h"

namespace nacre::engine::jit {
namespace {

constexpr uint8_t kCalleeSaved[] = {kHostRbx, kHostRbp, 12, 13, 14, 15};

#define NACRE_CONTEXT(field) Context(offsetof(JitContext, field))

Mem RipSlot() { return Context(offsetof(JitContext, state) + offsetof(x86::CpuState, rip)); }

void SpillRegisters(Assembler& code) {
  for (unsigned gpr = 0; gpr < 16; ++gpr)
    if (!IsHomed(gpr)) code.Store(GprSlot(gpr), HostOf(gpr));
}

void ReloadRegisters(Assembler& code) {
  for (unsigned gpr = 0; gpr < 16; ++gpr)
    if (!IsHomed(gpr)) code.Load(HostOf(gpr), GprSlot(gpr));
}

void SaveFlags(Assembler& code) {
  code.PushFlags();
  code.Op(0, NACRE_CONTEXT(flags), 0x8f, false);  // pop
}

void RestoreFlags(Assembler& code) {
  code.Op(6, NACRE_CONTEXT(flags), 0xff, false);  // push
  code.PopFlags();
}

void EmitEnter(Assembler& code) {
  for (uint8_t reg : kCalleeSaved) code.Push(reg);
  code.Lea(kHostRsp, {.base = kHostRsp, .disp = -8});
  code.Store(NACRE_CONTEXT(host_rsp), kHostRsp);
  code.Move(kScratch1, kHostRdi);
  RestoreFlags(code);
  ReloadRegisters(code);
  code.JumpReg(kScratch1);
}

/// Registers and flags are spilled: back to the caller of `enter`.
void EmitReturn(Assembler& code) {
  code.Lea(kHostRsp, {.base = kHostRsp, .disp = 8});
  for (unsigned i = sizeof(kCalleeSaved); i-- > 0;) code.Pop(kCalleeSaved[i]);
  code.Return();
}

void EmitExit(Assembler& code, ExitCode exit_code, const uint8_t* leave) {
  code.StoreImm32(NACRE_CONTEXT(exit_code), exit_code);
  code.JumpTo(leave);
}

/// Calls a C++ function with the vCPU, registers spilled and flags saved; goes on at the host address that it returns,
/// or leaves translated code when that is 0.
void EmitCallAndResume(Assembler& code, const Mem& function, bool scratch_is_address, const uint8_t* leave_spilled) {
  SpillRegisters(code);
  code.Load(kHostRdi, NACRE_CONTEXT(self));
  code.CallMem(function);
  code.Op(kHostRax, kHostRax, 0x85);  // test rax, rax
  Assembler::Patch(code.JumpIf(4), leave_spilled);
  code.Store(NACRE_CONTEXT(resume), kHostRax);
  RestoreFlags(code);
  ReloadRegisters(code);
  if (scratch_is_address) code.Load(kScratch1, NACRE_CONTEXT(slow_address));
  code.JumpMem(NACRE_CONTEXT(resume));
}

void EmitSlow(Assembler& code, unsigned context, bool write, const uint8_t* leave_spilled) {
  const size_t tag = offsetof(JitContext, tlb) + context * sizeof(DataTlb) +
                     (write ? offsetof(DataTlb, write_tag) : offsetof(DataTlb, read_tag));
  SaveFlags(code);
  code.Sub(kScratch1, ContextIndexed(kScratch2, tag));
  code.Store(NACRE_CONTEXT(slow_address), kScratch1);
  EmitCallAndResume(code, NACRE_CONTEXT(slow_handler), true, leave_spilled);
}

}  // namespace

uint8_t* EmitStubs(uint8_t* at, int64_t to_exec, Stubs& stubs) {
  Assembler code(at);
  code.Align(16);
  stubs.enter = reinterpret_cast<void (*)(const uint8_t*)>(code.at() + to_exec);
  EmitEnter(code);

  code.Align(16);
  const uint8_t* leave = code.at();
  SaveFlags(code);
  SpillRegisters(code);
  const uint8_t* leave_spilled = code.at();
  EmitReturn(code);

  stubs.exit_link = code.at();
  EmitExit(code, kExitLink, leave);
  stubs.exit_poll = code.at();
  EmitExit(code, kExitPoll, leave);
  stubs.exit_interpret = code.at();
  EmitExit(code, kExitInterpret, leave);
  stubs.fault_exit = code.at() + to_exec;
  code.StoreImm32(NACRE_CONTEXT(exit_id), 0xffffffff);
  EmitExit(code, kExitInterpret, leave);

  stubs.exit_lookup = code.at();
  code.Load(kHostRcx, NACRE_CONTEXT(saved_rcx));
  stubs.miss_target = code.at() + to_exec;
  code.Store(RipSlot(), kScratch1);
  EmitExit(code, kExitLookup, leave);

  for (unsigned context = 0; context < kContexts; ++context) {
    for (unsigned write = 0; write < 2; ++write) {
      code.Align(16);
      stubs.slow[context][write] = code.at();
      EmitSlow(code, context, write != 0, leave_spilled);
    }
  }
  code.Align(16);
  stubs.string = code.at();
  SaveFlags(code);
  EmitCallAndResume(code, NACRE_CONTEXT(string_handler), false, leave_spilled);
  code.Align(64);
  return code.at();
}

}  // namespace nacre::engine::jit
