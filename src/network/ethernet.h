#pragma once
// What Ethernet cards share: addresses and checksums. Any thread.

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "base/result.h"

namespace nacre::network {

using MacAddress = std::array<uint8_t, 6>;
/// "52:54:00:12:34:56"; multicast addresses are refused.
Result<MacAddress> ParseMac(std::string_view text);
std::string MacText(const MacAddress& mac);

/// The sum of the Internet checksum (RFC 1071) over `data`, as a number whose little-endian bytes go into a packet;
/// not complemented.
uint16_t OnesComplementSum(std::span<const uint8_t> data);

/// The Internet checksum of bytes whose checksum field holds the pseudo header's sum, ready to be stored. Never 0,
/// which means "none" for UDP; for TCP both are zero.
uint16_t InternetChecksum(std::span<const uint8_t> data);

}  // namespace nacre::network
