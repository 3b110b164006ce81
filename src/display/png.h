#pragma once
// A surface as a PNG file (ISO/IEC 15948), by libpng. Any thread.

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"
#include "display/surface.h"

namespace nacre::display {

/// 8-bit RGB. Fails for a surface without a size, or when memory is short.
Result<std::vector<uint8_t>> EncodePng(const Surface& surface);
/// Into `path`, by way of a new file beside it that takes its place: nobody sees half a picture.
Status WritePng(const Surface& surface, const std::string& path);

}  // namespace nacre::display
