#pragma once
// Leads what a person does to the device that the guest uses: a virtio keyboard or pointer while its driver runs, else
// the PS/2 ones. Under the device lock.

#include <linux/input-event-codes.h>

#include <array>

#include "display/input.h"

namespace nacre::display {

class InputRouter final : public InputSink {
 public:
  /// `usual`: taken while no other is active. All must outlive it.
  explicit InputRouter(InputSink& usual) : usual_(usual), pointer_last_(&usual) {}
  void SetKeyboard(InputSink* keyboard) { keyboard_ = keyboard; }
  void SetPointer(InputSink* pointer) { pointer_ = pointer; }

  void Key(uint16_t code, bool down) override;
  bool keys_taken() const override { return keyboard().keys_taken(); }
  void MovePointer(const PointerMove& move) override;
  uint8_t leds() const override { return keyboard().leds(); }
  bool absolute() const override { return pointer().absolute(); }

 private:
  InputSink& keyboard() const { return keyboard_ && keyboard_->active() ? *keyboard_ : usual_; }
  InputSink& pointer() const { return pointer_ && pointer_->active() ? *pointer_ : usual_; }

  InputSink& usual_;
  InputSink* keyboard_ = nullptr;
  InputSink* pointer_ = nullptr;
  std::array<InputSink*, KEY_CNT> pressed_{};  ///< who was given the key that is down
  InputSink* pointer_last_;
  uint8_t buttons_ = 0;  ///< that pointer_last_ has down
};

}  // namespace nacre::display
