#include "devices/ata/ahci_port.h"

#include <algorithm>
#include <bit>

#include "base/bits.h"
#include "base/check.h"

namespace nacre::devices {

using namespace ata;

namespace {

// Registers (3.3).
constexpr unsigned kListBase = 0x00, kListBaseHigh = 0x04, kReceiveBase = 0x08, kReceiveBaseHigh = 0x0c,
                   kInterruptStatus = 0x10, kInterruptEnable = 0x14, kCommandStatus = 0x18, kTaskFile = 0x20,
                   kSignature = 0x24, kLinkStatus = 0x28, kLinkControl = 0x2c, kLinkError = 0x30, kActive = 0x34,
                   kIssue = 0x38;
// PxCMD.
constexpr uint32_t kStart = 1 << 0, kSpinUp = 1 << 1, kPowerOn = 1 << 2, kClearBusy = 1 << 3, kReceive = 1 << 4,
                   kReceiveRunning = 1 << 14, kListRunning = 1 << 15, kAtapi = 1 << 24, kLed = 1 << 25;
constexpr uint32_t kWritableCommand = kStart | kReceive | kAtapi | kLed;
// PxIS.
constexpr uint32_t kDeviceFrame = 1 << 0, kPioFrame = 1 << 1, kDeviceBitsFrame = 1 << 3, kConnectChange = 1 << 6,
                   kReadyChange = 1 << 22, kOverflow = 1 << 24, kFatalInterface = 1 << 27, kFatalBus = 1 << 29,
                   kTaskFileError = 1 << 30;
constexpr uint32_t kKeptInterrupts = 0xfd800088 | kDeviceFrame | kPioFrame | 1 << 2 | 1 << 4 | 1 << 5;
constexpr uint32_t kInterruptBits = 0xfdc000ff;
// PxSERR.
constexpr uint32_t kPhyReadyChange = 1 << 16, kExchanged = 1 << 26;
// PxSSTS: device there, generation 2, active.
constexpr uint32_t kLinkIsUp = 0x123;
// Frames, and where they go in the receive area (4.2.1).
constexpr uint8_t kToDevice = 0x27, kToHost = 0x34, kPioSetup = 0x5f, kDeviceBits = 0xa1;
constexpr unsigned kPioSetupAt = 0x20, kToHostAt = 0x40, kDeviceBitsAt = 0x58;
// Command header (4.2.2) and table (4.2.3).
constexpr uint64_t kHeaderSize = 32, kPacketAt = 0x40, kRegionsAt = 0x80;

}  // namespace

std::optional<ScatterPiece> AhciPort::RegionList::NextEntry() {
  if (left_ == 0) return std::nullopt;
  uint8_t entry[16];
  if (!memory().Read(GuestPhys(next_), entry)) return ScatterPiece{~uint64_t{0}, 2};  // not RAM either
  --left_;
  next_ += sizeof(entry);
  return ScatterPiece{LoadLe<uint64_t>(entry) & ~uint64_t{1}, ((LoadLe<uint32_t>(entry + 12) & 0x3fffff) | 1) + 1};
}

AhciPort::AhciPort(Controller& controller, memory::GuestMemory& memory)
    : controller_(controller), memory_(memory), list_(memory) {}

AhciPort::~AhciPort() {
  if (drive_) drive_->AbortAll();
}

void AhciPort::Plug(std::unique_ptr<AtaDisk> disk) {
  disk_ = disk.get();
  Attach(std::move(disk));
}

void AhciPort::Plug(std::unique_ptr<AtapiDrive> drive) {
  atapi_ = drive.get();
  Attach(std::move(drive));
}

void AhciPort::Attach(std::unique_ptr<AtaDrive> drive) {
  NACRE_CHECK(!drive_);
  drive_ = std::move(drive);
  drive_->SetHost(this);
}

/// PCS and PRCS follow PxSERR.
uint32_t AhciPort::interrupts() const {
  return interrupt_status_ | ((link_error_ & kExchanged) != 0 ? kConnectChange : 0) |
         ((link_error_ & kPhyReadyChange) != 0 ? kReadyChange : 0);
}

uint32_t AhciPort::Read(unsigned offset) const {
  switch (offset) {
    case kListBase:
      return static_cast<uint32_t>(command_list_);
    case kListBaseHigh:
      return static_cast<uint32_t>(command_list_ >> 32);
    case kReceiveBase:
      return static_cast<uint32_t>(receive_area_);
    case kReceiveBaseHigh:
      return static_cast<uint32_t>(receive_area_ >> 32);
    case kInterruptStatus:
      return interrupts();
    case kInterruptEnable:
      return interrupt_enable_;
    case kCommandStatus:
      return command_ | kSpinUp | kPowerOn | ((command_ & kReceive) != 0 ? kReceiveRunning : 0) |
             ((command_ & kStart) != 0 ? kListRunning | last_slot_ << 8 : 0);
    case kTaskFile:
      return status_ | uint32_t{error_} << 8;
    case kSignature:
      return signature_;
    case kLinkStatus:
      return link_status_;
    case kLinkControl:
      return link_control_;
    case kLinkError:
      return link_error_;
    case kActive:
      return active_;
    case kIssue:
      return issue_;
    default:
      return 0;
  }
}

void AhciPort::Write(unsigned offset, uint32_t value) {
  switch (offset) {
    case kListBase:
      command_list_ = (command_list_ & ~uint64_t{0xffffffff}) | (value & ~0x3ffu);
      return;
    case kListBaseHigh:
      command_list_ = (command_list_ & 0xffffffff) | uint64_t{value} << 32;
      return;
    case kReceiveBase:
      receive_area_ = (receive_area_ & ~uint64_t{0xffffffff}) | (value & ~0xffu);
      return;
    case kReceiveBaseHigh:
      receive_area_ = (receive_area_ & 0xffffffff) | uint64_t{value} << 32;
      return;
    case kInterruptStatus:
      interrupt_status_ &= ~value;
      return controller_.OnPortInterrupt();
    case kInterruptEnable:
      interrupt_enable_ = value & kInterruptBits;
      return controller_.OnPortInterrupt();
    case kCommandStatus:
      return WriteCommand(value);
    case kLinkControl:
      return WriteControl(value);
    case kLinkError:
      link_error_ &= ~value;
      return controller_.OnPortInterrupt();
    case kActive:
      if ((command_ & kStart) != 0) active_ |= value;
      return;
    case kIssue:
      if ((command_ & kStart) != 0) issue_ |= value;
      return Pump();
    default:
      return;
  }
}

void AhciPort::WriteCommand(uint32_t value) {
  const bool was_started = (command_ & kStart) != 0;
  const bool was_receiving = (command_ & kReceive) != 0;
  command_ = value & kWritableCommand;
  if ((value & kClearBusy) != 0 && !was_started) status_ &= static_cast<uint8_t>(~(kBusy | kDataRequest));
  if (was_started && (command_ & kStart) == 0) Stop();
  // The signature's frame waits until it can be received.
  if (!was_receiving && (command_ & kReceive) != 0 && drive_ && !was_started) ShowSignature(true);
  if (!was_started) Pump();
}

/// ST was cleared: what runs is over.
void AhciPort::Stop() {
  if (drive_) {
    drive_->AbortAll();
    status_ &= static_cast<uint8_t>(~(kBusy | kDataRequest));
  }
  current_ = kNoSlot;
  issue_ = active_ = 0;
  last_slot_ = 0;
  halted_ = false;
}

/// 10.4.2: DET 1 holds the link in reset, DET 4 turns it off.
void AhciPort::WriteControl(uint32_t value) {
  const uint32_t old = link_control_ & 0xf;
  link_control_ = value & 0xfff;
  const uint32_t now = link_control_ & 0xf;
  if (now == old) return;
  if (now == 1 || now == 4) {
    if (drive_) drive_->HardReset();
    current_ = kNoSlot;
    soft_reset_ = false;
    link_status_ = now == 4 ? 4 : 0;
    status_ = 0x7f;
    error_ = 0;
    signature_ = 0xffffffff;
  } else if (now == 0) {
    LinkUp();
  }
}

void AhciPort::LinkUp() {
  link_status_ = drive_ ? kLinkIsUp : 0;
  if (!drive_) return;
  link_error_ |= kExchanged | kPhyReadyChange;
  ShowSignature(true);
  controller_.OnPortInterrupt();
}

void AhciPort::ShowSignature(bool post) {
  if (link_status_ != kLinkIsUp) return;
  const TaskFile& regs = drive_->registers();
  signature_ =
      (regs.count & 0xffu) | (regs.lba_low & 0xffu) << 8 | (regs.lba_mid & 0xffu) << 16 | (regs.lba_high & 0xffu) << 24;
  ShowDrive();
  if (post) PostRegisters(false);
}

void AhciPort::ShowDrive() {
  status_ = drive_->registers().status;
  error_ = drive_->registers().error;
}

/// Takes commands while there are some: one at a time, except for queued ones.
void AhciPort::Pump() {
  if (pumping_) return;
  pumping_ = true;
  while ((command_ & kStart) != 0 && !halted_ && drive_ && link_status_ == kLinkIsUp && current_ == kNoSlot &&
         issue_ != 0 && controller_.may_master()) {
    // In turn, from the slot after the last one.
    const unsigned first = (last_slot_ + 1) % kSlots;
    const auto turned = std::rotr(issue_, static_cast<int>(first));
    const unsigned slot = (first + static_cast<unsigned>(std::countr_zero(turned))) % kSlots;
    last_slot_ = slot;
    RunSlot(slot);
  }
  pumping_ = false;
}

void AhciPort::RunSlot(unsigned slot) {
  uint8_t header[16];
  if (!memory_.Read(GuestPhys(command_list_ + slot * kHeaderSize), header)) return FailSlot(kFatalBus);
  const auto flags = LoadLe<uint32_t>(header);
  const uint64_t table = LoadLe<uint64_t>(header + 8) & ~uint64_t{0x7f};
  uint8_t frame[20];
  if (!memory_.Read(GuestPhys(table), frame) || !memory_.Read(GuestPhys(table + kPacketAt), packet_))
    return FailSlot(kFatalBus);
  if (frame[0] != kToDevice || (frame[1] & 0x0f) != 0) return FailSlot(kFatalInterface);
  if ((frame[1] & 0x80) == 0) return WriteDeviceControl(slot, frame[15], (flags & 1 << 10) != 0);
  TaskFile& regs = drive_->registers();
  regs.command = frame[2];
  regs.features = static_cast<uint16_t>(frame[3] | frame[11] << 8);
  regs.lba_low = static_cast<uint16_t>(frame[4] | frame[8] << 8);
  regs.lba_mid = static_cast<uint16_t>(frame[5] | frame[9] << 8);
  regs.lba_high = static_cast<uint16_t>(frame[6] | frame[10] << 8);
  regs.device = frame[7];
  regs.count = static_cast<uint16_t>(frame[12] | frame[13] << 8);
  const bool queued = disk_ && (regs.command == kCmdReadQueued || regs.command == kCmdWriteQueued);
  if (queued) {
    const unsigned tag = regs.count >> 3 & (kSlots - 1);
    if (!queued_lists_[tag]) queued_lists_[tag] = std::make_unique<RegionList>(memory_);
    if (disk_->queued(tag)) return FailSlot(kFatalInterface);
    queued_lists_[tag]->Begin(table + kRegionsAt, flags >> 16);
    return RunQueued(slot);
  }
  if (disk_ && disk_->queue_running()) return FailSlot(kTaskFileError);  // SATA 3.0, 13.6.3: not beside queued ones
  list_.Begin(table + kRegionsAt, flags >> 16);
  current_ = slot;
  status_ = kBusy;
  if (regs.command == kCmdDiagnostic) {
    drive_->Diagnose();
    return OnCommandEnd(true);
  }
  drive_->Execute();
}

void AhciPort::RunQueued(unsigned slot) {
  const unsigned tag = disk_->registers().count >> 3 & (kSlots - 1);
  const auto bit = static_cast<uint32_t>(Bit(slot));
  issue_ &= ~bit;
  // The device takes the command, and tells of its end by a frame of its own.
  if (disk_->ExecuteQueued(tag, *queued_lists_[tag])) {
    if (!halted_) ShowDrive();
    return;
  }
  issue_ |= bit;
  halted_ = true;
  ShowDrive();
  PostRegisters(true);
  Raise(kTaskFileError | kDeviceFrame);
}

/// A frame that writes the control register: SRST (10.4.1).
void AhciPort::WriteDeviceControl(unsigned slot, uint8_t control, bool clear_busy) {
  const bool reset = (control & kSoftReset) != 0;
  if (disk_ && disk_->queue_running()) return FailSlot(kFatalInterface);
  issue_ &= ~static_cast<uint32_t>(Bit(slot));
  if (!clear_busy) status_ |= kBusy;
  if (!reset && soft_reset_) {
    drive_->SoftReset();
    ShowSignature(true);
  }
  soft_reset_ = reset;
}

/// A command that never reached the drive: the list stops.
void AhciPort::FailSlot(uint32_t cause) {
  halted_ = true;
  status_ = kReady | kSeekComplete | kError;
  error_ = kAbort;
  Raise(cause | kTaskFileError);
}

void AhciPort::OnBlock(bool interrupt) {
  if (current_ == kNoSlot) return;
  const auto block = drive_->block();
  if (atapi_ && atapi_->wants_packet()) {
    std::ranges::copy(packet_, block.begin());
    return drive_->BlockDone();
  }
  const uint64_t done = drive_->to_host() ? list_.Write(block) : list_.Read(block);
  if (done < block.size()) return OnDmaStopped();
  PostPioSetup(interrupt, block.size());
  drive_->BlockDone();
}

void AhciPort::OnDmaRequest() {
  if (current_ != kNoSlot) drive_->RunDma(list_);
}

/// 6.1.9 and 6.1.10: the table is shorter than the command, or leads outside RAM.
void AhciPort::OnDmaStopped() {
  interrupt_status_ |= list_.faulted() ? kFatalBus : kOverflow;
  drive_->Abort();
}

void AhciPort::OnCommandEnd(bool interrupt) {
  if (current_ == kNoSlot) return;
  const unsigned slot = std::exchange(current_, kNoSlot);
  StoreByteCount(slot, list_.taken());
  ShowDrive();
  const bool failed = (status_ & kError) != 0;
  if (failed)
    halted_ = true;  // the slot stays issued
  else
    issue_ &= ~static_cast<uint32_t>(Bit(slot));
  if (interrupt) {
    PostRegisters(true);
    Raise(kDeviceFrame | (failed ? kTaskFileError : 0));
  }
  Pump();
}

void AhciPort::OnQueuedEnd(unsigned tag, bool ok) {
  if (halted_) return;  // an error ended all of them
  const auto bit = static_cast<uint32_t>(Bit(tag));
  ShowDrive();
  if (ok) {
    active_ &= ~bit;
  } else {
    halted_ = true;
  }
  PostDeviceBits(ok ? bit : 0);
  Raise(kDeviceBitsFrame | (ok ? 0 : kTaskFileError));
}

void AhciPort::Raise(uint32_t causes) {
  interrupt_status_ |= causes;
  controller_.OnPortInterrupt();
}

void AhciPort::Post(unsigned offset, std::span<const uint8_t> frame) {
  if ((command_ & kReceive) == 0 || !controller_.may_master()) return;
  if (!memory_.Write(GuestPhys(receive_area_ + offset), frame)) interrupt_status_ |= kFatalBus;
}

void AhciPort::PostRegisters(bool interrupt) {
  const TaskFile& regs = drive_->registers();
  uint8_t frame[20] = {kToHost, static_cast<uint8_t>(interrupt ? 0x40 : 0), status_, error_};
  frame[4] = static_cast<uint8_t>(regs.lba_low);
  frame[5] = static_cast<uint8_t>(regs.lba_mid);
  frame[6] = static_cast<uint8_t>(regs.lba_high);
  frame[7] = regs.device;
  frame[8] = static_cast<uint8_t>(regs.lba_low >> 8);
  frame[9] = static_cast<uint8_t>(regs.lba_mid >> 8);
  frame[10] = static_cast<uint8_t>(regs.lba_high >> 8);
  frame[12] = static_cast<uint8_t>(regs.count);
  frame[13] = static_cast<uint8_t>(regs.count >> 8);
  Post(kToHostAt, frame);
}

void AhciPort::PostPioSetup(bool interrupt, size_t size) {
  const TaskFile& regs = drive_->registers();
  const bool to_host = drive_->to_host();
  uint8_t frame[20] = {kPioSetup, static_cast<uint8_t>((interrupt ? 0x40 : 0) | (to_host ? 0x20 : 0)), regs.status,
                       regs.error};
  frame[4] = static_cast<uint8_t>(regs.lba_low);
  frame[5] = static_cast<uint8_t>(regs.lba_mid);
  frame[6] = static_cast<uint8_t>(regs.lba_high);
  frame[7] = regs.device;
  frame[12] = static_cast<uint8_t>(regs.count);
  frame[15] = kReady | kSeekComplete;  // after the block; to the device another frame follows
  StoreLe(&frame[16], static_cast<uint16_t>(size));
  Post(kPioSetupAt, frame);
  if (interrupt && to_host) Raise(kPioFrame);
}

void AhciPort::PostDeviceBits(uint32_t done) {
  uint8_t frame[8] = {kDeviceBits, 0x40, static_cast<uint8_t>(status_ & 0x77), error_};
  StoreLe(&frame[4], done);
  Post(kDeviceBitsAt, frame);
}

/// PRDBC of the command header.
void AhciPort::StoreByteCount(unsigned slot, uint64_t count) {
  memory_.WriteValue(GuestPhys(command_list_ + slot * kHeaderSize + 4), static_cast<uint32_t>(count));
}

void AhciPort::Reset() {
  if (drive_) drive_->HardReset();
  command_list_ = receive_area_ = 0;
  interrupt_status_ = interrupt_enable_ = 0;
  command_ = 0;
  status_ = 0x7f;
  error_ = 0;
  signature_ = 0xffffffff;
  link_status_ = link_control_ = link_error_ = 0;
  active_ = issue_ = last_slot_ = 0;
  halted_ = soft_reset_ = false;
  current_ = kNoSlot;
  LinkUp();
}

void AhciPort::Quiesce() {
  if (drive_) drive_->Quiesce();
}

void AhciPort::Serialize(state::Archive& archive) {
  archive.Field(1, command_list_);
  archive.Field(2, receive_area_);
  archive.Field(3, interrupt_status_);
  archive.Field(4, interrupt_enable_);
  archive.Field(5, command_);
  archive.Field(6, status_);
  archive.Field(7, error_);
  archive.Field(8, signature_);
  archive.Field(9, link_status_);
  archive.Field(10, link_control_);
  archive.Field(11, link_error_);
  archive.Field(12, active_);
  archive.Field(13, issue_);
  archive.Field(14, last_slot_);
  archive.Field(15, halted_);
  archive.Field(16, soft_reset_);
  if (drive_) archive.Section(17, 1, [&](state::Archive& inner, uint16_t) { drive_->Serialize(inner); });
  if (!archive.loading()) return;
  current_ = kNoSlot;
  // No data phase outlives a Quiesce here: one in the file is nobody's.
  if (drive_) drive_->AbortAll();
  command_list_ &= ~uint64_t{0x3ff};
  receive_area_ &= ~uint64_t{0xff};
  interrupt_status_ &= kKeptInterrupts;
  interrupt_enable_ &= kInterruptBits;
  command_ &= kWritableCommand;
  link_control_ &= 0xfff;
  last_slot_ &= kSlots - 1;
}

}  // namespace nacre::devices
