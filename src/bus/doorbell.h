#pragma once
// Doorbells: places on the memory bus where a write of any value means one thing, "look" (a virtio queue's notification
// address). The memory bus passes such writes to the device like any other; an engine that can do better, without
// leaving the guest, does it through a DoorbellHost that the machine sets. Under the device lock.

#include <cstdint>
#include <memory>

namespace nacre::bus {

class MemoryBus;

class Doorbell {
 public:
  virtual ~Doorbell() = default;
  /// Once for one or more writes, at the latest soon after them.
  virtual void Ring() = 0;
};

/// One doorbell that is served somewhere else.
class DoorbellService {
 public:
  /// It rings no more.
  virtual ~DoorbellService() = default;
  /// Whether there was a write since it last rang, which the caller makes good.
  virtual bool Take() = 0;
  /// Ends the service. The same answer.
  virtual bool Stop() = 0;
};

class DoorbellHost {
 public:
  virtual ~DoorbellHost() = default;
  /// Null: not this one.
  virtual std::unique_ptr<DoorbellService> Serve(uint64_t address, Doorbell& doorbell) = 0;
};

/// A doorbell at an address where the device's block is mapped as well; until it is destroyed.
class DoorbellMapping {
 public:
  /// Both must outlive it.
  DoorbellMapping(MemoryBus& memory_bus, uint64_t address, Doorbell& doorbell);
  /// Without a last ring: the device may be going.
  ~DoorbellMapping();
  DoorbellMapping(const DoorbellMapping&) = delete;
  DoorbellMapping& operator=(const DoorbellMapping&) = delete;
  /// Not served any more; a write that was not seen yet rings now.
  void Stop();
  /// A write that was not seen yet rings now.
  void Drain();
  void Serve(DoorbellHost& host);

 private:
  MemoryBus& bus_;
  const uint64_t address_;
  Doorbell& doorbell_;
  std::unique_ptr<DoorbellService> service_;
};

}  // namespace nacre::bus
