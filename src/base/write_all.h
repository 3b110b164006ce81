#pragma once
// Writing to a file descriptor that may take less than it is given. Any thread.

#include <string_view>

#include "base/result.h"

namespace nacre {

/// All of `bytes`, at the descriptor's position. An error is the system's, with its text and nothing else as message.
Status WriteAll(int fd, std::string_view bytes);

}  // namespace nacre
