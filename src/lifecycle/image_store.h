#pragma once
// images/NAME (docs/vm-directory.md): made whole or not at all, known by their content, listed, checked and removed.
// What `nacre create` reads of them is vm_image.h. Any thread.

#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/fd.h"
#include "base/result.h"
#include "lifecycle/vm_home.h"
#include "lifecycle/vm_image.h"

namespace nacre::lifecycle {

struct ImageFile {
  std::string name, sha256;
  uint64_t size_bytes = 0, disk_bytes = 0;  ///< its length, and what it takes
};

struct ImageReport {
  Image image;
  std::string id;       ///< SHA-256 of its files' names and sums: the same content has the same
  std::string created;  ///< a TOML date-time
  std::string source;   ///< of what it was made, for people
  std::vector<ImageFile> files;
};

/// How far something is: bytes done and in all.
using ImageProgress = std::function<void(uint64_t done, uint64_t total)>;

/// What image.toml says, and what its files take. Their content is not looked at.
Result<ImageReport> InspectImage(const Home& home, std::string_view name);
/// Reads all files; the error names those that are not what they were.
Status VerifyImage(const Home& home, std::string_view name, const ImageProgress& progress = {});
/// Fails where a VM's disk lies on it, and names the VMs.
Status RemoveImage(const Home& home, std::string_view name);

/// An image that is being made in a folder of its own, which is gone with this object unless Commit gave it its name.
/// What killed processes left is removed by the next one.
class NewImage {
 public:
  struct Parts {
    std::string kernel, disk;  ///< names of files in folder(); empty: none
    std::vector<std::string> initrds;
    std::string append, firmware, disk_format = "raw", source;
    std::string memory;  ///< "1G"; empty: nothing said
  };

  /// Fails where there is an image of this name, unless it is to be replaced.
  static Result<std::unique_ptr<NewImage>> Begin(const Home& home, const std::string& name, bool replace);
  ~NewImage();
  NewImage(const NewImage&) = delete;
  NewImage& operator=(const NewImage&) = delete;

  const std::filesystem::path& folder() const { return folder_; }
  /// Files of the same content as another image's become one with them. Its id.
  Result<std::string> Commit(const Parts& parts, const ImageProgress& progress = {});

 private:
  NewImage(const Home& home, std::string name, bool replace) : home_(home), name_(std::move(name)), replace_(replace) {}
  Status RemoveLeftovers() const;
  void ShareFile(const ImageFile& file) const;

  const Home home_;
  const std::string name_;
  const bool replace_;
  std::filesystem::path folder_;
  Fd lock_;
  bool done_ = false;
};

}  // namespace nacre::lifecycle
