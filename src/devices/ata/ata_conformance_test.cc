// The suite that every device passes (bus/conformance_testing.h), over the disk controllers. The stimulus is a driver
// that issues commands, so that the suite meets them in working states too.

#include <gtest/gtest.h>

#include "bus/conformance_testing.h"
#include "devices/ata/ahci_testing.h"
#include "devices/ata/ata_testing.h"

namespace nacre::devices {
namespace {

/// A window of the port bus as one register block.
struct PortWindow final : bus::IoHandler {
  PortWindow(bus::PortBus& owner, uint16_t first) : ports(owner), base(first) {}
  uint64_t Read(uint64_t offset, unsigned size) override { return ports.Read(base + offset, std::min(size, 4u)); }
  void Write(uint64_t offset, unsigned size, uint64_t value) override {
    ports.Write(base + offset, std::min(size, 4u), value);
  }
  bus::PortBus& ports;
  uint16_t base;
};

struct IdeSubject final : bus::ConformanceSubject {
  IdeSubject() {
    bench.PlugDisk(0, image);
    bench.PlugCd(1, disc);
    bench.PlugCd(2, disc);
    bench.ide->Reset();
  }
  bus::Device& device() override { return *bench.ide; }
  std::vector<bus::ConformanceBlock> blocks() override {
    return {{&bench.ide->channel(0).command_io(), 8, 4},
            {&bench.ide->channel(0).control_io(), 1, 1},
            {&bench.ide->channel(1).command_io(), 8, 4},
            {&bench.ide->channel(1).control_io(), 1, 1},
            {&bench.ide->bus_master_io(), PiixIde::kBusMasterSize, 4},
            {&config, 256, 4}};
  }
  void Stimulate(uint64_t random) override {
    static constexpr uint8_t kCommands[] = {0xec, 0x20, 0x30, 0xc8, 0xca, 0xc4, 0x25,
                                            0x35, 0xa0, 0xa1, 0xe7, 0x06, 0x42};
    bench.Enable();
    bench.channel = random & 1;
    bench.place = random >> 1 & 1;
    bench.SetTable({{IdeBench::kData, 1000}, {IdeBench::kData + 0x2000, 5000}});
    bench.Out(1, static_cast<uint8_t>(random >> 2 & 1));
    bench.Command28(kCommands[(random >> 8 & 0xff) % std::size(kCommands)], static_cast<uint32_t>(random >> 16 & 0xff),
                    static_cast<uint8_t>(random >> 24 & 7));
    if ((random >> 32 & 3) != 0) bench.StartDma((random >> 34 & 1) != 0);
    if ((random >> 35 & 1) != 0) bench.StopDma();
    bench.ide->Quiesce();
  }
  TestImage image{kMiB};
  TestImage disc{kMiB};
  IdeBench bench;
  ConfigBlock config{*bench.ide};
};
TEST(Conformance, PiixIde) {
  bus::RunConformance([] { return std::make_unique<IdeSubject>(); });
}

struct AhciSubject final : bus::ConformanceSubject {
  AhciSubject() {
    bench.PlugDisk(0, image);
    bench.PlugCd(2, disc);
    bench.ahci->Reset();
  }
  bus::Device& device() override { return *bench.ahci; }
  std::vector<bus::ConformanceBlock> blocks() override {
    return {{&bench.ahci->registers_io(), Ahci::kBarSize, 8}, {&config, 256, 4}};
  }
  void Stimulate(uint64_t random) override {
    static constexpr uint8_t kCommands[] = {0xec, 0x20, 0x30, 0xc8, 0x25, 0x35, 0x60, 0x61, 0xa0, 0xe7, 0x06, 0x2f};
    bench.Enable();
    bench.StartPort(0);
    bench.StartPort(2);
    bench.port = (random & 1) != 0 ? 2 : 0;
    for (unsigned i = 0; i < 4; ++i, random = random >> 12 | random << 52) {
      const unsigned slot = random >> 8 & 31;
      const auto command = kCommands[(random & 0xff) % std::size(kCommands)];
      const bool queued = command == 0x60 || command == 0x61;
      bench.SetCommand(slot,
                       {.command = command,
                        .lba = random >> 16 & 0xff,
                        .count = static_cast<uint16_t>(queued ? slot << 3 : random >> 24 & 7),
                        .features = static_cast<uint16_t>(random >> 24 & 7)},
                       {{AhciBench::kData, 2000}, {AhciBench::kData + 0x4000, 3000}});
      bench.Issue(slot, queued);
    }
    bench.ahci->Quiesce();
  }
  TestImage image{kMiB};
  TestImage disc{kMiB};
  AhciBench bench;
  ConfigBlock config{*bench.ahci};
};
TEST(Conformance, Ahci) {
  bus::RunConformance([] { return std::make_unique<AhciSubject>(); });
}

}  // namespace
}  // namespace nacre::devices
