#include "storage/image.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <filesystem>

#include "storage/host_file.h"
#include "storage/qcow2_check.h"
#include "storage/qcow2_disk.h"
#include "storage/raw_disk.h"

namespace nacre::storage {
namespace {

constexpr size_t kMostLayers = 64;

struct FileId {
  dev_t device;
  ino_t inode;
  bool operator==(const FileId&) const = default;
};

Result<FileId> IdOf(const std::string& path, int fd) {
  struct stat info {};
  if (fstat(fd, &info) != 0) return FailErrno("disk '{}'", path);
  return FileId{info.st_dev, info.st_ino};
}

struct Chain {
  std::vector<ImageLayer> layers;
  std::vector<FileId> ids;
  std::shared_ptr<AsyncIo> io;
};

Result<std::unique_ptr<Disk>> OpenLayer(const ImageOptions& options, Chain& chain);

Result<std::unique_ptr<Disk>> OpenBacking(const std::string& path, const qcow2::Header& header, Chain& chain) {
  const auto layer = NACRE_TRY(BackingOf(path, header));
  if (chain.layers.size() >= kMostLayers)
    return Fail("disk '{}': more than {} images on top of each other; `nacre disk convert` makes one of them", path,
                kMostLayers);
  auto backing = OpenLayer({.path = layer.path, .format = layer.format, .read_only = true}, chain);
  if (!backing) return Context(backing.error(), "disk '{}': its backing file", path);
  return backing;
}

Result<std::unique_ptr<Disk>> OpenLayer(const ImageOptions& options, Chain& chain) {
  const std::string& path = options.path;
  const ImageFormat format = *options.format;
  chain.layers.push_back({path, format});
  if (format == ImageFormat::kRaw) {
    auto raw = NACRE_TRY(RawDisk::Open({.path = path, .read_only = options.read_only, .format_given = true}, chain.io));
    const FileId id = NACRE_TRY(IdOf(path, raw->fd()));
    if (std::ranges::find(chain.ids, id) != chain.ids.end()) return Fail("disk '{}': is its own backing file", path);
    chain.ids.push_back(id);
    return raw;
  }
  // Before the lock: a loop would wait for its own.
  struct stat info {};
  if (stat(path.c_str(), &info) == 0) {
    const FileId id{info.st_dev, info.st_ino};
    if (std::ranges::find(chain.ids, id) != chain.ids.end()) return Fail("disk '{}': is its own backing file", path);
    chain.ids.push_back(id);
  }
  Qcow2Disk::Parts parts;
  parts.path = path;
  parts.read_only = options.read_only;
  parts.fd = NACRE_TRY(OpenImageFile(path, options.read_only));
  parts.header = NACRE_TRY(ReadQcow2Header(path, parts.fd.get()));
  if (const Status fit = qcow2::CheckFeatures(parts.header); !fit) return Context(fit.error(), "disk '{}'", path);
  if (!options.read_only) NACRE_TRY_STATUS(MakeQcow2Writable(path, parts.fd.get(), parts.header));
  if (parts.header.has_backing()) parts.backing = NACRE_TRY(OpenBacking(path, parts.header, chain));
  return NACRE_TRY(Qcow2Disk::Create(std::move(parts), chain.io));
}

class WaitRequest : public DiskRequest {
 public:
  void Done(int result) override { error = result; }
  int error = 0;
};

}  // namespace

std::string_view FormatName(ImageFormat format) { return format == ImageFormat::kRaw ? "raw" : "qcow2"; }

std::optional<ImageFormat> FormatNamed(std::string_view name) {
  if (name == "raw") return ImageFormat::kRaw;
  if (name == "qcow2") return ImageFormat::kQcow2;
  return std::nullopt;
}

Result<ImageFormat> ProbeFormat(const std::string& path) {
  struct stat info {};
  const bool known = stat(path.c_str(), &info) == 0;
  if (known && S_ISDIR(info.st_mode)) return Fail("disk '{}': is a directory; give an image file", path);
  if (known && !S_ISREG(info.st_mode) && !S_ISBLK(info.st_mode))
    return Fail("disk '{}': is neither a file nor a block device", path);
  const Fd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd.valid()) return FailErrno("disk '{}'", path);
  std::array<uint8_t, 4> start{};
  const ssize_t got = pread(fd.get(), start.data(), start.size(), 0);
  if (got < 0) return FailErrno("disk '{}': read", path);
  const std::string_view text(reinterpret_cast<const char*>(start.data()), static_cast<size_t>(got));
  if (text == "KDMV" || text == "vhdx")
    return Fail(
        "disk '{}': is a {} image, not a raw one; `nacre disk convert` reads it; if it is meant as raw, say "
        "format=raw",
        path, text == "KDMV" ? "VMDK" : "VHDX");
  return qcow2::LooksLikeQcow2(std::span(start).first(static_cast<size_t>(got))) ? ImageFormat::kQcow2
                                                                                 : ImageFormat::kRaw;
}

