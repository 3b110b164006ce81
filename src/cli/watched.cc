#include "cli/watched.h"

#include <fmt/core.h>
#include <unistd.h>

#include <atomic>

namespace nacre::cli {

namespace {
std::atomic<bool> interrupted{false};
}

Watched::Watched(std::string what) : what_(std::move(what)), terminal_(isatty(STDERR_FILENO) == 1) {
  struct sigaction action {};
  action.sa_handler = [](int) { interrupted = true; };
  for (size_t i = 0; i < kSignals.size(); ++i) sigaction(kSignals[i], &action, &before_[i]);
}

Watched::~Watched() {
  for (size_t i = 0; i < kSignals.size(); ++i) sigaction(kSignals[i], &before_[i], nullptr);
  if (!shown_.empty()) fmt::print(stderr, "\r\x1b[K");
}

bool Watched::Show(const std::string& what, uint64_t done, uint64_t total) {
  if (terminal_) {
    const int percent =
        total == 0 ? 100 : static_cast<int>(static_cast<double>(done) / static_cast<double>(total) * 100);
    std::string line = fmt::format("{}: {} %", what, percent);
    if (line != shown_) {
      fmt::print(stderr, "\r{}\x1b[K", line);
      fflush(stderr);
      shown_ = std::move(line);
    }
  }
  return !interrupted.load();
}

}  // namespace nacre::cli
