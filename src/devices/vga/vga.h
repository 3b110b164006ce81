#pragma once
// The standard VGA adapter of virtual machines (PCI 1234:1111): a VGA with the Bochs VBE extension. BAR 0 is the linear
// frame buffer, BAR 2 the registers as memory; the legacy ports and the window 0xa0000-0xbffff are where they always
// were. The expansion ROM is its VBE BIOS.
//
// The machine maps ports() at kPorts (kPortCount ports), dispi_io() at kDispiPorts (3 ports) and window() at
// vga::kWindowBase. Under the device lock; frames are drawn without it (display/screen.h).

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/scheduler.h"
#include "devices/pci/pci_device.h"
#include "devices/vga/vga_registers.h"
#include "devices/vga/vga_window.h"
#include "display/screen.h"

namespace nacre::devices {

class Vga final : public PciDevice, public display::Screen {
 public:
  static constexpr uint16_t kPorts = 0x3b0, kPortCount = 0x30;
  static constexpr uint16_t kDispiPorts = 0x1ce;
  static constexpr uint64_t kMemorySize = 16 << 20;
  static constexpr uint64_t kRegistersSize = 0x1000;  ///< BAR 2

  /// Where the frame buffer lies, when it is memory to the CPUs and not only a register block. Outlives the adapter.
  class VideoMemory {
   public:
    virtual ~VideoMemory() = default;
    virtual std::span<uint8_t> bytes() = 0;
    /// The first bytes, a multiple of 4096, are zero.
    virtual void Clear(uint64_t size_bytes) = 0;
    /// Of BAR 0; nothing: nowhere.
    virtual void Place(std::optional<uint64_t> address) = 0;
  };
  struct Options {
    uint64_t memory_bytes = kMemorySize;  ///< a power of two, from 256 KiB
    std::vector<uint8_t> rom = {};        ///< empty: none
    VideoMemory* video = nullptr;         ///< null: memory of its own, that CPUs reach by the memory bus
  };
  static Result<std::unique_ptr<Vga>> Create(Options options, const PciWiring& wiring, const Scheduler& scheduler);
  ~Vga() override;

  bus::IoHandler& ports() { return ports_; }
  bus::IoHandler& dispi_io() { return dispi_io_; }
  bus::IoHandler& window() { return window_; }

  std::unique_ptr<display::Frame> Capture() override;
  /// A linear mode without firmware, for direct boot: `width` and `height` as DISPI takes them, 32 bits per pixel.
  void SetLinearMode(uint16_t width, uint16_t height);
  std::span<uint8_t> memory() { return memory_; }

 protected:
  void ResetFunction() override;
  void BarMoved(unsigned index) override;
  void SerializeFunction(state::Archive& archive) override;

 private:
  /// A register block whose accesses are made of single bytes, or as `Access` says.
  template <uint64_t (Vga::*kRead)(uint64_t, unsigned), void (Vga::*kWrite)(uint64_t, unsigned, uint64_t)>
  struct Block final : bus::IoHandler {
    explicit Block(Vga& owner) : vga(owner) {}
    uint64_t Read(uint64_t offset, unsigned size) override { return (vga.*kRead)(offset, size); }
    void Write(uint64_t offset, unsigned size, uint64_t value) override { (vga.*kWrite)(offset, size, value); }
    Vga& vga;
  };

  Vga(Options options, std::span<uint8_t> memory, const PciWiring& wiring, const Scheduler& scheduler);

  uint64_t ReadPorts(uint64_t offset, unsigned size);
  void WritePorts(uint64_t offset, unsigned size, uint64_t value);
  uint64_t ReadDispiPorts(uint64_t offset, unsigned size);
  void WriteDispiPorts(uint64_t offset, unsigned size, uint64_t value);
  uint64_t ReadWindowBytes(uint64_t offset, unsigned size);
  void WriteWindowBytes(uint64_t offset, unsigned size, uint64_t value);
  uint64_t ReadFrameBuffer(uint64_t offset, unsigned size);
  void WriteFrameBuffer(uint64_t offset, unsigned size, uint64_t value);
  uint64_t ReadRegisters(uint64_t offset, unsigned size);
  void WriteRegisters(uint64_t offset, unsigned size, uint64_t value);

  uint8_t ReadPort(uint16_t port);
  void WritePort(uint16_t port, uint8_t value);
  void WriteCrtc(uint8_t value);
  void WriteAttribute(uint8_t value);
  uint8_t ReadDac();
  void WriteDac(uint8_t value);
  uint8_t InputStatus1();
  uint16_t ReadDispi(unsigned index) const;
  void WriteDispi(unsigned index, uint16_t value);
  void EnableDispi(uint16_t value);
  uint16_t MostRows() const;
  /// What a guest cannot write is not taken from a file either.
  void Tidy(vga::Registers& registers) const;
  void SerializeMemory(state::Archive& archive);
  void ClearMemory(uint64_t size_bytes);

  VideoMemory* const video_;
  const std::span<uint8_t> memory_;  ///< of video_, else mapped by Create
  const Scheduler& scheduler_;
  vga::Registers registers_;
  Block<&Vga::ReadPorts, &Vga::WritePorts> ports_{*this};
  Block<&Vga::ReadDispiPorts, &Vga::WriteDispiPorts> dispi_io_{*this};
  Block<&Vga::ReadWindowBytes, &Vga::WriteWindowBytes> window_{*this};
  Block<&Vga::ReadFrameBuffer, &Vga::WriteFrameBuffer> frame_buffer_{*this};
  Block<&Vga::ReadRegisters, &Vga::WriteRegisters> registers_io_{*this};
};

}  // namespace nacre::devices
