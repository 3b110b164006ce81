#pragma once
// A 16550A serial port (National Semiconductor PC16550D): 8 ports, both FIFOs, all interrupts, modem lines,
// loopback. The line is infinitely fast: a byte written is sent at once, so the transmitter is always empty,
// and what is received is never waited for (the time-out interrupt is due at once).
//
// Output is gathered and handed on when a line is full, after a millisecond or by Flush. Input is taken only
// while the guest listens: it has enabled the receive interrupt, or it polls the line status. What a driver
// throws away by resetting the FIFO while it starts is given again, so that input from a pipe is never lost.
// Under the device lock.

#include <array>
#include <cstdint>
#include <memory>
#include <string>

#include "base/char_backend.h"
#include "base/scheduler.h"
#include "bus/device.h"

namespace nacre::devices {

class Uart16550 final : public bus::Device, public bus::IoHandler, private CharReceiver {
 public:
  static constexpr uint16_t kSize = 8;
  /// COM1 to COM4 and their interrupts.
  static constexpr uint16_t kPorts[] = {0x3f8, 0x2f8, 0x3e8, 0x2e8};
  static constexpr unsigned kIrqs[] = {4, 3, 4, 3};

  /// The back end must outlive the port.
  Uart16550(std::string name, Scheduler& scheduler, bus::IrqLine& irq, CharBackend& backend);
  ~Uart16550() override;

  uint64_t Read(uint64_t offset, unsigned size) override;
  void Write(uint64_t offset, unsigned size, uint64_t value) override;
  /// Hands gathered output to the back end: before the machine stops or the process ends.
  void Flush();
  /// A break condition on the line (magic SysRq).
  void ReceiveBreak();

  std::string_view name() const override { return name_; }
  void Reset() override;
  void Serialize(state::Archive& archive) override;

 private:
  static constexpr unsigned kFifoSize = 16;
  static constexpr size_t kOutputSize = 1024;

  size_t Room() override;
  void Receive(std::span<const uint8_t> bytes) override;

  uint8_t ReadByte(unsigned reg);
  void WriteByte(unsigned reg, uint8_t value);
  uint8_t ReadData();
  void WriteData(uint8_t value);
  uint8_t ReadInterruptId();
  uint8_t ReadLineStatus();
  uint8_t ReadModemStatus();
  void WriteFifoControl(uint8_t value);
  void WriteModemControl(uint8_t value);
  uint8_t ModemLines() const;
  void Push(uint8_t byte, uint8_t errors);
  void TakeReturned();
  bool listening() const;
  unsigned capacity() const { return fifo_enabled_ ? kFifoSize : 1; }
  void OfferRoom();
  uint8_t PendingInterrupt() const;
  void Update() { irq_.Set(PendingInterrupt() != 1); }
  void Clear();

  const std::string name_;
  bus::IrqLine& irq_;
  CharBackend& backend_;
  std::unique_ptr<Timer> flush_timer_;
  Scheduler& scheduler_;

  uint8_t ier_ = 0;
  uint8_t lcr_ = 0;
  uint8_t mcr_ = 0;
  uint8_t scratch_ = 0;
  uint8_t trigger_ = 1;
  uint8_t modem_delta_ = 0;  ///< MSR bits 3:0
  uint8_t line_errors_ = 0;  ///< LSR bits 4:1 not read yet
  uint16_t divisor_ = 12;    ///< 9600 baud, as after power-on of a PC
  bool fifo_enabled_ = false;
  bool thre_pending_ = false;
  std::array<uint8_t, kFifoSize> fifo_{};
  std::array<uint8_t, kFifoSize> fifo_errors_{};
  uint8_t fifo_start_ = 0;
  uint8_t fifo_count_ = 0;
  std::array<uint8_t, kFifoSize> returned_{};  ///< received, thrown away by a FIFO reset, to be given again
  uint8_t returned_count_ = 0;

  // Not the guest's state.
  uint8_t polls_ = 0;         ///< reads of LSR in a row that found nothing
  bool room_wanted_ = false;  ///< Room() has answered 0
  std::array<uint8_t, kOutputSize> output_{};
  size_t output_count_ = 0;
};

}  // namespace nacre::devices
