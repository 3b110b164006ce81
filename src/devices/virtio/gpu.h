#pragma once
// virtio-gpu without 3D (virtio 1.2, 5.7): one screen with EDID and a cursor. Under the device lock; frames are drawn
// without it (display/screen.h).

#include <array>
#include <map>
#include <memory>

#include "devices/virtio/gpu_resource.h"
#include "devices/virtio/virtio_device.h"
#include "display/screen.h"

namespace nacre::devices {

class VirtioGpu final : public VirtioDevice, public display::Screen {
 public:
  // What a guest can make the host hold: commands beyond that fail with OUT_OF_MEMORY.
  static constexpr uint64_t kMaxHostBytes = 256 * kMiB;  ///< pixels of all resources
  static constexpr size_t kMaxResources = 1024;
  static constexpr size_t kMaxBackingEntries = 256 * 1024;  ///< of all resources
  static constexpr uint32_t kMaxSide = 8192;                ///< of a resource, pixels
  static constexpr unsigned kFirstWidth = 1024, kFirstHeight = 768;

  static std::unique_ptr<VirtioGpu> Create(memory::GuestMemory& memory, Scheduler& scheduler);

  std::span<const uint8_t> config() const override { return config_; }
  void WriteConfig(uint32_t offset, std::span<const uint8_t> data) override;

  // A driver shows something.
  bool active() const override { return driver_ok() && scanout_.resource != 0; }
  std::unique_ptr<display::Frame> Capture() override;
  uint64_t generation() const override { return generation_; }
  display::Cursor cursor() const override { return cursor_; }
  bool RequestSize(unsigned width, unsigned height) override;

 private:
  struct Scanout {
    uint32_t resource = 0;  ///< 0: off
    gpu::Rect rect;
  };
  /// A command, read once from the guest's memory.
  struct Request {
    const Chain* chain = nullptr;
    uint32_t type = 0;
    std::array<uint8_t, 40> body{};  ///< behind the header
    uint32_t word(unsigned at) const;
    gpu::Rect rect() const;
  };
  struct Response {
    uint32_t type = 0;
    std::vector<uint8_t> body{};
  };

  VirtioGpu(memory::GuestMemory& memory, Scheduler& scheduler);
  void OnQueue(unsigned index) override;
  void OnReset() override;
  void SerializeState(state::Archive& archive) override;
  /// Bytes that it has moved: what it cost.
  uint64_t Serve(unsigned queue_index, Chain& chain);
  Response Execute(const Request& request);
  Response DisplayInfo() const;
  Response GetEdid(const Request& request) const;
  Response CreateResource(const Request& request);
  Response Unref(const Request& request);
  Response SetScanout(const Request& request);
  Response Flush(const Request& request);
  Response Transfer(const Request& request);
  Response AttachBacking(const Request& request);
  Response DetachBacking(const Request& request);
  Response MoveCursor(const Request& request);
  void SetCursorImage(const gpu::Resource* resource, uint32_t hot_x, uint32_t hot_y);
  gpu::Resource* Find(uint32_t id);
  void Changed() { ++generation_; }

  std::array<uint8_t, 16> config_{};
  std::map<uint32_t, gpu::Resource> resources_;
  uint64_t host_bytes_ = 0;
  size_t backing_entries_ = 0;
  uint64_t moved_bytes_ = 0;
  Scanout scanout_;
  display::Cursor cursor_;
  unsigned width_ = kFirstWidth, height_ = kFirstHeight;  ///< that the screen would like to have
  uint64_t generation_ = 1;
  Chain chain_;
};

}  // namespace nacre::devices
