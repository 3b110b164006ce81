#pragma once
// VMDK, subformat streamOptimized: the disk format of OVF packages. A sequence of grains of 64 KiB, each compressed by
// zlib, that can be written and read in one pass. VMware, "Virtual Disk Format 5.0". Any thread; everything blocks.

#include <functional>
#include <span>
#include <string>

#include "storage/image.h"
#include "storage/image_tools.h"

namespace nacre::storage {

/// Most bytes of a disk in this format that is written or read: 64 TiB.
inline constexpr uint64_t kMaxVmdkBytes = uint64_t{64} << 40;

/// Gives `sink` what `from` reads as, zeros left out; `name` is the extent's name in the descriptor. `progress` counts
/// bytes of the disk. Fails with ECANCELED when that stops it.
Status WriteVmdkStream(ImageDisk& from, const std::string& name,
                       const std::function<Status(std::span<const uint8_t>)>& sink, const Progress& progress = {});

/// A file, or a part of one, that holds an untrusted image.
struct VmdkSource {
  std::string name;  ///< for messages
  int fd = -1;
  uint64_t offset = 0, size_bytes = 0;
};

/// Whether it is of this subformat: others need random access.
bool LooksLikeVmdkStream(std::span<const uint8_t> start);

/// Bytes of the disk, a multiple of 512.
Result<uint64_t> VmdkStreamDiskBytes(const VmdkSource& source);

/// Writes all grains into `to`, an empty disk of at least that size. `progress` counts bytes of the source.
Status ReadVmdkStream(const VmdkSource& source, Disk& to, const Progress& progress = {});

}  // namespace nacre::storage
