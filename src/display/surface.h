#pragma once
// A picture of the guest's screen, and which tiles of it have changed. Whoever shows a screen has a surface of its own
// and draws frames into it (display/screen.h); drawing compares, so that only what really differs counts as changed:
// guests that write the same again cost their viewers nothing. One thread.

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace nacre::display {

struct Rectangle {
  unsigned x = 0, y = 0, width = 0, height = 0;  ///< pixels
  bool operator==(const Rectangle&) const = default;
};

class Surface {
 public:
  static constexpr unsigned kMaxWidth = 2560, kMaxHeight = 1600;
  static constexpr unsigned kTile = 64;  ///< pixels, both ways

  unsigned width() const { return width_; }
  unsigned height() const { return height_; }
  /// 0x00RRGGBB (the top byte is anything), rows without gaps.
  std::span<const uint32_t> pixels() const { return pixels_; }
  std::span<const uint32_t> row(unsigned y) const { return {&pixels_[size_t{y} * width_], width_}; }

  /// A new size, cut to the most there is, makes the surface black and all of it changed; the same size does nothing.
  void Resize(unsigned width, unsigned height);
  /// Replaces a row. `pixels` has width() elements; rows that are not there are ignored.
  void PutRow(unsigned y, const uint32_t* pixels);

  /// Counts the calls of Resize that changed the size.
  unsigned size_generation() const { return size_generation_; }
  bool changed() const { return changed_; }
  /// The tiles that changed since the last call, neighbours in a row joined.
  std::vector<Rectangle> TakeChanged();

 private:
  unsigned width_ = 0, height_ = 0;
  unsigned tiles_across_ = 0;
  unsigned size_generation_ = 0;
  bool changed_ = false;
  std::vector<uint32_t> pixels_;
  std::vector<uint8_t> tile_changed_;
};

}  // namespace nacre::display
