#pragma once
// The interpreter's inside: what the families of instruction handlers (alu.cc, flow.cc, system.cc, ...) work on. A Core
// executes one instruction at a time on a CpuState. Used only inside this folder, on the vCPU's thread.
//
// Faults: a function that can fault returns bool; false means that the fault has been recorded (Fault, PageFault, ...)
// and that nothing architectural has changed, so every handler reads and probes before it writes registers.
// Step then delivers what was recorded (interrupt.cc).

#include <array>
#include <cstdint>
#include <memory>
#include <type_traits>

#include "engine/engine.h"
#include "engine/interp/interpreter.h"
#include "engine/interp/vector.h"
#include "x86/cpu_state.h"
#include "x86/instruction.h"
#include "x86/page_walk.h"

/// Leaves the enclosing handler when a fault has been recorded.
#define INTERP_TRY(expression)      \
  do {                              \
    if (!(expression)) [[unlikely]] \
      return false;                 \
  } while (false)

namespace nacre::engine::interp {

struct Core;
struct Decoded;
class StackSwitch;
using Handler = bool (*)(Core& core, const Decoded& decoded);

/// A decoded instruction with what can be resolved once. The first two cache lines are what dispatch needs.
struct alignas(64) Decoded {
  uint64_t key = 0;                      ///< physical address and code size, plus 1; 0: nothing here
  uint64_t bytes[2] = {}, mask[2] = {};  ///< the instruction's bytes, zero above `length`
  Handler handler = nullptr;
  uint8_t length = 0;
  uint8_t operand_size = 0;    ///< effective: 2, 4, 8, whatever the form (also where the instruction has no operand)
  uint8_t stack_size = 0;      ///< of pushes, pops and near branches: in 64-bit code 8, or 2 with a 66 prefix
  uint8_t string_segment = 0;  ///< DS or the override: source of string instructions and XLAT
  uint8_t reg[4] = {};         ///< byte offset into CpuState::gpr of operand i, if it is a general register
  x86::Instruction insn;
};

static_assert(std::is_trivially_copyable_v<Decoded>);

/// Decoded instructions by hash of their key. The memory is the host's to give page by page as entries are used: an
/// interpreter that only helps a translator costs little.
class DecodeCache {
 public:
  static constexpr unsigned kSize = 1 << 16;
  DecodeCache();
  ~DecodeCache();
  DecodeCache(const DecodeCache&) = delete;
  DecodeCache& operator=(const DecodeCache&) = delete;
  Decoded& At(uint64_t physical) { return entries_[(physical ^ (physical >> 16)) % kSize]; }
  void Clear();

 private:
  Decoded* entries_;
};

/// A translated range of guest memory, at most two pages: where an access may go without further checks.
struct MemRef {
  uint8_t* host[2] = {};  ///< null: MMIO
  GuestPhys phys[2];
  uint32_t size = 0, first = 0;  ///< total, and how much of it lies in the first page
};

/// Of a RAM reference: the host would need a split lock to make it atomic.
inline bool SpansCacheLines(const MemRef& ref) {
  constexpr uintptr_t kLine = 64;
  return ref.first != ref.size || (reinterpret_cast<uintptr_t>(ref.host[0]) & (kLine - 1)) + ref.size > kLine;
}

/// How linear addresses are checked (SDM 3A 4.6). kSlow is a TLB context that never holds anything: alignment checks
/// and data breakpoints need every access to come by.
enum class AccessMode : uint8_t { kSupervisor, kUser, kSupervisorAc, kSlow };

struct TlbEntry {
  uint64_t tag = 0;
  uint8_t* host = nullptr;
  uint64_t phys = 0;
};

/// A segment descriptor as it lies in memory (SDM 3A 3.4.5, 5.8.3, 7.2.2). `upper` is the second half of 16-byte ones.
struct Descriptor {
  uint32_t low = 0, high = 0;
  uint32_t upper = 0, upper_high = 0;
  uint64_t address = 0;  ///< linear, for the accessed and busy bits

