#pragma once
// A log file with a bound: FILE and FILE.1, the older part. One thread at a time.

#include <filesystem>
#include <string_view>

#include "base/fd.h"
#include "base/result.h"

namespace nacre::lifecycle {

class BoundedLog {
 public:
  static constexpr uint64_t kMaxBytes = 4 * 1024 * 1024;

  /// Appends to what is there.
  static Result<BoundedLog> Open(const std::filesystem::path& path, uint64_t max_bytes = kMaxBytes);
  /// What cannot be written (a full disk) is lost.
  void Write(std::string_view bytes);
  /// Of the present file. Changes when FILE becomes FILE.1.
  int fd() const { return file_.get(); }
  /// Others write to fd() too: true where that made the file too large, and it was changed.
  bool TurnIfFull();

 private:
  BoundedLog(std::filesystem::path path, uint64_t max_bytes) : path_(std::move(path)), max_bytes_(max_bytes) {}
  Status Reopen();
  void Turn();

  std::filesystem::path path_;
  uint64_t max_bytes_;
  uint64_t size_ = 0;
  Fd file_;
};

/// The older part's name.
std::filesystem::path OlderLog(const std::filesystem::path& path);

}  // namespace nacre::lifecycle
