#pragma once
// virtio-console (virtio 1.2, 5.3): byte streams between guest and host; port 0 is the guest's hvc0. Further
// named ports appear in the guest as /dev/virtio-ports/NAME. Under the device lock.

#include <array>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "base/char_backend.h"
#include "base/result.h"
#include "devices/virtio/virtio_device.h"

namespace nacre::devices {

class VirtioConsole final : public VirtioDevice {
 public:
  struct PortOptions {
    CharBackend* backend = nullptr;  ///< not owned; outlives the device. Null: the guest is told of no such port
    std::string name = {};           ///< empty for a console
    bool console = true;             ///< the guest makes it a terminal (hvcN)
  };
  struct Options {
    std::string name = "virtio-console0";
    /// 1 to 16. Drivers without MULTIPORT know only the first, and as a console: it is one, or is not there.
    std::vector<PortOptions> ports;
  };
  static Result<std::unique_ptr<VirtioConsole>> Create(Options options, memory::GuestMemory& memory,
                                                       Scheduler& scheduler);
  ~VirtioConsole() override;

  /// The terminal's size.
  void Resize(uint16_t columns, uint16_t rows);
  /// The other end of a named port is there or gone.
  void SetHostConnected(unsigned port, bool connected);
  bool guest_connected(unsigned port) const { return ports_[port]->guest_open; }

  std::span<const uint8_t> config() const override { return config_; }
  void WriteConfig(uint32_t offset, std::span<const uint8_t> data) override;

 private:
  struct Port final : CharReceiver {
    Port(VirtioConsole* console, unsigned index) : owner(console), number(index) {}
    size_t Room() override;
    void Receive(std::span<const uint8_t> bytes) override;
    void Write(std::span<const uint8_t> bytes);
    void SetGuestOpen(bool open);

    VirtioConsole* owner;
    const unsigned number;
    PortOptions options;
    std::deque<uint8_t> input;  ///< waits for the guest
    bool host_open = true;
    bool guest_open = false;
    bool announced = false;  ///< PORT_READY came: the guest knows the port
  };

  VirtioConsole(Options options, memory::GuestMemory& memory, Scheduler& scheduler);
  void OnQueue(unsigned index) override;
  void OnReset() override;
  void SerializeState(state::Archive& archive) override;
  void OnLoaded() override;
  bool multiport() const;
  void DeliverInput(unsigned port);
  void Transmit(unsigned port);
  void HandleControl(uint32_t id, uint16_t event, uint16_t value);
  void SendControl(uint32_t id, uint16_t event, uint16_t value, std::span<const uint8_t> data = {});
  void SendResize();
  void FlushControl();

  std::vector<std::unique_ptr<Port>> ports_;
  std::array<uint8_t, 12> config_{};
  std::deque<std::vector<uint8_t>> control_;  // messages for the guest
  Chain receive_chain_;
};

}  // namespace nacre::devices
