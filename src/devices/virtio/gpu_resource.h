#pragma once
// A 2D resource of virtio-gpu (virtio 1.2, 5.7.6.8): pixels in host memory and the guest's pages behind them, and the
// EDID of the screen. Under the device lock; pixels are read without it while a frame is drawn (display/screen.h).

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "display/screen.h"
#include "memory/guest_memory.h"

namespace nacre::devices::gpu {

struct Rect {
  uint32_t x = 0, y = 0, width = 0, height = 0;
  bool operator==(const Rect&) const = default;
  /// Not empty and wholly inside, whatever the numbers are.
  bool Inside(uint32_t outer_width, uint32_t outer_height) const {
    return width != 0 && height != 0 && width <= outer_width && x <= outer_width - width && height <= outer_height &&
           y <= outer_height - height;
  }
};

/// 32-bit words, zero at first; the host provides them as they are touched.
class Pixels {
 public:
  /// Null: no memory.
  static std::shared_ptr<Pixels> Create(uint64_t count);
  ~Pixels();
  Pixels(const Pixels&) = delete;
  Pixels& operator=(const Pixels&) = delete;
  uint32_t* data() { return data_; }
  uint64_t count() const { return count_; }

 private:
  Pixels(uint32_t* data, uint64_t count) : data_(data), count_(count) {}
  uint32_t* const data_;
  const uint64_t count_;
};

struct BackingEntry {
  uint64_t address = 0;
  uint32_t size_bytes = 0;
};

struct Resource {
  uint32_t id = 0, format = 0, width = 0, height = 0;
  std::shared_ptr<Pixels> pixels{};
  std::vector<BackingEntry> backing{};

  uint64_t size_bytes() const { return uint64_t{width} * height * 4; }
  /// Copies `rect`, which is inside; its first pixel is `offset` bytes into the backing, rows are width pixels apart.
  /// False: the backing ends before it, or is not RAM.
  bool TransferToHost(const memory::GuestMemory& memory, const Rect& rect, uint64_t offset);
};

/// Formats of 5.7.6.8 that resources may have: all are 32 bits for a pixel.
bool IsFormat(uint32_t format);
/// The picture of `rect`, which is inside `resource`. Without a resource: black, of that size.
std::unique_ptr<display::Frame> MakeFrame(const Resource* resource, const Rect& rect);
/// One pixel as 0xAARRGGBB.
uint32_t ToArgb(uint32_t format, uint32_t pixel);

/// VESA E-EDID 1.4, one block: a screen that prefers this size at 60 Hz.
std::array<uint8_t, 128> MakeEdid(unsigned width, unsigned height);

}  // namespace nacre::devices::gpu
