#include "devices/ata/ide_channel.h"

#include <algorithm>
#include <cstring>

#include "base/bits.h"
#include "base/check.h"

namespace nacre::devices {

using namespace ata;

namespace {

constexpr unsigned kFeatures = 1, kCount = 2, kLbaLow = 3, kLbaMid = 4, kLbaHigh = 5, kDevice = 6, kStatus = 7;

/// The last value written, and above it the one before.
uint16_t Push(uint16_t old, uint8_t value) { return static_cast<uint16_t>(old << 8 | value); }

}  // namespace

IdeChannel::IdeChannel(IdeBus& bus) : bus_(bus) {
  for (Slot& slot : slots_) slot.channel = this;
}

void IdeChannel::Plug(unsigned place, std::unique_ptr<AtaDrive> drive) {
  NACRE_CHECK(place < kDrives && !slots_[place].drive);
  drive->SetHost(&slots_[place]);
  slots_[place].drive = std::move(drive);
}

AtaDrive* IdeChannel::dma_drive() {
  for (Slot& slot : slots_)
    if (slot.drive && slot.drive->dma_requested()) return slot.drive.get();
  return nullptr;
}

void IdeChannel::Slot::OnBlock(bool interrupt) {
  position = 0;
  if (interrupt) channel->SetPending(*this, true);
}

void IdeChannel::Slot::OnCommandEnd(bool interrupt) {
  position = 0;
  channel->bus_.OnDmaEnd();
  if (interrupt) channel->SetPending(*this, true);
}

void IdeChannel::SetPending(Slot& slot, bool pending) {
  slot.pending = pending;
  UpdateInterrupt();
}

void IdeChannel::UpdateInterrupt() {
  const bool level = selected().pending && (control_ & kInterruptsOff) == 0;
  if (level == interrupt_level_) return;
  interrupt_level_ = level;
  bus_.OnInterrupt(level);
}

uint64_t IdeChannel::ReadData(unsigned size) {
  Slot& slot = selected();
  uint64_t value = MaskToSize(~uint64_t{0}, size);
  if (!slot.drive || !slot.drive->to_host() || slot.drive->dma_requested()) return value;
  const auto block = slot.drive->block();
  if ((slot.drive->registers().status & kDataRequest) == 0 || slot.position >= block.size()) return value;
  const auto part = static_cast<uint32_t>(std::min<size_t>(size, block.size() - slot.position));
  std::memcpy(&value, &block[slot.position], part);
  slot.position += part;
  if (slot.position == block.size()) {
    slot.position = 0;
    slot.drive->BlockDone();
  }
  return value;
}

void IdeChannel::WriteData(unsigned size, uint64_t value) {
  Slot& slot = selected();
  if (!slot.drive || slot.drive->to_host() || slot.drive->dma_requested()) return;
  const auto block = slot.drive->block();
  if ((slot.drive->registers().status & kDataRequest) == 0 || slot.position >= block.size()) return;
  const auto part = static_cast<uint32_t>(std::min<size_t>(size, block.size() - slot.position));
  std::memcpy(&block[slot.position], &value, part);
  slot.position += part;
  if (slot.position == block.size()) {
    slot.position = 0;
    slot.drive->BlockDone();
  }
}

/// A missing drive reads as its neighbour answers for it: zeros (ATA/ATAPI-7 vol. 2, 7.15.6.1). So does an empty cable:
/// its DD7 is pulled down, so that nobody waits for BSY, for which OVMF has 35 s of patience.
uint8_t IdeChannel::Status() {
  return selected().drive ? selected().drive->registers().status : 0;
}

uint8_t IdeChannel::ReadRegister(unsigned offset) {
  Slot& slot = selected();
  if (offset == kStatus) {
    const uint8_t status = Status();
    SetPending(slot, false);
    return status;
  }
  if (!slot.drive) return 0;
  const TaskFile& regs = slot.drive->registers();
  const unsigned shift = (control_ & kHighOrder) != 0 ? 8 : 0;
  switch (offset) {
    case kFeatures:
      return regs.error;
    case kCount:
      return static_cast<uint8_t>(regs.count >> shift);
    case kLbaLow:
      return static_cast<uint8_t>(regs.lba_low >> shift);
    case kLbaMid:
      return static_cast<uint8_t>(regs.lba_mid >> shift);
    case kLbaHigh:
      return static_cast<uint8_t>(regs.lba_high >> shift);
    default:
      return static_cast<uint8_t>(regs.device | 0xa0 | (selected_ != 0 ? kDevice1 : 0));
  }
}

/// Both drives see every write; only the selected one acts on a command.
void IdeChannel::WriteRegister(unsigned offset, uint8_t value) {
  control_ &= static_cast<uint8_t>(~kHighOrder);
  if (offset == kStatus) return WriteCommand(value);
  if (offset == kDevice) selected_ = (value & kDevice1) != 0 ? 1 : 0;
  for (Slot& slot : slots_) {
    if (!slot.drive || slot.drive->busy()) continue;
    TaskFile& regs = slot.drive->registers();
    switch (offset) {
      case kFeatures:
        regs.features = Push(regs.features, value);
        break;
      case kCount:
        regs.count = Push(regs.count, value);
        break;
      case kLbaLow:
        regs.lba_low = Push(regs.lba_low, value);
        break;
      case kLbaMid:
        regs.lba_mid = Push(regs.lba_mid, value);
        break;
      case kLbaHigh:
        regs.lba_high = Push(regs.lba_high, value);
        break;
      case kDevice:
        regs.device = value;
        break;
      default:
        break;
    }
  }
  if (offset == kDevice) UpdateInterrupt();
}

void IdeChannel::WriteCommand(uint8_t command) {
  if (command == kCmdDiagnostic) {
    for (Slot& slot : slots_) {
      slot.pending = false;
      slot.position = 0;
      if (slot.drive) slot.drive->Diagnose();
    }
    selected_ = 0;
    if (slots_[0].drive) slots_[0].pending = true;
    return UpdateInterrupt();
  }
  Slot& slot = selected();
  if (!slot.drive) return;
  if (command == kCmdDeviceReset && slot.drive->packet()) {
    slot.drive->SoftReset();
    slot.position = 0;
    return SetPending(slot, false);
  }
  if (slot.drive->busy()) return;
  SetPending(slot, false);
  slot.position = 0;  // whatever data phase there was
  slot.drive->registers().command = command;
  slot.drive->Execute();
}

void IdeChannel::WriteControl(uint8_t value) {
  const uint8_t old = control_;
  control_ = value & (kInterruptsOff | kSoftReset | kHighOrder);
  // Both drives are held in reset while SRST is set; they have begun anew when it is clear again.
  if ((control_ & kSoftReset) != 0 && (old & kSoftReset) == 0) {
    selected_ = 0;
    for (Slot& slot : slots_) {
      slot.pending = false;
      slot.position = 0;
      if (!slot.drive) continue;
      slot.drive->SoftReset();
      slot.drive->registers().status = kBusy;
    }
  } else if ((control_ & kSoftReset) == 0 && (old & kSoftReset) != 0) {
    for (Slot& slot : slots_)
      if (slot.drive) slot.drive->Diagnose();
  }
  UpdateInterrupt();
}

uint64_t IdeChannel::Command::Read(uint64_t offset, unsigned size) {
  if (offset == 0) return channel.ReadData(std::min(size, 4u)) | (size > 4 ? ~uint64_t{0} << 32 : 0);
  uint64_t value = 0;
  for (unsigned i = 0; i < size; ++i) {
    const uint64_t at = offset + i;
    value |= uint64_t{at < kCommandSize ? channel.ReadRegister(static_cast<unsigned>(at)) : uint8_t{0xff}} << (8 * i);
  }
  return value;
}

void IdeChannel::Command::Write(uint64_t offset, unsigned size, uint64_t value) {
  if (offset == 0) return channel.WriteData(std::min(size, 4u), value);
  for (unsigned i = 0; i < size && offset + i < kCommandSize; ++i)
    channel.WriteRegister(static_cast<unsigned>(offset + i), static_cast<uint8_t>(value >> (8 * i)));
}

uint64_t IdeChannel::Control::Read(uint64_t offset, unsigned size) {
  const uint64_t ones = MaskToSize(~uint64_t{0}, size);
  return offset == 0 ? (ones & ~uint64_t{0xff}) | channel.Status() : ones;
}

void IdeChannel::Control::Write(uint64_t offset, unsigned, uint64_t value) {
  if (offset == 0) channel.WriteControl(static_cast<uint8_t>(value));
}

void IdeChannel::Reset() {
  control_ = 0;
  selected_ = 0;
  for (Slot& slot : slots_) {
    if (slot.drive) slot.drive->HardReset();
    slot.pending = false;
    slot.position = 0;
  }
  UpdateInterrupt();
}

void IdeChannel::Quiesce() {
  for (Slot& slot : slots_)
    if (slot.drive) slot.drive->Quiesce();
}

void IdeChannel::Serialize(state::Archive& archive) {
  archive.Field(1, control_);
  archive.Field(2, selected_);
  for (unsigned i = 0; i < kDrives; ++i) {
    archive.Section(static_cast<uint16_t>(3 + i), 1, [&](state::Archive& inner, uint16_t) {
      Slot& slot = slots_[i];
      // A command that moves data by DMA takes its block on by itself; the next one that waits for the data register
      // begins at 0 (OnBlock).
      if (!inner.loading() && (!slot.drive || slot.position >= slot.drive->block().size())) slot.position = 0;
      inner.Field(1, slot.pending);
      inner.Field(2, slot.position);
      if (slot.drive) inner.Section(3, 1, [&](state::Archive& drive, uint16_t) { slot.drive->Serialize(drive); });
      // A block that is moved to its end is not a block any more.
      const size_t block = slot.drive ? slot.drive->block().size() : 0;
      if (!inner.loading() || slot.position == 0 || slot.position < block) return;
      inner.Reject("an IDE drive's data phase is beyond its end");
      slot.position = 0;
    });
  }
  if (!archive.loading()) return;
  if (selected_ > 1) archive.Reject("an IDE channel has two drives");
  selected_ &= 1;
  control_ &= kInterruptsOff | kSoftReset | kHighOrder;
  UpdateInterrupt();
}

}  // namespace nacre::devices
