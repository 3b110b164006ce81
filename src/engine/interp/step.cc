// One instruction: fetch, dispatch, commit or fault, debug traps (SDM 3A 6.9, 3B 17.3).

#include "engine/interp/handlers.h"

namespace nacre::engine::interp {

using x86::CpuState;
namespace rf = x86::rflags;

namespace {

constexpr uint64_t kDr6SingleStep = Bit(14), kDr6TaskSwitch = Bit(15);

constexpr uint32_t kAuth = 0x68747541;  // "Auth" of AuthenticAMD

/// DR6 bits of the enabled instruction breakpoints at `linear` (SDM 3B 17.3.1.1).
uint32_t InstructionBreakpoints(const CpuState& state, uint64_t linear) {
  uint32_t hits = 0;
  for (unsigned i = 0; i < 4; ++i)
    if (Bits(state.dr7, i * 2, 2) && Bits(state.dr7, 16 + i * 4, 2) == 0 && state.dr[i] == linear)
      hits |= static_cast<uint32_t>(Bit(i));
  return hits;
}

}  // namespace

HandlerTable::HandlerTable() {
  RegisterMove(*this);
  RegisterAlu(*this);
  RegisterShift(*this);
  RegisterMultiply(*this);
  RegisterBits(*this);
  RegisterConditions(*this);
  RegisterFlow(*this);
  RegisterStack(*this);
  RegisterStrings(*this);
  RegisterBcd(*this);
  RegisterIo(*this);
  RegisterFlags(*this);
  RegisterSystem(*this);
  RegisterControl(*this);
  RegisterSegments(*this);
  RegisterFar(*this);
  RegisterInterrupts(*this);
  RegisterMisc(*this);
}

const HandlerTable& HandlerTable::Get() {
  static const HandlerTable table;
  return table;
}

bool InvalidOpcode(Core& c, const Decoded&) { return c.Ud(); }

Core::Core(const VcpuConfig& vcpu_config, StateListener* state_listener)
    : config(vcpu_config),
      listener(state_listener),
      vector_unit(*vcpu_config.model),
      amd(vcpu_config.model->Cpuid(0, 0, CpuState{}, 0).ebx == kAuth) {}

Core::~Core() = default;

bool Core::Fault(uint8_t vector) {
  fault = {.vector = vector};
  return false;
}

bool Core::FaultCode(uint8_t vector, uint32_t error) {
  // EXT: found while an exception or interrupt was being delivered (SDM 3A 6.13).
  if (external && vector >= x86::kInvalidTss && vector <= x86::kGeneralProtection) error |= 1;
  fault = {.vector = vector, .has_error = true, .error = error};
  return false;
}

bool Core::PageFault(uint64_t linear, uint32_t error) {
  fault = {.vector = x86::kPageFault, .has_error = true, .error = error, .cr2 = linear};
  return false;
}

void Core::UpdateAccessMode() {
  code64 = state->code64();
  const bool user = state->cpl() == 3;
  mode = user ? AccessMode::kUser : state->rflags & rf::kAc ? AccessMode::kSupervisorAc : AccessMode::kSupervisor;
  const bool alignment = user && (state->rflags & rf::kAc) && (state->cr0 & x86::cr0::kAm);
  tlb_mode = alignment || (state->dr7 & 0xff) ? AccessMode::kSlow : mode;
}

/// #DB before the instruction: what is left of the one before, and instruction breakpoints.
bool Core::DebugBefore() {
  CpuState& cpu = *state;
  const bool held_back = cpu.interrupt_shadow && cpu.shadow_is_mov_ss;
  if (held_back) return true;
  if (cpu.pending_debug) {
    cpu.pending_debug = false;
    fault = {.vector = x86::kDebug, .trap = true};
    return false;
  }
  if (cpu.rflags & rf::kRf) return true;
  const uint64_t linear = code64 ? cpu.rip : (cpu.segment[x86::kCs].base + cpu.rip) & 0xffffffff;
  const uint32_t hits = InstructionBreakpoints(cpu, linear);
  if (hits == 0) return true;
  cpu.dr6 = (cpu.dr6 & ~uint64_t{0xf}) | hits;
  return Fault(x86::kDebug);
}

/// #DB after the instruction: single step, data and I/O breakpoints, a task's T bit.
bool Core::DebugAfter(uint64_t flags_before) {
  CpuState& cpu = *state;
  uint64_t bits = debug_hits;
  const uint64_t tf_source = trap_by_new_tf ? cpu.rflags : flags_before;
  if ((tf_source & rf::kTf) && !no_trap && !shadow_mov_ss) bits |= kDr6SingleStep;
  if (task_trap) bits |= kDr6TaskSwitch;
  task_trap = false;
  if (bits == 0) return true;
  cpu.dr6 = (cpu.dr6 & ~uint64_t{0xf}) | bits;
  if (shadow_mov_ss) {
    cpu.pending_debug = true;
    return true;
  }
  fault = {.vector = x86::kDebug, .trap = true};
  return false;
}

StepResult Core::Step(CpuState& cpu) {
  state = &cpu;
  if (cpu.halted) return StepResult::kHalted;
  UpdateAccessMode();
  const uint64_t flags_before = cpu.rflags;
  const bool debugging = (flags_before & (rf::kTf | rf::kRf)) || (cpu.dr7 & 0xff) || cpu.pending_debug;
  if (debugging && !DebugBefore()) [[unlikely]]
    return DeliverFault();
  const Decoded* d = FetchInstruction();
  if (!d) return DeliverFault();
  next_rip = cpu.rip + d->length;
  if (!code64) next_rip &= 0xffffffff;
  shadow_sti = shadow_mov_ss = false;
  keep_rf = unfinished = trap_by_new_tf = no_trap = halt = task_trap = false;
  debug_hits = 0;
  if (!d->handler(*this, *d)) [[unlikely]]
    return DeliverFault();

  if (unfinished) [[unlikely]] {
    cpu.rflags |= rf::kRf;  // pushed by an interrupt between iterations (SDM 3B 17.3.1.1)
  } else {
    cpu.rip = next_rip;
    if (!keep_rf) cpu.rflags &= ~rf::kRf;
  }
  cpu.interrupt_shadow = shadow_sti || shadow_mov_ss;
  cpu.shadow_is_mov_ss = shadow_mov_ss;
  ++retired;
  if ((debugging || trap_by_new_tf || task_trap) && !DebugAfter(flags_before)) [[unlikely]]
    return DeliverFault();
  if (halt) [[unlikely]] {
    cpu.halted = true;
    return StepResult::kHalted;
  }
  return StepResult::kOk;
}

// ---- The public face.

class Interpreter::Impl {
 public:
  Impl(const VcpuConfig& config, StateListener* listener) : core(config, listener) {}
  Core core;
};

Interpreter::Interpreter(const VcpuConfig& config, StateListener* listener)
    : impl_(std::make_unique<Impl>(config, listener)) {}
Interpreter::~Interpreter() = default;

StepResult Interpreter::Step(CpuState& state) { return impl_->core.Step(state); }

StepResult Interpreter::InjectInterrupt(CpuState& state, uint8_t vector) {
  Event event;
  event.vector = vector;
  event.kind = Event::Kind::kExternal;
  event.return_rip = state.rip;
  return impl_->core.Inject(state, event);
}

StepResult Interpreter::InjectNmi(CpuState& state) {
  Event event;
  event.vector = x86::kNmi;
  event.kind = Event::Kind::kExternal;
  event.return_rip = state.rip;
  const StepResult result = impl_->core.Inject(state, event);
  state.nmi_masked = true;
  return result;
}

StepResult Interpreter::InjectException(CpuState& state, uint8_t vector, uint32_t error_code, uint64_t cr2) {
  Core& core = impl_->core;
  core.state = &state;
  core.UpdateAccessMode();
  const bool has_error = vector == x86::kDoubleFault || (vector >= x86::kInvalidTss && vector <= x86::kPageFault) ||
                         vector == x86::kAlignmentCheck || vector == x86::kControlProtection;
  core.fault = {.vector = vector, .has_error = has_error, .error = error_code, .cr2 = cr2};
  return core.DeliverFault();
}

bool Interpreter::ReadMsr(CpuState& state, uint32_t index, uint64_t& value) {
  impl_->core.state = &state;
  return impl_->core.ReadMsr(index, value);
}

bool Interpreter::WriteMsr(CpuState& state, uint32_t index, uint64_t value) {
  impl_->core.state = &state;
  return impl_->core.WriteMsr(index, value);
}

void Interpreter::FlushTlb() { impl_->core.FlushTlb(); }
void Interpreter::FlushDecoded() { impl_->core.FlushDecoded(); }
uint64_t Interpreter::retired() const { return impl_->core.retired; }

StepResult Core::Inject(CpuState& cpu, const Event& event) {
  state = &cpu;
  UpdateAccessMode();
  cpu.halted = false;
  return DeliverEvent(event);
}

}  // namespace nacre::engine::interp
