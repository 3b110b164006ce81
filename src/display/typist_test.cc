#include "display/typist.h"

#include <gtest/gtest.h>
#include <linux/input-event-codes.h>

#include "base/manual_scheduler.h"

namespace nacre::display {
namespace {

struct SlowGuest final : InputSink {
  void Key(uint16_t code, bool down) override {
    seen.push_back({code, down});
    if (untaken) ++overruns;
    untaken = !takes;
  }
  bool keys_taken() const override { return !untaken; }
  void MovePointer(const PointerMove&) override {}
  uint8_t leds() const override { return 0; }

  std::vector<KeyStroke> seen;
  bool untaken = false, takes = true;
  unsigned overruns = 0;
};

class TypistTest : public testing::Test {
 protected:
  Typist::Done Note() {
    return [this](const Status& status) { told_.push_back(status ? "done" : status.error().message); };
  }
  SlowGuest guest_;
  ManualScheduler scheduler_;
  Typist typist_{guest_, scheduler_};
  std::vector<std::string> told_;
};

TEST_F(TypistTest, StrokesComeOneAfterAnother) {
  const auto strokes = *TypeText("Ab");
  typist_.Type(strokes, Note());
  EXPECT_EQ(guest_.seen.size(), 1u);
  scheduler_.Advance(5 * Typist::kStrokeNs + 1);
  EXPECT_EQ(guest_.seen, strokes);
  EXPECT_TRUE(told_.empty());
  scheduler_.Advance(Typist::kStrokeNs);
  EXPECT_EQ(told_, std::vector<std::string>{"done"});
}

TEST_F(TypistTest, NoStrokeComesBeforeTheOneBeforeIsTaken) {
  guest_.takes = false;
  typist_.Type(*TypeText("no"), Note());
  for (unsigned i = 1; i <= 4; ++i) {
    scheduler_.Advance(Typist::kPatienceNs / 2);
    EXPECT_EQ(guest_.seen.size(), i);
    guest_.untaken = false;
    scheduler_.Advance(Typist::kStrokeNs);
  }
  EXPECT_EQ(guest_.overruns, 0u);
  EXPECT_EQ(told_, std::vector<std::string>{"done"});
}

TEST_F(TypistTest, AGuestThatReadsNoKeysIsGivenUpAndKeysAreReleased) {
  guest_.takes = false;
  typist_.Type(*PressKeys("ctrl-c"), Note());
  typist_.Type(*TypeText("x"), Note());
  scheduler_.Advance(Typist::kPatienceNs + Typist::kStrokeNs);
  ASSERT_EQ(told_.size(), 1u);
  EXPECT_EQ(told_[0], "the guest does not read its keyboard: 1 of 4 key strokes were given");
  EXPECT_EQ(guest_.seen, (std::vector<KeyStroke>{{KEY_LEFTCTRL, true}, {KEY_LEFTCTRL, false}}));
  guest_.takes = true;
  guest_.untaken = false;
  scheduler_.Advance(3 * Typist::kStrokeNs);
  EXPECT_EQ(told_.size(), 2u);
  EXPECT_EQ(told_[1], "done");
}

TEST_F(TypistTest, TextsFollowEachOtherAndMayBeEmpty) {
  typist_.Type(*TypeText("a"), Note());
  typist_.Type({}, Note());
  typist_.Type(*TypeText("b"), Note());
  scheduler_.Advance(10 * Typist::kStrokeNs);
  EXPECT_EQ(guest_.seen, *TypeText("ab"));
  EXPECT_EQ(told_.size(), 3u);
  typist_.Type({}, Note());
  EXPECT_EQ(told_.size(), 4u);
}

TEST_F(TypistTest, WhoeverWaitsIsToldOfTheEnd) {
  typist_.Type(*PressKeys("alt-tab"), Note());
  typist_.Type(*TypeText("b"), Note());
  typist_.Cancel();
  EXPECT_EQ(told_, (std::vector<std::string>{"the guest has ended", "the guest has ended"}));
  EXPECT_EQ(guest_.seen.back(), (KeyStroke{KEY_LEFTALT, false}));
  scheduler_.Advance(10 * Typist::kStrokeNs);
  EXPECT_EQ(guest_.seen.size(), 2u);
}

}  // namespace
}  // namespace nacre::display
