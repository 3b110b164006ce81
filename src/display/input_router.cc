#include "display/input_router.h"

#include <utility>

namespace nacre::display {

void InputRouter::Key(uint16_t code, bool down) {
  if (code >= pressed_.size()) return;
  // A key is released where it was pressed, though the driver of another device may have started meanwhile.
  InputSink* const to = pressed_[code] ? pressed_[code] : &keyboard();
  pressed_[code] = down ? to : nullptr;
  to->Key(code, down);
}

void InputRouter::MovePointer(const PointerMove& move) {
  InputSink* const to = &pointer();
  if (to != pointer_last_ && buttons_ != 0) pointer_last_->MovePointer({.x = move.x, .y = move.y});
  pointer_last_ = to;
  buttons_ = move.buttons;
  to->MovePointer(move);
}

}  // namespace nacre::display