  unsigned type() const { return (high >> 8) & 0xf; }
  bool code_or_data() const { return (high & Bit(12)) != 0; }
  unsigned dpl() const { return (high >> 13) & 3; }
  bool present() const { return (high & Bit(15)) != 0; }
  bool is_code() const { return code_or_data() && (type() & 8); }
  bool is_data() const { return code_or_data() && !(type() & 8); }
  bool conforming() const { return (type() & 4) != 0; }  // code
  bool readable() const { return !is_code() || (type() & 2); }
  bool writable() const { return is_data() && (type() & 2); }
  bool long_code() const { return (high & Bit(21)) != 0; }
  bool big() const { return (high & Bit(22)) != 0; }
  uint32_t base() const { return (low >> 16) | ((high & 0xff) << 16) | (high & 0xff000000); }
  uint64_t base64() const { return base() | (static_cast<uint64_t>(upper) << 32); }
  uint32_t limit() const {
    const uint32_t raw = (low & 0xffff) | (high & 0xf0000);
    return high & Bit(23) ? (raw << 12) | 0xfff : raw;
  }
  uint32_t attributes() const { return ((high >> 8) & 0xff) | ((high >> 8) & 0xf000); }
  // Gates.
  uint16_t gate_selector() const { return static_cast<uint16_t>(low >> 16); }
  uint32_t gate_offset() const { return (low & 0xffff) | (high & 0xffff0000); }
  uint64_t gate_offset64() const { return gate_offset() | (static_cast<uint64_t>(upper) << 32); }
};

/// System descriptor types.
enum SystemType : uint8_t {
  kTss16 = 1,
  kLdt = 2,
  kTss16Busy = 3,
  kCallGate16 = 4,
  kTaskGate = 5,
  kInterruptGate16 = 6,
  kTrapGate16 = 7,
  kTss32 = 9,
  kTss32Busy = 11,
  kCallGate32 = 12,
  kInterruptGate32 = 14,
  kTrapGate32 = 15
};

/// An event on its way through the IDT (SDM 3A 6.4-6.12).
struct Event {
  enum class Kind : uint8_t { kException, kExternal, kSoftware /* INT n, INT3, INTO: gate DPL counts */ };
  uint8_t vector = 0;
  Kind kind = Kind::kException;
  bool has_error = false;
  uint32_t error = 0;
  uint64_t return_rip = 0;
  bool set_rf = false;  ///< push RFLAGS with RF set
};

/// LOCK CMPXCHG on host memory, whatever its alignment. False: `expected` is now what was seen.
template <typename T>
bool HostCompareExchange(uint8_t* host, T& expected, T desired) {
  bool equal;
  asm volatile("lock cmpxchg %[desired], %[memory]"
               : "+a"(expected), [memory] "+m"(*reinterpret_cast<char(*)[sizeof(T)]>(host)), "=@ccz"(equal)
               : [desired] "q"(desired)
               : "memory");
  return equal;
}

struct FaultRecord {
  uint8_t vector = 0;
  bool has_error = false;
  uint32_t error = 0;
  uint64_t cr2 = 0;
  bool trap = false;  ///< RIP of the next instruction is pushed (#DB of INT1 and the like)
};

struct Core final : OperandMemory {
  static constexpr unsigned kTlbSize = 512;
  static constexpr unsigned kMaxRepeat = 4096;  ///< iterations of a REP in one Step

  Core(const VcpuConfig& vcpu_config, StateListener* state_listener);
  ~Core() override;

  // ---- step.cc
  StepResult Step(x86::CpuState& cpu);
  bool DebugBefore();
  bool DebugAfter(uint64_t flags_before);
  StepResult Inject(x86::CpuState& cpu, const Event& event);
  void UpdateAccessMode();
  bool Fault(uint8_t vector);
  bool FaultCode(uint8_t vector, uint32_t error);
  bool PageFault(uint64_t linear, uint32_t error);
  bool Gp(uint32_t error = 0) { return FaultCode(x86::kGeneralProtection, error); }
  bool Ud() { return Fault(x86::kInvalidOpcode); }
  bool Np(uint32_t error) { return FaultCode(x86::kSegmentNotPresent, error); }
  bool Ts(uint32_t error) { return FaultCode(x86::kInvalidTss, error); }
  bool Ss(uint32_t error = 0) { return FaultCode(x86::kStackFault, error); }

  // ---- decode_cache.cc
  const Decoded* FetchInstruction();
  void FlushDecoded();

