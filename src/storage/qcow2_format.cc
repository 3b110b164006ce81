#include "storage/qcow2_format.h"

#include <zlib.h>
#include <zstd.h>

#include <algorithm>

namespace nacre::storage::qcow2 {
namespace {

constexpr uint32_t kExtensionEnd = 0, kExtensionBackingFormat = 0xe2792aca, kExtensionFeatures = 0x6803f857,
                   kExtensionBitmaps = 0x23852875, kExtensionDataFile = 0x44415441;
constexpr size_t kFeatureBytes = 48;

std::string Text(std::span<const uint8_t> bytes) { return {reinterpret_cast<const char*>(bytes.data()), bytes.size()}; }

Status ParseExtension(Header& header, uint32_t type, std::span<const uint8_t> data) {
  switch (type) {
    case kExtensionBackingFormat:
      header.backing_format = Text(data.first(std::min<size_t>(data.size(), 64)));
      break;
    case kExtensionDataFile:
      header.data_file = Text(data.first(std::min<size_t>(data.size(), kMaxBackingName)));
      break;
    case kExtensionFeatures:
      for (size_t at = 0; at + kFeatureBytes <= data.size() && header.features.size() < 192; at += kFeatureBytes) {
        std::string name = Text(data.subspan(at + 2, kFeatureBytes - 2));
        name.resize(std::min(name.find('\0'), name.size()));
        for (char& c : name)
          if (c < ' ' || c > '~') c = '?';
        header.features.push_back({data[at], data[at + 1], std::move(name)});
      }
      break;
    case kExtensionBitmaps:
      if (data.size() != 24) return Fail("the bitmaps extension has {} bytes instead of 24", data.size());
      header.bitmap_count = LoadBe<uint32_t>(&data[0]);
      header.bitmap_directory_bytes = LoadBe<uint64_t>(&data[8]);
      header.bitmap_directory_offset = LoadBe<uint64_t>(&data[16]);
      break;
    default:
      break;  // may be ignored
  }
  return {};
}

Status ParseExtensions(Header& header, std::span<const uint8_t> start, uint64_t end) {
  uint64_t at = header.header_length;
  while (at + 8 <= end) {
    const uint32_t type = LoadBe<uint32_t>(&start[at]);
    const uint32_t length = LoadBe<uint32_t>(&start[at + 4]);
    if (type == kExtensionEnd) return {};
    at += 8;
    if (length > end - at) return Fail("a header extension ends outside its cluster");
    NACRE_TRY_STATUS(ParseExtension(header, type, start.subspan(at, length)));
    at += AlignUp(length, 8);
  }
  return {};
}

Status ParseVersion3(Header& header, std::span<const uint8_t> start) {
  if (start.size() < kHeaderBytesV3) return Fail("the file ends inside the header");
  header.incompatible = LoadBe<uint64_t>(&start[72]);
  header.compatible = LoadBe<uint64_t>(&start[80]);
  header.autoclear = LoadBe<uint64_t>(&start[88]);
  const uint32_t order = LoadBe<uint32_t>(&start[96]);
  if (order > 6) return Fail("refcount_order {}, at most 6 is allowed", order);
  header.geometry.refcount_order = order;
  header.header_length = LoadBe<uint32_t>(&start[100]);
  if (header.header_length < kHeaderBytesV3 || header.header_length % 8 != 0 ||
      header.header_length > header.geometry.cluster_size() || header.header_length > start.size())
    return Fail("header_length {} is not possible", header.header_length);
  if (header.header_length > 104) header.compression_type = start[104];
  header.geometry.extended = (header.incompatible & kExtendedL2) != 0;
  if (header.geometry.extended && header.geometry.cluster_bits < kMinExtendedClusterBits)
    return Fail("extended L2 entries with clusters of {} bytes (16 KiB is the least)", header.geometry.cluster_size());
  return {};
}

Status ParseBackingName(Header& header, std::span<const uint8_t> start) {
  const uint64_t offset = LoadBe<uint64_t>(&start[8]);
  const uint32_t length = LoadBe<uint32_t>(&start[16]);
  if (offset == 0 || length == 0) return {};
  if (length > kMaxBackingName) return Fail("the backing file's name has {} bytes, at most 1023 are allowed", length);
  if (offset > start.size() || length > start.size() - offset)
    return Fail("the backing file's name is outside the first cluster");
  header.backing_name = Text(start.subspan(offset, length));
  if (header.backing_name.find('\0') != std::string::npos) return Fail("the backing file's name holds a zero byte");
  return {};
}

Status CheckTables(const Header& header) {
  const Geometry& g = header.geometry;
  const uint64_t cluster = g.cluster_size();
  const auto aligned = [&](uint64_t offset) { return offset % cluster == 0 && offset <= kOffsetMask; };
  if (uint64_t{header.l1_size} * 8 > kMaxL1Bytes)
    return Fail("an L1 table of {} entries, at most {} are supported", header.l1_size, kMaxL1Bytes / 8);
  if (!aligned(header.l1_offset)) return Fail("the L1 table's offset {:#x} is not possible", header.l1_offset);
  const uint64_t span = g.l2_span();
  if (header.size_bytes > 0 && (header.size_bytes - 1) / span >= header.l1_size)
    return Fail("the L1 table of {} entries is too small for a disk of {} bytes", header.l1_size, header.size_bytes);
  if (header.l1_size > 0 && header.l1_offset == 0) return Fail("the L1 table has no place");
  if (!aligned(header.refcount_table_offset) || header.refcount_table_offset == 0)
    return Fail("the refcount table's offset {:#x} is not possible", header.refcount_table_offset);
  if (header.refcount_table_clusters == 0 ||
      uint64_t{header.refcount_table_clusters} << g.cluster_bits > std::max(kMaxRefcountTableBytes, cluster))
    return Fail("a refcount table of {} clusters is not possible or not supported", header.refcount_table_clusters);
  if (header.snapshot_count > kMaxSnapshots)
    return Fail("{} internal snapshots, at most {} are supported", header.snapshot_count, kMaxSnapshots);
  if (header.snapshot_count > 0 && !aligned(header.snapshots_offset))
    return Fail("the snapshot table's offset {:#x} is not possible", header.snapshots_offset);
  return {};
}

}  // namespace

bool LooksLikeQcow2(std::span<const uint8_t> start) {
  return start.size() >= 4 && LoadBe<uint32_t>(start.data()) == kMagic;
}

Result<Header> ParseHeader(std::span<const uint8_t> start) {
  if (!LooksLikeQcow2(start)) return Fail("not a qcow2 image (no signature QFI)");
  if (start.size() < kHeaderBytesV2) return Fail("the file ends inside the header");
  Header header;
  header.version = LoadBe<uint32_t>(&start[4]);
  if (header.version == 1) return Fail("format qcow (version 1); convert it with `nacre disk convert`");
  if (header.version != 2 && header.version != 3) return Fail("qcow2 version {}, known are 2 and 3", header.version);
  const uint32_t cluster_bits = LoadBe<uint32_t>(&start[20]);
  if (cluster_bits < kMinClusterBits || cluster_bits > kMaxClusterBits)
    return Fail("cluster_bits {}, supported are {} to {}", cluster_bits, kMinClusterBits, kMaxClusterBits);
  header.geometry.cluster_bits = cluster_bits;
  header.geometry.version = header.version;
  header.size_bytes = LoadBe<uint64_t>(&start[24]);
  if (header.size_bytes > Bit(62)) return Fail("a disk of {} bytes is not possible", header.size_bytes);
  header.crypt_method = LoadBe<uint32_t>(&start[32]);
  header.l1_size = LoadBe<uint32_t>(&start[36]);
  header.l1_offset = LoadBe<uint64_t>(&start[40]);
  header.refcount_table_offset = LoadBe<uint64_t>(&start[48]);
  header.refcount_table_clusters = LoadBe<uint32_t>(&start[56]);
  header.snapshot_count = LoadBe<uint32_t>(&start[60]);
  header.snapshots_offset = LoadBe<uint64_t>(&start[64]);
  header.header_length = kHeaderBytesV2;
  start = start.first(std::min<uint64_t>(start.size(), header.geometry.cluster_size()));
  if (header.version == 3) NACRE_TRY_STATUS(ParseVersion3(header, start));
  NACRE_TRY_STATUS(ParseBackingName(header, start));
  const uint64_t name_offset = LoadBe<uint64_t>(&start[8]);
  const uint64_t extensions_end = header.has_backing() ? std::min<uint64_t>(name_offset, start.size()) : start.size();
  NACRE_TRY_STATUS(ParseExtensions(header, start, extensions_end));
  NACRE_TRY_STATUS(CheckTables(header));
  return header;
}

Status CheckFeatures(const Header& header) {
  if (header.crypt_method == 2) return Fail("encrypted with LUKS, which is not supported; decrypt it with qemu-img");
  if (header.crypt_method != 0) return Fail("encrypted (method {}), which is not supported", header.crypt_method);
  const uint64_t known = kDirty | kCorrupt | kExternalData | kCompressionType | kExtendedL2;
  std::string names;
  for (unsigned bit = 0; bit < 64; ++bit) {
    if ((header.incompatible & ~known & Bit(bit)) == 0) continue;
    const auto named = std::ranges::find_if(
        header.features, [bit](const Feature& f) { return f.type == 0 && f.bit == bit && !f.name.empty(); });
    names += fmt::format("{}{}", names.empty() ? "" : ", ",
                         named != header.features.end() ? named->name : fmt::format("unknown bit {}", bit));
  }
  if (!names.empty()) return Fail("needs features that Nacre does not know: {}", names);
  if (header.incompatible & kExternalData)
    return Fail(
        "keeps its data in an external file ('{}'), which is not supported; convert it with `nacre disk convert`",
        header.data_file);
  const bool typed = (header.incompatible & kCompressionType) != 0;
  if (typed != (header.compression_type != 0) || header.compression_type > 1)
    return Fail("compression type {} is not known", header.compression_type);
  return {};
}

Result<std::vector<uint8_t>> BuildHeader(const Header& header) {
  std::vector<uint8_t> bytes(header.version == 2 ? kHeaderBytesV2 : 112);
  const auto put32 = [&](size_t at, uint32_t value) { StoreBe(&bytes[at], value); };
  const auto put64 = [&](size_t at, uint64_t value) { StoreBe(&bytes[at], value); };
  put32(0, kMagic);
  put32(4, header.version);
  put32(20, header.geometry.cluster_bits);
  put64(24, header.size_bytes);
  put32(32, header.crypt_method);
  put32(36, header.l1_size);
  put64(40, header.l1_offset);
  put64(48, header.refcount_table_offset);
  put32(56, header.refcount_table_clusters);
  put32(60, header.snapshot_count);
  put64(64, header.snapshots_offset);
  if (header.version >= 3) {
    put64(72, header.incompatible);
    put64(80, header.compatible);
    put64(88, header.autoclear);
    put32(96, header.geometry.refcount_order);
    put32(100, 112);
    bytes[104] = header.compression_type;
  }
  const auto extension = [&](uint32_t type, std::span<const uint8_t> data) {
    const size_t at = bytes.size();
    bytes.resize(at + 8 + AlignUp(data.size(), 8));
    StoreBe(&bytes[at], type);
    StoreBe(&bytes[at + 4], static_cast<uint32_t>(data.size()));
    std::ranges::copy(data, &bytes[at + 8]);
  };
  const auto as_bytes = [](const std::string& text) {
    return std::span(reinterpret_cast<const uint8_t*>(text.data()), text.size());
  };
  if (!header.backing_format.empty()) extension(kExtensionBackingFormat, as_bytes(header.backing_format));
  if (header.version >= 3 && header.geometry.cluster_size() >= 4096) {
    constexpr std::array<std::pair<uint16_t, const char*>, 7> kNames{{{0x0000, "dirty bit"},
                                                                      {0x0001, "corrupt bit"},
                                                                      {0x0002, "external data file"},
                                                                      {0x0003, "compression type"},
                                                                      {0x0004, "extended L2 entries"},
                                                                      {0x0100, "lazy refcounts"},
                                                                      {0x0200, "bitmaps"}}};
    std::vector<uint8_t> table(kNames.size() * kFeatureBytes);
    for (size_t i = 0; i < kNames.size(); ++i) {
      table[i * kFeatureBytes] = static_cast<uint8_t>(kNames[i].first >> 8);
      table[i * kFeatureBytes + 1] = static_cast<uint8_t>(kNames[i].first);
      std::strncpy(reinterpret_cast<char*>(&table[i * kFeatureBytes + 2]), kNames[i].second, kFeatureBytes - 2);
    }
    extension(kExtensionFeatures, table);
  }
  extension(kExtensionEnd, {});
  if (header.has_backing()) {
    if (header.backing_name.size() > kMaxBackingName)
      return Fail("the backing file's name has {} bytes, at most {} fit", header.backing_name.size(), kMaxBackingName);
    const size_t at = bytes.size();
    StoreBe(&bytes[8], static_cast<uint64_t>(at));
    StoreBe(&bytes[16], static_cast<uint32_t>(header.backing_name.size()));
    bytes.insert(bytes.end(), header.backing_name.begin(), header.backing_name.end());
  }
  if (bytes.size() > header.geometry.cluster_size())
    return Fail("the header with the backing file's name does not fit into a cluster of {} bytes",
                header.geometry.cluster_size());
  return bytes;
}

Entry DecodeEntry(const Geometry& geometry, const uint8_t* bytes) {
  const uint64_t word = LoadBe<uint64_t>(bytes);
  Entry entry;
  if (word & kCompressed) {
    entry.compressed = true;
    entry.descriptor = word & (kCompressed - 1);
    return entry;
  }
  entry.host = word & kOffsetMask;
  entry.copied = (word & kCopied) != 0;
  if (geometry.extended) {
    const uint64_t bitmap = LoadBe<uint64_t>(bytes + 8);
    entry.data = static_cast<uint32_t>(bitmap);
    entry.zero = static_cast<uint32_t>(bitmap >> 32);
  } else if (geometry.version >= 3 && (word & kReadsAsZeros)) {
    entry.zero = 1;
  } else {
    entry.data = entry.host != 0 ? 1 : 0;
  }
  return entry;
}

bool EntryIsValid(const Geometry& geometry, const Entry& entry, const uint8_t* bytes) {
  const uint64_t word = LoadBe<uint64_t>(bytes);
  if (entry.compressed) return (word & kCopied) == 0;
  if (word & ~(kOffsetMask | kCopied | kReadsAsZeros)) return false;
  if ((geometry.extended || geometry.version < 3) && (word & kReadsAsZeros)) return false;
  if (entry.host % geometry.cluster_size() != 0) return false;
  if (entry.copied && entry.host == 0) return false;
  if (entry.data & entry.zero) return false;
  return entry.data == 0 || entry.host != 0;
}

void EncodeEntry(const Geometry& geometry, const Entry& entry, uint8_t* bytes) {
  if (entry.compressed) {
    StoreBe(bytes, entry.descriptor | kCompressed);
    if (geometry.extended) StoreBe(bytes + 8, uint64_t{0});
    return;
  }
  uint64_t word = entry.host | (entry.copied ? kCopied : 0);
  if (geometry.extended)
    StoreBe(bytes + 8, uint64_t{entry.zero} << 32 | entry.data);
  else if (entry.zero)
    word |= kReadsAsZeros;
  StoreBe(bytes, word);
}

CompressedRange DecodeCompressed(const Geometry& geometry, uint64_t descriptor) {
  const unsigned split = 62 - (geometry.cluster_bits - 8);
  const uint64_t offset = descriptor & (Bit(split) - 1);
  const uint64_t sectors = (descriptor & (Bit(62) - 1)) >> split;
  return {offset, (sectors + 1) * 512 - offset % 512};
}

bool Decompress(uint8_t compression_type, std::span<const uint8_t> from, std::span<uint8_t> to) {
  if (compression_type == 1) {
    ZSTD_DCtx* context = ZSTD_createDCtx();
    if (!context) return false;
    ZSTD_inBuffer in{from.data(), from.size(), 0};
    ZSTD_outBuffer out{to.data(), to.size(), 0};
    // The input ends in the rest of its last sector: frames are taken until the cluster is full.
    while (out.pos < out.size) {
      const size_t in_before = in.pos, out_before = out.pos;
      if (ZSTD_isError(ZSTD_decompressStream(context, &out, &in))) break;
      if (in.pos == in_before && out.pos == out_before) break;
    }
    ZSTD_freeDCtx(context);
    return out.pos == out.size;
  }
  z_stream stream{};
  if (inflateInit2(&stream, -12) != Z_OK) return false;
  stream.next_in = const_cast<uint8_t*>(from.data());
  stream.avail_in = static_cast<uInt>(from.size());
  stream.next_out = to.data();
  stream.avail_out = static_cast<uInt>(to.size());
  const int result = inflate(&stream, Z_FINISH);
  inflateEnd(&stream);
  return stream.avail_out == 0 && (result == Z_STREAM_END || result == Z_BUF_ERROR || result == Z_OK);
}

uint64_t LoadRefcount(const uint8_t* block, unsigned order, uint64_t index) {
  switch (order) {
    case 3:
      return block[index];
    case 4:
      return LoadBe<uint16_t>(block + index * 2);
    case 5:
      return LoadBe<uint32_t>(block + index * 4);
    case 6:
      return LoadBe<uint64_t>(block + index * 8);
    default: {
      const unsigned per_byte = 8U >> order, width = 1U << order;
      return Bits(block[index / per_byte], static_cast<unsigned>(index % per_byte) * width, width);
    }
  }
}

void StoreRefcount(uint8_t* block, unsigned order, uint64_t index, uint64_t value) {
  switch (order) {
    case 3:
      block[index] = static_cast<uint8_t>(value);
      break;
    case 4:
      StoreBe(block + index * 2, static_cast<uint16_t>(value));
      break;
    case 5:
      StoreBe(block + index * 4, static_cast<uint32_t>(value));
      break;
    case 6:
      StoreBe(block + index * 8, value);
      break;
    default: {
      const unsigned per_byte = 8U >> order, width = 1U << order;
      const unsigned shift = static_cast<unsigned>(index % per_byte) * width;
      uint8_t& byte = block[index / per_byte];
      const auto mask = static_cast<uint8_t>((Bit(width) - 1) << shift);
      byte = static_cast<uint8_t>((byte & ~mask) | ((value << shift) & mask));
    }
  }
}

Result<std::vector<Snapshot>> ParseSnapshots(std::span<const uint8_t> table, uint32_t count, uint64_t* table_bytes) {
  std::vector<Snapshot> snapshots;
  uint64_t at = 0;
  for (uint32_t i = 0; i < count; ++i) {
    if (at > table.size() || table.size() - at < 40) return Fail("the snapshot table ends in entry {}", i);
    const uint8_t* entry = &table[at];
    const uint64_t id_bytes = LoadBe<uint16_t>(entry + 12), name_bytes = LoadBe<uint16_t>(entry + 14);
    const uint64_t extra = LoadBe<uint32_t>(entry + 36);
    if (extra > 1024 || 40 + extra + id_bytes + name_bytes > table.size() - at)
      return Fail("the snapshot table's entry {} is damaged", i);
    Snapshot snapshot;
    snapshot.l1_offset = LoadBe<uint64_t>(entry);
    snapshot.l1_size = LoadBe<uint32_t>(entry + 8);
    snapshot.seconds = LoadBe<uint32_t>(entry + 16);
    snapshot.vm_state_bytes = extra >= 8 ? LoadBe<uint64_t>(entry + 40) : LoadBe<uint32_t>(entry + 32);
    if (extra >= 16) snapshot.disk_bytes = LoadBe<uint64_t>(entry + 48);
    snapshot.id = Text(table.subspan(at + 40 + extra, id_bytes));
    snapshot.name = Text(table.subspan(at + 40 + extra + id_bytes, name_bytes));
    snapshots.push_back(std::move(snapshot));
    at += AlignUp(40 + extra + id_bytes + name_bytes, 8);
  }
  if (table_bytes) *table_bytes = std::min<uint64_t>(at, table.size());
  return snapshots;
}

}  // namespace nacre::storage::qcow2
