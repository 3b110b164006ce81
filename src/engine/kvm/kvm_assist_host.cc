#include "engine/kvm/kvm_assist_host.h"

#include <bit>

#include "engine/kvm/kvm_vm.h"

namespace nacre::engine::kvm {

namespace {

constexpr uint32_t kMsrApicBase = 0x1b, kMsrTscDeadline = 0x6e0, kMsrX2ApicFirst = 0x800, kMsrX2ApicLast = 0x8ff;
/// Stolen time, end of interrupt, and the asynchronous page faults that no guest of ours is offered.
constexpr uint32_t kMsrParavirtFirst = 0x4b564d02, kMsrParavirtLast = 0x4b564d07;
constexpr uint64_t kBaseEnable = 1 << 11, kBaseX2Apic = 1 << 10;

// Offsets in the local APIC's page (SDM 3A table 11-1).
constexpr unsigned kId = 0x20, kVersion = 0x30, kTpr = 0x80, kEoi = 0xb0, kLdr = 0xd0, kDfr = 0xe0, kSvr = 0xf0,
                   kIsr = 0x100, kTmr = 0x180, kIrr = 0x200, kEsr = 0x280, kIcrLow = 0x300, kIcrHigh = 0x310,
                   kLvt = 0x320, kInitialCount = 0x380, kCurrentCount = 0x390, kDivide = 0x3e0;
constexpr uint32_t kVersionValue = 0x00050014;

uint32_t RegisterOf(const x86::LocalApicState& state, unsigned offset) {
  if (offset >= kIsr && offset < kIsr + 0x80) return state.isr[(offset - kIsr) >> 4];
  if (offset >= kTmr && offset < kTmr + 0x80) return state.tmr[(offset - kTmr) >> 4];
  if (offset >= kIrr && offset < kIrr + 0x80) return state.irr[(offset - kIrr) >> 4];
  if (offset >= kLvt && offset < kLvt + 0x60) return state.lvt[(offset - kLvt) >> 4];
  switch (offset) {
    case kId:
      return state.id << 24;
    case kVersion:
      return kVersionValue;
    case kTpr:
      return state.tpr;
    case kLdr:
      return state.ldr;
    case kDfr:
      return state.dfr;
    case kSvr:
      return state.svr;
    case kEsr:
      return state.esr;
    case kIcrLow:
      return state.icr_low;
    case kIcrHigh:
      return state.icr_high;
    case kInitialCount:
      return state.initial_count;
    case kCurrentCount:
      return state.current_count;
    case kDivide:
      return state.divide;
    default:
      return 0;
  }
}

}  // namespace

bool KvmVcpu::AssistHost::IsKernelMsr(uint32_t index) {
  return index == kMsrApicBase || index == kMsrTscDeadline || (index >= kMsrX2ApicFirst && index <= kMsrX2ApicLast) ||
         (index >= kMsrParavirtFirst && index <= kMsrParavirtLast);
}

bool KvmVcpu::AssistHost::ReadMsr(uint32_t index, uint64_t& value) {
  return IsKernelMsr(index) ? vcpu_.GetMsr(index, value) : host().ReadMsr(index, value);
}

bool KvmVcpu::AssistHost::WriteMsr(uint32_t index, uint64_t value) {
  if (index == kMsrApicBase) {
    // What KVM refuses of guests it takes from us (SDM 3A, figure 11-27).
    uint64_t before = 0;
    if (!vcpu_.GetMsr(kMsrApicBase, before)) return false;
    const bool x2apic = (value & kBaseX2Apic) != 0, enabled = (value & kBaseEnable) != 0;
    if (x2apic && (!enabled || !(before & kBaseEnable))) return false;
    if (!x2apic && enabled && (before & kBaseX2Apic)) return false;
  }
  return IsKernelMsr(index) ? vcpu_.SetMsr(index, value) : host().WriteMsr(index, value);
}

void KvmVcpu::AssistHost::WriteCr8(uint64_t value) {
  vcpu_.sregs_.cr8 = vcpu_.cr8_ = value;
  vcpu_.cr8_written_ = true;
}

bool KvmVcpu::AssistHost::InApicPage(GuestPhys address, unsigned size, unsigned& offset) const {
  uint64_t base = 0;
  if (!vcpu_.GetMsr(kMsrApicBase, base) || (base & (kBaseEnable | kBaseX2Apic)) != kBaseEnable) return false;
  const uint64_t at = address.value - AlignDown(base, kPageSize);
  offset = static_cast<unsigned>(at);
  return at <= kPageSize - size;
}

uint64_t KvmVcpu::AssistHost::MmioRead(GuestPhys address, unsigned size) {
  unsigned offset = 0;
  if (!InApicPage(address, size, offset)) return host().MmioRead(address, size);
  x86::LocalApicState state;
  if (!vcpu_.ExportApic(state)) return ~uint64_t{0};
  const uint64_t value = RegisterOf(state, AlignDown(offset, 16));
  return offset % 16 < 4 ? value >> (8 * (offset % 16)) : 0;
}

void KvmVcpu::AssistHost::MmioWrite(GuestPhys address, unsigned size, uint64_t value) {
  unsigned offset = 0;
  if (!InApicPage(address, size, offset)) return host().MmioWrite(address, size, value);
  x86::LocalApicState state;
  if (offset % 16 != 0 || size < 4 || !vcpu_.ExportApic(state)) return;
  WriteApic(state, offset, static_cast<uint32_t>(value));
  (void)vcpu_.ImportApic(state);
}

void KvmVcpu::AssistHost::WriteApic(x86::LocalApicState& state, unsigned offset, uint32_t value) {
  if (offset >= kLvt && offset < kLvt + 0x60) {
    state.lvt[(offset - kLvt) >> 4] = value;
    return;
  }
  switch (offset) {
    case kTpr:
      state.tpr = value & 0xff;
      vcpu_.sregs_.cr8 = state.tpr >> 4;
      return;
    case kEoi:
      return EndOwnInterrupt(state);
    case kLdr:
      state.ldr = value & 0xff000000;
      return;
    case kDfr:
      state.dfr = value | 0x0fffffff;
      return;
    case kSvr:
      state.svr = value & 0x1ff;
      return;
    case kEsr:
      state.esr = 0;
      return;
    case kIcrHigh:
      state.icr_high = value & 0xff000000;
      return;
    case kIcrLow:
      return SendIpi(state, value);
    case kInitialCount:
      state.initial_count = state.current_count = value;
      return;
    case kDivide:
      state.divide = value & 0xb;
      return;
    default:
      return;
  }
}

void KvmVcpu::AssistHost::EndOwnInterrupt(x86::LocalApicState& state) {
  for (unsigned word = 8; word-- > 0;) {
    if (state.isr[word] == 0) continue;
    const unsigned bit = 31u - static_cast<unsigned>(std::countl_zero(state.isr[word]));
    state.isr[word] &= ~(1u << bit);
    if (state.tmr[word] >> bit & 1) host().EndOfInterrupt(static_cast<uint8_t>(32 * word + bit));
    return;
  }
}

/// SDM 3A 11.6.1. As messages; those to others are one for each CPU.
void KvmVcpu::AssistHost::SendIpi(x86::LocalApicState& state, uint32_t low) {
  state.icr_low = low & ~(1u << 12);
  const unsigned shorthand = low >> 18 & 3;
  const bool init_level_deassert = (low >> 8 & 7) == 5 && !(low & 1 << 14);
  if (init_level_deassert) return;
  constexpr uint64_t kMessage = 0xfee00000;
  const uint32_t data = (low & 0x7ff) | (low & 1 << 14) | (low & 1 << 15);
  if (shorthand == 1) {
    state.irr[(low & 0xff) / 32] |= 1u << (low & 31);
    return;
  }
  if (shorthand == 0) {
    const uint64_t logical = (low & 1 << 11) != 0 ? 4 : 0;
    vcpu_.vm_.Send({kMessage | uint64_t{state.icr_high >> 24} << 12 | logical, data});
    return;
  }
  for (uint32_t id = 0; id < vcpu_.config_.model->cpu_count(); ++id)
    if (shorthand == 2 || id != state.id) vcpu_.vm_.Send({kMessage | uint64_t{id} << 12, data});
}

}  // namespace nacre::engine::kvm
