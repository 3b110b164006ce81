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
  EXPECT_TRUE(TypeText("na\xc3\xafve").error().message.starts_with("cannot type '\xc3\xaf' (U+00EF):"));
  EXPECT_TRUE(TypeText("\xf0\x9f\x90\x9a").error().message.starts_with("cannot type '\xf0\x9f\x90\x9a' (U+1F41A):"));
  EXPECT_TRUE(TypeText("\x1b").error().message.starts_with("cannot type U+001B:"));
  for (const char* wrong : {"\xc3", "\x80", "\xff", "\xe2\x82", "\xc3(", "\xf8\x88\x80\x80\x80"})
    EXPECT_TRUE(TypeText(wrong).error().message.starts_with("cannot type byte 0x")) << wrong;
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
  for (const char* wrong : {"", "ctrl-", "-", "ctrl-foo", "a  b", "a ", "f13", "?"})
    EXPECT_FALSE(PressKeys(wrong)) << wrong;
}

TEST(Keys, CombinationsFollowEachOther) {
  const std::vector<KeyStroke> want{{KEY_ESC, true}, {KEY_ESC, false},       {KEY_LEFTSHIFT, true}, {KEY_A, true},
                                    {KEY_A, false},  {KEY_LEFTSHIFT, false}, {KEY_A, true},         {KEY_A, false}};
  EXPECT_EQ(PressKeys("esc shift-a a").value(), want);
}

TEST(Keys, EveryNameInTheListIsAKey) {
  const std::vector<std::string> lines = KeyNames();
  EXPECT_GT(lines.size(), 40u);
  for (const std::string& line : lines) {
    const auto strokes = PressKeys(line);
    ASSERT_TRUE(strokes) << line;
    for (const KeyStroke& stroke : *strokes) EXPECT_EQ(stroke.key, strokes->front().key) << line;
  }
}

}  // namespace
}  // namespace nacre::display
