#pragma once
// The contract between an engine and the machine. An engine runs one virtual CPU from one x86::CpuState to another and
// imports and exports that state at any instruction boundary. Engines: interp (reference), jit, kvm.
//
// Threads: each Vcpu is run by one host thread of its own; everything here is called on that thread unless it says
// "any thread". VcpuHost's methods take the machine's device lock themselves; engines hold no lock when they call.

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "memory/address.h"
#include "memory/guest_memory.h"
#include "x86/apic_state.h"
#include "x86/cpu_model.h"
#include "x86/cpu_state.h"

namespace nacre::engine {

/// What a vCPU needs from the machine around it. Port sizes are 1, 2, 4; memory sizes 1, 2, 4, 8. Accesses to nothing
/// read as all ones.
class VcpuHost {
 public:
  virtual ~VcpuHost() = default;
  virtual uint32_t PortRead(uint16_t port, unsigned size) = 0;
  virtual void PortWrite(uint16_t port, unsigned size, uint32_t value) = 0;
  virtual uint64_t MmioRead(GuestPhys address, unsigned size) = 0;
  virtual void MmioWrite(GuestPhys address, unsigned size, uint64_t value) = 0;
  /// MSRs that are not the CPU's own (x2APIC, IA32_APIC_BASE, TSC_DEADLINE, paravirtual). False: #GP(0).
  virtual bool ReadMsr(uint32_t index, uint64_t& value) = 0;
  virtual bool WriteMsr(uint32_t index, uint64_t value) = 0;
  /// CR8 is the local APIC's task priority, bits 7:4.
  virtual uint64_t ReadCr8() = 0;
  virtual void WriteCr8(uint64_t value) = 0;
  /// The vector of the highest-priority interrupt that can be taken now, which becomes in-service; -1 if there is none
  /// (spurious kick). Called only when the guest can take it (IF set, no shadow).
  virtual int AcknowledgeInterrupt() = 0;
  /// VMCALL/VMMCALL (KVM's hypercall convention: number in RAX, arguments RBX RCX RDX RSI); returns RAX.
  /// `code64`: from 64-bit code; otherwise the arguments are 32 bits wide. Called at CPL 0 only.
  virtual uint64_t Hypercall(uint64_t number, const uint64_t (&arguments)[4], bool code64) = 0;
  /// From engines that keep local APICs (ApicKeeper): the guest has ended a level-triggered interrupt.
  virtual void EndOfInterrupt(uint8_t vector) { (void)vector; }
};

/// Requests to a vCPU, set by any thread.
enum RequestBits : uint32_t {
  kRequestInterrupt = 1 << 0,  ///< level: the local APIC or PIC has something for AcknowledgeInterrupt
  kRequestNmi = 1 << 1,
  kRequestInit = 1 << 2,      ///< leave Run with ExitReason::kInit
  kRequestStop = 1 << 3,      ///< leave Run with ExitReason::kStop at the next boundary
  kRequestEngine = 1 << 4,    ///< engine-internal work (TLB shoot-down, code invalidation)
  kRequestTlbFlush = 1 << 5,  ///< forget all translations, global ones too, before the next instruction
  kRequestUnhalt = 1 << 6,    ///< ends a halt, if there is one
  kRequestLint1 = 1 << 7      ///< to engines that keep local APICs (ApicKeeper): the CPU's pin LINT1 rose
};

enum class ExitReason : uint8_t {
  kHalted,    ///< HLT with nothing pending; run again once a request is set
  kStop,      ///< kRequestStop was seen (and cleared)
  kInit,      ///< kRequestInit was seen (and cleared)
  kShutdown,  ///< triple fault
  kBudget,    ///< the instruction budget given to Run is used up
  kError      ///< the engine cannot go on; see Vcpu::error()
};

/// Counters for --engine-stats: name to value, in print order.
struct Statistic {
  std::string name;
  uint64_t value = 0;
};

/// What the machine's own devices hold of a CPU unless its engine keeps it.
struct KeptState {
  x86::LocalApicState apic;
  uint64_t steal_time_msr = 0, eoi_msr = 0;  ///< KVM's paravirtual MSRs 0x4b564d03 and 0x4b564d04
  int ext_int = -1;  ///< the 8259 pair's vector: AcknowledgeInterrupt gave it, the guest has not got it yet; -1: none
};

/// The local APIC of a vCPU whose engine keeps it (kvm), with its timer, its waiting for INIT and SIPI and the
/// paravirtual interface to it. Then the engine takes interrupts by itself, HLT does not leave Run, and
/// AcknowledgeInterrupt is asked for the 8259's only.
class ApicKeeper {
 public:
  virtual ~ApicKeeper() = default;
  /// On the vCPU's thread, or while the vCPU does not run. Both after Vcpu::Import or Run.
  virtual Status ExportKept(KeptState& state) const = 0;
  virtual Status ImportKept(const KeptState& state) = 0;
};

class Vcpu {
 public:
  virtual ~Vcpu() = default;
  /// Null: the machine's own models are this vCPU's local APIC.
  virtual ApicKeeper* apic_keeper() { return nullptr; }
  virtual void Import(const x86::CpuState& state) = 0;
  virtual void Export(x86::CpuState& state) const = 0;
  /// Runs until there is a reason to leave. `instruction_budget` 0: no limit; the engine may overshoot by a block.
  virtual ExitReason Run(uint64_t instruction_budget = 0) = 0;
  /// Any thread. Sets bits and makes a running vCPU look at them soon (microseconds, without a signal where possible).
  virtual void Request(uint32_t bits) = 0;
  /// Any thread. For kRequestInterrupt when its level falls.
  virtual void ClearRequest(uint32_t bits) = 0;
  virtual uint32_t pending_requests() const = 0;
  virtual std::string error() const = 0;
  virtual std::vector<Statistic> Statistics() const = 0;
};

/// Around a locked access that the host cannot do atomically (across pages): meanwhile no other vCPU runs guest code.
class ExclusiveSection {
 public:
  virtual ~ExclusiveSection() = default;
  virtual void BeginExclusive() = 0;
  virtual void EndExclusive() = 0;
};

struct VcpuConfig {
  unsigned index = 0;
  const x86::CpuModel* model = nullptr;
  memory::GuestMemory* memory = nullptr;
  VcpuHost* host = nullptr;
  ExclusiveSection* exclusive = nullptr;  ///< set by engines for the interpreter that they use; null: one vCPU
};

/// An interrupt message as the memory write that it is on the bus (SDM 3A 11.11).
struct MessageWrite {
  uint64_t address = 0;
  uint32_t data = 0;
};

/// A message with a way of its own to the engine's local APICs.
class MessageLine {
 public:
  /// What was sent has arrived when this returns.
  virtual ~MessageLine() = default;
  /// Any thread.
  virtual void Send() = 0;
  /// Another message from now on; what was sent before goes as the old one or as the new one.
  virtual Status Change(const MessageWrite& message) = 0;
  /// An eventfd whose writing is Send: for somebody else's process or the host's kernel (vhost).
  virtual int event_fd() const = 0;
};

/// Where interrupt messages go when the engine keeps the local APICs. Any thread.
class MessageSink {
 public:
  virtual ~MessageSink() = default;
  virtual void Send(const MessageWrite& message) = 0;
  /// What the IO-APIC's pins send, by pin; empty: a masked pin. For EndOfInterrupt of those that are level-triggered.
  virtual Status SetPinRoutes(std::span<const std::optional<MessageWrite>> pins) = 0;
  /// Null: there is no room for one more, and Send serves. The engine must outlive it.
  virtual std::unique_ptr<MessageLine> OpenLine([[maybe_unused]] const MessageWrite& message) { return nullptr; }
};

/// Addresses where a write is only a signal. Under the caller's own lock.
class WriteEvents {
 public:
  virtual ~WriteEvents() = default;
  /// From now on a write at exactly this address, of any value and (where the host can) any size, adds 1 to the eventfd
  /// instead of reaching VcpuHost::MmioWrite. Fails where the engine has no place for it, or has the address already.
  virtual Status AddWriteEvent(GuestPhys address, int event_fd) = 0;
  /// What was added. When it returns no write is on its way to the eventfd any more.
  virtual void RemoveWriteEvent(GuestPhys address, int event_fd) = 0;
};

/// Which pages of guest memory are written: by the guest's instructions, by the processor (page tables, descriptors),
/// and through GuestMemory. While no vCPU runs; the vCPUs must outlive it or have gone. One at a time of an engine.
class DirtyLog {
 public:
  /// Notes no more from then on.
  virtual ~DirtyLog() = default;
  /// Sets the bits of the pages that were written since the start or the last call, and no other bit; never clears one.
  /// Bit i of the bitmap is the page at GuestMemory::host_base() + i * 4096; GuestMemory::page_bitmap_words() words.
  virtual Status Collect(std::span<uint64_t> bitmap) = 0;
};

/// One engine serves one machine and makes its vCPUs. It must outlive them.
class Engine {
 public:
  virtual ~Engine() = default;
  virtual std::string_view name() const = 0;
  virtual Result<std::unique_ptr<Vcpu>> CreateVcpu(const VcpuConfig& config) = 0;
  /// Not null where vCPUs have an ApicKeeper.
  virtual MessageSink* message_sink() { return nullptr; }
  /// Null: every write to a device leaves Run.
  virtual WriteEvents* write_events() { return nullptr; }
  /// Begins to note. Costs nothing before, and after the log has gone. No vCPU runs, at least one is made.
  virtual Result<std::unique_ptr<DirtyLog>> StartDirtyLog() = 0;
  /// Its vCPUs may run from now on, and no other engine's do: until here another one was at work on the same memory.
  virtual void Begin() {}
  /// What the guest's memory shows to CPUs has changed (GuestMemory::Layout). Under the device lock; vCPUs may run and
  /// are asked for a TLB flush besides.
  virtual Status MemoryChanged() { return {}; }
  /// Its vCPUs run no more, and another engine takes the guest over: nothing of guest memory is touched from now on,
  /// not by the destructors either.
  virtual void Retire() {}
  /// Counters of what is shared by the vCPUs.
  virtual std::vector<Statistic> Statistics() const = 0;
};

}  // namespace nacre::engine
