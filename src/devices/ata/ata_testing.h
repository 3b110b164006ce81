#pragma once
// For tests of drives and controllers: a disk image in memory behind the real asynchronous I/O, with faults on demand,
// and an IDE controller with a driver that uses it as operating systems do.

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <memory>
#include <vector>

#include "base/bits.h"
#include "base/fd.h"
#include "bus/bus.h"
#include "devices/ata/ata_disk.h"
#include "devices/ata/atapi_drive.h"
#include "devices/ata/piix_ide.h"
#include "devices/chipset/device_testing.h"
#include "memory/guest_memory.h"
#include "storage/fault_io_testing.h"
#include "storage/raw_disk.h"

namespace nacre::devices {

/// Configuration space as a register block.
struct ConfigBlock final : bus::IoHandler {
  explicit ConfigBlock(PciDevice& owner) : device(owner) {}
  uint64_t Read(uint64_t offset, unsigned size) override {
    return device.ConfigRead(static_cast<unsigned>(offset), std::min(size, 4u));
  }
  void Write(uint64_t offset, unsigned size, uint64_t value) override {
    device.ConfigWrite(static_cast<unsigned>(offset), std::min(size, 4u), static_cast<uint32_t>(value));
  }
  PciDevice& device;
};

class TestImage {
 public:
  explicit TestImage(uint64_t size_bytes) : size_bytes_(size_bytes), file_(memfd_create("image", MFD_CLOEXEC)) {
    EXPECT_EQ(0, ftruncate(file_.get(), static_cast<off_t>(size_bytes)));
  }
  std::unique_ptr<storage::Disk> Open(std::shared_ptr<storage::AsyncIo> io, bool read_only = false) {
    return storage::RawDisk::Adopt(Fd(dup(file_.get())), size_bytes_, read_only, std::move(io));
  }
  std::vector<uint8_t> Get(uint64_t offset, size_t size) {
    std::vector<uint8_t> data(size);
    EXPECT_EQ(static_cast<ssize_t>(size), pread(file_.get(), data.data(), size, static_cast<off_t>(offset)));
    return data;
  }
  void Set(uint64_t offset, std::span<const uint8_t> data) {
    EXPECT_EQ(static_cast<ssize_t>(data.size()),
              pwrite(file_.get(), data.data(), data.size(), static_cast<off_t>(offset)));
  }
  uint64_t size_bytes() const { return size_bytes_; }

 private:
  uint64_t size_bytes_;
  Fd file_;
};

inline std::vector<uint8_t> TestPattern(size_t size, unsigned seed) {
  std::vector<uint8_t> data(size);
  for (size_t i = 0; i < size; ++i) data[i] = static_cast<uint8_t>(i * 13 + i / 256 + i / 512 * 7 + seed);
  return data;
}

/// What a driver of any controller finds in its machine.
struct StorageBench {
  explicit StorageBench(uint64_t memory_size = 8 * kMiB)
      : io(std::make_shared<storage::FaultIo>(std::move(*storage::AsyncIo::Create()))),
        memory_owner(std::move(*memory::GuestMemory::Create(memory_size))),
        memory(*memory_owner) {}
  PciWiring wiring() { return {.ports = &ports, .memory = &memory_bus, .msi = &msi}; }
  void Fill(uint64_t address, std::span<const uint8_t> data) { EXPECT_TRUE(memory.Write(GuestPhys(address), data)); }
  std::vector<uint8_t> Get(uint64_t address, size_t size) {
    std::vector<uint8_t> data(size);
    EXPECT_TRUE(memory.Read(GuestPhys(address), data));
    return data;
  }

  std::shared_ptr<storage::FaultIo> io;
  std::unique_ptr<memory::GuestMemory> memory_owner;
  memory::GuestMemory& memory;
  bus::PortBus ports;
  bus::MemoryBus memory_bus;
  TestMsiSink msi;
};

class IdeBench : public StorageBench {
 public:
  static constexpr uint16_t kMaster = 0xc000;
  static constexpr uint64_t kTable = 0x10'0000, kData = 0x20'0000;

  IdeBench() : StorageBench() { ide = std::make_unique<PiixIde>(wiring(), std::array{Line(0), Line(1)}, memory); }
  ~IdeBench() { ide.reset(); }

  /// After the drives are plugged.
  void PowerOn() {
    ide->Reset();
    Enable();
  }
  void Enable() {
    ide->ConfigWrite(0x20, 4, kMaster);
    ide->ConfigWrite(pci::kCommand, 2, pci::kCommandIo | pci::kCommandMaster);
    ide->ConfigWrite(0x40, 4, 0x80008000);
  }
  void PlugDisk(unsigned where, TestImage& image, bool read_only = false) {
    ide->Plug(where, std::make_unique<AtaDisk>(AtaDisk::Options{.serial_number = "TEST1"}, image.Open(io, read_only)));
  }

  void PlugCd(unsigned where, TestImage& image) {
    auto drive = AtapiDrive::Create({}, image.Open(io, true));
    ASSERT_TRUE(drive.has_value());
    ide->Plug(where, std::move(*drive));
  }

