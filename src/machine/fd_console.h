#pragma once
// The far end of the guest's console on host file descriptors: terminal, pipe or file. Input waits in the kernel until
// the guest has room, so that none is lost; its end does not end the guest. On a terminal Ctrl-] leaves, even when the
// guest reads nothing. Output is collected and written by the event loop. Under the device lock.

#include <functional>
#include <memory>
#include <vector>

#include "base/char_backend.h"
#include "base/event_loop.h"
#include "base/fd.h"
#include "base/result.h"

namespace nacre::machine {

class FdConsole final : public CharBackend {
 public:
  struct Options {
    int input = -1;         ///< not owned; -1: none
    int output = -1;        ///< not owned; -1: thrown away
    bool terminal = false;  ///< look for Ctrl-] in the input
    std::function<void()> leave = {};
  };
  static constexpr uint8_t kLeaveKey = 0x1d;  ///< Ctrl-]

  static Result<std::unique_ptr<FdConsole>> Create(const Options& options, EventLoop& loop);

  void Write(std::span<const uint8_t> bytes) override;
  void RoomAvailable() override;
  void SetReceiver(CharReceiver* receiver) override;

  /// Writes what is left, waiting for a slow reader (not for a stuck one).
  void Flush();

 private:
  /// A terminal is read ahead so far; what comes above it is lost, as on a real line.
  static constexpr size_t kReadAhead = 64 * 1024;
  /// Above it the guest is held back.
  static constexpr size_t kMaxOutput = 1024 * 1024;

  FdConsole(const Options& options, EventLoop& loop) : options_(options), loop_(loop) {}
  Status WatchInput();
  void PostOnce(bool& posted, void (FdConsole::*work)());
  void ReadInput();
  void Deliver();
  void UpdateInputWatch();
  void WriteSome();
  bool WriteOnce();

  const Options options_;
  EventLoop& loop_;
  CharReceiver* receiver_ = nullptr;
  std::unique_ptr<FdWatch> input_watch_, output_watch_;
  bool input_ended_ = false;
  bool input_is_file_ = false;  ///< cannot be watched, is always ready
  bool output_ended_ = false;
  bool read_posted_ = false, write_posted_ = false;
  std::vector<uint8_t> input_;  ///< read and not delivered yet
  std::vector<uint8_t> output_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);  ///< for posted work that outlives this
};

}  // namespace nacre::machine
