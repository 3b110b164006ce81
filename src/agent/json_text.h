#pragma once
// JSON of an untrusted guest: no text can make this throw, recurse deeply or use more memory than a small multiple of
// its length. Any thread. Only for .cc files: the header behind it is large.

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "base/json_depth.h"

namespace nacre::agent {

using Json = nlohmann::ordered_json;

inline std::optional<Json> ParseUntrusted(std::string_view text, int max_depth) {
  if (JsonDepth(text) > max_depth) return std::nullopt;
  Json value = Json::parse(text.begin(), text.end(), nullptr, false);
  if (value.is_discarded()) return std::nullopt;
  return value;
}

/// Bytes that are not UTF-8 are replaced.
inline std::string TextOf(const Json& value) { return value.dump(-1, ' ', false, Json::error_handler_t::replace); }

}  // namespace nacre::agent
