#pragma once
// What one virtual CPU sees of the machine: takes the device lock and passes the engine's accesses to the buses, the
// local APIC and the paravirtual devices; passes the local APIC's signals to the CPU's thread.

#include <atomic>
#include <mutex>

#include "bus/bus.h"
#include "devices/chipset/kvm_clock.h"
#include "devices/chipset/kvm_paravirt.h"
#include "devices/chipset/local_apic.h"
#include "engine/engine.h"
#include "machine/run_delay.h"
#include "machine/vcpu_runner.h"

namespace nacre::machine {

class CpuHost final : public engine::VcpuHost, public devices::CpuSignals {
 public:
  struct Wiring {
    std::mutex* device_lock = nullptr;
    bus::PortBus* ports = nullptr;
    bus::MemoryBus* memory = nullptr;
    devices::ApicBus* apic_bus = nullptr;
  };
  CpuHost(unsigned index, const Wiring& wiring) : index_(index), wiring_(wiring) {}

  /// Before the CPU runs.
  void Connect(devices::LocalApic* apic, devices::KvmClock* kvm_clock, devices::KvmParavirt* kvm_paravirt,
               VcpuRunner* runner) {
    apic_ = apic;
    kvm_clock_ = kvm_clock;
    kvm_paravirt_ = kvm_paravirt;
    runner_ = runner;
  }
  /// The CPU's thread is about to end: signals are dropped from now on.
  void Disconnect() { runner_ = nullptr; }
  /// Under the device lock: the CPU must look up every address anew.
  void FlushTranslations() {
    if (runner_) runner_->Request(engine::kRequestTlbFlush);
  }
  uint64_t exits(unsigned kind) const { return exits_[kind]; }
  enum ExitKind : unsigned { kPort, kMmio, kMsr, kInterrupt, kHypercall, kExitKinds };

  uint32_t PortRead(uint16_t port, unsigned size) override;
  void PortWrite(uint16_t port, unsigned size, uint32_t value) override;
  uint64_t MmioRead(GuestPhys address, unsigned size) override;
  void MmioWrite(GuestPhys address, unsigned size, uint64_t value) override;
  bool ReadMsr(uint32_t index, uint64_t& value) override;
  bool WriteMsr(uint32_t index, uint64_t value) override;
  uint64_t ReadCr8() override;
  void WriteCr8(uint64_t value) override;
  int AcknowledgeInterrupt() override;
  uint64_t Hypercall(uint64_t number, const uint64_t (&arguments)[4], bool code64) override;
  void EndOfInterrupt(uint8_t vector) override;

  void SetInterrupt(bool level) override;
  void Nmi() override;
  void Init() override;
  void Sipi(uint8_t vector) override;
  void Kick() override;

 private:
  void AccountStolenTime();
  bool IsApicPage(GuestPhys address, unsigned size) const;

  const unsigned index_;
  const Wiring wiring_;
  devices::LocalApic* apic_ = nullptr;
  devices::KvmClock* kvm_clock_ = nullptr;
  devices::KvmParavirt* kvm_paravirt_ = nullptr;
  VcpuRunner* runner_ = nullptr;
  RunDelay run_delay_;
  uint64_t exits_[kExitKinds] = {};
};

}  // namespace nacre::machine
