#include "devices/legacy/i8042.h"

#include <gtest/gtest.h>

#include "devices/chipset/device_testing.h"

namespace nacre::devices {
namespace {

class I8042Test : public testing::Test {
 protected:
  uint64_t Status() { return i8042_.command_io().Read(0, 1); }
  void Command(uint8_t value) { i8042_.command_io().Write(0, 1, value); }
  uint64_t Data() { return i8042_.data_io().Read(0, 1); }
  void Data(uint8_t value) { i8042_.data_io().Write(0, 1, value); }

  TestLine irq_;
  TestMachine machine_;
  I8042 i8042_{irq_, machine_};
};

TEST_F(I8042Test, SelfTestAnswersAtOnce) {
  EXPECT_EQ(Status() & 0x03, 0u);
  Command(0xaa);
  EXPECT_EQ(Status() & 0x05, 0x05u);
  EXPECT_EQ(Data(), 0x55u);
  EXPECT_EQ(Status() & 0x01, 0u);
}

TEST_F(I8042Test, CommandByteCanBeReadAndWritten) {
  Command(0x60);
  Data(0x47);
  Command(0x20);
  EXPECT_EQ(Data(), 0x47u);
}

TEST_F(I8042Test, AnAbsentKeyboardTimesOutAtOnceWithAnInterrupt) {
  Command(0x60);
  Data(0x01);
  Data(0xf2);
  EXPECT_EQ(Status() & 0x41, 0x41u);
  EXPECT_TRUE(irq_.level);
  EXPECT_EQ(Data(), 0xfeu);
  EXPECT_FALSE(irq_.level);
}

TEST_F(I8042Test, ThereIsNoAuxiliaryPort) {
  Command(0xd3);
  Data(0x5a);
  EXPECT_EQ(Status() & 0x21, 0x01u);  // the loop comes back without the auxiliary flag
  Data();
  Command(0xa9);
  EXPECT_EQ(Data(), 0x01u);
}

TEST_F(I8042Test, PulsingBit0Resets) {
  Command(0xff);
  EXPECT_EQ(machine_.resets, 0);
  Command(0xfe);
  EXPECT_EQ(machine_.resets, 1);
  Command(0xd1);
  Data(0x02);
  EXPECT_EQ(machine_.resets, 2);
}

}  // namespace
}  // namespace nacre::devices
