#include "base/sha256.h"

#include <gtest/gtest.h>

#include "base/sha1.h"

namespace nacre {
namespace {

template <typename Hash>
std::string Digest(std::string_view text, size_t step) {
  Hash sum;
  for (size_t at = 0; at < text.size(); at += step) {
    const std::string_view piece = text.substr(at, step);
    sum.Add({reinterpret_cast<const uint8_t*>(piece.data()), piece.size()});
  }
  return sum.Finish();
}

TEST(Sha1, NistExamples) {
  for (const size_t step : {size_t{1}, size_t{64}, size_t{100'000}}) {
    EXPECT_EQ(Digest<Sha1>("abc", step), "a9993e364706816aba3e25717850c26c9cd0d89d");
    EXPECT_EQ(Digest<Sha1>("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", step),
              "84983e441c3bd26ebaae4aa1f95129e5e54670f1");
    EXPECT_EQ(Digest<Sha1>(std::string(1'000'000, 'a'), step), "34aa973cd4c4daa4f61eeb2bdbad27316534016f");
  }
}

TEST(Sha256, NistExamples) {
  for (const size_t step : {size_t{1}, size_t{7}, size_t{63}, size_t{64}, size_t{65}, size_t{100'000}}) {
    EXPECT_EQ(Digest<Sha256>("", step), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    EXPECT_EQ(Digest<Sha256>("abc", step), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    EXPECT_EQ(Digest<Sha256>("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", step),
              "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    EXPECT_EQ(Digest<Sha256>(std::string(1'000'000, 'a'), step),
              "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
  }
}

}  // namespace
}  // namespace nacre
