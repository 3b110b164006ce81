#include "x86/page_walk.h"

#include <gtest/gtest.h>

namespace nacre::x86 {
namespace {

constexpr uint64_t kP = 1, kW = 2, kU = 4, kA = 0x20, kD = 0x40, kPs = 0x80, kG = 0x100, kNx = uint64_t{1} << 63;

class PageWalkTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto memory = memory::GuestMemory::Create(16 * kMiB);
    ASSERT_TRUE(memory.has_value());
    memory_ = std::move(*memory);
  }
  void Put64(uint64_t at, uint64_t value) { ASSERT_TRUE(memory_->WriteValue(GuestPhys(at), value)); }
  void Put32(uint64_t at, uint32_t value) { ASSERT_TRUE(memory_->WriteValue(GuestPhys(at), value)); }
  uint64_t Get64(uint64_t at) {
    uint64_t value = 0;
    EXPECT_TRUE(memory_->ReadValue(GuestPhys(at), value));
    return value;
  }
  uint32_t Get32(uint64_t at) { return static_cast<uint32_t>(Get64(at)); }

  /// PML4 at 0x1000, PDPT 0x2000, PD 0x3000, PT 0x4000; linear 0 upwards.
  void LongMode() {
    state_.cr0 = cr0::kPe | cr0::kPg | cr0::kWp;
    state_.cr4 = cr4::kPae;
    state_.msr.efer = efer::kLme | efer::kLma | efer::kNxe;
    state_.cr3 = 0x1000;
    Put64(0x1000, 0x2000 | kP | kW | kU);
    Put64(0x2000, 0x3000 | kP | kW | kU);
    Put64(0x3000, 0x4000 | kP | kW | kU);
  }
  Translation Walk(uint64_t address, Access access, bool user = false, bool smap_override = false,
                   bool set_bits = true) {
    WalkOptions options;
    options.access = access;
    options.user = user;
    options.smap_override = smap_override;
    options.set_bits = set_bits;
    options.physical_address_bits = 40;
    return WalkPages(*memory_, state_, GuestVirt(address), options);
  }

  std::unique_ptr<memory::GuestMemory> memory_;
  CpuState state_;
};

TEST_F(PageWalkTest, NoPagingIsIdentity) {
  const Translation t = Walk(0x123456789, Access::kWrite);
  EXPECT_TRUE(t.ok && t.readable && t.writable && t.executable);
  EXPECT_EQ(t.address.value, 0x23456789u);
}

TEST_F(PageWalkTest, FourLevelSetsAccessedAndDirty) {
  LongMode();
  Put64(0x4000 + 5 * 8, 0x7000 | kP | kW | kG);
  state_.cr4 |= cr4::kPge;
  Translation t = Walk(0x5123, Access::kRead, false, false, false);
  ASSERT_TRUE(t.ok);
  EXPECT_EQ(Get64(0x4028), 0x7000 | kP | kW | kG) << "a probe changes nothing";
  t = Walk(0x5123, Access::kRead);
  ASSERT_TRUE(t.ok);
  EXPECT_EQ(t.address.value, 0x7123u);
  EXPECT_TRUE(t.readable && !t.writable && t.executable && t.global && !t.user);
  EXPECT_EQ(Get64(0x1000) & (kA | kD), kA);
  EXPECT_EQ(Get64(0x4028) & (kA | kD), kA);
  memory_->PageFlags(4).store(0);
  t = Walk(0x5123, Access::kWrite);
  EXPECT_TRUE(t.ok && t.writable);
  EXPECT_EQ(Get64(0x4028) & (kA | kD), kA | kD);
  EXPECT_EQ(memory_->PageFlags(4).load(), memory::GuestMemory::kDirty);
}

TEST_F(PageWalkTest, LargePages) {
  LongMode();
  Put64(0x3008, 0x600000 | kP | kPs);
  EXPECT_EQ(Walk(0x2abcde, Access::kRead).address.value, 0x6abcdeu);
  EXPECT_EQ(Walk(0x2abcde, Access::kRead).page_bytes, 2 * kMiB);
  Put64(0x2008, 0x40000000 | kP | kPs);
  EXPECT_EQ(Walk(0x40001234, Access::kRead).address.value, 0x40001234u);
  const Translation without = WalkPages(*memory_, state_, GuestVirt(0x40001234), {.pages_1gib = false});
  EXPECT_EQ(without.error_code, pf::kPresent | pf::kReserved) << "a CPU without 1 GiB pages";
  Put64(0x3010, 0x602000 | kP | kPs);
  EXPECT_EQ(Walk(0x400000, Access::kRead).error_code, pf::kPresent | pf::kReserved);
}

