#pragma once
// For tests: a guest that answers on a port as a script says, byte by byte if need be, with a device lock of its own.

#include <gtest/gtest.h>

#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "agent/port_stream.h"
#include "base/event_loop.h"

namespace nacre::agent {

class FakeGuest final : public CharReceiver {
 public:
  FakeGuest() : loop_(std::move(*EventLoop::Create(lock_))), port(*loop_) {
    port.SetReceiver(this);
    thread_ = std::thread([this] { loop_->Run(); });
  }
  ~FakeGuest() override {
    loop_->Stop();
    thread_.join();
    const std::lock_guard lock(lock_);
    port.SetReceiver(nullptr);
  }

  /// Runs `work` as a device does.
  void Locked(const std::function<void()>& work) {
    const std::lock_guard lock(lock_);
    work();
  }
  void Open(bool open = true) {
    Locked([&] { port.SetOpen(open); });
  }
  void Say(std::string_view text) { port.Write({reinterpret_cast<const uint8_t*>(text.data()), text.size()}); }
  std::vector<std::string> heard() {
    const std::lock_guard lock(lock_);
    return heard_;
  }

  size_t Room() override { return room; }
  void Receive(std::span<const uint8_t> bytes) override {
    EXPECT_LE(bytes.size(), room);
    for (const uint8_t byte : bytes) {
      if (byte == '\n') {
        const std::string line = std::exchange(line_, {});
        heard_.push_back(line);
        if (answer) answer(line);
      } else {
        line_ += static_cast<char>(byte);
      }
    }
  }

 private:
  std::mutex lock_;
  std::unique_ptr<EventLoop> loop_;
  std::string line_;
  std::vector<std::string> heard_;

 public:
  PortStream port;
  size_t room = 100;
  /// Called with each line of the host, under the device lock.
  std::function<void(const std::string& line)> answer;

 private:
  std::thread thread_;
};

}  // namespace nacre::agent
