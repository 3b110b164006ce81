#include "display/input_router.h"

#include <gtest/gtest.h>

#include <vector>

#include "display/keys.h"

namespace nacre::display {
namespace {

struct TestDevice final : InputSink {
  void Key(uint16_t code, bool down) override { keys.push_back({code, down}); }
  bool keys_taken() const override { return taken; }
  void MovePointer(const PointerMove& move) override { moves.push_back(move); }
  uint8_t leds() const override { return lit; }
  bool active() const override { return runs; }
  bool absolute() const override { return tablet; }
  std::vector<KeyStroke> keys;
  std::vector<PointerMove> moves;
  bool taken = true, runs = true, tablet = false;
  uint8_t lit = 0;
};

class InputRouterTest : public testing::Test {
 protected:
  InputRouterTest() {
    keyboard_.runs = tablet_.runs = false;
    tablet_.tablet = true;
    router_.SetKeyboard(&keyboard_);
    router_.SetPointer(&tablet_);
  }
  TestDevice ps2_, keyboard_, tablet_;
  InputRouter router_{ps2_};
};

TEST_F(InputRouterTest, TheDeviceWithADriverGetsTheKeys) {
  router_.Key(KEY_A, true);
  router_.Key(KEY_A, false);
  keyboard_.runs = true;
  keyboard_.lit = kCapsLockLed;
  keyboard_.taken = false;
  EXPECT_FALSE(router_.keys_taken());
  EXPECT_EQ(router_.leds(), kCapsLockLed);
  router_.Key(KEY_B, true);
  EXPECT_EQ(ps2_.keys.size(), 2u);
  EXPECT_EQ(keyboard_.keys, (std::vector<KeyStroke>{{KEY_B, true}}));
  router_.Key(KEY_CNT, true);
  EXPECT_EQ(keyboard_.keys.size(), 1u);
}

TEST_F(InputRouterTest, AKeyIsReleasedWhereItWasPressed) {
  router_.Key(KEY_LEFTCTRL, true);
  keyboard_.runs = true;
  router_.Key(KEY_LEFTCTRL, false);
  router_.Key(KEY_LEFTCTRL, true);
  EXPECT_EQ(ps2_.keys, (std::vector<KeyStroke>{{KEY_LEFTCTRL, true}, {KEY_LEFTCTRL, false}}));
  EXPECT_EQ(keyboard_.keys, (std::vector<KeyStroke>{{KEY_LEFTCTRL, true}}));
}

TEST_F(InputRouterTest, ButtonsAreReleasedWhereTheyWerePressed) {
  router_.MovePointer({.dx = 1, .buttons = kLeftButton});
  EXPECT_FALSE(router_.absolute());
  tablet_.runs = true;
  EXPECT_TRUE(router_.absolute());
  router_.MovePointer({.x = 7, .y = 8, .buttons = kLeftButton});
  ASSERT_EQ(ps2_.moves.size(), 2u);
  EXPECT_EQ(ps2_.moves[1].buttons, 0);
  ASSERT_EQ(tablet_.moves.size(), 1u);
  EXPECT_EQ(tablet_.moves[0].x, 7);
  EXPECT_EQ(tablet_.moves[0].buttons, kLeftButton);
}

}  // namespace
}  // namespace nacre::display