Result<qcow2::Header> ReadQcow2Header(const std::string& path, int fd) {
  std::vector<uint8_t> start(Bit(qcow2::kMaxClusterBits));
  const uint64_t size_bytes = NACRE_TRY(FileBytes(path, fd));
  start.resize(std::min<uint64_t>(start.size(), size_bytes));
  NACRE_TRY_STATUS(ReadAt(path, fd, 0, start.data(), start.size()));
  auto header = qcow2::ParseHeader(start);
  if (!header) return Context(header.error(), "disk '{}'", path);
  return header;
}

Status MakeQcow2Writable(const std::string& path, int fd, qcow2::Header& header) {
  if (header.incompatible & qcow2::kCorrupt)
    return Fail("disk '{}': is marked as corrupt; mend it with `nacre disk check --repair`, or use it with readonly",
                path);
  if (header.incompatible & qcow2::kDirty) {
    const auto report = CheckQcow2File(path, fd, true);
    if (!report) return std::unexpected(report.error());
    if (report->corruptions > 0)
      return Fail("disk '{}': was not closed and cannot be mended ({} faults); see `nacre disk check`", path,
                  report->corruptions);
    header = NACRE_TRY(ReadQcow2Header(path, fd));
  }
  if (header.autoclear != 0) {  // bitmaps and what we do not know are out of date with the first write
    header.autoclear = 0;
    const std::array<uint8_t, 8> none{};
    NACRE_TRY_STATUS(WriteAt(path, fd, qcow2::kFieldAutoclear, none.data(), none.size()));
    NACRE_TRY_STATUS(SyncFile(path, fd));
  }
  return {};
}

Result<ImageLayer> BackingOf(const std::string& path, const qcow2::Header& header) {
  std::string name = header.backing_name;
  if (name.starts_with("file:")) name.erase(0, 5);
  const size_t colon = name.find(':');
  if (colon != std::string::npos && name.find('/') > colon)
    return Fail("disk '{}': its backing file '{}' is no plain file, which is not supported", path, name);
  const std::filesystem::path full = std::filesystem::path(path).parent_path() / name;
  ImageLayer layer{.path = full.lexically_normal().string()};
  if (const auto known = FormatNamed(header.backing_format)) {
    layer.format = *known;
    return layer;
  }
  if (!header.backing_format.empty())
    return Fail("disk '{}': its backing file '{}' is in format '{}', which is not supported; convert it", path, name,
                header.backing_format);
  // Raw is always a safe reading; another one is not, since a guest may have written that header.
  if (NACRE_TRY(ProbeFormat(layer.path)) != ImageFormat::kRaw)
    return Fail(
        "disk '{}': does not say which format its backing file '{}' has, and that looks like qcow2; say it with "
        "`qemu-img rebase -u -b {} -F qcow2 {}`",
        path, name, name, path);
  layer.format = ImageFormat::kRaw;
  return layer;
}

