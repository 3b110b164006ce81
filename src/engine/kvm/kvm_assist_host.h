#pragma once
// What the interpreter sees of the machine while it helps a vCPU of KVM: everything but the local APIC is the
// machine's; that is the kernel's, and reached by its state. Part of kvm_vcpu.cc.

#include <cstdint>

#include "engine/kvm/kvm_vcpu.h"

namespace nacre::engine::kvm {

class KvmVcpu::AssistHost final : public VcpuHost {
 public:
  explicit AssistHost(KvmVcpu& vcpu) : vcpu_(vcpu) {}
  /// Of the local APIC and the paravirtual interface to it, which the kernel keeps.
  static bool IsKernelMsr(uint32_t index);

  uint32_t PortRead(uint16_t port, unsigned size) override { return host().PortRead(port, size); }
  void PortWrite(uint16_t port, unsigned size, uint32_t value) override { host().PortWrite(port, size, value); }
  uint64_t MmioRead(GuestPhys address, unsigned size) override;
  void MmioWrite(GuestPhys address, unsigned size, uint64_t value) override;
  bool ReadMsr(uint32_t index, uint64_t& value) override;
  bool WriteMsr(uint32_t index, uint64_t value) override;
  uint64_t ReadCr8() override { return vcpu_.sregs_.cr8; }
  void WriteCr8(uint64_t value) override;
  int AcknowledgeInterrupt() override { return -1; }
  uint64_t Hypercall(uint64_t number, const uint64_t (&arguments)[4], bool code64) override {
    return host().Hypercall(number, arguments, code64);
  }
  void EndOfInterrupt(uint8_t vector) override { host().EndOfInterrupt(vector); }

 private:
  VcpuHost& host() { return *vcpu_.config_.host; }
  bool InApicPage(GuestPhys address, unsigned size, unsigned& offset) const;
  void WriteApic(x86::LocalApicState& state, unsigned offset, uint32_t value);
  void EndOwnInterrupt(x86::LocalApicState& state);
  void SendIpi(x86::LocalApicState& state, uint32_t low);

  KvmVcpu& vcpu_;
};

}  // namespace nacre::engine::kvm
