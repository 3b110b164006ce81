#pragma once
// Text of a guest that is shown on the user's terminal. Any thread.

#include <string>

namespace nacre {

/// `text`, a line, with '?' for control characters: those of ASCII, and U+0080 to U+009F, which terminals take for the
/// beginning of commands too.
std::string Printable(std::string text);

}  // namespace nacre