TEST_F(PageWalkTest, ErrorCodes) {
  LongMode();
  EXPECT_EQ(Walk(0x0, Access::kRead).error_code, 0u);
  EXPECT_EQ(Walk(0x0, Access::kWrite, true).error_code, pf::kWrite | pf::kUser);
  EXPECT_EQ(Walk(0x0, Access::kExecute).error_code, pf::kFetch);
  Put64(0x4000, 0x7000 | kP | kU | kNx);
  EXPECT_EQ(Walk(0x0, Access::kWrite, true).error_code, pf::kPresent | pf::kWrite | pf::kUser);
  EXPECT_EQ(Walk(0x0, Access::kExecute, true).error_code, pf::kPresent | pf::kUser | pf::kFetch);
  EXPECT_EQ(Walk(0x0, Access::kWrite).error_code, pf::kPresent | pf::kWrite) << "CR0.WP";
  EXPECT_EQ(Get64(0x4000) & (kA | kD), 0u);
  state_.cr0 &= ~cr0::kWp;
  EXPECT_TRUE(Walk(0x0, Access::kWrite).ok);
  Put64(0x4000, 0x7000 | kP | Bit(45));
  EXPECT_EQ(Walk(0x0, Access::kRead).error_code, pf::kPresent | pf::kReserved);
  Put64(0x4000, 0x7000 | kP | Bit(55));
  EXPECT_TRUE(Walk(0x0, Access::kRead).ok) << "bits 62:52 are ignored";
  Put64(0x4000, 0x7000 | kP | kNx);
  state_.msr.efer &= ~efer::kNxe;
  EXPECT_EQ(Walk(0x0, Access::kExecute).error_code, pf::kPresent | pf::kReserved);
  Put64(0x1000, 0x80000000 | kP | kW);
  EXPECT_EQ(Walk(0x0, Access::kRead).error_code, pf::kPresent | pf::kReserved) << "a table outside RAM";
}

TEST_F(PageWalkTest, SmepAndSmap) {
  LongMode();
  state_.cr4 |= cr4::kSmep | cr4::kSmap;
  Put64(0x4000, 0x7000 | kP | kW | kU);
  EXPECT_EQ(Walk(0x0, Access::kExecute).error_code, pf::kPresent | pf::kFetch);
  EXPECT_EQ(Walk(0x0, Access::kRead).error_code, pf::kPresent);
  EXPECT_EQ(Walk(0x0, Access::kWrite).error_code, pf::kPresent | pf::kWrite);
  EXPECT_TRUE(Walk(0x0, Access::kRead, false, true).ok);
  EXPECT_TRUE(Walk(0x0, Access::kExecute, true).ok);
  EXPECT_TRUE(Walk(0x0, Access::kRead, true).ok);
}

TEST_F(PageWalkTest, ThirtyTwoBit) {
  state_.cr0 = cr0::kPe | cr0::kPg;
  state_.cr3 = 0x1000;
  Put32(0x1000 + 4 * 1, 0x2000 | kP | kW | kU);
  Put32(0x2000 + 4 * 3, 0x9000 | kP | kU);
  EXPECT_EQ(Walk(0x00403abc, Access::kRead, true).address.value, 0x9abcu);
  EXPECT_EQ(Get32(0x200c), 0x9000 | kP | kU | kA);
  EXPECT_EQ(Walk(0x00403abc, Access::kWrite, true).error_code, pf::kPresent | pf::kWrite | pf::kUser);
  EXPECT_TRUE(Walk(0x00403abc, Access::kWrite).ok) << "WP clear";
  Put32(0x1000 + 4 * 2, 0x00c00000 | kP | kW | kPs | (1 << 13));
  EXPECT_EQ(Walk(0x00812345, Access::kRead).error_code, 0u) << "without PSE bit 7 is ignored: the table is empty RAM";
  state_.cr4 |= cr4::kPse;
  const Translation t = Walk(0x00812345, Access::kRead);
  ASSERT_TRUE(t.ok);
  EXPECT_EQ(t.address.value, 0x100c12345u);
  EXPECT_EQ(t.page_bytes, 4 * kMiB);
  Put32(0x1000 + 4 * 2, 0x00c00000 | kP | kPs | (1 << 21));
  EXPECT_EQ(Walk(0x00812345, Access::kRead).error_code, pf::kPresent | pf::kReserved);
}

TEST_F(PageWalkTest, Pae) {
  Put64(0x1020, 0x2000 | kP);
  Put64(0x1028, 0);
  Put64(0x1030, 0x2000 | kP | kW);
  EXPECT_FALSE(LoadPdptes(*memory_, state_, 0x1020)) << "bit 1 is reserved";
  EXPECT_EQ(state_.pdpte[0], 0u);
  Put64(0x1030, 0);
  ASSERT_TRUE(LoadPdptes(*memory_, state_, 0x1020));
  state_.cr0 = cr0::kPe | cr0::kPg;
  state_.cr4 = cr4::kPae;
  state_.cr3 = 0x1020;
  Put64(0x2000, 0x3000 | kP | kW | kU);
  Put64(0x3008, 0x5000 | kP | kW | kU);
  EXPECT_EQ(Walk(0x1010, Access::kWrite, true).address.value, 0x5010u);
  EXPECT_EQ(Walk(0x40001010, Access::kWrite, true).error_code, pf::kWrite | pf::kUser);
  Put64(0x3008, 0x5000 | kP | kW | kU | Bit(55));
  EXPECT_EQ(Walk(0x1010, Access::kRead).error_code, pf::kPresent | pf::kReserved) << "bits 62:52 are reserved";
}

}  // namespace
}  // namespace nacre::x86
