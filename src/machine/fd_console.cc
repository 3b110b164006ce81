#include "machine/fd_console.h"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

namespace nacre::machine {

namespace {

constexpr size_t kChunk = 4096;  // a pipe that is ready for writing takes this much without blocking (pipe(7))

bool Writable(int fd, int timeout_ms) {
  pollfd entry{fd, POLLOUT, 0};
  return poll(&entry, 1, timeout_ms) > 0;
}

}  // namespace

Result<std::unique_ptr<FdConsole>> FdConsole::Create(const Options& options, EventLoop& loop) {
  std::unique_ptr<FdConsole> console(new FdConsole(options, loop));
  NACRE_TRY_STATUS(console->WatchInput());
  if (options.output >= 0) {
    auto watch = loop.Watch(options.output, EPOLLOUT, [raw = console.get()](uint32_t) { raw->WriteSome(); });
    // A file cannot be watched and needs no watch.
    if (watch) {
      console->output_watch_ = std::move(*watch);
      console->output_watch_->SetEvents(0);
    }
  } else {
    console->output_ended_ = true;
  }
  return console;
}

Status FdConsole::WatchInput() {
  if (options_.input < 0) {
    input_ended_ = true;
    return {};
  }
  auto watch = loop_.Watch(options_.input, EPOLLIN, [this](uint32_t) { ReadInput(); });
  if (watch) {
    input_watch_ = std::move(*watch);
    input_watch_->SetEvents(0);
  } else if (watch.error().code == EPERM) {
    input_is_file_ = true;
  } else if (watch.error().code == EBADF) {  // the shell closed it: `nacre run <&-`
    input_ended_ = true;
  } else {
    return Context(std::move(watch).error(), "console input");
  }
  return {};
}

void FdConsole::PostOnce(bool& posted, void (FdConsole::*work)()) {
  if (posted) return;
  posted = true;
  loop_.Post([this, work, &posted, alive = std::weak_ptr(alive_)] {
    if (alive.expired()) return;
    posted = false;
    (this->*work)();
  });
}

void FdConsole::SetReceiver(CharReceiver* receiver) {
  receiver_ = receiver;
  UpdateInputWatch();
}

void FdConsole::RoomAvailable() { PostOnce(read_posted_, &FdConsole::Deliver); }

/// Terminals are read whatever the guest does; others only when it has room for what comes.
void FdConsole::UpdateInputWatch() {
  if (input_ended_) return;
  const bool want = options_.terminal || (receiver_ && input_.empty() && receiver_->Room() > 0);
  if (input_watch_)
    input_watch_->SetEvents(want ? EPOLLIN : 0u);
  else if (input_is_file_ && want)
    PostOnce(read_posted_, &FdConsole::ReadInput);
}

void FdConsole::ReadInput() {
  if (input_ended_) return;
  uint8_t bytes[kChunk];
  const ssize_t got = read(options_.input, bytes, sizeof(bytes));
  if (got < 0 && (errno == EINTR || errno == EAGAIN)) return UpdateInputWatch();
  if (got <= 0) {
    input_ended_ = true;
    input_watch_.reset();
    return;
  }
  size_t count = static_cast<size_t>(got);
  bool leave = false;
  if (options_.terminal) {
    const auto* key = std::find(bytes, bytes + count, kLeaveKey);
    leave = key != bytes + count;
    count = std::min(static_cast<size_t>(key - bytes), kReadAhead - std::min(kReadAhead, input_.size()));
  }
  input_.insert(input_.end(), bytes, bytes + count);
  Deliver();
  if (leave && options_.leave) options_.leave();
}

void FdConsole::Deliver() {
  while (receiver_ && !input_.empty()) {
    const size_t count = std::min(receiver_->Room(), input_.size());
    if (count == 0) break;
    receiver_->Receive({input_.data(), count});
    input_.erase(input_.begin(), input_.begin() + static_cast<std::ptrdiff_t>(count));
  }
  UpdateInputWatch();
}

void FdConsole::Write(std::span<const uint8_t> bytes) {
  if (output_ended_) return;
  if (output_.size() + bytes.size() > kMaxOutput) {
    // The reader is slow: hold the guest back for a moment, then lose what does not fit.
    for (int i = 0; i < 10 && output_.size() + bytes.size() > kMaxOutput; ++i)
      if (Writable(options_.output, 100)) WriteOnce();
    if (output_.size() + bytes.size() > kMaxOutput) return;
  }
  output_.insert(output_.end(), bytes.begin(), bytes.end());
  PostOnce(write_posted_, &FdConsole::WriteSome);
}

void FdConsole::WriteSome() {
  while (!output_.empty() && !output_ended_) {
    if (output_watch_ && !Writable(options_.output, 0)) break;
    if (!WriteOnce()) break;
  }
  if (output_watch_) output_watch_->SetEvents(output_.empty() || output_ended_ ? 0u : EPOLLOUT);
}

/// False: nothing can be written now.
bool FdConsole::WriteOnce() {
  const ssize_t done = write(options_.output, output_.data(), std::min(output_.size(), kChunk));
  if (done < 0 && errno == EINTR) return true;
  if (done < 0 && errno == EAGAIN) return false;
  if (done < 0) {  // the reader is gone, or the disk is full: the guest goes on without
    output_ended_ = true;
    output_.clear();
    return false;
  }
  output_.erase(output_.begin(), output_.begin() + done);
  return true;
}

void FdConsole::Flush() {
  while (!output_.empty() && !output_ended_) {
    if (output_watch_ && !Writable(options_.output, 5000)) return;
    WriteOnce();
  }
}

}  // namespace nacre::machine
