#pragma once
// Reads a file that somebody else made (kernel, initrd) into memory, with a bound on its size. Loaders work on the
// copy, so that a file that changes under them cannot change what was checked. Used by the loaders, before any vCPU
// runs.

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"

namespace nacre::boot {

/// The whole file; a pipe is read to its end. Fails, naming the file, if it is empty, a directory, unreadable or over
/// `max_bytes` (found before anything is read where the file's size is known).
Result<std::vector<uint8_t>> ReadBootFile(const std::string& path, uint64_t max_bytes);

}  // namespace nacre::boot
