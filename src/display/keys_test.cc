#include "display/keys.h"

#include <gtest/gtest.h>
#include <linux/input-event-codes.h>

namespace nacre::display {
namespace {

TEST(Keys, ScanCodesGoThereAndBack) {
  unsigned keys = 0;
  for (uint16_t key = 0; key < 300; ++key) {
    const auto code = ScanCodeOf(key);
    if (!code) continue;
    ++keys;
    EXPECT_EQ(KeyOfScanCode(*code), key);
  }
  EXPECT_GT(keys, 104u);
  EXPECT_FALSE(ScanCodeOf(KEY_PAUSE));
  EXPECT_EQ(KeyOfScanCode({0, false}), 0);
}

TEST(Keys, SymbolsOfX11) {
  EXPECT_EQ(FindSymbol('a')->key, KEY_A);
  EXPECT_FALSE(FindSymbol('a')->shift);
  EXPECT_TRUE(FindSymbol('A')->shift);
  EXPECT_TRUE(FindSymbol('A')->letter);
  EXPECT_EQ(FindSymbol('!')->key, KEY_1);
  EXPECT_TRUE(FindSymbol('!')->shift);
  EXPECT_TRUE(FindSymbol(' ')->any_shift);
  EXPECT_EQ(FindSymbol(0xff0d)->key, KEY_ENTER);
  EXPECT_EQ(FindSymbol(0xffff)->key, KEY_DELETE);
  EXPECT_FALSE(FindSymbol(0));
  EXPECT_FALSE(FindSymbol(0x20ac));
  for (uint32_t symbol = 0x20; symbol < 0x7f; ++symbol) EXPECT_TRUE(FindSymbol(symbol)) << symbol;
}

TEST(Keys, TextIsTypedWithShiftWhereItIsNeeded) {
  const std::vector<KeyStroke> want{{KEY_A, true},     {KEY_A, false},     {KEY_LEFTSHIFT, true},
                                    {KEY_SLASH, true}, {KEY_SLASH, false}, {KEY_LEFTSHIFT, false},
                                    {KEY_ENTER, true}, {KEY_ENTER, false}};
  EXPECT_EQ(TypeText("a?\n").value(), want);
  EXPECT_FALSE(TypeText("\x01"));
  EXPECT_FALSE(TypeText("\xc3\xa4"));
  EXPECT_FALSE(TypeText(std::string_view("\0", 1)));
}

TEST(Keys, CombinationsAreReleasedInReverse) {
  const std::vector<KeyStroke> want{{KEY_LEFTCTRL, true}, {KEY_LEFTALT, true},  {KEY_DELETE, true},
                                    {KEY_DELETE, false},  {KEY_LEFTALT, false}, {KEY_LEFTCTRL, false}};
  EXPECT_EQ(PressKeys("Ctrl-Alt-Del").value(), want);
  EXPECT_EQ(PressKeys("kpenter").value().front().key, KEY_KPENTER);
  EXPECT_EQ(PressKeys("ctrl-rightalt-f12").value()[1].key, KEY_RIGHTALT);
  EXPECT_EQ(PressKeys("ctrl-right").value()[1].key, KEY_RIGHT);
  EXPECT_EQ(PressKeys("ctrl-minus").value()[1].key, KEY_MINUS);
  EXPECT_EQ(PressKeys("x").value().size(), 2u);
  for (const char* wrong : {"", "ctrl-", "-", "ctrl-foo", "a b", "f13", "?"}) EXPECT_FALSE(PressKeys(wrong)) << wrong;
}

}  // namespace
}  // namespace nacre::display
