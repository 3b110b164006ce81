#pragma once
// Doorbells served by the engine (kvm: ioeventfd): the guest's write adds to an eventfd and the vCPU goes on; the event
// loop rings the device. Between engine and board; under the device lock.

#include "base/event_loop.h"
#include "bus/doorbell.h"
#include "engine/engine.h"

namespace nacre::machine {

class KernelDoorbells final : public bus::DoorbellHost {
 public:
  /// More than any board has; the host's kernel has 1000 for each VM.
  static constexpr unsigned kMost = 512;

  KernelDoorbells(engine::WriteEvents& events, EventLoop& loop) : events_(events), loop_(loop) {}

  std::unique_ptr<bus::DoorbellService> Serve(uint64_t address, bus::Doorbell& doorbell) override;
  /// The engine runs no more and goes: there is no need to take each address from it, which costs milliseconds.
  void Retire() { retired_ = true; }
  unsigned served() const { return served_; }
  uint64_t rings() const { return rings_; }

 private:
  class Service;

  engine::WriteEvents& events_;
  EventLoop& loop_;
  bool retired_ = false;
  unsigned served_ = 0;
  uint64_t rings_ = 0;
};

}  // namespace nacre::machine
