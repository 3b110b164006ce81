#include "display/typist.h"

#include <utility>

namespace nacre::display {

Typist::Typist(InputSink& sink, Scheduler& scheduler)
    : sink_(sink), scheduler_(scheduler), timer_(scheduler.CreateTimer([this] { Continue(); })) {}

void Typist::Type(std::vector<KeyStroke> strokes, Done done) {
  jobs_.push_back({std::move(strokes), std::move(done)});
  if (jobs_.size() > 1) return;
  last_ns_ = scheduler_.NowNs();
  Continue();
}

void Typist::Continue() {
  while (!jobs_.empty()) {
    Job& job = jobs_.front();
    const int64_t now_ns = scheduler_.NowNs();
    if (sink_.keys_taken()) {
      if (job.sent == job.strokes.size()) {
        Finish({});
        continue;
      }
      const KeyStroke stroke = job.strokes[job.sent++];
      sink_.Key(stroke.key, stroke.down);
      if (stroke.down)
        held_.insert(stroke.key);
      else
        held_.erase(stroke.key);
      last_ns_ = now_ns;
    } else if (now_ns - last_ns_ >= kPatienceNs) {
      Finish(
          Fail("the guest does not read its keyboard: {} of {} key strokes were given", job.sent, job.strokes.size()));
      continue;
    }
    timer_->Arm(now_ns + kStrokeNs);
    return;
  }
}

void Typist::Finish(const Status& status) {
  for (const uint16_t key : std::exchange(held_, {})) sink_.Key(key, false);
  const Done done = std::move(jobs_.front().done);
  jobs_.pop_front();
  last_ns_ = scheduler_.NowNs();
  done(status);
}

void Typist::Cancel() {
  timer_->Cancel();
  while (!jobs_.empty()) Finish(std::unexpected(Error{"the guest has ended", ECANCELED}));
}

}  // namespace nacre::display
