#pragma once
// For the tests of the control socket: a VM that does what the test says, and a client that sends any bytes.

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <mutex>
#include <string>
#include <vector>

#include "control/json_rpc.h"
#include "control/unix_socket.h"
#include "control/vm.h"

namespace nacre::control {

/// A folder of its own for each test, for short socket paths.
class ScratchFolder {
 public:
  ScratchFolder() {
    std::string name = testing::TempDir() + "nacre-control-XXXXXX";
    EXPECT_NE(mkdtemp(name.data()), nullptr);
    path_ = name;
  }
  ~ScratchFolder() {
    std::error_code error;
    std::filesystem::remove_all(path_, error);
  }
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;
  std::string operator/(std::string_view name) const { return path_ + "/" + std::string(name); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

class FakeVm final : public Vm {
 public:
  VmInfo Info() const override {
    return {.name = "fake",
            .state = state_,
            .engine = engine_,
            .cpu_model = "x86-64-v3",
            .memory_bytes = 1 << 20,
            .version = "1"};
  }
  void Pause(Done<void> done) override {
    state_ = machine::RunState::kPaused;
    done({});
  }
  void Resume(Done<void> done) override {
    state_ = machine::RunState::kRunning;
    done({});
  }
  void PressPowerButton() override { ++power_; }
  Status NewGeneration() override { return {}; }
  void Stop() override { ++stops_; }
  /// kvm is refused; all others take until Release where `holds` is set.
  void SwitchEngine(machine::EngineKind kind, Done<EngineSwitch> done) override {
    if (kind == machine::EngineKind::kKvm) return done(Fail("no KVM here"));
    const std::lock_guard lock(mutex_);
    auto carry_out = [this, kind, done = std::move(done)] {
      done(EngineSwitch{engine_.exchange(kind), std::chrono::microseconds(1500)});
    };
    if (holds) return held_.push_back(std::move(carry_out));
    carry_out();
  }
  void Statistics(Done<std::vector<machine::StatisticsSection>> done) override {
    if (ended) return done(std::unexpected(Error{"the guest has ended", ECANCELED}));
    done(std::vector<machine::StatisticsSection>(statistics_sections, {"cpu \xff", {{"name", ~uint64_t{0}}}}));
  }
  void Registers(Done<std::vector<std::string>> done) override {
    if (ended) return done(std::unexpected(Error{"the guest has ended", ECANCELED}));
    done(std::vector<std::string>{"\n  CPU 0: RIP f000:fff0\n"});
  }
  void Screenshot(const std::string& path, Done<ScreenSize> done) override {
    if (ended) return done(std::unexpected(Error{"the guest has ended", ECANCELED}));
    const std::lock_guard lock(mutex_);
    screenshot_ = path;
    done(ScreenSize{640, 480});
  }
  void Snapshot(const std::string& path, Done<SnapshotReport> done) override {
    if (ended) return done(std::unexpected(Error{"the guest has ended", ECANCELED}));
    done(SnapshotReport{std::chrono::microseconds(2500), std::chrono::milliseconds(80), 4096, path.substr(1)});
  }
  void Fork(const std::string& path, Done<SnapshotReport> done) override { Snapshot(path + "+", std::move(done)); }
  void PressKeys(std::vector<display::KeyStroke> strokes, Done<void> done) override {
    if (ended) return done(std::unexpected(Error{"the guest has ended", ECANCELED}));
    const std::lock_guard lock(mutex_);
    strokes_ = std::move(strokes);
    done({});
  }

  std::optional<Agent> GuestAgent() override { return agent; }

  /// Carries out the switches that were asked for; how many.
  size_t Release() {
    std::vector<std::function<void()>> held;
    {
      const std::lock_guard lock(mutex_);
      held.swap(held_);
    }
    for (const auto& one : held) one();
    return held.size();
  }
  /// What was asked for last.
  std::string screenshot() const { return Locked(screenshot_); }
  std::vector<display::KeyStroke> strokes() const { return Locked(strokes_); }
  int power() const { return power_; }
  int stops() const { return stops_; }

  std::optional<Agent> agent;  ///< before any client comes
  std::atomic<bool> holds = false, ended = false;
  std::atomic<size_t> statistics_sections = 2;

 private:
  std::atomic<machine::RunState> state_ = machine::RunState::kRunning;
  std::atomic<machine::EngineKind> engine_ = machine::EngineKind::kJit;
  std::atomic<int> power_ = 0, stops_ = 0;
  template <typename T>
  T Locked(const T& value) const {
    const std::lock_guard lock(mutex_);
    return value;
  }

  mutable std::mutex mutex_;
  std::vector<std::function<void()>> held_;
  std::string screenshot_;
  std::vector<display::KeyStroke> strokes_;
};

/// Any bytes to the server, and its lines.
class RawClient {
 public:
  explicit RawClient(const std::string& path) {
    auto fd = ConnectSocket(path);
    EXPECT_TRUE(fd) << fd.error().message;
    if (fd) fd_ = std::move(*fd);
  }
  bool Send(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t sent = send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (sent < 0) return false;
      bytes.remove_prefix(static_cast<size_t>(sent));
    }
    return true;
  }
  /// How many bytes went before the server took no more.
  size_t SendWhatFits(std::string_view bytes) {
    size_t all = 0;
    while (all < bytes.size()) {
      const ssize_t sent = send(fd_.get(), bytes.data() + all, bytes.size() - all, MSG_NOSIGNAL | MSG_DONTWAIT);
      if (sent < 0) break;
      all += static_cast<size_t>(sent);
    }
    return all;
  }
  void EndInput() { shutdown(fd_.get(), SHUT_WR); }
  void Close() { fd_.Close(); }
  /// "" at the end, and after `patience_ms` without a line (which fails the test unless told not to).
  std::string Line(int patience_ms = 20000, bool must_come = true) {
    for (;;) {
      if (const size_t end = in_.find('\n'); end != std::string::npos) {
        std::string line = in_.substr(0, end);
        in_.erase(0, end + 1);
        return line;
      }
      pollfd fd{fd_.get(), POLLIN, 0};
      if (poll(&fd, 1, patience_ms) <= 0) {
        EXPECT_FALSE(must_come) << "no line came";
        return "";
      }
      char bytes[16384];
      const ssize_t got = recv(fd_.get(), bytes, sizeof(bytes), 0);
      if (got <= 0) return "";
      in_.append(bytes, static_cast<size_t>(got));
    }
  }
  Json Answer() {
    const std::string line = Line();
    const auto json = ParseJson(line);
    EXPECT_TRUE(json) << line;
    return json ? *json : Json::object();
  }
  Json Ask(std::string_view request) {
    EXPECT_TRUE(Send(std::string(request) + "\n"));
    return Answer();
  }
  /// A method without parameters.
  Json Call(std::string_view method) { return Ask(fmt::format(R"({{"jsonrpc":"2.0","method":"{}","id":1}})", method)); }
  int CodeOf(std::string_view request) {
    const Json answer = Ask(request);
    return answer.contains("error") ? answer["error"]["code"].get<int>() : 0;
  }

 private:
  Fd fd_;
  std::string in_;
};

}  // namespace nacre::control
