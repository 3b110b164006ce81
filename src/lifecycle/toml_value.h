#pragma once
// A TOML file as a small tree that knows its lines, and the texts of errors in it. The library behind it (toml++) stays
// in the source file: it is slow to compile. Any thread.

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.h"

namespace nacre::lifecycle {

struct TomlValue {
  enum class Kind : uint8_t { kText, kInteger, kBoolean, kArray, kTable, kOther };
  Kind kind = Kind::kTable;
  unsigned line = 0;  ///< where it begins; 0: nowhere
  std::string text;   ///< kText: the value; else as the file has it, for messages
  int64_t integer = 0;
  bool boolean = false;
  std::vector<TomlValue> items = {};                            ///< kArray
  std::vector<std::pair<std::string, TomlValue>> entries = {};  ///< kTable, in the order of the file

  /// Of a table; null: it has no such key.
  const TomlValue* Find(std::string_view key) const;
};

/// `file` is what errors call it: "FILE:LINE: what".
Result<TomlValue> ParseToml(std::string_view text, const std::string& file);
/// At most kMaxTomlBytes.
Result<TomlValue> ReadToml(const std::string& path);
inline constexpr size_t kMaxTomlBytes = 1024 * 1024;

/// A TOML string with its quotes.
std::string TomlQuoted(std::string_view text);

}  // namespace nacre::lifecycle
