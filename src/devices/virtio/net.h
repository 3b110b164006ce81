#pragma once
// virtio-net (virtio 1.2, 5.1): one receive and one transmit queue, merged receive buffers, checksums left to
// the device, the back end's MTU. Under the device lock.

#include <array>
#include <memory>
#include <string>

#include "devices/virtio/virtio_device.h"
#include "network/backend.h"
#include "network/ethernet.h"

namespace nacre::devices {

class VirtioNet final : public VirtioDevice, private network::FrameReceiver {
 public:
  struct Options {
    std::string name = "virtio-net0";
    network::MacAddress mac = {0x52, 0x54, 0x00, 0x12, 0x34, 0x56};
    uint16_t queue_size = 256;
  };
  static std::unique_ptr<VirtioNet> Create(const Options& options, std::unique_ptr<network::NetBackend> backend,
                                           memory::GuestMemory& memory, Scheduler& scheduler);
  ~VirtioNet() override;

  std::span<const uint8_t> config() const override { return config_; }
  network::NetBackend& backend() { return *backend_; }
  struct Counters {
    uint64_t sent_frames = 0, sent_bytes = 0, received_frames = 0, received_bytes = 0, dropped_frames = 0;
  };
  const Counters& counters() const { return counters_; }

 private:
  VirtioNet(const Options& options, std::unique_ptr<network::NetBackend> backend, memory::GuestMemory& memory,
            Scheduler& scheduler);
  void OnQueue(unsigned index) override;
  void OnReset() override;
  void SerializeState(state::Archive&) override {}
  void OnLoaded() override;
  bool Receive(std::span<const uint8_t> frame) override;
  void ReceiveDone() override;
  void LinkChanged() override;
  void Transmit(const Chain& chain);
  bool TakeBuffers(uint64_t size_bytes, unsigned& count, bool& hopeless);

  std::unique_ptr<network::NetBackend> backend_;
  std::array<uint8_t, 12> config_{};
  std::vector<uint8_t> frame_;  // the frame being sent
  std::vector<Chain> buffers_;  // receive buffers of one frame; kept for their capacity
  Counters counters_;
};

}  // namespace nacre::devices
