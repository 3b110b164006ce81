#include "devices/chipset/generation_id.h"

#include <gtest/gtest.h>

namespace nacre::devices {
namespace {

class GenerationIdTest : public testing::Test {
 protected:
  GenerationId::Guid At(memory::GuestMemory& where, uint64_t address) {
    GenerationId::Guid guid{};
    EXPECT_TRUE(where.Read(GuestPhys(address), guid));
    return guid;
  }
  static constexpr GenerationId::Guid kFirst{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}, kSecond{99};
  std::unique_ptr<memory::GuestMemory> memory = std::move(*memory::GuestMemory::Create(kMiB));
  unsigned told = 0;
  GenerationId id{*memory, kFirst, [this] { ++told; }};
};

TEST_F(GenerationIdTest, AChangeIsWrittenAndTold) {
  id.Change(kSecond);  // nobody looks yet, and somebody may later
  EXPECT_EQ(id.guid(), kSecond);
  ASSERT_TRUE(id.Place(GuestPhys(0x1008)));
  EXPECT_EQ(At(*memory, 0x1008), kSecond);
  told = 0;
  id.Change(kFirst);
  EXPECT_EQ(At(*memory, 0x1008), kFirst);
  EXPECT_EQ(told, 1u);
}

TEST_F(GenerationIdTest, PlacesThatCannotBe) {
  for (const uint64_t address : {uint64_t{0}, uint64_t{0x1004}, kMiB, kMiB - 8, ~uint64_t{7}}) {
    EXPECT_FALSE(id.Place(GuestPhys(address))) << address;
    EXPECT_EQ(id.address(), 0u);
  }
  ASSERT_TRUE(id.Place(GuestPhys(kMiB - 16)));
  id.Reset();
  id.Change(kSecond);
  EXPECT_EQ(At(*memory, kMiB - 16), kFirst) << "after a reset it is the guest's memory";
}

TEST_F(GenerationIdTest, MovesOnAndChangesThere) {
  ASSERT_TRUE(id.Place(GuestPhys(0x2000)));
  auto saving = state::Archive::ForSaving();
  id.Serialize(saving);
  const auto bytes = saving.Finish();
  auto other_memory = std::move(*memory::GuestMemory::Create(kMiB));
  GenerationId other(*other_memory, kSecond, [this] { ++told; });
  auto loading = state::Archive::ForLoading(bytes);
  other.Serialize(loading);
  ASSERT_TRUE(loading.ok());
  EXPECT_EQ(other.guid(), kFirst);
  EXPECT_EQ(told, 0u);
  EXPECT_EQ(At(*other_memory, 0x2000), GenerationId::Guid{}) << "memory is restored by others";
  other.Change(kSecond);
  EXPECT_EQ(At(*other_memory, 0x2000), kSecond);
  EXPECT_EQ(told, 1u);
}

}  // namespace
}  // namespace nacre::devices
