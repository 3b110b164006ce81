// The device's side of rings against virtio 1.2. Tests that a driver keeps to a rule, or what happens when it
// does not, carry the clause's number.

#include "devices/virtio/virtqueue.h"

#include <gtest/gtest.h>

#include <random>

#include "devices/virtio/virtio_testing.h"

namespace nacre::devices {
namespace {

constexpr uint64_t kRing = 0x10'0000, kData = 0x40'0000;

class VirtQueueTest : public testing::TestWithParam<bool> {
 protected:
  void Start(uint16_t size = 8, RingFeatures features = {.event_index = false, .indirect = true}) {
    features.packed = GetParam();
    driver_ = std::make_unique<RingDriver>(*memory_, kRing, size, GetParam());
    queue_.setup() = driver_->setup;
    ASSERT_TRUE(queue_.Enable(features));
  }
  void ExpectBroken(const char* why) {
    EXPECT_FALSE(queue_.Pop(chain_));
    EXPECT_TRUE(queue_.broken());
    EXPECT_NE(std::string::npos, reason_.find(why)) << reason_;
    EXPECT_EQ(1, times_broken_);
    EXPECT_FALSE(queue_.Pop(chain_)) << "a broken queue yields nothing";
    EXPECT_FALSE(queue_.HasAvailable());
    EXPECT_FALSE(queue_.EnableNotification());
    EXPECT_FALSE(queue_.TakeInterrupt());
  }

