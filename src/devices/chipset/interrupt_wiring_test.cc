// IO-APIC (82093AA), 8259 pair, their wiring and the local APIC together.

#include <gtest/gtest.h>

#include "devices/chipset/device_testing.h"
#include "devices/chipset/gsi_router.h"
#include "devices/chipset/io_apic.h"
#include "devices/chipset/local_apic.h"
#include "devices/legacy/pic8259.h"

namespace nacre::devices {
namespace {

class WiringTest : public testing::Test {
 protected:
  WiringTest() {
    bus_.SetExtIntSource(&pic_);
    apic_.Write(0xf0, 4, 0x1ff);
    apic_.Write(0x350, 4, 0x10700);  // LINT0 masked
    pic_.Reset();
  }
  uint32_t IoRead(uint8_t index) {
    io_apic_.Write(0, 4, index);
    return static_cast<uint32_t>(io_apic_.Read(0x10, 4));
  }
  void IoWrite(uint8_t index, uint32_t value) {
    io_apic_.Write(0, 4, index);
    io_apic_.Write(0x10, 4, value);
  }
  void Redirect(unsigned pin, uint32_t low) {
    IoWrite(static_cast<uint8_t>(0x11 + 2 * pin), 0);
    IoWrite(static_cast<uint8_t>(0x10 + 2 * pin), low);
  }
  void Eoi() { apic_.Write(0xb0, 4, 0); }
  void InitializePic(uint8_t icw4 = 0x01) {
    for (bus::IoHandler* chip : {&pic_.master_io(), &pic_.slave_io()}) {
      const bool master = chip == &pic_.master_io();
      chip->Write(0, 1, 0x11);
      chip->Write(1, 1, master ? 0x20 : 0x28);
      chip->Write(1, 1, master ? 0x04 : 0x02);
      chip->Write(1, 1, icw4);
      chip->Write(1, 1, 0x00);
    }
  }