  uint16_t base() const { return PiixIde::kCommandPorts[channel]; }
  uint8_t In(unsigned reg) { return static_cast<uint8_t>(ports.Read(base() + reg, 1)); }
  void Out(unsigned reg, uint8_t value) { ports.Write(base() + reg, 1, value); }
  uint8_t AltStatus() { return static_cast<uint8_t>(ports.Read(PiixIde::kControlPorts[channel], 1)); }
  void Control(uint8_t value) { ports.Write(PiixIde::kControlPorts[channel], 1, value); }
  void Select(unsigned drive) { Out(6, static_cast<uint8_t>(0xe0 | drive << 4)); }
  /// Waits while the back end works; the status, which it does not read through the interrupt.
  uint8_t Wait() {
    for (int turn = 0; turn < 2000 && (AltStatus() & ata::kBusy) != 0; ++turn) io->Wait();
    return AltStatus();
  }
  void Command28(uint8_t command, uint32_t lba, uint8_t count) {
    Out(6, static_cast<uint8_t>(0xe0 | place << 4 | lba >> 24));
    Out(2, count);
    Out(3, static_cast<uint8_t>(lba));
    Out(4, static_cast<uint8_t>(lba >> 8));
    Out(5, static_cast<uint8_t>(lba >> 16));
    Out(7, command);
  }
  void Command48(uint8_t command, uint64_t lba, uint16_t count) {
    Select(place);
    for (const unsigned shift : {8u, 0u}) {
      const unsigned high = shift == 8 ? 24 : 0;
      Out(2, static_cast<uint8_t>(count >> shift));
      Out(3, static_cast<uint8_t>(lba >> high));
      Out(4, static_cast<uint8_t>(lba >> (high + 8)));
      Out(5, static_cast<uint8_t>(lba >> (high + 16)));
    }
    Out(7, command);
  }
  /// Reads blocks as long as the drive offers data; an interrupt comes with each.
  std::vector<uint8_t> ReadBlocks(size_t block = 512, unsigned width = 2) {
    std::vector<uint8_t> data;
    while ((Wait() & ata::kDataRequest) != 0 && data.size() < 32 * kMiB) {
      for (size_t i = 0; i < block; i += width) {
        const uint64_t value = ports.Read(base(), width);
        for (unsigned byte = 0; byte < width; ++byte) data.push_back(static_cast<uint8_t>(value >> (8 * byte)));
      }
    }
    return data;
  }
  void WriteBlocks(std::span<const uint8_t> data, size_t block = 512, unsigned width = 2) {
    for (size_t at = 0; at < data.size() && (Wait() & ata::kDataRequest) != 0;) {
      for (size_t i = 0; i < block && at < data.size(); i += width, at += width) {
        uint64_t value = 0;
        for (unsigned byte = 0; byte < width; ++byte) value |= uint64_t{data[at + byte]} << (8 * byte);
        ports.Write(base(), width, value);
      }
    }
    Wait();
  }
  /// PACKET up to the packet; the answer follows by ReadBlocks or RunDma. The status after the packet was taken.
  uint8_t Packet(std::vector<uint8_t> packet, bool dma = false, uint16_t limit = 0xfffe) {
    packet.resize(AtapiDrive::kCdbSize);
    Select(place);
    Out(1, dma ? 1 : 0);
    Out(4, static_cast<uint8_t>(limit));
    Out(5, static_cast<uint8_t>(limit >> 8));
    Out(7, ata::kCmdPacket);
    for (unsigned i = 0; i < packet.size(); i += 2)
      ports.Write(base(), 2, static_cast<uint16_t>(packet[i] | packet[i + 1] << 8));
    return dma ? AltStatus() : Wait();
  }
  /// The answer of a packet command: blocks of the size that the drive says.
  std::vector<uint8_t> ReadAnswer() {
    std::vector<uint8_t> data;
    while ((Wait() & ata::kDataRequest) != 0) {
      const unsigned size = In(4) | In(5) << 8;
      for (unsigned i = 0; i < size; i += 2) {
        const uint64_t value = ports.Read(base(), 2);
        data.push_back(static_cast<uint8_t>(value));
        if (i + 1 < size) data.push_back(static_cast<uint8_t>(value >> 8));
      }
    }
    return data;
  }
  struct Region {
    uint64_t address = 0;
    uint32_t size_bytes = 0;
  };
  void SetTable(const std::vector<Region>& regions) {
    for (size_t i = 0; i < regions.size(); ++i) {
      const uint64_t last = i + 1 == regions.size() ? Bit(63) : 0;
      memory.WriteValue(GuestPhys(kTable + 8 * i),
                        regions[i].address | uint64_t{regions[i].size_bytes & 0xffff} << 32 | last);
    }
    ports.Write(master() + 4u, 4, kTable);
  }
  uint16_t master() const { return static_cast<uint16_t>(kMaster + 8 * channel); }
  uint8_t MasterStatus() { return static_cast<uint8_t>(ports.Read(master() + 2u, 1)); }
  void StartDma(bool to_memory) {
    ports.Write(master() + 2u, 1, 6);
    ports.Write(master(), 1, to_memory ? 9 : 1);
  }
  void StopDma() { ports.Write(master(), 1, 0); }
  /// The command was written; ends the engine as drivers do.
  uint8_t RunDma(bool to_memory) {
    StartDma(to_memory);
    const uint8_t status = Wait();
    StopDma();
    return status;
  }

  unsigned channel = 0, place = 0;  ///< of the methods above
  TestLine lines[2];
  std::unique_ptr<PiixIde> ide;

 private:
  bus::IrqLine* Line(unsigned index) { return &lines[index]; }
};

}  // namespace nacre::devices
