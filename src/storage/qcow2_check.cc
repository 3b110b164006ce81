#include "storage/qcow2_check.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <memory>

#include "storage/host_file.h"

namespace nacre::storage {
namespace {

using namespace qcow2;

constexpr size_t kMostFaultsTold = 100;
constexpr uint64_t kChunkClusters = 4096;
constexpr size_t kMostChunks = 65536;  // 1 GiB of counters
constexpr uint64_t kMostClusters = Bit(33);

/// How often each cluster of the file is referred to.
class Counters {
 public:
  explicit Counters(uint64_t clusters) : chunks_((clusters + kChunkClusters - 1) / kChunkClusters) {}
  uint64_t Get(uint64_t cluster) const {
    const uint64_t chunk = cluster / kChunkClusters;
    return chunk < chunks_.size() && chunks_[chunk] ? chunks_[chunk][cluster % kChunkClusters] : 0;
  }
  /// False: too many.
  bool Add(uint64_t cluster) {
    const uint64_t chunk = cluster / kChunkClusters;
    if (chunk >= chunks_.size()) chunks_.resize(chunk + 1);
    if (!chunks_[chunk]) {
      if (++used_ > kMostChunks) return false;
      chunks_[chunk] = std::make_unique<uint32_t[]>(kChunkClusters);
    }
    ++chunks_[chunk][cluster % kChunkClusters];
    return true;
  }
  void Clear(uint64_t cluster) {
    if (Get(cluster) != 0) chunks_[cluster / kChunkClusters][cluster % kChunkClusters] = 0;
  }
  uint64_t end() const { return chunks_.size() * kChunkClusters; }
  bool Any(uint64_t first, uint64_t last) const {
    for (uint64_t c = first; c <= last && c < end(); ++c) {
      if (!chunks_[c / kChunkClusters])
        c = AlignDown(c, kChunkClusters) + kChunkClusters - 1;
      else if (Get(c) != 0)
        return true;
    }
    return false;
  }

 private:
  std::vector<std::unique_ptr<uint32_t[]>> chunks_;
  size_t used_ = 0;
};

class Checker {
 public:
  Checker(std::string path, int fd, Header header, uint64_t file_bytes)
      : path_(std::move(path)),
        fd_(fd),
        header_(std::move(header)),
        geometry_(header_.geometry),
        file_bytes_(file_bytes),
        clusters_((file_bytes + geometry_.cluster_size() - 1) >> geometry_.cluster_bits),
        counters_(clusters_) {}

  Status Scan();
  /// After Scan.
  Status Compare() {
    NACRE_TRY_STATUS(CompareRefcounts());
    return CheckOwnership();
  }
  /// Instead of Compare.
  Status Repair();
  CheckReport& report() { return report_; }

 private:
  template <typename... Args>
  void Fault(fmt::format_string<Args...> format, Args&&... args) {
    ++report_.corruptions;
    Tell(fmt::format(format, std::forward<Args>(args)...));
  }
  void Tell(std::string text) {
    if (report_.faults.size() < kMostFaultsTold) report_.faults.push_back(std::move(text));
  }
  Status Count(uint64_t offset, uint64_t size_bytes, std::string_view what);
  Status CountTable(uint64_t l1_offset, uint64_t l1_size, bool active);
  Status CountL2(uint64_t table, bool active, uint64_t guest);
  Status CountEntry(const uint8_t* bytes, bool active, uint64_t guest);
  Status CountSnapshots();
  Status CountBitmaps();
  Status CountRefcountTable();
  Status CheckOwnership();
  Status CheckOwner(uint64_t place, std::vector<uint8_t>& word, uint64_t offset, uint64_t guest);
  Status CompareRefcounts();
  Status CompareBlock(uint64_t index, uint64_t offset);
  Status RebuildRefcounts();
  Result<std::vector<uint64_t>> Words(uint64_t offset, uint64_t count);
  /// A read that takes what lies behind the end of the file as zeros.
  Status Read(uint64_t offset, std::vector<uint8_t>& bytes);