  ManualScheduler scheduler_;
  TestTsc tsc_{scheduler_};
  ApicBus bus_;
  TestCpu cpu_;
  LocalApic apic_{0, bus_, scheduler_, tsc_, cpu_};
  IoApic io_apic_{1, bus_};
  Pic8259 pic_{bus_.lint0()};
  GsiRouter router_{pic_, io_apic_};
};

TEST_F(WiringTest, IoApicIdentifiesItself) {
  EXPECT_EQ(IoRead(0), 0x01000000u);
  EXPECT_EQ(IoRead(1), 0x00170020u);
  EXPECT_EQ(IoRead(0x10), 0x10000u);  // masked after reset
  EXPECT_EQ(IoRead(0x40), 0xffffffffu);
}

TEST_F(WiringTest, EdgePinSendsOncePerEdgeAndForgetsWhileMasked) {
  Redirect(4, 0x10034);
  const auto line = router_.NewSource(4);
  line->Pulse();
  Redirect(4, 0x34);
  EXPECT_EQ(apic_.Acknowledge(), -1);
  line->Set(true);
  EXPECT_EQ(apic_.Acknowledge(), 0x34);
  Eoi();
  line->Set(true);
  EXPECT_EQ(apic_.Acknowledge(), -1);
}

TEST_F(WiringTest, LevelPinRepeatsAfterEoiWhileAsserted) {
  Redirect(16, 0x8050);
  const auto line = router_.NewSource(16);
  line->Set(true);
  EXPECT_EQ(IoRead(0x30) & 0x4000, 0x4000u);  // remote IRR
  EXPECT_EQ(apic_.Acknowledge(), 0x50);
  EXPECT_EQ(apic_.Acknowledge(), -1);
  Eoi();
  EXPECT_EQ(apic_.Acknowledge(), 0x50);
  line->Set(false);
  Eoi();
  EXPECT_EQ(apic_.Acknowledge(), -1);
  EXPECT_EQ(IoRead(0x30) & 0x4000, 0u);
}

TEST_F(WiringTest, LevelPinSendsWhenUnmaskedAndByEoiRegister) {
  Redirect(17, 0x18051);
  const auto line = router_.NewSource(17);
  line->Set(true);
  EXPECT_EQ(apic_.Acknowledge(), -1);
  Redirect(17, 0x8051);
  EXPECT_EQ(apic_.Acknowledge(), 0x51);
  line->Set(false);
  io_apic_.Write(0x40, 4, 0x51);
  EXPECT_EQ(IoRead(0x32) & 0x4000, 0u);
}

TEST_F(WiringTest, RemoteIrrClearsWhenAPinBecomesEdgeTriggered) {
  Redirect(18, 0x8052);
  const auto line = router_.NewSource(18);
  line->Set(true);
  EXPECT_EQ(IoRead(0x34) & 0x4000, 0x4000u);
  IoWrite(0x34, 0x10052);
  EXPECT_EQ(IoRead(0x34) & 0x4000, 0u);
}

TEST_F(WiringTest, RouteOfAPinIsWhatItSends) {
  EXPECT_TRUE(io_apic_.RouteOf(5).masked);
  IoWrite(0x11 + 2 * 5, 0x03000000);
  IoWrite(0x10 + 2 * 5, 0x8951);  // level, logical, lowest priority
  IoApic::Route route = io_apic_.RouteOf(5);
  EXPECT_FALSE(route.masked);
  EXPECT_EQ(route.message.destination, 3u);
  EXPECT_TRUE(route.message.logical);
  EXPECT_TRUE(route.message.level);
  EXPECT_EQ(route.message.mode, DeliveryMode::kLowestPriority);
  EXPECT_EQ(route.message.vector, 0x51);
  IoWrite(0x11 + 2 * 5, 0xff000000);
  IoWrite(0x10 + 2 * 5, 0x10052);
  route = io_apic_.RouteOf(5);
  EXPECT_TRUE(route.masked);
  EXPECT_FALSE(route.message.logical);
  EXPECT_FALSE(route.message.level);
  EXPECT_EQ(route.message.destination, ApicMessage::kBroadcast);
  EXPECT_EQ(route.message.vector, 0x52);
}

TEST_F(WiringTest, RouteListenerIsToldOfChangesBeforeTheySend) {
  int calls = 0;
  bool interrupt = false;
  io_apic_.SetRouteListener([&] {
    ++calls;
    interrupt = cpu_.interrupt;
  });
  Redirect(16, 0x18050);
  EXPECT_EQ(calls, 1) << "the destination stays as it was";
  Redirect(16, 0x18050);
  IoWrite(0, 0x02000000);     // not an entry
  IoWrite(0x3f + 1, 0x8050);  // beyond the last
  EXPECT_EQ(calls, 1);
  const auto line = router_.NewSource(16);
  line->Set(true);
  Redirect(16, 0x8050);
  EXPECT_EQ(calls, 2);
  EXPECT_FALSE(interrupt);
  EXPECT_TRUE(cpu_.interrupt);
  EXPECT_EQ(io_apic_.RouteOf(16).message.vector, 0x50);
  ASSERT_EQ(apic_.Acknowledge(), 0x50);
  line->Set(false);
  Eoi();
  EXPECT_EQ(calls, 2) << "remote IRR is no part of the route";
  auto out = state::Archive::ForSaving();
  io_apic_.Serialize(out);
  const std::vector<uint8_t> bytes = out.Finish();
  EXPECT_EQ(calls, 2);
  io_apic_.Reset();
  EXPECT_EQ(calls, 3);
  EXPECT_TRUE(io_apic_.RouteOf(16).masked);
  auto in = state::Archive::ForLoading(bytes);
  io_apic_.Serialize(in);
  ASSERT_TRUE(in.status());
  EXPECT_EQ(calls, 4);
  EXPECT_FALSE(io_apic_.RouteOf(16).masked);
  io_apic_.SetRouteListener(nullptr);
  Redirect(16, 0x18050);
  EXPECT_EQ(calls, 4);
}

TEST_F(WiringTest, Irq0IsOnIoApicPin2) {
  Redirect(2, 0x30);
  const auto line = router_.NewSource(0);
  line->Pulse();
  EXPECT_EQ(apic_.Acknowledge(), 0x30);
  EXPECT_EQ(GsiRouter::GsiOf(0), 2u);
}

TEST_F(WiringTest, VirtualWireModeThroughTheIoApic) {
  InitializePic();
  Redirect(0, 0x700);  // ExtINT
  io_apic_.line(0).Set(true);
  EXPECT_TRUE(cpu_.interrupt);
  router_.NewSource(1)->Set(true);
  EXPECT_EQ(apic_.Acknowledge(), 0x21);
}

TEST_F(WiringTest, PicDeliversByPriorityAndWaitsForEoi) {
  apic_.Write(0x350, 4, 0x700);
  InitializePic();
  const auto irq1 = router_.NewSource(1);
  const auto irq3 = router_.NewSource(3);
  irq3->Set(true);
  irq1->Set(true);
  EXPECT_TRUE(cpu_.interrupt);
  EXPECT_EQ(apic_.Acknowledge(), 0x21);
  EXPECT_FALSE(cpu_.interrupt);
  pic_.master_io().Write(0, 1, 0x0b);  // read ISR
  EXPECT_EQ(pic_.master_io().Read(0, 1), 0x02u);
  pic_.master_io().Write(0, 1, 0x20);  // non-specific EOI
  EXPECT_EQ(apic_.Acknowledge(), 0x23);
  pic_.master_io().Write(0, 1, 0x63);  // specific EOI
  EXPECT_EQ(pic_.master_io().Read(0, 1), 0u);
}

TEST_F(WiringTest, PicCascadeServesTheSlave) {
  apic_.Write(0x350, 4, 0x700);
  InitializePic();
  const auto irq8 = router_.NewSource(8);
  const auto irq12 = router_.NewSource(12);
  irq12->Pulse();
  EXPECT_EQ(apic_.Acknowledge(), 0x2c);
  irq8->Pulse();  // higher within the slave, but the master holds back its own pin 2 until EOI
  EXPECT_FALSE(cpu_.interrupt);
  pic_.slave_io().Write(0, 1, 0x20);
  pic_.master_io().Write(0, 1, 0x20);
  EXPECT_EQ(apic_.Acknowledge(), 0x28);
}

TEST_F(WiringTest, PicSpurious) {
  InitializePic();
  EXPECT_EQ(pic_.AcknowledgeExtInt(), 0x27);
  pic_.master_io().Write(0, 1, 0x0b);
  EXPECT_EQ(pic_.master_io().Read(0, 1), 0u);  // not in service
}

TEST_F(WiringTest, PicMaskPollAndAutoEoi) {
  InitializePic(0x03);
  const auto irq5 = router_.NewSource(5);
  pic_.master_io().Write(1, 1, 0x20);
  irq5->Set(true);
  EXPECT_FALSE(cpu_.interrupt);
  EXPECT_EQ(pic_.master_io().Read(1, 1), 0x20u);
  pic_.master_io().Write(1, 1, 0x00);
  pic_.master_io().Write(0, 1, 0x0c);  // poll
  EXPECT_EQ(pic_.master_io().Read(0, 1), 0x85u);
  pic_.master_io().Write(0, 1, 0x0b);
  EXPECT_EQ(pic_.master_io().Read(0, 1), 0u);  // ended by itself
  pic_.master_io().Write(0, 1, 0x0c);
  EXPECT_EQ(pic_.master_io().Read(0, 1), 0u);
}

TEST_F(WiringTest, PicRotationAndSpecialMask) {
  apic_.Write(0x350, 4, 0x700);
  InitializePic();
  const auto irq1 = router_.NewSource(1);
  const auto irq4 = router_.NewSource(4);
  pic_.master_io().Write(0, 1, 0xc3);  // IRQ 3 lowest: 4 is highest now
  irq1->Set(true);
  irq4->Set(true);
  EXPECT_EQ(apic_.Acknowledge(), 0x24);
  EXPECT_FALSE(cpu_.interrupt);
  pic_.master_io().Write(1, 1, 0x10);
  pic_.master_io().Write(0, 1, 0x68);  // special mask mode: the masked level in service no longer holds back others
  EXPECT_TRUE(cpu_.interrupt);
  EXPECT_EQ(apic_.Acknowledge(), 0x21);
}

TEST_F(WiringTest, ElcrMakesALineLevelTriggered) {
  apic_.Write(0x350, 4, 0x700);
  InitializePic();
  pic_.elcr_io().Write(0, 2, 0xffff);
  EXPECT_EQ(pic_.elcr_io().Read(0, 2), 0xdef8u);  // timer, keyboard, cascade, clock, coprocessor stay edges
  const auto a = router_.NewSource(11);
  const auto b = router_.NewSource(11);
  a->Set(true);
  b->Set(true);
  EXPECT_EQ(apic_.Acknowledge(), 0x2b);
  a->Set(false);
  pic_.slave_io().Write(0, 1, 0x20);
  pic_.master_io().Write(0, 1, 0x20);
  EXPECT_EQ(apic_.Acknowledge(), 0x2b);  // still asserted by the other
  b->Set(false);
  pic_.slave_io().Write(0, 1, 0x20);
  pic_.master_io().Write(0, 1, 0x20);
  EXPECT_FALSE(cpu_.interrupt);
}

}  // namespace
}  // namespace nacre::devices
