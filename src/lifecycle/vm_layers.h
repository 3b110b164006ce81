#pragma once
// Disks of VMs that stand on each other: overlays on images, on files of the user, and on layers/, where frozen disks
// are that clones share. Nobody writes to a layer, and it is there as long as an image file below $NACRE_HOME names it
// as its backing file; that is looked up anew each time (docs/vm-directory.md). Any thread.

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "lifecycle/vm_home.h"
#include "lifecycle/vm_lock.h"
#include "storage/image.h"

namespace nacre::lifecycle {

/// Held while references to layers are added or taken away; made with layers/ itself.
class LayersGuard {
 public:
  static Result<LayersGuard> Take(const Home& home);

 private:
  explicit LayersGuard(const std::filesystem::path& folder) : guard_(folder) {}
  FolderGuard guard_;
};

struct DiskLayer {
  std::filesystem::path path;
  storage::ImageFormat format = storage::ImageFormat::kQcow2;
  uint64_t size_bytes = 0;  ///< of the disk
};

/// What an overlay on the file needs to know.
Result<DiskLayer> LookAtDisk(const std::filesystem::path& path, std::optional<storage::ImageFormat> format);

/// The file that a qcow2 image stands on; nothing: it stands alone.
Result<std::optional<DiskLayer>> LayerBelow(const std::filesystem::path& path);

/// A new qcow2 image in `folder` with nothing of its own, and the backing file named relative to it where both are
/// below $NACRE_HOME. `size_bytes` 0: as large as what is below.
Status MakeOverlay(const Home& home, const std::filesystem::path& path, const DiskLayer& below,
                   uint64_t size_bytes = 0);

/// Makes what the disk holds now a layer: the qcow2 file `disk` gets a name in layers/, and in its place comes an empty
/// overlay on it. A disk that holds nothing beside its backing file stays as it is, and that file is the answer. The
/// caller has the VM's lock and the guard; the disk is not in use. At every moment the VM's disk is whole.
Result<DiskLayer> FreezeDisk(const Home& home, const std::filesystem::path& disk, const LayersGuard& guard);

/// Which qcow2 files below vms/ and layers/ stand on which files. Whatever looks like one counts, by its content.
struct BackingReferences {
  struct Reference {
    std::filesystem::path from, to;
  };
  std::vector<Reference> references;
  std::vector<Error> unreadable;  ///< what these stand on nobody knows
};
Result<BackingReferences> FindBackingReferences(const Home& home);

/// Removes layers that nothing stands on. How many; none where an image cannot be read. The caller has the guard.
Result<size_t> RemoveUnusedLayers(const Home& home, const LayersGuard& guard);
/// Where a layer stands on a layer on which nothing else stands, the two become one, under the upper one's name. What
/// is in use stays for the next time. How many were merged. The caller has the guard; at every moment all is whole.
Result<size_t> MergeLayers(const Home& home, const LayersGuard& guard);
/// Both, where something has gone. What cannot be known or done now is left to `nacre doctor --vms`.
void TidyLayers(const Home& home);
/// Those that RemoveUnusedLayers would remove first. Fails where an image cannot be read.
Result<std::vector<std::filesystem::path>> UnusedLayers(const Home& home);

}  // namespace nacre::lifecycle
