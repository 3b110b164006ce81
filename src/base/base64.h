#pragma once
// Base64 (RFC 4648, section 4): bytes as text, for JSON. Any thread.

#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace nacre {

std::string Base64Encode(std::string_view bytes);
/// Nothing where the text is not exactly what an encoder writes (padding included, no line ends).
std::optional<std::string> Base64Decode(std::string_view text);

}  // namespace nacre
