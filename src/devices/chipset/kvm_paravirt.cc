#include "devices/chipset/kvm_paravirt.h"

#include "base/bits.h"
#include "devices/chipset/apic_bus.h"
#include "devices/chipset/local_apic.h"

namespace nacre::devices {
namespace {

// struct kvm_steal_time: steal (8), version (4), flags (4), preempted (1), padding to 64 bytes.
constexpr uint64_t kStealRecordSize = 64, kVersionAt = 8, kPreemptedAt = 16;
constexpr uint64_t kStealReserved = 0x3e;  // the record is aligned to 64 bytes; bit 0 enables
constexpr uint8_t kPreempted = 1 << 0, kFlushTlb = 1 << 1;

}  // namespace

bool KvmParavirt::CpuEoiFlag::Offer() {
  return (msr & kEnable) != 0 && memory->WriteValue(GuestPhys(msr & ~kEnable), uint8_t{1});
}

bool KvmParavirt::CpuEoiFlag::Signalled() {
  uint8_t value = 1;
  return (msr & kEnable) != 0 && memory->ReadValue(GuestPhys(msr & ~kEnable), value) && (value & 1) == 0;
}

void KvmParavirt::CpuEoiFlag::Withdraw() {
  if ((msr & kEnable) != 0) memory->WriteValue(GuestPhys(msr & ~kEnable), uint8_t{0});
}

KvmParavirt::KvmParavirt(memory::GuestMemory& memory, ApicBus& apic_bus)
    : memory_(memory), apic_bus_(apic_bus), cpus_(apic_bus.size()) {
  for (unsigned cpu = 0; cpu < cpus_.size(); ++cpu) {
    cpus_[cpu].eoi.memory = &memory_;
    apic_bus_.apic(cpu).SetEoiFlag(&cpus_[cpu].eoi);
  }
}

KvmParavirt::~KvmParavirt() {
  for (unsigned cpu = 0; cpu < cpus_.size(); ++cpu) apic_bus_.apic(cpu).SetEoiFlag(nullptr);
}

void KvmParavirt::Reset() {
  for (unsigned cpu = 0; cpu < cpus_.size(); ++cpu) ResetCpu(cpu);
}

void KvmParavirt::ResetCpu(unsigned cpu) {
  cpus_[cpu].steal_msr = 0;
  cpus_[cpu].kicked = false;
  cpus_[cpu].eoi.msr = 0;
}

bool KvmParavirt::ReadMsr(unsigned cpu, uint32_t index, uint64_t& value) const {
  if (cpu >= cpus_.size() || !OwnsMsr(index)) return false;
  value = index == kMsrEoi ? cpus_[cpu].eoi.msr : cpus_[cpu].steal_msr.load();
  return true;
}

bool KvmParavirt::WriteMsr(unsigned cpu, uint32_t index, uint64_t value) {
  if (cpu >= cpus_.size() || !OwnsMsr(index)) return false;
  if (index == kMsrEoi) return WriteEoiMsr(cpu, value);
  if ((value & kStealReserved) != 0) return false;
  cpus_[cpu].steal_msr = value;
  return true;
}

bool KvmParavirt::WriteEoiMsr(unsigned cpu, uint64_t value) {
  const uint64_t address = value & ~kEnable;
  if (address % sizeof(uint32_t) != 0) return false;
  if ((value & kEnable) != 0 && !memory_.IsRam(GuestPhys(address), sizeof(uint32_t))) return false;
  apic_bus_.apic(cpu).WithdrawEoiOffer();  // it stands in the old place
  cpus_[cpu].eoi.msr = value;
  return true;
}

uint64_t KvmParavirt::Hypercall(uint64_t number, const uint64_t (&arguments)[4], bool code64) {
  switch (number) {
    case kHcKickCpu:
      if (arguments[1] < cpus_.size()) {
        cpus_[arguments[1]].kicked = true;
        apic_bus_.apic(static_cast<unsigned>(arguments[1])).Kick();
      }
      return 0;
    case kHcSendIpi:
      return SendIpi(arguments, code64);
    default:
      return static_cast<uint64_t>(kErrorNoSuchCall);
  }
}

/// Arguments: bitmap of APIC IDs (low half, high half), the ID of its bit 0, ICR with vector and delivery mode.
uint64_t KvmParavirt::SendIpi(const uint64_t (&arguments)[4], bool code64) {
  const uint64_t first = arguments[2], icr = arguments[3];
  const auto mode = static_cast<DeliveryMode>(icr >> 8 & 7);
  constexpr uint64_t kIcrUsed = 0x7ff | 1 << 14;  // vector, mode, assert; the destination is the bitmap's
  if ((icr & ~kIcrUsed) != 0 || (mode != DeliveryMode::kFixed && mode != DeliveryMode::kNmi))
    return static_cast<uint64_t>(kErrorInvalid);
  const unsigned half = code64 ? 64 : 32;
  uint64_t delivered = 0;
  for (unsigned bit = 0; bit < 2 * half; ++bit) {
    if (!TestBit(arguments[bit / half], bit % half) || first >= cpus_.size() || bit >= cpus_.size() - first) continue;
    apic_bus_.apic(static_cast<unsigned>(first + bit)).Deliver(mode, static_cast<uint8_t>(icr), false);
    ++delivered;
  }
  return delivered;
}

uint8_t* KvmParavirt::PreemptedByte(unsigned cpu, GuestPhys& address) const {
  const uint64_t msr = cpus_[cpu].steal_msr.load(std::memory_order_relaxed);
  if ((msr & kEnable) == 0) return nullptr;
  address = GuestPhys((msr & ~kEnable) + kPreemptedAt);
  return memory_.HostPointer(address, 1);
}

void KvmParavirt::Sleeping(unsigned cpu) {
  GuestPhys address;
  uint8_t* preempted = PreemptedByte(cpu, address);
  if (!preempted) return;
  std::atomic_ref(*preempted).store(kPreempted);
  memory_.MarkWritten(address, 1);
}

bool KvmParavirt::Running(unsigned cpu) {
  GuestPhys address;
  uint8_t* preempted = PreemptedByte(cpu, address);
  if (!preempted) return false;
  // From the exchange on others send interrupts instead of setting the flag.
  const uint8_t flags = std::atomic_ref(*preempted).exchange(0);
  memory_.MarkWritten(address, 1);
  return (flags & kFlushTlb) != 0;
}

void KvmParavirt::AddStolenTime(unsigned cpu, uint64_t ns) {
  const uint64_t msr = cpus_[cpu].steal_msr.load(std::memory_order_relaxed);
  const GuestPhys record(msr & ~kEnable);
  uint64_t steal = 0;
  uint32_t version = 0;
  if ((msr & kEnable) == 0 || !memory_.IsRam(record, kStealRecordSize)) return;
  memory_.ReadValue(record, steal);
  memory_.ReadValue(record + kVersionAt, version);
  version |= 1;  // odd while the rest changes
  memory_.WriteValue(record + kVersionAt, version);
  std::atomic_thread_fence(std::memory_order_release);
  memory_.WriteValue(record, steal + ns);
  std::atomic_thread_fence(std::memory_order_release);
  memory_.WriteValue(record + kVersionAt, version + 1);
}

void KvmParavirt::Serialize(state::Archive& archive) {
  // What the records and flags hold is part of guest memory; an offered EOI is the local APIC's.
  archive.List(
      1, cpus_.size(), 4096,
      [&](size_t count) {
        if (count != cpus_.size()) archive.Reject("kvm-paravirt: saved with another number of CPUs");
      },
      [&](state::Archive& inner, size_t i) {
        if (i >= cpus_.size()) return;
        Cpu& cpu = cpus_[i];
        uint64_t steal_msr = cpu.steal_msr;
        bool kicked = cpu.kicked;
        inner.Field(1, steal_msr);
        inner.Field(2, kicked);
        inner.Field(3, cpu.eoi.msr);
        if (!inner.loading()) return;
        cpu.steal_msr = steal_msr;
        cpu.kicked = kicked;
        if ((steal_msr & kStealReserved) != 0 || (cpu.eoi.msr & 2) != 0) archive.Reject("kvm-paravirt: impossible MSR");
      });
  if (archive.loading() && !archive.ok()) Reset();
}

}  // namespace nacre::devices
