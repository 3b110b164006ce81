#include "state/archive.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>

#include "base/bits.h"

namespace nacre::state {
namespace {

enum class Mode : uint8_t { kIdle, kBusy };

/// One of everything, as a device would write it.
struct Sample {
  uint8_t byte = 0xfe;
  int32_t negative = -5;
  uint64_t wide = 0xfedcba9876543210;
  bool flag = true;
  Mode mode = Mode::kBusy;
  uint16_t table[3] = {1, 2, 3};
  uint8_t fixed[4] = {9, 8, 7, 6};
  std::vector<uint8_t> fifo = {1, 2, 3, 4, 5};
  std::string name = "serial";
  std::vector<uint32_t> queue = {10, 20, 30};
  uint16_t loaded_version = 0;

  void Serialize(Archive& archive) {
    archive.Field(1, byte);
    archive.Field(2, negative);
    archive.Field(3, wide);
    archive.Field(4, flag);
    archive.Field(5, mode);
    archive.Array(6, table);
    archive.Bytes(7, std::span(fixed));
    archive.Bytes(8, fifo, 16);
    archive.Text(9, name, 32);
    archive.Section(10, 3, [this](Archive& inner, uint16_t version) {
      loaded_version = version;
      inner.List(
          1, queue.size(), 8, [this](size_t count) { queue.resize(count); },
          [this](Archive& element, size_t i) { element.Field(1, queue[i]); });
    });
  }
  bool operator==(const Sample& other) const {
    return byte == other.byte && negative == other.negative && wide == other.wide && flag == other.flag &&
           mode == other.mode && std::memcmp(table, other.table, sizeof table) == 0 &&
           std::memcmp(fixed, other.fixed, sizeof fixed) == 0 && fifo == other.fifo && name == other.name &&
           queue == other.queue;
  }
};

Sample Blank() { return {0, 0, 0, false, Mode::kIdle, {0, 0, 0}, {0, 0, 0, 0}, {}, "", {}, 0}; }

template <typename T>
std::vector<uint8_t> Save(T& value) {
  Archive archive = Archive::ForSaving();
  value.Serialize(archive);
  return archive.Finish();
}

/// One field by hand.
std::vector<uint8_t> RawField(uint16_t id, uint16_t kind, uint32_t size, std::vector<uint8_t> payload) {
  std::vector<uint8_t> out(8 + payload.size());
  StoreLe(out.data(), id);
  StoreLe(out.data() + 2, kind);
  StoreLe(out.data() + 4, size);
  std::ranges::copy(payload, out.begin() + 8);
  return out;
}

std::vector<uint8_t> IntegerField(uint16_t id, uint64_t value) {
  std::vector<uint8_t> payload(8);
  StoreLe(payload.data(), value);
  return RawField(id, 1, 8, payload);
}

template <typename T>
Status LoadField(std::vector<uint8_t> data, T& value, uint16_t id = 1) {
  Archive archive = Archive::ForLoading(data);
  archive.Field(id, value);
  return archive.status();
}

TEST(Archive, RoundTrip) {
  Sample sample;
  const auto data = Save(sample);
  Sample loaded = Blank();
  Archive archive = Archive::ForLoading(data);
  loaded.Serialize(archive);
  ASSERT_TRUE(archive.status().has_value()) << archive.status().error().message;
  EXPECT_TRUE(loaded == sample);
  EXPECT_EQ(loaded.loaded_version, 3);
}

TEST(Archive, TheWireFormatIsPinned) {
  Archive archive = Archive::ForSaving();
  uint8_t value = 0x12;
  archive.Field(0x0304, value);
  archive.Section(2, 7, [](Archive&, uint16_t) {});
  const std::vector<uint8_t> expected = {0x04, 0x03, 1, 0, 8, 0, 0, 0, 0x12, 0, 0, 0, 0,
                                         0,    0,    0, 2, 0, 2, 0, 2, 0,    0, 0, 7, 0};
  EXPECT_EQ(archive.Finish(), expected);
}

TEST(Archive, CutAtEveryByteNeverReadsFurther) {
  Sample sample;
  const auto data = Save(sample);
  int rejected = 0;
  for (size_t cut = 0; cut < data.size(); ++cut) {
    const std::vector<uint8_t> part(data.begin(), data.begin() + static_cast<long>(cut));  // asan sees its end
    Sample loaded = Blank();
    Archive archive = Archive::ForLoading(part);
    loaded.Serialize(archive);
    rejected += archive.ok() ? 0 : 1;
  }
  EXPECT_GT(rejected, static_cast<int>(data.size()) - 16);  // only a cut between two outer fields is a valid file
}

TEST(Archive, EveryFlippedBitIsSurvived) {
  Sample sample;
  const auto data = Save(sample);
  for (size_t bit = 0; bit < data.size() * 8; ++bit) {
    auto damaged = data;
    damaged[bit / 8] = static_cast<uint8_t>(damaged[bit / 8] ^ (1u << bit % 8));
    Sample loaded = Blank();
    Archive archive = Archive::ForLoading(damaged);
    loaded.Serialize(archive);
    EXPECT_LE(loaded.fifo.size(), 16u);
    EXPECT_LE(loaded.name.size(), 32u);
    EXPECT_LE(loaded.queue.size(), 8u);
  }
}

TEST(Archive, DuplicateIdsAreRejected) {
  auto data = IntegerField(1, 5);
  const auto again = IntegerField(1, 6);
  data.insert(data.end(), again.begin(), again.end());
  uint8_t value = 0;
  EXPECT_FALSE(LoadField(data, value).has_value());
  EXPECT_EQ(value, 0);
}

TEST(Archive, WrongKindsAreRejected) {
  uint32_t value = 7;
  EXPECT_FALSE(LoadField(RawField(1, 0, 4, {1, 0, 0, 0}), value).has_value());
  EXPECT_FALSE(LoadField(RawField(1, 2, 2, {1, 0}), value).has_value());
  EXPECT_FALSE(LoadField(RawField(1, 9, 0, {}), value).has_value());
  EXPECT_EQ(value, 7u);
  const auto integer = IntegerField(1, 5);
  for (int kind = 0; kind < 2; ++kind) {
    Archive other = Archive::ForLoading(integer);
    std::vector<uint8_t> bytes = {42};
    if (kind == 0) other.Bytes(1, bytes, 100);
    if (kind == 1) other.Section(1, 1, [](Archive&, uint16_t) { FAIL() << "not a section"; });
    EXPECT_FALSE(other.ok());
    EXPECT_EQ(bytes.size(), 1u);
  }
}

TEST(Archive, IntegersHaveEightBytesAndFitTheirType) {
  uint8_t byte = 1;
  EXPECT_FALSE(LoadField(RawField(1, 1, 4, {1, 0, 0, 0}), byte).has_value());
  EXPECT_FALSE(LoadField(IntegerField(1, 256), byte).has_value());
  EXPECT_FALSE(LoadField(IntegerField(1, ~uint64_t{0}), byte).has_value());
  EXPECT_TRUE(LoadField(IntegerField(1, 255), byte).has_value());
  EXPECT_EQ(byte, 255);
  int8_t small = 0;
  EXPECT_FALSE(LoadField(IntegerField(1, 128), small).has_value());
  EXPECT_TRUE(LoadField(IntegerField(1, static_cast<uint64_t>(-128)), small).has_value());
  EXPECT_EQ(small, -128);
  uint64_t wide = 0;
  EXPECT_TRUE(LoadField(IntegerField(1, ~uint64_t{0}), wide).has_value());
  EXPECT_EQ(wide, ~uint64_t{0});
}

TEST(Archive, ABoolIsZeroOrOne) {
  bool flag = false;
  EXPECT_TRUE(LoadField(IntegerField(1, 1), flag).has_value());
  EXPECT_TRUE(flag);
  EXPECT_FALSE(LoadField(IntegerField(1, 256), flag).has_value());
}

TEST(Archive, SizesAreBounded) {
  std::vector<uint8_t> bytes;
  const std::vector<uint8_t> payload(17, 1);
  const auto data = RawField(1, 0, 17, payload);
  Archive archive = Archive::ForLoading(data);
  archive.Bytes(1, bytes, 16);
  EXPECT_FALSE(archive.ok());
  EXPECT_TRUE(bytes.empty());
  uint8_t fixed[4];
  Archive other = Archive::ForLoading(data);
  other.Bytes(1, std::span(fixed));
  EXPECT_FALSE(other.ok());
  // A size beyond the file.
  const auto lying = RawField(1, 0, 0xffffffff, payload);
  Archive third = Archive::ForLoading(lying);
  EXPECT_FALSE(third.ok());
}

TEST(Archive, AListLongerThanItsBoundIsRejectedBeforeResize) {
  Archive saving = Archive::ForSaving();
  saving.List(
      1, 9, 16, [](size_t) {}, [](Archive&, size_t) {});
  const auto data = saving.Finish();
  bool resized = false;
  Archive loading = Archive::ForLoading(data);
  loading.List(
      1, 0, 8, [&](size_t) { resized = true; }, [](Archive&, size_t) {});
  EXPECT_FALSE(loading.ok());
  EXPECT_FALSE(resized);
}

TEST(Archive, MissingFieldsKeepTheirValueAndUnknownOnesAreSkipped) {
  auto data = IntegerField(77, 1);
  const auto known = IntegerField(2, 9);
  data.insert(data.end(), known.begin(), known.end());
  Archive archive = Archive::ForLoading(data);
  uint32_t one = 41, two = 0;
  archive.Field(1, one);
  archive.Field(2, two);
  EXPECT_TRUE(archive.ok());
  EXPECT_EQ(one, 41u);
  EXPECT_EQ(two, 9u);
}

TEST(Archive, TheFirstRejectionIsKeptAndStopsLoading) {
  const auto data = IntegerField(1, 5);
  Archive archive = Archive::ForLoading(data);
  archive.Reject("first");
  archive.Reject("second");
  uint8_t value = 3;
  archive.Field(1, value);
  EXPECT_EQ(value, 3);
  EXPECT_EQ(archive.status().error().message, "first");
}

TEST(Archive, RejectionInsideASectionNamesIt) {
  Archive saving = Archive::ForSaving();
  saving.Section(12, 1, [](Archive&, uint16_t) {});
  const auto data = saving.Finish();
  Archive archive = Archive::ForLoading(data);
  archive.Section(12, 1, [](Archive& inner, uint16_t) { inner.Reject("bad divisor"); });
  EXPECT_EQ(archive.status().error().message, "section 12: bad divisor");
}

TEST(Archive, RandomBytesAreSurvived) {
  std::mt19937_64 random(5);
  for (int n = 0; n < 5000; ++n) {
    std::vector<uint8_t> data(random() % 200);
    for (uint8_t& byte : data) byte = static_cast<uint8_t>(random() % 12);  // small numbers look like ids and sizes
    Sample loaded = Blank();
    Archive archive = Archive::ForLoading(data);
    loaded.Serialize(archive);
    EXPECT_LE(loaded.queue.size(), 8u);
  }
}

}  // namespace
}  // namespace nacre::state
