#pragma once
// For tests: an AHCI controller with a driver that builds command lists as operating systems do.

#include "devices/ata/ahci.h"
#include "devices/ata/ata_testing.h"

namespace nacre::devices {

class AhciBench : public StorageBench {
 public:
  static constexpr uint64_t kBase = 0xe000'0000;
  static constexpr uint64_t kLists = 0x10'0000, kFrames = 0x11'0000, kTables = 0x12'0000, kData = 0x20'0000;
  static constexpr uint64_t kTableSize = 0x2000;
  // Registers of a port.
  static constexpr unsigned kIs = 0x10, kIe = 0x14, kCmd = 0x18, kTfd = 0x20, kSig = 0x24, kSsts = 0x28, kSctl = 0x2c,
                            kSerr = 0x30, kSact = 0x34, kCi = 0x38;

  AhciBench() {
    ahci = std::make_unique<Ahci>("ahci", wiring(), memory);
    ahci->SetIntxLine(&line);
  }
  void PlugDisk(unsigned where, TestImage& image, bool read_only = false) {
    ahci->port(where).Plug(std::make_unique<AtaDisk>(AtaDisk::Options{.serial_number = "TEST1", .serial_ata = true},
                                                     image.Open(io, read_only)));
  }
  void PlugCd(unsigned where, TestImage& image) {
    auto drive = AtapiDrive::Create({.serial_ata = true}, image.Open(io, true));
    ASSERT_TRUE(drive.has_value());
    ahci->port(where).Plug(std::move(*drive));
  }
  void PowerOn() {
    ahci->Reset();
    Enable();
  }
  void Enable() {
    ahci->ConfigWrite(pci::kBar0 + 4 * Ahci::kBar, 4, static_cast<uint32_t>(kBase));
    ahci->ConfigWrite(pci::kCommand, 2, pci::kCommandMemory | pci::kCommandMaster);
  }
  uint32_t Hba(unsigned reg) { return static_cast<uint32_t>(memory_bus.Read(kBase + reg, 4)); }
  void SetHba(unsigned reg, uint32_t value) { memory_bus.Write(kBase + reg, 4, value); }
  uint32_t Reg(unsigned reg) { return Hba(Ahci::kPortsOffset + port * AhciPort::kRegistersSize + reg); }
  void SetReg(unsigned reg, uint32_t value) {
    SetHba(Ahci::kPortsOffset + port * AhciPort::kRegistersSize + reg, value);
  }
  /// Lists, frames, interrupts, and off it goes.
  void StartPort(unsigned which) {
    port = which;
    SetHba(4, 2);
    SetReg(0x00, static_cast<uint32_t>(List()));
    SetReg(0x04, 0);
    SetReg(0x08, static_cast<uint32_t>(Frames()));
    SetReg(0x0c, 0);
    SetReg(kIe, 0xffffffff);
    SetReg(kCmd, 0x10);
    SetReg(kSerr, 0xffffffff);
    SetReg(kIs, 0xffffffff);
    SetHba(8, 0xffffffff);
    SetReg(kCmd, 0x11);
  }
  uint64_t List() const { return kLists + 1024 * port; }
  uint64_t Frames() const { return kFrames + 256 * port; }
  uint64_t Table(unsigned slot) const { return kTables + kTableSize * slot; }
  struct Frame {
    uint8_t command = 0;
    uint64_t lba = 0;
    uint16_t count = 0;
    uint16_t features = 0;
    uint8_t device = 0x40;
    uint8_t control = 0;
    bool is_command = true;
  };
  struct Region {
    uint64_t address = 0;
    uint32_t size_bytes = 0;
  };
  void SetCommand(unsigned slot, const Frame& frame, const std::vector<Region>& regions, uint32_t flags = 0) {
    const uint64_t header = List() + 32 * slot;
    memory.WriteValue(GuestPhys(header), static_cast<uint32_t>(5 | flags | regions.size() << 16));
    memory.WriteValue(GuestPhys(header + 4), uint32_t{0});
    memory.WriteValue(GuestPhys(header + 8), Table(slot));
    std::vector<uint8_t> fis = {0x27, static_cast<uint8_t>(frame.is_command ? 0x80 : 0), frame.command,
                                static_cast<uint8_t>(frame.features)};
    for (unsigned i = 0; i < 3; ++i) fis.push_back(static_cast<uint8_t>(frame.lba >> (8 * i)));
    fis.push_back(frame.device);
    for (unsigned i = 3; i < 6; ++i) fis.push_back(static_cast<uint8_t>(frame.lba >> (8 * i)));
    fis.push_back(static_cast<uint8_t>(frame.features >> 8));
    fis.push_back(static_cast<uint8_t>(frame.count));
    fis.push_back(static_cast<uint8_t>(frame.count >> 8));
    fis.push_back(0);
    fis.push_back(frame.control);
    fis.resize(20);
    Fill(Table(slot), fis);
    for (size_t i = 0; i < regions.size(); ++i) {
      const uint64_t entry = Table(slot) + 0x80 + 16 * i;
      memory.WriteValue(GuestPhys(entry), regions[i].address);
      memory.WriteValue(GuestPhys(entry + 8), uint64_t{regions[i].size_bytes - 1} << 32);
    }
  }
  void SetPacket(unsigned slot, std::vector<uint8_t> packet) {
    packet.resize(16);
    Fill(Table(slot) + 0x40, packet);
  }
  void Issue(unsigned slot, bool queued = false) {
    if (queued) SetReg(kSact, 1u << slot);
    SetReg(kCi, 1u << slot);
  }
  /// Until the slot is free, or the list stopped; the task file.
  uint32_t Wait(unsigned slot) {
    const auto bit = uint32_t{1} << slot;
    for (int turn = 0; turn < 100'000; ++turn) {
      if (((Reg(kCi) | Reg(kSact)) & bit) == 0 || (Reg(kIs) & 1u << 30) != 0) break;
      io->Wait();
    }
    return Reg(kTfd);
  }
  uint32_t Execute(const Frame& frame, const std::vector<Region>& regions, unsigned slot = 0) {
    SetCommand(slot, frame, regions);
    const bool queued = frame.command == 0x60 || frame.command == 0x61;
    Issue(slot, queued);
    return Wait(slot);
  }
  /// What drivers do after an error: stop, clear, start.
  void Recover() {
    SetReg(kCmd, 0x10);
    SetReg(kSerr, 0xffffffff);
    SetReg(kIs, 0xffffffff);
    SetReg(kCmd, 0x11);
  }

  unsigned port = 0;
  TestLine line;
  std::unique_ptr<Ahci> ahci;
};

}  // namespace nacre::devices
