#include "devices/vga/vga_frame.h"

#include <algorithm>
#include <array>

#include "base/bits.h"

namespace nacre::devices::vga {
namespace {

using display::Surface;
using Palette = std::array<uint32_t, 256>;

Palette DacPalette(const Registers& registers) {
  Palette palette;
  const bool wide = (registers.dispi[kDispiEnable] & kDispi8BitDac) != 0;
  const auto level = [&](uint8_t value) -> uint32_t {
    return wide ? value : (value & 0x3f) << 2 | (value & 0x3f) >> 4;
  };
  for (unsigned i = 0; i < 256; ++i) {
    const uint8_t* entry = &registers.dac[(i & registers.dac_mask) * 3];
    palette[i] = level(entry[0]) << 16 | level(entry[1]) << 8 | level(entry[2]);
  }
  return palette;
}

void DrawBlank(Surface& to) {
  const std::vector<uint32_t> row(to.width(), 0);
  for (unsigned y = 0; y < to.height(); ++y) to.PutRow(y, row.data());
}

/// The attribute controller switches the palette off while it is loaded; the sequencer can switch the screen off.
bool IsBlank(const Registers& registers) {
  return !(registers.attribute_index & 0x20) || (registers.sequencer[kClockingMode] & 0x20);
}

// ---- Linear modes.

class LinearFrame final : public display::Frame {
 public:
  LinearFrame(const Registers& registers, std::span<const uint8_t> memory) : registers_(registers), memory_(memory) {}

  void Draw(Surface& to) const override {
    const auto& dispi = registers_.dispi;
    to.Resize(dispi[kDispiXres], dispi[kDispiYres]);
    if (IsBlank(registers_)) return DrawBlank(to);
    const Palette palette = DacPalette(registers_);
    const unsigned bits = dispi[kDispiBpp];
    const unsigned pixel_bytes = (bits + 7) / 8;
    const uint64_t stride = registers_.linear_stride();
    std::vector<uint32_t> row(to.width());
    for (unsigned y = 0; y < to.height(); ++y) {
      const uint64_t start = (uint64_t{dispi[kDispiYoffset]} + y) * stride + dispi[kDispiXoffset] * pixel_bytes;
      // What lies beyond the memory is black.
      const uint64_t there = start < memory_.size() ? (memory_.size() - start) / pixel_bytes : 0;
      const auto count = static_cast<unsigned>(std::min<uint64_t>(there, to.width()));
      const uint8_t* from = memory_.data() + (count ? start : 0);
      if (bits == 32 && count == to.width() && reinterpret_cast<uintptr_t>(from) % sizeof(uint32_t) == 0) {
        to.PutRow(y, reinterpret_cast<const uint32_t*>(from));
        continue;
      }
      Convert(from, count, bits, palette, row.data());
      std::fill(row.begin() + count, row.end(), 0);
      to.PutRow(y, row.data());
    }
  }

 private:
  static void Convert(const uint8_t* from, unsigned count, unsigned bits, const Palette& palette, uint32_t* to) {
    switch (bits) {
      case 8:
        for (unsigned x = 0; x < count; ++x) to[x] = palette[from[x]];
        return;
      case 15:
        for (unsigned x = 0; x < count; ++x) {
          const uint32_t pixel = LoadLe<uint16_t>(from + 2 * x);
          const uint32_t r = pixel >> 10 & 31, g = pixel >> 5 & 31, b = pixel & 31;
          to[x] = (r << 3 | r >> 2) << 16 | (g << 3 | g >> 2) << 8 | (b << 3 | b >> 2);
        }
        return;
      case 16:
        for (unsigned x = 0; x < count; ++x) {
          const uint32_t pixel = LoadLe<uint16_t>(from + 2 * x);
          const uint32_t r = pixel >> 11, g = pixel >> 5 & 63, b = pixel & 31;
          to[x] = (r << 3 | r >> 2) << 16 | (g << 2 | g >> 4) << 8 | (b << 3 | b >> 2);
        }
        return;
      case 24:
        for (unsigned x = 0; x < count; ++x)
          to[x] = static_cast<uint32_t>(from[3 * x] | from[3 * x + 1] << 8 | from[3 * x + 2] << 16);
        return;
      default:
        for (unsigned x = 0; x < count; ++x) to[x] = LoadLe<uint32_t>(from + 4 * x);
    }
  }

