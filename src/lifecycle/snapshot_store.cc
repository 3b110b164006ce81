#include "lifecycle/snapshot_store.h"

#include <algorithm>
#include <atomic>

#include "machine/snapshot_files.h"
#include "state/archive.h"
#include "storage/image_tools.h"
#include "storage/qcow2_check.h"

namespace nacre::lifecycle {
namespace {

namespace fs = std::filesystem;
using machine::SnapshotIdentity;

/// What a removal has begun to take away.
constexpr std::string_view kRemovedPrefix = ".rm-";

struct Parts {
  state::StateFile file;
  SnapshotIdentity identity;
  memory::ImageLayer layer;
};

Result<Parts> ReadParts(const fs::path& snapshot) {
  const std::string path = snapshot / machine::kStateFile;
  Parts parts;
  parts.file = NACRE_TRY(machine::ReadStateFile(snapshot));
  auto identity = machine::ReadIdentity(parts.file);
  if (!identity) return Context(identity.error(), "{}", path);
  auto map = machine::ReadImageMap(parts.file);
  if (!map) return Context(map.error(), "{}", path);
  parts.identity = std::move(*identity);
  parts.layer = {snapshot / machine::kMemoryFile, std::move(*map)};
  return parts;
}

/// The images that stand for its disks, with all that is below them there.
Result<std::vector<fs::path>> DisksOf(const fs::path& snapshot, const state::StateFile& file) {
  const machine::MachineConfig config = NACRE_TRY(machine::ReadConfig(file));
  std::vector<fs::path> disks;
  for (size_t i = 0; i < config.disks.size(); ++i) {
    if (config.disks[i].read_only) continue;
    disks.push_back(snapshot / machine::SnapshotDiskName(i));
    NACRE_TRY(storage::DescribeImage({.path = disks.back().string(), .format = storage::ImageFormat::kQcow2}));
  }
  return disks;
}

SnapshotInfo InfoOf(const fs::path& snapshot) {
  SnapshotInfo info{.name = snapshot.filename(), .problem = {}, .parent = {}};
  const auto parts = ReadParts(snapshot);
  // The parents too: without them it cannot be restored.
  const auto memory = parts ? machine::OpenMemory(snapshot) : std::unexpected(parts.error());
  if (!memory) {
    info.problem = memory.error().message;
    return info;
  }
  const auto disks = DisksOf(snapshot, parts->file);
  if (!disks) {
    info.problem = disks.error().message;
    return info;
  }
  info.disks = disks->size();
  info.parent = parts->identity.parent;
  info.created_utc_ns = parts->identity.created_utc_ns;
  info.memory_bytes = parts->layer.map.pages * kPageSize;
  info.stored_bytes = parts->layer.map.PagesHere() * kPageSize;
  return info;
}

std::vector<fs::path> SnapshotsIn(const fs::path& folder) {
  std::vector<fs::path> found;
  std::error_code error;
  for (fs::directory_iterator at(folder, error), end; !error && at != end; at.increment(error))
    if (at->is_directory(error) && !at->path().filename().string().starts_with('.')) found.push_back(at->path());
  return found;
}

/// The child takes the parent's pages, and the parent's parent.
Status Detach(Parts& child, const Parts& parent, const fs::path& snapshot) {
  NACRE_TRY_STATUS(memory::AdoptParent(child.layer, parent.layer));
  child.identity.parent = parent.identity.parent;
  child.identity.parent_id = parent.identity.parent_id;
  state::StateFile next;
  for (const state::StateFile::Section& section : child.file.sections())
    if (section.name != "identity" && section.name != "memory") next.Add(section.name, section.content);
  next.Add("identity", machine::SaveSection([&](state::Archive& archive) { child.identity.Serialize(archive); }));
  next.Add("memory", machine::SaveSection([&](state::Archive& archive) { child.layer.map.Serialize(archive); }));
  return machine::WriteFileDurably(snapshot / machine::kStateFile, next.Encode());
}

}  // namespace

std::vector<SnapshotInfo> ListSnapshots(const fs::path& folder) {
  std::vector<SnapshotInfo> list;
  for (const fs::path& snapshot : SnapshotsIn(folder)) list.push_back(InfoOf(snapshot));
  std::ranges::sort(list, {}, [](const SnapshotInfo& info) {
    return std::tuple(!info.problem.empty(), info.created_utc_ns, info.name);
  });
  return list;
}

void RemoveUnfinishedSnapshots(const fs::path& folder) {
  std::vector<fs::path> found;
  std::error_code error;
  for (fs::directory_iterator at(folder, error), end; !error && at != end; at.increment(error)) {
    const std::string name = at->path().filename();
    if (name.starts_with(machine::kUnfinishedPrefix) || name.starts_with(kRemovedPrefix)) found.push_back(at->path());
  }
  for (const fs::path& path : found) fs::remove_all(path, error);
}

Status VerifySnapshot(const fs::path& snapshot) {
  const auto image = NACRE_TRY(machine::OpenMemory(snapshot));
  NACRE_TRY_STATUS(image->Verify(std::atomic<bool>(false)));
  const state::StateFile file = NACRE_TRY(machine::ReadStateFile(snapshot));
  const auto disks = NACRE_TRY(DisksOf(snapshot, file));
  for (const fs::path& disk : disks) {
    const auto layers = NACRE_TRY(storage::DescribeImage({.path = disk.string()}));
    for (const storage::ImageInfo& layer : layers) {
      if (layer.layer.format != storage::ImageFormat::kQcow2) continue;
      const storage::CheckReport report = NACRE_TRY(storage::CheckQcow2(layer.layer.path, false));
      if (report.corruptions != 0)
        return Fail("{}: the image is damaged: {}", layer.layer.path, report.faults.empty() ? "" : report.faults[0]);
    }
  }
  return {};
}

Status RemoveSnapshot(const fs::path& folder, const std::string& name) {
  const fs::path snapshot = folder / name;
  std::error_code error;
  if (!fs::is_directory(fs::symlink_status(snapshot, error))) return Fail("there is no snapshot '{}'", name);
  const auto parent = ReadParts(snapshot);
  for (const fs::path& other : SnapshotsIn(folder)) {
    if (other == snapshot) continue;
    auto child = ReadParts(other);
    if (!child || child->identity.parent != name) continue;
    if (!parent)
      return Fail("snapshot '{}' stands on '{}', which is damaged ({}): remove that one first",
                  other.filename().string(), name, parent.error().message);
    if (child->identity.parent_id != parent->identity.id) continue;
    NACRE_TRY_STATUS(Detach(*child, *parent, other));
  }
  const fs::path removed = folder / fmt::format("{}{}", kRemovedPrefix, name);
  fs::remove_all(removed, error);
  fs::rename(snapshot, removed, error);
  if (error) return Fail("snapshot '{}': {}", name, error.message());
  NACRE_TRY_STATUS(machine::SyncDirectory(folder));
  fs::remove_all(removed, error);
  if (error) return Fail("snapshot '{}': {}", name, error.message());
  return {};
}

}  // namespace nacre::lifecycle
