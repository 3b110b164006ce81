#include "machine/disk_freeze.h"

#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>

#include "base/folder_guard.h"
#include "machine/snapshot_files.h"
#include "storage/image.h"

namespace nacre::machine {
namespace {

namespace fs = std::filesystem;

storage::Qcow2Options OverlayOn(const fs::path& layer, const fs::path& place, uint64_t size_bytes) {
  return {.size_bytes = size_bytes,
          .backing = layer.lexically_relative(place.parent_path()),
          .backing_format = storage::ImageFormat::kQcow2,
          .backing_in_use = true};
}

/// By the way the kernel takes from there with `..`.
fs::path Resolved(const fs::path& path) {
  std::error_code error;
  const fs::path folder = fs::weakly_canonical(fs::absolute(path).parent_path(), error);
  return error ? fs::absolute(path).lexically_normal() : folder / path.filename();
}

/// Whether relative names of backing files mean the same in both places.
bool SameDepth(const fs::path& disk, const fs::path& layer, const fs::path& home) {
  std::error_code error;
  const fs::path top = fs::weakly_canonical(home, error);
  const fs::path one = disk.lexically_relative(top), other = layer.lexically_relative(top);
  return !error && !one.empty() && *one.begin() != ".." &&
         std::distance(one.begin(), one.end()) == std::distance(other.begin(), other.end());
}

/// Of a layer that is gone, where they hold nothing else.
void RemoveFolders(const fs::path& layer) {
  rmdir(layer.parent_path().c_str());
  rmdir(layer.parent_path().parent_path().c_str());
}

}  // namespace

Status CheckFreezable(const DiskConfig& disk, const storage::ImageDisk* image) {
  if (disk.read_only || disk.cdrom) return {};
  if (disk.snapshot) return Fail("disk '{}' throws its writes away at the end: they can be in no snapshot", disk.path);
  if (!image || image->layers().front().format != storage::ImageFormat::kQcow2)
    return Fail("disk '{}' is raw: it cannot be frozen for a snapshot (`nacre disk convert` makes a qcow2 image of it)",
                disk.path);
  return {};
}

Result<DiskFreeze> DiskFreeze::Prepare(storage::ImageDisk& image, const std::string& layers, const std::string& id) {
  DiskFreeze freeze;
  freeze.size_bytes_ = image.size_bytes();
  const fs::path path = Resolved(image.layers().front().path);
  fs::path layer = path.string() + "." + id + ".qcow2";
  const fs::path shared = layers.empty() ? layer : Resolved(fs::path(layers) / id / "disks/disk.qcow2");
  const bool is_shared = !layers.empty() && SameDepth(path, shared, fs::path(layers).parent_path());
  if (is_shared) layer = shared;
  freeze.path_ = path;
  freeze.layer_ = layer;
  const fs::path overlay = path.parent_path() / fmt::format(".{}.{}.tmp", path.filename().string(), id);
  std::error_code error;
  fs::create_directories(layer.parent_path(), error);
  if (error) return Fail("{}: {}", layer.parent_path().string(), error.message());
  // Who removes layers that nothing stands on waits.
  const FolderGuard guard(layers);
  // The overlay first: nobody ever sees a layer on which nothing stands.
  Status made = storage::CreateQcow2(overlay, OverlayOn(layer, path, freeze.size_bytes_));
  if (made && link(path.c_str(), layer.c_str()) != 0)
    made = FailErrno("disk '{}': a second name {} (both must be on one file system)", path.string(), layer.string());
  fs::path folder = layer;
  for (int i = 0; made && i < (is_shared ? 3 : 1); ++i) {
    folder = folder.parent_path();
    made = SyncDirectory(folder);
  }
  if (made && rename(overlay.c_str(), path.c_str()) != 0) made = FailErrno("disk '{}'", path.string());
  if (!made) {
    unlink(overlay.c_str());
    unlink(layer.c_str());
    if (is_shared) RemoveFolders(layer);
    return std::unexpected(made.error());
  }
  freeze.image_ = &image;
  NACRE_TRY_STATUS(SyncDirectory(path.parent_path()));
  return freeze;
}

DiskFreeze::~DiskFreeze() {
  if (image_ && rename(layer_.c_str(), path_.c_str()) == 0 && layer_.ends_with("/disks/disk.qcow2"))
    RemoveFolders(layer_);
}

Status DiskFreeze::Switch() {
  NACRE_TRY_STATUS(image_->PutOverlay(path_));
  image_ = nullptr;
  // Against slips only: whoever opens it for writing breaks every disk that stands on it.
  chmod(layer_.c_str(), 0400);
  return {};
}

Status DiskFreeze::WriteReference(const std::string& path, const std::string& place) const {
  return storage::CreateQcow2(path, OverlayOn(layer_, Resolved(place), size_bytes_));
}

}  // namespace nacre::machine
