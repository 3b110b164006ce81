#pragma once
// Long work that somebody may watch and stop: while one of these lives, Ctrl-C ends the work in order, and a terminal
// shows how far it is. One at a time.

#include <signal.h>

#include <array>
#include <cstdint>
#include <functional>
#include <string>

namespace nacre::cli {

class Watched {
 public:
  explicit Watched(std::string what = "");
  ~Watched();
  Watched(const Watched&) = delete;
  Watched& operator=(const Watched&) = delete;

  /// Shows how much of `what` is done. False: the user wants an end.
  bool Show(const std::string& what, uint64_t done, uint64_t total);
  /// Of the one thing that this was made for.
  std::function<bool(uint64_t done, uint64_t total)> progress() {
    return [this](uint64_t done, uint64_t total) { return Show(what_, done, total); };
  }

 private:
  static constexpr std::array kSignals{SIGINT, SIGTERM, SIGHUP};
  const std::string what_;
  const bool terminal_;
  std::string shown_;
  std::array<struct sigaction, kSignals.size()> before_{};
};

}  // namespace nacre::cli
