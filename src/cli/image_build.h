#pragma once
// The makers of images: Debian by the source tree's script, a disk's file, a folder, an installer's disc. One thread;
// the programs that they run write on standard error. lifecycle/image_store.h keeps what they make.

#include <filesystem>
#include <string>
#include <vector>

#include "base/result.h"
#include "lifecycle/image_store.h"

namespace nacre::cli {

struct ImageBuildOptions {
  std::string name;
  std::string from;  ///< a file or a folder; empty: Debian
  std::string size;  ///< of the disk; empty: the maker's own
  std::string firmware, display, memory;
  std::vector<std::string> packages;  ///< Debian: more of them
  std::string user, ssh_key;
  bool replace = false;
};

/// Puts the image's files into `image`.folder() and says what they are.
Result<lifecycle::NewImage::Parts> BuildImage(const ImageBuildOptions& options, const lifecycle::NewImage& image);

}  // namespace nacre::cli
