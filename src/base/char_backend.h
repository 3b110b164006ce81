#pragma once
// Between a character device of the guest (serial port, console) and what is at its other end (terminal,
// pipe, file). Input is pulled by room: the back end hands over no more than the device has room for, keeps
// the rest where it is, and is told when there is room again, so that piped input is never lost. Under the
// device lock.

#include <cstddef>
#include <cstdint>
#include <span>

namespace nacre {

/// The device's side of input.
class CharReceiver {
 public:
  virtual ~CharReceiver() = default;
  /// Bytes that Receive takes now. After 0 the device calls CharBackend::RoomAvailable once there is room.
  virtual size_t Room() = 0;
  /// At most Room() bytes.
  virtual void Receive(std::span<const uint8_t> bytes) = 0;
};

class CharBackend {
 public:
  virtual ~CharBackend() = default;
  /// Output of the guest. Must not block the caller for long: it holds the device lock.
  virtual void Write(std::span<const uint8_t> bytes) = 0;
  /// Room() is no longer 0. May be called from within Room's caller; the back end may answer with Receive at
  /// once or later.
  virtual void RoomAvailable() = 0;
  /// Who takes input, nullptr for nobody. By the device in its constructor and destructor.
  virtual void SetReceiver(CharReceiver* receiver) = 0;
  /// A program of the guest has the port open, or has it no more. Only ports of virtio-console tell.
  virtual void SetOpen(bool /*open*/) {}
};

/// The back end of a port that is connected to nothing.
class NullCharBackend final : public CharBackend {
 public:
  void Write(std::span<const uint8_t>) override {}
  void RoomAvailable() override {}
  void SetReceiver(CharReceiver*) override {}
};

}  // namespace nacre
