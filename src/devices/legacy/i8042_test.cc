#include "devices/legacy/i8042.h"
#include "base/fuzz_testing.h"

#include <gtest/gtest.h>
#include <linux/input-event-codes.h>

#include <cstdlib>
#include <random>
#include <vector>

#include "base/bits.h"
#include "devices/chipset/device_testing.h"

namespace nacre::devices {
namespace {

class I8042Test : public testing::Test {
 protected:
  uint64_t Status() { return i8042_.command_io().Read(0, 1); }
  void Command(uint8_t value) { i8042_.command_io().Write(0, 1, value); }
  uint64_t Data() { return i8042_.data_io().Read(0, 1); }
  void Data(uint8_t value) { i8042_.data_io().Write(0, 1, value); }

  ManualScheduler scheduler_;
  TestLine irq_, mouse_irq_;
  TestMachine machine_;
  A20Gate a20_;
  I8042 i8042_{scheduler_, irq_, mouse_irq_, machine_, a20_, false};
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

class Ps2Test : public testing::Test {
 protected:
  using Bytes = std::vector<uint8_t>;
  uint8_t Status() { return static_cast<uint8_t>(i8042_.command_io().Read(0, 1)); }
  void Command(uint8_t value) { i8042_.command_io().Write(0, 1, value); }
  void Data(uint8_t value) { i8042_.data_io().Write(0, 1, value); }
  void ToMouse(uint8_t value) {
    Command(0xd4);
    Data(value);
  }
  /// All that waits; each byte must be of the port that is said.
  Bytes ReadAll(bool mouse) {
    Bytes bytes;
    while (Status() & 1) {
      EXPECT_EQ((Status() & 0x20) != 0, mouse);
      bytes.push_back(static_cast<uint8_t>(i8042_.data_io().Read(0, 1)));
      scheduler_.Advance(I8042::kByteNs);
      if (bytes.size() > 500) break;
    }
    return bytes;
  }
  Bytes Keyboard() { return ReadAll(false); }
  Bytes Mouse() { return ReadAll(true); }
  /// As drivers do: both ports open, with interrupts.
  void Open(uint8_t mode) {
    Command(0x60);
    Data(mode);
  }

