#pragma once
// The registers of a VGA with the Bochs VBE extension (DISPI), as data: what the device (vga.h) keeps, its memory
// window (vga_window.h) obeys and a picture (vga_frame.h) is drawn from. Register names: IBM PS/2 Video Subsystem
// Technical Reference; FreeVGA. DISPI: Bochs VBE interface, version 0xb0c5.

#include <array>
#include <cstdint>

namespace nacre::devices::vga {

// Indices of the sequencer, graphics controller, CRT controller and attribute controller.
enum Sequencer : uint8_t { kClockingMode = 1, kMapMask = 2, kCharacterMap = 3, kMemoryMode = 4 };
enum Graphics : uint8_t {
  kSetReset = 0,
  kEnableSetReset = 1,
  kColorCompare = 2,
  kDataRotate = 3,
  kReadMap = 4,
  kGraphicsMode = 5,
  kMiscellaneous = 6,
  kColorDontCare = 7,
  kBitMask = 8
};
enum Crtc : uint8_t {
  kHorizontalDisplayEnd = 0x01,
  kOverflow = 0x07,
  kPresetRowScan = 0x08,
  kMaximumScanLine = 0x09,
  kCursorStart = 0x0a,
  kCursorEnd = 0x0b,
  kStartAddressHigh = 0x0c,
  kStartAddressLow = 0x0d,
  kCursorHigh = 0x0e,
  kCursorLow = 0x0f,
  kVerticalRetraceEnd = 0x11,
  kVerticalDisplayEnd = 0x12,
  kOffset = 0x13,
  kUnderline = 0x14,
  kModeControl = 0x17,
  kLineCompare = 0x18
};
enum Attribute : uint8_t { kModeControlA = 0x10, kPlaneEnable = 0x12, kPixelPanning = 0x13, kColorSelect = 0x14 };

enum Dispi : uint8_t {
  kDispiId = 0,
  kDispiXres = 1,
  kDispiYres = 2,
  kDispiBpp = 3,
  kDispiEnable = 4,
  kDispiBank = 5,
  kDispiVirtualWidth = 6,
  kDispiVirtualHeight = 7,
  kDispiXoffset = 8,
  kDispiYoffset = 9,
  kDispiMemory64K = 10,
  kDispiCount = 11
};
inline constexpr uint16_t kDispiEnabled = 0x01, kDispiGetCaps = 0x02, kDispi8BitDac = 0x20, kDispiLfb = 0x40,
                          kDispiNoClear = 0x80;

/// The legacy part of the memory: four planes of 64 KiB, byte p of each group of four is plane p.
inline constexpr uint32_t kPlanesSize = 256 * 1024;

struct Registers {
  uint8_t misc = 0, feature = 0;
  uint8_t sequencer_index = 0, graphics_index = 0, crtc_index = 0;
  uint8_t attribute_index = 0;          ///< with bit 5: the palette belongs to the screen
  bool attribute_data = false;          ///< the next write to 0x3c0 is data
  std::array<uint8_t, 8> sequencer{};   ///< 0-4 are there
  std::array<uint8_t, 16> graphics{};   ///< 0-8 are there
  std::array<uint8_t, 32> crtc{};       ///< 0x00-0x18 are there
  std::array<uint8_t, 32> attribute{};  ///< 0x00-0x14 are there
  uint8_t dac_mask = 0xff, dac_read_index = 0, dac_write_index = 0;
  uint8_t dac_component = 0;  ///< 0-2: the next of red, green, blue
  bool dac_reading = false;
  std::array<uint8_t, 2> dac_pending{};  ///< red and green of a write that is not whole yet
  std::array<uint8_t, 768> dac{};
  uint32_t latch = 0;  ///< a byte for each plane
  uint16_t dispi_index = 0;
  std::array<uint16_t, kDispiCount> dispi{};

  bool dispi_enabled() const { return (dispi[kDispiEnable] & kDispiEnabled) != 0; }
  /// The picture comes from linear memory, not from planes.
  bool linear() const { return dispi_enabled() && dispi[kDispiBpp] >= 8; }
  /// Of the virtual screen's rows.
  uint32_t linear_stride() const {
    const uint32_t bits = dispi[kDispiBpp] == 15 ? 16 : dispi[kDispiBpp];
    return dispi[kDispiVirtualWidth] * bits / 8;
  }
};

}  // namespace nacre::devices::vga
