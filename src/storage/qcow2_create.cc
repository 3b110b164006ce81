// Makes qcow2 images.

#include <fcntl.h>

#include <algorithm>
#include <bit>
#include <filesystem>

#include "storage/host_file.h"
#include "storage/image.h"
#include "storage/qcow2_check.h"
#include "storage/qcow2_disk.h"

namespace nacre::storage {
namespace {

using namespace qcow2;

/// Header, refcount table, refcount blocks, L1 table: in this order from the start of the file.
struct Layout {
  uint64_t table_clusters = 1, blocks = 1, l1_clusters = 0;
  uint64_t total() const { return 1 + table_clusters + blocks + l1_clusters; }
};

Layout Plan(const Geometry& g, uint64_t l1_size) {
  Layout layout;
  layout.l1_clusters = (l1_size * 8 + g.cluster_size() - 1) >> g.cluster_bits;
  while (true) {
    const uint64_t blocks = (layout.total() + g.refcount_block_entries() - 1) / g.refcount_block_entries();
    const uint64_t table = (blocks * 8 + g.cluster_size() - 1) >> g.cluster_bits;
    if (blocks <= layout.blocks && table <= layout.table_clusters) return layout;
    layout.blocks = std::max(layout.blocks, blocks);
    layout.table_clusters = std::max(layout.table_clusters, table);
  }
}

Result<Header> MakeHeader(const std::string& path, const Qcow2Options& options, uint64_t size_bytes) {
  Header header;
  const auto bits = static_cast<unsigned>(std::bit_width(options.cluster_size)) - 1;
  if (!std::has_single_bit(options.cluster_size) || bits < kMinClusterBits || bits > kMaxClusterBits)
    return Fail("disk '{}': a cluster size of {} bytes; choose a power of two from 512 to 2M", path,
                options.cluster_size);
  if (options.version != 2 && options.version != 3)
    return Fail("disk '{}': qcow2 version {}; choose 2 or 3", path, options.version);
  const bool features = options.extended_l2 || options.lazy_refcounts || options.refcount_bits != 16;
  if (options.version == 2 && features)
    return Fail("disk '{}': version 2 has no extended L2 entries, no lazy refcounts and refcounts of 16 bits", path);
  if (!std::has_single_bit(options.refcount_bits) || options.refcount_bits > 64)
    return Fail("disk '{}': refcounts of {} bits; choose a power of two up to 64", path, options.refcount_bits);
  if (options.extended_l2 && bits < kMinExtendedClusterBits)
    return Fail("disk '{}': extended L2 entries need clusters of 16K at least", path);
  header.version = options.version;
  header.geometry = {.cluster_bits = bits,
                     .refcount_order = static_cast<unsigned>(std::countr_zero(options.refcount_bits)),
                     .extended = options.extended_l2,
                     .version = options.version};
  header.size_bytes = size_bytes;
  const uint64_t l1_size =
      std::max<uint64_t>(1, (size_bytes + header.geometry.l2_span() - 1) / header.geometry.l2_span());
  if (l1_size * 8 > kMaxL1Bytes)
    return Fail("disk '{}': {} bytes are too much for clusters of {} bytes; choose larger clusters", path, size_bytes,
                options.cluster_size);
  header.l1_size = static_cast<uint32_t>(l1_size);
  if (options.extended_l2) header.incompatible |= kExtendedL2;
  if (options.lazy_refcounts) header.compatible |= kLazyRefcounts;
  if (!options.backing.empty()) {
    header.backing_name = options.backing;
    header.backing_format = FormatName(options.backing_format);
  }
  return header;
}

Status Fill(const std::string& path, int fd, Header& header) {
  const Geometry& g = header.geometry;
  const Layout layout = Plan(g, header.l1_size);
  header.refcount_table_offset = g.cluster_size();
  header.refcount_table_clusters = static_cast<uint32_t>(layout.table_clusters);
  const uint64_t first_block = 1 + layout.table_clusters;
  header.l1_offset = (first_block + layout.blocks) << g.cluster_bits;
  std::vector<uint8_t> table(layout.table_clusters << g.cluster_bits);
  for (uint64_t i = 0; i < layout.blocks; ++i) {
    StoreBe(&table[i * 8], (first_block + i) << g.cluster_bits);
    std::vector<uint8_t> block(g.cluster_size());
    const uint64_t base = i * g.refcount_block_entries();
    for (uint64_t c = base; c < std::min(base + g.refcount_block_entries(), layout.total()); ++c)
      StoreRefcount(block.data(), g.refcount_order, c - base, 1);
    NACRE_TRY_STATUS(WriteAt(path, fd, (first_block + i) << g.cluster_bits, block.data(), block.size()));
  }
  NACRE_TRY_STATUS(WriteAt(path, fd, header.refcount_table_offset, table.data(), table.size()));
  if (ftruncate(fd, static_cast<off_t>(layout.total() << g.cluster_bits)) != 0)
    return FailErrno("disk '{}': size", path);
  const auto bytes = BuildHeader(header);
  if (!bytes) return Context(bytes.error(), "disk '{}'", path);
  return WriteAt(path, fd, 0, bytes->data(), bytes->size());
}

/// `holes_only`: where nothing is yet; else everywhere.
Status WriteZerosIntoHoles(const std::string& path, int fd, uint64_t size_bytes, bool holes_only) {
  const std::vector<uint8_t> zeros(kMiB);
  for (uint64_t at = 0; at < size_bytes;) {
    uint64_t end = size_bytes;
    if (holes_only) {
      const off_t hole = lseek(fd, static_cast<off_t>(at), SEEK_HOLE);
      if (hole < 0 || static_cast<uint64_t>(hole) >= size_bytes) break;
      at = static_cast<uint64_t>(hole);
      if (const off_t data = lseek(fd, hole, SEEK_DATA); data >= 0) end = static_cast<uint64_t>(data);
    }
    const uint64_t piece = std::min<uint64_t>(zeros.size(), end - at);
    NACRE_TRY_STATUS(WriteAt(path, fd, at, zeros.data(), piece));
    at += piece;
  }
  return {};
}

Status Preallocate(const std::string& path, const std::string& temporary, Preallocation how, uint64_t size_bytes) {
  std::shared_ptr<AsyncIo> io = NACRE_TRY(AsyncIo::Create());
  Qcow2Disk::Parts parts;
  parts.path = path;
  parts.fd = Fd(open(temporary.c_str(), O_RDWR | O_CLOEXEC));
  if (!parts.fd.valid()) return FailErrno("disk '{}'", path);
  const int fd = parts.fd.get();
  parts.header = NACRE_TRY(ReadQcow2Header(path, fd));
  auto disk = NACRE_TRY(Qcow2Disk::Create(std::move(parts), io));
  NACRE_TRY_STATUS(disk->Preallocate(0, size_bytes));
  NACRE_TRY_STATUS(disk->Freeze());
  const uint64_t file_bytes = NACRE_TRY(FileBytes(path, fd));
  if (how == Preallocation::kFalloc && posix_fallocate(fd, 0, static_cast<off_t>(file_bytes)) != 0)
    return FailErrno("disk '{}': no room for {} bytes", path, file_bytes);
  if (how == Preallocation::kFull) return WriteZerosIntoHoles(path, fd, file_bytes, true);
  return {};
}

}  // namespace

Status FillQcow2(const std::string& path, const std::string& temporary, int fd, const Qcow2Options& options) {
  Header header = NACRE_TRY(MakeHeader(path, options, options.size_bytes));
  NACRE_TRY_STATUS(Fill(path, fd, header));
  if (options.preallocation == Preallocation::kOff) return {};
  return Preallocate(path, temporary, options.preallocation, options.size_bytes);
}

Status CreateRaw(const std::string& path, uint64_t size_bytes, Preallocation preallocation) {
  if (size_bytes == 0) return Fail("disk '{}': say how large it is to be", path);
  size_bytes = AlignUp(size_bytes, kSectorSize);
  return CreateWhole(path, [&](const std::string&, int fd) -> Status {
    if (ftruncate(fd, static_cast<off_t>(size_bytes)) != 0) return FailErrno("disk '{}': size", path);
    const bool allocate = preallocation == Preallocation::kFalloc || preallocation == Preallocation::kFull;
    if (allocate && posix_fallocate(fd, 0, static_cast<off_t>(size_bytes)) != 0)
      return FailErrno("disk '{}': no room for {} bytes", path, size_bytes);
    if (preallocation == Preallocation::kFull) return WriteZerosIntoHoles(path, fd, size_bytes, false);
    return {};
  });
}

Status CreateQcow2(const std::string& path, const Qcow2Options& options) {
  uint64_t size_bytes = options.size_bytes;
  if (!options.backing.empty()) {
    if (options.preallocation != Preallocation::kOff)
      return Fail("disk '{}': an image with a backing file cannot be preallocated", path);
    Header named;
    named.backing_name = options.backing;
    named.backing_format = FormatName(options.backing_format);
    const ImageLayer below = NACRE_TRY(BackingOf(path, named));
    std::shared_ptr<AsyncIo> io = NACRE_TRY(AsyncIo::Create(AsyncIo::Engine::kThreads));
    if (size_bytes == 0 || !options.backing_in_use) {
      const auto disk = OpenImage({.path = below.path, .format = below.format, .read_only = true}, io);
      if (!disk) return Context(disk.error(), "disk '{}': its backing file", path);
      if (size_bytes == 0) size_bytes = (*disk)->size_bytes();
    }
  }
  if (size_bytes == 0) return Fail("disk '{}': say how large it is to be", path);
  Qcow2Options sized = options;
  sized.size_bytes = AlignUp(size_bytes, kSectorSize);
  return CreateWhole(path, [&](const std::string& temporary, int fd) { return FillQcow2(path, temporary, fd, sized); });
}

}  // namespace nacre::storage
