#include "storage/image_tools.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstring>
#include <set>

#include "base/bits.h"
#include "storage/host_file.h"
#include "storage/qcow2_check.h"
#include "storage/qcow2_disk.h"

namespace nacre::storage {
namespace {

constexpr uint64_t kPieceBytes = kMiB;
constexpr unsigned kPieces = 8;  // in flight
constexpr uint64_t kZeroGrain = 4096;

Status Failed(const std::string& path, int error, std::string_view what) {
  errno = error;
  return FailErrno("disk '{}': {}", path, what);
}

/// Copies ranges from one disk to another, some at a time, leaving out what is zero.
class Copier {
 public:
  Copier(Disk& from, Disk& to, bool skip_zeros) : from_(&from), to_(&to), skip_zeros_(skip_zeros) {
    for (unsigned i = 0; i < kPieces; ++i) pieces_.push_back(std::make_unique<Piece>(this));
  }
  ~Copier() { Finish(); }

  void Copy(uint64_t offset, uint64_t size_bytes) {
    while (size_bytes > 0 && error_ == 0) {
      Piece& piece = NextFree();
      const uint64_t size = std::min(size_bytes, kPieceBytes);
      piece.Begin(offset, size);
      from_->Submit();
      offset += size;
      size_bytes -= size;
    }
  }
  /// 0 or an errno.
  int Finish() {
    do {
      from_->Drain();
      to_->Drain();
    } while (std::ranges::any_of(pieces_, [](const auto& p) { return p->busy(); }));
    return error_;
  }

 private:
  class Piece : public DiskRequest {
   public:
    explicit Piece(Copier* copier) : copier_(copier), bytes_(kPieceBytes) {}
    bool busy() const { return busy_; }
    void Begin(uint64_t at, uint64_t size) {
      busy_ = true;
      kind = Kind::kRead;
      base_ = offset = at;
      total_ = size_bytes = size;
      next_ = 0;
      vectors = {{bytes_.data(), size}};
      copier_->from_->Start(*this);
    }
    void Done(int error) override {
      if (error != 0 && copier_->error_ == 0) copier_->error_ = error;
      if (copier_->error_ == 0 && WriteNext()) return;
      busy_ = false;
    }

   private:
    bool IsZero(uint64_t at) const {
      const uint64_t size = std::min(kZeroGrain, total_ - at);
      return bytes_[at] == 0 && std::memcmp(&bytes_[at], &bytes_[at] + 1, size - 1) == 0;
    }
    /// The next run that is not zero. False: there is none.
    bool WriteNext() {
      if (copier_->skip_zeros_)
        while (next_ < total_ && IsZero(next_)) next_ += kZeroGrain;
      if (next_ >= total_) return false;
      uint64_t end = std::min(next_ + kZeroGrain, total_);
      while (end < total_ && !(copier_->skip_zeros_ && IsZero(end))) end = std::min(end + kZeroGrain, total_);
      kind = Kind::kWrite;
      offset = base_ + next_;
      size_bytes = end - next_;
      vectors = {{&bytes_[next_], size_bytes}};
      next_ = end;
      copier_->to_->Start(*this);
      copier_->to_->Submit();
      return true;
    }

    Copier* copier_;
    std::vector<uint8_t> bytes_;
    bool busy_ = false;
    uint64_t base_ = 0, total_ = 0, next_ = 0;
  };

  Piece& NextFree() {
    while (true) {
      const auto found = std::ranges::find_if(pieces_, [](const auto& p) { return !p->busy(); });
      if (found != pieces_.end()) return **found;
      from_->Drain();
      to_->Drain();
    }
  }

