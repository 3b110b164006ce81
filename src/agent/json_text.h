#pragma once
// JSON of an untrusted guest: no text can make this throw, recurse deeply or use more memory than a small multiple of
// its length. Any thread. Only for .cc files: the header behind it is large.

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

namespace nacre::agent {

using Json = nlohmann::ordered_json;

inline std::optional<Json> ParseUntrusted(std::string_view text, int max_depth) {
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      in_string = c != '"';
    } else if (c == '"') {
      in_string = true;
    } else if (c == '[' || c == '{') {
      if (++depth > max_depth) return std::nullopt;
    } else if (c == ']' || c == '}') {
      --depth;
    }
  }
  Json value = Json::parse(text.begin(), text.end(), nullptr, false);
  if (value.is_discarded()) return std::nullopt;
  return value;
}

/// Bytes that are not UTF-8 are replaced.
inline std::string TextOf(const Json& value) { return value.dump(-1, ' ', false, Json::error_handler_t::replace); }

}  // namespace nacre::agent
