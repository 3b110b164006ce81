#include "engine/kvm/kvm_state.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <vector>

namespace nacre::engine::kvm {
namespace {

using x86::CpuState;
using x86::Segment;

class KvmState : public testing::Test {
 protected:
  uint64_t Next() { return random_(); }

  CpuState RandomState() {
    CpuState state;
    for (uint64_t& gpr : state.gpr) gpr = Next();
    state.rip = Next();
    state.rflags = (Next() & 0x3fffd5) | x86::rflags::kFixed1;
    for (Segment* segment : {&state.segment[0], &state.segment[1], &state.segment[2], &state.segment[3],
                             &state.segment[4], &state.segment[5], &state.ldtr, &state.tr})
      *segment = {.base = Next(),
                  .limit = static_cast<uint32_t>(Next()),
                  .attributes = static_cast<uint32_t>(Next()) & 0x1f0ff,
                  .selector = static_cast<uint16_t>(Next())};
    state.gdtr = {Next(), static_cast<uint16_t>(Next())};
    state.idtr = {Next(), static_cast<uint16_t>(Next())};
    state.cr0 = Next();
    state.cr2 = Next();
    state.cr3 = Next();
    state.cr4 = Next();
    state.msr.efer = Next();
    for (uint64_t& dr : state.dr) dr = Next();
    state.dr6 = Next();
    state.dr7 = Next();
    for (uint8_t& byte : state.xsave.bytes) byte = static_cast<uint8_t>(Next());
    return state;
  }

