#include "cli/engine_tour.h"

#include <fmt/format.h>

#include <algorithm>

namespace nacre::cli {

EngineTour::EngineTour(machine::Machine& machine, const EngineTourOptions& options)
    : machine_(machine), options_(options), thread_([this] { Loop(); }) {}

EngineTour::~EngineTour() { Stop(); }

void EngineTour::Stop() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void EngineTour::Loop() {
  std::unique_lock lock(mutex_);
  for (uint64_t i = 0; options_.most == 0 || i < options_.most; ++i) {
    if (changed_.wait_for(lock, options_.every, [this] { return stop_; })) return;
    done_ = false;
    lock.unlock();
    using machine::Machine;
    machine_.RequestEngine(options_.stops[i % options_.stops.size()], [this](Result<Machine::EngineSwitch> result) {
      {
        const std::lock_guard told(mutex_);
        done_ = true;
        if (result)
          pauses_.push_back(result->pause);
        else if (result.error().code != ECANCELED)
          failures_.push_back(result.error().message);
      }
      changed_.notify_all();
    });
    lock.lock();
    changed_.wait(lock, [this] { return done_ || stop_; });
  }
}

std::string EngineTour::Report() const {
  const std::lock_guard lock(mutex_);
  std::string text = fmt::format("engine switches:\n  {:<40} {:>16}\n", "switches", pauses_.size());
  auto sorted = pauses_;
  std::ranges::sort(sorted);
  const auto us = [](std::chrono::nanoseconds time) { return time.count() / 1000; };
  if (!sorted.empty()) {
    text += fmt::format("  {:<40} {:>16}\n", "pause, median, us", us(sorted[sorted.size() / 2]));
    text += fmt::format("  {:<40} {:>16}\n", "pause, longest, us", us(sorted.back()));
  }
  for (const std::string& failure : failures_) text += fmt::format("  failed: {}\n", failure);
  return text;
}

}  // namespace nacre::cli
