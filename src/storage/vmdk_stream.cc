#include "storage/vmdk_stream.h"

#include <zlib.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <thread>

#include "base/bits.h"
#include "base/check.h"
#include "storage/host_file.h"

namespace nacre::storage {
namespace {

constexpr uint64_t kSector = 512;
constexpr uint32_t kMagic = 0x564d444b;  // "KDMV" in the file
constexpr uint32_t kNewLineTest = 1 << 0, kCompressed = 1 << 16, kMarkers = 1 << 17;
constexpr uint64_t kDirectoryAtEnd = ~uint64_t{0};
constexpr uint16_t kDeflate = 1;
// What is written.
constexpr uint64_t kGrainBytes = 64 * kKiB;
constexpr uint64_t kTableEntries = 512;
constexpr uint64_t kTableSpan = kTableEntries * kGrainBytes;
constexpr uint64_t kDescriptorSectors = 20, kOverhead = 128;
constexpr size_t kMarkerHead = 12;  ///< of a grain: its sector on the disk, and its compressed bytes
enum Marker : uint32_t { kEnd = 0, kTable = 1, kDirectory = 2, kFooter = 3 };
// What is read.
constexpr uint64_t kMostGrainBytes = kMiB;

template <typename T>
void StoreLe(uint8_t* to, T value) {
  std::memcpy(to, &value, sizeof(value));
}
template <typename T>
T LoadLe(const uint8_t* from) {
  T value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

struct Header {
  uint32_t version = 0, flags = 0;
  uint64_t capacity = 0, grain = 0, descriptor = 0, descriptor_size = 0, overhead = 0;  ///< sectors
  uint16_t compression = 0;
};

std::array<uint8_t, kSector> HeaderBytes(uint64_t capacity, uint64_t directory) {
  std::array<uint8_t, kSector> bytes{};
  StoreLe(&bytes[0], kMagic);
  StoreLe(&bytes[4], uint32_t{3});
  StoreLe(&bytes[8], kNewLineTest | kCompressed | kMarkers);
  StoreLe(&bytes[12], capacity);
  StoreLe(&bytes[20], kGrainBytes / kSector);
  StoreLe(&bytes[28], uint64_t{1});
  StoreLe(&bytes[36], kDescriptorSectors);
  StoreLe(&bytes[44], static_cast<uint32_t>(kTableEntries));
  StoreLe(&bytes[56], directory);
  StoreLe(&bytes[64], kOverhead);
  constexpr std::array<uint8_t, 4> kNewLines{'\n', ' ', '\r', '\n'};
  std::ranges::copy(kNewLines, &bytes[73]);
  StoreLe(&bytes[77], kDeflate);
  return bytes;
}

Result<Header> ParseHeader(std::span<const uint8_t> bytes, const std::string& name) {
  if (bytes.size() < kSector || LoadLe<uint32_t>(bytes.data()) != kMagic) return Fail("{}: is no VMDK image", name);
  Header header{.version = LoadLe<uint32_t>(&bytes[4]),
                .flags = LoadLe<uint32_t>(&bytes[8]),
                .capacity = LoadLe<uint64_t>(&bytes[12]),
                .grain = LoadLe<uint64_t>(&bytes[20]),
                .descriptor = LoadLe<uint64_t>(&bytes[28]),
                .descriptor_size = LoadLe<uint64_t>(&bytes[36]),
                .overhead = LoadLe<uint64_t>(&bytes[64]),
                .compression = LoadLe<uint16_t>(&bytes[77])};
  if ((header.flags & (kCompressed | kMarkers)) != (kCompressed | kMarkers) || header.compression != kDeflate)
    return Fail("{}: is a VMDK image of another kind than streamOptimized", name);
  if (header.version < 1 || header.version > 3)
    return Fail("{}: VMDK version {}, known are 1 to 3", name, header.version);
  if (header.capacity > kMaxVmdkBytes / kSector)
    return Fail("{}: a disk of {} sectors, at most {} are supported", name, header.capacity, kMaxVmdkBytes / kSector);
  if (header.grain < 8 || !std::has_single_bit(header.grain) || header.grain > kMostGrainBytes / kSector)
    return Fail("{}: grains of {} sectors are not supported", name, header.grain);
  return header;
}

std::string Descriptor(uint64_t capacity, const std::string& name) {
  // As VMware's tools count them: of disks that the BIOS addresses by LBA.
  const uint64_t cylinders = std::min<uint64_t>(capacity / (255 * 63), 65535);
  std::string plain = name;
  std::ranges::replace_if(
      plain, [](char c) { return c == '"' || static_cast<uint8_t>(c) < ' '; }, '_');
  return fmt::format(
      "# Disk DescriptorFile\n"
      "version=1\n"
      "CID={:08x}\n"
      "parentCID=ffffffff\n"
      "createType=\"streamOptimized\"\n"
      "\n"
      "# Extent description\n"
      "RDONLY {} SPARSE \"{}\"\n"
      "\n"
      "# The Disk Data Base\n"
      "#DDB\n"
      "\n"
      "ddb.adapterType = \"lsilogic\"\n"
      "ddb.geometry.cylinders = \"{}\"\n"
      "ddb.geometry.heads = \"255\"\n"
      "ddb.geometry.sectors = \"63\"\n"
      "ddb.virtualHWVersion = \"4\"\n",
      0x6e616372u ^ static_cast<uint32_t>(capacity), capacity, plain.substr(0, 255), cylinders);
}

class Writer {
 public:
  Writer(ImageDisk& from, const std::function<Status(std::span<const uint8_t>)>& sink)
      : from_(from), sink_(sink), bytes_(kTableSpan), packed_(kTableEntries) {}

  Status Run(const std::string& name, const Progress& progress) {
    const uint64_t disk = AlignUp(from_.size_bytes(), kSector), capacity = disk / kSector;
    if (disk > kMaxVmdkBytes) return Fail("{}: a disk of more than {} TiB", name, kMaxVmdkBytes >> 40);
    std::vector<uint8_t> start(kOverhead * kSector);
    std::ranges::copy(HeaderBytes(capacity, kDirectoryAtEnd), start.begin());
    std::ranges::copy(Descriptor(capacity, name), start.begin() + kSector);
    NACRE_TRY_STATUS(Put(start));
    std::vector<uint32_t> directory;
    for (uint64_t at = 0; at < disk; at += kTableSpan) {
      if (progress && !progress(at, disk)) {
        errno = ECANCELED;
        return FailErrno("{}", name);
      }
      directory.push_back(NACRE_TRY(PutTableSpan(at, std::min(kTableSpan, from_.size_bytes() - at))));
    }
    const std::span entries(reinterpret_cast<const uint8_t*>(directory.data()), directory.size() * 4);
    NACRE_TRY_STATUS(PutMarker(kDirectory, entries.size()));
    const uint64_t place = sector_;
    NACRE_TRY_STATUS(PutPadded(entries));
    NACRE_TRY_STATUS(PutMarker(kFooter, kSector));
    NACRE_TRY_STATUS(Put(HeaderBytes(capacity, place)));
    NACRE_TRY_STATUS(PutMarker(kEnd, 0));
    if (progress) progress(disk, disk);
    return {};
  }

 private:
  Status Put(std::span<const uint8_t> bytes) {
    sector_ += bytes.size() / kSector;
    return sink_(bytes);
  }
  Status PutPadded(std::span<const uint8_t> bytes) {
    std::vector<uint8_t> whole(AlignUp(bytes.size(), kSector));
    std::ranges::copy(bytes, whole.begin());
    return Put(whole);
  }
  Status PutMarker(Marker type, uint64_t size_bytes) {
    std::array<uint8_t, kSector> bytes{};
    StoreLe(&bytes[0], AlignUp(size_bytes, kSector) / kSector);
    StoreLe(&bytes[12], static_cast<uint32_t>(type));
    return Put(bytes);
  }

  /// The grains that one table names, and the table. Its place; 0: all reads as zeros, and nothing was written.
  Result<uint32_t> PutTableSpan(uint64_t start, uint64_t size) {
    NACRE_TRY_STATUS(ReadSpan(start, size));
    Compress(start, AlignUp(size, kGrainBytes) / kGrainBytes);
    std::array<uint32_t, kTableEntries> table{};
    bool any = false;
    for (size_t i = 0; i < kTableEntries; ++i) {
      if (packed_[i].empty()) continue;
      any = true;
      table[i] = NACRE_TRY(Place());
      NACRE_TRY_STATUS(Put(packed_[i]));
      packed_[i].clear();
    }
    if (!any) return 0;
    const std::span entries(reinterpret_cast<const uint8_t*>(table.data()), sizeof(table));
    NACRE_TRY_STATUS(PutMarker(kTable, entries.size()));
    const uint32_t place = NACRE_TRY(Place());
    NACRE_TRY_STATUS(Put(entries));
    return place;
  }
  Result<uint32_t> Place() const {
    if (sector_ > UINT32_MAX) return Fail("the disk's content is more than the format can hold, 2 TiB");
    return static_cast<uint32_t>(sector_);
  }

  Status ReadSpan(uint64_t start, uint64_t size) {
    std::ranges::fill(bytes_, 0);
    for (uint64_t at = start; at < start + size;) {
      const ImageDisk::Extent extent = NACRE_TRY(from_.ExtentAt(at));
      const uint64_t piece = std::min(extent.size_bytes, start + size - at);
      if (!extent.zero)
        if (const int error = RunRequest(from_, DiskRequest::Kind::kRead, at, piece, &bytes_[at - start]); error != 0) {
          errno = error;
          return FailErrno("the disk at {}", at);
        }
      at += piece;
    }
    return {};
  }

  /// packed_[i]: a grain's marker and data, padded; empty: it is zeros.
  void Compress(uint64_t start, uint64_t grains) {
    std::atomic<size_t> next = 0;
    const auto work = [&] {
      for (size_t i = next++; i < grains; i = next++) CompressGrain(start / kSector + i * (kGrainBytes / kSector), i);
    };
    std::vector<std::jthread> helpers;
    const unsigned processors = std::clamp(std::thread::hardware_concurrency(), 1u, 16u);
    for (unsigned i = 1; i < processors; ++i) helpers.emplace_back(work);
    work();
  }
  void CompressGrain(uint64_t sector, size_t index) {
    const uint8_t* grain = &bytes_[index * kGrainBytes];
    if (grain[0] == 0 && std::memcmp(grain, grain + 1, kGrainBytes - 1) == 0) return;
    uLongf size = compressBound(kGrainBytes);
    std::vector<uint8_t>& packed = packed_[index];
    packed.resize(kMarkerHead + size);
    // There is room for whatever comes: it cannot fail but for memory, which ends the process anyway.
    NACRE_CHECK(compress2(&packed[kMarkerHead], &size, grain, kGrainBytes, Z_DEFAULT_COMPRESSION) == Z_OK);
    StoreLe(&packed[0], sector);
    StoreLe(&packed[8], static_cast<uint32_t>(size));
    packed.resize(kMarkerHead + size);
    packed.resize(AlignUp(packed.size(), kSector));
  }

  ImageDisk& from_;
  const std::function<Status(std::span<const uint8_t>)>& sink_;
  uint64_t sector_ = 0;  ///< of what comes next
  std::vector<uint8_t> bytes_;
  std::vector<std::vector<uint8_t>> packed_;
};

class Reader {
 public:
  Reader(const VmdkSource& source, Disk& to) : source_(source), to_(to) {}

  Status Run(const Progress& progress) {
    std::array<uint8_t, kSector> bytes;
    NACRE_TRY_STATUS(Read(0, bytes));
    header_ = NACRE_TRY(ParseHeader(bytes, source_.name));
    if (header_.capacity * kSector > to_.size_bytes())
      return Fail("{}: its disk is larger than the new one", source_.name);
    grain_.resize(header_.grain * kSector);
    const uint64_t sectors = source_.size_bytes / kSector;
    uint64_t at = std::max<uint64_t>(header_.overhead, 1);
    for (unsigned step = 0; at < sectors; ++step) {
      if (progress && step % 64 == 0 && !progress(at * kSector, source_.size_bytes)) {
        errno = ECANCELED;
        return FailErrno("{}", source_.name);
      }
      NACRE_TRY_STATUS(Read(at, bytes));
      const auto value = LoadLe<uint64_t>(&bytes[0]);
      const auto size = LoadLe<uint32_t>(&bytes[8]);
      if (size != 0) {
        NACRE_TRY_STATUS(ReadGrain(at, value, size, bytes));
        at += AlignUp(kMarkerHead + size, kSector) / kSector;
        continue;
      }
      const auto type = LoadLe<uint32_t>(&bytes[12]);
      if (type == kEnd) return {};
      if (type > kFooter) return Damaged(at, fmt::format("a marker of unknown type {}", type));
      if (value > sectors - at - 1) return Damaged(at, "a table that ends behind the file");
      at += 1 + value;
    }
    return Fail("{}: ends without its last marker: it is cut off", source_.name);
  }

 private:
  std::unexpected<Error> Damaged(uint64_t sector, std::string_view what) const {
    return Fail("{}: damaged at sector {}: {}", source_.name, sector, what);
  }
  Status Read(uint64_t sector, std::span<uint8_t> bytes) const {
    const uint64_t at = sector * kSector;
    if (at > source_.size_bytes || bytes.size() > source_.size_bytes - at)
      return Fail("{}: ends too early: it is cut off", source_.name);
    return ReadAt(source_.name, source_.fd, source_.offset + at, bytes.data(), bytes.size());
  }

  Status ReadGrain(uint64_t at, uint64_t sector, uint32_t size, std::span<const uint8_t> first) {
    if (sector >= header_.capacity) return Damaged(at, "a grain behind the end of the disk");
    if (size > compressBound(grain_.size()) + kSector) return Damaged(at, fmt::format("a grain of {} bytes", size));
    packed_.resize(AlignUp(kMarkerHead + size, kSector));
    std::ranges::copy(first, packed_.begin());
    // The last sector may not be there in full.
    if (kMarkerHead + size > kSector)
      NACRE_TRY_STATUS(Read(at + 1, std::span(packed_).subspan(kSector, kMarkerHead + size - kSector)));
    uLongf got = grain_.size();
    const uint64_t wanted = std::min<uint64_t>(header_.capacity - sector, header_.grain) * kSector;
    if (uncompress(grain_.data(), &got, &packed_[kMarkerHead], size) != Z_OK || got < wanted)
      return Damaged(at, "a grain that does not decompress");
    if (const int error = RunRequest(to_, DiskRequest::Kind::kWrite, sector * kSector, wanted, grain_.data());
        error != 0) {
      errno = error;
      return FailErrno("the new disk");
    }
    return {};
  }

  const VmdkSource& source_;
  Disk& to_;
  Header header_;
  std::vector<uint8_t> grain_, packed_;
};

}  // namespace

Status WriteVmdkStream(ImageDisk& from, const std::string& name,
                       const std::function<Status(std::span<const uint8_t>)>& sink, const Progress& progress) {
  return Writer(from, sink).Run(name, progress);
}

bool LooksLikeVmdkStream(std::span<const uint8_t> start) {
  if (start.size() < kSector || LoadLe<uint32_t>(start.data()) != kMagic) return false;
  return (LoadLe<uint32_t>(&start[8]) & kMarkers) != 0;
}

Result<uint64_t> VmdkStreamDiskBytes(const VmdkSource& source) {
  std::array<uint8_t, kSector> bytes;
  if (source.size_bytes < bytes.size()) return Fail("{}: is no VMDK image", source.name);
  NACRE_TRY_STATUS(ReadAt(source.name, source.fd, source.offset, bytes.data(), bytes.size()));
  return NACRE_TRY(ParseHeader(bytes, source.name)).capacity * kSector;
}

Status ReadVmdkStream(const VmdkSource& source, Disk& to, const Progress& progress) {
  return Reader(source, to).Run(progress);
}

}  // namespace nacre::storage
