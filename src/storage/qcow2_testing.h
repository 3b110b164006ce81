#pragma once
// What the tests of disk images share: a folder that goes away, requests to wait for, an AsyncIo that notes writes.

#include <gtest/gtest.h>
#include <stdlib.h>

#include <cstring>
#include <filesystem>
#include <random>
#include <set>

#include "storage/async_io.h"
#include "storage/disk.h"

namespace nacre::storage {

class TempFolder {
 public:
  TempFolder() {
    path = testing::TempDir() + "nacre-image-XXXXXX";
    EXPECT_NE(nullptr, mkdtemp(path.data()));
  }
  ~TempFolder() { std::filesystem::remove_all(path); }
  TempFolder(const TempFolder&) = delete;
  std::string operator/(const std::string& name) const { return path + "/" + name; }
  std::string path;
};

class WaitedRequest : public DiskRequest {
 public:
  WaitedRequest(Kind what, uint64_t at, uint64_t size, std::vector<uint8_t> bytes = {}) : data(std::move(bytes)) {
    kind = what;
    offset = at;
    size_bytes = size;
    if (kind == Kind::kRead) data.resize(size);
    if (kind == Kind::kRead || kind == Kind::kWrite) vectors = {{data.data(), data.size()}};
  }
  void Done(int result) override {
    ++times_done;
    error = result;
  }
  std::vector<uint8_t> data;
  int times_done = 0;
  int error = -1;
};

/// Notes what is written and when it was synced, and does it.
class RecordingIo : public AsyncIo {
 public:
  struct Event {
    bool sync = false;
    bool done = false;
    bool extends = true;          ///< a hole does not make the file longer
    size_t done_at = ~size_t{0};  ///< so many events had been noted when it was done
    std::set<size_t> covered;     ///< sync: the events that were done when it started
    uint64_t offset = 0;
    std::vector<uint8_t> bytes;
  };
  explicit RecordingIo(std::unique_ptr<AsyncIo> real) : real_(std::move(real)) {}

  std::vector<Event> events;
  int fd = -1;  ///< the file to watch

  void Queue(IoOperation& operation) override {
    auto wrapped = std::make_unique<Wrapped>();
    wrapped->outer = &operation;
    wrapped->io = this;
    wrapped->kind = operation.kind;
    wrapped->fd = operation.fd;
    wrapped->allocate_mode = operation.allocate_mode;
    wrapped->vector_count = operation.vector_count;
    wrapped->vectors = operation.vectors;
    wrapped->offset = operation.offset;
    wrapped->size_bytes = operation.size_bytes;
    if (operation.fd == fd && operation.kind != IoOperation::Kind::kRead) Note(*wrapped);
    IoOperation& inner = *wrapped;
    running_.push_back(std::move(wrapped));
    real_->Queue(inner);
  }
  void Submit() override { real_->Submit(); }
  void HandleEvents() override { real_->HandleEvents(); }
  void Wait() override { real_->Wait(); }
  int event_fd() const override { return real_->event_fd(); }
  std::string_view engine_name() const override { return "recording"; }

 private:
  class Wrapped : public IoOperation {
   public:
    void Finished(int64_t result) override {
      if (event >= 0) {
        io->events[static_cast<size_t>(event)].done = true;
        io->events[static_cast<size_t>(event)].done_at = io->events.size();
      }
      IoOperation* operation = outer;
      std::erase_if(io->running_, [this](const auto& other) { return other.get() == this; });
      operation->Finished(result);
    }
    IoOperation* outer = nullptr;
    RecordingIo* io = nullptr;
    int64_t event = -1;
  };
  void Note(Wrapped& operation) {
    Event event{};
    event.sync = operation.kind == IoOperation::Kind::kSync;
    event.offset = operation.offset;
    if (operation.kind == IoOperation::Kind::kAllocate) {
      event.bytes.resize(operation.size_bytes);
      event.extends = false;
    }
    for (uint32_t i = 0; i < operation.vector_count && operation.kind == IoOperation::Kind::kWrite; ++i) {
      const auto* from = static_cast<const uint8_t*>(operation.vectors[i].iov_base);
      event.bytes.insert(event.bytes.end(), from, from + operation.vectors[i].iov_len);
    }
    if (event.sync)
      for (size_t i = 0; i < events.size(); ++i)
        if (events[i].done && !events[i].sync) event.covered.insert(i);
    operation.event = static_cast<int64_t>(events.size());
    events.push_back(std::move(event));
  }

  std::unique_ptr<AsyncIo> real_;
  std::vector<std::unique_ptr<Wrapped>> running_;
};

}  // namespace nacre::storage
