// The PCI transport against virtio 1.2 (4.1) and what all devices share (chapter 2 and 3).

#include "devices/virtio/virtio_pci.h"

#include <gtest/gtest.h>

#include <map>
#include <set>

#include "devices/virtio/rng.h"
#include "devices/virtio/virtio_testing.h"

namespace nacre::devices {
namespace {

constexpr uint64_t kVersion1 = Bit(virtio_feature::kVersion1);
constexpr uint64_t kData = 0x40'0000;

class VirtioPciTest : public testing::Test, public VirtioBench {
 protected:
  VirtioPciTest() { Plug(VirtioRng::Create("rng", memory, scheduler)); }
  /// One request for 16 bytes; returns what came back.
  std::optional<UsedEntry> OneRequest() {
    ring(0).Add({{kData, 16, true}});
    Kick(0);
    return ring(0).GetUsed();
  }
};

TEST_F(VirtioPciTest, Clause4_1_2_Identity) {
  EXPECT_EQ(0x1af4u, pci->ConfigRead(0, 2));
  EXPECT_EQ(0x1044u, pci->ConfigRead(2, 2)) << "0x1040 and the device type";
  EXPECT_GE(pci->ConfigRead(8, 1), 1u) << "revision";
  EXPECT_GE(pci->ConfigRead(0x2e, 2), 0x40u) << "subsystem";
}

TEST_F(VirtioPciTest, Clause4_1_4_EveryStructureHasACapabilityInsideItsBar) {
  for (uint8_t type = 1; type <= 5; ++type) {
    const unsigned at = FindCapability(pci::kCapVendor, type);
    ASSERT_NE(0u, at) << unsigned{type};
    EXPECT_GE(pci->ConfigRead(at + 2, 1), 16u);
    const uint64_t bar = pci->ConfigRead(at + 4, 1), offset = pci->ConfigRead(at + 8, 4),
                   length = pci->ConfigRead(at + 12, 4);
    EXPECT_LE(offset + length, pci->bar_size(static_cast<unsigned>(bar)));
  }
  EXPECT_EQ(4u, pci->ConfigRead(FindCapability(pci::kCapVendor, 2) + 16, 4)) << "notify_off_multiplier";
}

TEST_F(VirtioPciTest, Clause4_1_4_3_QueuesThatDoNotExistHaveSizeZero) {
  EXPECT_EQ(1u, Common(18, 2));
  SetCommon(22, 2, 0);
  EXPECT_EQ(64u, Common(24, 2));
  SetCommon(22, 2, 1);
  EXPECT_EQ(0u, Common(24, 2));
  SetCommon(24, 2, 8);
  SetCommon(28, 2, 1);
  EXPECT_EQ(0u, Common(28, 2));
}

TEST_F(VirtioPciTest, Clause3_1_1_InitialisationAndWork) {
  Start(0, false);
  EXPECT_EQ(16u, OneRequest().value_or(UsedEntry{}).written);
  EXPECT_NE(std::vector<uint8_t>(16), Get(kData, 16));
}

TEST_F(VirtioPciTest, Clause2_2_2_FeaturesThatWereNotOfferedAreRefused) {
  EXPECT_TRUE(Negotiate(OfferedFeatures()));
  EXPECT_FALSE(Negotiate(kVersion1 | Bit(50)));
  EXPECT_FALSE(Negotiate(kVersion1 | Bit(0)));
  EXPECT_TRUE(Negotiate(kVersion1));
}

TEST_F(VirtioPciTest, Clause6_2_DriversWithoutVersion1AreRefused) { EXPECT_FALSE(Negotiate(0)); }

TEST_F(VirtioPciTest, Clause3_1_1_FeaturesDoNotChangeAfterFeaturesOk) {
  ASSERT_TRUE(Negotiate(kVersion1));
  SetCommon(8, 4, 0);
  SetCommon(12, 4, ~0u);
  EXPECT_EQ(kVersion1, device().driver_features());
}

TEST_F(VirtioPciTest, Clause2_1_DriverOkNeedsFeaturesOk) {
  SetCommon(20, 1, 0);
  SetCommon(20, 1, 7);
  EXPECT_EQ(3, Status());
}

TEST_F(VirtioPciTest, Clause2_1_2_NothingIsConsumedBeforeDriverOk) {
  ASSERT_TRUE(Negotiate(kVersion1));
  SetUpQueue(0, 16, false);
  EXPECT_FALSE(OneRequest());
  SetCommon(20, 1, 15);
  EXPECT_TRUE(ring(0).GetUsed()) << "what was available already is served then";
}

TEST_F(VirtioPciTest, Clause2_1_1_WritingZeroResets) {
  Start(0, false);
  SetCommon(16, 2, 0);
  SetCommon(20, 1, 0);
  EXPECT_EQ(0, Status());
  EXPECT_EQ(0u, Common(28, 2));
  EXPECT_EQ(0xffffu, Common(16, 2));
  EXPECT_EQ(0u, device().driver_features());
  Start(0, true);
  EXPECT_TRUE(OneRequest());
}

TEST_F(VirtioPciTest, Clause2_1_2_ABrokenRingSetsNeedsResetAndTells) {
  Start(0, false);
  ring(0).Add({{~uint64_t{0} - 100, 16, true}});
  Kick(0);
  EXPECT_EQ(15 | virtio_status::kNeedsReset, Status());
  EXPECT_EQ(2, ReadIsr() & 2) << "configuration change notification";
  EXPECT_FALSE(device().broken_reason().empty());
  EXPECT_FALSE(OneRequest());
  Start(0, false);
  EXPECT_TRUE(OneRequest()) << "a reset makes it work again";
}

TEST_F(VirtioPciTest, BadRingAddressesSetNeedsReset) {
  ASSERT_TRUE(Negotiate(kVersion1));
  SetCommon(22, 2, 0);
  SetCommon(32, 4, 0xfffffff0);
  SetCommon(28, 2, 1);
  EXPECT_EQ(0u, Common(28, 2));
  EXPECT_NE(0, Status() & virtio_status::kNeedsReset);
}

TEST_F(VirtioPciTest, Clause4_1_4_5_IntxUntilIsrIsRead) {
  Start(0, false);
  EXPECT_FALSE(line.level);
  ASSERT_TRUE(OneRequest());
  EXPECT_TRUE(line.level);
  EXPECT_EQ(1, ReadIsr());
  EXPECT_FALSE(line.level);
  EXPECT_EQ(0, ReadIsr());
  EXPECT_EQ(0u, msi.count);
}

TEST_F(VirtioPciTest, Clause4_1_5_MsixVectors) {
  ASSERT_TRUE(Negotiate(kVersion1));
  EnableMsix(2);
  SetUpQueue(0, 16, false, 1);
  EXPECT_EQ(1u, Common(26, 2));
  SetCommon(16, 2, 0);
  SetCommon(20, 1, 15);
  ASSERT_TRUE(OneRequest());
  EXPECT_EQ(1u, msi.count);
  EXPECT_EQ(0x41u, msi.last_data);
  EXPECT_FALSE(line.level);
  ring(0).Add({{~uint64_t{0} - 100, 16, true}});
  Kick(0);
  EXPECT_EQ(0x40u, msi.last_data) << "the configuration vector";
}

TEST_F(VirtioPciTest, Clause4_1_5_1_2_1_VectorsOutOfRangeReadBackAsNoVector) {
  SetCommon(16, 2, 2);
  EXPECT_EQ(0xffffu, Common(16, 2));
  SetCommon(16, 2, 1);
  EXPECT_EQ(1u, Common(16, 2));
  SetCommon(16, 2, 0xffff);
  EXPECT_EQ(0xffffu, Common(16, 2));
}

TEST_F(VirtioPciTest, Clause4_1_4_9_TheWindowInConfigurationSpace) {
  const unsigned at = FindCapability(pci::kCapVendor, 5);
  const auto access = [&](uint32_t offset, uint32_t length) {
    pci->ConfigWrite(at + 4, 1, 0);
    pci->ConfigWrite(at + 8, 4, offset);
    pci->ConfigWrite(at + 12, 4, length);
  };
  access(18, 2);
  EXPECT_EQ(1u, pci->ConfigRead(at + 16, 4)) << "num_queues";
  access(20, 1);
  pci->ConfigWrite(at + 16, 4, 1);
  EXPECT_EQ(1, Status());
  for (auto [offset, length] : {std::pair{19u, 2u},
                                {0x3ffeu, 4u},
                                {0x4000u, 1u},
                                {0xfffffffcu, 4u},
                                {0u, 3u},
                                {0u, 0u},
                                {0u, 8u},
                                {0x100u, 4u}}) {
    access(offset, length);
    pci->ConfigWrite(at + 16, 4, 0);
    pci->ConfigRead(at + 16, 4);
  }
  EXPECT_EQ(1, Status()) << "none of these was an access";
}

TEST_F(VirtioPciTest, OddWidthsReadTheBytesOfTheRegisters) {
  SetCommon(22, 2, 0);
  EXPECT_EQ(64u, Common(24, 1));
  EXPECT_EQ(0u, Common(25, 1));
  EXPECT_EQ(uint64_t{64} << 16 | uint64_t{0xffff} << 32, Common(22, 8));
  SetCommon(33, 1, 0xab);
  EXPECT_EQ(0xab00u, Common(32, 4));
  SetCommon(32, 8, 0x1122334455667700);
  EXPECT_EQ(0x1122334455667700u, Common(32, 8));
  EXPECT_EQ(0u, Config(0, 8)) << "no configuration: reads zero";
}

TEST_F(VirtioPciTest, KickingQueuesThatDoNotExistDoesNothing) {
  Start(0, false);
  for (unsigned queue = 0; queue < 1024; queue += 7) Kick(queue);
  EXPECT_EQ(15, Status());
}

TEST_F(VirtioPciTest, StateMovesToAnotherMachine) {
  for (bool packed : {false, true}) {
    VirtioBench from, to;
    from.Plug(VirtioRng::Create("rng", from.memory, from.scheduler));
    to.Plug(VirtioRng::Create("rng", to.memory, to.scheduler));
    from.Start(Bit(virtio_feature::kEventIndex), packed);
    for (int i = 0; i < 100; ++i) {
      from.ring(0).Add({{kData, 16, true}});
      from.Kick(0);
      ASSERT_TRUE(from.ring(0).GetUsed());
    }
    from.CopyStateTo(to);
    EXPECT_EQ(15, to.Status());
    to.scheduler.Advance(0);
    EXPECT_TRUE(to.line.level) << "an interrupt may have been on its way";
    to.ReadIsr();
    to.ring(0).Add({{kData, 16, true}});
    to.Kick(0);
    EXPECT_TRUE(to.ring(0).GetUsed());
  }
}

TEST_F(VirtioPciTest, AHostileSaveIsRejected) {
  auto saving = state::Archive::ForSaving();
  pci->Serialize(saving);
  const std::vector<uint8_t> good = saving.Finish();
  uint32_t seed = 99;
  for (int i = 0; i < 3000; ++i) {
    std::vector<uint8_t> bad = good;
    for (int flips = 0; flips < 3; ++flips) {
      seed = seed * 1664525 + 1013904223;
      bad[(seed >> 8) % bad.size()] ^= static_cast<uint8_t>(seed >> 24);
    }
    auto loading = state::Archive::ForLoading(bad);
    pci->Serialize(loading);  // accepted or not: never a crash
    Kick(0);
  }
  auto loading = state::Archive::ForLoading(good);
  pci->Serialize(loading);
  EXPECT_TRUE(loading.ok());
}

/// Serves doorbells as an engine would that does not leave the guest for them.
struct TestDoorbells : bus::DoorbellHost {
  struct Service final : bus::DoorbellService {
    Service(TestDoorbells& owner, uint64_t at, bus::Doorbell& bell) : host(owner), address(at) {
      host.served[address] = &bell;
    }
    ~Service() override { Stop(); }
    bool Take() override { return host.rung.erase(address) != 0; }
    bool Stop() override {
      host.served.erase(address);
      return Take();
    }
    TestDoorbells& host;
    const uint64_t address;
  };
  std::unique_ptr<bus::DoorbellService> Serve(uint64_t address, bus::Doorbell& doorbell) override {
    if (served.contains(address)) return nullptr;
    return std::make_unique<Service>(*this, address, doorbell);
  }
  std::map<uint64_t, bus::Doorbell*> served;
  std::set<uint64_t> rung;  ///< not delivered yet
};

TEST_F(VirtioPciTest, DoorbellsAreThoseOfEnabledQueuesWhereTheBarIs) {
  constexpr uint64_t kBell = kBar0 + VirtioPci::kNotifyOffset, kElsewhere = 0xe100'0000;
  TestDoorbells doorbells;
  memory_bus.SetDoorbellHost(&doorbells);
  EXPECT_TRUE(doorbells.served.empty());
  Start(0, false);
  ASSERT_EQ(doorbells.served.size(), 1u);
  ASSERT_TRUE(doorbells.served.contains(kBell));
  ring(0).Add({{kData, 16, true}});
  doorbells.served[kBell]->Ring();
  EXPECT_TRUE(ring(0).GetUsed());

  pci->ConfigWrite(pci::kBar0, 4, static_cast<uint32_t>(kElsewhere));
  EXPECT_TRUE(doorbells.served.contains(kElsewhere + VirtioPci::kNotifyOffset));
  EXPECT_EQ(doorbells.served.size(), 1u);
  pci->ConfigWrite(pci::kCommand, 2, pci::kCommandMaster);
  EXPECT_TRUE(doorbells.served.empty()) << "the BAR is switched off";
  PlaceBars();
  EXPECT_TRUE(doorbells.served.contains(kBell));

  // Rung and not delivered when its server goes: it is not lost.
  ring(0).Add({{kData, 16, true}});
  doorbells.rung.insert(kBell);
  memory_bus.SetDoorbellHost(nullptr);
  EXPECT_TRUE(doorbells.served.empty());
  EXPECT_TRUE(ring(0).GetUsed());
  EXPECT_TRUE(OneRequest()) << "over the bus";
  memory_bus.SetDoorbellHost(&doorbells);
  EXPECT_EQ(doorbells.served.size(), 1u);
  doorbells.rung.insert(kBell);
  SetCommon(20, 1, 0);
  EXPECT_TRUE(doorbells.served.empty()) << "a reset disables the queues";
  Start(0, true);
  EXPECT_EQ(doorbells.served.size(), 1u);
  pci.reset();
  EXPECT_TRUE(doorbells.served.empty());
}

}  // namespace
}  // namespace nacre::devices
