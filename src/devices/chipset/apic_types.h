#pragma once
// What passes between the interrupt controllers and the virtual CPUs. Everything here is called under the
// device lock.

#include <cstdint>
#include <memory>

namespace nacre::devices {

/// Interrupt message (SDM 3A 11.6.1, 11.11.2): from an IO-APIC pin, an MSI or another local APIC.
enum class DeliveryMode : uint8_t {
  kFixed = 0,
  kLowestPriority = 1,
  kSmi = 2,
  kReserved = 3,
  kNmi = 4,
  kInit = 5,
  kStartup = 6,
  kExtInt = 7
};

struct ApicMessage {
  static constexpr uint32_t kBroadcast = 0xffffffff;
  uint32_t destination = 0;  ///< kBroadcast in physical mode: all
  bool logical = false;
  DeliveryMode mode = DeliveryMode::kFixed;
  bool level = false;  ///< trigger mode
  uint8_t vector = 0;
};

/// The pins of one virtual CPU: the machine connects them to engine::Vcpu::Request and to its run loop. Calls
/// come from any thread that holds the device lock.
class CpuSignals {
 public:
  virtual ~CpuSignals() = default;
  /// A level: there is an interrupt for LocalApic::Acknowledge. Called when it changes, and after a restore.
  virtual void SetInterrupt(bool level) = 0;
  virtual void Nmi() = 0;
  /// INIT: the CPU goes to its INIT state (SDM 3A table 9-1); an application processor then waits for a SIPI.
  virtual void Init() = 0;
  /// SIPI: a CPU that waits for it starts in real mode at vector << 12. Others ignore it.
  virtual void Sipi(uint8_t vector) = 0;
  /// A CPU that sleeps looks again whether it may go on (paravirtual kick).
  virtual void Kick() = 0;
};

/// Where the guest of one CPU may say end of interrupt without an access to the local APIC (kvm_paravirt.h). On the
/// CPU's own thread, but for Signalled.
class EoiFlag {
 public:
  virtual ~EoiFlag() = default;
  /// False: the guest has not given a place for it.
  virtual bool Offer() = 0;
  /// After Offer: whether the guest has said it.
  virtual bool Signalled() = 0;
  /// After Offer, if it was not signalled: the guest uses the EOI register.
  virtual void Withdraw() = 0;
};

/// A message with a way of its own to somebody else's local APICs.
class RemoteLine {
 public:
  /// What was sent has arrived when this returns.
  virtual ~RemoteLine() = default;
  virtual void Send() = 0;
  /// From now on another message. False: this line cannot be that one and is of no more use.
  virtual bool Change(const ApicMessage& message) = 0;
};

/// Keeps the local APICs instead of our models (ApicBus::SetRemote): the host's kernel, with the 8259 pair, the IO-APIC
/// and the devices still ours.
class RemoteApics {
 public:
  virtual ~RemoteApics() = default;
  /// To whom the message names, as ApicBus::Route would. With level trigger mode it is an assertion; the end of the
  /// interrupt comes back by ApicBus::BroadcastEoi.
  virtual void Deliver(const ApicMessage& message) = 0;
  /// For a message that a device's vector sends; null: Deliver serves it.
  virtual std::unique_ptr<RemoteLine> NewLine([[maybe_unused]] const ApicMessage& message) { return nullptr; }
  /// INTR of the 8259 pair, at LINT0 of every CPU. While it is up, LocalApic::Acknowledge gives a vector. Called when
  /// the level changes, and once at the beginning.
  virtual void SetExtInt(bool level) = 0;
  /// The board's NMI, at LINT1 of every CPU: it rose. What comes of it each CPU's LVT says.
  virtual void Nmi() = 0;
};

/// The guest's time-stamp counter of one CPU, given by the machine.
class GuestTsc {
 public:
  virtual ~GuestTsc() = default;
  virtual uint64_t Read() const = 0;
  /// Scheduler time at which the counter reaches `tsc`. In the past or present for values reached already.
  virtual int64_t ToNs(uint64_t tsc) const = 0;
  virtual uint32_t khz() const = 0;
};

/// The 8259 pair as the local APIC's LINT0 sees it.
class ExtIntSource {
 public:
  virtual ~ExtIntSource() = default;
  /// The interrupt acknowledge cycle: the vector. Always answers (spurious: IRQ 7's).
  virtual uint8_t AcknowledgeExtInt() = 0;
};

/// An IO-APIC, told when a level-triggered interrupt was served.
class EoiListener {
 public:
  virtual ~EoiListener() = default;
  virtual void OnEoi(uint8_t vector) = 0;
};

}  // namespace nacre::devices
