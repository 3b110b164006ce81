#include "boot/aml.h"

#include "base/check.h"

namespace nacre::boot::aml {

namespace {

template <typename T>
void Append(Bytes& to, T value) {
  for (size_t i = 0; i < sizeof(T); ++i) to.push_back(static_cast<uint8_t>(value >> (8 * i)));
}

void Append(Bytes& to, const Bytes& from) { to.insert(to.end(), from.begin(), from.end()); }

/// PkgLength (20.2.4) counts itself.
Bytes PackageLength(size_t content_bytes) {
  if (content_bytes + 1 < 64) return {static_cast<uint8_t>(content_bytes + 1)};
  size_t extra = 1;
  while (content_bytes + 1 + extra >= size_t{1} << (4 + 8 * extra)) ++extra;
  NACRE_CHECK(extra <= 3);
  const size_t total = content_bytes + 1 + extra;
  Bytes out{static_cast<uint8_t>((extra << 6) | (total & 0xf))};
  for (size_t i = 0; i < extra; ++i) out.push_back(static_cast<uint8_t>(total >> (4 + 8 * i)));
  return out;
}

Bytes Block(std::initializer_list<uint8_t> opcode, const Bytes& content) {
  return Join({Bytes(opcode), PackageLength(content.size()), content});
}

void AppendSegment(Bytes& to, std::string_view segment) {
  NACRE_CHECK(!segment.empty() && segment.size() <= 4);
  for (size_t i = 0; i < 4; ++i) to.push_back(static_cast<uint8_t>(i < segment.size() ? segment[i] : '_'));
}

enum ResourceType : uint8_t { kMemory = 0, kIo = 1, kBus = 2 };
constexpr uint8_t kFixedRange = 0x0c;  // _MIF and _MAF: both ends are fixed

/// Word, DWord or QWord address space descriptor (6.4.3.5), by the width of T.
template <typename T>
Bytes Window(ResourceType type, uint8_t type_flags, T first, T last) {
  constexpr uint8_t kTag = sizeof(T) == 2 ? 0x88 : sizeof(T) == 4 ? 0x87 : 0x8a;
  Bytes out{kTag};
  Append<uint16_t>(out, 3 + 5 * sizeof(T));
  out.insert(out.end(), {type, kFixedRange, type_flags});
  Append<T>(out, 0);  // granularity
  Append<T>(out, first);
  Append<T>(out, last);
  Append<T>(out, 0);  // translation
  Append<T>(out, static_cast<T>(last - first + 1));
  return out;
}

}  // namespace

Bytes Join(std::initializer_list<Bytes> terms) {
  Bytes out;
  for (const Bytes& term : terms) Append(out, term);
  return out;
}

Bytes Integer(uint64_t value) {
  if (value <= 1) return {static_cast<uint8_t>(value)};
  Bytes out;
  if (value <= 0xff) {
    out = {0x0a, static_cast<uint8_t>(value)};
  } else if (value <= 0xffff) {
    out = {0x0b};
    Append(out, static_cast<uint16_t>(value));
  } else if (value <= 0xffffffff) {
    out = {0x0c};
    Append(out, static_cast<uint32_t>(value));
  } else {
    out = {0x0e};
    Append(out, value);
  }
  return out;
}

Bytes Dword(uint32_t value) {
  Bytes out{0x0c};
  Append(out, value);
  return out;
}
Bytes String(std::string_view text) { return Join({{0x0d}, Bytes(text.begin(), text.end()), {0}}); }

Bytes EisaId(std::string_view id) {
  NACRE_CHECK(id.size() == 7);
  uint32_t value = 0;
  for (size_t i = 0; i < 3; ++i) value = (value << 5) | static_cast<uint32_t>((id[i] - '@') & 0x1f);
  for (size_t i = 3; i < 7; ++i)
    value = (value << 4) | static_cast<uint32_t>(id[i] <= '9' ? id[i] - '0' : id[i] - 'A' + 10);
  Bytes out{0x0c};
  Append(out, __builtin_bswap32(value));
  return out;
}

Bytes Path(std::string_view path) {
  Bytes out;
  while (!path.empty() && (path.front() == '\\' || path.front() == '^')) {
    out.push_back(static_cast<uint8_t>(path.front()));
    path.remove_prefix(1);
  }
  std::vector<std::string_view> parts;
  while (!path.empty()) {
    const size_t dot = path.find('.');
    parts.push_back(path.substr(0, dot));
    path = dot == std::string_view::npos ? std::string_view() : path.substr(dot + 1);
  }
  if (parts.empty()) {
    out.push_back(0);
  } else if (parts.size() == 2) {
    out.push_back(0x2e);
  } else if (parts.size() > 2) {
    out.push_back(0x2f);
    out.push_back(static_cast<uint8_t>(parts.size()));
  }
  for (const std::string_view part : parts) AppendSegment(out, part);
  return out;
}

Bytes Name(std::string_view path, const Bytes& value) { return Join({{0x08}, Path(path), value}); }
Bytes Scope(std::string_view path, const Bytes& terms) { return Block({0x10}, Join({Path(path), terms})); }
Bytes Device(std::string_view path, const Bytes& terms) { return Block({0x5b, 0x82}, Join({Path(path), terms})); }
Bytes Method(std::string_view path, unsigned argument_count, const Bytes& terms) {
  return Block({0x14}, Join({Path(path), {static_cast<uint8_t>(argument_count)}, terms}));
}
Bytes Package(const std::vector<Bytes>& elements) {
  NACRE_CHECK(elements.size() < 256);
  Bytes content{static_cast<uint8_t>(elements.size())};
  for (const Bytes& element : elements) Append(content, element);
  return Block({0x12}, content);
}
Bytes Buffer(const Bytes& content) { return Block({0x11}, Join({Integer(content.size()), content})); }
Bytes Return(const Bytes& value) { return Join({{0xa4}, value}); }
Bytes Store(const Bytes& value, const Bytes& target) { return Join({{0x70}, value, target}); }
Bytes If(const Bytes& condition, const Bytes& terms) { return Block({0xa0}, Join({condition, terms})); }
Bytes Notify(std::string_view device, uint8_t value) { return Join({{0x86}, Path(device), Integer(value)}); }
Bytes Local(unsigned index) { return {static_cast<uint8_t>(0x60 + index)}; }
Bytes Add(const Bytes& left, const Bytes& right) { return Join({{0x72}, left, right, {0x00}}); }
Bytes Index(const Bytes& package, unsigned index) { return Join({{0x88}, package, Integer(index), {0x00}}); }
Bytes Argument(unsigned index) { return {static_cast<uint8_t>(0x68 + index)}; }

Bytes Resources(std::initializer_list<Bytes> descriptors) { return Buffer(Join({Join(descriptors), {0x79, 0x00}})); }
Bytes IoPorts(uint16_t first, uint8_t count) {
  Bytes out{0x47, 0x01};  // decodes 16 bits
  Append(out, first);
  Append(out, first);
  out.insert(out.end(), {1, count});
  return out;
}
Bytes Irq(unsigned irq) {
  Bytes out{0x22};
  Append(out, static_cast<uint16_t>(1u << irq));
  return out;
}
Bytes DmaChannel(unsigned channel) {
  constexpr uint8_t k16Bits = 2;
  return {0x2a, static_cast<uint8_t>(1u << channel), channel < 4 ? uint8_t{0} : k16Bits};
}
Bytes FixedMemory(uint32_t address, uint32_t size_bytes) {
  Bytes out{0x86, 9, 0, 1};  // writable
  Append(out, address);
  Append(out, size_bytes);
  return out;
}
Bytes BusWindow(uint16_t first, uint16_t last) { return Window<uint16_t>(kBus, 0, first, last); }
Bytes IoWindow(uint16_t first, uint16_t last) { return Window<uint16_t>(kIo, 3, first, last); }
Bytes MemoryWindow32(uint32_t first, uint32_t last) { return Window<uint32_t>(kMemory, 1, first, last); }
Bytes MemoryWindow64(uint64_t first, uint64_t last) { return Window<uint64_t>(kMemory, 1, first, last); }

}  // namespace nacre::boot::aml
