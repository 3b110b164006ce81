#pragma once
// The processor's view of VGA memory, 0xa0000-0xbffff: planes, latches, write and read modes (IBM PS/2 Video Subsystem
// Technical Reference, "Graphics Controller"), and the 64 KiB banks of the Bochs VBE extension. Under the device lock.

#include <cstdint>
#include <span>

#include "devices/vga/vga_registers.h"

namespace nacre::devices::vga {

inline constexpr uint64_t kWindowBase = 0xa0000;
inline constexpr uint32_t kWindowSize = 0x20000;

/// One byte at `offset` (below kWindowSize) of the window. `memory` holds at least the planes. A read loads the
/// latches.
uint8_t ReadWindow(Registers& registers, std::span<const uint8_t> memory, uint32_t offset);
void WriteWindow(const Registers& registers, std::span<uint8_t> memory, uint32_t offset, uint8_t value);

}  // namespace nacre::devices::vga
