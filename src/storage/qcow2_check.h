#pragma once
// Looks a whole qcow2 image over: every table, every refcount. Nobody else may use the image. Any thread; blocks.

#include <string>
#include <vector>

#include "base/result.h"
#include "storage/image.h"
#include "storage/qcow2_format.h"

namespace nacre::storage {

struct CheckReport {
  uint64_t corruptions = 0;  ///< references to what is not counted, or is no place for them
  uint64_t leaks = 0;        ///< clusters counted more often than they are referred to: lost space, no danger
  uint64_t repaired = 0;     ///< of both; what is left stands above
  uint64_t allocated_clusters = 0, total_clusters = 0, compressed_clusters = 0, fragmented_clusters = 0;
  uint64_t image_end = 0;           ///< bytes of the file that are used
  std::vector<std::string> faults;  ///< the first hundred, as text
};

/// An image that is not in use.
Result<CheckReport> CheckQcow2(const std::string& path, bool repair);
/// The same for an open and locked file.
Result<CheckReport> CheckQcow2File(const std::string& path, int fd, bool repair);

// qcow2_create.cc
/// Makes an image of the empty file `fd`, also called `temporary`; `path` is for messages.
Status FillQcow2(const std::string& path, const std::string& temporary, int fd, const Qcow2Options& options);

// image.cc
Result<qcow2::Header> ReadQcow2Header(const std::string& path, int fd);
/// Before the first write: an image that was not closed is repaired, autoclear features are cleared.
Status MakeQcow2Writable(const std::string& path, int fd, qcow2::Header& header);
/// The file below an image and its format. `header` has a backing file.
Result<ImageLayer> BackingOf(const std::string& path, const qcow2::Header& header);

}  // namespace nacre::storage
