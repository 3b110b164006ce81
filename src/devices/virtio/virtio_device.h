#pragma once
// What all virtio devices share, whatever the transport (virtio 1.2, chapter 2): status, feature negotiation,
// queues, the configuration space. A transport (virtio_pci.h) drives it from registers; a device type derives
// from it and fills in its requests. All under the device lock (bus/device.h).

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/scheduler.h"
#include "devices/virtio/virtqueue.h"
#include "memory/guest_memory.h"
#include "state/archive.h"

namespace nacre::devices {

/// Device types (virtio 1.2, chapter 5) that exist here.
enum class VirtioType : uint16_t {
  kNet = 1,
  kBlock = 2,
  kConsole = 3,
  kRng = 4,
  kBalloon = 5,
  kGpu = 16,
  kInput = 18,
  kVsock = 19
};

/// Status register bits (2.1).
namespace virtio_status {
inline constexpr uint8_t kAcknowledge = 1, kDriver = 2, kDriverOk = 4, kFeaturesOk = 8, kNeedsReset = 64, kFailed = 128;
}
/// Feature bits that belong to no device type (chapter 6).
namespace virtio_feature {
inline constexpr unsigned kIndirectDesc = 28, kEventIndex = 29, kVersion1 = 32, kRingPacked = 34;
}

class VirtioDevice {
 public:
  /// How a transport delivers notifications to the driver.
  class Transport {
   public:
    virtual ~Transport() = default;
    virtual void InterruptQueue(unsigned queue) = 0;
    virtual void InterruptConfig() = 0;
  };

  virtual ~VirtioDevice() = default;
  VirtioDevice(const VirtioDevice&) = delete;
  VirtioDevice& operator=(const VirtioDevice&) = delete;

  // -- for the machine
  const std::string& name() const { return name_; }
  VirtioType type() const { return type_; }
  /// Completes what back ends have in flight, blocking. The machine calls it for every device before it saves
  /// any (completions raise interrupts, which must be in the saved state of the interrupt controllers);
  /// Serialize calls it again.
  virtual void Quiesce() {}
  /// Why the device asked for a reset, or empty: for logs and tests.
  const std::string& broken_reason() const { return broken_reason_; }

  // -- for the transport
  void Attach(Transport* transport) { transport_ = transport; }
  void Reset();
  void Serialize(state::Archive& archive);
  uint64_t offered_features() const { return offered_; }
  uint64_t driver_features() const { return accepted_; }
  /// 32 bits of the driver's features; ignored once FEATURES_OK is set (3.1.1).
  void SetDriverFeatures(uint32_t select, uint32_t bits);
  uint8_t status() const { return status_; }
  /// Status written by the driver: 0 resets; bits are only added (2.1.1).
  void SetStatus(uint8_t value);
  unsigned queue_count() const { return static_cast<unsigned>(queues_.size()); }
  VirtQueue& queue(unsigned index) { return *queues_[index]; }
  void EnableQueue(unsigned index);
  /// The driver's available buffer notification.
  void Notify(unsigned index);
  virtual std::span<const uint8_t> config() const = 0;
  virtual void WriteConfig(uint32_t offset, std::span<const uint8_t> data);
  uint8_t config_generation() const { return config_generation_; }

 protected:
  struct Setup {
    std::string name;
    VirtioType type;
    uint64_t features = 0;  ///< of the device type; ring features are added
    std::vector<uint16_t> queue_sizes;
  };
  VirtioDevice(Setup setup, memory::GuestMemory& memory, Scheduler& scheduler);

  /// The driver made buffers available in a queue, or the device asked to look again. DRIVER_OK is set.
  virtual void OnQueue(unsigned index) = 0;
  /// DRIVER_OK was set.
  virtual void OnDriverOk() {}
  /// Drops back-end work and per-driver state. Queues are reset after it.
  virtual void OnReset() = 0;
  /// Fields of the device type; queues are idle (Quiesce came before).
  virtual void SerializeState(state::Archive& archive) = 0;
  /// After a load of everything.
  virtual void OnLoaded() {}

  bool driver_ok() const { return (status_ & virtio_status::kDriverOk) != 0 && !needs_reset(); }
  bool needs_reset() const { return (status_ & virtio_status::kNeedsReset) != 0; }
  bool has_feature(unsigned bit) const { return TestBit(accepted_, bit); }
  memory::GuestMemory& memory() { return memory_; }
  Scheduler& scheduler() { return scheduler_; }

  /// Interrupts for a queue if its driver wants that.
  void Signal(unsigned index);
  void ConfigChanged();
  /// OnQueue(index) again soon, from the event loop.
  void LookAgain(unsigned index);
  /// Runs `handle(chain)` for available chains, with notifications off, until none is left or a fair share is
  /// done (then the rest follows from the event loop). The handler gives chains back by Push; one Signal
  /// follows.
  template <typename Handle>
  void ForEachChain(unsigned index, Handle handle);

 private:
  void NeedsReset(const char* reason);
  void RunPending();

  const std::string name_;
  const VirtioType type_;
  const uint64_t offered_;
  memory::GuestMemory& memory_;
  Scheduler& scheduler_;
  Transport* transport_ = nullptr;
  std::vector<std::unique_ptr<VirtQueue>> queues_;
  uint8_t status_ = 0;
  uint64_t accepted_ = 0;
  uint8_t config_generation_ = 0;
  std::string broken_reason_;
  Chain scratch_;
  uint64_t pending_queues_ = 0;
  bool pending_interrupts_ = false;  ///< after a load: interrupt every queue, since completions may have come late
  std::unique_ptr<Timer> pending_timer_;
};

template <typename Handle>
void VirtioDevice::ForEachChain(unsigned index, Handle handle) {
  VirtQueue& ring = queue(index);
  ring.DisableNotification();
  // Another CPU may add buffers as fast as they are taken: the device lock must not be held for ever.
  unsigned budget = 2u * ring.setup().size;
  do {
    while (budget > 0 && ring.Pop(scratch_)) {
      handle(scratch_);
      --budget;
    }
    if (budget == 0) {
      LookAgain(index);
      break;
    }
  } while (ring.EnableNotification());
  Signal(index);
}

}  // namespace nacre::devices
