#include "network/ethernet.h"

#include <gtest/gtest.h>

#include <vector>

namespace nacre::network {
namespace {

TEST(Mac, Parses) {
  EXPECT_EQ((MacAddress{0x52, 0x54, 0, 0xab, 0xcd, 0xef}), ParseMac("52:54:00:ab:CD:ef"));
  for (const char* wrong :
       {"", "52:54:00:ab:cd", "52:54:00:ab:cd:ef:00", "52-54-00-ab-cd-ef", "51:54:00:ab:cd:ef", "52:54:00:ab:cd:eg"})
    EXPECT_FALSE(ParseMac(wrong).has_value()) << wrong;
}

// RFC 1071, 3: the example's sum is ddf2 in network order.
TEST(OnesComplementSum, Rfc1071Section3) {
  std::vector<uint8_t> data{0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7};
  EXPECT_EQ(0xf2dd, OnesComplementSum(data));
  EXPECT_EQ(static_cast<uint16_t>(~0xf2dd), InternetChecksum(data));
  data.push_back(0x01);  // an odd byte counts as if a zero followed
  EXPECT_EQ(0xf2de, OnesComplementSum(data));
  EXPECT_EQ(0, OnesComplementSum({}));
}

}  // namespace
}  // namespace nacre::network
