#include "boot/table_loader.h"

#include <algorithm>
#include <string_view>

#include "base/bits.h"
#include "base/check.h"

namespace nacre::boot {

namespace {

constexpr size_t kRsdpBytes = 36, kCommandBytes = 128, kNameBytes = 56;
enum Command : uint32_t { kAllocate = 1, kAddPointer = 2, kAddChecksum = 3, kWritePointer = 4 };
enum Zone : uint8_t { kHigh = 1, kFSegment = 2 };

/// One command in the making; values are little-endian.
class Entry {
 public:
  explicit Entry(Command command) { Put<uint32_t>(command); }
  Entry& File(std::string_view name) {
    NACRE_CHECK(name.size() < kNameBytes);
    bytes_.insert(bytes_.end(), name.begin(), name.end());
    bytes_.resize(bytes_.size() + kNameBytes - name.size());
    return *this;
  }
  template <typename T>
  Entry& Put(T value) {
    const size_t at = bytes_.size();
    bytes_.resize(at + sizeof(T));
    StoreLe(bytes_.data() + at, value);
    return *this;
  }
  void AppendTo(std::vector<uint8_t>& script) {
    NACRE_CHECK(bytes_.size() <= kCommandBytes);
    bytes_.resize(kCommandBytes);
    script.insert(script.end(), bytes_.begin(), bytes_.end());
  }

 private:
  std::vector<uint8_t> bytes_;
};

}  // namespace

FirmwareTables BuildFirmwareTables(const AcpiConfig& config) {
  AcpiImage image = BuildAcpiImage(config, 0);
  FirmwareTables out;
  const auto allocate = [&](std::string_view file, uint32_t alignment, Zone zone) {
    Entry(kAllocate).File(file).Put<uint32_t>(alignment).Put<uint8_t>(zone).AppendTo(out.loader);
  };
  const auto file_of = [](size_t at) { return std::string_view(at < kRsdpBytes ? kAcpiRsdpFile : kAcpiTablesFile); };
  allocate(kAcpiRsdpFile, 16, kFSegment);
  allocate(kAcpiTablesFile, 64, kHigh);
  if (config.has_generation_id) allocate(kGenerationIdFile, kPageSize, kHigh);
  for (const AcpiImage::Pointer& pointer : image.pointers)
    Entry(kAddPointer)
        .File(file_of(pointer.at))
        .File(pointer.to_generation_id ? kGenerationIdFile : kAcpiTablesFile)
        .Put(static_cast<uint32_t>(pointer.at))
        .Put(pointer.size)
        .AppendTo(out.loader);
  // Sums over pointers, so after them. OVMF sums what stands in the checksum's place too: nothing may.
  for (const AcpiImage::Checksum& sum : image.checksums) {
    image.bytes[sum.at] = 0;
    Entry(kAddChecksum)
        .File(file_of(sum.at))
        .Put(static_cast<uint32_t>(sum.at))
        .Put(static_cast<uint32_t>(sum.start))
        .Put(static_cast<uint32_t>(sum.length))
        .AppendTo(out.loader);
  }
  if (config.has_generation_id)
    Entry(kWritePointer)
        .File(kGenerationIdPlaceFile)
        .File(kGenerationIdFile)
        .Put<uint32_t>(0)
        .Put<uint32_t>(kGenerationIdOffset)
        .Put<uint8_t>(8)
        .AppendTo(out.loader);
  const auto rsdp_end = image.bytes.begin() + kRsdpBytes;
  out.rsdp.assign(image.bytes.begin(), rsdp_end);
  std::fill(image.bytes.begin(), rsdp_end, uint8_t{0});
  out.tables = std::move(image.bytes);
  // Room for resources whose description depends on where firmware puts them.
  out.tables.resize(AlignUp(out.tables.size() + kKiB, kPageSize));
  return out;
}

}  // namespace nacre::boot
