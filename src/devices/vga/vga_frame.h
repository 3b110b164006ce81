#pragma once
// One picture of a VGA: text, planar, 256-colour and CGA modes as the CRT controller scans them, and the linear modes
// of the Bochs VBE extension. Any thread, while the memory lives.

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "devices/vga/vga_registers.h"
#include "display/screen.h"

namespace nacre::devices::vga {

/// Full periods of what blinks, at 70 frames a second: the cursor 32 frames, characters 64.
inline constexpr int64_t kCursorPeriodNs = 457'142'857, kBlinkPeriodNs = 2 * kCursorPeriodNs;

/// Copies the registers and, unless the mode is linear, the planes. `memory` holds at least the planes and is read
/// later in linear modes. `now_ns` decides what blinks.
std::unique_ptr<display::Frame> CaptureFrame(const Registers& registers, std::span<const uint8_t> memory,
                                             int64_t now_ns);

}  // namespace nacre::devices::vga
