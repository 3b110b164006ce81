#include "lifecycle/toml_value.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <toml++/toml.h>
#include <unistd.h>

#include <algorithm>
#include <sstream>

#include "base/fd.h"

namespace nacre::lifecycle {

namespace {

/// Deeper than any file of ours; the library itself takes 256.
constexpr unsigned kMaxDepth = 8;

std::string ShownText(const toml::node& node) {
  std::ostringstream out;
  node.visit([&](const auto& value) { out << value; });
  std::string text = out.str();
  constexpr size_t kMost = 60;
  if (text.size() > kMost) text = text.substr(0, kMost) + "...";
  std::ranges::replace(text, '\n', ' ');
  return text;
}

Result<TomlValue> Convert(const toml::node& node, const std::string& file, unsigned depth) {
  using Kind = TomlValue::Kind;
  TomlValue value;
  value.line = node.source().begin.line;
  if (depth > kMaxDepth) return Fail("{}:{}: nested deeper than {}", file, value.line, kMaxDepth);
  if (const auto* table = node.as_table()) {
    value.kind = Kind::kTable;
    for (const auto& [key, entry] : *table) {
      TomlValue converted = NACRE_TRY(Convert(entry, file, depth + 1));
      // A table's own place is its first key; the heading is what the reader looks for.
      if (key.source().begin.line != 0) converted.line = key.source().begin.line;
      value.entries.emplace_back(std::string(key.str()), std::move(converted));
    }
    std::ranges::stable_sort(value.entries, {}, [](const auto& entry) { return entry.second.line; });
    value.text = "{...}";
  } else if (const auto* array = node.as_array()) {
    value.kind = Kind::kArray;
    for (const toml::node& item : *array) value.items.push_back(NACRE_TRY(Convert(item, file, depth + 1)));
    value.text = ShownText(node);
  } else if (const auto* text = node.as_string()) {
    value.kind = Kind::kText;
    value.text = text->get();
  } else {
    value.kind = Kind::kOther;
    value.text = ShownText(node);
    if (const auto* integer = node.as_integer()) {
      value.kind = Kind::kInteger;
      value.integer = integer->get();
    } else if (const auto* boolean = node.as_boolean()) {
      value.kind = Kind::kBoolean;
      value.boolean = boolean->get();
    }
  }
  return value;
}

}  // namespace

const TomlValue* TomlValue::Find(std::string_view key) const {
  const auto found = std::ranges::find(entries, key, &std::pair<std::string, TomlValue>::first);
  return found == entries.end() ? nullptr : &found->second;
}

Result<TomlValue> ParseToml(std::string_view text, const std::string& file) {
  // Debian's toml++ is built to throw; nothing gets past this function.
  try {
    return Convert(toml::parse(text), file, 0);
  } catch (const toml::parse_error& error) {
    return Fail("{}:{}: this is not TOML: {}", file, error.source().begin.line, error.description());
  }
}

Result<TomlValue> ReadToml(const std::string& path) {
  const Fd file(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file.valid()) return FailErrno("{}", path);
  std::string text;
  for (;;) {
    char bytes[4096];
    const ssize_t got = read(file.get(), bytes, sizeof(bytes));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return FailErrno("{}", path);
    if (got == 0) break;
    text.append(bytes, static_cast<size_t>(got));
    if (text.size() > kMaxTomlBytes) return Fail("{}: longer than {} bytes", path, kMaxTomlBytes);
  }
  return ParseToml(text, path);
}

std::string TomlQuoted(std::string_view text) {
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\')
      quoted += {'\\', c};
    else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f)
      quoted += fmt::format("\\u{:04X}", static_cast<unsigned>(c));
    else
      quoted += c;
  }
  return quoted + '"';
}

}  // namespace nacre::lifecycle
