#pragma once
// The console of a VM that runs without a terminal: everybody at its socket sees what the guest prints, first what it
// printed before, and may type. It is written to a log of bounded size as well.
//
// Threads: one of its own does everything and never waits for a watcher; Create and the destructor on any one thread.

#include <atomic>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/fd.h"
#include "base/result.h"
#include "control/unix_socket.h"
#include "lifecycle/vm_log.h"

namespace nacre::control {

class ConsoleHub {
 public:
  static constexpr size_t kMaxWatchers = 16;
  /// What a new watcher is shown of the past.
  static constexpr size_t kScrollbackBytes = 256 * 1024;
  /// A watcher that lets more than this wait is hung up on.
  static constexpr size_t kMaxPendingBytes = kScrollbackBytes + 1024 * 1024;
  /// Typed and not taken by the guest: no more is read from watchers.
  static constexpr size_t kMaxTypedBytes = 16 * 1024;

  /// Listens at `socket`. `guest` is one end of a stream socket pair; the machine has the other.
  static Result<std::unique_ptr<ConsoleHub>> Create(const std::string& socket, const std::filesystem::path& log,
                                                    Fd guest);
  /// Waits, if the machine's end is closed, until what was printed is in the log and, as far as they take it at once,
  /// with the watchers.
  ~ConsoleHub();
  ConsoleHub(const ConsoleHub&) = delete;
  ConsoleHub& operator=(const ConsoleHub&) = delete;

 private:
  struct Watcher {
    Fd fd;
    std::string out;
    size_t sent = 0;
    bool types = true;  ///< it has not ended its input
    bool broken = false;
  };

  ConsoleHub(ListeningSocket socket, lifecycle::BoundedLog log, Fd guest)
      : socket_(std::move(socket)), log_(std::move(log)), guest_(std::move(guest)) {}
  void Loop();
  void Poll();
  void Accept();
  void ReadGuest();
  void WriteGuest();
  void ReadFrom(Watcher& watcher);
  static void Flush(Watcher& watcher);

  ListeningSocket socket_;
  lifecycle::BoundedLog log_;
  Fd guest_;
  Fd wake_;  ///< eventfd
  std::vector<std::unique_ptr<Watcher>> watchers_;
  std::string scrollback_;
  std::string typed_;  ///< for the guest
  bool accept_failed_ = false;
  bool guest_ended_ = false;
  std::atomic<bool> stop_ = false;
  std::thread thread_;
};

}  // namespace nacre::control