Result<std::unique_ptr<ImageDisk>> OpenImage(const ImageOptions& options, std::shared_ptr<AsyncIo> io) {
  ImageOptions known = options;
  if (!known.format) known.format = NACRE_TRY(ProbeFormat(options.path));
  const bool guard = !options.format && *known.format == ImageFormat::kRaw;
  Chain chain;
  chain.io = io;
  std::unique_ptr<Disk> top;
  if (guard) {  // RawDisk knows a few other formats by sight
    chain.layers.push_back({known.path, ImageFormat::kRaw});
    top = NACRE_TRY(RawDisk::Open({.path = known.path, .read_only = known.read_only}, io));
  } else {
    top = NACRE_TRY(OpenLayer(known, chain));
  }
  if (top->size_bytes() == 0) return Fail("disk '{}': is a disk of no bytes", options.path);
  return std::unique_ptr<ImageDisk>(new ImageDisk(std::move(top), std::move(chain.layers), guard, std::move(io)));
}

/// A write to the start of a disk whose format was guessed: from a copy, so that the guest cannot change what was
/// looked at.
class ImageDisk::Guarded : public DiskRequest {
 public:
  explicit Guarded(DiskRequest& outer) : outer_(&outer) {
    kind = outer.kind;
    offset = 0;
    size_bytes = outer.size_bytes;
    uint64_t copied = 0;
    for (const iovec& vector : outer.vectors) {
      const uint64_t piece = std::min<uint64_t>(vector.iov_len, start_.size() - copied);
      std::memcpy(start_.data() + copied, vector.iov_base, piece);
      copied += piece;
      if (copied == start_.size()) break;
    }
    vectors = {{start_.data(), start_.size()}};
    for (const iovec& vector : SliceVectors(outer.vectors, start_.size(), size_bytes - start_.size()))
      vectors.push_back(vector);
  }
  bool refused() const { return qcow2::LooksLikeQcow2(start_); }
  void Done(int error) override {
    done = true;
    outer_->Done(error);
  }
  bool done = false;

 private:
  DiskRequest* outer_;
  std::array<uint8_t, kSectorSize> start_{};
};

ImageDisk::ImageDisk(std::unique_ptr<Disk> top, std::vector<ImageLayer> layers, bool guard, std::shared_ptr<AsyncIo> io)
    : Disk(top->size_bytes(), top->read_only()),
      top_(std::move(top)),
      layers_(std::move(layers)),
      guard_(guard),
      io_(std::move(io)) {}

ImageDisk::~ImageDisk() { Drain(); }

void ImageDisk::Start(DiskRequest& request) {
  const bool risky = guard_ && request.kind == DiskRequest::Kind::kWrite && request.offset == 0 &&
                     request.size_bytes >= kSectorSize && request.vectors.size() < 1024 && Check(request) == 0;
  if (!risky) return top_->Start(request);
  std::erase_if(guarded_, [](const auto& guarded) { return guarded->done; });
  auto guarded = std::make_unique<Guarded>(request);
  if (guarded->refused()) guarded->kind = DiskRequest::Kind::kRead, guarded->offset = kSectorSize - 1;  // EINVAL
  top_->Start(*guarded);
  guarded_.push_back(std::move(guarded));
}

void ImageDisk::Submit() { top_->Submit(); }

void ImageDisk::Drain() { top_->Drain(); }

