#pragma once
// Freezing the disks of a running machine. What a disk's file holds becomes a layer, which nobody writes to any more:
// the file gets a second name there, and under its own name comes an empty qcow2 image on it. The running disk goes on
// in that at the instant. At every moment, whatever ends there, the disk's name leads to all that was written.
//
// Threads: Prepare, WriteReference and the destructor any; Switch under the device lock while no request is in flight.

#include <cstdint>
#include <string>
#include <utility>

#include "base/result.h"
#include "machine/machine_config.h"

namespace nacre::storage {
class ImageDisk;
}

namespace nacre::machine {

/// Fails for a disk that can be written and cannot be frozen; the text says what to do. `image`: null where the disk's
/// writes are not kept.
Status CheckFreezable(const DiskConfig& disk, const storage::ImageDisk* image);

class DiskFreeze {
 public:
  /// `layers`: the folder where layers go, each in its own ID/disks/, for disks that are as deep below the folder above
  /// it; others, and all where it is empty, go beside the disk. `id` is new. All that takes time.
  static Result<DiskFreeze> Prepare(storage::ImageDisk& image, const std::string& layers, const std::string& id);
  DiskFreeze(DiskFreeze&& other) noexcept
      : image_(std::exchange(other.image_, nullptr)),
        path_(std::move(other.path_)),
        layer_(std::move(other.layer_)),
        size_bytes_(other.size_bytes_) {}
  DiskFreeze& operator=(DiskFreeze&&) = delete;
  /// Without a Switch: all is as before Prepare.
  ~DiskFreeze();

  /// The short part. After an error the disk goes on in its file, as whole as before.
  Status Switch();
  /// An empty image on the layer, which keeps it from being removed, and from which a restored machine goes on.
  /// `place`: where it will be, for the layer is named relative to there.
  Status WriteReference(const std::string& path, const std::string& place) const;

 private:
  DiskFreeze() = default;
  storage::ImageDisk* image_ = nullptr;  ///< null: nothing to undo
  std::string path_, layer_;
  uint64_t size_bytes_ = 0;
};

}  // namespace nacre::machine
