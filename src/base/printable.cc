#include "base/printable.h"

#include <cstdint>

namespace nacre {

std::string Printable(std::string text) {
  for (size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<uint8_t>(text[i]);
    const auto next = static_cast<uint8_t>(i + 1 < text.size() ? text[i + 1] : '\0');
    if (byte < 0x20 || byte == 0x7f)
      text[i] = '?';
    else if (byte == 0xc2 && next >= 0x80 && next < 0xa0)  // in UTF-8
      text.replace(i, 2, "?");
  }
  return text;
}

}  // namespace nacre
