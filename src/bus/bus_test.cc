#include "bus/bus.h"

#include <gtest/gtest.h>

#include <map>

#include "bus/irq_sharer.h"

namespace nacre::bus {
namespace {

/// Bytes of memory that also counts accesses by size.
class Bytes final : public IoHandler {
 public:
  explicit Bytes(uint8_t fill = 0) : fill_(fill) {}
  uint64_t Read(uint64_t offset, unsigned size) override {
    ++accesses[size];
    uint64_t value = 0;
    for (unsigned i = 0; i < size; ++i) value |= uint64_t{Byte(offset + i)} << (8 * i);
    return value;
  }
  void Write(uint64_t offset, unsigned size, uint64_t value) override {
    ++accesses[size];
    for (unsigned i = 0; i < size; ++i) Byte(offset + i) = static_cast<uint8_t>(value >> (8 * i));
  }
  uint8_t& Byte(uint64_t offset) { return bytes_.try_emplace(offset, fill_).first->second; }
  std::map<unsigned, int> accesses;

 private:
  uint8_t fill_;
  std::map<uint64_t, uint8_t> bytes_;
};

TEST(AddressMap, NothingThereReadsAllOnesAndSwallowsWrites) {
  PortBus ports;
  EXPECT_EQ(ports.Read(0x100, 1), 0xffu);
  EXPECT_EQ(ports.Read(0x100, 2), 0xffffu);
  EXPECT_EQ(ports.Read(0xffff, 4), 0xffffffffu);
  ports.Write(0x100, 4, 1);
  MemoryBus memory;
  EXPECT_EQ(memory.Read(~uint64_t{0} - 3, 8), ~uint64_t{0});
}

TEST(AddressMap, AnAccessInsideABlockArrivesWhole) {
  MemoryBus memory;
  Bytes block;
  const Mapping mapping = memory.Add(0x1000, 0x10, block, "block");
  memory.Write(0x1008, 8, 0x1122334455667788);
  EXPECT_EQ(memory.Read(0x1008, 8), 0x1122334455667788u);
  EXPECT_EQ(block.Byte(8), 0x88);
  EXPECT_EQ(block.accesses[8], 2);
  EXPECT_EQ(block.accesses[1], 0);
}

TEST(AddressMap, AnAccessAcrossTheEdgeIsSplitIntoBytes) {
  PortBus ports;
  Bytes left(0x11), right(0x22);
  const Mapping a = ports.Add(0x10, 2, left, "left");
  const Mapping b = ports.Add(0x12, 1, right, "right");
  EXPECT_EQ(ports.Read(0x11, 4), 0xffff2211u);
  ports.Write(0x11, 4, 0xddccbbaa);
  EXPECT_EQ(left.Byte(1), 0xaa);
  EXPECT_EQ(right.Byte(0), 0xbb);
  EXPECT_EQ(ports.Read(0xf, 2), 0x11ffu);
}

TEST(AddressMap, TheOlderBlockIsSeenWhereTwoOverlap) {
  MemoryBus memory;
  Bytes older(1), younger(2);
  const Mapping a = memory.Add(0x2000, 0x100, older, "older");
  {
    const Mapping b = memory.Add(0x1f80, 0x200, younger, "younger");
    EXPECT_EQ(memory.Read(0x1fff, 1), 2u);
    EXPECT_EQ(memory.Read(0x2000, 1), 1u);
    EXPECT_EQ(memory.Read(0x20ff, 1), 1u);
    EXPECT_EQ(memory.Read(0x2100, 1), 2u);
    EXPECT_EQ(memory.Read(0x2180, 1), 0xffu);
  }
  EXPECT_EQ(memory.Read(0x2100, 1), 0xffu);
  EXPECT_EQ(memory.Read(0x2000, 1), 1u);
}

TEST(AddressMap, RemovingTheOlderBlockUncoversTheYounger) {
  MemoryBus memory;
  Bytes older(1), younger(2);
  Mapping a = memory.Add(0, 0x100, older, "older");
  const Mapping b = memory.Add(0, 0x100, younger, "younger");
  EXPECT_EQ(memory.Read(0x80, 1), 1u);
  a.Remove();
  EXPECT_EQ(memory.Read(0x80, 1), 2u);
}

TEST(AddressMap, ARangeThatEndsBeyondTheLastAddressIsCut) {
  MemoryBus memory;
  Bytes block(7);
  const Mapping mapping = memory.Add(~uint64_t{0} - 0xf, 0x1000, block, "end");
  EXPECT_EQ(memory.Read(~uint64_t{0}, 1), 7u);
  EXPECT_EQ(memory.Read(0, 1), 0xffu);
  PortBus ports;
  const Mapping high = ports.Add(0xfff0, 0x1000, block, "end");
  EXPECT_EQ(ports.Read(0xffff, 2), 0xff07u);
  EXPECT_FALSE(ports.Add(0x10000, 1, block, "none").mapped());
  EXPECT_FALSE(ports.Add(0, 0, block, "none").mapped());
}

TEST(AddressMap, AHandlerMayMoveItselfDuringAnAccess) {
  struct Mover final : IoHandler {
    uint64_t Read(uint64_t, unsigned) override { return 5; }
    void Write(uint64_t, unsigned, uint64_t value) override {
      mapping.Remove();
      mapping = bus->Add(value, 4, *this, "mover");
    }
    MemoryBus* bus = nullptr;
    Mapping mapping;
  };
  MemoryBus memory;
  Mover mover;
  mover.bus = &memory;
  mover.mapping = memory.Add(0x1000, 4, mover, "mover");
  memory.Write(0x1000, 4, 0x5000);
  EXPECT_EQ(memory.Read(0x1000, 1), 0xffu);
  EXPECT_EQ(memory.Read(0x5000, 1), 5u);
  const std::vector<Traffic> traffic = memory.traffic();
  ASSERT_EQ(traffic.size(), 1u);
  EXPECT_EQ(traffic[0].reads, 1u);
  EXPECT_EQ(traffic[0].writes, 1u);
}

TEST(IrqSharer, TheLineIsAssertedWhileAnySourceIs) {
  struct Target final : IrqLine {
    void Set(bool value) override { level = value, ++changes; }
    bool level = false;
    int changes = 0;
  } target;
  IrqSharer sharer(&target);
  const auto a = sharer.NewSource();
  auto b = sharer.NewSource();
  a->Set(true);
  b->Set(true);
  a->Set(true);
  a->Set(false);
  EXPECT_TRUE(target.level);
  EXPECT_EQ(target.changes, 1);
  b.reset();  // a device that goes away lets go of its line
  EXPECT_FALSE(target.level);
}

}  // namespace
}  // namespace nacre::bus
