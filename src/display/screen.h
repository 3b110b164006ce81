#pragma once
// Between a display adapter (a device) and those who show its picture: a VNC server, a screenshot. The adapter hands
// out what is needed to draw one frame while the device lock is held; the drawing is done afterwards, without it.

#include <cstdint>
#include <memory>
#include <vector>

#include "display/surface.h"

namespace nacre::display {

/// One picture, as the registers were when it was captured. What is drawn from the guest's frame buffer is read while
/// Draw runs: a guest that writes meanwhile may be seen half-way, as on a real screen.
class Frame {
 public:
  virtual ~Frame() = default;
  /// Any thread, without a lock, while the adapter lives.
  virtual void Draw(Surface& to) const = 0;
};

struct CursorImage {
  uint32_t width = 0, height = 0, hot_x = 0, hot_y = 0;
  std::vector<uint32_t> argb;  ///< 0xAARRGGBB, rows without gaps
};
/// A cursor that is not in the picture.
struct Cursor {
  std::shared_ptr<const CursorImage> image;  ///< null: none is shown
  int x = 0, y = 0;                          ///< of its left upper corner
};

/// All under the device lock.
class Screen {
 public:
  virtual ~Screen() = default;
  /// Takes microseconds.
  virtual std::unique_ptr<Frame> Capture() = 0;
  /// Another number when the picture may be another one; 0: nobody knows.
  virtual uint64_t generation() const { return 0; }
  virtual Cursor cursor() const { return {}; }
  /// A person would like it to have this size. False: it cannot be asked for that. What the guest makes of it comes
  /// later.
  virtual bool RequestSize([[maybe_unused]] unsigned width, [[maybe_unused]] unsigned height) { return false; }
  /// Who has a choice shows this one.
  virtual bool active() const { return true; }
};

/// One screen while it is active, else another.
class ScreenChoice final : public Screen {
 public:
  /// Both must outlive it.
  ScreenChoice(Screen& preferred, Screen& other) : preferred_(preferred), other_(other) {}
  std::unique_ptr<Frame> Capture() override { return shown().Capture(); }
  uint64_t generation() const override {
    return preferred_.active() ? preferred_.generation() * 2 + 1 : other_.generation() * 2;
  }
  Cursor cursor() const override { return shown().cursor(); }
  bool RequestSize(unsigned width, unsigned height) override { return shown().RequestSize(width, height); }

 private:
  Screen& shown() const { return preferred_.active() ? preferred_ : other_; }
  Screen& preferred_;
  Screen& other_;
};

}  // namespace nacre::display
