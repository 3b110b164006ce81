#pragma once
// Types for somebody who is not there: strokes one after another, as fast as the guest takes them, so that none is
// dropped. Under the device lock.

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <set>
#include <vector>

#include "base/result.h"
#include "base/scheduler.h"
#include "display/input.h"
#include "display/keys.h"

namespace nacre::display {

class Typist {
 public:
  /// Between strokes, of guest time: firmware and boot loaders have small buffers of their own.
  static constexpr int64_t kStrokeNs = 10'000'000;
  /// How long the guest may leave a stroke untaken before the rest of its text is given up.
  static constexpr int64_t kPatienceNs = 30'000'000'000;

  using Done = std::function<void(Status)>;

  /// Both must outlive it.
  Typist(InputSink& sink, Scheduler& scheduler);
  /// Calls back whoever still waits, as Cancel.
  ~Typist() { Cancel(); }
  Typist(const Typist&) = delete;
  Typist& operator=(const Typist&) = delete;

  /// Behind what is being typed already. `done` once: when the guest has taken the last stroke, or with the reason why
  /// not. It may call Type, and no more.
  void Type(std::vector<KeyStroke> strokes, Done done);
  /// The machine ends: all are told so (ECANCELED).
  void Cancel();

 private:
  struct Job {
    std::vector<KeyStroke> strokes;
    Done done;
    size_t sent = 0;
  };
  void Continue();
  void Finish(const Status& status);

  InputSink& sink_;
  Scheduler& scheduler_;
  std::deque<Job> jobs_;
  std::set<uint16_t> held_;  ///< keys of the first job that are down
  int64_t last_ns_ = 0;      ///< of the last stroke
  std::unique_ptr<Timer> timer_;
};

}  // namespace nacre::display
