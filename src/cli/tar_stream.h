#pragma once
// Folders as tar archives (POSIX.1-1988 ustar with GNU's long names and pax paths and sizes), for `nacre cp`: written
// from the host's files, and read from an untrusted guest. One thread.

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/fd.h"
#include "base/result.h"
#include "base/tar_header.h"

namespace nacre::cli {

/// Gives `sink` an archive of the file or folder `path`, which is called `name` in it. Regular files, folders and
/// symbolic links; `skipped` is told of others.
Status WriteTar(const std::string& path, const std::string& name, const std::function<Status(std::string_view)>& sink,
                const std::function<void(const std::string&)>& skipped);

/// Unpacks an archive that comes in pieces. All its members must lie below one name, which becomes `target` in the
/// folder `parent`. Whatever the archive says, nothing outside of that is touched and no link is followed; of modes the
/// permissions are kept; what is no file, folder or link is left out.
class TarReader {
 public:
  TarReader(Fd parent, std::string target) : parent_(std::move(parent)), target_(std::move(target)) {}

  Status Take(std::string_view bytes);
  /// The archive must be complete.
  Status Finish();
  const std::vector<std::string>& skipped() const { return skipped_; }

 private:
  /// Of one long name or pax header.
  static constexpr size_t kMaxExtra = 64 * 1024;
  static constexpr size_t kMaxSkipped = 100;
  using Member = tar::Member;
  struct Place {
    Fd folder;
    std::string name;
  };

  Status ReadHeader(std::string_view block);
  Status BeginMember(const Member& member);
  Status EndData();
  Status TakePax(std::string_view text);
  /// The folder in which a member lies, made if it is missing.
  Result<Place> PlaceOf(const std::string& name);
  void Skip(const std::string& name);

  const Fd parent_;
  const std::string target_;
  std::string root_;  ///< the one name, once known
  std::string block_;
  uint64_t data_left_ = 0, padding_left_ = 0;
  Fd file_;
  std::string long_name_, long_link_;  ///< for the next member
  std::optional<uint64_t> long_size_;
  std::string extra_;  ///< data of a member of type L, K or x
  char extra_type_ = 0;
  int64_t file_time_s_ = 0;
  std::vector<std::pair<std::string, uint32_t>> folder_modes_;  ///< set at the end: they may forbid writing
  std::vector<std::string> skipped_;
  bool ended_ = false;
};

}  // namespace nacre::cli
