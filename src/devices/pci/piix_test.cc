// Intel 82371SB data sheet 3.2.8 (PIRQ route control); 82371AB data sheet 7.1 (power management).

#include "devices/pci/piix.h"

#include <gtest/gtest.h>

#include "devices/chipset/device_testing.h"
#include "devices/chipset/small_ports.h"

namespace nacre::devices {
namespace {

class PiixTest : public testing::Test {
 protected:
  IsaBridge::Lines Lines() {
    IsaBridge::Lines lines;
    for (unsigned i = 0; i < 4; ++i) {
      lines.own[i] = &own_[i];
      for (unsigned irq = 0; irq < 16; ++irq) lines.isa[i][irq] = &isa_[i][irq];
    }
    return lines;
  }

  bus::PortBus ports_;
  bus::MemoryBus memory_;
  TestMsiSink msi_;
  PciWiring wiring_{&ports_, &memory_, &msi_};
  TestLine own_[4], isa_[4][16];
  IsaBridge bridge_{wiring_, Lines()};
  PostPort registers_;
  PowerManagement power_{wiring_, registers_, 1};
};

TEST_F(PiixTest, PirqFollowsItsRoute) {
  bridge_.pirq(1).Set(true);
  EXPECT_TRUE(own_[1].level);
  bridge_.ConfigWrite(0x61, 1, 11);
  EXPECT_TRUE(isa_[1][11].level);
  bridge_.ConfigWrite(0x60, 4, 0x80800a80);
  EXPECT_FALSE(isa_[1][11].level);
  EXPECT_TRUE(isa_[1][10].level);
  EXPECT_EQ(bridge_.route(1), 10);
  EXPECT_EQ(bridge_.route(0), 0);
  bridge_.ConfigWrite(0x61, 1, IsaBridge::kNotRouted | 10);
  EXPECT_FALSE(isa_[1][10].level);
  EXPECT_TRUE(own_[1].level);
  bridge_.pirq(1).Set(false);
  EXPECT_FALSE(own_[1].level);
}

TEST_F(PiixTest, InterruptsOfTheBoardAreNoRoute) {
  bridge_.pirq(0).Set(true);
  for (const unsigned irq : {0u, 1u, 2u, 8u, 13u}) {
    bridge_.ConfigWrite(0x60, 1, irq);
    EXPECT_FALSE(isa_[0][irq].level) << irq;
  }
}

TEST_F(PiixTest, PowerManagementRegistersMoveWithTheirBase) {
  EXPECT_FALSE(ports_.Claims(0x600));
  power_.Place(0x600);
  ports_.Write(0x600, 1, 0x5a);
  EXPECT_EQ(ports_.Read(0x600, 1), 0x5au);
  EXPECT_EQ(power_.ConfigRead(0x40, 4), 0x601u);
  power_.ConfigWrite(0x40, 4, 0xb000);
  EXPECT_FALSE(ports_.Claims(0x600));
  EXPECT_EQ(ports_.Read(0xb000, 1), 0x5au);
  power_.ConfigWrite(0x80, 1, 0);
  EXPECT_FALSE(ports_.Claims(0xb000));
  EXPECT_EQ(power_.base(), 0);
}

}  // namespace
}  // namespace nacre::devices
