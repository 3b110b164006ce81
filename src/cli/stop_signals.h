#pragma once
// Signals of the process that runs a machine. Block and Watch on the main thread.

#include <atomic>
#include <memory>
#include <thread>

#include "base/fd.h"
#include "base/result.h"
#include "machine/machine.h"

namespace nacre::cli {

/// Turns SIGINT, SIGTERM and SIGHUP into Machine::Stop while it lives, and follows the terminal (SIGCONT, SIGWINCH).
/// The signals stay blocked afterwards: the process is about to exit, and restoring the terminal must not be
/// interrupted.
class StopSignals {
 public:
  /// Before any thread is made, so that all inherit the mask.
  static void Block();
  static Result<std::unique_ptr<StopSignals>> Watch(machine::Machine& machine);
  ~StopSignals();
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;
  /// The signal that asked to stop, 0 if none did.
  int received() const { return received_; }

 private:
  explicit StopSignals(machine::Machine& machine) : machine_(machine) {}
  void Loop();

  machine::Machine& machine_;
  Fd signals_, end_;
  std::atomic<int> received_ = 0;
  std::thread thread_;
};

/// The size of the terminal on standard input, if there is one, to the virtio console.
void PassTerminalSize(machine::Machine& machine);

/// Waits; true if a signal asks to stop before the time is over. The signals are blocked.
bool StopSignalWithin(int64_t timeout_ms);

}  // namespace nacre::cli
