#pragma once
// `--switch-engine`: the guest changes its engine again and again while it runs, for tests and measurements.

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "cli/run_options.h"
#include "machine/machine.h"

namespace nacre::cli {

class EngineTour {
 public:
  /// Begins at once; `machine` must outlive it.
  EngineTour(machine::Machine& machine, const EngineTourOptions& options);
  /// Ends the tour; a switch that has begun is waited for only while the machine runs.
  ~EngineTour();
  EngineTour(const EngineTour&) = delete;
  EngineTour& operator=(const EngineTour&) = delete;

  /// After Stop: how many switches, how long the guest stood still, what failed.
  std::string Report() const;
  void Stop();

 private:
  void Loop();

  machine::Machine& machine_;
  const EngineTourOptions options_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  bool stop_ = false, done_ = false;
  std::vector<std::chrono::nanoseconds> pauses_;
  std::vector<std::string> failures_;
  std::thread thread_;
};

}  // namespace nacre::cli
