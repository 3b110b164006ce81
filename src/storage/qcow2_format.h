#pragma once
// The qcow2 image format, versions 2 and 3, as bytes: header, header extensions, L2 entries, snapshot table. No
// state, no locks: any thread. Source: "Qcow2 Image File Format" (QEMU's docs/interop/qcow2). Everything is big-endian
// and untrusted: each parser bounds what it reads.

#include <array>
#include <bit>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/bits.h"
#include "base/result.h"

namespace nacre::storage::qcow2 {

inline constexpr uint32_t kMagic = 0x514649fb;  // "QFI\xfb"
inline constexpr unsigned kMinClusterBits = 9, kMaxClusterBits = 21, kMinExtendedClusterBits = 14;
inline constexpr uint64_t kMaxL1Bytes = 32 * kMiB, kMaxRefcountTableBytes = 8 * kMiB;
inline constexpr uint32_t kMaxSnapshots = 65536, kMaxBackingName = 1023;
inline constexpr uint64_t kMaxSnapshotTableBytes = 64 * kMiB;
inline constexpr unsigned kHeaderBytesV2 = 72, kHeaderBytesV3 = 104;

// incompatible_features
inline constexpr uint64_t kDirty = Bit(0), kCorrupt = Bit(1), kExternalData = Bit(2), kCompressionType = Bit(3),
                          kExtendedL2 = Bit(4);
// compatible_features
inline constexpr uint64_t kLazyRefcounts = Bit(0);
// autoclear_features
inline constexpr uint64_t kBitmaps = Bit(0);

// L1 and L2 entries
inline constexpr uint64_t kCopied = Bit(63), kCompressed = Bit(62), kReadsAsZeros = Bit(0);
inline constexpr uint64_t kOffsetMask = 0x00ff'ffff'ffff'fe00;
inline constexpr uint64_t kRefcountOffsetMask = ~uint64_t{0x1ff};

template <typename T>
T LoadBe(const void* from) {
  return std::byteswap(LoadLe<T>(from));
}
template <typename T>
void StoreBe(void* to, T value) {
  StoreLe<T>(to, std::byteswap(value));
}

struct Geometry {
  unsigned cluster_bits = 16;
  unsigned refcount_order = 4;
  bool extended = false;
  unsigned version = 3;

  uint64_t cluster_size() const { return Bit(cluster_bits); }
  uint64_t entry_bytes() const { return extended ? 16 : 8; }
  uint64_t l2_entries() const { return cluster_size() / entry_bytes(); }
  /// Guest bytes that an L2 table maps.
  uint64_t l2_span() const { return l2_entries() << cluster_bits; }
  /// Clusters that a refcount block counts.
  uint64_t refcount_block_entries() const { return cluster_size() * 8 >> refcount_order; }
  unsigned units() const { return extended ? 32 : 1; }
  uint64_t unit_size() const { return cluster_size() / units(); }
  uint32_t all_units() const { return extended ? ~uint32_t{0} : 1; }
  uint64_t max_refcount() const { return refcount_order == 6 ? ~uint64_t{0} : Bit(1U << refcount_order) - 1; }
};

struct Feature {
  uint8_t type = 0;  ///< 0 incompatible, 1 compatible, 2 autoclear
  uint8_t bit = 0;
  std::string name;
};

struct Header {
  unsigned version = 3;
  Geometry geometry;
  uint64_t size_bytes = 0;
  uint32_t crypt_method = 0;
  uint32_t l1_size = 0;
  uint64_t l1_offset = 0;
  uint64_t refcount_table_offset = 0;
  uint32_t refcount_table_clusters = 0;
  uint32_t snapshot_count = 0;
  uint64_t snapshots_offset = 0;
  uint64_t incompatible = 0, compatible = 0, autoclear = 0;
  uint32_t header_length = kHeaderBytesV3;
  uint8_t compression_type = 0;  ///< 0 deflate, 1 zstd
  std::string backing_name;
  std::string backing_format;  ///< empty: the header does not say
  std::string data_file;
  std::vector<Feature> features;
  uint64_t bitmap_directory_offset = 0, bitmap_directory_bytes = 0;
  uint32_t bitmap_count = 0;

  bool has_backing() const { return !backing_name.empty(); }
};

/// Offsets of the fields that are rewritten in place.
inline constexpr uint64_t kFieldBackingOffset = 8, kFieldSize = 24, kFieldL1 = 36, kFieldRefcountTable = 48,
                          kFieldIncompatible = 72, kFieldAutoclear = 88;

/// `start`: the first bytes of the file, as many as there are up to one cluster of the largest size. Refuses what does
/// not follow the specification; says nothing about features (CheckFeatures).
Result<Header> ParseHeader(std::span<const uint8_t> start);
/// Fails when something of the image is not supported here, with the names of what it is.
Status CheckFeatures(const Header& header);
/// The header, its extensions and the backing file's name, for the first cluster. Fails when it does not fit.
Result<std::vector<uint8_t>> BuildHeader(const Header& header);
bool LooksLikeQcow2(std::span<const uint8_t> start);

/// An L2 entry, decoded. Units are subclusters of an extended image; otherwise the cluster is one unit.
struct Entry {
  uint64_t host = 0;  ///< offset of the cluster in the file; 0: none
  bool copied = false;
  bool compressed = false;
  uint64_t descriptor = 0;  ///< compressed only
  uint32_t data = 0;        ///< units that the cluster holds
  uint32_t zero = 0;        ///< units that read as zeros

  bool operator==(const Entry&) const = default;
};

Entry DecodeEntry(const Geometry& geometry, const uint8_t* bytes);
void EncodeEntry(const Geometry& geometry, const Entry& entry, uint8_t* bytes);
/// False: reserved bits or an offset that is not aligned; no image we may write into.
bool EntryIsValid(const Geometry& geometry, const Entry& entry, const uint8_t* bytes);

struct CompressedRange {
  uint64_t offset = 0;
  uint64_t size_bytes = 0;  ///< at most; up to the end of its last sector
};
CompressedRange DecodeCompressed(const Geometry& geometry, uint64_t descriptor);
/// Fills `to` (a cluster) from a compressed cluster; false: damaged.
bool Decompress(uint8_t compression_type, std::span<const uint8_t> from, std::span<uint8_t> to);

/// A refcount of `order` (width 1 << order bits) in a refcount block.
uint64_t LoadRefcount(const uint8_t* block, unsigned order, uint64_t index);
void StoreRefcount(uint8_t* block, unsigned order, uint64_t index, uint64_t value);

struct Snapshot {
  uint64_t l1_offset = 0;
  uint32_t l1_size = 0;
  std::string id, name;
  uint64_t seconds = 0;  ///< since the Epoch
  uint64_t vm_state_bytes = 0;
  uint64_t disk_bytes = 0;  ///< 0: not said (version 2)
};
/// `table`: the bytes at the header's snapshots_offset, as many as there are up to kMaxSnapshotTableBytes.
Result<std::vector<Snapshot>> ParseSnapshots(std::span<const uint8_t> table, uint32_t count,
                                             uint64_t* table_bytes = nullptr);

}  // namespace nacre::storage::qcow2