  // ---- memory.cc: linear memory
  bool TranslateSlow(uint64_t linear, uint32_t size, x86::Access access, MemRef& ref);
  bool ReadSlow(uint64_t linear, void* to, uint32_t size);
  bool WriteSlow(uint64_t linear, const void* from, uint32_t size);
  bool TranslatePage(uint64_t linear, x86::Access access, AccessMode as, uint8_t*& host, GuestPhys& phys);
  void LoadRef(const MemRef& ref, void* to);
  void StoreRef(const MemRef& ref, const void* from);
  void Written(const uint8_t* host, GuestPhys phys, uint32_t size);
  /// The present PCID.
  uint16_t pcid() const { return static_cast<uint16_t>(state->cr4 & x86::cr4::kPcide ? state->cr3 & 0xfff : 0); }
  void FlushTlb();
  void FlushTlbPage(uint64_t linear);
  void NotifyFlush(bool include_global);
  /// Reads and writes of system structures (GDT, LDT, IDT, TSS): supervisor accesses whatever the CPL.
  bool SystemRead(uint64_t linear, void* to, uint32_t size);
  bool SystemWrite(uint64_t linear, const void* from, uint32_t size);
  void CheckDataBreakpoints(uint64_t linear, uint32_t size, bool write);

  TlbEntry* Lookup(x86::Access access, uint64_t linear) {
    TlbEntry& entry = tlb[static_cast<unsigned>(access)][static_cast<unsigned>(tlb_mode)][(linear >> 12) % kTlbSize];
    return entry.tag == ((linear & ~kPageMask) | tlb_generation) && entry.host ? &entry : nullptr;
  }

  template <typename T>
  bool ReadLinear(uint64_t linear, T& value) {
    const uint64_t offset = linear & kPageMask;
    if (const TlbEntry* entry = Lookup(x86::Access::kRead, linear); entry && offset <= kPageSize - sizeof(T))
        [[likely]] {
      std::memcpy(&value, entry->host + offset, sizeof(T));
      return true;
    }
    return ReadSlow(linear, &value, sizeof(T));
  }
  template <typename T>
  bool WriteLinear(uint64_t linear, T value) {
    const uint64_t offset = linear & kPageMask;
    if (const TlbEntry* entry = Lookup(x86::Access::kWrite, linear); entry && offset <= kPageSize - sizeof(T))
        [[likely]] {
      std::memcpy(entry->host + offset, &value, sizeof(T));
      Written(entry->host + offset, GuestPhys(entry->phys + offset), sizeof(T));
      return true;
    }
    return WriteSlow(linear, &value, sizeof(T));
  }
  bool Translate(uint64_t linear, uint32_t size, x86::Access access, MemRef& ref) {
    const uint64_t offset = linear & kPageMask;
    if (const TlbEntry* entry = Lookup(access, linear); entry && offset + size <= kPageSize) [[likely]] {
      ref.host[0] = entry->host + offset;
      ref.phys[0] = GuestPhys(entry->phys + offset);
      ref.size = ref.first = size;
      return true;
    }
    return TranslateSlow(linear, size, access, ref);
  }

  // ---- memory.cc: segmentation (SDM 3A 5.3; 64-bit mode 5.3.1)
  bool SegmentFault(x86::SegmentIndex segment, uint32_t error = 0) {
    return segment == x86::kSs ? Ss(error) : Gp(error);
  }
  bool LinearSlow(x86::SegmentIndex segment, uint64_t offset, uint64_t size, x86::Access access, uint64_t& linear);
  static bool Canonical(uint64_t address) { return SignExtend(address, 48) == address; }
  /// The linear address of an access, or a recorded #GP(0) or #SS(0): limits, rights, canonical form.
  bool Linear(x86::SegmentIndex segment, uint64_t offset, uint64_t size, x86::Access access, uint64_t& linear) {
    if (code64) [[likely]] {
      linear = segment >= x86::kFs ? offset + state->segment[segment].base : offset;
      if (Canonical(linear) && Canonical(linear + size - 1)) [[likely]]
        return true;
      return SegmentFault(segment);
    }
    return LinearSlow(segment, offset, size, access, linear);
  }
  template <typename T>
  bool ReadSegment(x86::SegmentIndex segment, uint64_t offset, T& value) {
    uint64_t linear;
    return Linear(segment, offset, sizeof(T), x86::Access::kRead, linear) && ReadLinear(linear, value);
  }
  template <typename T>
  bool WriteSegment(x86::SegmentIndex segment, uint64_t offset, T value) {
    uint64_t linear;
    return Linear(segment, offset, sizeof(T), x86::Access::kWrite, linear) && WriteLinear(linear, value);
  }
  bool TranslateSegment(x86::SegmentIndex segment, uint64_t offset, uint32_t size, x86::Access access, MemRef& ref) {
    uint64_t linear;
    return Linear(segment, offset, size, access, linear) && Translate(linear, size, access, ref);
  }
  bool Read(x86::SegmentIndex segment, uint64_t offset, void* to, unsigned size) override;
  bool Write(x86::SegmentIndex segment, uint64_t offset, const void* from, unsigned size) override;
  bool ProbeWrite(x86::SegmentIndex segment, uint64_t offset, unsigned size) override;
  /// Values of 2, 4 or 8 bytes, zero-extended.
  bool ReadSized(x86::SegmentIndex segment, uint64_t offset, unsigned size, uint64_t& value);
  bool WriteSized(x86::SegmentIndex segment, uint64_t offset, unsigned size, uint64_t value);

