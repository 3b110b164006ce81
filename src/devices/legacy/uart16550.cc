#include "devices/legacy/uart16550.h"

#include <algorithm>
#include <utility>

#include "base/bits.h"

namespace nacre::devices {
namespace {

enum : unsigned { kData = 0, kIer = 1, kIirFcr = 2, kLcr = 3, kMcr = 4, kLsr = 5, kMsr = 6, kScratch = 7 };
constexpr uint8_t kIerReceive = 1, kIerTransmit = 2, kIerLine = 4, kIerModem = 8;
// Interrupt identification in order of priority (PC16550D table V).
constexpr uint8_t kIirNone = 1, kIirLine = 6, kIirReceive = 4, kIirTimeout = 12, kIirTransmit = 2, kIirModem = 0;
constexpr uint8_t kLcrDlab = 0x80;
constexpr uint8_t kMcrLoop = 0x10;
constexpr uint8_t kLsrReady = 1, kLsrOverrun = 2, kLsrBreak = 0x10, kLsrErrors = 0x1e, kLsrTransmitEmpty = 0x60,
                  kLsrFifoError = 0x80;
constexpr uint8_t kTriggers[] = {1, 4, 8, 14};
constexpr int64_t kFlushNs = 1'000'000;
// Output code reads LSR once or twice before a byte; only code that waits for input reads it many times in a
// row.
constexpr uint8_t kPollsThatListen = 8;

}  // namespace

Uart16550::Uart16550(std::string name, Scheduler& scheduler, bus::IrqLine& irq, CharBackend& backend)
    : name_(std::move(name)), irq_(irq), backend_(backend), scheduler_(scheduler) {
  flush_timer_ = scheduler.CreateTimer([this] { Flush(); });
  backend_.SetReceiver(this);
}

Uart16550::~Uart16550() {
  Flush();
  backend_.SetReceiver(nullptr);
}

void Uart16550::Clear() {
  ier_ = lcr_ = mcr_ = scratch_ = modem_delta_ = line_errors_ = 0;
  trigger_ = 1;
  divisor_ = 12;
  fifo_enabled_ = thre_pending_ = false;
  fifo_ = {};
  fifo_errors_ = {};
  returned_ = {};
  fifo_start_ = fifo_count_ = returned_count_ = 0;
  polls_ = 0;
}

void Uart16550::Reset() {
  Flush();
  Clear();
  Update();
}

void Uart16550::Flush() {
  flush_timer_->Cancel();
  const size_t count = std::exchange(output_count_, 0);
  if (count != 0) backend_.Write({output_.data(), count});
}

uint8_t Uart16550::PendingInterrupt() const {
  if ((ier_ & kIerLine) != 0 && line_errors_ != 0) return kIirLine;
  if ((ier_ & kIerReceive) != 0 && fifo_count_ != 0)
    return !fifo_enabled_ || fifo_count_ >= trigger_ ? kIirReceive : kIirTimeout;
  if ((ier_ & kIerTransmit) != 0 && thre_pending_) return kIirTransmit;
  if ((ier_ & kIerModem) != 0 && modem_delta_ != 0) return kIirModem;
  return kIirNone;
}

bool Uart16550::listening() const { return (ier_ & kIerReceive) != 0 || polls_ >= kPollsThatListen; }

size_t Uart16550::Room() {
  // In loopback the line is cut off.
  const size_t room = !listening() || (mcr_ & kMcrLoop) != 0 || returned_count_ != 0 ? 0 : capacity() - fifo_count_;
  if (room == 0) room_wanted_ = true;
  return room;
}

void Uart16550::OfferRoom() {
  if (returned_count_ != 0 && listening()) TakeReturned();
  if (!room_wanted_ || fifo_count_ != 0 || !listening() || (mcr_ & kMcrLoop) != 0) return;
  room_wanted_ = false;
  backend_.RoomAvailable();
}

void Uart16550::TakeReturned() {
  const size_t count = std::exchange(returned_count_, uint8_t{0});
  const std::array<uint8_t, kFifoSize> bytes = returned_;
  size_t taken = 0;
  while (taken < count && fifo_count_ < capacity()) Push(bytes[taken++], 0);
  returned_count_ = static_cast<uint8_t>(count - taken);
  std::copy(bytes.begin() + static_cast<ptrdiff_t>(taken), bytes.begin() + static_cast<ptrdiff_t>(count),
            returned_.begin());
  Update();
}

void Uart16550::Push(uint8_t byte, uint8_t errors) {
  if (fifo_count_ >= capacity()) {
    line_errors_ |= kLsrOverrun;
    return;
  }
  const unsigned at = (fifo_start_ + fifo_count_++) % kFifoSize;
  fifo_[at] = byte;
  fifo_errors_[at] = errors;
  // Errors are reported when their byte comes to the top of the FIFO.
  if (fifo_count_ == 1) line_errors_ |= errors;
}

void Uart16550::Receive(std::span<const uint8_t> bytes) {
  for (const uint8_t byte : bytes) Push(byte, 0);
  Update();
}

void Uart16550::ReceiveBreak() {
  if ((mcr_ & kMcrLoop) != 0) return;
  Push(0, kLsrBreak);
  Update();
}

uint8_t Uart16550::ReadData() {
  polls_ = 0;
  if (fifo_count_ == 0) return 0;
  const uint8_t byte = fifo_[fifo_start_];
  fifo_start_ = static_cast<uint8_t>((fifo_start_ + 1) % kFifoSize);
  if (--fifo_count_ != 0) line_errors_ |= fifo_errors_[fifo_start_];
  if (fifo_count_ == 0) OfferRoom();
  Update();
  return byte;
}

void Uart16550::WriteData(uint8_t value) {
  polls_ = 0;
  thre_pending_ = true;  // empty again at once
  if ((mcr_ & kMcrLoop) != 0) {
    Push(value, 0);
  } else {
    output_[output_count_++] = value;
    if (output_count_ == output_.size()) {
      Flush();
    } else if (!flush_timer_->armed()) {
      flush_timer_->Arm(scheduler_.NowNs() + kFlushNs);
    }
  }
  Update();
}

uint8_t Uart16550::ReadInterruptId() {
  const uint8_t pending = PendingInterrupt();
  if (pending == kIirTransmit) {
    thre_pending_ = false;  // reading it is the acknowledgement
    Update();
  }
  return static_cast<uint8_t>(pending | (fifo_enabled_ ? 0xc0 : 0));
}

uint8_t Uart16550::ReadLineStatus() {
  uint8_t status = static_cast<uint8_t>(kLsrTransmitEmpty | line_errors_ | (fifo_count_ != 0 ? kLsrReady : 0));
  if (fifo_enabled_) {
    for (unsigned i = 0; i < fifo_count_; ++i) {
      if (fifo_errors_[(fifo_start_ + i) % kFifoSize] != 0) status |= kLsrFifoError;
    }
  }
  if (line_errors_ != 0) {
    line_errors_ = 0;
    Update();
  }
  if (fifo_count_ == 0 && polls_ < kPollsThatListen && ++polls_ == kPollsThatListen) OfferRoom();
  return status;
}

uint8_t Uart16550::ModemLines() const {
  if ((mcr_ & kMcrLoop) == 0) return 0xb0;  // carrier, data set ready, clear to send: the other end is always there
  // Loopback: RTS, DTR, OUT1, OUT2 come back as CTS, DSR, RI, DCD.
  return static_cast<uint8_t>((mcr_ & 2) << 3 | (mcr_ & 1) << 5 | (mcr_ & 0xc) << 4);
}

uint8_t Uart16550::ReadModemStatus() {
  const uint8_t status = ModemLines() | modem_delta_;
  modem_delta_ = 0;
  Update();
  return status;
}

void Uart16550::WriteModemControl(uint8_t value) {
  const uint8_t before = ModemLines();
  mcr_ = value & 0x1f;
  const uint8_t changed = before ^ ModemLines();
  modem_delta_ |= static_cast<uint8_t>((changed >> 4) & 0xb);
  if ((changed & 0x40) != 0 && (before & 0x40) != 0) modem_delta_ |= 4;  // trailing edge of RI only
  OfferRoom();
}

void Uart16550::WriteFifoControl(uint8_t value) {
  const bool enable = (value & 1) != 0;
  const bool clear_receive = (value & 2) != 0 || enable != fifo_enabled_;
  if (clear_receive) {
    // What came from the line goes back to wait; loopback bytes and breaks are gone.
    std::array<uint8_t, kFifoSize> kept{};
    size_t count = 0;
    for (unsigned i = 0; i < fifo_count_ && (mcr_ & kMcrLoop) == 0; ++i) {
      const unsigned at = (fifo_start_ + i) % kFifoSize;
      if (fifo_errors_[at] == 0) kept[count++] = fifo_[at];
    }
    for (unsigned i = 0; i < returned_count_ && count < kFifoSize; ++i) kept[count++] = returned_[i];
    returned_ = kept;
    returned_count_ = static_cast<uint8_t>(count);
    fifo_start_ = fifo_count_ = 0;
    fifo_errors_ = {};
  }
  fifo_enabled_ = enable;
  trigger_ = enable ? kTriggers[value >> 6] : 1;
  OfferRoom();
}

uint8_t Uart16550::ReadByte(unsigned reg) {
  const bool dlab = (lcr_ & kLcrDlab) != 0;
  switch (reg) {
    case kData:
      return dlab ? static_cast<uint8_t>(divisor_) : ReadData();
    case kIer:
      return dlab ? static_cast<uint8_t>(divisor_ >> 8) : ier_;
    case kIirFcr:
      return ReadInterruptId();
    case kLcr:
      return lcr_;
    case kMcr:
      return mcr_;
    case kLsr:
      return ReadLineStatus();
    case kMsr:
      return ReadModemStatus();
    case kScratch:
      return scratch_;
    default:
      return 0xff;
  }
}

void Uart16550::WriteByte(unsigned reg, uint8_t value) {
  const bool dlab = (lcr_ & kLcrDlab) != 0;
  switch (reg) {
    case kData:
      if (dlab) {
        divisor_ = static_cast<uint16_t>((divisor_ & 0xff00) | value);
        return;
      }
      return WriteData(value);
    case kIer:
      if (dlab) {
        divisor_ = static_cast<uint16_t>((divisor_ & 0xff) | value << 8);
        return;
      }
      // Enabling the transmit interrupt while the transmitter is empty raises it.
      if ((value & ~ier_ & kIerTransmit) != 0) thre_pending_ = true;
      ier_ = value & 0xf;
      OfferRoom();
      break;
    case kIirFcr:
      WriteFifoControl(value);
      break;
    case kLcr:
      lcr_ = value;
      break;
    case kMcr:
      WriteModemControl(value);
      break;
    case kScratch:
      scratch_ = value;
      break;
    default:
      return;  // LSR and MSR are read-only
  }
  polls_ = 0;
  Update();
}

uint64_t Uart16550::Read(uint64_t offset, unsigned size) {
  uint64_t value = 0;
  for (unsigned i = 0; i < size; ++i) value |= uint64_t{ReadByte(static_cast<unsigned>(offset + i))} << (8 * i);
  return value;
}

void Uart16550::Write(uint64_t offset, unsigned size, uint64_t value) {
  for (unsigned i = 0; i < size; ++i)
    WriteByte(static_cast<unsigned>(offset + i), static_cast<uint8_t>(value >> (8 * i)));
}

void Uart16550::Serialize(state::Archive& archive) {
  if (!archive.loading()) Flush();
  archive.Field(1, ier_);
  archive.Field(2, lcr_);
  archive.Field(3, mcr_);
  archive.Field(4, scratch_);
  archive.Field(5, trigger_);
  archive.Field(6, modem_delta_);
  archive.Field(7, line_errors_);
  archive.Field(8, divisor_);
  archive.Field(9, fifo_enabled_);
  archive.Field(10, thre_pending_);
  archive.Bytes(11, std::span<uint8_t>(fifo_));
  archive.Bytes(12, std::span<uint8_t>(fifo_errors_));
  archive.Field(13, fifo_start_);
  archive.Field(14, fifo_count_);
  archive.Bytes(15, std::span<uint8_t>(returned_));
  archive.Field(16, returned_count_);
  if (!archive.loading()) return;
  if (fifo_start_ >= kFifoSize || fifo_count_ > kFifoSize || returned_count_ > kFifoSize || trigger_ > kFifoSize ||
      trigger_ == 0) {
    archive.Reject("serial port: impossible FIFO state");
    Clear();
  }
  ier_ &= 0xf;
  mcr_ &= 0x1f;
  modem_delta_ &= 0xf;
  line_errors_ &= kLsrErrors;
  polls_ = 0;
  Update();
  room_wanted_ = true;
  OfferRoom();
}

}  // namespace nacre::devices
