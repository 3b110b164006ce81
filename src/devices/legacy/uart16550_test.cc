// National Semiconductor PC16550D, and what Linux's 8250 driver asks of it.

#include "devices/legacy/uart16550.h"

#include <gtest/gtest.h>

#include "devices/chipset/device_testing.h"

namespace nacre::devices {
namespace {

constexpr unsigned kData = 0, kIer = 1, kIir = 2, kFcr = 2, kLcr = 3, kMcr = 4, kLsr = 5, kMsr = 6, kScratch = 7;

class UartTest : public testing::Test {
 protected:
  uint8_t In(unsigned reg) { return static_cast<uint8_t>(uart_.Read(reg, 1)); }
  void Out(unsigned reg, uint8_t value) { uart_.Write(reg, 1, value); }
  std::string Drain() {
    std::string text;
    while (In(kLsr) & 1) text += static_cast<char>(In(kData));
    return text;
  }

  ManualScheduler scheduler_;
  TestLine irq_;
  TestCharBackend line_;
  Uart16550 uart_{"serial0", scheduler_, irq_, line_};
};

TEST_F(UartTest, OutputIsGatheredAndComesOut) {
  for (const char c : std::string("hello")) Out(kData, static_cast<uint8_t>(c));
  EXPECT_EQ(In(kLsr) & 0x60, 0x60);
  EXPECT_EQ(line_.output, "");
  scheduler_.Advance(1'000'000);
  EXPECT_EQ(line_.output, "hello");
  for (int i = 0; i < 5000; ++i) Out(kData, 'x');
  uart_.Flush();
  EXPECT_EQ(line_.output.size(), 5005u);
}

TEST_F(UartTest, DetectedAs16550A) {
  // drivers/tty/serial/8250: interrupt enable bits, FIFO bits of IIR, no enhanced registers, loopback.
  Out(kIer, 0xff);
  EXPECT_EQ(In(kIer), 0x0f);
  Out(kIer, 0);
  EXPECT_EQ(In(kIir), 0x01);
  Out(kFcr, 0x01);
  EXPECT_EQ(In(kIir) & 0xc0, 0xc0);
  Out(kLcr, 0xbf);
  EXPECT_NE(In(kIir), 0);  // would be EFR
  Out(kLcr, 0x80);
  Out(kFcr, 0x21);
  EXPECT_EQ(In(kIir) & 0x20, 0);  // no 64-byte FIFO
  Out(kLcr, 0x03);
  Out(kScratch, 0x5a);
  EXPECT_EQ(In(kScratch), 0x5a);
  Out(kMcr, 0x10 | 0x0a);
  EXPECT_EQ(In(kMsr) & 0xf0, 0x90);
}

TEST_F(UartTest, DivisorLatch) {
  Out(kLcr, 0x83);
  Out(kData, 0x01);
  Out(kIer, 0x02);
  EXPECT_EQ(In(kData), 0x01);
  EXPECT_EQ(In(kIer), 0x02);
  Out(kLcr, 0x03);
  EXPECT_EQ(In(kIer), 0x00);
}

TEST_F(UartTest, TransmitInterruptIsRaisedOnEnableAndAcknowledgedByIir) {
  Out(kIer, 0x02);
  EXPECT_TRUE(irq_.level);
  EXPECT_EQ(In(kIir), 0x02);
  EXPECT_FALSE(irq_.level);
  EXPECT_EQ(In(kIir), 0x01);
  Out(kData, 'a');
  EXPECT_TRUE(irq_.level);
  Out(kIer, 0x00);
  EXPECT_FALSE(irq_.level);
  Out(kIer, 0x02);
  EXPECT_TRUE(irq_.level);
}

TEST_F(UartTest, ReceiveInterruptAtTheTriggerLevelAndTimeoutBelow) {
  Out(kFcr, 0x81);  // FIFO, trigger at 8
  Out(kIer, 0x01);
  line_.Send("1234567");
  EXPECT_TRUE(irq_.level);
  EXPECT_EQ(In(kIir), 0xcc);  // time-out
  line_.Send("8");
  EXPECT_EQ(In(kIir), 0xc4);
  EXPECT_EQ(Drain(), "12345678");
  EXPECT_FALSE(irq_.level);
}

TEST_F(UartTest, LongInputWaitsForRoomAndArrivesWhole) {
  Out(kFcr, 0xc1);
  Out(kIer, 0x01);
  std::string text;
  for (int i = 0; i < 1000; ++i) text += static_cast<char>('a' + i % 26);
  line_.Send(text);
  EXPECT_EQ(line_.input.size(), 1000u - 16u);
  EXPECT_EQ(Drain(), text);
  EXPECT_EQ(In(kLsr) & 0x02, 0);  // no overrun
}

TEST_F(UartTest, InputWaitsUntilTheDriverListens) {
  line_.Send("early");
  // Probing and console output take nothing.
  Out(kFcr, 0x07);
  In(kLsr), In(kData), In(kIir), In(kMsr);
  for (int i = 0; i < 100; ++i) {
    In(kLsr);
    Out(kData, '.');
  }
  EXPECT_EQ(line_.input, "early");
  Out(kIer, 0x05);
  EXPECT_TRUE(irq_.level);
  EXPECT_EQ(Drain(), "early");
}

TEST_F(UartTest, InputThatAFifoResetThrowsAwayIsGivenAgain) {
  Out(kFcr, 0x01);
  Out(kIer, 0x01);
  line_.Send("abcdefghijklmnopqrstuvwxyz");
  EXPECT_EQ(In(kData), 'a');
  Out(kIer, 0x00);  // as a driver that shuts down
  Out(kFcr, 0x07);
  Out(kFcr, 0x00);
  EXPECT_EQ(In(kLsr) & 1, 0);
  EXPECT_EQ(In(kData), 0);
  Out(kFcr, 0x01);
  Out(kIer, 0x01);
  EXPECT_EQ(Drain(), "bcdefghijklmnopqrstuvwxyz");
}

TEST_F(UartTest, APollingReaderGetsInputToo) {
  line_.Send("poll");
  std::string text;
  for (int i = 0; i < 100; ++i) {
    if (In(kLsr) & 1) text += static_cast<char>(In(kData));
  }
  EXPECT_EQ(text, "poll");
}

TEST_F(UartTest, LoopbackReturnsBytesAndModemLines) {
  Out(kMcr, 0x10);
  In(kMsr);
  Out(kData, 'z');
  EXPECT_EQ(In(kLsr) & 1, 1);
  EXPECT_EQ(In(kData), 'z');
  Out(kMcr, 0x13);
  EXPECT_EQ(In(kMsr), 0x33);  // CTS and DSR with their deltas
  EXPECT_EQ(In(kMsr), 0x30);
  uart_.Flush();
  EXPECT_EQ(line_.output, "");
}

TEST_F(UartTest, OverrunAndBreakAreLineStatusInterrupts) {
  Out(kIer, 0x04);
  Out(kMcr, 0x10);
  Out(kData, '1');
  Out(kData, '2');  // no FIFO: overrun
  EXPECT_EQ(In(kIir), 0x06);
  EXPECT_EQ(In(kLsr) & 0x02, 0x02);
  EXPECT_EQ(In(kIir), 0x01);
  EXPECT_EQ(In(kData), '1');
  Out(kMcr, 0x00);
  uart_.ReceiveBreak();
  EXPECT_EQ(In(kLsr) & 0x10, 0x10);
}

TEST_F(UartTest, ModemStatusInterrupt) {
  Out(kIer, 0x08);
  Out(kMcr, 0x10);  // all lines drop
  EXPECT_EQ(In(kIir), 0x00);
  EXPECT_EQ(In(kMsr), 0x0b);
  EXPECT_FALSE(irq_.level);
}

}  // namespace
}  // namespace nacre::devices
