#pragma once
// The host's end of a named port of virtio-serial, for a program of this process that speaks with one of the guest.
//
// Threads: the CharBackend side under the device lock, and so are the handlers. Send, open and SetHandlers: any thread.

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <string>

#include "base/char_backend.h"
#include "base/scheduler.h"

namespace nacre::agent {

class PortStream final : public CharBackend {
 public:
  struct Handlers {
    std::function<void(std::span<const uint8_t> bytes)> received;  ///< from the guest
    std::function<void(bool open)> opened;                         ///< a program of the guest has the port, or no more
  };
  /// What waits for the guest at most; above it Send refuses.
  static constexpr size_t kMaxWaiting = 4 * 1024 * 1024;

  explicit PortStream(Scheduler& scheduler) : scheduler_(scheduler) {}

  /// None of the former handlers runs once this has returned. They must not call SetHandlers.
  void SetHandlers(Handlers handlers);
  bool open() const { return open_; }
  /// In order. False: nobody in the guest has the port open, or too much waits; then nothing is sent.
  bool Send(std::string_view bytes);

  void Write(std::span<const uint8_t> bytes) override;
  void RoomAvailable() override { Flush(); }
  void SetReceiver(CharReceiver* receiver) override;
  void SetOpen(bool open) override;

 private:
  void Flush();

  Scheduler& scheduler_;
  CharReceiver* receiver_ = nullptr;  // device lock
  bool flushing_ = false;             // device lock
  std::atomic<bool> open_ = false;
  std::mutex handlers_mutex_;
  Handlers handlers_;
  std::mutex mutex_;
  std::string waiting_;  ///< from sent_ on
  size_t sent_ = 0;
  bool posted_ = false;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);  ///< for posted work that outlives this
};

}  // namespace nacre::agent
