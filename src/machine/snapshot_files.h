#pragma once
// A snapshot's directory: state.bin (state/state_file.h) with everything but the guest's memory, and memory.bin
// (memory/memory_image.h), which a parent in a directory beside may complete. Under their names both are whole: a
// snapshot is written in a directory of another name, which is renamed at the end. docs/snapshots.md is the design. Any
// thread.

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "machine/machine_config.h"
#include "memory/memory_image.h"
#include "state/state_file.h"

namespace nacre::machine {

inline constexpr std::string_view kStateFile = "state.bin", kMemoryFile = "memory.bin";
/// What a directory that is being written begins with.
inline constexpr std::string_view kUnfinishedPrefix = ".new-";

/// Who a snapshot is, and what it needs beside it.
struct SnapshotIdentity {
  std::string id;         ///< random; a parent is known by it
  std::string parent;     ///< the name of its directory, beside; empty: memory.bin is whole
  std::string parent_id;  ///< its `id`
  int64_t created_utc_ns = 0;
  bool passing = false;  ///< for clones that go on from it at once: nothing of it was synced, memory has no checksums

  void Serialize(state::Archive& archive);
};

/// state.bin, verified.
Result<state::StateFile> ReadStateFile(const std::string& directory);
/// Of a verified file. `name`: of the section.
Status LoadSection(const state::StateFile& file, const std::string& name,
                   const std::function<void(state::Archive&)>& fields);
std::vector<uint8_t> SaveSection(const std::function<void(state::Archive&)>& fields);

/// The sections `identity`, `memory` and `config`.
Result<SnapshotIdentity> ReadIdentity(const state::StateFile& file);
Result<memory::ImageMap> ReadImageMap(const state::StateFile& file);
Result<MachineConfig> ReadConfig(const state::StateFile& file);

/// The image in the directory from which a restored machine's disk goes on, by the disk's number; only of disks that
/// can be written.
std::string SnapshotDiskName(size_t number);
/// ReadConfig of `directory`, with those images as disks; what is written to them is thrown away.
Result<MachineConfig> ReadConfigToRun(const std::string& directory);

/// With the parents, whose state.bin are read and verified too.
Result<std::unique_ptr<memory::MemoryImage>> OpenMemory(const std::string& directory);

/// Whole or not at all, and on the disk: a temporary file, synced, renamed, the directory synced.
Status WriteFileDurably(const std::string& path, std::span<const uint8_t> bytes);
/// A new file of which nothing is synced.
Status WriteNewFile(const std::string& path, std::span<const uint8_t> bytes);
Status SyncDirectory(const std::string& path);

}  // namespace nacre::machine
