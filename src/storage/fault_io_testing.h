#pragma once
// An AsyncIo for tests that spoils chosen operations of a real one: short transfers and errors.

#include <deque>
#include <functional>
#include <memory>
#include <optional>

#include "storage/async_io.h"

namespace nacre::storage {

class FaultIo : public AsyncIo {
 public:
  explicit FaultIo(std::unique_ptr<AsyncIo> real) : real_(std::move(real)) {}

  /// Asked for each operation: a result to give without doing it, or nothing to let it through. It may
  /// shorten the operation by changing its vectors' count.
  std::function<std::optional<int64_t>(IoOperation&)> fault;
  /// While set, nothing finishes (a stuck host).
  bool hold = false;
  unsigned queued = 0;

  void Queue(IoOperation& operation) override {
    ++queued;
    if (fault) {
      if (const auto result = fault(operation)) {
        spoiled_.emplace_back(&operation, *result);
        return;
      }
    }
    real_->Queue(operation);
  }
  void Submit() override {
    if (hold) return;
    real_->Submit();
    Spoil();
  }
  void HandleEvents() override {
    if (hold) return;
    real_->HandleEvents();
    Spoil();
  }
  void Wait() override {
    if (!spoiled_.empty()) return Spoil();
    real_->Wait();
  }
  int event_fd() const override { return real_->event_fd(); }
  std::string_view engine_name() const override { return "faults"; }

 private:
  void Spoil() {
    while (!spoiled_.empty()) {
      auto [operation, result] = spoiled_.front();
      spoiled_.pop_front();
      operation->Finished(result);
    }
  }

  std::unique_ptr<AsyncIo> real_;
  std::deque<std::pair<IoOperation*, int64_t>> spoiled_;
};

}  // namespace nacre::storage