  std::mt19937_64 random_{12345};
};

void ExpectSame(const Segment& a, const Segment& b) {
  EXPECT_EQ(a.base, b.base);
  EXPECT_EQ(a.limit, b.limit);
  EXPECT_EQ(a.attributes, b.attributes);
  EXPECT_EQ(a.selector, b.selector);
}

TEST_F(KvmState, RegistersThereAndBack) {
  for (int round = 0; round < 20; ++round) {
    const CpuState from = RandomState();
    kvm_regs regs{};
    kvm_sregs2 sregs{};
    kvm_debugregs debug{};
    ToKvm(from, regs);
    ToKvm(from, sregs);
    ToKvm(from, debug);
    CpuState to;
    FromKvm(regs, to);
    FromKvm(sregs, to);
    FromKvm(debug, to);
    EXPECT_EQ(0, std::memcmp(from.gpr, to.gpr, sizeof from.gpr));
    EXPECT_EQ(from.rip, to.rip);
    EXPECT_EQ(from.rflags, to.rflags);
    for (unsigned i = 0; i < x86::kSegmentCount; ++i) ExpectSame(from.segment[i], to.segment[i]);
    ExpectSame(from.ldtr, to.ldtr);
    ExpectSame(from.tr, to.tr);
    EXPECT_EQ(from.gdtr.base, to.gdtr.base);
    EXPECT_EQ(from.idtr.limit, to.idtr.limit);
    EXPECT_EQ(from.cr0, to.cr0);
    EXPECT_EQ(from.cr2, to.cr2);
    EXPECT_EQ(from.cr3, to.cr3);
    EXPECT_EQ(from.cr4, to.cr4);
    EXPECT_EQ(from.msr.efer, to.msr.efer);
    EXPECT_EQ(0, std::memcmp(from.dr, to.dr, sizeof from.dr));
    EXPECT_EQ(from.dr6, to.dr6);
    EXPECT_EQ(from.dr7, to.dr7);
  }
}

TEST_F(KvmState, WhatBelongsToTheLocalApicIsLeftAlone) {
  kvm_sregs2 sregs{};
  sregs.cr8 = 5;
  sregs.apic_base = 0xfee00900;
  ToKvm(RandomState(), sregs);
  EXPECT_EQ(sregs.cr8, 5U);
  EXPECT_EQ(sregs.apic_base, 0xfee00900U);
}

TEST_F(KvmState, VectorRegistersThereAndBack) {
  const CpuState from = RandomState();
  for (const uint64_t components : {uint64_t{3}, uint64_t{7}, uint64_t{0xe7}}) {
    std::vector<uint8_t> area(HostXsave().bytes + 4096);
    ToKvm(from, components, area.data());
    CpuState to;
    FromKvm(area.data(), components, to);
    CpuState again = to;
    EXPECT_EQ(0, std::memcmp(from.xsave.bytes, to.xsave.bytes, 24));
    EXPECT_EQ(0, std::memcmp(from.xsave.bytes + 24, to.xsave.bytes + 24, 4));
    EXPECT_EQ(0, std::memcmp(from.xsave.bytes + 32, to.xsave.bytes + 32, 384));
    for (const auto& [component, offset] : HostXsave().places) {
      if (offset == 0) continue;
      const bool has = (components >> component.bit & 1) != 0;
      const std::vector<uint8_t> zeros(component.bytes);
      EXPECT_EQ(0, std::memcmp(to.xsave.bytes + component.offset,
                               has ? from.xsave.bytes + component.offset : zeros.data(), component.bytes))
          << "component " << component.bit;
    }
    FromKvm(area.data(), components, again);
    EXPECT_EQ(0, std::memcmp(to.xsave.bytes, again.xsave.bytes, x86::XsaveArea::kSize));
  }
}

TEST_F(KvmState, ComponentsInInitialStateAreSo) {
  std::vector<uint8_t> area(HostXsave().bytes, 0xff);
  std::memset(area.data() + 512, 0, 64);
  const uint32_t mxcsr = 0x1f80;
  std::memcpy(area.data() + 24, &mxcsr, sizeof mxcsr);
  CpuState state;
  FromKvm(area.data(), 7, state);
  EXPECT_EQ(state.xsave.fcw(), 0x37f);
  EXPECT_EQ(state.xsave.ftw(), 0);
  EXPECT_EQ(state.xsave.mxcsr(), 0x1f80U);
  for (unsigned i = 0; i < 16; ++i) EXPECT_EQ(state.xsave.xmm(3)[i], 0);
  for (unsigned i = 0; i < 16; ++i) EXPECT_EQ(state.xsave.ymm_high(3)[i], 0);
}

TEST_F(KvmState, EveryMsrHasAPlaceOfItsOwn) {
  x86::Msrs msrs;
  const auto places = MsrPlaces(msrs);
  for (size_t i = 0; i < places.size(); ++i)
    for (size_t j = 0; j < i; ++j) {
      EXPECT_NE(places[i].index, places[j].index);
      EXPECT_NE(places[i].value, places[j].value);
    }
}

TEST_F(KvmState, LocalApicThereAndBack) {
  for (const bool x2apic : {false, true}) {
    x86::LocalApicState from;
    from.apic_base = 0xfee00800 | (x2apic ? 0x400 : 0);
    from.id = x2apic ? 0x1234 : 0x12;
    from.tpr = 0x20;
    from.ldr = x2apic ? 0x10002 : 0x02000000;
    from.dfr = 0xffffffff;
    from.svr = 0x1ff;
    from.esr = 0x40;
    from.icr_low = 0xc4500;
    from.icr_high = x2apic ? 0x12345 : 0x05000000;
    for (unsigned i = 0; i < x86::LocalApicState::kLvtCount; ++i) from.lvt[i] = 0x10000 + i;
    from.initial_count = 1000;
    from.current_count = 10;
    from.divide = 0xb;
    for (unsigned i = 0; i < 8; ++i) {
      from.irr[i] = static_cast<uint32_t>(Next());
      from.isr[i] = static_cast<uint32_t>(Next());
      from.tmr[i] = static_cast<uint32_t>(Next());
    }
    kvm_lapic_state registers{};
    ToKvm(from, registers);
    x86::LocalApicState to;
    FromKvm(registers, x2apic, to);
    EXPECT_EQ(from.id, to.id);
    EXPECT_EQ(from.tpr, to.tpr);
    EXPECT_EQ(from.ldr, to.ldr);
    EXPECT_EQ(from.dfr, to.dfr);
    EXPECT_EQ(from.svr, to.svr);
    EXPECT_EQ(from.esr, to.esr);
    EXPECT_EQ(from.icr_low, to.icr_low);
    EXPECT_EQ(from.icr_high, to.icr_high);
    EXPECT_EQ(from.initial_count, to.initial_count);
    EXPECT_EQ(from.current_count, to.current_count);
    EXPECT_EQ(from.divide, to.divide);
    EXPECT_EQ(0, std::memcmp(from.lvt, to.lvt, sizeof from.lvt));
    EXPECT_EQ(0, std::memcmp(from.irr, to.irr, sizeof from.irr));
    EXPECT_EQ(0, std::memcmp(from.isr, to.isr, sizeof from.isr));
    EXPECT_EQ(0, std::memcmp(from.tmr, to.tmr, sizeof from.tmr));
  }
}

}  // namespace
}  // namespace nacre::engine::kvm
