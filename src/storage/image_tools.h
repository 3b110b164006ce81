#pragma once
// What is done to images that no VM uses: resized, converted, committed, described. Any thread; everything blocks.

#include <functional>
#include <string>
#include <vector>

#include "storage/image.h"

namespace nacre::storage {

/// Called now and then with bytes done and to do; false stops the work, which then fails with ECANCELED.
using Progress = std::function<bool(uint64_t done, uint64_t total)>;

/// A raw or qcow2 image becomes larger or, when `shrink` is set, smaller: what was behind the new end is lost.
Status ResizeImage(const ImageOptions& image, uint64_t size_bytes, bool shrink = false);
/// As ResizeImage, for qcow2.
Status ResizeQcow2(const std::string& path, uint64_t size_bytes, bool shrink = false);

/// Writes what the overlay holds into its backing file, which grows to the overlay's size if it is smaller. The overlay
/// stays as it is and reads the same; when nothing else uses the backing file, it can then be removed. Cut short, it
/// can be done again.
Status CommitImage(const std::string& overlay, const Progress& progress = {});

struct ConvertOptions {
  ImageFormat format = ImageFormat::kQcow2;
  Qcow2Options qcow2 = {};  ///< size_bytes and backing are not used
};
/// Copies what the disk reads as, with everything below it, into a new image; zeros take no space. All or nothing.
Status ConvertImage(const ImageOptions& from, const std::string& to, const ConvertOptions& options,
                    const Progress& progress = {});

struct ImageSnapshot {
  std::string id, name;
  uint64_t seconds = 0;  ///< since the Epoch
  uint64_t vm_state_bytes = 0;
};

struct ImageInfo {
  ImageLayer layer;
  uint64_t size_bytes = 0;       ///< what the guest sees
  uint64_t file_bytes = 0;       ///< length of the file
  uint64_t allocated_bytes = 0;  ///< what it takes on the host
  // qcow2 only
  unsigned version = 0;
  uint64_t cluster_size = 0;
  unsigned refcount_bits = 0;
  bool extended_l2 = false, lazy_refcounts = false, dirty = false, corrupt = false;
  std::string compression;     ///< of compressed clusters, if there are any: "zlib" or "zstd"
  std::string encryption;      ///< empty: none
  std::string backing;         ///< as the header has it; empty: none
  std::string backing_format;  ///< empty: the header does not say
  std::vector<ImageSnapshot> snapshots;
};
/// Of the image and, with `chain`, of what is below it. Takes no lock: a running VM's disk may be asked too.
Result<std::vector<ImageInfo>> DescribeImage(const ImageOptions& image, bool chain = true);

}  // namespace nacre::storage
