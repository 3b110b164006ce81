#pragma once
// What `nacre exec` and `nacre cp` do with a guest, by the guest agent behind a VM's control socket
// (docs/guest-agent.md). One thread. What the guest answers is bounded by the VM's process (agent/guest_agent.h).

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"

namespace nacre::control {
class Client;
}

namespace nacre::cli {

class GuestSession {
 public:
  using Clock = std::chrono::steady_clock;
  using Sink = std::function<Status(std::string_view bytes)>;
  struct Program {
    std::vector<std::string> words, environment = {};
    /// Yields standard input piece by piece, empty at its end; nothing: there is none.
    std::function<Result<std::string>()> input = {};
    std::optional<Clock::time_point> deadline = {};
    const std::function<bool()>* interrupted = nullptr;  ///< true: end it
  };
  struct Ended {
    enum class How : uint8_t { kExited, kSignalled, kTimedOut, kInterrupted } how = How::kExited;
    int number = 0;  ///< exit status, or signal
    std::string out, err;
    bool truncated = false;
  };

  /// `vm`: a VM's name or the path of a control socket. Waits so long for the VM and its agent.
  static Result<GuestSession> Open(const std::string& vm, std::chrono::milliseconds patience);
  GuestSession(GuestSession&&) noexcept;
  ~GuestSession();

  Result<Ended> Run(const Program& program);
  /// As Run, for a program that must succeed; its standard output.
  Result<std::string> Ask(std::vector<std::string> words);

  /// Gives the file's bytes to `take`, piece by piece.
  Status ReadFile(const std::string& path, const Sink& take);
  /// `produce` gives the bytes to what it gets, piece by piece.
  Status WriteFile(const std::string& path, const std::function<Status(const Sink&)>& produce);
  /// A new, empty file of the guest that only its root may read, for which the caller must call Remove.
  Result<std::string> MakeTemporary();
  void Remove(const std::string& path);

 private:
  explicit GuestSession(std::unique_ptr<control::Client> client);
  Result<int64_t> Start(const Program& program);
  Status Kill(int64_t pid);

  std::unique_ptr<control::Client> client_;
};

}  // namespace nacre::cli