  // ---- operands
  uint64_t EffectiveAddress(const Decoded& d) const {
    const x86::Instruction& insn = d.insn;
    uint64_t address = static_cast<uint64_t>(insn.displacement);
    if (insn.base < 16)
      address += state->gpr[insn.base];
    else if (insn.base == x86::kRipRegister)
      address += state->rip + d.length;
    if (insn.index < 16 && !insn.has(x86::kInsnVsib)) address += state->gpr[insn.index] * insn.scale;
    return MaskToSize(address, insn.address_size);
  }
  x86::SegmentIndex OperandSegment(const Decoded& d) const { return static_cast<x86::SegmentIndex>(d.insn.segment); }
  template <typename T>
  T ReadReg(uint8_t offset) const {
    T value;
    std::memcpy(&value, reinterpret_cast<const uint8_t*>(state->gpr) + offset, sizeof(T));
    return value;
  }
  template <typename T>
  void WriteReg(uint8_t offset, T value) {
    uint8_t* to = reinterpret_cast<uint8_t*>(state->gpr) + offset;
    if constexpr (sizeof(T) == 4) {
      const uint64_t wide = value;
      std::memcpy(to, &wide, 8);
    } else {
      std::memcpy(to, &value, sizeof(T));
    }
  }
  void WriteGpr(unsigned index, unsigned size, uint64_t value);
  uint64_t ReadGpr(unsigned index, unsigned size) const { return MaskToSize(state->gpr[index], size); }

  template <typename T>
  bool LoadOperand(const Decoded& d, unsigned i, T& value) {
    switch (d.insn.operand[i].kind) {
      case x86::OperandKind::kRegister:
        value = ReadReg<T>(d.reg[i]);
        return true;
      case x86::OperandKind::kMemory:
        return ReadSegment<T>(OperandSegment(d), EffectiveAddress(d), value);
      default:
        value = static_cast<T>(d.insn.immediate);
        return true;
    }
  }
  template <typename T>
  bool StoreOperand(const Decoded& d, unsigned i, T value) {
    if (d.insn.operand[i].kind == x86::OperandKind::kRegister) {
      WriteReg<T>(d.reg[i], value);
      return true;
    }
    return WriteSegment<T>(OperandSegment(d), EffectiveAddress(d), value);
  }
  /// Reads, changes and writes operand i by `change(T&)`, which may be called again where a locked access raced. It
  /// must only depend on its argument and what it captured before.
  template <typename T, typename F>
  bool ModifyOperand(const Decoded& d, unsigned i, F&& change, bool locked) {
    if (d.insn.operand[i].kind == x86::OperandKind::kRegister) {
      T value = ReadReg<T>(d.reg[i]);
      change(value);
      WriteReg<T>(d.reg[i], value);
      return true;
    }
    return ModifyMemory<T>(OperandSegment(d), EffectiveAddress(d), change, locked);
  }
  template <typename T, typename F>
  bool ModifyOperand(const Decoded& d, unsigned i, F&& change) {
    return ModifyOperand<T>(d, i, change, d.insn.has(x86::kInsnLock));
  }
  template <typename T, typename F>
  bool ModifyMemory(x86::SegmentIndex segment, uint64_t offset, F&& change, bool locked) {
    MemRef ref;
    INTERP_TRY(TranslateSegment(segment, offset, sizeof(T), x86::Access::kWrite, ref));
    T value;
    if (locked && ref.host[0] && config.exclusive && SpansCacheLines(ref)) {  // a split lock is no way on the host
      config.exclusive->BeginExclusive();
      LoadRef(ref, &value);
      change(value);
      StoreRef(ref, &value);
      config.exclusive->EndExclusive();
      return true;
    }
    LoadRef(ref, &value);
    if (locked && ref.host[0] && ref.first == ref.size && !SpansCacheLines(ref)) {
      for (T expected = value;;) {
        value = expected;
        change(value);
        if (HostCompareExchange(ref.host[0], expected, value)) break;
      }
      Written(ref.host[0], ref.phys[0], sizeof(T));
      return true;
    }
    change(value);
    StoreRef(ref, &value);
    return true;
  }