  ManualScheduler scheduler_;
  TestLine irq_, mouse_irq_;
  TestMachine machine_;
  A20Gate a20_;
  I8042 i8042_{scheduler_, irq_, mouse_irq_, machine_, a20_, true};
};

TEST_F(Ps2Test, KeyboardIdentifiesItselfWithAnInterruptForEachByte) {
  Open(0x03);
  Data(0xf2);
  EXPECT_TRUE(irq_.level);
  EXPECT_EQ(Keyboard(), (Bytes{0xfa, 0xab, 0x83}));
  EXPECT_EQ(irq_.rises, 3);
  EXPECT_EQ(mouse_irq_.rises, 0);
  Open(0x43);
  Data(0xf2);
  EXPECT_EQ(Keyboard(), (Bytes{0xfa, 0xab, 0x41})) << "translated";
  Data(0xff);
  EXPECT_EQ(Keyboard(), (Bytes{0xfa, 0xaa}));
  Data(0xee);
  EXPECT_EQ(Keyboard(), (Bytes{0xee}));
  Data(0xfe);
  EXPECT_EQ(Keyboard(), (Bytes{0xee})) << "resend";
  Data(0x77);
  EXPECT_EQ(Keyboard(), (Bytes{0xfe}));
}

TEST_F(Ps2Test, ScanCodesInBothSetsAndTranslated) {
  Open(0x03);
  i8042_.Key(KEY_A, true);
  i8042_.Key(KEY_A, false);
  i8042_.Key(KEY_UP, true);
  i8042_.Key(KEY_UP, false);
  EXPECT_EQ(Keyboard(), (Bytes{0x1c, 0xf0, 0x1c, 0xe0, 0x75, 0xe0, 0xf0, 0x75}));
  Open(0x43);
  for (const uint16_t key : {KEY_A, KEY_UP, KEY_F7}) {
    i8042_.Key(key, true);
    i8042_.Key(key, false);
  }
  EXPECT_EQ(Keyboard(), (Bytes{0x1e, 0x9e, 0xe0, 0x48, 0xe0, 0xc8, 0x41, 0xc1}));
  Open(0x03);
  Data(0xf0);
  Data(0x01);
  EXPECT_EQ(Keyboard(), (Bytes{0xfa, 0xfa}));
  i8042_.Key(KEY_DELETE, false);
  i8042_.Key(KEY_PAUSE, true);
  EXPECT_EQ(Keyboard(), (Bytes{0xe0, 0xd3, 0xe1, 0x1d, 0x45, 0xe1, 0x9d, 0xc5}));
  Data(0xf0);
  Data(0x00);
  EXPECT_EQ(Keyboard(), (Bytes{0xfa, 0xfa, 0x01}));
  Data(0xf0);
  Data(0x03);
  EXPECT_EQ(Keyboard(), (Bytes{0xfa, 0xfe})) << "there is no set 3";
}

TEST_F(Ps2Test, AByteStaysUntilTheNextOneHasCome) {
  Open(0x43);
  i8042_.Key(KEY_A, true);
  i8042_.Key(KEY_A, false);
  EXPECT_EQ(irq_.rises, 1);
  const auto read = [&] { return i8042_.data_io().Read(0, 1); };
  EXPECT_EQ(read(), 0x1eu);
  EXPECT_FALSE(irq_.level);
  scheduler_.Advance(I8042::kByteNs - 1);
  EXPECT_EQ(Status() & 1, 0);
  EXPECT_EQ(read(), 0x1eu) << "the handler that the program calls reads it again";
  scheduler_.Advance(1);
  EXPECT_EQ(Status() & 1, 1) << "and that does not put the next one off";
  EXPECT_EQ(irq_.rises, 2);
  EXPECT_EQ(read(), 0x9eu);
  Command(0x20);
  EXPECT_EQ(read(), 0x43u) << "the controller itself answers at once";
  scheduler_.Advance(I8042::kByteNs);
  EXPECT_EQ(Status() & 1, 0);
  i8042_.Key(KEY_B, true);
  EXPECT_EQ(Status() & 1, 1) << "the wire was free";
}

TEST_F(Ps2Test, KeyboardAndMouseShareTheWireAfterASaveToo) {
  Open(0x43);
  ToMouse(0xf4);
  EXPECT_EQ(Mouse(), (Bytes{0xfa}));
  i8042_.Key(KEY_A, true);
  i8042_.MovePointer({.dx = 1});
  EXPECT_EQ(i8042_.data_io().Read(0, 1), 0x1eu);
  scheduler_.Advance(I8042::kByteNs / 2);
  auto out = state::Archive::ForSaving();
  i8042_.Serialize(out);
  const std::vector<uint8_t> bytes = out.Finish();
  i8042_.Reset();
  scheduler_.Advance(I8042::kByteNs / 4);
  auto in = state::Archive::ForLoading(bytes);
  i8042_.Serialize(in);
  EXPECT_TRUE(in.ok());
  EXPECT_EQ(Status() & 1, 0);
  scheduler_.Advance(I8042::kByteNs / 4);
  EXPECT_TRUE(mouse_irq_.level);
  EXPECT_EQ(Mouse(), (Bytes{0x08, 1, 0}));
}

TEST_F(Ps2Test, EveryKeyIsTheSameInSet1AndTranslatedFromSet2) {
  for (uint16_t key = 1; key < 200; ++key) {
    Open(0x43);
    Data(0xf6);
    Keyboard();
    i8042_.Key(key, true);
    i8042_.Key(key, false);
    const Bytes translated = Keyboard();
    Open(0x03);
    Data(0xf0);
    Data(0x01);
    Keyboard();
    i8042_.Key(key, true);
    i8042_.Key(key, false);
    EXPECT_EQ(Keyboard(), translated) << "key " << key;
  }
}

TEST_F(Ps2Test, LedsScanningAndDefaults) {
  Open(0x03);
  Data(0xed);
  Data(0x06);
  EXPECT_EQ(Keyboard(), (Bytes{0xfa, 0xfa}));
  EXPECT_EQ(i8042_.leds(), display::kNumLockLed | display::kCapsLockLed);
  Data(0xf3);
  Data(0x00);
  EXPECT_EQ(Keyboard(), (Bytes{0xfa, 0xfa}));
  Data(0xf5);
  Keyboard();
  i8042_.Key(KEY_A, true);
  EXPECT_EQ(Keyboard(), Bytes());
  Data(0xf4);
  Keyboard();
  i8042_.Key(KEY_A, true);
  EXPECT_EQ(Keyboard(), (Bytes{0x1c}));
}

TEST_F(Ps2Test, ADisabledPortKeepsItsBytes) {
  Open(0x13);
  i8042_.Key(KEY_A, true);
  EXPECT_EQ(Status() & 1, 0);
  Command(0xae);
  EXPECT_EQ(Keyboard(), (Bytes{0x1c}));
}

TEST_F(Ps2Test, KeysThatNobodyFetchesAreBoundedAndWhole) {
  Open(0x13);
  for (int i = 0; i < 1000; ++i) i8042_.Key(KEY_DELETE, false);
  Command(0xae);
  const Bytes bytes = Keyboard();
  EXPECT_LE(bytes.size(), Ps2Device::kMaxEvents);
  EXPECT_EQ(bytes.size() % 3, 0u);
}

TEST_F(Ps2Test, MouseBecomesAnIntelliMouse) {
  Open(0x03);
  ToMouse(0xff);
  EXPECT_TRUE(mouse_irq_.level);
  EXPECT_EQ(Mouse(), (Bytes{0xfa, 0xaa, 0x00}));
  ToMouse(0xf2);
  EXPECT_EQ(Mouse(), (Bytes{0xfa, 0x00}));
  for (const uint8_t rate : {200, 100, 80}) {
    ToMouse(0xf3);
    ToMouse(rate);
  }
  Mouse();
  ToMouse(0xf2);
  EXPECT_EQ(Mouse(), (Bytes{0xfa, 0x03}));
  i8042_.MovePointer({.dx = 1});
  EXPECT_EQ(Mouse(), Bytes()) << "it does not report yet";
  ToMouse(0xf4);
  Mouse();
  i8042_.MovePointer({.dx = 5, .dy = 3, .wheel = 1, .buttons = display::kRightButton});
  EXPECT_EQ(Mouse(), (Bytes{0x2a, 5, 0xfd, 0xff}));
  i8042_.MovePointer({.buttons = display::kRightButton});
  EXPECT_EQ(Mouse(), Bytes()) << "nothing new";
  ToMouse(0xe9);
  EXPECT_EQ(Mouse(), (Bytes{0xfa, 0x21, 0x02, 80}));
}

TEST_F(Ps2Test, MovesAddUpWhileNobodyFetchesThem) {
  Open(0x03);
  ToMouse(0xf4);
  Mouse();
  for (int i = 0; i < 100; ++i) i8042_.MovePointer({.dx = -3});
  const Bytes bytes = Mouse();
  ASSERT_EQ(bytes.size() % 3, 0u);
  int moved = 0;
  for (size_t i = 0; i < bytes.size(); i += 3) {
    EXPECT_EQ(bytes[i] & 0xef, 0x08);
    moved += bytes[i + 1] - ((bytes[i] & 0x10) ? 256 : 0);
  }
  EXPECT_EQ(moved, -300);
}

TEST_F(Ps2Test, MouseInRemoteAndWrapMode) {
  Open(0x03);
  ToMouse(0xf0);
  i8042_.MovePointer({.dx = 7, .dy = -7});
  EXPECT_EQ(Mouse(), (Bytes{0xfa}));
  ToMouse(0xeb);
  EXPECT_EQ(Mouse(), (Bytes{0xfa, 0x08, 7, 7}));
  ToMouse(0xee);
  ToMouse(0xf2);
  EXPECT_EQ(Mouse(), (Bytes{0xfa, 0xf2}));
  ToMouse(0xec);
  EXPECT_EQ(Mouse(), (Bytes{0xfa}));
}

TEST_F(Ps2Test, TheAuxiliaryPortLoopsAndTestsGood) {
  Command(0xa9);
  EXPECT_EQ(Keyboard(), (Bytes{0x00}));
  Command(0xd3);
  Data(0x5a);
  EXPECT_EQ(Mouse(), (Bytes{0x5a}));
}

TEST_F(Ps2Test, OutputPortHasTheA20GateAndShowsTheBuffer) {
  Command(0xd0);
  EXPECT_EQ(Keyboard(), (Bytes{0x03}));
  Command(0xdd);
  EXPECT_FALSE(a20_.on());
  Command(0xd0);
  EXPECT_EQ(Keyboard(), (Bytes{0x01}));
  Command(0xd1);
  Data(0x03);
  EXPECT_TRUE(a20_.on());
  Command(0xd0);
  EXPECT_EQ(Keyboard(), (Bytes{0x03}));
  Command(0xd1);
  Data(0x01);
  EXPECT_FALSE(a20_.on());
  Command(0xdf);
  EXPECT_TRUE(a20_.on());
  Command(0xfd);
  EXPECT_TRUE(a20_.on()) << "a pulse is over before the guest looks";
  a20_.Set(false);
  Command(0xd0);
  EXPECT_EQ(Keyboard(), (Bytes{0x01})) << "by whomever it was switched";
  EXPECT_EQ(machine_.resets, 0);
}

/// Longer runs: base/fuzz_testing.h.
TEST_F(Ps2Test, FuzzACommandStreamComesBackAfterAReset) {
  std::mt19937_64 random(FuzzSeed(8042));
  for (FuzzRun run(200'000); run.Next();) {
    const uint64_t r = random();
    const auto byte = static_cast<uint8_t>(r >> 8);
    switch (r % 8) {
      case 0:
        Command(byte);
        break;
      case 1:
        Data(byte);
        break;
      case 2:
        ToMouse(byte | 0xe0);
        break;
      case 3:
        Data(byte | 0xe0);
        break;
      case 4:
        i8042_.Key(static_cast<uint16_t>(r >> 16), TestBit(r, 40));
        break;
      case 5:
        i8042_.MovePointer({.dx = static_cast<int>(r >> 16),
                            .dy = static_cast<int>(r >> 32),
                            .wheel = static_cast<int>(r >> 20),
                            .buttons = byte});
        break;
      default:
        i8042_.data_io().Read(0, 1);
        scheduler_.Advance(static_cast<int64_t>(r >> 44));
    }
  }
  i8042_.Reset();
  Open(0x03);
  Data(0xf2);
  EXPECT_EQ(Keyboard(), (Bytes{0xfa, 0xab, 0x83}));
}

}  // namespace
}  // namespace nacre::devices
