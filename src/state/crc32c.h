#pragma once
// CRC-32C (Castagnoli, as iSCSI has it: RFC 3720, B.4): the checksum of saved states. By the processor's instruction
// where there is one. Any thread; async-signal-safe.

#include <cstdint>
#include <span>

namespace nacre::state {

/// Of `bytes`; or of what `before` is the checksum of, followed by `bytes`.
uint32_t Crc32c(std::span<const uint8_t> bytes, uint32_t before = 0);

}  // namespace nacre::state
