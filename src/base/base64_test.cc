#include "base/base64.h"

#include <gtest/gtest.h>

namespace nacre {
namespace {

TEST(Base64, Rfc4648Section10) {
  for (const auto& [bytes, text] :
       {std::pair("", ""), std::pair("f", "Zg=="), std::pair("fo", "Zm8="), std::pair("foo", "Zm9v"),
        std::pair("foob", "Zm9vYg=="), std::pair("fooba", "Zm9vYmE="), std::pair("foobar", "Zm9vYmFy")}) {
    EXPECT_EQ(Base64Encode(bytes), text);
    EXPECT_EQ(Base64Decode(text), bytes);
  }
}

TEST(Base64, EveryByte) {
  std::string bytes;
  for (int i = 0; i < 1000; ++i) {
    EXPECT_EQ(Base64Decode(Base64Encode(bytes)), bytes);
    bytes += static_cast<char>(i * 7);
  }
}

TEST(Base64, WhatNoEncoderWrites) {
  for (const char* text :
       {"Z", "Zg", "Zg=", "Zg===", "Z===", "====", "Zh==", "Zm9=", "Zm9v\n", " Zm9", "Zm-v", "=Zm9", "Zg==Zg==",
        "Zm\xff"
        "v"})
    EXPECT_FALSE(Base64Decode(text)) << text;
}

}  // namespace
}  // namespace nacre
