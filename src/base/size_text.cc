#include "base/size_text.h"

#include <charconv>

namespace nacre {

Result<uint64_t> ParseSize(std::string_view text) {
  uint64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc()) return Fail("'{}' is not a size; give for example 512M", text);
  std::string_view unit(end, text.data() + text.size());
  if (unit.ends_with("iB")) {
    unit.remove_suffix(2);
    if (unit.empty()) return Fail("'{}' is not a size; give for example 512M", text);
  } else if (unit.ends_with("B")) {
    unit.remove_suffix(1);
  }
  unsigned shift = 0;
  if (!unit.empty()) {
    constexpr std::string_view kUnits = "KMGT";
    const size_t index = kUnits.find(static_cast<char>(unit[0] & ~0x20));
    if (unit.size() != 1 || index == std::string_view::npos)
      return Fail("'{}': sizes take K, M, G or T, for example 512M", text);
    shift = static_cast<unsigned>(10 * (index + 1));
  }
  if (number > (~uint64_t{0} >> shift)) return Fail("'{}' is too large", text);
  return number << shift;
}

std::string SizeText(uint64_t size_bytes) {
  constexpr std::string_view kUnits = "KMGT";
  size_t unit = 0;
  while (unit < kUnits.size() && size_bytes != 0 && size_bytes % 1024 == 0) {
    size_bytes /= 1024;
    ++unit;
  }
  return unit == 0 ? fmt::format("{}", size_bytes) : fmt::format("{}{}", size_bytes, kUnits[unit - 1]);
}

}  // namespace nacre
