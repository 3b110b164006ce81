#include "agent/port_stream.h"

#include <algorithm>
#include <utility>

namespace nacre::agent {

void PortStream::SetHandlers(Handlers handlers) {
  const std::lock_guard lock(handlers_mutex_);
  handlers_ = std::move(handlers);
}

bool PortStream::Send(std::string_view bytes) {
  const std::lock_guard lock(mutex_);
  if (!open_ || waiting_.size() - sent_ + bytes.size() > kMaxWaiting) return false;
  if (sent_ > kMaxWaiting) waiting_.erase(0, std::exchange(sent_, 0));
  waiting_ += bytes;
  if (std::exchange(posted_, true)) return true;
  scheduler_.Post([this, alive = std::weak_ptr(alive_)] {
    if (alive.expired()) return;
    {
      const std::lock_guard posted_lock(mutex_);
      posted_ = false;
    }
    Flush();
  });
  return true;
}

void PortStream::Write(std::span<const uint8_t> bytes) {
  const std::lock_guard lock(handlers_mutex_);
  if (handlers_.received) handlers_.received(bytes);
}

void PortStream::SetReceiver(CharReceiver* receiver) {
  receiver_ = receiver;
  if (!receiver) SetOpen(false);
}

void PortStream::SetOpen(bool open) {
  if (open_.exchange(open) == open) return;
  if (!open) {
    const std::lock_guard lock(mutex_);
    waiting_.clear();
    sent_ = 0;
  }
  const std::lock_guard lock(handlers_mutex_);
  if (handlers_.opened) handlers_.opened(open);
}

void PortStream::Flush() {
  if (flushing_) return;  // Receive makes room and says so
  flushing_ = true;
  while (receiver_ && open_) {
    const size_t room = receiver_->Room();
    std::string piece;
    {
      const std::lock_guard lock(mutex_);
      piece = waiting_.substr(sent_, room);
      sent_ += piece.size();
      if (sent_ == waiting_.size()) {
        waiting_.clear();
        sent_ = 0;
      }
    }
    if (piece.empty()) break;
    receiver_->Receive({reinterpret_cast<const uint8_t*>(piece.data()), piece.size()});
  }
  flushing_ = false;
}

}  // namespace nacre::agent
