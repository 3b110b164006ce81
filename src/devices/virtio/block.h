#pragma once
// virtio-blk (virtio 1.2, 5.2): a disk. Data moves straight between guest RAM and the back end. Under the
// device lock.

#include <array>
#include <memory>
#include <string>

#include "base/result.h"
#include "devices/virtio/virtio_device.h"
#include "storage/disk.h"

namespace nacre::devices {

class VirtioBlock final : public VirtioDevice {
 public:
  struct Options {
    std::string name = "virtio-blk0";
    std::string serial = {};    ///< at most 20 characters; default: the name
    uint16_t queues = 1;        ///< 1 to 16
    uint16_t queue_size = 256;  ///< a power of two, 4 to 1024
  };
  static Result<std::unique_ptr<VirtioBlock>> Create(const Options& options, std::unique_ptr<storage::Disk> disk,
                                                     memory::GuestMemory& memory, Scheduler& scheduler);
  ~VirtioBlock() override;

  void Quiesce() override { disk_->Drain(); }
  std::span<const uint8_t> config() const override { return config_; }

 private:
  class Request;

  VirtioBlock(const Options& options, std::unique_ptr<storage::Disk> disk, memory::GuestMemory& memory,
              Scheduler& scheduler);
  void OnQueue(unsigned index) override;
  void OnReset() override;
  void SerializeState(state::Archive& archive) override;
  void Begin(unsigned index, Chain& chain);
  bool Prepare(Request& request, uint32_t type, uint64_t sector);
  bool PrepareRange(Request& request, uint32_t type);
  void RequestDone(Request& request, int error);
  void Finish(Request& request, uint8_t status, uint32_t data_written);
  void FillConfig(const Options& options);

  std::unique_ptr<storage::Disk> disk_;
  std::string serial_;
  std::array<uint8_t, 60> config_{};
  bool resetting_ = false;
  std::vector<std::unique_ptr<Request>> requests_;
  std::vector<Request*> free_;
};

}  // namespace nacre::devices
