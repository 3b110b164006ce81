#include "display/clipboard.h"

#include <gtest/gtest.h>

#include <random>

#include "base/fuzz_testing.h"

namespace nacre::display {
namespace {

using namespace std::string_literals;

TEST(Clipboard, CleanTextKeepsUtf8) {
  const std::string text = "a\t\u00e9\u20ac\U0001f40c\n";
  EXPECT_EQ(CleanText(text), text);
}

TEST(Clipboard, LinesEndWithLf) {
  EXPECT_EQ(CleanText("a\r\nb\rc\n\r\n"), "a\nb\nc\n\n");
  EXPECT_EQ(CleanText("a\0b\0"s), "ab");
  EXPECT_EQ(WithCrLf("a\nb\n\n"), "a\r\nb\r\n\r\n");
}

TEST(Clipboard, Rfc3629_WhatIsNoUtf8IsReplaced) {
  const std::string bad = "\ufffd";
  EXPECT_EQ(CleanText("\x80"), bad) << "a byte that only continues";
  EXPECT_EQ(CleanText("\xc0\xaf"), bad + bad) << "longer than needed";
  EXPECT_EQ(CleanText("\xe0\x80\xaf"), bad + bad + bad);
  EXPECT_EQ(CleanText("\xed\xa0\x80"), bad + bad + bad) << "a surrogate";
  EXPECT_EQ(CleanText("\xf4\x90\x80\x80"), bad + bad + bad + bad) << "beyond U+10FFFF";
  EXPECT_EQ(CleanText("\xff"), bad);
  EXPECT_EQ(CleanText("x\xe2\x82"), "x" + bad + bad) << "cut short";
  EXPECT_EQ(CleanText("\xe2y"), bad + "y");
}

TEST(Clipboard, Latin1) {
  EXPECT_EQ(CleanLatin1("\xe9\r\n\0x"s), "\u00e9\nx");
  EXPECT_EQ(ToLatin1("\u00e9\u20acx\u00ff\u0100"), "\xe9?x\xff?");
}

TEST(Clipboard, TextsAreBounded) {
  const std::string euros = [] {
    std::string text;
    while (text.size() <= kMaxClipboardBytes) text += "\u20ac";
    return text;
  }();
  EXPECT_EQ(CleanText(euros), euros.substr(0, kMaxClipboardBytes / 3 * 3));
  EXPECT_EQ(CleanText(std::string(kMaxClipboardBytes + 9, 'x')).size(), kMaxClipboardBytes);
  EXPECT_EQ(CleanLatin1(std::string(kMaxClipboardBytes, '\xe9')).size(), kMaxClipboardBytes);
}

TEST(Clipboard, RubbishBecomesCleanText) {
  std::mt19937_64 random(FuzzSeed(20261122));
  for (FuzzRun run(20'000); run.Next();) {
    std::string bytes(random() % 40, '\0');
    for (char& byte : bytes) byte = static_cast<char>(random() % 4 ? random() | 0x80 : random());
    const std::string text = CleanText(bytes);
    ASSERT_EQ(CleanText(text), text);
    ASSERT_EQ(text.find_first_of("\r\0"s), std::string::npos);
    ASSERT_EQ(CleanText(WithCrLf(text)), text);
    ASSERT_LE(ToLatin1(text).size(), text.size());
    const std::string latin1 = CleanLatin1(bytes);
    ASSERT_EQ(CleanText(latin1), latin1);
  }
}

}  // namespace
}  // namespace nacre::display
