#include "display/key_pacer.h"

#include <gtest/gtest.h>

#include <vector>

#include "base/manual_scheduler.h"
#include "display/typist.h"

namespace nacre::display {
namespace {

constexpr int64_t kStrokeNs = Typist::kStrokeNs;

struct Keyboard final : InputSink {
  void Key(uint16_t code, bool down) override {
    seen.push_back({code, down});
    untaken = !takes;
  }
  bool keys_taken() const override { return !untaken; }
  void MovePointer(const PointerMove&) override {}
  uint8_t leds() const override { return 0; }

  std::vector<KeyStroke> seen;
  bool untaken = false, takes = true;
};

class KeyPacerTest : public testing::Test {
 protected:
  void Give(const std::vector<KeyStroke>& strokes) {
    for (const auto [key, down] : strokes) pacer_.Key(key, down);
  }
  Keyboard keyboard_;
  ManualScheduler scheduler_;
  KeyPacer pacer_{keyboard_, scheduler_};
};

TEST_F(KeyPacerTest, SingleStrokesComeAtOnce) {
  for (const bool down : {true, false}) {
    pacer_.Key(KEY_A, down);
    EXPECT_EQ(keyboard_.seen.back(), (KeyStroke{KEY_A, down}));
    EXPECT_TRUE(pacer_.keys_taken());
    scheduler_.Advance(kStrokeNs);
  }
}

TEST_F(KeyPacerTest, ABurstIsGivenStrokeByStroke) {
  const auto strokes = *TypeText("Nothing of a long text is lost.\n");
  Give(strokes);
  EXPECT_EQ(keyboard_.seen.size(), 1u);
  EXPECT_FALSE(pacer_.keys_taken());
  for (size_t i = 1; i < strokes.size(); ++i) {
    scheduler_.Advance(kStrokeNs);
    ASSERT_EQ(keyboard_.seen.size(), i + 1);
  }
  EXPECT_EQ(keyboard_.seen, strokes);
  EXPECT_TRUE(pacer_.keys_taken());
}

TEST_F(KeyPacerTest, NoStrokeComesBeforeTheOneBeforeIsTaken) {
  keyboard_.takes = false;
  Give({{KEY_A, true}, {KEY_A, false}});
  scheduler_.Advance(100 * kStrokeNs);
  EXPECT_EQ(keyboard_.seen.size(), 1u);
  keyboard_.untaken = false;
  scheduler_.Advance(kStrokeNs);
  EXPECT_EQ(keyboard_.seen.size(), 2u);
}

TEST_F(KeyPacerTest, WhatNobodyReadsIsDroppedAndNoKeyStaysDown) {
  keyboard_.takes = false;
  Give({{KEY_A, true}, {KEY_B, true}});
  scheduler_.Advance(Typist::kPatienceNs + 2 * kStrokeNs);
  EXPECT_EQ(keyboard_.seen, (std::vector<KeyStroke>{{KEY_A, true}, {KEY_A, false}}));
  keyboard_.takes = true;
  keyboard_.untaken = false;
  Give({{KEY_B, false}, {KEY_C, true}});
  scheduler_.Advance(kStrokeNs);
  EXPECT_EQ(keyboard_.seen.back(), (KeyStroke{KEY_C, true}));
  EXPECT_EQ(keyboard_.seen.size(), 3u);
}

TEST_F(KeyPacerTest, TooManyPressesAreDroppedReleasesAreNot) {
  pacer_.Key(KEY_LEFTSHIFT, true);
  for (size_t i = 0; i < 2 * KeyPacer::kMaxWaiting; ++i) pacer_.Key(KEY_A, i % 2 == 0);
  pacer_.Key(KEY_B, true);
  pacer_.Key(KEY_B, false);
  pacer_.Key(KEY_LEFTSHIFT, false);
  pacer_.Key(KEY_CNT, true);  // no such key
  scheduler_.Advance(2 * KeyPacer::kMaxWaiting * kStrokeNs);
  EXPECT_EQ(keyboard_.seen.size(), KeyPacer::kMaxWaiting + 2);
  EXPECT_EQ(keyboard_.seen.back(), (KeyStroke{KEY_LEFTSHIFT, false}));
}

}  // namespace
}  // namespace nacre::display
