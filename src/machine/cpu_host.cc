#include "machine/cpu_host.h"

namespace nacre::machine {

uint32_t CpuHost::PortRead(uint16_t port, unsigned size) {
  const std::lock_guard lock(*wiring_.device_lock);
  ++exits_[kPort];
  return static_cast<uint32_t>(wiring_.ports->Read(port, size));
}

void CpuHost::PortWrite(uint16_t port, unsigned size, uint32_t value) {
  const std::lock_guard lock(*wiring_.device_lock);
  ++exits_[kPort];
  wiring_.ports->Write(port, size, value);
}

bool CpuHost::IsApicPage(GuestPhys address, unsigned size) const {
  return apic_->mmio_enabled() && address.value - apic_->base() <= kPageSize - size;
}

uint64_t CpuHost::MmioRead(GuestPhys address, unsigned size) {
  const std::lock_guard lock(*wiring_.device_lock);
  ++exits_[kMmio];
  if (IsApicPage(address, size)) return apic_->Read(address.value - apic_->base(), size);
  return wiring_.memory->Read(address.value, size);
}

void CpuHost::MmioWrite(GuestPhys address, unsigned size, uint64_t value) {
  const std::lock_guard lock(*wiring_.device_lock);
  ++exits_[kMmio];
  if (IsApicPage(address, size)) return apic_->Write(address.value - apic_->base(), size, value);
  wiring_.memory->Write(address.value, size, value);
}

bool CpuHost::ReadMsr(uint32_t index, uint64_t& value) {
  const std::lock_guard lock(*wiring_.device_lock);
  ++exits_[kMsr];
  if (devices::LocalApic::OwnsMsr(index)) return apic_->ReadMsr(index, value);
  if (devices::KvmParavirt::OwnsMsr(index)) return kvm_paravirt_->ReadMsr(index_, index, value);
  return devices::KvmClock::OwnsMsr(index) && kvm_clock_->ReadMsr(index_, index, value);
}

bool CpuHost::WriteMsr(uint32_t index, uint64_t value) {
  const std::lock_guard lock(*wiring_.device_lock);
  ++exits_[kMsr];
  if (devices::LocalApic::OwnsMsr(index)) return apic_->WriteMsr(index, value);
  if (devices::KvmParavirt::OwnsMsr(index)) return kvm_paravirt_->WriteMsr(index_, index, value);
  return devices::KvmClock::OwnsMsr(index) && kvm_clock_->WriteMsr(index_, index, value);
}

uint64_t CpuHost::ReadCr8() {
  const std::lock_guard lock(*wiring_.device_lock);
  return apic_->ReadCr8();
}

void CpuHost::WriteCr8(uint64_t value) {
  const std::lock_guard lock(*wiring_.device_lock);
  apic_->WriteCr8(value);
}

void CpuHost::AccountStolenTime() {
  if (!kvm_paravirt_->wants_stolen_time(index_)) return;
  if (const uint64_t ns = run_delay_.TakeNs(); ns != 0) kvm_paravirt_->AddStolenTime(index_, ns);
}

int CpuHost::AcknowledgeInterrupt() {
  AccountStolenTime();
  const std::lock_guard lock(*wiring_.device_lock);
  ++exits_[kInterrupt];
  return apic_->Acknowledge();
}

uint64_t CpuHost::Hypercall(uint64_t number, const uint64_t (&arguments)[4], bool code64) {
  const std::lock_guard lock(*wiring_.device_lock);
  ++exits_[kHypercall];
  return kvm_paravirt_->Hypercall(number, arguments, code64);
}

void CpuHost::EndOfInterrupt(uint8_t vector) {
  const std::lock_guard lock(*wiring_.device_lock);
  wiring_.apic_bus->BroadcastEoi(vector);
}

void CpuHost::SetInterrupt(bool level) {
  if (!runner_) return;
  if (level)
    runner_->Request(engine::kRequestInterrupt);
  else
    runner_->ClearRequest(engine::kRequestInterrupt);
}

void CpuHost::Nmi() {
  if (runner_) runner_->Request(engine::kRequestNmi);
}

void CpuHost::Init() {
  if (kvm_paravirt_) kvm_paravirt_->ResetCpu(index_);
  if (kvm_clock_) kvm_clock_->ResetCpu(index_);
  if (runner_) runner_->Init();
}

void CpuHost::Sipi(uint8_t vector) {
  if (runner_) runner_->StartUp(vector);
}

void CpuHost::Kick() {
  if (runner_) runner_->Wake();
}

}  // namespace nacre::machine