  // ---- flow.cc: stack
  uint64_t StackMask() const {
    if (code64) return ~uint64_t{0};
    return state->segment[x86::kSs].big() ? 0xffffffff : 0xffff;
  }
  void SetStackPointer(uint64_t value);
  bool Push(unsigned size, uint64_t value);
  /// Reads the stack at RSP + `at` without moving RSP.
  bool Peek(unsigned size, uint64_t at, uint64_t& value);
  void Release(uint64_t count) { SetStackPointer(state->gpr[x86::kRsp] + count); }
  /// #GP(0) unless `target` can be the next RIP in the present code segment.
  bool CheckTarget(uint64_t target);

  // ---- segment.cc: descriptors
  bool ReadDescriptor(uint16_t selector, Descriptor& descriptor, uint8_t fault_vector);
  bool ReadDescriptorTop(uint16_t selector, Descriptor& descriptor, uint8_t fault_vector);
  bool TryDescriptor(uint16_t selector, Descriptor& descriptor, bool& outside);
  bool SetDescriptorBits(Descriptor& descriptor, uint32_t high_bits);
  bool LoadSegment(x86::SegmentIndex segment, uint16_t selector);
  bool CheckStackSegment(uint16_t selector, unsigned cpl, Descriptor& descriptor, uint8_t fault_vector);
  void CommitSegment(x86::SegmentIndex segment, uint16_t selector, const Descriptor& descriptor);
  void CommitCode(uint16_t selector, const Descriptor& descriptor, unsigned cpl);
  void CommitNull(x86::SegmentIndex segment, uint16_t selector, unsigned dpl);
  void LoadRealSegment(x86::SegmentIndex segment, uint16_t selector);
  void SetVirtual8086Segment(x86::SegmentIndex segment, uint16_t selector);
  void SetCpl(unsigned cpl);
  void DropInaccessibleSegments(unsigned cpl);
  /// #GP(0) unless `offset` can be RIP in the code segment `descriptor`.
  bool CheckCodeOffset(const Descriptor& descriptor, uint64_t offset);

  // ---- far.cc
  bool FarJump(uint16_t selector, uint64_t offset, unsigned operand_size);
  bool FarCall(uint16_t selector, uint64_t offset, unsigned operand_size);
  bool FarReturn(unsigned operand_size, unsigned release);
  bool InterruptReturn(unsigned operand_size);
  bool TssStack(unsigned cpl, uint16_t& selector, uint64_t& pointer);
  /// Puts SS:RSP of inner level `cpl` in place, to be undone by `change` unless it is committed.
  bool SwitchStack(unsigned cpl, StackSwitch& change);
  /// Pushes values[0], values[1], ... after probing all of them.
  bool PushFrame(const uint64_t* values, unsigned count, unsigned size);
  bool CallInner(const Descriptor& gate, const Descriptor& code, uint16_t selector, uint64_t offset, unsigned size);
  bool CheckReturnCode(uint16_t selector, Descriptor& descriptor);
  bool ReturnWithStack(uint16_t cs, const Descriptor& code, uint64_t rip, uint16_t ss, uint64_t rsp);
  void ReturnFlags(uint64_t value, unsigned size, unsigned cpl);
  bool ReturnToVirtual8086(uint64_t rip, uint16_t cs, uint64_t flags);

  // ---- interrupt.cc
  StepResult DeliverFault();
  StepResult DeliverEvent(Event event);
  bool DeliverOnce(const Event& event);
  bool SoftwareInterrupt(uint8_t vector);

  // ---- task.cc
  enum class TaskSource : uint8_t { kJump, kCall, kReturn, kEvent };
  bool TaskSwitch(uint16_t selector, const Descriptor& descriptor, TaskSource source, const Event* event);
  bool TaskReturn();
  bool TaskGate(const Descriptor& gate, uint16_t gate_selector, TaskSource source, const Event* event);

