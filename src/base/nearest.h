#pragma once
// What a mistyped word may have meant. Any thread.

#include <span>
#include <string_view>

namespace nacre {

/// The closest of `words` to what was typed, or an empty text if none is close.
std::string_view Nearest(std::string_view typed, std::span<const std::string_view> words);

}  // namespace nacre
