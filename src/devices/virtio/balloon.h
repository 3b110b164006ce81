#pragma once
// virtio-balloon (virtio 1.2, 5.5): memory that the guest does not need goes back to the host: on request
// (inflate) and as the guest finds free pages (reporting). Under the device lock.

#include <array>
#include <memory>
#include <optional>
#include <string>

#include "devices/virtio/virtio_device.h"

namespace nacre::devices {

class VirtioBalloon final : public VirtioDevice {
 public:
  /// What the guest last said of its memory, in bytes or counts (5.5.6.4); absent where it does not say.
  struct Stats {
    std::optional<uint64_t> swapped_in, swapped_out, major_faults, minor_faults, free_bytes, total_bytes,
        available_bytes, cache_bytes;
  };
  static std::unique_ptr<VirtioBalloon> Create(std::string name, memory::GuestMemory& memory, Scheduler& scheduler);

  /// How much the guest is asked to give up altogether.
  void SetTarget(uint64_t size_bytes);
  uint64_t target_bytes() const;
  /// What it says that it has given up.
  uint64_t actual_bytes() const;
  /// Asks the guest for new statistics; stats() changes when they come.
  void RequestStats();
  const Stats& stats() const { return stats_; }
  uint64_t discarded_bytes() const { return discarded_bytes_; }

  std::span<const uint8_t> config() const override { return config_; }
  void WriteConfig(uint32_t offset, std::span<const uint8_t> data) override;

 private:
  using VirtioDevice::VirtioDevice;
  enum class Role { kInflate, kDeflate, kStats, kReporting, kNone };
  Role RoleOf(unsigned index) const;
  void OnQueue(unsigned index) override;
  void OnReset() override;
  void SerializeState(state::Archive& archive) override;
  void Inflate(const Chain& chain);
  void ReadStats(unsigned index);
  void Discard(uint64_t address, uint64_t size_bytes);

  std::array<uint8_t, 16> config_{};
  Stats stats_;
  uint64_t discarded_bytes_ = 0;
  Chain chain_;
};

}  // namespace nacre::devices