  // ---- msr.cc, system.cc
  bool ReadMsr(uint32_t index, uint64_t& value);
  bool WriteMsr(uint32_t index, uint64_t value);
  bool WriteEfer(uint64_t value);
  uint64_t ReadTsc() const;
  bool WriteCr0(uint64_t value);
  bool WriteCr3(uint64_t value);
  bool WriteCr4(uint64_t value);
  void WriteFlags(uint64_t value, uint64_t changeable) {
    state->rflags = (state->rflags & ~changeable) | (value & changeable) | x86::rflags::kFixed1;
  }
  unsigned iopl() const { return (state->rflags >> x86::rflags::kIoplShift) & 3; }
  bool Privileged() { return state->cpl() == 0 ? true : Gp(); }

  // ---- io.cc
  bool CheckPort(uint16_t port, unsigned size);
  void CheckIoBreakpoints(uint16_t port, unsigned size);

  VcpuConfig config;
  StateListener* listener;
  VectorUnit vector_unit;
  const bool amd;  ///< the model's vendor: SYSCALL and SYSENTER differ
  x86::CpuState* state = nullptr;
  uint64_t next_rip = 0;
  bool code64 = false;
  AccessMode mode = AccessMode::kSupervisor;      ///< of data accesses now
  AccessMode tlb_mode = AccessMode::kSupervisor;  ///< the same, or kSlow
  uint64_t tlb_generation = 1;
  uint64_t large_first = ~uint64_t{0}, large_last = 0;  ///< bounds of cached large pages

  FaultRecord fault;
  bool shadow_sti = false, shadow_mov_ss = false;  ///< set by this instruction
  bool keep_rf = false;                            ///< this instruction loaded RF itself
  bool unfinished = false;                         ///< a REP goes on: RIP stays
  bool trap_by_new_tf = false;                     ///< SYSCALL, SYSRET: single-step is judged by the flags after
  bool no_trap = false;                            ///< INT n, INT3, INTO entered a handler: TF was taken care of
  bool halt = false;
  bool task_trap = false;   ///< T bit of a new TSS
  uint32_t debug_hits = 0;  ///< DR6 bits of data and I/O breakpoints of this instruction
  bool external = false;    ///< EXT bit for errors during the delivery of an event
  bool implicit = false;    ///< system-structure access: no alignment check, no data breakpoints, no SMAP override
  uint64_t retired = 0;

  std::array<std::array<std::array<TlbEntry, kTlbSize>, 4>, 3> tlb{};
  DecodeCache decode_cache;
  Decoded spare;  ///< where an instruction without a place in the cache is decoded
};

/// Sets the privilege that data accesses are checked with while it lives.
class ModeScope {
 public:
  ModeScope(Core& core, unsigned cpl) : core_(core), mode_(core.mode), tlb_mode_(core.tlb_mode) {
    core.mode = cpl == 3                                ? AccessMode::kUser
                : core.state->rflags & x86::rflags::kAc ? AccessMode::kSupervisorAc
                                                        : AccessMode::kSupervisor;
    if (core.tlb_mode != AccessMode::kSlow) core.tlb_mode = core.mode;
  }
  ~ModeScope() {
    core_.mode = mode_;
    core_.tlb_mode = tlb_mode_;
  }
  ModeScope(const ModeScope&) = delete;
  ModeScope& operator=(const ModeScope&) = delete;

 private:
  Core& core_;
  AccessMode mode_, tlb_mode_;
};

/// Remembers SS, RSP and the width of the stack while a frame is put on another one.
class StackSwitch {
 public:
  explicit StackSwitch(Core& core) : core_(core) {}
  ~StackSwitch() {
    if (!open_) return;
    core_.state->segment[x86::kSs] = ss_;
    core_.state->gpr[x86::kRsp] = rsp_;
    core_.code64 = code64_;
  }
  StackSwitch(const StackSwitch&) = delete;
  StackSwitch& operator=(const StackSwitch&) = delete;
  void Begin() {
    ss_ = core_.state->segment[x86::kSs];
    rsp_ = core_.state->gpr[x86::kRsp];
    code64_ = core_.code64;
    open_ = true;
  }
  void Commit() { open_ = false; }

 private:
  Core& core_;
  x86::Segment ss_;
  uint64_t rsp_ = 0;
  bool code64_ = false;
  bool open_ = false;
};

/// Calls a generic lambda with a value of the unsigned type of `size` bytes.
template <typename F>
bool WithSize(unsigned size, F&& f) {
  switch (size) {
    case 1:
      return f(uint8_t{});
    case 2:
      return f(uint16_t{});
    case 4:
      return f(uint32_t{});
    default:
      return f(uint64_t{});
  }
}

}  // namespace nacre::engine::interp
