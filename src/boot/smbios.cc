#include "boot/smbios.h"

#include <algorithm>
#include <initializer_list>
#include <string_view>

#include "base/bits.h"

namespace nacre::boot {

namespace {

/// All structures, one after another (6.1).
class Tables {
 public:
  /// Begins a structure; its length is set by End.
  void Begin(uint8_t type, uint16_t handle) {
    start_ = bytes_.size();
    Put<uint8_t>(type);
    Put<uint8_t>(0);
    Put<uint16_t>(handle);
  }
  template <typename T>
  void Put(T value) {
    const size_t at = bytes_.size();
    bytes_.resize(at + sizeof(T));
    StoreLe(bytes_.data() + at, value);
  }
  void Zeros(size_t count) { bytes_.resize(bytes_.size() + count); }
  /// Strings are numbered from 1.
  void End(std::initializer_list<std::string_view> strings = {}) {
    bytes_[start_ + 1] = static_cast<uint8_t>(bytes_.size() - start_);
    for (const std::string_view text : strings) {
      bytes_.insert(bytes_.end(), text.begin(), text.end());
      bytes_.push_back(0);
    }
    if (strings.size() == 0) bytes_.push_back(0);
    bytes_.push_back(0);
    largest_ = std::max(largest_, bytes_.size() - start_);
    ++count_;
  }

  size_t largest() const { return largest_; }
  size_t count() const { return count_; }
  std::vector<uint8_t> Take() { return std::move(bytes_); }

 private:
  std::vector<uint8_t> bytes_;
  size_t start_ = 0, largest_ = 0, count_ = 0;
};

constexpr uint16_t kNone = 0xfffe;  // no information about errors

void AddSystem(Tables& tables) {
  tables.Begin(1, 0x100);
  tables.Put<uint8_t>(1);  // manufacturer
  tables.Put<uint8_t>(2);  // product
  tables.Put<uint8_t>(3);  // version
  tables.Put<uint8_t>(0);  // serial number
  tables.Zeros(16);        // UUID: not present
  tables.Put<uint8_t>(6);  // woken by the power switch
  tables.Put<uint8_t>(0);
  tables.Put<uint8_t>(0);
  tables.End({"Nacre", "Virtual machine", "pc"});

  tables.Begin(3, 0x300);
  tables.Put<uint8_t>(1);
  tables.Put<uint8_t>(1);  // type: other
  tables.Zeros(3);
  for (unsigned i = 0; i < 3; ++i) tables.Put<uint8_t>(3);  // boot-up, power supply, thermal: safe
  tables.Put<uint8_t>(2);                                   // security: unknown
  tables.Zeros(4 + 1 + 1 + 1 + 1);
  tables.End({"Nacre"});
}

void AddProcessors(Tables& tables, unsigned count) {
  for (unsigned i = 0; i < count; ++i) {
    tables.Begin(4, static_cast<uint16_t>(0x400 + i));
    tables.Put<uint8_t>(1);  // socket
    tables.Put<uint8_t>(3);  // central processor
    tables.Put<uint8_t>(1);  // family: other
    tables.Put<uint8_t>(2);  // manufacturer
    tables.Zeros(8);         // what CPUID says
    tables.Put<uint8_t>(0);
    tables.Put<uint8_t>(0);  // voltage
    tables.Zeros(2 + 2 + 2);
    tables.Put<uint8_t>(0x41);  // enabled, populated
    tables.Put<uint8_t>(1);     // upgrade: other
    for (unsigned cache = 0; cache < 3; ++cache) tables.Put<uint16_t>(0xffff);
    tables.Zeros(3);
    for (unsigned cores = 0; cores < 3; ++cores) tables.Put<uint8_t>(1);
    tables.Put<uint16_t>(1 << 2);  // 64-bit
    tables.Put<uint16_t>(1);
    tables.End({"CPU", "Nacre"});
  }
}

void AddMemory(Tables& tables, uint64_t bytes) {
  const auto kib = static_cast<uint32_t>(std::min<uint64_t>(bytes / kKiB, 0x7fffffff));
  tables.Begin(16, 0x1000);
  tables.Put<uint8_t>(1);  // location: other
  tables.Put<uint8_t>(3);  // system memory
  tables.Put<uint8_t>(3);  // no error correction
  tables.Put<uint32_t>(kib);
  tables.Put<uint16_t>(kNone);
  tables.Put<uint16_t>(1);
  tables.Put<uint64_t>(0);
  tables.End();

  tables.Begin(17, 0x1100);
  tables.Put<uint16_t>(0x1000);
  tables.Put<uint16_t>(kNone);
  tables.Put<uint16_t>(0xffff);
  tables.Put<uint16_t>(0xffff);
  const uint64_t mib = bytes / kMiB;
  tables.Put<uint16_t>(mib < 0x7fff ? static_cast<uint16_t>(mib) : uint16_t{0x7fff});
  tables.Put<uint8_t>(9);  // DIMM
  tables.Put<uint8_t>(0);
  tables.Put<uint8_t>(1);
  tables.Put<uint8_t>(0);
  tables.Put<uint8_t>(7);  // RAM
  tables.Put<uint16_t>(2);
  tables.Zeros(2 + 4 + 1);
  tables.Put<uint32_t>(mib < 0x7fff ? 0 : static_cast<uint32_t>(mib));
  tables.Zeros(2 + 2 + 2 + 2);
  tables.End({"DIMM 0"});

  tables.Begin(19, 0x1300);
  tables.Put<uint32_t>(0);
  tables.Put<uint32_t>(kib - 1);
  tables.Put<uint16_t>(0x1000);
  tables.Put<uint8_t>(1);
  tables.Zeros(16);
  tables.End();
}

void SetChecksum(std::vector<uint8_t>& bytes, size_t at, size_t start, size_t length) {
  uint8_t sum = 0;
  for (size_t i = start; i < start + length; ++i) sum = static_cast<uint8_t>(sum + bytes[i]);
  bytes[at] = static_cast<uint8_t>(bytes[at] - sum);
}

}  // namespace

SmbiosTables BuildSmbios(unsigned cpu_count, uint64_t memory_bytes) {
  Tables tables;
  AddSystem(tables);
  AddProcessors(tables, cpu_count);
  AddMemory(tables, memory_bytes);
  tables.Begin(32, 0x2000);
  tables.Zeros(6 + 1);  // no errors at boot
  tables.End();
  tables.Begin(127, 0x7f00);
  tables.End();

  SmbiosTables out;
  const auto largest = static_cast<uint16_t>(tables.largest());
  const auto count = static_cast<uint16_t>(tables.count());
  out.tables = tables.Take();
  // 5.2.1
  std::vector<uint8_t>& anchor = out.anchor;
  anchor.resize(31);
  std::ranges::copy(std::string_view("_SM_"), anchor.begin());
  anchor[5] = 31;
  anchor[6] = 2;
  anchor[7] = 8;
  StoreLe(&anchor[8], largest);
  std::ranges::copy(std::string_view("_DMI_"), anchor.begin() + 16);
  StoreLe(&anchor[22], static_cast<uint16_t>(out.tables.size()));
  StoreLe(&anchor[28], count);
  anchor[30] = 0x28;
  SetChecksum(anchor, 21, 16, 15);
  SetChecksum(anchor, 4, 0, 31);
  return out;
}

}  // namespace nacre::boot
