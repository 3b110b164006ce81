#include "display/surface.h"

#include <algorithm>
#include <cstring>

namespace nacre::display {

void Surface::Resize(unsigned width, unsigned height) {
  width = std::clamp(width, 1u, kMaxWidth);
  height = std::clamp(height, 1u, kMaxHeight);
  if (width == width_ && height == height_) return;
  width_ = width;
  height_ = height;
  tiles_across_ = (width + kTile - 1) / kTile;
  pixels_.assign(size_t{width} * height, 0);
  tile_changed_.assign(size_t{tiles_across_} * ((height + kTile - 1) / kTile), 1);
  changed_ = true;
  ++size_generation_;
}

void Surface::PutRow(unsigned y, const uint32_t* pixels) {
  if (y >= height_) return;
  uint32_t* row = &pixels_[size_t{y} * width_];
  if (std::memcmp(row, pixels, size_t{width_} * sizeof(uint32_t)) == 0) return;
  uint8_t* tiles = &tile_changed_[size_t{y / kTile} * tiles_across_];
  for (unsigned x = 0; x < width_; x += kTile) {
    const size_t bytes = size_t{std::min(kTile, width_ - x)} * sizeof(uint32_t);
    if (std::memcmp(row + x, pixels + x, bytes) == 0) continue;
    std::memcpy(row + x, pixels + x, bytes);
    tiles[x / kTile] = 1;
  }
  changed_ = true;
}

std::vector<Rectangle> Surface::TakeChanged() {
  std::vector<Rectangle> rectangles;
  if (!changed_) return rectangles;
  changed_ = false;
  for (unsigned y = 0; y < height_; y += kTile) {
    uint8_t* tiles = &tile_changed_[size_t{y / kTile} * tiles_across_];
    for (unsigned first = 0; first < tiles_across_; ++first) {
      if (!tiles[first]) continue;
      unsigned end = first;
      while (end < tiles_across_ && tiles[end]) tiles[end++] = 0;
      const unsigned x = first * kTile;
      rectangles.push_back({x, y, std::min(end * kTile, width_) - x, std::min(kTile, height_ - y)});
      first = end;
    }
  }
  return rectangles;
}

}  // namespace nacre::display
