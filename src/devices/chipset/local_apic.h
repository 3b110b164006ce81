#pragma once
// The local APIC of one virtual CPU, xAPIC and x2APIC (Intel SDM 3A ch. 11): registers, priorities, interrupt
// command, local vector table and timer. Its memory page is this CPU's own: the machine passes accesses of a
// vCPU that fall into [base(), base() + 4 KiB) to this object's Read and Write while mmio_enabled(), before
// it asks the memory bus.
//
// While somebody else keeps the local APICs (ApicBus::SetRemote), the model stands still: no timer runs, no CPU is
// signalled, and messages go on to the keeper. What remains is the acknowledge cycle of the 8259 pair.
//
// Threads: under the device lock. The engine's calls (Acknowledge, CR8, MSRs) come on the vCPU's thread.

#include <cstdint>
#include <memory>
#include <string>

#include "base/scheduler.h"
#include "bus/device.h"
#include "devices/chipset/apic_bus.h"
#include "devices/chipset/apic_types.h"
#include "x86/apic_state.h"

namespace nacre::devices {

class LocalApic final : public bus::Device, public bus::IoHandler {
 public:
  static constexpr uint64_t kDefaultBase = 0xfee00000;
  /// The timer's input clock, for CPUID leaves 0x15 and 0x40000010.
  static constexpr uint64_t kTimerHz = 1'000'000'000;
  static constexpr uint32_t kMsrApicBase = 0x1b, kMsrTscDeadline = 0x6e0, kMsrX2ApicFirst = 0x800,
                            kMsrX2ApicLast = 0x8ff;

  /// `id` 0 is the bootstrap processor; IDs are made in rising order without gaps.
  LocalApic(unsigned id, ApicBus& apic_bus, Scheduler& scheduler, const GuestTsc& tsc, CpuSignals& cpu);
  ~LocalApic() override;
  LocalApic(const LocalApic&) = delete;
  LocalApic& operator=(const LocalApic&) = delete;

  // For the vCPU.
  static bool OwnsMsr(uint32_t index) {
    return index == kMsrApicBase || index == kMsrTscDeadline || (index >= kMsrX2ApicFirst && index <= kMsrX2ApicLast);
  }
  /// False: #GP(0).
  bool ReadMsr(uint32_t index, uint64_t& value);
  bool WriteMsr(uint32_t index, uint64_t value);
  uint64_t ReadCr8() const { return tpr_ >> 4; }
  void WriteCr8(uint64_t value) { SetTpr(static_cast<uint8_t>(value << 4)); }
  /// The vector to take now, which becomes in-service; -1 if there is none. In remote mode the 8259 pair's only.
  int Acknowledge();
  /// nullptr: the guest writes the EOI register only.
  void SetEoiFlag(EoiFlag* flag) { eoi_flag_ = flag; }
  /// On the CPU's thread: what the guest has not said by the flag, it says by the register.
  void WithdrawEoiOffer();
  /// The guest changed its time-stamp counter: an armed deadline is converted again.
  void TscChanged();
  uint64_t base() const { return apic_base_ & ~uint64_t{0xfff}; }
  bool mmio_enabled() const { return (apic_base_ & (kBaseEnable | kBaseX2Apic)) == kBaseEnable; }
  uint64_t Read(uint64_t offset, unsigned size) override;
  void Write(uint64_t offset, unsigned size, uint64_t value) override;

  // For ApicBus.
  uint32_t id() const { return id_; }
  bool Matches(uint32_t destination, bool logical) const;
  bool accepts_interrupts() const { return hardware_enabled() && (svr_ & kSvrEnable) != 0; }
  uint8_t processor_priority() const;
  void Deliver(DeliveryMode mode, uint8_t vector, bool level);
  void SetLint(unsigned pin, bool level);
  /// ApicBus::remote changed.
  void RemoteChanged();
  void Kick() { cpu_.Kick(); }
  /// Takes notice of an end of interrupt that the guest said by its flag.
  void SyncEoi();

  // For a change of who keeps the local APICs. The CPU does not run meanwhile.
  /// An interrupt of the 8259 pair whose acknowledge cycle is over: the next Acknowledge gives it. -1: none. ImportState
  /// leaves it as it is.
  void HoldExtInt(int vector);
  /// It goes on to somebody else.
  int TakeHeldExtInt();
  /// The state as it is now. An end of interrupt that the guest said by its flag is done, one that it might still say
  /// there is withdrawn. Left out, as no other APIC gives it away: errors since the guest last wrote ESR.
  x86::LocalApicState ExportState();
  /// Takes over a state: timers run on from their counts, a pending interrupt is signalled. KvmParavirt has the CPU's
  /// EOI MSR already: an end of interrupt that another APIC had offered there is withdrawn, the guest uses the
  /// register. False, and nothing changed: no local APIC of this ID can hold that. What a guest can bring into KVM's
  /// APIC by mistake, and what means nothing, is dropped: the ICR's reserved bits, vectors below 16 in IRR and TMR, SVR
  /// bits that only some APICs have, the LVT's read-only bits, who is the bootstrap processor.
  bool ImportState(const x86::LocalApicState& state);

  std::string_view name() const override { return name_; }
  void Reset() override;
  void Serialize(state::Archive& archive) override;

