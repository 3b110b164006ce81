#pragma once
// Between a display adapter (a device) and those who show its picture: a VNC server, a screenshot. The adapter hands
// out what is needed to draw one frame while the device lock is held; the drawing is done afterwards, without it.

#include <memory>

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

class Screen {
 public:
  virtual ~Screen() = default;
  /// Under the device lock. Takes microseconds.
  virtual std::unique_ptr<Frame> Capture() = 0;
};

}  // namespace nacre::display
