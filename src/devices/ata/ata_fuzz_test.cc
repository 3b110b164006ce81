// Hostile drivers of the disk controllers: random register accesses, commands, packets and scatter lists, with a seed.
// What is asserted: no crash, no sanitizer report, and the controller works again after a reset. Longer runs:
// base/fuzz_testing.h.

#include <gtest/gtest.h>

#include <cstdlib>
#include <random>

#include "base/fuzz_testing.h"
#include "bus/conformance_testing.h"
#include "devices/ata/ahci_testing.h"
#include "devices/ata/ata_testing.h"

namespace nacre::devices {
namespace {

class Fuzz : public testing::Test {
 protected:
  static constexpr uint64_t kMemory = 8 * kMiB;
  uint64_t Random() { return random_(); }
  uint64_t Below(uint64_t end) { return random_() % end; }
  bool OneIn(uint64_t count) { return random_() % count == 0; }
  /// Mostly in RAM, often near an edge.
  uint64_t Address() {
    switch (Below(8)) {
      case 0:
        return Random() >> Below(64);
      case 1:
        return kMemory - Below(64);
      default:
        return 0x20'0000 + Below(0x10'0000);
    }
  }
  uint8_t Command() {
    static constexpr uint8_t kCommands[] = {0x06, 0x20, 0x24, 0x25, 0x29, 0x2f, 0x30, 0x34, 0x35, 0x39, 0x3d, 0x40,
                                            0x42, 0x60, 0x61, 0x90, 0x91, 0xa0, 0xa0, 0xa1, 0xb0, 0xc4, 0xc5, 0xc6,
                                            0xc8, 0xca, 0xce, 0xe0, 0xe5, 0xe7, 0xea, 0xec, 0xef, 0xf8};
    return OneIn(16) ? static_cast<uint8_t>(Random()) : kCommands[Below(std::size(kCommands))];
  }
  std::vector<uint8_t> Packet() {
    static constexpr uint8_t kPackets[] = {0x00, 0x03, 0x12, 0x1b, 0x1e, 0x25, 0x28, 0x28, 0xa8, 0x2b,
                                           0x43, 0x46, 0x4a, 0x51, 0x52, 0x55, 0x5a, 0xbd, 0xbe, 0xbb};
    std::vector<uint8_t> packet(12);
    for (uint8_t& byte : packet) byte = static_cast<uint8_t>(OneIn(3) ? Random() : Below(4));
    packet[0] = OneIn(16) ? static_cast<uint8_t>(Random()) : kPackets[Below(std::size(kPackets))];
    return packet;
  }
  uint64_t Lba() { return OneIn(8) ? Random() & 0xffff'ffff'ffff : Below(2200); }
  uint16_t Count() { return static_cast<uint16_t>(OneIn(16) ? Random() : Below(40)); }
  void SometimesBreakTheHost(storage::FaultIo& io) {
    if (!OneIn(64)) return;
    io.fault = [this](storage::IoOperation&) -> std::optional<int64_t> {
      return OneIn(4) ? std::optional<int64_t>(-EIO) : std::nullopt;
    };
    if (OneIn(2)) io.fault = nullptr;
  }
  /// Over itself: what a guest brought about can be saved and loaded.
  static void SaveAndLoad(bus::Device& device) {
    const auto saved = bus::Save(device);
    const Status loaded = bus::Load(device, saved);
    ASSERT_TRUE(loaded) << loaded.error().message;
    ASSERT_EQ(saved, bus::Save(device));
  }

