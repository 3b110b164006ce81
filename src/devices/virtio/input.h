#pragma once
// virtio-input (virtio 1.2, 5.8): a keyboard, a mouse or a tablet whose events are Linux's (linux/input-event-codes.h).
// Under the device lock.

#include <array>
#include <deque>
#include <vector>

#include "devices/virtio/virtio_device.h"
#include "display/input.h"

namespace nacre::devices {

class VirtioInput final : public VirtioDevice, public display::InputSink {
 public:
  enum class Kind : uint8_t { kKeyboard, kMouse, kTablet };
  /// Events that wait for the guest's buffers; what comes on top is dropped, a person's action whole.
  static constexpr size_t kMaxWaiting = 2048;

  static std::unique_ptr<VirtioInput> Create(Kind kind, memory::GuestMemory& memory, Scheduler& scheduler);

  std::span<const uint8_t> config() const override { return config_; }
  void WriteConfig(uint32_t offset, std::span<const uint8_t> data) override;

  // A driver is there: else nothing arrives.
  bool active() const override { return driver_ok(); }
  bool absolute() const override { return kind_ == Kind::kTablet && active(); }
  void Key(uint16_t code, bool down) override;
  bool keys_taken() const override { return waiting_.empty(); }
  void MovePointer(const display::PointerMove& move) override;
  uint8_t leds() const override { return leds_; }

 private:
  struct Event {
    uint16_t type = 0, code = 0;
    uint32_t value = 0;
  };
  VirtioInput(Kind kind, memory::GuestMemory& memory, Scheduler& scheduler);
  void OnQueue(unsigned index) override;
  void OnReset() override;
  void SerializeState(state::Archive& archive) override;
  /// One action: its events and the mark of its end.
  void Send(std::vector<Event> events);
  void Deliver();
  void TakeStatus(const Event& event);
  /// Fills in what the driver has selected.
  void Select();
  std::vector<uint8_t> Answer(uint8_t select, uint8_t subselect) const;

  const Kind kind_;
  std::array<uint8_t, 136> config_{};
  std::deque<Event> waiting_;
  std::array<uint8_t, 96> pressed_{};  ///< a bit for each code
  uint8_t leds_ = 0;
  Chain event_chain_;
};

}  // namespace nacre::devices
