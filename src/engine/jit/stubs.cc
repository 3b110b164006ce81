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

/// A way out or a check has been called: where the number is that stands behind the call, or the way back. Nothing that
/// is needed may stay on the return stack when something is pushed: where it is full, its guard page has it emptied.
void TakeExitPlace(Assembler& code) { code.Op(0, NACRE_CONTEXT(exit_at), 0x8f, false); }  // pop

/// Registers are spilled.
void ReadExitId(Assembler& code) {
  code.Load(kHostRax, NACRE_CONTEXT(exit_at));
  code.Load(kHostRax, {.base = kHostRax}, false);
  code.Store(NACRE_CONTEXT(exit_id), kHostRax, false);
}

/// Calls a C++ function with the vCPU, registers spilled and flags saved; goes on at the host address that it returns,
/// or leaves translated code when that is 0.
void EmitCallAndResume(Assembler& code, const Mem& function, bool scratch_is_address, bool has_place,
                       const uint8_t* leave_spilled) {
  SpillRegisters(code);
  if (has_place) ReadExitId(code);
  ToThreadStack(code);
  code.Load(kHostRdi, NACRE_CONTEXT(self));
  code.CallMem(function);
  code.Op(kHostRax, kHostRax, 0x85);  // test rax, rax
  Assembler::Patch(code.JumpIf(4), leave_spilled);
  code.Store(NACRE_CONTEXT(resume), kHostRax);
  code.Load(kHostRsp, NACRE_CONTEXT(return_rsp));
  RestoreFlags(code);
  ReloadRegisters(code);
  if (scratch_is_address) {
    code.Load(kScratch2, NACRE_CONTEXT(slow_address));
    code.Load(kScratch1, NACRE_CONTEXT(slow_addend));
  }
  code.JumpMem(NACRE_CONTEXT(resume));
}

/// Of a check in the block: `has_place`, or out of line.
void EmitSlowAddress(Assembler& code, bool has_place, const uint8_t* leave_spilled) {
  TakeExitPlace(code);
  SaveFlags(code);
  code.Store(NACRE_CONTEXT(slow_address), kScratch2);
  EmitCallAndResume(code, has_place ? NACRE_CONTEXT(slow_handler) : NACRE_CONTEXT(check_handler), true, has_place,
                    leave_spilled);
}

/// See Stubs::check. `slow`: goes to JitVcpu::SlowCheck with exit_id set.
uint8_t* EmitCheckOutOfLine(Assembler& code, CheckCode which, const uint8_t* slow) {
  const size_t tlb = offsetof(JitContext, tlb) + which.context * sizeof(DataTlb);
  const size_t tag = tlb + (which.write ? offsetof(DataTlb, write_tag) : offsetof(DataTlb, read_tag));
  code.Align(16);
  uint8_t* const start = code.at();
  uint8_t* sample = nullptr;
  if (!which.keeps) {
    code.Op(5, NACRE_CONTEXT(sample_countdown), 0x83);  // sub
    code.Byte(1);
    sample = code.JumpIf(8);  // negative
  }
  code.Pext(kScratch1, kScratch2, Context(offsetof(JitContext, tlb_mask) + 8 * which.context));
  uint8_t* const miss = EmitTagCheck(code, tag, 1u << which.log2_size, which.keeps);
  code.Load(kScratch1, ContextIndexed(kScratch1, tlb + offsetof(DataTlb, addend)));
  code.Return();
  if (sample) {
    code.Bind32(sample);
    which.sample = true;
    code.StoreImm32(NACRE_CONTEXT(exit_id), which.Pack());
    code.JumpTo(slow);
    which.sample = false;
  }
  code.Bind32(miss);
  if (which.keeps)
    code.Load(kHostRcx, NACRE_CONTEXT(saved_rcx));
  else
    code.Sub(kScratch2, ContextIndexed(kScratch1, tag));
  code.StoreImm32(NACRE_CONTEXT(exit_id), which.Pack());
  code.JumpTo(slow);
  return start;
}

}  // namespace

uint8_t* EmitTagCheck(Assembler& code, size_t tag, unsigned size, bool keeps) {
  if (!keeps) {
    code.Add(kScratch2, ContextIndexed(kScratch1, tag));
    code.CompareImm32(kScratch2, static_cast<uint32_t>(kPageSize) - size);
    return code.JumpIf(7);  // above
  }
  code.Store(NACRE_CONTEXT(saved_rcx), kHostRcx);
  code.Load(kHostRcx, ContextIndexed(kScratch1, tag));
  code.Lea(kHostRcx, {.base = kScratch2, .index = kHostRcx, .disp = static_cast<int32_t>(size) - 1});
  code.Pext(kHostRcx, kHostRcx, NACRE_CONTEXT(page_number_mask));
  uint8_t* const hit = code.JumpIfRcxZero();
  uint8_t* const miss = code.Jump();
  code.Bind8(hit);
  code.Load(kHostRcx, NACRE_CONTEXT(saved_rcx));
  return miss;
}

void EmitLookup(Assembler& code, unsigned context, bool call) {
  const size_t targets = offsetof(JitContext, jump_cache) + context * sizeof(JumpCache) + offsetof(JumpCache, target);
  code.LoadImm(kScratch2, 0);
  code.Crc32(kScratch2, kScratch1);
  code.Pext(kScratch2, kScratch2, NACRE_CONTEXT(jump_mask));
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

  code.Align(16);
  const uint8_t* leave_with_id = code.at();
  TakeExitPlace(code);
  SaveFlags(code);
  SpillRegisters(code);
  ReadExitId(code);
  ToThreadStack(code);
  EmitReturn(code);

  stubs.exit_link = code.at();
  EmitExit(code, kExitLink, leave_with_id);
  stubs.exit_poll_rcx = code.at();
  code.Load(kHostRcx, NACRE_CONTEXT(saved_rcx));
  stubs.exit_poll = code.at();
  EmitExit(code, kExitPoll, leave_with_id);
  stubs.exit_interpret_rcx = code.at();
  code.Load(kHostRcx, NACRE_CONTEXT(saved_rcx));
  stubs.exit_interpret = code.at();
  EmitExit(code, kExitInterpret, leave_with_id);
  stubs.fault_exit = code.at() + to_exec;
  code.StoreImm32(NACRE_CONTEXT(exit_id), 0xffffffff);
  EmitExit(code, kExitInterpret, leave);

  stubs.exit_lookup = code.at();
  stubs.miss_target = code.at() + to_exec;
  code.Store(RipSlot(), kScratch1);
  EmitExit(code, kExitLookup, leave);

  code.Align(16);
  stubs.slow_address_rcx = code.at();
  code.Load(kHostRcx, NACRE_CONTEXT(saved_rcx));
  stubs.slow_address = code.at();
  EmitSlowAddress(code, true, leave_spilled);
  code.Align(16);
  const uint8_t* slow_check = code.at();
  EmitSlowAddress(code, false, leave_spilled);
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
      for (unsigned size = 0; size < Stubs::kCheckSizes; ++size)
        for (const bool keeps : {false, true})
          stubs.check[context][write][size][keeps ? 1 : 0] = EmitCheckOutOfLine(
              code, {.context = context, .write = write != 0, .log2_size = size, .keeps = keeps}, slow_check);
    }
  }
  code.Align(16);
  stubs.string = code.at();
  TakeExitPlace(code);
  SaveFlags(code);
  EmitCallAndResume(code, NACRE_CONTEXT(string_handler), false, true, leave_spilled);
  code.Align(64);
  return code.at();
}

}  // namespace nacre::engine::jit
