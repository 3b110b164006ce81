#pragma once
// Sizes as people write them. Any thread.

#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.h"

namespace nacre {

/// "512M", "1G", "65536"; K, M, G, T are binary, an "iB" or "B" may follow.
Result<uint64_t> ParseSize(std::string_view text);
/// What ParseSize reads, in the largest unit that is exact.
std::string SizeText(uint64_t size_bytes);

}  // namespace nacre