  static constexpr uint64_t kCases = 30'000;
  std::mt19937_64 random_{FuzzSeed(20261122)};
  TestImage image_{kMiB};
  TestImage disc_{kMiB};
};

class IdeFuzz : public Fuzz {
 protected:
  IdeFuzz() {
    bench_.PlugDisk(0, image_);
    bench_.PlugCd(1, disc_);
    bench_.PlugCd(2, disc_);
    bench_.PlugDisk(3, image_, true);
    bench_.PowerOn();
  }
  void RandomTable() {
    std::vector<IdeBench::Region> regions;
    for (uint64_t count = Below(6); count > 0; --count)
      regions.push_back({Address() & 0xffffffff, static_cast<uint32_t>(OneIn(4) ? Random() : Below(9) * 1024)});
    bench_.SetTable(regions);
    if (OneIn(8)) bench_.ports.Write(bench_.master() + 4u, 4, Address());
    if (OneIn(8)) bench_.memory.WriteValue(GuestPhys(IdeBench::kTable + 8 * Below(16)), Random());
  }
  void Step() {
    bench_.channel = Below(2);
    bench_.place = Below(2);
    switch (Below(12)) {
      case 0:
        return bench_.Command28(Command(), static_cast<uint32_t>(Lba()) & 0x0fffffff, static_cast<uint8_t>(Count()));
      case 1:
        bench_.Out(1, static_cast<uint8_t>(Below(4)));
        return bench_.Command48(Command(), Lba(), Count());
      case 2:
        bench_.Packet(Packet(), OneIn(2), static_cast<uint16_t>(OneIn(2) ? 0xfffe : Random()));
        return;
      case 3:
        RandomTable();
        return bench_.StartDma(OneIn(2));
      case 4:
        return bench_.StopDma();
      case 5:
        for (uint64_t count = Below(3000); count > 0; --count) {
          const unsigned size = 1u << Below(3);
          if (OneIn(2))
            bench_.ports.Read(bench_.base(), size);
          else
            bench_.ports.Write(bench_.base(), size, Random());
        }
        return;
      case 6:
        bench_.ports.Write(bench_.base() + Below(8), 1u << Below(3), Random());
        return;
      case 7:
        bench_.ports.Read(bench_.base() + Below(8), 1u << Below(3));
        return;
      case 8:
        if (OneIn(4)) bench_.Control(static_cast<uint8_t>(Random()));
        return;
      case 9:
        bench_.ports.Write(IdeBench::kMaster + Below(16), 1u << Below(3), Random());
        return;
      case 10:
        bench_.io->HandleEvents();
        return;
      default:
        if (OneIn(32)) bench_.ide->ConfigWrite(static_cast<unsigned>(Below(256)), 4, static_cast<uint32_t>(Random()));
        if (OneIn(16)) SaveAndLoad(*bench_.ide);
        if (OneIn(8)) bench_.Enable();
    }
  }
  IdeBench bench_;
};

TEST_F(IdeFuzz, RandomDriver) {
  for (FuzzRun run(kCases); run.Next();) {
    Step();
    SometimesBreakTheHost(*bench_.io);
    if (run.index() % 4096 == 0) bench_.PowerOn();
  }
  bench_.io->fault = nullptr;
  bench_.PowerOn();
  bench_.channel = bench_.place = 0;
  image_.Set(0, TestPattern(512, 1));
  bench_.Command28(0x20, 0, 1);
  EXPECT_EQ(TestPattern(512, 1), bench_.ReadBlocks());
}

class AhciFuzz : public Fuzz {
 protected:
  AhciFuzz() {
    bench_.PlugDisk(0, image_);
    bench_.PlugCd(1, disc_);
    bench_.PlugDisk(2, image_, true);
    bench_.PowerOn();
    StartPorts();
  }
  void StartPorts() {
    bench_.Enable();
    for (unsigned port = 0; port < 3; ++port) bench_.StartPort(port);
  }
  void RandomCommand() {
    const auto slot = static_cast<unsigned>(Below(AhciPort::kSlots));
    const uint8_t command = Command();
    const bool queued = command == 0x60 || command == 0x61;
    std::vector<AhciBench::Region> regions;
    for (uint64_t count = Below(8); count > 0; --count)
      regions.push_back({Address(), static_cast<uint32_t>(OneIn(8) ? Random() & 0x3fffff : 1 + Below(16) * 1024)});
    AhciBench::Frame frame{.command = command, .lba = Lba(), .count = Count(), .features = Count()};
    if (queued) frame.count = static_cast<uint16_t>((OneIn(8) ? Below(32) : slot) << 3);
    if (OneIn(8)) frame.device = static_cast<uint8_t>(Random());
    if (OneIn(16)) {
      frame.is_command = false;
      frame.control = static_cast<uint8_t>(Random());
    }
    bench_.SetCommand(slot, frame, regions, static_cast<uint32_t>(OneIn(8) ? Random() : 0));
    bench_.SetPacket(slot, Packet());
    if (OneIn(16)) bench_.memory.WriteValue(GuestPhys(bench_.Table(slot) + Below(512)), Random());
    bench_.Issue(slot, queued);
  }
  void Step() {
    bench_.port = static_cast<unsigned>(Below(3));
    switch (Below(8)) {
      case 0:
      case 1:
      case 2:
        return RandomCommand();
      case 3:
        bench_.io->HandleEvents();
        return;
      case 4:
        if (OneIn(2) || (bench_.Reg(AhciBench::kTfd) & 1) != 0) bench_.Recover();
        return;
      case 5:
        if (OneIn(8)) bench_.SetReg(static_cast<unsigned>(4 * Below(32)), static_cast<uint32_t>(Random()));
        return;
      case 6:
        if (OneIn(64)) bench_.memory_bus.Write(AhciBench::kBase + Below(0x420), 1u << Below(4), Random());
        bench_.memory_bus.Read(AhciBench::kBase + Below(0x420), 1u << Below(4));
        return;
      default:
        if (OneIn(64)) bench_.ahci->ConfigWrite(static_cast<unsigned>(Below(256)), 4, static_cast<uint32_t>(Random()));
        if (OneIn(16)) SaveAndLoad(*bench_.ahci);
        if (OneIn(16)) StartPorts();
    }
  }
  AhciBench bench_;
};

TEST_F(AhciFuzz, RandomDriver) {
  for (FuzzRun run(kCases); run.Next();) {
    Step();
    SometimesBreakTheHost(*bench_.io);
    if (run.index() % 4096 == 0) {
      bench_.PowerOn();
      StartPorts();
    }
  }
  bench_.io->fault = nullptr;
  bench_.PowerOn();
  bench_.StartPort(0);
  image_.Set(0, TestPattern(512, 1));
  EXPECT_EQ(uint32_t{ata::kReady | ata::kSeekComplete},
            bench_.Execute({.command = 0x25, .count = 1}, {{AhciBench::kData, 512}}));
  EXPECT_EQ(TestPattern(512, 1), bench_.Get(AhciBench::kData, 512));
}

}  // namespace
}  // namespace nacre::devices