  Disk* from_;
  Disk* to_;
  const bool skip_zeros_;
  int error_ = 0;
  std::vector<std::unique_ptr<Piece>> pieces_;
};

Status Tell(const Progress& progress, const std::string& path, uint64_t done, uint64_t total) {
  if (!progress || progress(done, total)) return {};
  return Failed(path, ECANCELED, "stopped");
}

Result<std::unique_ptr<Qcow2Disk>> OpenAlone(const std::string& path, std::shared_ptr<AsyncIo> io,
                                             qcow2::Header* header = nullptr) {
  Qcow2Disk::Parts parts;
  parts.path = path;
  parts.fd = NACRE_TRY(OpenImageFile(path, false));
  parts.header = NACRE_TRY(ReadQcow2Header(path, parts.fd.get()));
  if (const Status fit = qcow2::CheckFeatures(parts.header); !fit) return Context(fit.error(), "disk '{}'", path);
  NACRE_TRY_STATUS(MakeQcow2Writable(path, parts.fd.get(), parts.header));
  if (header) *header = parts.header;
  return Qcow2Disk::Create(std::move(parts), std::move(io));
}

Status ResizeRaw(const std::string& path, uint64_t size_bytes, bool shrink) {
  const Fd fd = NACRE_TRY(OpenImageFile(path, false));
  struct stat info {};
  if (fstat(fd.get(), &info) != 0 || !S_ISREG(info.st_mode)) return Fail("disk '{}': is no file to resize", path);
  if (size_bytes < static_cast<uint64_t>(info.st_size) && !shrink)
    return Fail("disk '{}': has {} bytes already; say shrink to lose what is behind the new end", path, info.st_size);
  if (ftruncate(fd.get(), static_cast<off_t>(size_bytes)) != 0) return FailErrno("disk '{}': size", path);
  return SyncFile(path, fd.get());
}

/// The bytes that `path`'s new part must not show of the image below.
Status HideBacking(const std::string& path, uint64_t from, uint64_t to, const std::shared_ptr<AsyncIo>& io) {
  auto disk = NACRE_TRY(OpenImage({.path = path, .format = ImageFormat::kQcow2}, io));
  if (const int error = RunRequest(*disk, DiskRequest::Kind::kWriteZeroes, from, to - from, nullptr, true); error != 0)
    return Failed(path, error, "zeros");
  if (const int error = RunRequest(*disk, DiskRequest::Kind::kFlush, 0, 0); error != 0)
    return Failed(path, error, "sync");
  return {};
}

Status CopyExtents(ImageDisk& from, const std::string& path, Disk& to, const Progress& progress) {
  Copier copier(from, to, true);
  const uint64_t total = from.size_bytes();
  for (uint64_t at = 0; at < total;) {
    const ImageDisk::Extent extent = NACRE_TRY(from.ExtentAt(at));
    const uint64_t size = std::min(extent.size_bytes, 64 * kMiB);
    if (!extent.zero) copier.Copy(at, size);
    at += size;
    NACRE_TRY_STATUS(Tell(progress, path, at, total));
  }
  if (const int error = copier.Finish(); error != 0) return Failed(path, error, "copy");
  if (const int error = RunRequest(to, DiskRequest::Kind::kFlush, 0, 0); error != 0) return Failed(path, error, "sync");
  return {};
}

Status DescribeQcow2(const std::string& path, int fd, ImageInfo& info) {
  const qcow2::Header header = NACRE_TRY(ReadQcow2Header(path, fd));
  info.size_bytes = header.size_bytes;
  info.version = header.version;
  info.cluster_size = header.geometry.cluster_size();
  info.refcount_bits = 1U << header.geometry.refcount_order;
  info.extended_l2 = header.geometry.extended;
  info.lazy_refcounts = (header.compatible & qcow2::kLazyRefcounts) != 0;
  info.dirty = (header.incompatible & qcow2::kDirty) != 0;
  info.corrupt = (header.incompatible & qcow2::kCorrupt) != 0;
  info.compression = header.compression_type == 0 ? "zlib" : header.compression_type == 1 ? "zstd" : "unknown";
  if (header.crypt_method != 0) info.encryption = header.crypt_method == 2 ? "LUKS" : "AES";
  info.backing = header.backing_name;
  info.backing_format = header.backing_format;
  if (header.snapshot_count == 0) return {};
  const uint64_t rest = info.file_bytes - std::min(info.file_bytes, header.snapshots_offset);
  std::vector<uint8_t> table(std::min(qcow2::kMaxSnapshotTableBytes, rest));
  NACRE_TRY_STATUS(ReadAt(path, fd, header.snapshots_offset, table.data(), table.size()));
  auto snapshots = qcow2::ParseSnapshots(table, header.snapshot_count);
  if (!snapshots) return Context(snapshots.error(), "disk '{}'", path);
  for (qcow2::Snapshot& s : *snapshots)
    info.snapshots.push_back({std::move(s.id), std::move(s.name), s.seconds, s.vm_state_bytes});
  return {};
}

}  // namespace

Status ResizeQcow2(const std::string& path, uint64_t size_bytes, bool shrink) {
  size_bytes = AlignUp(size_bytes, kSectorSize);
  if (size_bytes == 0) return Fail("disk '{}': a disk of no bytes", path);
  std::shared_ptr<AsyncIo> io = NACRE_TRY(AsyncIo::Create());
  qcow2::Header header;
  uint64_t below = 0;
  {  // the whole chain has to be there
    const auto chain = NACRE_TRY(OpenImage({.path = path, .format = ImageFormat::kQcow2, .read_only = true}, io));
    if (chain->layers().size() > 1) {
      const ImageLayer next = chain->layers()[1];
      below = NACRE_TRY(OpenImage({.path = next.path, .format = next.format, .read_only = true}, io))->size_bytes();
    }
  }
  auto disk = NACRE_TRY(OpenAlone(path, io, &header));
  const uint64_t old = disk->size_bytes();
  if (header.snapshot_count > 0 && size_bytes != old)
    return Fail("disk '{}': has internal snapshots, which keep its size; remove them with qemu-img snapshot", path);
  if (size_bytes < old) {
    if (!shrink)
      return Fail("disk '{}': has {} bytes already; say shrink to lose what is behind the new end", path, old);
    disk.reset();
    NACRE_TRY_STATUS(HideBacking(path, size_bytes, old, io));
    disk = NACRE_TRY(OpenAlone(path, io));
  }
  if (size_bytes != old) NACRE_TRY_STATUS(disk->Resize(size_bytes));
  disk.reset();
  if (below > old && size_bytes > old) return HideBacking(path, old, std::min(below, size_bytes), io);
  return {};
}

Status ResizeImage(const ImageOptions& image, uint64_t size_bytes, bool shrink) {
  const ImageFormat format = image.format ? *image.format : NACRE_TRY(ProbeFormat(image.path));
  if (format == ImageFormat::kQcow2) return ResizeQcow2(image.path, size_bytes, shrink);
  return ResizeRaw(image.path, AlignUp(size_bytes, kSectorSize), shrink);
}

Status CommitImage(const std::string& overlay, const Progress& progress) {
  std::shared_ptr<AsyncIo> io = NACRE_TRY(AsyncIo::Create());
  qcow2::Header header;
  auto top = NACRE_TRY(OpenAlone(overlay, io, &header));
  if (!header.has_backing()) return Fail("disk '{}': has no backing file to commit to", overlay);
  const ImageLayer below = NACRE_TRY(BackingOf(overlay, header));
  auto base = NACRE_TRY(OpenImage({.path = below.path, .format = below.format}, io));
  if (base->size_bytes() < top->size_bytes()) {
    base.reset();
    NACRE_TRY_STATUS(ResizeImage({.path = below.path, .format = below.format}, top->size_bytes()));
    base = NACRE_TRY(OpenImage({.path = below.path, .format = below.format}, io));
  }
  const uint64_t total = top->size_bytes();
  Copier copier(*top, *base, false);
  for (uint64_t at = 0; at < total;) {
    Qcow2Disk::Extent extent = NACRE_TRY(top->ExtentAt(at));
    extent.size_bytes = std::min(extent.size_bytes, 64 * kMiB);
    if (extent.kind == Qcow2Disk::Extent::Kind::kData) copier.Copy(at, extent.size_bytes);
    if (extent.kind == Qcow2Disk::Extent::Kind::kZero)
      if (const int error = RunRequest(*base, DiskRequest::Kind::kWriteZeroes, at, extent.size_bytes, nullptr, true);
          error != 0)
        return Failed(below.path, error, "zeros");
    at += extent.size_bytes;
    NACRE_TRY_STATUS(Tell(progress, overlay, at, total));
  }
  if (const int error = copier.Finish(); error != 0) return Failed(overlay, error, "copy into the backing file");
  if (const int error = RunRequest(*base, DiskRequest::Kind::kFlush, 0, 0); error != 0)
    return Failed(below.path, error, "sync");
  return {};
}

Status ConvertImage(const ImageOptions& from, const std::string& to, const ConvertOptions& options,
                    const Progress& progress) {
  std::shared_ptr<AsyncIo> io = NACRE_TRY(AsyncIo::Create());
  ImageOptions source = from;
  source.read_only = true;
  const auto disk = NACRE_TRY(OpenImage(source, io));
  return CreateWhole(to, [&](const std::string& temporary, int fd) -> Status {
    if (options.format == ImageFormat::kRaw) {
      if (ftruncate(fd, static_cast<off_t>(disk->size_bytes())) != 0) return FailErrno("disk '{}': size", to);
    } else {
      Qcow2Options made = options.qcow2;
      made.size_bytes = disk->size_bytes();
      made.backing.clear();
      NACRE_TRY_STATUS(FillQcow2(to, temporary, fd, made));
    }
    auto target = NACRE_TRY(OpenImage({.path = temporary, .format = options.format}, io));
    return CopyExtents(*disk, to, *target, progress);
  });
}

Result<std::vector<ImageInfo>> DescribeImage(const ImageOptions& image, bool chain) {
  std::vector<ImageInfo> all;
  ImageLayer layer{image.path, image.format ? *image.format : NACRE_TRY(ProbeFormat(image.path))};
  std::set<std::pair<dev_t, ino_t>> seen;
  while (true) {
    const Fd fd(open(layer.path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    if (!fd.valid()) return FailErrno("disk '{}'", layer.path);
    struct stat status {};
    if (fstat(fd.get(), &status) != 0) return FailErrno("disk '{}'", layer.path);
    if (!S_ISREG(status.st_mode) && !S_ISBLK(status.st_mode))
      return Fail("disk '{}': is neither a file nor a block device", layer.path);
    if (!seen.emplace(status.st_dev, status.st_ino).second)
      return Fail("disk '{}': is its own backing file", layer.path);
    ImageInfo info;
    info.layer = layer;
    info.file_bytes = info.size_bytes = NACRE_TRY(FileBytes(layer.path, fd.get()));
    info.allocated_bytes = static_cast<uint64_t>(status.st_blocks) * 512;
    if (layer.format == ImageFormat::kQcow2) NACRE_TRY_STATUS(DescribeQcow2(layer.path, fd.get(), info));
    all.push_back(info);
    if (!chain || info.backing.empty()) return all;
    qcow2::Header named;
    named.backing_name = info.backing;
    named.backing_format = info.backing_format;
    layer = NACRE_TRY(BackingOf(layer.path, named));
  }
}

}  // namespace nacre::storage
