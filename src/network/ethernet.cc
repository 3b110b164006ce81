#include "network/ethernet.h"

#include <fmt/ranges.h>

#include <cstdio>

#include "base/bits.h"

namespace nacre::network {

Result<MacAddress> ParseMac(std::string_view text) {
  MacAddress mac{};
  unsigned part[6];
  int end = 0;
  const std::string copy(text);
  if (std::sscanf(copy.c_str(), "%2x:%2x:%2x:%2x:%2x:%2x%n", &part[0], &part[1], &part[2], &part[3], &part[4], &part[5],
                  &end) != 6 ||
      static_cast<size_t>(end) != copy.size())
    return Fail("MAC address '{}': give six hexadecimal bytes, as in 52:54:00:12:34:56", text);
  for (unsigned i = 0; i < 6; ++i) mac[i] = static_cast<uint8_t>(part[i]);
  if ((mac[0] & 1) != 0) return Fail("MAC address '{}': is a multicast address (first byte odd)", text);
  return mac;
}

std::string MacText(const MacAddress& mac) { return fmt::format("{:02x}", fmt::join(mac, ":")); }

uint16_t OnesComplementSum(std::span<const uint8_t> data) {
  uint64_t sum = 0;
  size_t i = 0;
  for (; i + 4 <= data.size(); i += 4) sum += LoadLe<uint32_t>(&data[i]);
  uint32_t tail = 0;
  for (size_t j = 0; i + j < data.size(); ++j) tail |= uint32_t{data[i + j]} << (8 * j);
  sum += tail;
  while (sum >> 16) sum = (sum & 0xffff) + (sum >> 16);
  return static_cast<uint16_t>(sum);
}

uint16_t InternetChecksum(std::span<const uint8_t> data) {
  const auto folded = static_cast<uint16_t>(~OnesComplementSum(data));
  return folded == 0 ? 0xffff : folded;
}

}  // namespace nacre::network
