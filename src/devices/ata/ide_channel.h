#pragma once
// One IDE channel: the command block and control block of ATA/ATAPI-7 vol. 2, 5.2 for two drives on one cable, with
// programmed I/O. The controller brings the interrupt line and the DMA engine. Under the device lock.

#include <array>
#include <memory>

#include "bus/device.h"
#include "devices/ata/ata_drive.h"

namespace nacre::devices {

/// A controller's side of a channel.
class IdeBus {
 public:
  virtual ~IdeBus() = default;
  virtual void OnInterrupt(bool level) = 0;
  virtual void OnDmaRequest(AtaDrive& drive) = 0;
  virtual void OnDmaStopped(AtaDrive& drive) = 0;
  virtual void OnDmaEnd() = 0;
};

class IdeChannel {
 public:
  static constexpr unsigned kDrives = 2;
  static constexpr unsigned kCommandSize = 8, kControlSize = 1;  ///< ports; the control block has only its third

  explicit IdeChannel(IdeBus& bus);
  IdeChannel(const IdeChannel&) = delete;
  IdeChannel& operator=(const IdeChannel&) = delete;

  /// At most once for each place, before the machine runs.
  void Plug(unsigned place, std::unique_ptr<AtaDrive> drive);
  AtaDrive* drive(unsigned place) { return slots_[place].drive.get(); }
  /// The drive that asks for DMA, or null.
  AtaDrive* dma_drive();

  bus::IoHandler& command_io() { return command_; }
  bus::IoHandler& control_io() { return control_io_; }

  void Reset();
  void Quiesce();
  void Serialize(state::Archive& archive);

 private:
  struct Slot final : AtaHost {
    void OnBlock(bool interrupt) override;
    void OnDmaRequest() override { channel->bus_.OnDmaRequest(*drive); }
    void OnDmaStopped() override { channel->bus_.OnDmaStopped(*drive); }
    void OnCommandEnd(bool interrupt) override;
    IdeChannel* channel = nullptr;
    std::unique_ptr<AtaDrive> drive;
    bool pending = false;   ///< INTRQ
    uint32_t position = 0;  ///< in the drive's block
  };
  struct Command final : bus::IoHandler {
    explicit Command(IdeChannel& owner) : channel(owner) {}
    uint64_t Read(uint64_t offset, unsigned size) override;
    void Write(uint64_t offset, unsigned size, uint64_t value) override;
    IdeChannel& channel;
  };
  struct Control final : bus::IoHandler {
    explicit Control(IdeChannel& owner) : channel(owner) {}
    uint64_t Read(uint64_t offset, unsigned size) override;
    void Write(uint64_t offset, unsigned size, uint64_t value) override;
    IdeChannel& channel;
  };

  Slot& selected() { return slots_[selected_]; }
  uint64_t ReadData(unsigned size);
  void WriteData(unsigned size, uint64_t value);
  uint8_t ReadRegister(unsigned offset);
  void WriteRegister(unsigned offset, uint8_t value);
  uint8_t Status();
  void WriteCommand(uint8_t command);
  void WriteControl(uint8_t value);
  void SetPending(Slot& slot, bool pending);
  void UpdateInterrupt();

  IdeBus& bus_;
  std::array<Slot, kDrives> slots_;
  uint8_t control_ = 0;
  uint8_t selected_ = 0;
  bool interrupt_level_ = false;
  Command command_{*this};
  Control control_io_{*this};
};

}  // namespace nacre::devices