  std::unique_ptr<memory::GuestMemory> memory_ = std::move(*memory::GuestMemory::Create(8 * kMiB));
  std::string reason_;
  int times_broken_ = 0;
  VirtQueue queue_{*memory_, 256, [this](const char* reason) {
                     reason_ = reason;
                     ++times_broken_;
                   }};
  std::unique_ptr<RingDriver> driver_;
  Chain chain_;
};
INSTANTIATE_TEST_SUITE_P(Rings, VirtQueueTest, testing::Bool(),
                         [](const auto& kind) { return std::string(kind.param ? "Packed" : "Split"); });

TEST_P(VirtQueueTest, ChainsComeBackInTheDriversTerms) {
  Start();
  memory_->WriteValue(GuestPhys(kData), uint64_t{0x1122334455667788});
  const uint16_t id = driver_->Add({{kData, 4}, {kData + 4, 4}, {kData + 0x1000, 16, true}});
  ASSERT_TRUE(queue_.Pop(chain_));
  EXPECT_EQ(2u, chain_.readable().size());
  EXPECT_EQ(8u, chain_.readable_bytes());
  EXPECT_EQ(16u, chain_.writable_bytes());
  uint8_t bytes[8];
  EXPECT_EQ(8u, chain_.Read(0, bytes));
  EXPECT_EQ(0x1122334455667788u, LoadLe<uint64_t>(bytes));
  EXPECT_EQ(2u, chain_.Read(6, bytes)) << "only what is there";
  EXPECT_EQ(3u, chain_.Write(*memory_, 2, std::array<uint8_t, 3>{1, 2, 3}));
  EXPECT_FALSE(queue_.Pop(chain_));
  EXPECT_EQ(1u, queue_.in_flight());
  EXPECT_FALSE(driver_->GetUsed());
  queue_.Push(chain_, 5);
  const UsedEntry used = driver_->Used();
  EXPECT_EQ(id, used.id);
  EXPECT_EQ(5u, used.written);
  EXPECT_EQ(0x03020100u, driver_->Peek<uint32_t>(kData + 0x1001));
}

TEST_P(VirtQueueTest, ManyChainsWrapAroundTheRing) {
  Start(8);
  std::mt19937 random(7);
  std::deque<std::pair<uint16_t, Chain>> held;
  std::map<uint16_t, uint32_t> expected;
  unsigned in_ring = 0, returned = 0;
  for (int step = 0; step < 20'000; ++step) {
    const bool indirect = (random() & 1) != 0;
    const unsigned count = 1 + random() % 3;
    const unsigned slots = indirect ? 1 : count;
    if (in_ring + slots <= 8 && expected.size() < 8 && (random() & 1) != 0) {
      std::vector<TestBuffer> buffers;
      buffers.reserve(count);
      for (unsigned i = 0; i < count; ++i) buffers.push_back({kData + 256 * i, 64, true});
      const uint16_t id = driver_->Add(buffers, indirect);
      expected[id] = slots;
      in_ring += slots;
      Chain chain;
      ASSERT_TRUE(queue_.Pop(chain));
      ASSERT_EQ(count * 64u, chain.writable_bytes());
      ASSERT_EQ(id, chain.id);
      held.emplace_back(id, chain);
    } else if (!held.empty()) {  // given back out of order
      const size_t which = random() % held.size();
      queue_.Push(held[which].second, 100 + held[which].first);
      const UsedEntry used = driver_->Used();
      ASSERT_EQ(held[which].first, used.id);
      ASSERT_EQ(100u + used.id, used.written);
      in_ring -= expected[static_cast<uint16_t>(used.id)];
      expected.erase(static_cast<uint16_t>(used.id));
      held.erase(held.begin() + static_cast<long>(which));
      ++returned;
    }
  }
  EXPECT_GT(returned, 5000u);
  EXPECT_FALSE(queue_.broken());
}

TEST_P(VirtQueueTest, PutBackIsAsIfNeverPopped) {
  Start(4);
  for (int lap = 0; lap < 10; ++lap) {
    const uint16_t first = driver_->Add({{kData, 8, true}, {kData + 64, 8, true}});
    const uint16_t second = driver_->Add({{kData + 128, 8, true}});
    Chain a, b;
    ASSERT_TRUE(queue_.Pop(a));
    ASSERT_TRUE(queue_.Pop(b));
    queue_.PutBack(b);
    queue_.PutBack(a);
    EXPECT_EQ(0u, queue_.in_flight());
    ASSERT_TRUE(queue_.Pop(a));
    EXPECT_EQ(first, a.id);
    queue_.Push(a, 0);
    ASSERT_TRUE(queue_.Pop(b));
    EXPECT_EQ(second, b.id);
    queue_.Push(b, 0);
    EXPECT_EQ(first, driver_->Used().id);
    EXPECT_EQ(second, driver_->Used().id);
  }
}

TEST_P(VirtQueueTest, Clause5_1_6_4_2_StagedChainsAppearAtOnce) {
  Start();
  const uint16_t a = driver_->Add({{kData, 8, true}});
  const uint16_t b = driver_->Add({{kData + 64, 8, true}});
  Chain first, second;
  ASSERT_TRUE(queue_.Pop(first));
  ASSERT_TRUE(queue_.Pop(second));
  queue_.Stage(first, 8);
  EXPECT_FALSE(driver_->GetUsed());
  queue_.Stage(second, 4);
  EXPECT_FALSE(driver_->GetUsed());
  queue_.Publish();
  EXPECT_EQ(a, driver_->Used().id);
  EXPECT_EQ(b, driver_->Used().id);
}

TEST_P(VirtQueueTest, Clause2_7_5_3_IndirectTables) {
  Start();
  driver_->Add({{kData, 4}, {kData + 0x100, 4}, {kData + 0x200, 4, true}, {kData + 0x300, 4, true}}, true);
  ASSERT_TRUE(queue_.Pop(chain_));
  EXPECT_EQ(2u, chain_.readable().size());
  EXPECT_EQ(2u, chain_.writable().size());
}

TEST_P(VirtQueueTest, Clause2_7_5_3_1_IndirectNotNegotiated) {
  Start(8, {.indirect = false});
  driver_->Add({{kData, 4}}, true);
  ExpectBroken("indirect");
}

TEST_P(VirtQueueTest, Clause2_7_5_3_1_IndirectSizeIsAMultipleOf16) {
  Start();
  driver_->Add({{kData, 4}}, true);
  driver_->Poke<uint32_t>(kRing + 8, 17);
  ExpectBroken("indirect");
}

TEST_P(VirtQueueTest, Clause2_7_5_3_1_IndirectTableIsNotEmpty) {
  Start();
  driver_->Add({{kData, 4}}, true);
  driver_->Poke<uint32_t>(kRing + 8, 0);
  ExpectBroken("indirect");
}

TEST_P(VirtQueueTest, Clause2_7_5_3_1_NoIndirectInsideIndirect) {
  Start();
  driver_->Add({{kData, 4}}, true);
  driver_->Poke<uint16_t>(kRing + 0x10000 + (GetParam() ? 14 : 12), RingDriver::kIndirect);
  ExpectBroken("indirect");
}

TEST_P(VirtQueueTest, Clause2_7_5_3_1_IndirectTableOutsideRam) {
  Start();
  driver_->Add({{kData, 4}}, true);
  driver_->Poke<uint64_t>(kRing, 8 * kMiB - 8);
  ExpectBroken("outside RAM");
}

TEST_P(VirtQueueTest, Clause2_7_4_2_ReadableAfterWritable) {
  Start();
  driver_->Add({{kData, 4, true}, {kData + 64, 4, false}});
  ExpectBroken("device-readable descriptor follows");
}

TEST_P(VirtQueueTest, AddressesOutsideRam) {
  for (uint64_t address : {8 * kMiB, 8 * kMiB - 2, ~uint64_t{0} - 1, uint64_t{0xfee00000}}) {
    queue_.Reset();
    times_broken_ = 0;
    Start();
    driver_->Add({{address, 4, true}});
    ExpectBroken("outside RAM");
  }
}

TEST_P(VirtQueueTest, EmptyBuffersAreSkipped) {
  Start();
  driver_->Add({{~uint64_t{0}, 0}, {kData, 4}, {0, 0, true}});
  ASSERT_TRUE(queue_.Pop(chain_));
  EXPECT_EQ(1u, chain_.readable().size());
  EXPECT_EQ(0u, chain_.writable().size());
}

TEST_P(VirtQueueTest, LongIndirectChainsAreBounded) {
  Start();
  driver_->Add({{kData, 4}}, true);
  const uint64_t table = 0x50'0000;
  for (unsigned i = 0; i < 2000; ++i) {
    if (GetParam())
      driver_->SetDescriptor(table, i, kData, 4, 0, 0);
    else
      driver_->SetDescriptor(table, i, kData, 4, RingDriver::kNext, static_cast<uint16_t>(i + 1));
  }
  driver_->Poke<uint64_t>(kRing, table);
  driver_->Poke<uint32_t>(kRing + 8, 2000 * 16);
  ExpectBroken("too long");
}

TEST_P(VirtQueueTest, InterruptsCanBeSuppressed) {
  Start();
  for (bool off : {false, true, false}) {
    driver_->SuppressInterrupts(off);
    driver_->Add({{kData, 4}});
    ASSERT_TRUE(queue_.Pop(chain_));
    queue_.Push(chain_, 0);
    driver_->GetUsed();
    EXPECT_EQ(!off, queue_.TakeInterrupt());
    EXPECT_FALSE(queue_.TakeInterrupt()) << "once";
  }
}

TEST_P(VirtQueueTest, Clause2_7_10_EventIndexInterruptsOnceWhenPassed) {
  Start(8, {.event_index = true, .indirect = true});
  // Positions run with a wrap in the packed ring, freely in the split one.
  unsigned position = 0;
  for (int lap = 0; lap < 12; ++lap) {
    const unsigned target = position + 2;  // tell when the third from here is used
    if (GetParam())
      driver_->InterruptAt(static_cast<uint16_t>(target % 8), (target / 8) % 2 == 0);
    else
      driver_->InterruptAt(static_cast<uint16_t>(target));
    for (int i = 0; i < 5; ++i) {
      driver_->Add({{kData, 4}});
      ASSERT_TRUE(queue_.Pop(chain_));
      queue_.Push(chain_, 0);
      driver_->GetUsed();
      EXPECT_EQ(i == 2, queue_.TakeInterrupt()) << "lap " << lap << " entry " << i;
      ++position;
    }
  }
}

TEST_P(VirtQueueTest, Clause2_7_10_NotificationsAreAskedForByIndex) {
  Start(8, {.event_index = true, .indirect = true});
  for (int i = 0; i < 20; ++i) {
    driver_->Add({{kData, 4}});
    ASSERT_TRUE(queue_.Pop(chain_));
    queue_.Push(chain_, 0);
    driver_->GetUsed();
  }
  EXPECT_FALSE(queue_.EnableNotification());
  if (GetParam()) {
    // 20 = 2 laps and 4: position 4, wrap counter back to 1.
    EXPECT_EQ(4 | 0x8000, driver_->Peek<uint16_t>(driver_->setup.device_area));
    EXPECT_EQ(2, driver_->Peek<uint16_t>(driver_->setup.device_area + 2));
  } else {
    EXPECT_EQ(20, driver_->Peek<uint16_t>(driver_->setup.device_area + 4 + 8 * 8));
  }
  driver_->Add({{kData, 4}});
  EXPECT_TRUE(queue_.EnableNotification()) << "what came before the request must not be missed";
}

TEST_P(VirtQueueTest, NotificationsCanBeSwitchedOffByFlag) {
  Start();
  const uint64_t flags = driver_->setup.device_area + (GetParam() ? 2 : 0);
  queue_.DisableNotification();
  EXPECT_EQ(1, driver_->Peek<uint16_t>(flags));
  queue_.EnableNotification();
  EXPECT_EQ(0, driver_->Peek<uint16_t>(flags));
}

TEST_P(VirtQueueTest, PagesThatTheDeviceWroteAreDirty) {
  Start();
  driver_->Add({{kData, 8, true}});
  for (uint64_t page = 0; page < 8 * kMiB / kPageSize; ++page) memory_->PageFlags(page) = 0;
  ASSERT_TRUE(queue_.Pop(chain_));
  chain_.Write(*memory_, 0, std::array<uint8_t, 1>{1});
  queue_.Push(chain_, 1);
  const auto dirty = [&](uint64_t address) {
    return (memory_->PageFlags(address / kPageSize) & memory::GuestMemory::kDirty) != 0;
  };
  EXPECT_TRUE(dirty(kData));
  EXPECT_TRUE(dirty(GetParam() ? driver_->setup.descriptors : driver_->setup.device_area));
  EXPECT_FALSE(dirty(0));
}

TEST_P(VirtQueueTest, SizesAndAddressesOfRingsAreChecked) {
  RingDriver driver(*memory_, kRing, 8, GetParam());
  const auto refuses = [&](const QueueSetup& setup) {
    queue_.Reset();
    queue_.setup() = setup;
    const bool enabled = queue_.Enable({.packed = GetParam()});
    EXPECT_EQ(!enabled, queue_.broken());
    return !enabled;
  };
  QueueSetup good = driver.setup;
  EXPECT_FALSE(refuses(good));
  for (uint16_t size : {0, 512}) {
    QueueSetup bad = good;
    bad.size = size;
    EXPECT_TRUE(refuses(bad)) << size;
  }
  QueueSetup odd = good;
  odd.size = 7;
  EXPECT_EQ(!GetParam(), refuses(odd)) << "2.7: a split ring's size is a power of two; 2.8: a packed one's need not";
  for (uint64_t address : {uint64_t{8 * kMiB}, 8 * kMiB - 16, ~uint64_t{15}, kRing + 1}) {
    for (uint64_t QueueSetup::*field : {&QueueSetup::descriptors, &QueueSetup::driver_area, &QueueSetup::device_area}) {
      QueueSetup bad = good;
      bad.*field = address;
      const bool fits = address == 8 * kMiB - 16 && GetParam() && field != &QueueSetup::descriptors;
      EXPECT_EQ(!fits, refuses(bad)) << address;
    }
  }
}

TEST_P(VirtQueueTest, StateGoesOnAfterSaveAndLoad) {
  Start(8, {.event_index = true, .indirect = true});
  for (int i = 0; i < 13; ++i) {
    driver_->Add({{kData, 4}});
    ASSERT_TRUE(queue_.Pop(chain_));
    queue_.Push(chain_, 0);
    driver_->GetUsed();
  }
  auto saving = state::Archive::ForSaving();
  queue_.Serialize(saving);
  const auto bytes = saving.Finish();
  queue_.Reset();
  auto loading = state::Archive::ForLoading(bytes);
  queue_.Serialize(loading);
  ASSERT_TRUE(loading.ok());
  const uint16_t id = driver_->Add({{kData, 4}});
  ASSERT_TRUE(queue_.Pop(chain_));
  queue_.Push(chain_, 0);
  EXPECT_EQ(id, driver_->Used().id);
}

TEST_P(VirtQueueTest, AHostileSaveIsRejected) {
  Start();
  for (int variant = 0; variant < 3; ++variant) {
    VirtQueue other(*memory_, 256, [](const char*) {});
    auto saving = state::Archive::ForSaving();
    uint16_t size = variant == 0 ? 9999 : 8, next = variant == 1 ? 4000 : 0;
    uint64_t address = variant == 2 ? ~uint64_t{15} : kRing;
    bool on = true, packed = variant == 1 || GetParam();
    saving.Field(1, size);
    saving.Field(2, address);
    saving.Field(3, address);
    saving.Field(4, address);
    saving.Field(5, on);
    saving.Field(7, packed);
    saving.Field(10, next);
    const auto bytes = saving.Finish();
    auto loading = state::Archive::ForLoading(bytes);
    other.Serialize(loading);
    EXPECT_FALSE(loading.ok()) << variant;
    EXPECT_FALSE(other.Pop(chain_));
  }
}

// -- one kind of ring only

class SplitQueueTest : public VirtQueueTest {};
INSTANTIATE_TEST_SUITE_P(Rings, SplitQueueTest, testing::Values(false));

TEST_P(SplitQueueTest, Clause2_7_13_3_AvailableIndexPastTheRing) {
  Start();
  driver_->Poke<uint16_t>(driver_->setup.driver_area + 2, 9);
  ExpectBroken("ran past");
}

TEST_P(SplitQueueTest, Clause2_7_5_DescriptorIndexOutsideTheTable) {
  Start();
  driver_->Offer(8);
  ExpectBroken("outside the table");
}

TEST_P(SplitQueueTest, Clause2_7_5_NextOutsideTheTable) {
  Start();
  driver_->SetDescriptor(kRing, 0, kData, 4, RingDriver::kNext, 100);
  driver_->Offer(0);
  ExpectBroken("outside the table");
}

TEST_P(SplitQueueTest, Clause2_7_5_2_LoopsAreFound) {
  Start();
  driver_->SetDescriptor(kRing, 0, kData, 4, RingDriver::kNext, 1);
  driver_->SetDescriptor(kRing, 1, kData, 4, RingDriver::kNext, 0);
  driver_->Offer(0);
  ExpectBroken("loops");
}

TEST_P(SplitQueueTest, Clause2_7_5_3_1_LoopInAnIndirectTable) {
  Start();
  driver_->Add({{kData, 4}}, true);
  driver_->SetDescriptor(kRing + 0x10000, 0, kData, 4, RingDriver::kNext, 0);
  ExpectBroken("too long");
}

TEST_P(SplitQueueTest, Clause2_7_5_3_1_LinkOutsideAnIndirectTable) {
  Start();
  driver_->Add({{kData, 4}}, true);
  driver_->SetDescriptor(kRing + 0x10000, 0, kData, 4, RingDriver::kNext, 1);
  ExpectBroken("links outside");
}

TEST_P(SplitQueueTest, Clause2_7_5_3_2_DirectDescriptorsThenAnIndirectOne) {
  Start();
  driver_->SetDescriptor(0x50'0000, 0, kData + 64, 4, RingDriver::kWrite, 0);
  driver_->SetDescriptor(kRing, 0, kData, 4, RingDriver::kNext, 1);
  driver_->SetDescriptor(kRing, 1, 0x50'0000, 16, RingDriver::kIndirect, 0);
  driver_->Offer(0);
  ASSERT_TRUE(queue_.Pop(chain_));
  EXPECT_EQ(1u, chain_.readable().size());
  EXPECT_EQ(1u, chain_.writable().size());
}

TEST_P(SplitQueueTest, Clause2_7_5_3_1_IndirectWithNext) {
  Start();
  driver_->SetDescriptor(kRing, 0, 0x50'0000, 16, RingDriver::kIndirect | RingDriver::kNext, 1);
  driver_->Offer(0);
  ExpectBroken("indirect");
}

TEST_P(SplitQueueTest, MoreChainsThanDescriptorsInFlight) {
  Start(4);
  driver_->SetDescriptor(kRing, 0, kData, 4, 0, 0);
  Chain chains[4];
  for (Chain& chain : chains) {
    driver_->Offer(0);
    ASSERT_TRUE(queue_.Pop(chain));
  }
  driver_->Offer(0);
  ExpectBroken("more chains");
}

TEST_P(SplitQueueTest, IndicesWrapAt65536) {
  Start(4);
  for (unsigned i = 0; i < 70'000; ++i) {
    driver_->Add({{kData, 4}});
    ASSERT_TRUE(queue_.Pop(chain_));
    queue_.Push(chain_, 0);
    ASSERT_TRUE(driver_->GetUsed());
  }
}

class PackedQueueTest : public VirtQueueTest {};
INSTANTIATE_TEST_SUITE_P(Rings, PackedQueueTest, testing::Values(true));

TEST_P(PackedQueueTest, Clause2_8_AnOddSizeWorks) {
  Start(7);
  for (int i = 0; i < 100; ++i) {
    const uint16_t id = driver_->Add({{kData, 4}, {kData + 8, 4, true}, {kData + 16, 4, true}});
    ASSERT_TRUE(queue_.Pop(chain_));
    EXPECT_EQ(8u, chain_.writable_bytes());
    queue_.Push(chain_, 1);
    ASSERT_EQ(id, driver_->Used().id);
  }
}

TEST_P(PackedQueueTest, Clause2_8_6_AListLongerThanTheRing) {
  Start(4);
  for (unsigned i = 0; i < 4; ++i)
    driver_->SetDescriptor(kRing, i, kData, 4, 0, RingDriver::kNext | RingDriver::kAvail);
  ExpectBroken("longer than the ring");
}

TEST_P(PackedQueueTest, Clause2_8_1_DescriptorsOfTheLastLapAreNotAvailable) {
  Start(4);
  driver_->SetDescriptor(kRing, 0, kData, 4, 0, 0);
  EXPECT_FALSE(queue_.Pop(chain_));
  driver_->SetDescriptor(kRing, 0, kData, 4, 0, RingDriver::kUsed);
  EXPECT_FALSE(queue_.Pop(chain_));
  driver_->SetDescriptor(kRing, 0, kData, 4, 0, RingDriver::kUsed | RingDriver::kAvail);
  EXPECT_FALSE(queue_.Pop(chain_));
  EXPECT_FALSE(queue_.broken());
}

}  // namespace
}  // namespace nacre::devices
