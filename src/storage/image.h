#pragma once
// Disk images by file name: what a board, a snapshot or a clone opens, makes and stacks.
//
//   auto disk = OpenImage({.path = "root.qcow2"}, io);                 // raw or qcow2 with its backing chain
//   CreateQcow2("top.qcow2", {.size_bytes = disk->size_bytes(), .backing = "root.qcow2",
//                             .backing_format = ImageFormat::kQcow2, .backing_in_use = true});
//   disk->PutOverlay("top.qcow2");                                     // a running disk goes on in the overlay
//   CommitImage("top.qcow2", {});                                      // (not in use) its content moves into
//   root.qcow2
//
// Formats. A guest can write anything into a raw disk, also the header of a qcow2 image that names a file of the host
// as its backing file. So a file's content is asked for its format only when a user names the file and no format, and
// such a raw disk refuses to have its start made to look like another format. The format of a backing file comes from
// the header above it.
//
// Threads: OpenImage and the tools any thread; an ImageDisk under the device lock, as every Disk.

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "storage/async_io.h"
#include "storage/disk.h"

namespace nacre::storage {

enum class ImageFormat : uint8_t { kRaw, kQcow2 };
std::string_view FormatName(ImageFormat format);
std::optional<ImageFormat> FormatNamed(std::string_view name);

struct ImageOptions {
  std::string path;
  std::optional<ImageFormat> format = {};  ///< nothing: the file's content says it
  bool read_only = false;
};

struct ImageLayer {
  std::string path;
  ImageFormat format = ImageFormat::kRaw;
};

class ImageDisk : public Disk {
 public:
  ~ImageDisk() override;
  void Start(DiskRequest& request) override;
  void Submit() override;
  void Drain() override;

  /// The files it stands on, the one that is written first.
  const std::vector<ImageLayer>& layers() const { return layers_; }

  /// From now on writes go to `overlay`, a qcow2 image of the same size made by CreateQcow2 with the present top file
  /// as its backing file. Blocks while running requests end and the present top is written out; that file is then only
  /// read. Nothing changes when it fails. The overlay can be made beforehand: this is the short part.
  Status PutOverlay(const std::string& overlay);

  struct Extent {
    uint64_t size_bytes = 0;
    bool zero = false;  ///< reads as zeros; else there may be anything
  };
  /// What is at `offset`, without reading it. Blocks.
  Result<Extent> ExtentAt(uint64_t offset);

 private:
  friend Result<std::unique_ptr<ImageDisk>> OpenImage(const ImageOptions& options, std::shared_ptr<AsyncIo> io);
  class Guarded;

  ImageDisk(std::unique_ptr<Disk> top, std::vector<ImageLayer> layers, bool guard, std::shared_ptr<AsyncIo> io);

  std::unique_ptr<Disk> top_;
  std::vector<ImageLayer> layers_;
  bool guard_;
  std::shared_ptr<AsyncIo> io_;
  std::vector<std::unique_ptr<Guarded>> guarded_;
};

/// Opens an image and everything below it. The top is locked for writing, or for reading when read-only; what is below
/// for reading.
Result<std::unique_ptr<ImageDisk>> OpenImage(const ImageOptions& options, std::shared_ptr<AsyncIo> io);

/// What the file's content looks like.
Result<ImageFormat> ProbeFormat(const std::string& path);

/// Runs one request to its end. Blocks; for tools. An errno or 0.
int RunRequest(Disk& disk, DiskRequest::Kind kind, uint64_t offset, uint64_t size_bytes, void* bytes = nullptr,
               bool unmap = false);

enum class Preallocation : uint8_t { kOff, kMetadata, kFalloc, kFull };

struct Qcow2Options {
  uint64_t size_bytes = 0;  ///< 0 with a backing file: as large as that
  uint64_t cluster_size = 64 * 1024;
  std::string backing = {};  ///< relative names count from the folder of the new image
  ImageFormat backing_format = ImageFormat::kRaw;
  bool backing_in_use =
      false;  ///< a disk that is open for writing (PutOverlay follows): it is not looked at; say the size
  unsigned version = 3;
  unsigned refcount_bits = 16;
  bool extended_l2 = false;
  bool lazy_refcounts = false;
  Preallocation preallocation = Preallocation::kOff;
};

/// A raw image of zeros, all or nothing; `path` must not exist.
Status CreateRaw(const std::string& path, uint64_t size_bytes, Preallocation preallocation = Preallocation::kOff);

/// Makes a new image, all or nothing; `path` must not exist. The file is durable when it returns.
Status CreateQcow2(const std::string& path, const Qcow2Options& options);

}  // namespace nacre::storage
