#include "state/state_file.h"

#include <gtest/gtest.h>

#include <random>

#include "base/bits.h"
#include "state/crc32c.h"

namespace nacre::state {
namespace {

std::span<const uint8_t> Bytes(std::string_view text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

StateFile Sample() {
  StateFile file;
  file.Add("config", {1, 2, 3});
  file.Add("device:serial0", std::vector<uint8_t>(300, 0x5a));
  file.Add("empty", {});
  return file;
}

std::string ErrorOf(std::span<const uint8_t> bytes) {
  const auto file = StateFile::Decode(bytes);
  return file ? "" : file.error().message;
}

TEST(Crc32cTest, KnownValuesAndPieces) {
  EXPECT_EQ(Crc32c(Bytes("123456789")), 0xe3069283u);  // the check value of CRC-32C
  EXPECT_EQ(Crc32c({}), 0u);
  EXPECT_EQ(Crc32c(std::vector<uint8_t>(32, 0)), 0x8a9136aau);  // RFC 3720, B.4
  EXPECT_EQ(Crc32c(Bytes("6789"), Crc32c(Bytes("12345"))), 0xe3069283u);
}

TEST(StateFileTest, KeepsSectionsInOrder) {
  const auto file = StateFile::Decode(Sample().Encode());
  ASSERT_TRUE(file) << file.error().message;
  ASSERT_EQ(file->sections().size(), 3u);
  EXPECT_EQ(file->sections()[1].name, "device:serial0");
  EXPECT_EQ(file->Find("config")->content, (std::vector<uint8_t>{1, 2, 3}));
  EXPECT_EQ(file->Find("empty")->content.size(), 0u);
  EXPECT_EQ(file->Find("cpu0"), nullptr);
}

TEST(StateFileTest, EveryBitCounts) {
  const std::vector<uint8_t> good = Sample().Encode();
  for (size_t at = 0; at < good.size(); ++at) {
    std::vector<uint8_t> bad = good;
    bad[at] ^= static_cast<uint8_t>(1 << (at % 8));
    EXPECT_FALSE(StateFile::Decode(bad)) << at;
  }
}

TEST(StateFileTest, EveryTruncationIsFound) {
  const std::vector<uint8_t> good = Sample().Encode();
  for (size_t size = 0; size < good.size(); ++size)
    EXPECT_FALSE(StateFile::Decode(std::span(good).first(size))) << size;
  std::vector<uint8_t> longer = good;
  longer.push_back(0);
  EXPECT_EQ(ErrorOf(longer), "1 bytes behind the last section");
}

TEST(StateFileTest, SaysWhichPartIsDamaged) {
  const std::vector<uint8_t> good = Sample().Encode();
  std::vector<uint8_t> bad = good;
  bad[bad.size() / 2] ^= 1;
  EXPECT_EQ(ErrorOf(bad), "section 'device:serial0' is damaged");
  EXPECT_EQ(ErrorOf(std::span(good).first(good.size() / 2)), "the file ends inside section 'device:serial0'");
  bad = good;
  bad[24 + 8 + 7] = 0x7f;  // the first section's size
  EXPECT_EQ(ErrorOf(bad), "the header of the first section is damaged");
  EXPECT_EQ(ErrorOf(Bytes("a text that is no state of anything")), "not a saved state of Nacre");
}

/// With the checksum of its header as it should be.
std::vector<uint8_t> WithHeader(std::vector<uint8_t> bytes, size_t offset, uint32_t value) {
  StoreLe(&bytes[offset], value);
  StoreLe(&bytes[20], Crc32c(std::span(bytes).first(20)));
  return bytes;
}

TEST(StateFileTest, NewerVersionsAndManySectionsAreRefused) {
  const std::vector<uint8_t> good = Sample().Encode();
  EXPECT_EQ(ErrorOf(WithHeader(good, 8, 2)), "format version 2: this Nacre knows version 1; use a newer one");
  EXPECT_EQ(ErrorOf(WithHeader(good, 12, 0xffffffff)), "the header claims 4294967295 sections");
  EXPECT_EQ(ErrorOf(WithHeader(good, 12, 4)), "the file ends before the section behind 'empty'");
}

TEST(StateFileTest, HostileSizesWithGoodChecksums) {
  const std::vector<uint8_t> good = Sample().Encode();
  for (const uint64_t size : {~uint64_t{0}, uint64_t{1} << 63, uint64_t{good.size()}}) {
    std::vector<uint8_t> bad = good;
    StoreLe(&bad[24 + 8], size);
    StoreLe(&bad[24 + 16 + 6], Crc32c(std::span(bad).subspan(24, 16 + 6)));
    EXPECT_EQ(ErrorOf(bad), "the file ends inside section 'config'");
  }
  std::vector<uint8_t> bad = good;
  StoreLe(&bad[24], 0xfffffff0u);
  EXPECT_EQ(ErrorOf(bad), "the header of the first section is damaged");
  // The same name twice.
  std::vector<uint8_t> twice = StateFile().Encode();
  StateFile one;
  one.Add("a", {});
  const std::vector<uint8_t> encoded = one.Encode();
  for (int i = 0; i < 2; ++i) twice.insert(twice.end(), encoded.begin() + 24, encoded.end());
  EXPECT_EQ(ErrorOf(WithHeader(twice, 12, 2)), "section 'a' is there twice");
}

TEST(StateFileTest, RandomDamageNeverCrashes) {
  std::mt19937_64 random(7);
  const std::vector<uint8_t> good = Sample().Encode();
  for (int i = 0; i < 20000; ++i) {
    std::vector<uint8_t> bad = good;
    for (unsigned n = 1 + random() % 8; n > 0; --n) bad[random() % bad.size()] = static_cast<uint8_t>(random());
    bad.resize(random() % (bad.size() + 1));
    // Often past the first check.
    if (bad.size() >= 24 && random() % 4 != 0) bad = WithHeader(std::move(bad), 8, 1);
    (void)StateFile::Decode(bad);
  }
}

}  // namespace
}  // namespace nacre::state