  const Registers registers_;
  const std::span<const uint8_t> memory_;
};

// ---- Modes that the CRT controller scans.

enum class Kind : uint8_t { kText, kPlanar, kInterleaved, k256 };

class PlanesFrame final : public display::Frame {
 public:
  PlanesFrame(const Registers& registers, std::span<const uint8_t> memory, bool cursor_on, bool blink_on)
      : registers_(registers),
        planes_(memory.begin(), memory.begin() + kPlanesSize),
        cursor_on_(cursor_on),
        blink_on_(blink_on) {}

  void Draw(Surface& to) const override;

 private:
  struct Geometry {
    Kind kind = Kind::kText;
    unsigned columns = 0;      ///< character clocks in a row
    unsigned clock_width = 0;  ///< pixels of a character clock
    unsigned lines = 0;        ///< scan lines
    unsigned scan_repeat = 0;  ///< scan lines that show the same
    unsigned row_height = 0;   ///< values of the row scan counter
    unsigned double_scan = 1;
  };
  struct Line {
    uint32_t address = 0;  ///< memory address counter at its beginning
    unsigned row_scan = 0;
    unsigned pan = 0;  ///< pixels
  };

  Geometry Measure() const;
  std::array<uint32_t, 16> Colors(const Palette& palette) const;
  uint8_t crtc(unsigned index) const { return registers_.crtc[index]; }
  /// The four planes at a value of the memory address counter.
  const uint8_t* At(uint32_t counter, unsigned row_scan) const;
  void DrawText(const Geometry& geometry, const Line& line, const std::array<uint32_t, 16>& colors,
                uint32_t* row) const;
  void DrawGraphics(const Geometry& geometry, const Line& line, const std::array<uint32_t, 16>& colors,
                    const Palette& palette, uint32_t* row) const;

