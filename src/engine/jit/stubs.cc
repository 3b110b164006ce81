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
  code.Move(kScratch2, kHostRdi);
  code.Load(kHostRsp, NACRE_CONTEXT(return_rsp));
  RestoreFlags(code);
  ReloadRegisters(code);
  code.Load(kScratch1, RipSlot());
  code.JumpReg(kScratch2);
}

void ToThreadStack(Assembler& code) {
  code.Store(NACRE_CONTEXT(return_rsp), kHostRsp);
  code.Load(kHostRsp, NACRE_CONTEXT(host_rsp));
}

/// Registers and flags are spilled, RSP is the thread's own: back to the caller of `enter`.
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
  ToThreadStack(code);
  code.Load(kHostRdi, NACRE_CONTEXT(self));
  code.CallMem(function);
  code.Op(kHostRax, kHostRax, 0x85);  // test rax, rax
  Assembler::Patch(code.JumpIf(4), leave_spilled);
  code.Store(NACRE_CONTEXT(resume), kHostRax);
  code.Load(kHostRsp, NACRE_CONTEXT(return_rsp));
  RestoreFlags(code);
  ReloadRegisters(code);
  if (scratch_is_address) code.Load(kScratch2, NACRE_CONTEXT(slow_address));
  code.JumpMem(NACRE_CONTEXT(resume));
}

void EmitSlowAddress(Assembler& code, const uint8_t* leave_spilled) {
  SaveFlags(code);
  code.Store(NACRE_CONTEXT(slow_address), kScratch2);
  EmitCallAndResume(code, NACRE_CONTEXT(slow_handler), true, leave_spilled);
}

}  // namespace

void EmitLookup(Assembler& code, unsigned context, bool call) {
  const size_t targets = offsetof(JitContext, jump_cache) + context * sizeof(JumpCache) + offsetof(JumpCache, target);
  code.Pext(kScratch2, kScratch1, NACRE_CONTEXT(jump_mask));
  if (call)
    code.CallMem(ContextIndexed(kScratch2, targets));
  else
    code.JumpMem(ContextIndexed(kScratch2, targets));
}

uint8_t* EmitStubs(uint8_t* at, int64_t to_exec, Stubs& stubs) {
  Assembler code(at);
  code.Align(16);
  stubs.enter = reinterpret_cast<void (*)(const uint8_t*)>(code.at() + to_exec);
  EmitEnter(code);

  code.Align(16);
  const uint8_t* leave = code.at();
  SaveFlags(code);
  SpillRegisters(code);
  ToThreadStack(code);
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
  stubs.miss_target = code.at() + to_exec;
  code.Store(RipSlot(), kScratch1);
  EmitExit(code, kExitLookup, leave);

  code.Align(16);
  stubs.slow_address = code.at();
  EmitSlowAddress(code, leave_spilled);
  for (unsigned context = 0; context < kContexts; ++context) {
    code.Align(16);
    stubs.return_empty[context] = code.at() + to_exec;
    code.Lea(kHostRsp, {.base = kHostRsp, .disp = -8});
    stubs.lookup[context] = code.at();
    EmitLookup(code, context);
    for (unsigned write = 0; write < 2; ++write) {
      const size_t tag = offsetof(JitContext, tlb) + context * sizeof(DataTlb) +
                         (write ? offsetof(DataTlb, write_tag) : offsetof(DataTlb, read_tag));
      code.Align(16);
      stubs.slow[context][write] = code.at();
      code.Sub(kScratch2, ContextIndexed(kScratch1, tag));
      code.JumpTo(stubs.slow_address);
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
