#pragma once
// virtio-rng (virtio 1.2, 5.4): the host kernel's random numbers. Under the device lock.

#include <memory>

#include "devices/virtio/virtio_device.h"

namespace nacre::devices {

class VirtioRng final : public VirtioDevice {
 public:
  static std::unique_ptr<VirtioRng> Create(std::string name, memory::GuestMemory& memory, Scheduler& scheduler);
  std::span<const uint8_t> config() const override { return {}; }

 private:
  using VirtioDevice::VirtioDevice;
  void OnQueue(unsigned index) override;
  void OnReset() override {}
  void SerializeState(state::Archive&) override {}
};

}  // namespace nacre::devices
