#pragma once
// The user's terminal in raw mode while a guest has it, and its way back on every exit: destruction, exit(), fatal
// signals (SIGSEGV, SIGABRT, ...), and stop and continue by the shell. Process-wide: one at a time; made and destroyed
// on the main thread.

#include <cstdint>
#include <memory>
#include <optional>

#include "base/result.h"

namespace nacre::cli {

class RawTerminal {
 public:
  /// Installs the handlers of fatal signals. Before an engine is made: engines put theirs in front and pass on what is
  /// not theirs.
  static void InstallHandlers();
  /// Whether standard input is a terminal, and whether this process may read from it (it is in the foreground).
  static bool IsTerminal();
  static bool IsForeground();
  struct Size {
    uint16_t columns = 0, rows = 0;
  };
  /// Of the terminal on standard input; nothing when there is none, or it does not know.
  static std::optional<Size> CurrentSize();
  /// Null when standard input is no terminal, or belongs to another job's foreground (then it is left alone).
  static Result<std::unique_ptr<RawTerminal>> Enter();
  ~RawTerminal();
  RawTerminal(const RawTerminal&) = delete;
  RawTerminal& operator=(const RawTerminal&) = delete;

  /// Any thread: raw mode again, after the shell continued the process (SIGCONT).
  static void Reenter();

 private:
  RawTerminal() = default;
};

}  // namespace nacre::cli
