#pragma once
// One port of the AHCI controller (Serial ATA AHCI 1.3.1, 3.3 and ch. 5): its registers, the command list that it takes
// commands from, the received frames (FIS) that it writes, and the drive behind it. Under the device lock.

#include <array>
#include <memory>

#include "devices/ata/ata_disk.h"
#include "devices/ata/ata_drive.h"
#include "devices/ata/atapi_drive.h"

namespace nacre::devices {

class AhciPort final : public AtaHost {
 public:
  static constexpr unsigned kSlots = 32, kRegistersSize = 0x80;

  /// What a port tells its controller.
  class Controller {
   public:
    virtual ~Controller() = default;
    virtual void OnPortInterrupt() = 0;
    virtual bool may_master() const = 0;
  };

  AhciPort(Controller& controller, memory::GuestMemory& memory);
  ~AhciPort() override;
  void Plug(std::unique_ptr<AtaDisk> disk);
  void Plug(std::unique_ptr<AtapiDrive> drive);
  bool empty() const { return !drive_; }

  /// `offset` within the port's registers, a multiple of 4.
  uint32_t Read(unsigned offset) const;
  void Write(unsigned offset, uint32_t value);
  /// Causes of interrupts that are set and enabled.
  bool pending() const { return (interrupts() & interrupt_enable_) != 0; }

  /// As after a reset of the controller: registers, and the link comes up again.
  void Reset();
  void Quiesce();
  void Serialize(state::Archive& archive);

 private:
  /// The physical region descriptor table of a command.
  class RegionList final : public ScatterList {
   public:
    using ScatterList::ScatterList;
    void Begin(uint64_t table, uint32_t entries) {
      Restart();
      next_ = table;
      left_ = entries;
    }

   private:
    std::optional<ScatterPiece> NextEntry() override;
    uint64_t next_ = 0;
    uint32_t left_ = 0;
  };
  static constexpr unsigned kNoSlot = kSlots;

  void OnBlock(bool interrupt) override;
  void OnDmaRequest() override;
  void OnDmaStopped() override;
  void OnCommandEnd(bool interrupt) override;
  void OnQueuedEnd(unsigned tag, bool ok) override;

  void Attach(std::unique_ptr<AtaDrive> drive);
  uint32_t interrupts() const;
  void WriteCommand(uint32_t value);
  void WriteControl(uint32_t value);
  void Stop();
  void LinkUp();
  void ShowSignature(bool post);
  void Pump();
  void RunSlot(unsigned slot);
  void RunQueued(unsigned slot);
  void WriteDeviceControl(unsigned slot, uint8_t control, bool clear_busy);
  void FailSlot(uint32_t cause);
  void ShowDrive();
  void Raise(uint32_t causes);
  void PostRegisters(bool interrupt);
  void PostPioSetup(bool interrupt, size_t size);
  void PostDeviceBits(uint32_t done);
  void Post(unsigned offset, std::span<const uint8_t> frame);
  void StoreByteCount(unsigned slot, uint64_t count);

  Controller& controller_;
  memory::GuestMemory& memory_;
  std::unique_ptr<AtaDrive> drive_;
  AtaDisk* disk_ = nullptr;  ///< drive_, when it is one
  AtapiDrive* atapi_ = nullptr;

  uint64_t command_list_ = 0, receive_area_ = 0;
  uint32_t interrupt_status_ = 0, interrupt_enable_ = 0;
  uint32_t command_ = 0;
  uint8_t status_ = 0x7f, error_ = 0;  ///< PxTFD
  uint32_t signature_ = 0xffffffff;
  uint32_t link_status_ = 0, link_control_ = 0, link_error_ = 0;
  uint32_t active_ = 0, issue_ = 0;
  uint32_t last_slot_ = 0;
  bool halted_ = false;      ///< an error stopped the list until ST is cleared
  bool soft_reset_ = false;  ///< the last control frame had SRST set

  // Of the running machine only.
  unsigned current_ = kNoSlot;  ///< the slot whose command is in the drive's registers
  bool pumping_ = false;
  std::array<uint8_t, AtapiDrive::kCdbSize> packet_{};
  RegionList list_;  ///< of current_
  std::array<std::unique_ptr<RegionList>, kSlots> queued_lists_;
};

}  // namespace nacre::devices
