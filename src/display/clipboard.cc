#include "display/clipboard.h"

#include <array>
#include <cstdint>

namespace nacre::display {
namespace {

constexpr char32_t kReplacement = 0xfffd;

struct Character {
  char32_t code = kReplacement;
  size_t size = 1;  ///< bytes that it takes
};

/// The first one of a text that is not empty (RFC 3629): no surrogates, no longer forms than needed, up to U+10FFFF.
Character Decode(std::string_view text) {
  const auto byte = [&](size_t at) { return static_cast<uint8_t>(text[at]); };
  const uint8_t first = byte(0);
  if (first < 0x80) return {first, 1};
  const size_t size = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
  if (first < 0xc2 || first > 0xf4 || text.size() < size) return {};
  char32_t code = first & (0x7fu >> size);
  for (size_t i = 1; i < size; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return {};
    code = code << 6 | (byte(i) & 0x3f);
  }
  constexpr std::array<char32_t, 5> kLeast{0, 0, 0x80, 0x800, 0x10000};
  if (code < kLeast[size] || code > 0x10ffff || (code >= 0xd800 && code < 0xe000)) return {};
  return {code, size};
}

void Append(std::string& text, char32_t code) {
  const auto rest = [&](unsigned shift) { text += static_cast<char>(0x80 | (code >> shift & 0x3f)); };
  if (code < 0x80) {
    text += static_cast<char>(code);
  } else if (code < 0x800) {
    text += static_cast<char>(0xc0 | code >> 6);
    rest(0);
  } else if (code < 0x10000) {
    text += static_cast<char>(0xe0 | code >> 12);
    rest(6);
    rest(0);
  } else {
    text += static_cast<char>(0xf0 | code >> 18);
    rest(12);
    rest(6);
    rest(0);
  }
}

/// `next` takes the first character of what it is given.
template <typename Next>
std::string Clean(std::string_view bytes, Next next) {
  std::string text;
  while (!bytes.empty()) {
    const Character at = next(bytes);
    bytes.remove_prefix(at.size);
    if (at.code == 0) continue;
    const size_t before = text.size();
    if (at.code == '\r') {
      if (!bytes.starts_with('\n')) text += '\n';
    } else {
      Append(text, at.code);
    }
    if (text.size() <= kMaxClipboardBytes) continue;
    text.resize(before);
    break;
  }
  return text;
}

}  // namespace

std::string CleanText(std::string_view bytes) { return Clean(bytes, Decode); }

std::string CleanLatin1(std::string_view bytes) {
  return Clean(bytes, [](std::string_view rest) { return Character{static_cast<uint8_t>(rest[0]), 1}; });
}

std::string ToLatin1(std::string_view text) {
  std::string bytes;
  while (!text.empty()) {
    const Character at = Decode(text);
    text.remove_prefix(at.size);
    bytes += at.code < 0x100 ? static_cast<char>(at.code) : '?';
  }
  return bytes;
}

std::string WithCrLf(std::string_view text) {
  std::string bytes;
  for (const char c : text) {
    if (c == '\n') bytes += '\r';
    bytes += c;
  }
  return bytes;
}

}  // namespace nacre::display
