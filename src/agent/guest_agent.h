#pragma once
// A client of the QEMU guest agent, the program that Debian and others have as qemu-guest-agent: one JSON object a line
// over the port org.qemu.guest_agent.0 (QEMU Guest Agent Protocol Reference). The guest is hostile: what it answers is
// bounded in size, depth and time, and what comes unasked is thrown away.
//
// Threads: Call from any; `done` runs on the client's own thread, or on the caller's where nothing was asked. The
// thread starts with the first call.

#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <string>
#include <thread>

#include "agent/port_stream.h"
#include "base/result.h"

namespace nacre::agent {

class GuestAgent {
 public:
  static constexpr std::string_view kPortName = "org.qemu.guest_agent.0";
  static constexpr size_t kMaxQueue = 64;
  /// The agent captures 16 MiB of each of a command's two outputs and gives them as Base64.
  static constexpr size_t kMaxAnswerBytes = 48 * 1024 * 1024;
  static constexpr int kMaxDepth = 16;

  struct Request {
    std::string command;                         ///< "guest-ping"
    std::string arguments = {};                  ///< the text of a JSON object, or empty
    std::chrono::milliseconds patience{60'000};  ///< from the moment when its turn comes
    size_t max_answer_bytes = 1024 * 1024;
  };
  /// The JSON text of what the agent returned. Errors: the agent's own text (code EREMOTEIO); ENOTCONN: no agent has
  /// the port open; ETIMEDOUT; EPROTO: no sensible answer; ECANCELED: the VM ends.
  using Done = std::function<void(Result<std::string>)>;

  /// `port` must outlive it.
  explicit GuestAgent(PortStream& port);
  ~GuestAgent();
  GuestAgent(const GuestAgent&) = delete;
  GuestAgent& operator=(const GuestAgent&) = delete;

  /// Something in the guest has the port open.
  bool connected() const { return port_.open(); }
  /// One after another, in their order.
  void Call(Request request, Done done);
  /// Calls that wait, and all later ones, are answered with ECANCELED.
  void Cancel();

 private:
  using Clock = std::chrono::steady_clock;
  struct Job {
    Request request;
    Done done;
  };
  void Work();
  Result<std::string> Carry(const Request& request);
  Status Synchronize(Clock::time_point deadline);
  /// A line of the guest, its end not included, of at most `max_bytes`.
  Result<std::string> ReadLine(Clock::time_point deadline, size_t max_bytes);
  /// An answer of at most `room` bytes may come from now on.
  Status Send(std::string_view text, size_t room);
  void Received(std::span<const uint8_t> bytes);

  PortStream& port_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Job> jobs_;
  std::string inbox_;      ///< while somebody reads
  size_t searched_ = 0;    ///< of inbox_, known to hold no end of line
  size_t inbox_room_ = 0;  ///< 0: nobody reads
  bool overflow_ = false;  ///< more came than there was room for
  bool seeking_ = false;   ///< only what comes from the last byte 0xff on counts
  bool closed_ = false;    ///< the port was, since the request was sent
  bool stop_ = false;
  std::thread thread_;

  // Of the client's thread.
  bool synchronized_ = false;
  uint64_t next_sync_ = 1;
};

}  // namespace nacre::agent
