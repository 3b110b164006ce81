#pragma once
// OVF packages as somebody else has written them: an OVA (a tar archive), or a descriptor with files beside it. Nothing
// in them is believed. Any thread; everything blocks.

#include <filesystem>
#include <map>
#include <string>

#include "base/fd.h"
#include "base/result.h"
#include "lifecycle/ovf.h"
#include "lifecycle/vm_exchange.h"
#include "storage/vmdk_stream.h"

namespace nacre::lifecycle {

class OvfPackage {
 public:
  static Result<OvfPackage> Open(const std::filesystem::path& path);

  const OvfMachine& machine() const { return machine_; }
  bool has_sums() const { return !sums_.empty(); }
  /// Reads all files that the manifest gives a sum of; the error names those that are not what they were.
  Status CheckSums(const ExchangeProgress& progress) const;
  /// A file that the descriptor names. Valid as long as this object.
  Result<storage::VmdkSource> FileNamed(const std::string& name) const;

 private:
  static constexpr size_t kMaxFiles = 4096;
  static constexpr uint64_t kMaxSumsBytes = 1 << 20;
  struct Part {
    uint64_t offset = 0, size_bytes = 0;
    Fd own;  ///< of a package that is no archive
  };
  struct Sum {
    std::string kind, file, digits;
  };

  Status ReadArchive();
  Status ReadFolder();
  Result<std::string> TextOf(const std::string& name, uint64_t most_bytes) const;
  Status ReadSums(const std::string& name);

  std::filesystem::path path_;
  Fd file_;
  std::map<std::string, Part> parts_;
  std::string descriptor_;  ///< its name
  OvfMachine machine_;
  std::vector<Sum> sums_;
};

}  // namespace nacre::lifecycle