  const Registers registers_;
  const std::vector<uint8_t> planes_;
  const bool cursor_on_, blink_on_;
};

PlanesFrame::Geometry PlanesFrame::Measure() const {
  Geometry geometry;
  const uint8_t mode = registers_.graphics[kGraphicsMode];
  const bool text = !(registers_.graphics[kMiscellaneous] & 1);
  if (!text) geometry.kind = (mode & 0x40) ? Kind::k256 : (mode & 0x20) ? Kind::kInterleaved : Kind::kPlanar;
  geometry.columns = crtc(kHorizontalDisplayEnd) + 1u;
  geometry.clock_width = geometry.kind == Kind::k256 ? 4 : text && !(registers_.sequencer[kClockingMode] & 1) ? 9 : 8;
  const uint8_t overflow = crtc(kOverflow);
  geometry.lines = (crtc(kVerticalDisplayEnd) | (overflow & 0x02) << 7 | (overflow & 0x40) << 3) + 1u;
  geometry.row_height = (crtc(kMaximumScanLine) & 0x1f) + 1u;
  geometry.double_scan = (crtc(kMaximumScanLine) & 0x80) ? 2 : 1;
  // The row scan counter can be part of the address (CGA); else lines of a row of pixels are all the same.
  const bool substituted = (crtc(kModeControl) & 3) != 3;
  geometry.scan_repeat = geometry.double_scan * (text || substituted ? 1 : geometry.row_height);
  if (registers_.dispi_enabled()) {  // 4 bits per pixel: the planes, with a size of its own
    geometry.kind = Kind::kPlanar;
    geometry.clock_width = 8;
    geometry.columns = registers_.dispi[kDispiXres] / 8u;
    geometry.lines = registers_.dispi[kDispiYres];
    geometry.row_height = geometry.double_scan = geometry.scan_repeat = 1;
  }
  return geometry;
}

std::array<uint32_t, 16> PlanesFrame::Colors(const Palette& palette) const {
  std::array<uint32_t, 16> colors;
  const auto& attribute = registers_.attribute;
  const uint8_t select = attribute[kColorSelect];
  for (unsigned i = 0; i < colors.size(); ++i) {
    const unsigned entry = attribute[i & attribute[kPlaneEnable] & 0xf];
    colors[i] = palette[(attribute[kModeControlA] & 0x80) ? (entry & 0x0f) | (select & 0x0f) << 4
                                                          : (entry & 0x3f) | (select & 0x0c) << 4];
  }
  return colors;
}

const uint8_t* PlanesFrame::At(uint32_t counter, unsigned row_scan) const {
  const uint8_t mode = crtc(kModeControl);
  uint32_t address = counter;
  if (crtc(kUnderline) & 0x40) {  // double words
    address = counter << 2;       // as the window's chain of four leaves the low bits clear
  } else if (!(mode & 0x40)) {    // words
    address = counter << 1 | Bits(counter, (mode & 0x20) ? 15 : 13, 1);
  }
  if (!(mode & 1)) address = (address & ~0x2000u) | (row_scan & 1) << 13;
  if (!(mode & 2)) address = (address & ~0x4000u) | (row_scan & 2) << 13;
  return &planes_[(address & 0xffff) * 4];
}

void PlanesFrame::DrawText(const Geometry& geometry, const Line& line, const std::array<uint32_t, 16>& colors,
                           uint32_t* row) const {
  constexpr std::array<uint32_t, 8> kFonts{0, 0x4000, 0x8000, 0xc000, 0x2000, 0x6000, 0xa000, 0xe000};
  const uint8_t map = registers_.sequencer[kCharacterMap];
  const uint32_t font_a = kFonts[Bits(map, 2, 2) | Bits(map, 5, 1) << 2];
  const uint32_t font_b = kFonts[Bits(map, 0, 2) | Bits(map, 4, 1) << 2];
  const uint8_t mode = registers_.attribute[kModeControlA];
  const uint32_t cursor = static_cast<uint32_t>(crtc(kCursorHigh) << 8 | crtc(kCursorLow));
  const bool cursor_line = cursor_on_ && !(crtc(kCursorStart) & 0x20) && line.row_scan >= (crtc(kCursorStart) & 0x1f) &&
                           line.row_scan <= (crtc(kCursorEnd) & 0x1f);
  const bool underline_line = (mode & 0x02) && line.row_scan == (crtc(kUnderline) & 0x1f);
  const unsigned width = geometry.columns * geometry.clock_width;
  for (unsigned column = 0; column <= geometry.columns; ++column) {
    const uint32_t counter = (line.address + column) & 0xffff;
    const uint8_t* cell = At(counter, line.row_scan);
    const uint8_t character = cell[0], attribute = cell[1];
    const uint32_t font = (attribute & 8) ? font_a : font_b;
    uint32_t dots = uint32_t{planes_[((font + character * 32u + line.row_scan) & 0xffff) * 4 + 2]} << 1;
    // The ninth dot continues line-drawing characters.
    if ((mode & 0x04) && character >= 0xc0 && character <= 0xdf) dots |= dots >> 1 & 1;
    if (underline_line && (attribute & 7) == 1) dots = 0x1ff;
    uint32_t foreground = colors[attribute & 0xf];
    const uint32_t background = colors[(mode & 0x08) ? attribute >> 4 & 7 : attribute >> 4];
    if ((mode & 0x08) && (attribute & 0x80) && !blink_on_) foreground = background;
    if (cursor_line && counter == cursor) {
      dots = 0x1ff;
      foreground = colors[attribute & 0xf];
    }
    for (unsigned dot = 0; dot < geometry.clock_width; ++dot) {
      const unsigned x = column * geometry.clock_width + dot - line.pan;  // wraps where it is left of the screen
      if (x < width) row[x] = TestBit(dots, 8 - dot) ? foreground : background;
    }
  }
}

void PlanesFrame::DrawGraphics(const Geometry& geometry, const Line& line, const std::array<uint32_t, 16>& colors,
                               const Palette& palette, uint32_t* row) const {
  const unsigned width = geometry.columns * geometry.clock_width;
  for (unsigned column = 0; column <= geometry.columns; ++column) {
    const uint8_t* bytes = At((line.address + column) & 0xffff, line.row_scan);
    for (unsigned dot = 0; dot < geometry.clock_width; ++dot) {
      const unsigned x = column * geometry.clock_width + dot - line.pan;
      if (x >= width) continue;
      if (geometry.kind == Kind::k256) {
        row[x] = palette[bytes[dot]];
      } else if (geometry.kind == Kind::kPlanar) {
        const unsigned bit = 7 - dot;
        row[x] = colors[Bits(bytes[0], bit, 1) | Bits(bytes[1], bit, 1) << 1 | Bits(bytes[2], bit, 1) << 2 |
                        Bits(bytes[3], bit, 1) << 3];
      } else {  // pairs of bits: four pixels of the even planes, then four of the odd ones
        const unsigned shift = 6 - 2 * (dot & 3);
        row[x] = colors[Bits(bytes[dot / 4], shift, 2) | Bits(bytes[2 + dot / 4], shift, 2) << 2];
      }
    }
  }
}

void PlanesFrame::Draw(Surface& to) const {
  const Geometry geometry = Measure();
  to.Resize(geometry.columns * geometry.clock_width,
            (geometry.lines + geometry.scan_repeat - 1) / geometry.scan_repeat);
  if (IsBlank(registers_)) return DrawBlank(to);
  const Palette palette = DacPalette(registers_);
  const std::array<uint32_t, 16> colors = Colors(palette);
  const bool text = geometry.kind == Kind::kText;
  const uint8_t pan_register = registers_.attribute[kPixelPanning] & 0xf;
  Line line;
  line.address = static_cast<uint32_t>(crtc(kStartAddressHigh) << 8 | crtc(kStartAddressLow)) +
                 static_cast<uint32_t>(Bits(crtc(kPresetRowScan), 5, 2));
  line.row_scan = (crtc(kPresetRowScan) & 0x1f) % geometry.row_height;
  // With nine dots 8 is no shift and 0 is one.
  line.pan = geometry.kind == Kind::k256 ? (pan_register & 7) / 2
             : geometry.clock_width == 9 ? (pan_register >= 8 ? 0 : pan_register + 1u)
                                         : pan_register & 7u;
  const unsigned line_compare =
      crtc(kLineCompare) | (crtc(kOverflow) & 0x10) << 4 | (crtc(kMaximumScanLine) & 0x40) << 3;
  const uint32_t row_step = registers_.dispi_enabled() ? registers_.dispi[kDispiVirtualWidth] / 8u : crtc(kOffset) * 2u;
  // Rows are as wide as the surface, or wider where its most cuts them.
  std::vector<uint32_t> row(std::max(to.width(), geometry.columns * geometry.clock_width));
  for (unsigned y = 0; y < geometry.lines; ++y) {
    if (y % geometry.scan_repeat == 0) {
      if (text)
        DrawText(geometry, line, colors, row.data());
      else
        DrawGraphics(geometry, line, colors, palette, row.data());
      to.PutRow(y / geometry.scan_repeat, row.data());
    }
    if ((y + 1) % geometry.double_scan == 0 && ++line.row_scan >= geometry.row_height) {
      line.row_scan = 0;
      line.address += row_step;
    }
    if (y == line_compare && !registers_.dispi_enabled()) {  // the lower part begins at address 0
      line.address = line.row_scan = 0;
      if (registers_.attribute[kModeControlA] & 0x20) line.pan = 0;
    }
  }
}

}  // namespace

std::unique_ptr<display::Frame> CaptureFrame(const Registers& registers, std::span<const uint8_t> memory,
                                             int64_t now_ns) {
  if (registers.linear()) return std::make_unique<LinearFrame>(registers, memory);
  return std::make_unique<PlanesFrame>(registers, memory, now_ns % kCursorPeriodNs < kCursorPeriodNs / 2,
                                       now_ns % kBlinkPeriodNs < kBlinkPeriodNs / 2);
}

}  // namespace nacre::devices::vga
