#pragma once
// What can be plugged into a port of the 8042: it takes bytes of the host and has bytes for it. Answers to commands
// come before events; events that nobody fetches are bounded, and dropped whole. Under the device lock.

#include <algorithm>
#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "state/archive.h"

namespace nacre::devices {

class Ps2Device {
 public:
  static constexpr size_t kMaxEvents = 1024, kMaxAnswers = 16;  ///< bytes; text that is pasted comes at once

  virtual ~Ps2Device() = default;
  /// Power-on.
  virtual void Reset() = 0;
  /// A byte of the host: a command or what a command asks for.
  virtual void Write(uint8_t value) = 0;
  virtual void Serialize(state::Archive& archive) = 0;

  bool has_byte() const { return !answers_.empty() || !events_.empty(); }
  /// The next byte; has_byte() must hold.
  virtual uint8_t Take() {
    std::vector<uint8_t>& from = answers_.empty() ? events_ : answers_;
    const uint8_t value = from.front();
    from.erase(from.begin());
    return value;
  }

 protected:
  void Answer(std::initializer_list<uint8_t> bytes) {
    if (answers_.size() + bytes.size() <= kMaxAnswers) answers_.insert(answers_.end(), bytes);
  }
  /// False: there is no room for all of them.
  bool Event(std::span<const uint8_t> bytes) {
    if (events_.size() + bytes.size() > kMaxEvents) return false;
    events_.insert(events_.end(), bytes.begin(), bytes.end());
    return true;
  }
  bool events_waiting() const { return !events_.empty(); }
  void ClearEvents() { events_.clear(); }
  void Clear() {
    answers_.clear();
    events_.clear();
  }
  void SerializeQueues(state::Archive& archive) {
    archive.Bytes(1, answers_, kMaxAnswers);
    archive.Bytes(2, events_, kMaxEvents);
  }

 private:
  std::vector<uint8_t> answers_, events_;
};

}  // namespace nacre::devices
