#pragma once
// Images in formats of others, which qemu-img (Debian: qemu-utils) reads for us. Any thread; everything blocks.

#include <string>

#include "base/result.h"

namespace nacre::storage {

/// qemu-img's name of the file's format, by its first bytes; empty: raw or qcow2, which need no help.
std::string ForeignFormat(const std::string& path);

/// Makes the new qcow2 image `to` of what the image reads as. Other files that it names are not read, but for the
/// extents of a VMDK with a descriptor of its own, and those only in its own folder.
Status ConvertForeign(const std::string& format, const std::string& from, const std::string& to);

}  // namespace nacre::storage
