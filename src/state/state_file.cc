#include "state/state_file.h"

#include <algorithm>

#include "base/bits.h"
#include "base/check.h"
#include "state/crc32c.h"

namespace nacre::state {
namespace {

constexpr std::string_view kMagic = "NACRE-ST";
constexpr size_t kHeaderBytes = 24, kSectionHeaderBytes = 16, kCrcBytes = 4;

template <std::integral T>
void Append(std::vector<uint8_t>& out, T value) {
  const size_t at = out.size();
  out.resize(at + sizeof(T));
  StoreLe(out.data() + at, value);
}

std::span<const uint8_t> Tail(const std::vector<uint8_t>& bytes, size_t from) { return std::span(bytes).subspan(from); }

bool Printable(std::string_view name) {
  return !name.empty() && std::ranges::all_of(name, [](char c) { return c > ' ' && c < 0x7f; });
}

}  // namespace

void StateFile::Add(std::string name, std::vector<uint8_t> content) {
  NACRE_CHECK(Printable(name) && name.size() <= kMaxName && !Find(name) && sections_.size() < kMaxSections);
  sections_.push_back({std::move(name), std::move(content)});
}

const StateFile::Section* StateFile::Find(std::string_view name) const {
  const auto found = std::ranges::find(sections_, name, &Section::name);
  return found == sections_.end() ? nullptr : &*found;
}

std::vector<uint8_t> StateFile::Encode() const {
  std::vector<uint8_t> out(kMagic.begin(), kMagic.end());
  Append(out, kVersion);
  Append(out, static_cast<uint32_t>(sections_.size()));
  Append(out, uint32_t{0});
  Append(out, Crc32c(out));
  for (const auto& [name, content] : sections_) {
    const size_t start = out.size();
    Append(out, static_cast<uint32_t>(name.size()));
    Append(out, uint32_t{0});
    Append(out, uint64_t{content.size()});
    out.insert(out.end(), name.begin(), name.end());
    Append(out, Crc32c(Tail(out, start)));
    out.insert(out.end(), content.begin(), content.end());
    Append(out, Crc32c(content));
  }
  return out;
}

Result<StateFile> StateFile::Decode(std::span<const uint8_t> bytes) {
  if (bytes.size() < kHeaderBytes || !std::ranges::equal(bytes.first(kMagic.size()), kMagic))
    return Fail("not a saved state of Nacre");
  if (LoadLe<uint32_t>(&bytes[20]) != Crc32c(bytes.first(20))) return Fail("the header is damaged");
  if (const auto version = LoadLe<uint32_t>(&bytes[8]); version != kVersion)
    return Fail("format version {}: this Nacre knows version {}; use a newer one", version, kVersion);
  const auto count = LoadLe<uint32_t>(&bytes[12]);
  if (count > kMaxSections) return Fail("the header claims {} sections", count);
  bytes = bytes.subspan(kHeaderBytes);
  StateFile file;
  for (uint32_t i = 0; i < count; ++i) {
    const std::string before =
        i == 0 ? "the first section" : fmt::format("the section behind '{}'", file.sections_.back().name);
    if (bytes.size() < kSectionHeaderBytes) return Fail("the file ends before {}", before);
    const auto name_bytes = LoadLe<uint32_t>(&bytes[0]);
    const auto content_bytes = LoadLe<uint64_t>(&bytes[8]);
    if (name_bytes > kMaxName || bytes.size() - kSectionHeaderBytes < name_bytes + kCrcBytes)
      return Fail("the header of {} is damaged", before);
    const size_t header_bytes = kSectionHeaderBytes + name_bytes;
    const std::string name(reinterpret_cast<const char*>(&bytes[kSectionHeaderBytes]), name_bytes);
    if (LoadLe<uint32_t>(&bytes[header_bytes]) != Crc32c(bytes.first(header_bytes)) || !Printable(name))
      return Fail("the header of {} is damaged", before);
    bytes = bytes.subspan(header_bytes + kCrcBytes);
    if (bytes.size() < kCrcBytes || content_bytes > bytes.size() - kCrcBytes)
      return Fail("the file ends inside section '{}'", name);
    if (file.Find(name)) return Fail("section '{}' is there twice", name);
    const auto content = bytes.first(content_bytes);
    if (LoadLe<uint32_t>(&bytes[content_bytes]) != Crc32c(content)) return Fail("section '{}' is damaged", name);
    file.sections_.push_back({name, {content.begin(), content.end()}});
    bytes = bytes.subspan(content_bytes + kCrcBytes);
  }
  if (!bytes.empty()) return Fail("{} bytes behind the last section", bytes.size());
  return file;
}

}  // namespace nacre::state
