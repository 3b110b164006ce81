#pragma once
// The PCI transport of virtio 1.2 (4.1), modern only: the register structures in BAR 0, MSI-X in BAR 1, INTx
// where the guest does not enable MSI-X. Wraps any VirtioDevice; the machine attaches it to its PciHost.
// Under the device lock.

#include <memory>

#include "bus/device.h"
#include "devices/pci/pci_device.h"
#include "devices/virtio/virtio_device.h"

namespace nacre::devices {

class VirtioPci final : public PciDevice, private VirtioDevice::Transport {
 public:
  VirtioPci(std::unique_ptr<VirtioDevice> device, const PciWiring& wiring);
  ~VirtioPci() override;

  VirtioDevice& device() { return *device_; }

  // Where the structures lie in BAR 0.
  static constexpr uint64_t kCommonOffset = 0, kIsrOffset = 0x1000, kDeviceOffset = 0x2000, kNotifyOffset = 0x3000,
                            kBlockSize = 0x1000, kBarSize = 0x4000;
  static constexpr uint32_t kNotifyMultiplier = 4;
  static constexpr uint16_t kNoVector = 0xffff;  // VIRTIO_MSI_NO_VECTOR

 private:
  using Access = uint64_t (VirtioPci::*)(uint64_t, unsigned);
  using Store = void (VirtioPci::*)(uint64_t, unsigned, uint64_t);
  /// One structure of BAR 0.
  class Block final : public bus::IoHandler {
   public:
    Block(VirtioPci* owner, Access read, Store write) : owner_(owner), read_(read), write_(write) {}
    uint64_t Read(uint64_t offset, unsigned size) override { return (owner_->*read_)(offset, size); }
    void Write(uint64_t offset, unsigned size, uint64_t value) override { (owner_->*write_)(offset, size, value); }

   private:
    VirtioPci* owner_;
    Access read_;
    Store write_;
  };

  /// A queue's notification address.
  class QueueBell final : public bus::Doorbell {
   public:
    QueueBell(VirtioDevice& device, unsigned queue) : device_(device), queue_(queue) {}
    void Ring() override { device_.Notify(queue_); }

   private:
    VirtioDevice& device_;
    const unsigned queue_;
  };

  void ResetFunction() override;
  void SerializeFunction(state::Archive& archive) override;
  void BeforeConfigRead(unsigned offset, unsigned size) override;
  void AfterConfigWrite(unsigned offset, unsigned size) override;
  void InterruptQueue(unsigned queue) override;
  void InterruptConfig() override;

  uint8_t AddStructure(uint8_t type, uint64_t offset, uint64_t size_bytes, uint32_t extra, bool has_extra);
  uint64_t ReadCommon(uint64_t offset, unsigned size);
  void WriteCommon(uint64_t offset, unsigned size, uint64_t value);
  uint64_t ReadIsr(uint64_t offset, unsigned size);
  void WriteIsr(uint64_t, unsigned, uint64_t) {}
  uint64_t ReadDevice(uint64_t offset, unsigned size);
  void WriteDevice(uint64_t offset, unsigned size, uint64_t value);
  uint64_t ReadNotify(uint64_t, unsigned) { return 0; }
  void WriteNotify(uint64_t offset, unsigned, uint64_t) {
    device_->Notify(static_cast<unsigned>(offset / kNotifyMultiplier));
  }
  uint64_t GetField(unsigned offset);
  void SetField(unsigned offset, uint64_t value);
  void SetQueueField(unsigned offset, uint64_t value);
  uint16_t CheckVector(uint64_t value) const;
  void RaiseIsr(uint8_t bit);
  void UpdateIntx();
  /// Doorbells are those of the queues that are enabled.
  void UpdateBells();
  bus::IoHandler* BlockAt(uint64_t offset, unsigned size);

  std::unique_ptr<VirtioDevice> device_;
  Block common_block_, isr_block_, device_block_, notify_block_;
  std::vector<std::unique_ptr<QueueBell>> bells_;  ///< by queue, which is the doorbell's number too
  uint8_t access_capability_ = 0;

  uint32_t device_feature_select_ = 0;
  uint32_t driver_feature_select_ = 0;
  uint16_t config_vector_ = kNoVector;
  uint16_t queue_select_ = 0;
  uint8_t isr_ = 0;
  std::vector<uint16_t> queue_vectors_;
};

}  // namespace nacre::devices
