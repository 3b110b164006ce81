#include "devices/virtio/gpu_resource.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <string_view>

#include "base/bits.h"

namespace nacre::devices::gpu {
namespace {

// 5.7.6.8: enum virtio_gpu_formats, named by the order of the bytes.
constexpr uint32_t kBgra = 1, kBgrx = 2, kArgb = 3, kXrgb = 4, kRgba = 67, kXbgr = 68, kAbgr = 121, kRgbx = 134;

class PixelFrame final : public display::Frame {
 public:
  PixelFrame(std::shared_ptr<Pixels> pixels, uint32_t format, uint32_t stride, const Rect& rect)
      : pixels_(std::move(pixels)), format_(format), stride_(stride), rect_(rect) {}

  void Draw(display::Surface& to) const override {
    to.Resize(rect_.width, rect_.height);
    std::vector<uint32_t> row(rect_.width);
    for (unsigned y = 0; y < to.height(); ++y) {
      const uint32_t* from = pixels_ ? pixels_->data() + uint64_t{rect_.y + y} * stride_ + rect_.x : row.data();
      // A copy first: the guest writes meanwhile.
      if (pixels_) std::memcpy(row.data(), from, row.size() * sizeof(uint32_t));
      if (pixels_ && format_ != kBgrx && format_ != kBgra)
        for (uint32_t& pixel : row) pixel = ToArgb(format_, pixel);
      to.PutRow(y, row.data());
    }
  }

 private:
  const std::shared_ptr<Pixels> pixels_;
  const uint32_t format_, stride_;
  const Rect rect_;
};

}  // namespace

std::shared_ptr<Pixels> Pixels::Create(uint64_t count) {
  void* const memory = mmap(nullptr, count * sizeof(uint32_t), PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
  return std::shared_ptr<Pixels>(new Pixels(static_cast<uint32_t*>(memory), count));
}

Pixels::~Pixels() { munmap(data_, count_ * sizeof(uint32_t)); }

bool Resource::TransferToHost(const memory::GuestMemory& memory, const Rect& rect, uint64_t offset) {
  size_t entry = 0;
  uint64_t entry_start = 0;  // in the backing
  const uint64_t total = std::accumulate(backing.begin(), backing.end(), uint64_t{0},
                                         [](uint64_t sum, const BackingEntry& e) { return sum + e.size_bytes; });
  const uint64_t row_bytes = uint64_t{rect.width} * 4, stride = uint64_t{width} * 4;
  const uint64_t span = (rect.height - 1) * stride + row_bytes;
  if (offset > total || span > total - offset) return false;
  for (uint32_t y = 0; y < rect.height; ++y) {
    auto* to = reinterpret_cast<uint8_t*>(pixels->data() + uint64_t{rect.y + y} * width + rect.x);
    uint64_t at = offset + y * stride;
    for (uint64_t left = row_bytes; left != 0;) {
      while (at - entry_start >= backing[entry].size_bytes) entry_start += backing[entry++].size_bytes;
      const uint64_t skip = at - entry_start;
      const uint64_t piece = std::min(left, backing[entry].size_bytes - skip);
      const uint8_t* from = memory.HostPointer(GuestPhys(backing[entry].address + skip), piece);
      if (!from) return false;
      std::memcpy(to, from, piece);
      to += piece;
      at += piece;
      left -= piece;
    }
  }
  return true;
}

bool IsFormat(uint32_t format) {
  for (const uint32_t known : {kBgra, kBgrx, kArgb, kXrgb, kRgba, kXbgr, kAbgr, kRgbx})
    if (format == known) return true;
  return false;
}

uint32_t ToArgb(uint32_t format, uint32_t pixel) {
  const uint32_t swapped = __builtin_bswap32(pixel);
  switch (format) {
    case kArgb:
    case kXrgb:
      return swapped;
    case kRgba:
    case kRgbx:
      return (pixel & 0xff00ff00) | (pixel & 0xff) << 16 | (pixel >> 16 & 0xff);
    case kAbgr:
    case kXbgr:
      return pixel >> 8 | pixel << 24;
    default:
      return pixel;
  }
}

std::unique_ptr<display::Frame> MakeFrame(const Resource* resource, const Rect& rect) {
  if (!resource) return std::make_unique<PixelFrame>(nullptr, kBgrx, 0, rect);
  return std::make_unique<PixelFrame>(resource->pixels, resource->format, resource->width, rect);
}

std::array<uint8_t, 128> MakeEdid(unsigned width, unsigned height) {
  std::array<uint8_t, 128> edid{0x00, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x00,  // 3.3
                                0x38, 0x23,                                      // "NAC"
                                0x01, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 36,    // model 1 of 2026
                                1,    4,    0xa0, 0,    0,    120,  0x02};  // digital, gamma 2.2, prefers the first
  constexpr uint8_t kSrgb[] = {0xee, 0x91, 0xa3, 0x54, 0x4c, 0x99, 0x26, 0x0f, 0x50, 0x54};
  std::ranges::copy(kSrgb, &edid[25]);
  std::fill(&edid[38], &edid[54], uint8_t{0x01});  // no standard timings
  // 3.10.2: 96 dots to the inch, reduced blanking.
  const unsigned h_blank = 160, v_blank = std::max(height / 30, 9u);
  const unsigned clock_10khz = (width + h_blank) * (height + v_blank) * 60 / 10'000;
  const unsigned width_mm = width * 254 / 960, height_mm = height * 254 / 960;
  edid[21] = static_cast<uint8_t>(width_mm / 10);
  edid[22] = static_cast<uint8_t>(height_mm / 10);
  const auto low = [](unsigned value) { return static_cast<uint8_t>(value); };
  const uint8_t timing[18] = {low(clock_10khz),
                              low(clock_10khz >> 8),
                              low(width),
                              low(h_blank),
                              low((width >> 8) << 4),
                              low(height),
                              low(v_blank),
                              low((height >> 8) << 4 | v_blank >> 8),
                              48,
                              32,
                              3 << 4 | 6,
                              0,
                              low(width_mm),
                              low(height_mm),
                              low((width_mm >> 8) << 4 | height_mm >> 8),
                              0,
                              0,
                              0x1a};
  std::ranges::copy(timing, &edid[54]);
  constexpr std::string_view kName = "Nacre\n       ";
  edid[75] = 0xfc;
  std::ranges::copy(kName, &edid[77]);
  constexpr uint8_t kLimits[18] = {0, 0, 0, 0xfd, 0, 50, 75, 20, 140, 60, 0x01, '\n', ' ', ' ', ' ', ' ', ' ', ' '};
  std::ranges::copy(kLimits, &edid[90]);
  edid[111] = 0x10;  // nothing
  edid[127] = static_cast<uint8_t>(0 - std::accumulate(edid.begin(), edid.end() - 1, 0u));
  return edid;
}

}  // namespace nacre::devices::gpu
