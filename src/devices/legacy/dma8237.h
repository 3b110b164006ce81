#pragma once
// The pair of 8237A DMA controllers of the PC/AT with their page registers (Intel 8237A data sheet; 82371SB data sheet
// 290550, 2.5.1): channels 0 to 3 move bytes, 5 to 7 words, 4 is the cascade. Devices move their data through it in
// blocks: the guest sees addresses, counts and terminal count as after the same number of single transfers. Under the
// device lock.

#include <array>
#include <cstdint>
#include <functional>
#include <span>
#include <utility>

#include "bus/device.h"
#include "memory/guest_memory.h"

namespace nacre::devices {

class Dma8237 final : public bus::Device {
 public:
  static constexpr unsigned kChannels = 8;
  static constexpr uint16_t kMasterPort = 0x00, kSlavePort = 0xc0, kPagePort = 0x81;
  /// Page registers: from 0x81 on; port 0x80 is the POST code's.
  static constexpr unsigned kMasterSize = 16, kSlaveSize = 32, kPageSize = 15;

  /// What firmware writes so that channel 4 lets channels 0 to 3 through: the mode, and 0 to the mask.
  static constexpr uint16_t kModePort4 = 0xd6, kMaskPort4 = 0xd4;
  static constexpr uint8_t kCascade = 0xc0;

  explicit Dma8237(memory::GuestMemory& memory);

  bus::IoHandler& master_io() { return master_; }
  bus::IoHandler& slave_io() { return slave_; }
  bus::IoHandler& page_io() { return page_io_; }

  struct Moved {
    uint32_t bytes = 0;
    bool terminal_count = false;  ///< the channel's count ran out with the last of them
  };
  /// A device on `channel` (not 4) has data, or wants some: as much as the channel lets through. Nothing while it is
  /// masked, the controller is disabled, or it is set up for the other direction. A verify moves nothing but counts;
  /// what is not RAM swallows writes and reads as ones.
  Moved ToMemory(unsigned channel, std::span<const uint8_t> data);
  Moved FromMemory(unsigned channel, std::span<uint8_t> data);
  /// The channel would move data now.
  bool ready(unsigned channel) const;
  /// Called when a channel may have become ready.
  void SetListener(unsigned channel, std::function<void()> listener) { listeners_[channel] = std::move(listener); }

  std::string_view name() const override { return "dma"; }
  void Reset() override;
  void Serialize(state::Archive& archive) override;

 private:
  enum class Type : uint8_t { kVerify = 0, kToMemory = 1, kFromMemory = 2, kIllegal = 3 };
  struct Channel {
    uint16_t base_address = 0, base_count = 0;
    uint16_t address = 0, count = 0;
    uint8_t mode = 0;
    uint8_t page = 0;
  };
  struct Controller {
    uint8_t command = 0;
    uint8_t status = 0;  ///< terminal counts, bits 3:0
    uint8_t mask = 0x0f;
    bool high_byte = false;  ///< the flip-flop
  };
  /// Channel registers and controller registers; `shift` 1: words, every second port.
  struct Ports final : bus::IoHandler {
    Ports(Dma8237& owner, unsigned controller) : dma(owner), index(controller) {}
    uint64_t Read(uint64_t offset, unsigned size) override;
    void Write(uint64_t offset, unsigned size, uint64_t value) override;
    Dma8237& dma;
    unsigned index;
  };
  struct Pages final : bus::IoHandler {
    explicit Pages(Dma8237& owner) : dma(owner) {}
    uint64_t Read(uint64_t offset, unsigned size) override;
    void Write(uint64_t offset, unsigned size, uint64_t value) override;
    Dma8237& dma;
  };

  template <typename Step>
  Moved Move(unsigned channel, Type direction, size_t size, Step step);
  uint8_t ReadRegister(unsigned controller, unsigned reg);
  void WriteRegister(unsigned controller, unsigned reg, uint8_t value);
  void Tell(unsigned controller);
  Type type(unsigned channel) const { return static_cast<Type>(channels_[channel].mode >> 2 & 3); }

  memory::GuestMemory& memory_;
  std::array<Channel, kChannels> channels_;
  std::array<Controller, 2> controllers_;
  std::array<uint8_t, kPageSize> pages_{};
  std::array<std::function<void()>, kChannels> listeners_;
  Ports master_{*this, 0}, slave_{*this, 1};
  Pages page_io_{*this};
};

}  // namespace nacre::devices
