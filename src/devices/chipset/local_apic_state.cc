// The local APIC's state as a whole: saved and restored, and handed to and taken from somebody else who keeps it.

#include <algorithm>
#include <span>

#include "devices/chipset/local_apic.h"

namespace nacre::devices {
namespace {

constexpr uint32_t kEsrMask = 0xff;
// SVR: focus processor checking and EOI broadcast suppression, which our APIC does not have.
constexpr uint32_t kSvrElsewhere = 1 << 9 | 1 << 12;
constexpr uint32_t kIllegalVectors = 0xffff;

}  // namespace

void LocalApic::RemoteChanged() {
  if (!remote()) return;
  timer_->Cancel();
  Update();
}

void LocalApic::SignalAgain() {
  signalled_ = false;
  cpu_.SetInterrupt(false);
  Update();
}

x86::LocalApicState LocalApic::ExportState() {
  WithdrawEoiOffer();
  // A count that has ended is an interrupt, though its timer has not been called yet.
  if (counting_ && deadline_ns_ <= scheduler_.NowNs()) OnTimer();
  x86::LocalApicState state;
  state.apic_base = apic_base_;
  state.id = id_;
  state.tpr = tpr_;
  state.ldr = logical_id();
  state.dfr = dfr_;
  state.svr = svr_;
  state.esr = esr_;
  state.icr_low = icr_low_;
  state.icr_high = icr_high_;
  std::ranges::copy(lvt_, state.lvt);
  state.initial_count = initial_count_;
  state.current_count = CurrentCount();
  state.divide = divide_;
  state.tsc_deadline = tsc_deadline_;
  for (unsigned i = 0; i < 8; ++i) {
    state.irr[i] = irr_.Word32(i);
    state.isr[i] = isr_.Word32(i);
    state.tmr[i] = tmr_.Word32(i);
  }
  return state;
}

bool LocalApic::CanHold(const x86::LocalApicState& state) const {
  const bool extended = (state.apic_base & kBaseX2Apic) != 0;
  if (state.id != id_ || (state.apic_base & ~kBaseMask) != 0) return false;
  if (extended && (state.apic_base & kBaseEnable) == 0) return false;
  if (!extended && ((state.ldr & ~kLdrMask) != 0 || (state.dfr & kDfrOnes) != kDfrOnes)) return false;
  if (!extended && (state.icr_high & ~kIcrHighMask) != 0) return false;
  if (state.tpr > 0xff || (state.esr & ~kEsrMask) != 0 || (state.divide & ~kDivideMask) != 0) return false;
  if ((state.svr & ~(kSvrMask | kSvrElsewhere)) != 0) return false;
  for (unsigned i = 0; i < kLvtCount; ++i) {
    if ((state.lvt[i] & ~LvtWritable(i)) != 0) return false;
  }
  return (state.isr[0] & kIllegalVectors) == 0;
}

bool LocalApic::ImportState(const x86::LocalApicState& state) {
  if (!CanHold(state)) return false;
  const auto load = [](Vectors& to, std::span<const uint32_t, 8> from) {
    for (unsigned i = 0; i < 4; ++i) to.words[i] = uint64_t{from[2 * i + 1]} << 32 | from[2 * i];
    to.DropIllegal();
  };
  apic_base_ = (state.apic_base & ~kBaseBsp) | (bootstrap() ? kBaseBsp : 0);
  tpr_ = static_cast<uint8_t>(state.tpr);
  ldr_ = x2apic() ? 0 : state.ldr;  // there it is derived from the ID, and x2APIC mode is left by a reset only
  dfr_ = state.dfr | kDfrOnes;
  svr_ = state.svr & kSvrMask;
  esr_ = state.esr;
  errors_ = 0;
  icr_low_ = state.icr_low & kIcrMask;
  icr_high_ = state.icr_high;
  for (unsigned i = 0; i < kLvtCount; ++i) lvt_[i] = state.lvt[i] & kLvtMask[i];
  load(irr_, state.irr);
  load(isr_, state.isr);
  load(tmr_, state.tmr);
  // Only while the 8259 pair still waits for its acknowledge cycle.
  ext_int_message_ = ext_int_message_ && lint_level_[0];
  eoi_offered_ = false;
  if (eoi_flag_ && !eoi_flag_->Signalled()) eoi_flag_->Withdraw();
  SignalAgain();
  ImportTimer(state);
  return true;
}

void LocalApic::ImportTimer(const x86::LocalApicState& state) {
  StopTimer();
  divide_ = state.divide;
  if (timer_mode() == TimerMode::kTscDeadline) {
    tsc_deadline_ = state.tsc_deadline;
    return ArmDeadline();
  }
  initial_count_ = state.initial_count;
  // KVM lets a short period last longer than its count.
  uint32_t left = std::min(state.current_count, initial_count_);
  if (left == 0 && timer_mode() == TimerMode::kPeriodic) left = initial_count_;
  if (left == 0) return;
  counting_ = true;
  deadline_ns_ = scheduler_.NowNs() + int64_t{left} * divisor();
  ArmTimer(deadline_ns_);
}

void LocalApic::Serialize(state::Archive& archive) {
  archive.Field(1, apic_base_);
  archive.Field(2, tpr_);
  archive.Field(3, ldr_);
  archive.Field(4, dfr_);
  archive.Field(5, svr_);
  archive.Field(6, esr_);
  archive.Field(7, errors_);
  archive.Field(8, icr_low_);
  archive.Field(9, icr_high_);
  archive.Array(10, lvt_);
  archive.Field(11, initial_count_);
  archive.Field(12, divide_);
  archive.Field(13, deadline_ns_);
  archive.Field(14, counting_);
  archive.Field(15, tsc_deadline_);
  archive.Array(16, irr_.words);
  archive.Array(17, isr_.words);
  archive.Array(18, tmr_.words);
  archive.Field(19, lint_level_[0]);
  archive.Field(20, lint_level_[1]);
  archive.Field(21, ext_int_message_);
  archive.Field(22, eoi_offered_);
  archive.Field(23, held_ext_int_);
  if (!archive.loading()) return;
  if ((apic_base_ & (kBaseX2Apic | kBaseEnable)) == kBaseX2Apic)
    archive.Reject("local APIC: x2APIC mode without enable");
  if ((apic_base_ & ~kBaseMask) != 0) archive.Reject("local APIC: reserved bits in its base register");
  if (held_ext_int_ < -1 || held_ext_int_ > 255) archive.Reject("local APIC: impossible vector of the 8259 pair");
  if (deadline_ns_ < 0 || deadline_ns_ > INT64_MAX / 2) archive.Reject("local APIC: impossible timer deadline");
  // Nothing that the registers could not hold: ImportState would not take it either.
  ldr_ &= kLdrMask;
  dfr_ |= kDfrOnes;
  svr_ &= kSvrMask;
  esr_ &= kEsrMask;
  errors_ &= kEsrMask;
  icr_low_ &= kIcrMask;
  if (!x2apic()) icr_high_ &= kIcrHighMask;
  divide_ &= kDivideMask;
  for (unsigned i = 0; i < kLvtCount; ++i) lvt_[i] &= kLvtMask[i];
  for (Vectors* vectors : {&irr_, &isr_, &tmr_}) vectors->DropIllegal();
  timer_->Cancel();
  if (!archive.ok()) return Reset();
  if (counting_) ArmTimer(deadline_ns_);
  if (tsc_deadline_ != 0) ArmTimer(tsc_.ToNs(tsc_deadline_));
  SignalAgain();
}

}  // namespace nacre::devices
