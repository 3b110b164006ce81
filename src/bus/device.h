#pragma once
// The contract of every device. A device knows its registers, an interrupt line, a clock (base/scheduler.h)
// and a back end; never an engine, another device or the machine.
//
// Threads: one device lock per machine. It is held by whoever calls any method below: a vCPU thread during an
// access, the event loop's thread during timers and back-end completions. A device therefore needs no lock of
// its own, and must not block. Work done on other threads comes back through Scheduler::Post.

#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>

#include "memory/address.h"
#include "state/archive.h"

namespace nacre::bus {

/// One register block on the port or memory bus. `offset` is relative to the block's start. The bus passes
/// every access that lies wholly inside the block, at any alignment, with size 1, 2, 4 or 8 (ports: 1, 2, 4).
/// Values are in the low `size` bytes. What a device does not decode reads as all ones (ISA, PCI) or zero as
/// its manual says, and ignores writes. Never fails, never aborts: guests are hostile.
class IoHandler {
 public:
  virtual ~IoHandler() = default;
  virtual uint64_t Read(uint64_t offset, unsigned size) = 0;
  virtual void Write(uint64_t offset, unsigned size, uint64_t value) = 0;
};

class Device {
 public:
  virtual ~Device() = default;
  /// Unique and stable within a machine: the name of its section in snapshots ("serial0", "virtio-blk1").
  virtual std::string_view name() const = 0;
  /// As the hardware's reset line: registers to their power-on values, interrupt lines low, back-end work
  /// dropped.
  virtual void Reset() = 0;
  /// Saves or restores all guest-visible state, by numbered fields (state/archive.h). After a load the device
  /// drives its interrupt lines and timers again from the state. A load of a hostile file fails by
  /// archive.Reject, never by a crash.
  virtual void Serialize(state::Archive& archive) = 0;
};

/// A level-triggered wire into an interrupt controller. Set with an unchanged level costs nothing.
class IrqLine {
 public:
  virtual ~IrqLine() = default;
  virtual void Set(bool level) = 0;
  /// An edge, for edge-triggered lines.
  void Pulse() {
    Set(true);
    Set(false);
  }
};

/// A message-signalled interrupt: a 32-bit write to the local APICs' address window (Intel SDM 3A 11.11).
struct MsiMessage {
  uint64_t address = 0;
  uint32_t data = 0;
  bool operator==(const MsiMessage&) const = default;
};

/// One vector of a device. Who takes its messages knows beforehand what they will be, and may keep a short way for
/// them.
class MsiVector {
 public:
  virtual ~MsiVector() = default;
  /// What Send sends from now on; nothing: the guest has switched the vector off. A masked one keeps what it had.
  virtual void Set(const std::optional<MsiMessage>& message) = 0;
  /// Nothing while there is no message.
  virtual void Send() = 0;
};

/// Where message-signalled interrupts go.
class MsiSink {
 public:
  virtual ~MsiSink() = default;
  virtual void Send(uint64_t address, uint32_t data) = 0;
  /// This sink must outlive it.
  virtual std::unique_ptr<MsiVector> NewVector() { return std::make_unique<PlainVector>(*this); }

 private:
  class PlainVector final : public MsiVector {
   public:
    explicit PlainVector(MsiSink& sink) : sink_(sink) {}
    void Set(const std::optional<MsiMessage>& message) override { message_ = message; }
    void Send() override {
      if (message_) sink_.Send(message_->address, message_->data);
    }

   private:
    MsiSink& sink_;
    std::optional<MsiMessage> message_;
  };
};

}  // namespace nacre::bus
