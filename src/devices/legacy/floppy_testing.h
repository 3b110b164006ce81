#pragma once
// For tests of the floppy controller: its machine, and a driver that uses it as operating systems do.

#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "devices/ata/ata_testing.h"
#include "devices/legacy/floppy82077.h"

namespace nacre::devices {

class FloppyBench : public StorageBench {
 public:
  static constexpr uint64_t kData = 0x20000;  ///< of the driver

  FloppyBench() : StorageBench(4 * kMiB) {
    mappings.push_back(ports.Add(Dma8237::kMasterPort, Dma8237::kMasterSize, dma.master_io(), "dma"));
    mappings.push_back(ports.Add(Dma8237::kSlavePort, Dma8237::kSlaveSize, dma.slave_io(), "dma"));
    mappings.push_back(ports.Add(Dma8237::kPagePort, Dma8237::kPageSize, dma.page_io(), "dma"));
    mappings.push_back(ports.Add(Floppy82077::kPort, Floppy82077::kSize, floppy->io(), "floppy"));
    mappings.push_back(ports.Add(Floppy82077::kInputPort, 1, floppy->input_io(), "floppy"));
  }
  ~FloppyBench() { floppy.reset(); }
  Status Plug(unsigned drive, TestImage& image, bool read_only = false) {
    return floppy->Plug(drive, "image", image.Open(io, read_only));
  }
  /// Reset, then as firmware leaves it: out of reset, polled, motors on, rate of the first drive.
  void PowerOn(uint8_t rate = 0) {
    dma.Reset();
    floppy->Reset();
    Out(0xd6, 0xc0);
    Out(0xd4, 0x00);
    Out(0x3f2, 0x3c);
    for (int i = 0; i < 4; ++i) Execute({0x08});
    Out(0x3f7, rate);
    Execute({0x03, 0xaf, 0x02});
  }

  void Out(uint16_t port, uint8_t value) { ports.Write(port, 1, value); }
  uint8_t In(uint16_t port) { return static_cast<uint8_t>(ports.Read(port, 1)); }
  uint8_t MainStatus() { return In(0x3f4); }
  void Command(std::initializer_list<uint8_t> bytes) {
    for (const uint8_t byte : bytes) {
      EXPECT_EQ(0x80, MainStatus() & 0xc0);
      Out(0x3f5, byte);
    }
  }
  /// Waits while the back end works.
  void Wait() {
    for (int turn = 0; turn < 4000 && (MainStatus() & 0x80) == 0; ++turn) io->Wait();
  }
  std::vector<uint8_t> Results() {
    std::vector<uint8_t> results;
    Wait();
    while ((MainStatus() & 0xd0) == 0xd0 && results.size() < 16) results.push_back(In(0x3f5));
    return results;
  }
  std::vector<uint8_t> Execute(std::initializer_list<uint8_t> bytes) {
    Command(bytes);
    return Results();
  }
  std::vector<uint8_t> Seek(uint8_t cylinder, uint8_t drive = 0) {
    Command({0x0f, drive, cylinder});
    return Execute({0x08});
  }
  /// Channel 2 moves `count` bytes at kData.
  void SetUpDma(uint32_t count, bool to_memory) {
    Out(0x0a, 6);
    Out(0x0c, 0);
    Out(0x0b, to_memory ? 0x46 : 0x4a);
    Out(0x04, static_cast<uint8_t>(kData));
    Out(0x04, static_cast<uint8_t>(kData >> 8));
    Out(0x81, static_cast<uint8_t>(kData >> 16));
    Out(0x05, static_cast<uint8_t>(count - 1));
    Out(0x05, static_cast<uint8_t>((count - 1) >> 8));
    Out(0x0a, 2);
  }
  std::vector<uint8_t> Transfer(uint8_t command, uint8_t cylinder, uint8_t head, uint8_t sector, uint8_t last,
                                uint8_t drive = 0) {
    return Execute({command, static_cast<uint8_t>(head << 2 | drive), cylinder, head, sector, 2, last, 0x1b, 0xff});
  }

  TestLine line;
  Dma8237 dma{memory};
  std::unique_ptr<Floppy82077> floppy = std::make_unique<Floppy82077>(line, dma);
  std::vector<bus::Mapping> mappings;
};

}  // namespace nacre::devices