 private:
  static constexpr uint64_t kBaseBsp = 1 << 8, kBaseX2Apic = 1 << 10, kBaseEnable = 1 << 11;
  /// Address bits that any CPU of ours can have, the BSP flag and the two enables; the rest is reserved.
  static constexpr uint64_t kBaseMask = 0x000ffffffffff000 | kBaseBsp | kBaseX2Apic | kBaseEnable;
  static constexpr uint32_t kSvrEnable = 1 << 8, kLvtMasked = 1 << 16;
  // The bits that exist.
  static constexpr uint32_t kSvrMask = 0x1ff, kIcrMask = 0x000ccfff, kDivideMask = 0xb;
  static constexpr uint32_t kLdrMask = 0xff000000, kIcrHighMask = 0xff000000, kDfrOnes = 0x0fffffff;
  static constexpr uint32_t kLvtMask[] = {0x700ff, 0x107ff, 0x107ff, 0x1a7ff, 0x1a7ff, 0x100ff};
  enum Lvt : unsigned { kLvtTimer, kLvtThermal, kLvtPerformance, kLvtLint0, kLvtLint1, kLvtError, kLvtCount };
  static_assert(kLvtCount == static_cast<unsigned>(x86::LocalApicState::kLvtCount));
  enum class TimerMode : uint8_t { kOneShot = 0, kPeriodic = 1, kTscDeadline = 2, kReserved = 3 };
  struct Vectors {
    uint64_t words[4] = {};
    bool Test(unsigned vector) const { return (words[vector / 64] >> (vector % 64) & 1) != 0; }
    void Set(unsigned vector) { words[vector / 64] |= uint64_t{1} << (vector % 64); }
    void Clear(unsigned vector) { words[vector / 64] &= ~(uint64_t{1} << (vector % 64)); }
    int Highest() const;
    uint32_t Word32(unsigned index) const { return static_cast<uint32_t>(words[index / 2] >> (32 * (index % 2))); }
    /// Vectors 0 to 15 cannot be requested.
    void DropIllegal() { words[0] &= ~uint64_t{0xffff}; }
  };

  bool hardware_enabled() const { return (apic_base_ & kBaseEnable) != 0; }
  bool x2apic() const { return (apic_base_ & kBaseX2Apic) != 0; }
  bool bootstrap() const { return id_ == 0; }
  bool remote() const { return apic_bus_.remote() != nullptr; }
  uint32_t logical_id() const;

  /// Registers by number (offset >> 4). False: no such register.
  bool ReadRegister(unsigned reg, uint32_t& value) const;
  bool WriteRegister(unsigned reg, uint32_t value);
  bool ReadX2Apic(unsigned reg, uint64_t& value) const;
  bool WriteX2Apic(unsigned reg, uint64_t value);
  static uint32_t X2ApicReserved(unsigned reg);
  /// Of an LVT entry: what a write may have set, the read-only bits included.
  static uint32_t LvtWritable(unsigned index);
  bool WriteApicBase(uint64_t value);
  void WriteSvr(uint32_t value);
  void WriteLvt(unsigned index, uint32_t value);
  void SetTpr(uint8_t value);
  void EndOfInterrupt();
  void OfferEoi(unsigned vector);
  void SendIpi(uint32_t low, uint32_t destination);
  void Accept(uint8_t vector, bool level);
  void DeliverLocal(unsigned lvt);
  void RaiseError(uint32_t bits);
  void ResetRegisters();
  bool ExtIntPending() const;
  void Update();
  /// Update, and the CPU is told whatever it was told before.
  void SignalAgain();

  TimerMode timer_mode() const { return static_cast<TimerMode>(lvt_[kLvtTimer] >> 17 & 3); }
  unsigned divisor() const;
  uint32_t CurrentCount() const;
  void StartTimer(uint32_t count);
  void StopTimer();
  void ArmTimer(int64_t deadline_ns);
  void ArmDeadline();
  void OnTimer();
  bool CanHold(const x86::LocalApicState& state) const;
  void ImportTimer(const x86::LocalApicState& state);

  const uint32_t id_;
  const std::string name_;
  ApicBus& apic_bus_;
  Scheduler& scheduler_;
  const GuestTsc& tsc_;
  CpuSignals& cpu_;
  EoiFlag* eoi_flag_ = nullptr;
  std::unique_ptr<Timer> timer_;

  uint64_t apic_base_ = 0;
  uint8_t tpr_ = 0;
  uint32_t ldr_ = 0;
  uint32_t dfr_ = 0;
  uint32_t svr_ = 0;
  uint32_t esr_ = 0;     ///< as the guest reads it
  uint32_t errors_ = 0;  ///< collected since the last write to ESR
  uint32_t icr_low_ = 0;
  uint32_t icr_high_ = 0;  ///< bits 31:24 in xAPIC, all of them in x2APIC mode
  uint32_t lvt_[kLvtCount] = {};
  uint32_t initial_count_ = 0;
  uint32_t divide_ = 0;
  int64_t deadline_ns_ = 0;  ///< while the count runs
  bool counting_ = false;
  uint64_t tsc_deadline_ = 0;  ///< 0: not armed
  Vectors irr_, isr_, tmr_;
  bool lint_level_[2] = {};
  bool ext_int_message_ = false;
  int16_t held_ext_int_ = -1;  ///< see HoldExtInt
  bool eoi_offered_ = false;   ///< for the one vector in service; the guest may have said it meanwhile
  bool signalled_ = false;
};

}  // namespace nacre::devices
