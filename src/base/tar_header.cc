#include "base/tar_header.h"

#include <algorithm>
#include <charconv>

namespace nacre::tar {

namespace {

constexpr size_t kSumAt = 148;

void PutOctal(char* field, size_t size, uint64_t value) {
  for (size_t i = size - 1; i-- > 0; value >>= 3) field[i] = static_cast<char>('0' + (value & 7));
}

/// Octal, or GNU's 256-ary form where the top bit of the first byte is set.
std::optional<uint64_t> Number(std::string_view field) {
  uint64_t value = 0;
  if ((static_cast<uint8_t>(field[0]) & 0x80) != 0) {
    for (size_t i = 1; i < field.size(); ++i) {
      if (value >> 55 != 0) return std::nullopt;
      value = value << 8 | static_cast<uint8_t>(field[i]);
    }
    return value;
  }
  while (!field.empty() && field.front() == ' ') field.remove_prefix(1);
  for (const char c : field) {
    if (c == ' ' || c == '\0') break;
    if (c < '0' || c > '7' || value >> 60 != 0) return std::nullopt;
    value = value << 3 | static_cast<uint64_t>(c - '0');
  }
  return value;
}

std::string Text(std::string_view field) { return std::string(field.substr(0, field.find('\0'))); }

uint64_t SumOf(std::string_view block) {
  uint64_t sum = 0;
  for (size_t i = 0; i < block.size(); ++i) sum += i >= kSumAt && i < kSumAt + 8 ? ' ' : static_cast<uint8_t>(block[i]);
  return sum;
}

}  // namespace

std::string HeaderOf(const Member& member, Dialect dialect) {
  std::string block(kBlock, '\0');
  member.name.copy(&block[0], kNameSize);
  PutOctal(&block[100], 8, member.mode);
  PutOctal(&block[108], 8, 0);
  PutOctal(&block[116], 8, 0);
  if (member.size < uint64_t{1} << 33) {
    PutOctal(&block[124], 12, member.size);
  } else {
    block[124] = '\x80';
    for (unsigned i = 0; i < 8; ++i) block[135 - i] = static_cast<char>(member.size >> (8 * i));
  }
  PutOctal(&block[136], 12, static_cast<uint64_t>(std::clamp<int64_t>(member.time_s, 0, 077777777777)));
  block[156] = member.type;
  member.link.copy(&block[157], kNameSize);
  const auto magic = dialect == Dialect::kGnu ? std::string_view("ustar  ", 8) : std::string_view("ustar\00000", 8);
  magic.copy(&block[257], magic.size());
  PutOctal(&block[kSumAt], 7, SumOf(block));
  block[155] = ' ';
  return block;
}

std::optional<Member> ParseHeader(std::string_view block) {
  if (block.size() != kBlock) return std::nullopt;
  const auto sum = Number(block.substr(kSumAt, 8)), size = Number(block.substr(124, 12)),
             mode = Number(block.substr(100, 8));
  if (!sum || *sum != SumOf(block) || !size || !mode) return std::nullopt;
  Member member{.name = Text(block.substr(0, kNameSize)),
                .link = Text(block.substr(157, kNameSize)),
                .size = *size,
                .mode = static_cast<uint32_t>(*mode & 0777),
                .time_s = static_cast<int64_t>(Number(block.substr(136, 12)).value_or(0)),
                .type = block[156] == '\0' ? '0' : block[156]};
  if (block.substr(257, 6) == std::string_view("ustar\0", 6) && block[345] != '\0')
    member.name = Text(block.substr(345, 155)) + "/" + member.name;
  return member;
}

/// Records of "LENGTH KEY=VALUE\n".
std::optional<Pax> ParsePax(std::string_view text) {
  Pax pax;
  while (!text.empty()) {
    size_t length = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), length);
    const auto start = static_cast<size_t>(end - text.data()) + 1;
    if (error != std::errc() || length > text.size() || start >= length || text[length - 1] != '\n')
      return std::nullopt;
    const std::string_view record = text.substr(start, length - start - 1);
    const size_t equals = record.find('=');
    if (equals == std::string_view::npos) return std::nullopt;
    const std::string_view key = record.substr(0, equals), value = record.substr(equals + 1);
    if (key == "path") pax.name = value;
    if (key == "linkpath") pax.link = value;
    if (key == "size") {
      uint64_t size = 0;
      if (std::from_chars(value.data(), value.data() + value.size(), size).ec != std::errc()) return std::nullopt;
      pax.size = size;
    }
    text.remove_prefix(length);
  }
  return pax;
}

bool IsEnd(std::string_view block) { return block.find_first_not_of('\0') == std::string_view::npos; }

}  // namespace nacre::tar
