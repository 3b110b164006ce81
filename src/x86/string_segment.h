#pragma once
// The segment through which a string instruction reads (Intel SDM 1, 7.3.9): DS, or what a prefix names. Any thread.

#include <cstdint>

#include "x86/cpu_state.h"
#include "x86/instruction.h"

namespace nacre::x86 {

/// kDs, kEs, ...; the last prefix holds, and in 64-bit code only FS and GS.
inline uint8_t StringSegment(const Instruction& insn) {
  uint8_t segment = kDs;
  const bool long_mode = insn.code_size == CodeSize::k64;
  for (unsigned i = 0; i < insn.prefix_count; ++i) {
    switch (insn.bytes[i]) {
      case 0x26:
        if (!long_mode) segment = kEs;
        break;
      case 0x2e:
        if (!long_mode) segment = kCs;
        break;
      case 0x36:
        if (!long_mode) segment = kSs;
        break;
      case 0x3e:
        if (!long_mode) segment = kDs;
        break;
      case 0x64:
        segment = kFs;
        break;
      case 0x65:
        segment = kGs;
        break;
      default:
        break;
    }
  }
  return segment;
}

}  // namespace nacre::x86
