#include "devices/chipset/local_apic.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <utility>

#include "base/bits.h"

namespace nacre::devices {
namespace {

// Register numbers: offset in the page >> 4, index in the x2APIC MSR range (SDM 3A table 11-1, 11-6).
constexpr unsigned kId = 0x02, kVersion = 0x03, kTpr = 0x08, kApr = 0x09, kPpr = 0x0a, kEoi = 0x0b, kRemoteRead = 0x0c,
                   kLdr = 0x0d, kDfr = 0x0e, kSvr = 0x0f, kIsr = 0x10, kTmr = 0x18, kIrr = 0x20, kEsr = 0x28,
                   kIcrLow = 0x30, kIcrHigh = 0x31, kLvt = 0x32, kInitialCount = 0x38, kCurrentCount = 0x39,
                   kDivide = 0x3e, kSelfIpi = 0x3f;

constexpr uint32_t kVersionValue = 0x00050014;  // integrated, six LVT entries, no EOI broadcast suppression
constexpr uint32_t kErrorSendVector = 1 << 5, kErrorReceiveVector = 1 << 6, kErrorRegister = 1 << 7;
// A periodic timer may not keep the host busy with nothing else.
constexpr int64_t kMinPeriodNs = 20'000;

}  // namespace

int LocalApic::Vectors::Highest() const {
  for (int i = 3; i >= 0; --i) {
    if (words[i] != 0) return i * 64 + 63 - std::countl_zero(words[i]);
  }
  return -1;
}

LocalApic::LocalApic(unsigned id, ApicBus& apic_bus, Scheduler& scheduler, const GuestTsc& tsc, CpuSignals& cpu)
    : id_(id), name_(fmt::format("lapic{}", id)), apic_bus_(apic_bus), scheduler_(scheduler), tsc_(tsc), cpu_(cpu) {
  timer_ = scheduler_.CreateTimer([this] { OnTimer(); });
  apic_base_ = kDefaultBase | kBaseEnable | (bootstrap() ? kBaseBsp : 0);
  ResetRegisters();
  apic_bus_.Add(this);
}

LocalApic::~LocalApic() { apic_bus_.Remove(this); }

void LocalApic::Reset() {
  apic_base_ = kDefaultBase | kBaseEnable | (bootstrap() ? kBaseBsp : 0);
  lint_level_[0] = lint_level_[1] = false;
  ResetRegisters();
  Update();
}

// SDM 3A 11.4.7.1 and .3: after RESET and INIT alike; INIT keeps the base register (and with it the mode).
void LocalApic::ResetRegisters() {
  StopTimer();
  tpr_ = 0;
  ldr_ = 0;
  dfr_ = 0xffffffff;
  svr_ = 0xff;
  esr_ = errors_ = 0;
  icr_low_ = icr_high_ = 0;
  std::ranges::fill(lvt_, kLvtMasked);
  // Boards leave the bootstrap processor in virtual wire mode: the 8259 pair reaches it through LINT0
  // (MP 1.4, 3.6.2.2).
  if (bootstrap()) lvt_[kLvtLint0] = static_cast<uint32_t>(DeliveryMode::kExtInt) << 8;
  initial_count_ = 0;
  divide_ = 0;
  tsc_deadline_ = 0;
  irr_ = isr_ = tmr_ = {};
  ext_int_message_ = false;
  held_ext_int_ = -1;
  eoi_offered_ = false;
}

uint32_t LocalApic::logical_id() const {
  // In x2APIC mode the logical ID is derived from the ID (11.12.10.2).
  return x2apic() ? (id_ >> 4) << 16 | 1u << (id_ & 15) : ldr_;
}

bool LocalApic::Matches(uint32_t destination, bool logical) const {
  if (destination == ApicMessage::kBroadcast) return true;
  if (!logical) return destination == id_;
  const uint32_t own = logical_id();
  if (x2apic()) return destination >> 16 == own >> 16 && (destination & own & 0xffff) != 0;
  const uint32_t own8 = own >> 24;
  if (dfr_ >> 28 == 0xf) return (destination & own8) != 0;  // flat
  return (destination & 0xf0) == (own8 & 0xf0) && (destination & own8 & 0xf) != 0;
}

uint8_t LocalApic::processor_priority() const {
  const int in_service = isr_.Highest();
  const auto isr_class = static_cast<uint8_t>(in_service < 0 ? 0 : in_service & 0xf0);
  return (tpr_ & 0xf0) >= isr_class ? tpr_ : isr_class;
}

bool LocalApic::ExtIntPending() const {
  if (ext_int_message_) return true;
  if (!lint_level_[0]) return false;
  // A local APIC that is switched off connects LINT0 to INTR (11.4.3).
  if (!hardware_enabled()) return bootstrap();
  const uint32_t lint0 = lvt_[kLvtLint0];
  return (lint0 & kLvtMasked) == 0 && (lint0 >> 8 & 7) == static_cast<uint32_t>(DeliveryMode::kExtInt);
}

void LocalApic::Update() {
  bool level = !remote() && (held_ext_int_ >= 0 || ExtIntPending());
  if (!level && !remote() && accepts_interrupts()) {
    const int vector = irr_.Highest();
    // While an end of interrupt may be said without our knowledge, the CPU itself finds out (Acknowledge).
    level = vector >= 0 && (eoi_offered_ || vector >> 4 > processor_priority() >> 4);
  }
  if (level == signalled_) return;
  signalled_ = level;
  cpu_.SetInterrupt(level);
}

void LocalApic::OfferEoi(unsigned vector) {
  // Only where nothing is to be done at the end of the interrupt but to clear its bit.
  if (!eoi_flag_ || tmr_.Test(vector) || irr_.Highest() >= 0) return;
  Vectors only;
  only.Set(vector);
  if (std::ranges::equal(isr_.words, only.words)) eoi_offered_ = eoi_flag_->Offer();
}

void LocalApic::SyncEoi() {
  if (!eoi_offered_ || !eoi_flag_ || !eoi_flag_->Signalled()) return;
  eoi_offered_ = false;
  EndOfInterrupt();
}

void LocalApic::WithdrawEoiOffer() {
  SyncEoi();
  if (!eoi_offered_) return;
  if (eoi_flag_) eoi_flag_->Withdraw();
  eoi_offered_ = false;
  Update();
}

void LocalApic::HoldExtInt(int vector) {
  held_ext_int_ = static_cast<int16_t>(vector);
  Update();
}

int LocalApic::TakeHeldExtInt() { return std::exchange(held_ext_int_, int16_t{-1}); }

int LocalApic::Acknowledge() {
  if (remote())
    return lint_level_[0] && apic_bus_.ext_int_source() ? apic_bus_.ext_int_source()->AcknowledgeExtInt() : -1;
  int vector = -1;
  WithdrawEoiOffer();
  if (held_ext_int_ >= 0) {
    vector = TakeHeldExtInt();
  } else if (ExtIntPending() && apic_bus_.ext_int_source()) {
    ext_int_message_ = false;
    vector = apic_bus_.ext_int_source()->AcknowledgeExtInt();
  } else if (accepts_interrupts()) {
    const int highest = irr_.Highest();
    if (highest >= 0 && highest >> 4 > processor_priority() >> 4) {
      vector = highest;
      irr_.Clear(static_cast<unsigned>(vector));
      isr_.Set(static_cast<unsigned>(vector));
      OfferEoi(static_cast<unsigned>(vector));
    }
  }
  Update();
  return vector;
}

void LocalApic::SetTpr(uint8_t value) {
  tpr_ = value;
  Update();
}

void LocalApic::EndOfInterrupt() {
  const int vector = isr_.Highest();
  if (vector < 0) return;
  isr_.Clear(static_cast<unsigned>(vector));
  if (tmr_.Test(static_cast<unsigned>(vector))) apic_bus_.BroadcastEoi(static_cast<uint8_t>(vector));
  Update();
}

void LocalApic::Accept(uint8_t vector, bool level) {
  if (!accepts_interrupts()) return;
  if (vector < 16) return RaiseError(kErrorReceiveVector);
  irr_.Set(vector);
  if (level) {
    tmr_.Set(vector);
  } else {
    tmr_.Clear(vector);
  }
  Update();
}

void LocalApic::Deliver(DeliveryMode mode, uint8_t vector, bool level) {
  if (RemoteApics* keeper = apic_bus_.remote())
    return keeper->Deliver({.destination = id_, .logical = false, .mode = mode, .level = level, .vector = vector});
  if (!hardware_enabled() && mode != DeliveryMode::kNmi && mode != DeliveryMode::kInit &&
      mode != DeliveryMode::kStartup)
    return;
  switch (mode) {
    case DeliveryMode::kFixed:
    case DeliveryMode::kLowestPriority:
      return Accept(vector, level);
    case DeliveryMode::kNmi:
      return cpu_.Nmi();
    case DeliveryMode::kInit:
      ResetRegisters();
      Update();
      return cpu_.Init();
    case DeliveryMode::kStartup:
      return cpu_.Sipi(vector);
    case DeliveryMode::kExtInt:
      ext_int_message_ = true;
      return Update();
    case DeliveryMode::kSmi:  // there is no system management mode
    case DeliveryMode::kReserved:
      return;
  }
}

void LocalApic::SetLint(unsigned pin, bool level) {
  const bool rising = level && !lint_level_[pin];
  lint_level_[pin] = level;
  if (remote()) return;
  const uint32_t lvt = lvt_[kLvtLint0 + pin];
  const auto mode = static_cast<DeliveryMode>(lvt >> 8 & 7);
  if (mode == DeliveryMode::kExtInt || !hardware_enabled()) {
    Update();
  } else if (rising && (lvt & kLvtMasked) == 0) {
    DeliverLocal(kLvtLint0 + pin);
  }
}

void LocalApic::DeliverLocal(unsigned lvt) {
  const uint32_t entry = lvt_[lvt];
  if ((entry & kLvtMasked) != 0) return;
  const bool has_mode = lvt != kLvtTimer && lvt != kLvtError;
  const auto mode = has_mode ? static_cast<DeliveryMode>(entry >> 8 & 7) : DeliveryMode::kFixed;
  if (mode == DeliveryMode::kFixed) {
    Accept(static_cast<uint8_t>(entry), false);
  } else if (mode == DeliveryMode::kNmi) {
    cpu_.Nmi();
  } else if (mode == DeliveryMode::kInit) {
    Deliver(mode, 0, false);
  }
}

void LocalApic::RaiseError(uint32_t bits) {
  errors_ |= bits;
  const uint32_t entry = lvt_[kLvtError];
  // An illegal vector in the error entry itself must not come back here.
  if ((entry & kLvtMasked) == 0 && (entry & 0xff) >= 16) Accept(static_cast<uint8_t>(entry), false);
}

void LocalApic::SendIpi(uint32_t low, uint32_t destination) {
  ApicMessage message;
  message.vector = static_cast<uint8_t>(low);
  message.mode = static_cast<DeliveryMode>(low >> 8 & 7);
  message.logical = TestBit(low, 11);
  message.destination = destination;
  const bool level_trigger = TestBit(low, 15);
  const bool assert = TestBit(low, 14);
  // The INIT level de-assert only set arbitration IDs, long ago (11.6.1).
  if (message.mode == DeliveryMode::kInit && level_trigger && !assert) return;
  if ((message.mode == DeliveryMode::kFixed || message.mode == DeliveryMode::kLowestPriority) && message.vector < 16)
    return RaiseError(kErrorSendVector);
  switch (low >> 18 & 3) {
    case 0:
      return apic_bus_.Route(message);
    case 1:
      if (message.mode == DeliveryMode::kFixed || message.mode == DeliveryMode::kLowestPriority)
        Accept(message.vector, false);
      return;
    case 2:
      return apic_bus_.RouteToOthers(message, nullptr);
    default:
      return apic_bus_.RouteToOthers(message, this);
  }
}

bool LocalApic::ReadRegister(unsigned reg, uint32_t& value) const {
  switch (reg) {
    case kId:
      value = x2apic() ? id_ : id_ << 24;
      return true;
    case kVersion:
      value = kVersionValue;
      return true;
    case kTpr:
      value = tpr_;
      return true;
    case kApr:
    case kRemoteRead:
      value = 0;
      return !x2apic();
    case kPpr:
      value = processor_priority();
      return true;
    case kEoi:
      value = 0;  // write-only
      return !x2apic();
    case kLdr:
      value = logical_id();
      return true;
    case kDfr:
      value = dfr_;
      return !x2apic();
    case kSvr:
      value = svr_;
      return true;
    case kEsr:
      value = esr_;
      return true;
    case kIcrLow:
      value = icr_low_;
      return true;
    case kIcrHigh:
      value = icr_high_;
      return !x2apic();
    case kInitialCount:
      value = initial_count_;
      return true;
    case kCurrentCount:
      value = CurrentCount();
      return true;
    case kDivide:
      value = divide_;
      return true;
    default:
      break;
  }
  if (reg >= kLvt && reg < kLvt + kLvtCount) {
    value = lvt_[reg - kLvt];
  } else if (reg >= kIsr && reg < kIsr + 8) {
    value = isr_.Word32(reg - kIsr);
  } else if (reg >= kTmr && reg < kTmr + 8) {
    value = tmr_.Word32(reg - kTmr);
  } else if (reg >= kIrr && reg < kIrr + 8) {
    value = irr_.Word32(reg - kIrr);
  } else {
    return false;
  }
  return true;
}

bool LocalApic::WriteRegister(unsigned reg, uint32_t value) {
  switch (reg) {
    case kTpr:
      SetTpr(static_cast<uint8_t>(value));
      return true;
    case kEoi:
      WithdrawEoiOffer();
      EndOfInterrupt();
      return true;
    case kLdr:
      if (x2apic()) return false;
      ldr_ = value & kLdrMask;
      return true;
    case kDfr:
      if (x2apic()) return false;
      dfr_ = value | kDfrOnes;
      return true;
    case kSvr:
      WriteSvr(value);
      return true;
    case kEsr:
      esr_ = errors_;
      errors_ = 0;
      return true;
    case kIcrLow: {
      icr_low_ = value & kIcrMask;
      uint32_t destination = icr_high_ >> 24;
      if (destination == 0xff && !TestBit(value, 11)) destination = ApicMessage::kBroadcast;
      SendIpi(icr_low_, destination);
      return true;
    }
    case kIcrHigh:
      if (x2apic()) return false;
      icr_high_ = value & kIcrHighMask;
      return true;
    case kInitialCount:
      if (timer_mode() != TimerMode::kTscDeadline) StartTimer(value);
      return true;
    case kDivide: {
      const uint32_t left = CurrentCount();
      divide_ = value & kDivideMask;
      if (counting_) {
        deadline_ns_ = scheduler_.NowNs() + int64_t{left} * divisor();
        ArmTimer(deadline_ns_);
      }
      return true;
    }
    case kId:
    case kVersion:
    case kApr:
    case kPpr:
    case kRemoteRead:
    case kCurrentCount:
      return !x2apic();  // read-only
    default:
      break;
  }
  if (reg >= kLvt && reg < kLvt + kLvtCount) {
    WriteLvt(reg - kLvt, value);
    return true;
  }
  return !x2apic() && reg >= kIsr && reg < kIrr + 8;  // read-only
}

void LocalApic::WriteSvr(uint32_t value) {
  svr_ = value & kSvrMask;
  if ((svr_ & kSvrEnable) == 0) {
    for (uint32_t& lvt : lvt_) lvt |= kLvtMasked;  // 11.4.7.2
  }
  Update();
}

void LocalApic::WriteLvt(unsigned index, uint32_t value) {
  value &= kLvtMask[index];
  if ((svr_ & kSvrEnable) == 0) value |= kLvtMasked;
  const uint32_t old = lvt_[index];
  lvt_[index] = value;
  if (index == kLvtTimer) {
    const bool was_deadline = (old >> 17 & 3) == static_cast<uint32_t>(TimerMode::kTscDeadline);
    // Changing into or out of TSC-deadline mode disarms the timer (11.5.4.1).
    if (was_deadline != (timer_mode() == TimerMode::kTscDeadline)) StopTimer();
  }
  if (index == kLvtLint0) Update();
}

uint64_t LocalApic::Read(uint64_t offset, unsigned size) {
  SyncEoi();
  // Registers are the low dword of each 16 bytes (11.4.1); the rest of the line reads as zero.
  uint32_t value = 0;
  if ((offset & 0xc) != 0) return 0;
  if (offset >= kPageSize || !ReadRegister(static_cast<unsigned>(offset >> 4), value)) {
    RaiseError(kErrorRegister);
    return 0;
  }
  return MaskToSize(value >> (8 * (offset & 3)), size);
}

void LocalApic::Write(uint64_t offset, unsigned size, uint64_t value) {
  if ((offset & 0xf) != 0 || size < 4) return;
  if (offset >= kPageSize || !WriteRegister(static_cast<unsigned>(offset >> 4), static_cast<uint32_t>(value)))
    RaiseError(kErrorRegister);
}

bool LocalApic::ReadX2Apic(unsigned reg, uint64_t& value) const {
  uint32_t low = 0;
  if (reg == kSelfIpi || !ReadRegister(reg, low)) return false;
  value = reg == kIcrLow ? uint64_t{icr_high_} << 32 | low : low;
  return true;
}

uint32_t LocalApic::LvtWritable(unsigned index) {
  // Delivery status and the LINT pins' remote IRR are read-only, not reserved: Linux writes back what it read.
  const bool lint = index == kLvtLint0 || index == kLvtLint1;
  return kLvtMask[index] | 1u << 12 | (lint ? 1u << 14 : 0);
}

/// Bits whose setting is #GP(0) in x2APIC mode (11.12.1.3).
uint32_t LocalApic::X2ApicReserved(unsigned reg) {
  if (reg >= kLvt && reg < kLvt + kLvtCount) return ~LvtWritable(reg - kLvt);
  switch (reg) {
    case kTpr:
    case kSelfIpi:
      return ~0xffu;
    case kEoi:
    case kEsr:
      return ~0u;
    case kSvr:
      return ~(kSvrMask | 1u << 9);
    case kIcrLow:
      return ~(kIcrMask | 1u << 12);
    case kDivide:
      return ~kDivideMask;
    default:
      return 0;
  }
}

bool LocalApic::WriteX2Apic(unsigned reg, uint64_t value) {
  if ((static_cast<uint32_t>(value) & X2ApicReserved(reg)) != 0) return false;
  if (reg == kIcrLow) {
    icr_high_ = static_cast<uint32_t>(value >> 32);
    icr_low_ = static_cast<uint32_t>(value) & kIcrMask;
    SendIpi(icr_low_, icr_high_);
    return true;
  }
  if (value >> 32 != 0) return false;
  if (reg == kSelfIpi) {
    if (value < 16) {
      RaiseError(kErrorSendVector);
    } else {
      Accept(static_cast<uint8_t>(value), false);
    }
    return true;
  }
  return WriteRegister(reg, static_cast<uint32_t>(value));
}

bool LocalApic::WriteApicBase(uint64_t value) {
  if ((value & ~kBaseMask) != 0) return false;
  const bool enable = (value & kBaseEnable) != 0;
  const bool extended = (value & kBaseX2Apic) != 0;
  // Figure 11-27: x2APIC is entered from xAPIC only and left only through disabled.
  if (extended && !enable) return false;
  if (extended && !hardware_enabled()) return false;
  if (enable && !extended && x2apic()) return false;
  if (hardware_enabled() && !enable) ResetRegisters();
  if (extended && !x2apic()) icr_high_ = 0;
  apic_base_ = (value & ~kBaseBsp) | (bootstrap() ? kBaseBsp : 0);
  Update();
  return true;
}

bool LocalApic::ReadMsr(uint32_t index, uint64_t& value) {
  if (index == kMsrApicBase) {
    value = apic_base_;
    return true;
  }
  if (index == kMsrTscDeadline) {
    value = tsc_deadline_;
    return true;
  }
  if (index < kMsrX2ApicFirst || index > kMsrX2ApicLast || !x2apic()) return false;
  SyncEoi();
  return ReadX2Apic(index - kMsrX2ApicFirst, value);
}

bool LocalApic::WriteMsr(uint32_t index, uint64_t value) {
  if (index == kMsrApicBase) return WriteApicBase(value);
  if (index == kMsrTscDeadline) {
    if (timer_mode() != TimerMode::kTscDeadline || !hardware_enabled()) return true;  // ignored (11.5.4.1)
    tsc_deadline_ = value;
    ArmDeadline();
    return true;
  }
  if (index < kMsrX2ApicFirst || index > kMsrX2ApicLast || !x2apic()) return false;
  return WriteX2Apic(index - kMsrX2ApicFirst, value);
}

unsigned LocalApic::divisor() const {
  const unsigned code = (divide_ & 3) | (divide_ >> 1 & 4);
  return code == 7 ? 1 : 2u << code;
}

uint32_t LocalApic::CurrentCount() const {
  if (!counting_) return 0;
  const int64_t left_ns = std::max<int64_t>(deadline_ns_ - scheduler_.NowNs(), 0);
  // Rounded up: the count is zero only once the interrupt is due.
  return static_cast<uint32_t>(std::min<int64_t>((left_ns + divisor() - 1) / divisor(), initial_count_));
}

void LocalApic::StartTimer(uint32_t count) {
  initial_count_ = count;
  counting_ = count != 0;
  if (!counting_) return timer_->Cancel();
  deadline_ns_ = scheduler_.NowNs() + int64_t{count} * divisor();
  ArmTimer(deadline_ns_);
}

void LocalApic::ArmTimer(int64_t deadline_ns) {
  if (!remote()) timer_->Arm(deadline_ns);
}

void LocalApic::StopTimer() {
  counting_ = false;
  initial_count_ = 0;
  tsc_deadline_ = 0;
  timer_->Cancel();
}

void LocalApic::ArmDeadline() {
  if (tsc_deadline_ == 0 || remote()) return timer_->Cancel();
  const int64_t deadline_ns = tsc_.ToNs(tsc_deadline_);
  if (deadline_ns <= scheduler_.NowNs()) {
    timer_->Cancel();
    return OnTimer();
  }
  timer_->Arm(deadline_ns);
}

void LocalApic::TscChanged() {
  if (tsc_deadline_ != 0) ArmDeadline();
}

void LocalApic::OnTimer() {
  if (timer_mode() == TimerMode::kTscDeadline) {
    if (tsc_deadline_ == 0) return;
    // The converted time may be a tick early.
    if (const int64_t due_ns = tsc_.ToNs(tsc_deadline_); due_ns > scheduler_.NowNs()) return ArmTimer(due_ns);
    tsc_deadline_ = 0;
  } else {
    if (!counting_) return;
    if (timer_mode() == TimerMode::kPeriodic) {
      const int64_t now_ns = scheduler_.NowNs();
      const int64_t period_ns = std::max(int64_t{initial_count_} * divisor(), kMinPeriodNs);
      // Periods that passed while the host was busy are lost, as interrupts that nobody took would be.
      const int64_t passed = std::max<int64_t>((now_ns - deadline_ns_) / period_ns, 0);
      deadline_ns_ += (passed + 1) * period_ns;
      ArmTimer(deadline_ns_);
    } else {
      counting_ = false;
    }
  }
  DeliverLocal(kLvtTimer);
}

}  // namespace nacre::devices
