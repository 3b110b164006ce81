#pragma once
// The reading side of images/NAME (docs/vm-directory.md): what `nacre create` needs of one. Any thread.

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "lifecycle/vm_home.h"

namespace nacre::lifecycle {

struct Image {
  std::string name;
  std::filesystem::path folder;
  std::filesystem::path kernel, disk;  ///< absolute; empty: it has none
  std::vector<std::filesystem::path> initrds;
  std::string append, firmware;
  std::string disk_format = "qcow2";
  std::optional<uint64_t> memory_bytes;
};

/// Errors name the images that are there, or the line of image.toml.
Result<Image> ReadImage(const Home& home, std::string_view name);

}  // namespace nacre::lifecycle
