#include "state/archive.h"

#include <utility>

#include "base/bits.h"
#include "base/check.h"

namespace nacre::state {
namespace {

constexpr uint16_t kKindBytes = 0;
constexpr uint16_t kKindInteger = 1;
constexpr uint16_t kKindSection = 2;
constexpr size_t kFieldHeader = 8;
constexpr uint64_t kMaxField = 1 * kGiB;

template <std::integral T>
void Append(std::vector<uint8_t>& out, T value) {
  const size_t at = out.size();
  out.resize(at + sizeof(T));
  StoreLe(out.data() + at, value);
}

}  // namespace

Archive Archive::ForSaving() { return Archive(false); }

Archive Archive::ForLoading(std::span<const uint8_t> data) {
  Archive archive(true);
  archive.Index(data);
  return archive;
}

void Archive::Index(std::span<const uint8_t> data) {
  while (!data.empty()) {
    if (data.size() < kFieldHeader) return Reject("truncated field header");
    const uint16_t id = LoadLe<uint16_t>(data.data());
    const uint16_t kind = LoadLe<uint16_t>(data.data() + 2);
    const uint32_t size = LoadLe<uint32_t>(data.data() + 4);
    data = data.subspan(kFieldHeader);
    if (size > data.size()) return Reject(fmt::format("field {} claims {} bytes, {} are left", id, size, data.size()));
    if (!entries_.emplace(id, Entry{kind, data.first(size)}).second)
      return Reject(fmt::format("field {} appears twice", id));
    data = data.subspan(size);
  }
}

void Archive::Put(uint16_t id, uint16_t kind, std::span<const uint8_t> payload) {
  NACRE_CHECK(payload.size() <= kMaxField);
  Append(out_, id);
  Append(out_, kind);
  Append(out_, static_cast<uint32_t>(payload.size()));
  out_.insert(out_.end(), payload.begin(), payload.end());
}

const Archive::Entry* Archive::Find(uint16_t id, uint16_t kind) {
  if (!ok()) return nullptr;
  const auto found = entries_.find(id);
  if (found == entries_.end()) return nullptr;
  if (found->second.kind != kind) {
    Reject(fmt::format("field {} has kind {}, expected {}", id, found->second.kind, kind));
    return nullptr;
  }
  return &found->second;
}

bool Archive::Integer(uint16_t id, int64_t& value, size_t size, bool is_signed) {
  if (!loading_) {
    uint8_t bytes[8];
    StoreLe(bytes, value);
    Put(id, kKindInteger, bytes);
    return false;
  }
  const Entry* entry = Find(id, kKindInteger);
  if (!entry) return false;
  if (entry->payload.size() != 8) {
    Reject(fmt::format("field {}: an integer has 8 bytes, not {}", id, entry->payload.size()));
    return false;
  }
  const int64_t loaded = LoadLe<int64_t>(entry->payload.data());
  const auto bits = static_cast<unsigned>(size * 8);
  const bool fits =
      size == 8 || (is_signed ? static_cast<int64_t>(SignExtend(static_cast<uint64_t>(loaded), bits)) == loaded
                              : MaskToSize(static_cast<uint64_t>(loaded), static_cast<unsigned>(size)) ==
                                    static_cast<uint64_t>(loaded));
  if (!fits) {
    Reject(fmt::format("field {}: {} does not fit {} bytes", id, loaded, size));
    return false;
  }
  value = loaded;
  return true;
}

void Archive::Bytes(uint16_t id, std::span<uint8_t> bytes) {
  if (!loading_) return Put(id, kKindBytes, bytes);
  const Entry* entry = Find(id, kKindBytes);
  if (!entry) return;
  if (entry->payload.size() != bytes.size())
    return Reject(fmt::format("field {}: {} bytes, expected {}", id, entry->payload.size(), bytes.size()));
  std::copy(entry->payload.begin(), entry->payload.end(), bytes.begin());
}

void Archive::Bytes(uint16_t id, std::vector<uint8_t>& bytes, size_t max_size) {
  if (!loading_) return Put(id, kKindBytes, bytes);
  const Entry* entry = Find(id, kKindBytes);
  if (!entry) return;
  if (entry->payload.size() > max_size)
    return Reject(fmt::format("field {}: {} bytes, at most {} allowed", id, entry->payload.size(), max_size));
  bytes.assign(entry->payload.begin(), entry->payload.end());
}

void Archive::Text(uint16_t id, std::string& text, size_t max_size) {
  std::vector<uint8_t> bytes(text.begin(), text.end());
  Bytes(id, bytes, max_size);
  if (loading_) text.assign(bytes.begin(), bytes.end());
}

void Archive::Section(uint16_t id, uint16_t version, const std::function<void(Archive&, uint16_t)>& fields) {
  if (!loading_) {
    Archive inner(false);
    Append(inner.out_, version);
    fields(inner, version);
    return Put(id, kKindSection, inner.out_);
  }
  const Entry* entry = Find(id, kKindSection);
  if (!entry) return;
  if (entry->payload.size() < 2) return Reject(fmt::format("section {}: no version", id));
  Archive inner = ForLoading(entry->payload.subspan(2));
  if (inner.ok()) fields(inner, LoadLe<uint16_t>(entry->payload.data()));
  if (!inner.ok()) Reject(fmt::format("section {}: {}", id, inner.error_));
}

void Archive::List(uint16_t id, size_t count, size_t max, const std::function<void(size_t)>& resize,
                   const std::function<void(Archive&, size_t)>& element) {
  NACRE_CHECK(max < 65535);
  Section(id, 1, [&](Archive& list, uint16_t) {
    uint32_t n = static_cast<uint32_t>(count);
    list.Field(65535, n);
    if (list.loading()) {
      if (n > max) return list.Reject(fmt::format("{} elements, at most {} allowed", n, max));
      resize(n);
    }
    for (size_t i = 0; i < n; ++i)
      list.Section(static_cast<uint16_t>(i + 1), 1, [&](Archive& inner, uint16_t) { element(inner, i); });
  });
}

void Archive::Reject(std::string reason) {
  if (error_.empty()) error_ = reason.empty() ? "rejected" : std::move(reason);
}

Status Archive::status() const {
  if (!ok()) return Fail("{}", error_);
  return {};
}

}  // namespace nacre::state
