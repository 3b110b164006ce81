#pragma once
// Programs that the guest agent started, and what they have written until somebody fetches it: the agent tells the end
// and the output of a program once, all at a time. Threads: any; `done` as GuestAgent's.

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "agent/guest_agent.h"

namespace nacre::agent {

class ExecJobs {
 public:
  /// Of ended programs, kept until more come.
  static constexpr size_t kMaxKept = 16;
  static constexpr size_t kMaxKeptBytes = 64 * 1024 * 1024;

  struct Program {
    std::vector<std::string> words;             ///< the program, by the guest's PATH, and its arguments
    std::vector<std::string> environment = {};  ///< "NAME=VALUE"; empty: the agent's
    std::string input = {};                     ///< standard input, at most what one request holds
    bool has_input = false;                     ///< false: /dev/null
  };
  struct Status {
    bool exited = false;
    std::optional<int> exit_code, signal;  ///< of what has exited, one of them
    size_t out_bytes = 0, err_bytes = 0;
    bool out_truncated = false, err_truncated = false;  ///< the agent keeps 16 MiB of each
  };
  enum class Stream : uint8_t { kOut, kErr };

  /// `agent` must outlive it and whatever it was asked.
  explicit ExecJobs(GuestAgent& agent) : agent_(agent) {}

  /// The number by which the guest knows the program.
  void Start(const Program& program, std::function<void(Result<int64_t>)> done);
  void Poll(int64_t pid, std::function<void(Result<Status>)> done);
  /// Of an ended program, from `offset` on, at most `most` bytes; empty at the end.
  Result<std::string> Output(int64_t pid, Stream stream, size_t offset, size_t most) const;

 private:
  struct Ended {
    uint64_t order;
    Status status;
    std::string out, err;
  };
  /// Shared with answers that may come after this object's end.
  struct Kept {
    mutable std::mutex mutex;
    std::map<int64_t, Ended> ended;
    uint64_t next_order = 0;
    void Add(int64_t pid, Ended one);
  };

  GuestAgent& agent_;
  const std::shared_ptr<Kept> kept_ = std::make_shared<Kept>();
};

}  // namespace nacre::agent
