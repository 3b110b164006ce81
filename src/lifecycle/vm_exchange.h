#pragma once
// VMs that come from elsewhere and go elsewhere (docs/exchange.md): OVA and OVF packages, disks of other programs, and
// directories of their own. Whole or not at all. Any thread; everything blocks.

#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "lifecycle/vm_home.h"
#include "machine/machine_config.h"

namespace nacre::lifecycle {

/// `what` is being done: bytes done and in all. False stops it, which then fails with ECANCELED.
using ExchangeProgress = std::function<bool(const std::string& what, uint64_t done, uint64_t total)>;

/// What was left out or could not be told, for people: one line each.
using Notes = std::vector<std::string>;

/// Writes an OVA package of a stopped VM that starts by firmware: its disks as streamOptimized VMDK, its discs as they
/// are. `file` must not be there.
Result<Notes> ExportOva(const VmPaths& vm, const std::filesystem::path& file, const ExchangeProgress& progress);

/// Copies a stopped VM into the new directory `folder`, with all that it stands on: disks become images of their own,
/// files of others are copied. Snapshots stay behind.
Result<Notes> ExportFolder(const VmPaths& vm, const std::filesystem::path& folder, const ExchangeProgress& progress);

struct ImportOptions {
  std::string name;  ///< empty: as the package or the file is called, as far as that is possible
  std::optional<uint64_t> memory_bytes;
  std::optional<unsigned> cpu_count;
  std::string firmware;                 ///< "bios" or "uefi"; empty: as the package says
  std::optional<machine::DiskBus> bus;  ///< of all disks
};

struct Imported {
  std::string name;
  Notes notes;
};

/// Makes a VM of an OVA package, an OVF descriptor with its files beside it, a disk image of any format, or a directory
/// that ExportFolder made.
Result<Imported> ImportVm(const Home& home, const std::filesystem::path& from, const ImportOptions& options,
                          const ExchangeProgress& progress);

}  // namespace nacre::lifecycle
