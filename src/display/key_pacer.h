#pragma once
// Between people who type at a screen and the guest's keyboard: strokes that come in a burst (a client that pastes text
// as keys, a network that stood still) are given one after another, as fast as Typist types. A keyboard never sends
// faster, and guests count on it: Linux's evdev drops what comes on top of 64 events that a program has not read.
// Under the device lock.

#include <linux/input-event-codes.h>

#include <bitset>
#include <cstdint>
#include <deque>
#include <memory>

#include "base/scheduler.h"
#include "display/input.h"
#include "display/keys.h"

namespace nacre::display {

class KeyPacer final : public InputSink {
 public:
  /// What a press finds waiting when it is dropped. Releases of what was pressed before are kept.
  static constexpr size_t kMaxWaiting = 1024;

  /// Both must outlive it.
  KeyPacer(InputSink& sink, Scheduler& scheduler);

  /// At once when the last stroke is taken and Typist::kStrokeNs ago. Strokes that a guest has left untaken for
  /// Typist::kPatienceNs are dropped; keys that it knows as down are released.
  void Key(uint16_t code, bool down) override;
  bool keys_taken() const override { return waiting_.empty() && sink_.keys_taken(); }
  void MovePointer(const PointerMove& move) override { sink_.MovePointer(move); }
  uint8_t leds() const override { return sink_.leds(); }
  bool active() const override { return sink_.active(); }
  bool absolute() const override { return sink_.absolute(); }

 private:
  void Continue();
  void GiveUp();

  InputSink& sink_;
  Scheduler& scheduler_;
  std::deque<KeyStroke> waiting_;
  std::bitset<KEY_CNT> pressed_;  ///< as the people have it
  std::bitset<KEY_CNT> given_;    ///< as the guest has it
  int64_t next_ns_ = 0;           ///< when the next stroke may be given
  bool untaken_ = false;          ///< the guest lets the first one wait
  int64_t untaken_since_ns_ = 0;
  std::unique_ptr<Timer> timer_;
};

}  // namespace nacre::display