Status ImageDisk::PutOverlay(const std::string& overlay) {
  const ImageLayer below = layers_.front();
  if (read_only()) return Fail("disk '{}': is read-only and needs no overlay", below.path);
  Qcow2Disk::Parts parts;
  parts.path = overlay;
  parts.fd = NACRE_TRY(OpenImageFile(overlay, false));
  parts.header = NACRE_TRY(ReadQcow2Header(overlay, parts.fd.get()));
  if (const Status fit = qcow2::CheckFeatures(parts.header); !fit) return Context(fit.error(), "disk '{}'", overlay);
  if (!parts.header.has_backing() || parts.header.size_bytes != size_bytes())
    return Fail("disk '{}': is no overlay for a disk of {} bytes", overlay, size_bytes());
  if (layers_.size() >= kMostLayers)
    return Fail("disk '{}': more than {} images on top of each other; commit or convert some", overlay, kMostLayers);
  const ImageLayer named = NACRE_TRY(BackingOf(overlay, parts.header));
  // By the file that is open: it may have another name by now, and the overlay its old one.
  auto* const qcow2_top = dynamic_cast<Qcow2Disk*>(top_.get());
  auto* const raw_top = dynamic_cast<RawDisk*>(top_.get());
  const int top_fd = qcow2_top ? qcow2_top->fd() : raw_top ? raw_top->fd() : -1;
  struct stat wanted {
  }, present{};
  if (named.format != below.format || stat(named.path.c_str(), &wanted) != 0 || fstat(top_fd, &present) != 0 ||
      wanted.st_dev != present.st_dev || wanted.st_ino != present.st_ino)
    return Fail("disk '{}': its backing file is '{}', not '{}'", overlay, named.path, below.path);
  NACRE_TRY_STATUS(MakeQcow2Writable(overlay, parts.fd.get(), parts.header));
  auto top = NACRE_TRY(Qcow2Disk::Create(std::move(parts), io_));
  Drain();
  if (qcow2_top) {
    NACRE_TRY_STATUS(qcow2_top->Freeze());
  } else {
    if (const int error = RunRequest(*top_, DiskRequest::Kind::kFlush, 0, 0); error != 0) {
      errno = error;
      return FailErrno("disk '{}': cannot be written out", below.path);
    }
  }
  [[maybe_unused]] const Status shared = LockImage(below.path, top_fd, true);  // others may read it now
  top->SetBacking(std::move(top_));
  top_ = std::move(top);
  layers_.front().path = named.path;  // the overlay may have its old name
  layers_.insert(layers_.begin(), {overlay, ImageFormat::kQcow2});
  guard_ = false;
  return {};
}

int RunRequest(Disk& disk, DiskRequest::Kind kind, uint64_t offset, uint64_t size_bytes, void* bytes, bool unmap) {
  WaitRequest request;
  request.kind = kind;
  request.offset = offset;
  request.size_bytes = size_bytes;
  request.unmap = unmap;
  if (bytes && size_bytes > 0) request.vectors = {{bytes, size_bytes}};
  disk.Start(request);
  disk.Drain();
  return request.error;
}

namespace {

Result<ImageDisk::Extent> ExtentOf(Disk& disk, uint64_t offset) {
  if (auto* raw = dynamic_cast<RawDisk*>(&disk)) {
    const uint64_t rest = disk.size_bytes() - offset;
    const off_t data = lseek(raw->fd(), static_cast<off_t>(offset), SEEK_DATA);
    if (data < 0) return ImageDisk::Extent{rest, errno == ENXIO};  // no more data; or a file system that cannot say
    if (static_cast<uint64_t>(data) > offset) return ImageDisk::Extent{static_cast<uint64_t>(data) - offset, true};
    const off_t hole = lseek(raw->fd(), static_cast<off_t>(offset), SEEK_HOLE);
    return ImageDisk::Extent{hole > data ? std::min<uint64_t>(rest, static_cast<uint64_t>(hole) - offset) : rest,
                             false};
  }
  auto& qcow2 = dynamic_cast<Qcow2Disk&>(disk);
  const Qcow2Disk::Extent extent = NACRE_TRY(qcow2.ExtentAt(offset));
  using Kind = Qcow2Disk::Extent::Kind;
  if (extent.kind != Kind::kBacking) return ImageDisk::Extent{extent.size_bytes, extent.kind == Kind::kZero};
  Disk* below = qcow2.backing();
  if (!below || offset >= below->size_bytes()) return ImageDisk::Extent{extent.size_bytes, true};
  ImageDisk::Extent deeper = NACRE_TRY(ExtentOf(*below, offset));
  deeper.size_bytes = std::min(deeper.size_bytes, extent.size_bytes);
  return deeper;
}

}  // namespace

Result<ImageDisk::Extent> ImageDisk::ExtentAt(uint64_t offset) { return ExtentOf(*top_, offset); }

}  // namespace nacre::storage
