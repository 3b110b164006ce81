#pragma once
// What KVM offers a guest's CPUs beside the clock (Linux Documentation/virt/kvm/x86/msr.rst, cpuid.rst, hypercalls.rst;
// CPUID leaf 0x40000001): stolen time, with the mark of a CPU that does not run and the request to flush its TLB (bits
// 5 and 9), end of interrupt without an exit (6), waking a CPU from HLT (7) and interrupts to many CPUs at once (11).
//
// Threads: under the device lock; TakeKick, Sleeping, Running and the stolen time on the CPU's own thread without it.

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "bus/device.h"
#include "devices/chipset/apic_types.h"
#include "memory/guest_memory.h"

namespace nacre::devices {

class ApicBus;

class KvmParavirt final : public bus::Device {
 public:
  static constexpr uint32_t kMsrStealTime = 0x4b564d03, kMsrEoi = 0x4b564d04;
  enum HypercallNumber : uint64_t { kHcKickCpu = 5, kHcSendIpi = 10 };
  /// What a hypercall answers, as a signed number.
  enum HypercallError : int64_t { kErrorInvalid = -22, kErrorNoSuchCall = -1000 };

  /// `apic_bus` has all local APICs already; each gets its EoiFlag.
  KvmParavirt(memory::GuestMemory& memory, ApicBus& apic_bus);
  ~KvmParavirt() override;

  static bool OwnsMsr(uint32_t index) { return index == kMsrStealTime || index == kMsrEoi; }
  /// False: #GP(0).
  bool ReadMsr(unsigned cpu, uint32_t index, uint64_t& value) const;
  bool WriteMsr(unsigned cpu, uint32_t index, uint64_t value);
  /// A hypercall at CPL 0; what goes into RAX. `code64`: from 64-bit code, whose arguments are wider.
  uint64_t Hypercall(uint64_t number, const uint64_t (&arguments)[4], bool code64);
  /// INIT: the CPU's MSRs are off.
  void ResetCpu(unsigned cpu);

  // For the CPU's thread.
  /// HLT: whether a kick came since the last one, which ends this one.
  bool TakeKick(unsigned cpu) { return cpus_[cpu].kicked.exchange(false); }
  /// Between instructions, before the thread sleeps: the guest sees the CPU as preempted.
  void Sleeping(unsigned cpu);
  /// Before the CPU runs again. True: its TLB must be flushed first, another one relies on it.
  bool Running(unsigned cpu);
  bool wants_stolen_time(unsigned cpu) const { return (cpus_[cpu].steal_msr.load() & kEnable) != 0; }
  /// The CPU was ready to run this much longer, but did not.
  void AddStolenTime(unsigned cpu, uint64_t ns);

  std::string_view name() const override { return "kvm-paravirt"; }
  void Reset() override;
  void Serialize(state::Archive& archive) override;

 private:
  static constexpr uint64_t kEnable = 1;

  /// The bit in guest memory by which the guest says end of interrupt.
  class CpuEoiFlag final : public EoiFlag {
   public:
    bool Offer() override;
    bool Signalled() override;
    void Withdraw() override;
    memory::GuestMemory* memory = nullptr;
    uint64_t msr = 0;
  };
  struct Cpu {
    std::atomic<uint64_t> steal_msr = 0;
    std::atomic<bool> kicked = false;
    CpuEoiFlag eoi;
  };

  bool WriteEoiMsr(unsigned cpu, uint64_t value);
  uint64_t SendIpi(const uint64_t (&arguments)[4], bool code64);
  /// The byte `preempted` of the CPU's record, or null.
  uint8_t* PreemptedByte(unsigned cpu, GuestPhys& address) const;

  memory::GuestMemory& memory_;
  ApicBus& apic_bus_;
  std::vector<Cpu> cpus_;
};

}  // namespace nacre::devices
