#include "base/printable.h"

#include <gtest/gtest.h>

namespace nacre {
namespace {

TEST(Printable, TextStays) {
  EXPECT_EQ("na\xc3\xafve, 3 \xe2\x82\xac, \xc2\xa0", Printable("na\xc3\xafve, 3 \xe2\x82\xac, \xc2\xa0"));
}

TEST(Printable, ControlCharactersAreQuestionMarks) {
  EXPECT_EQ("?[2J a?b?", Printable("\x1b[2J a\nb\x7f"));
  EXPECT_EQ("?31m?", Printable("\xc2\x9b"
                               "31m\xc2\x80"));
}

TEST(Printable, HalfACharacterAtTheEndStays) { EXPECT_EQ("a\xc2", Printable("a\xc2")); }

}  // namespace
}  // namespace nacre
