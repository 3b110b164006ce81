#pragma once
// Writes cpio archives in the "newc" form that Linux unpacks as its initramfs, without root rights: owners are
// always root, device nodes are just entries, times are zero (the same input gives the same bytes). Used by
// `nacre run` and by the tool nacre-cpio for the default and the test guests. Single-threaded.
// Specification: Linux, Documentation/driver-api/early-userspace/buffer-format.rst.

#include <cstdint>
#include <filesystem>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace nacre::boot {

/// One archive in the making. Paths are relative to the root of the archive, without a leading slash and without
/// "." or ".." parts; parent directories that were not added are made with mode 0755.
class CpioWriter {
 public:
  enum class NodeKind { kCharacter, kBlock };
  /// An archive stops growing here: more would not fit beside a kernel in any guest that we boot.
  static constexpr uint64_t kMaxSize = uint64_t{1} << 30;

  /// `mode` in all of these: the permission bits only (at most 07777).
  Status AddDirectory(std::string_view path, uint32_t mode);
  Status AddFile(std::string_view path, uint32_t mode, std::span<const uint8_t> content);
  Status AddLink(std::string_view path, std::string_view target);
  Status AddNode(std::string_view path, uint32_t mode, NodeKind kind, uint32_t major, uint32_t minor);

  /// Ends the archive with its trailer and gives the bytes away; the writer is then empty.
  std::vector<uint8_t> Finish();

 private:
  struct Header {
    uint32_t mode = 0;
    uint32_t links = 1;
    uint32_t major = 0;
    uint32_t minor = 0;
  };
  Status AddEntry(std::string_view path, Header header, std::span<const uint8_t> content);
  void Append(std::string_view path, const Header& header, std::span<const uint8_t> content);

  std::vector<uint8_t> bytes_;
  std::set<std::string, std::less<>> paths_;
  uint32_t next_inode_ = 1;
};

/// The archive that a manifest describes. One entry a line, '#' starts a comment, MODE is octal:
///   dir PATH MODE · file SOURCE PATH MODE · link TARGET PATH · node PATH MODE c|b MAJOR MINOR
/// SOURCE is relative to the manifest's folder.
Result<std::vector<uint8_t>> BuildInitramfs(const std::filesystem::path& manifest);

}  // namespace nacre::boot
