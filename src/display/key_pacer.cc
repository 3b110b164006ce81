#include "display/key_pacer.h"

#include "display/typist.h"

namespace nacre::display {

KeyPacer::KeyPacer(InputSink& sink, Scheduler& scheduler)
    : sink_(sink), scheduler_(scheduler), timer_(scheduler.CreateTimer([this] { Continue(); })) {}

void KeyPacer::Key(uint16_t code, bool down) {
  if (code >= pressed_.size()) return;
  if (waiting_.size() >= kMaxWaiting && (down || !pressed_[code])) return;
  pressed_[code] = down;
  waiting_.push_back({code, down});
  if (!timer_->armed()) Continue();
}

void KeyPacer::Continue() {
  while (!waiting_.empty()) {
    const auto [key, down] = waiting_.front();
    const int64_t now_ns = scheduler_.NowNs();
    if (now_ns < next_ns_) return timer_->Arm(next_ns_);
    if (!sink_.keys_taken()) {
      if (!untaken_) untaken_since_ns_ = now_ns;
      untaken_ = true;
      if (now_ns - untaken_since_ns_ >= Typist::kPatienceNs) return GiveUp();
      return timer_->Arm(now_ns + Typist::kStrokeNs);
    }
    untaken_ = false;
    waiting_.pop_front();
    if (!down && !given_[key]) continue;  // its press was dropped
    given_[key] = down;
    next_ns_ = now_ns + Typist::kStrokeNs;
    sink_.Key(key, down);
  }
}

void KeyPacer::GiveUp() {
  untaken_ = false;
  waiting_.clear();
  pressed_.reset();
  for (uint16_t key = 0; key < given_.size(); ++key)
    if (given_[key]) sink_.Key(key, false);
  given_.reset();
}

}  // namespace nacre::display