  const std::string path_;
  const int fd_;
  Header header_;
  const Geometry geometry_;
  const uint64_t file_bytes_, clusters_;
  Counters counters_;
  std::vector<uint64_t> refcount_table_;
  CheckReport report_;
  bool repair_ = false, rebuild_ = false;
  uint64_t next_host_ = 0;
};

Status Checker::Read(uint64_t offset, std::vector<uint8_t>& bytes) {
  const uint64_t inside = offset >= file_bytes_ ? 0 : std::min<uint64_t>(bytes.size(), file_bytes_ - offset);
  std::fill(bytes.begin() + static_cast<ptrdiff_t>(inside), bytes.end(), 0);
  return ReadAt(path_, fd_, offset, bytes.data(), inside);
}

Result<std::vector<uint64_t>> Checker::Words(uint64_t offset, uint64_t count) {
  std::vector<uint8_t> bytes(count * 8);
  NACRE_TRY_STATUS(Read(offset, bytes));
  std::vector<uint64_t> words(count);
  for (uint64_t i = 0; i < count; ++i) words[i] = LoadBe<uint64_t>(&bytes[i * 8]);
  return words;
}

Status Checker::Count(uint64_t offset, uint64_t size_bytes, std::string_view what) {
  if (size_bytes == 0) return {};
  const uint64_t last = (offset + size_bytes - 1) >> geometry_.cluster_bits;
  if (offset + size_bytes < offset || last >= clusters_) {
    Fault("{} at {:#x} ({} bytes) is outside the file", what, offset, size_bytes);
    return {};
  }
  for (uint64_t c = offset >> geometry_.cluster_bits; c <= last; ++c)
    if (!counters_.Add(c)) return Fail("disk '{}': too large to check", path_);
  report_.image_end = std::max(report_.image_end, (last + 1) << geometry_.cluster_bits);
  return {};
}

Status Checker::CountEntry(const uint8_t* bytes, bool active, uint64_t guest) {
  const Entry entry = DecodeEntry(geometry_, bytes);
  if (!EntryIsValid(geometry_, entry, bytes)) {
    Fault("the entry of guest offset {:#x} is not possible ({:#018x})", guest, LoadBe<uint64_t>(bytes));
    return {};
  }
  if (entry.compressed) {
    const CompressedRange range = DecodeCompressed(geometry_, entry.descriptor);
    if (active) ++report_.compressed_clusters, ++report_.allocated_clusters;
    // Its last sectors may lie behind the end of a file that ends where the data does.
    const uint64_t end = std::max(AlignUp(file_bytes_, geometry_.cluster_size()), range.offset + 1);
    return Count(range.offset, std::min(range.size_bytes, end - range.offset), "a compressed cluster");
  }
  if (entry.host == 0) return {};
  if (active) {
    ++report_.allocated_clusters;
    if (next_host_ != 0 && entry.host != next_host_) ++report_.fragmented_clusters;
    next_host_ = entry.host + geometry_.cluster_size();
  }
  return Count(entry.host, geometry_.cluster_size(), "a data cluster");
}

Status Checker::CountL2(uint64_t table, bool active, uint64_t guest) {
  std::vector<uint8_t> bytes(geometry_.cluster_size());
  NACRE_TRY_STATUS(Read(table, bytes));
  for (uint64_t i = 0; i < geometry_.l2_entries(); ++i)
    NACRE_TRY_STATUS(CountEntry(&bytes[i * geometry_.entry_bytes()], active, guest + (i << geometry_.cluster_bits)));
  return {};
}

Status Checker::CountTable(uint64_t l1_offset, uint64_t l1_size, bool active) {
  if (l1_size == 0) return {};
  if (l1_size * 8 > kMaxL1Bytes || l1_offset % geometry_.cluster_size() != 0) {
    Fault("an L1 table at {:#x} with {} entries is not possible", l1_offset, l1_size);
    return {};
  }
  NACRE_TRY_STATUS(Count(l1_offset, l1_size * 8, "an L1 table"));
  const auto l1 = NACRE_TRY(Words(l1_offset, l1_size));
  for (uint64_t i = 0; i < l1_size; ++i) {
    const uint64_t table = l1[i] & kOffsetMask;
    if (l1[i] == 0) continue;
    if ((l1[i] & ~(kOffsetMask | kCopied)) != 0 || table % geometry_.cluster_size() != 0 || table == 0) {
      Fault("L1 entry {} is not possible ({:#018x})", i, l1[i]);
      continue;
    }
    NACRE_TRY_STATUS(Count(table, geometry_.cluster_size(), "an L2 table"));
    if (table < file_bytes_) NACRE_TRY_STATUS(CountL2(table, active, i * geometry_.l2_span()));
  }
  return {};
}

Status Checker::CountSnapshots() {
  if (header_.snapshot_count == 0) return {};
  std::vector<uint8_t> table(header_.snapshots_offset >= file_bytes_
                                 ? 0
                                 : std::min(kMaxSnapshotTableBytes, file_bytes_ - header_.snapshots_offset));
  NACRE_TRY_STATUS(Read(header_.snapshots_offset, table));
  uint64_t table_bytes = 0;
  const auto snapshots = ParseSnapshots(table, header_.snapshot_count, &table_bytes);
  if (!snapshots) {
    Fault("{}", snapshots.error().message);
    return {};
  }
  NACRE_TRY_STATUS(Count(header_.snapshots_offset, table_bytes, "the snapshot table"));
  for (const Snapshot& snapshot : *snapshots) NACRE_TRY_STATUS(CountTable(snapshot.l1_offset, snapshot.l1_size, false));
  return {};
}

Status Checker::CountBitmaps() {
  if (header_.bitmap_count == 0 || !(header_.autoclear & kBitmaps)) return {};
  const uint64_t offset = header_.bitmap_directory_offset;
  if (header_.bitmap_directory_bytes > kMaxSnapshotTableBytes || offset % geometry_.cluster_size() != 0) {
    Fault("the bitmap directory is not possible");
    return {};
  }
  NACRE_TRY_STATUS(Count(offset, header_.bitmap_directory_bytes, "the bitmap directory"));
  std::vector<uint8_t> directory(header_.bitmap_directory_bytes);
  NACRE_TRY_STATUS(Read(offset, directory));
  uint64_t at = 0;
  for (uint32_t i = 0; i < header_.bitmap_count && at + 24 <= directory.size(); ++i) {
    const uint64_t table = LoadBe<uint64_t>(&directory[at]);
    const uint64_t entries = LoadBe<uint32_t>(&directory[at + 8]);
    if (entries * 8 > kMaxL1Bytes) {
      Fault("bitmap {} has a table of {} entries", i, entries);
      return {};
    }
    NACRE_TRY_STATUS(Count(table, entries * 8, "a bitmap table"));
    const auto words = NACRE_TRY(Words(table, entries));
    for (const uint64_t word : words)
      if ((word & kOffsetMask) != 0)
        NACRE_TRY_STATUS(Count(word & kOffsetMask, geometry_.cluster_size(), "a bitmap's cluster"));
    at += AlignUp(24 + LoadBe<uint16_t>(&directory[at + 18]) + uint64_t{LoadBe<uint32_t>(&directory[at + 20])}, 8);
  }
  return {};
}

Status Checker::CountRefcountTable() {
  const uint64_t table_bytes = uint64_t{header_.refcount_table_clusters} << geometry_.cluster_bits;
  const uint64_t before = report_.corruptions;
  NACRE_TRY_STATUS(Count(header_.refcount_table_offset, table_bytes, "the refcount table"));
  refcount_table_ = NACRE_TRY(Words(header_.refcount_table_offset, table_bytes / 8));
  for (uint64_t& block : refcount_table_) {
    if (block == 0) continue;
    if (block % geometry_.cluster_size() != 0 || block >> geometry_.cluster_bits >= clusters_) {
      Fault("a refcount block at {:#x} is not possible", block);
      block = 0;
      continue;
    }
    if (counters_.Get(block >> geometry_.cluster_bits) != 0) {
      Fault("a refcount block at {:#x} shares its cluster", block);
      block = 0;
      continue;
    }
    NACRE_TRY_STATUS(Count(block, geometry_.cluster_size(), "a refcount block"));
  }
  rebuild_ = report_.corruptions != before;
  return {};
}

/// Bit 63 of an entry at `place` of the file: set if and only if nobody else refers to the cluster.
Status Checker::CheckOwner(uint64_t place, std::vector<uint8_t>& word, uint64_t offset, uint64_t guest) {
  const bool alone = counters_.Get(offset >> geometry_.cluster_bits) == 1;
  const uint64_t value = LoadBe<uint64_t>(word.data());
  if (alone == ((value & kCopied) != 0)) return {};
  Fault("the entry at {:#x} (guest offset {:#x}) is wrong about sharing its cluster", place, guest);
  if (!repair_) return {};
  StoreBe(word.data(), value ^ kCopied);
  return WriteAt(path_, fd_, place, word.data(), 8);
}

Status Checker::CheckOwnership() {
  const auto l1 = NACRE_TRY(Words(header_.l1_offset, header_.l1_size));
  std::vector<uint8_t> bytes(geometry_.cluster_size()), word(8);
  for (uint64_t i = 0; i < l1.size(); ++i) {
    const uint64_t table = l1[i] & kOffsetMask;
    if (table == 0 || table >= file_bytes_ || table % geometry_.cluster_size() != 0) continue;
    StoreBe(word.data(), l1[i]);
    NACRE_TRY_STATUS(CheckOwner(header_.l1_offset + i * 8, word, table, i * geometry_.l2_span()));
    NACRE_TRY_STATUS(Read(table, bytes));
    for (uint64_t e = 0; e < geometry_.l2_entries(); ++e) {
      const uint8_t* at = &bytes[e * geometry_.entry_bytes()];
      const Entry entry = DecodeEntry(geometry_, at);
      if (entry.compressed || entry.host == 0 || !EntryIsValid(geometry_, entry, at)) continue;
      std::copy_n(at, 8, word.begin());
      NACRE_TRY_STATUS(CheckOwner(table + e * geometry_.entry_bytes(), word, entry.host,
                                  i * geometry_.l2_span() + (e << geometry_.cluster_bits)));
    }
  }
  return {};
}

Status Checker::CompareBlock(uint64_t index, uint64_t offset) {
  std::vector<uint8_t> bytes(geometry_.cluster_size());
  NACRE_TRY_STATUS(Read(offset, bytes));
  bool changed = false;
  for (uint64_t i = 0; i < geometry_.refcount_block_entries(); ++i) {
    const uint64_t cluster = index * geometry_.refcount_block_entries() + i;
    const uint64_t stored = LoadRefcount(bytes.data(), geometry_.refcount_order, i);
    const uint64_t counted = counters_.Get(cluster);
    if (stored == counted) continue;
    if (stored < counted) {
      Fault("cluster {} has refcount {}, but {} references", cluster, stored, counted);
    } else {
      ++report_.leaks;
      Tell(fmt::format("cluster {} is leaked: refcount {}, {} references", cluster, stored, counted));
    }
    if (counted > geometry_.max_refcount())
      return Fail("disk '{}': cluster {} has too many references", path_, cluster);
    StoreRefcount(bytes.data(), geometry_.refcount_order, i, counted);
    changed = true;
  }
  if (changed && repair_) NACRE_TRY_STATUS(WriteAt(path_, fd_, offset, bytes.data(), bytes.size()));
  return {};
}

Status Checker::CompareRefcounts() {
  const uint64_t per_block = geometry_.refcount_block_entries();
  for (uint64_t index = 0; index < refcount_table_.size(); ++index)
    if (refcount_table_[index] != 0) NACRE_TRY_STATUS(CompareBlock(index, refcount_table_[index]));
  for (uint64_t first = 0; first < counters_.end(); first += per_block) {
    const uint64_t index = first / per_block;
    if (index < refcount_table_.size() && refcount_table_[index] != 0) continue;
    if (!counters_.Any(first, first + per_block - 1)) continue;
    Fault("clusters {} to {} have no refcounts", first, first + per_block - 1);
    rebuild_ = true;
  }
  return {};
}

/// New blocks and a new table behind everything else; the header turns to them in one write.
Status Checker::RebuildRefcounts() {
  const uint64_t per_block = geometry_.refcount_block_entries(), cluster_size = geometry_.cluster_size();
  const uint64_t start = clusters_;
  for (uint64_t c = 0; c < header_.refcount_table_clusters; ++c)
    counters_.Clear((header_.refcount_table_offset >> geometry_.cluster_bits) + c);
  for (const uint64_t block : refcount_table_)
    if (block != 0) counters_.Clear(block >> geometry_.cluster_bits);
  std::vector<uint64_t> table;
  uint64_t blocks = 0, table_clusters = 1, total = 0;
  while (true) {
    const uint64_t end = start + blocks + table_clusters;
    uint64_t needed = 0;
    for (uint64_t first = 0; first < std::max(end, counters_.end()); first += per_block)
      if (counters_.Any(first, first + per_block - 1) || (first < end && first + per_block > start)) ++needed;
    const uint64_t words = (std::max(end, counters_.end()) + per_block - 1) / per_block;
    const uint64_t needed_table = (words * 8 + cluster_size - 1) / cluster_size;
    total = end;
    if (needed <= blocks && needed_table <= table_clusters) break;
    blocks = std::max(blocks, needed);
    table_clusters = std::max(table_clusters, needed_table);
  }
  if (table_clusters * cluster_size > std::max(kMaxRefcountTableBytes, cluster_size))
    return Fail("disk '{}': too large for a refcount table", path_);
  table.resize(table_clusters * cluster_size / 8);
  for (uint64_t c = start; c < total; ++c)
    if (!counters_.Add(c)) return Fail("disk '{}': too large to repair", path_);
  uint64_t next = start;
  std::vector<uint8_t> bytes(cluster_size);
  for (uint64_t index = 0; index < table.size(); ++index) {
    const uint64_t first = index * per_block;
    if (first >= counters_.end() || !counters_.Any(first, first + per_block - 1)) continue;
    std::ranges::fill(bytes, 0);
    for (uint64_t i = 0; i < per_block; ++i)
      StoreRefcount(bytes.data(), geometry_.refcount_order, i, counters_.Get(first + i));
    table[index] = next++ << geometry_.cluster_bits;
    NACRE_TRY_STATUS(WriteAt(path_, fd_, table[index], bytes.data(), bytes.size()));
  }
  const uint64_t table_offset = (start + blocks) << geometry_.cluster_bits;
  std::vector<uint8_t> table_bytes(table.size() * 8);
  for (size_t i = 0; i < table.size(); ++i) StoreBe(&table_bytes[i * 8], table[i]);
  NACRE_TRY_STATUS(WriteAt(path_, fd_, table_offset, table_bytes.data(), table_bytes.size()));
  NACRE_TRY_STATUS(SyncFile(path_, fd_));
  std::array<uint8_t, 12> field;
  StoreBe(&field[0], table_offset);
  StoreBe(&field[8], static_cast<uint32_t>(table_clusters));
  NACRE_TRY_STATUS(WriteAt(path_, fd_, kFieldRefcountTable, field.data(), field.size()));
  return SyncFile(path_, fd_);
}

Status Checker::Scan() {
  if (clusters_ > kMostClusters) return Fail("disk '{}': too large to check", path_);
  report_.total_clusters = (header_.size_bytes + geometry_.cluster_size() - 1) >> geometry_.cluster_bits;
  NACRE_TRY_STATUS(Count(0, 1, "the header"));
  NACRE_TRY_STATUS(CountRefcountTable());
  NACRE_TRY_STATUS(CountTable(header_.l1_offset, header_.l1_size, true));
  NACRE_TRY_STATUS(CountSnapshots());
  return CountBitmaps();
}

Status Checker::Repair() {
  NACRE_TRY_STATUS(Compare());
  if (report_.corruptions == 0 && report_.leaks == 0) return {};
  CheckReport found = std::exchange(report_, {});
  repair_ = true;
  if (rebuild_)
    NACRE_TRY_STATUS(RebuildRefcounts());
  else
    NACRE_TRY_STATUS(CompareRefcounts());
  NACRE_TRY_STATUS(CheckOwnership());
  report_ = std::move(found);
  return SyncFile(path_, fd_);
}

}  // namespace

Result<CheckReport> CheckQcow2File(const std::string& path, int fd, bool repair) {
  const auto scan = [&](bool mend) -> Result<CheckReport> {
    const Header header = NACRE_TRY(ReadQcow2Header(path, fd));
    if (const Status fit = CheckFeatures(header); !fit) return Context(fit.error(), "disk '{}'", path);
    Checker checker(path, fd, header, NACRE_TRY(FileBytes(path, fd)));
    NACRE_TRY_STATUS(checker.Scan());
    if (mend) {
      NACRE_TRY_STATUS(checker.Repair());
    } else {
      NACRE_TRY_STATUS(checker.Compare());
    }
    return std::move(checker.report());
  };
  CheckReport report = NACRE_TRY(scan(repair));
  if (!repair) return report;
  const uint64_t before = report.corruptions + report.leaks;
  if (before > 0) report = NACRE_TRY(scan(false));
  report.repaired = before - std::min(before, report.corruptions + report.leaks);
  Header header = NACRE_TRY(ReadQcow2Header(path, fd));
  if (report.corruptions == 0 && (header.incompatible & (kDirty | kCorrupt))) {
    std::array<uint8_t, 8> bytes;
    StoreBe(bytes.data(), header.incompatible & ~(kDirty | kCorrupt));
    NACRE_TRY_STATUS(WriteAt(path, fd, kFieldIncompatible, bytes.data(), bytes.size()));
    NACRE_TRY_STATUS(SyncFile(path, fd));
  }
  return report;
}

Result<CheckReport> CheckQcow2(const std::string& path, bool repair) {
  const Fd fd = NACRE_TRY(OpenImageFile(path, !repair));
  return CheckQcow2File(path, fd.get(), repair);
}

}  // namespace nacre::storage
