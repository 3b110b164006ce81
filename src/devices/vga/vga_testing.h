#pragma once
// A VGA on buses of its own, driven as a guest would. For tests only.

#include <gtest/gtest.h>

#include <vector>

#include "base/manual_scheduler.h"
#include "devices/chipset/device_testing.h"
#include "devices/vga/vga.h"

namespace nacre::devices {

class VgaBench {
 public:
  static constexpr uint64_t kBar0 = 0xe0000000, kBar2 = 0xf0000000, kRomAt = 0xf1000000;

  explicit VgaBench(uint64_t memory_bytes = Vga::kMemorySize, std::vector<uint8_t> rom = {}) {
    vga = std::move(*Vga::Create({memory_bytes, std::move(rom)}, PciWiring{&ports, &memory, &msi}, scheduler));
    mappings.push_back(ports.Add(Vga::kPorts, Vga::kPortCount, vga->ports(), "vga"));
    mappings.push_back(ports.Add(Vga::kDispiPorts, 3, vga->dispi_io(), "vga"));
    mappings.push_back(memory.Add(vga::kWindowBase, vga::kWindowSize, vga->window(), "vga"));
    Place();
    Out(0x3c2, 0x03);  // the colour addresses
  }
  void Place() {
    vga->ConfigWrite(0x10, 4, kBar0);
    vga->ConfigWrite(0x18, 4, kBar2);
    vga->ConfigWrite(4, 2, 3);
  }

  void Out(uint16_t port, uint64_t value) { ports.Write(port, 1, value); }
  uint8_t In(uint16_t port) { return static_cast<uint8_t>(ports.Read(port, 1)); }
  void Indexed(uint16_t port, uint8_t index, uint8_t value) {
    Out(port, index);
    Out(static_cast<uint16_t>(port + 1), value);
  }
  void Dispi(unsigned index, uint16_t value) {
    ports.Write(0x1ce, 2, index);
    ports.Write(0x1cf, 2, value);
  }
  uint16_t Dispi(unsigned index) {
    ports.Write(0x1ce, 2, index);
    return static_cast<uint16_t>(ports.Read(0x1cf, 2));
  }
  void LinearMode(uint16_t width, uint16_t height, uint16_t bits) {
    Dispi(vga::kDispiEnable, 0);
    Dispi(vga::kDispiXres, width);
    Dispi(vga::kDispiYres, height);
    Dispi(vga::kDispiBpp, bits);
    Dispi(vga::kDispiEnable, vga::kDispiEnabled | vga::kDispiLfb);
    Unblank();
  }
  void Unblank() {
    In(0x3da);
    Out(0x3c0, 0x20);
  }
  void Attribute(uint8_t index, uint8_t value) {
    In(0x3da);
    Out(0x3c0, index);
    Out(0x3c0, value);
  }
  void DacColor(uint8_t index, uint8_t red, uint8_t green, uint8_t blue) {
    Out(0x3c8, index);
    for (const uint8_t level : {red, green, blue}) Out(0x3c9, level);
  }

  /// The parameters of a standard mode: miscellaneous output, sequencer 1-4, CRTC, attribute 0x10-0x13, graphics 4-6.
  struct Mode {
    uint8_t misc, sequencer[4], crtc[25], attribute[4], graphics[3];
  };
  void SetMode(const Mode& mode) {
    Dispi(vga::kDispiEnable, 0);
    Out(0x3c2, mode.misc);
    for (uint8_t i = 0; i < 4; ++i) Indexed(0x3c4, static_cast<uint8_t>(i + 1), mode.sequencer[i]);
    Indexed(0x3d4, 0x11, 0);
    for (uint8_t i = 0; i < 25; ++i) Indexed(0x3d4, i, mode.crtc[i]);
    const uint8_t graphics[] = {0, 0, 0, 0, mode.graphics[0], mode.graphics[1], mode.graphics[2], 0x0f, 0xff};
    for (uint8_t i = 0; i < 9; ++i) Indexed(0x3ce, i, graphics[i]);
    for (uint8_t i = 0; i < 16; ++i) Attribute(i, i);
    for (uint8_t i = 0; i < 4; ++i) Attribute(static_cast<uint8_t>(0x10 + i), mode.attribute[i]);
    Attribute(0x14, 0);
    Out(0x3c6, 0xff);
    for (unsigned i = 0; i < 16; ++i) {  // 0, blue, green ... and their bright forms
      const auto level = [&](unsigned bit) { return static_cast<uint8_t>(TestBit(i, bit) ? (i & 8 ? 63 : 42) : 0); };
      DacColor(static_cast<uint8_t>(i), level(2), level(1), level(0));
    }
    Unblank();
  }
  static constexpr Mode kText80 = {0x67,
                                   {0x00, 0x03, 0x00, 0x02},
                                   {0x5f, 0x4f, 0x50, 0x82, 0x55, 0x81, 0xbf, 0x1f, 0x00, 0x4f, 0x0d, 0x0e, 0x00,
                                    0x00, 0x00, 0x00, 0x9c, 0x8e, 0x8f, 0x28, 0x1f, 0x96, 0xb9, 0xa3, 0xff},
                                   {0x0c, 0x00, 0x0f, 0x08},
                                   {0x00, 0x10, 0x0e}};
  static constexpr Mode kMode13 = {0x63,
                                   {0x01, 0x0f, 0x00, 0x0e},
                                   {0x5f, 0x4f, 0x50, 0x82, 0x54, 0x80, 0xbf, 0x1f, 0x00, 0x41, 0x00, 0x00, 0x00,
                                    0x00, 0x00, 0x00, 0x9c, 0x8e, 0x8f, 0x28, 0x40, 0x96, 0xb9, 0xa3, 0xff},
                                   {0x41, 0x00, 0x0f, 0x00},
                                   {0x00, 0x40, 0x05}};
  static constexpr Mode kMode12 = {0xe3,
                                   {0x01, 0x0f, 0x00, 0x06},
                                   {0x5f, 0x4f, 0x50, 0x82, 0x54, 0x80, 0x0b, 0x3e, 0x00, 0x40, 0x00, 0x00, 0x00,
                                    0x00, 0x00, 0x00, 0xea, 0x8c, 0xdf, 0x28, 0x00, 0xe7, 0x04, 0xe3, 0xff},
                                   {0x01, 0x00, 0x0f, 0x00},
                                   {0x00, 0x00, 0x05}};
  static constexpr Mode kCga4 = {0x63,
                                 {0x09, 0x03, 0x00, 0x02},
                                 {0x2d, 0x27, 0x28, 0x90, 0x2b, 0x80, 0xbf, 0x1f, 0x00, 0xc1, 0x00, 0x00, 0x00,
                                  0x00, 0x00, 0x00, 0x9c, 0x8e, 0x8f, 0x14, 0x00, 0x96, 0xb9, 0xa2, 0xff},
                                 {0x01, 0x00, 0x03, 0x00},
                                 {0x00, 0x30, 0x0f}};

  const display::Surface& Draw() {
    vga->Capture()->Draw(surface);
    return surface;
  }
  uint32_t Pixel(unsigned x, unsigned y) const { return surface.row(y)[x] & 0xffffff; }

  ManualScheduler scheduler;
  bus::PortBus ports;
  bus::MemoryBus memory;
  TestMsiSink msi;
  std::unique_ptr<Vga> vga;
  std::vector<bus::Mapping> mappings;
  display::Surface surface;
};

}  // namespace nacre::devices
