#include "lifecycle/vm_layers.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <map>
#include <set>

#include "lifecycle/vm_config.h"
#include "lifecycle/vm_files.h"
#include "storage/host_file.h"
#include "storage/image_tools.h"
#include "storage/qcow2_check.h"

namespace nacre::lifecycle {

namespace fs = std::filesystem;
using storage::ImageFormat;

namespace {

constexpr std::string_view kSuffix = ".qcow2";

bool IsBelow(const fs::path& path, const fs::path& folder) {
  const fs::path relative = path.lexically_relative(folder);
  return !relative.empty() && *relative.begin() != "..";
}

/// The file below a qcow2 image; nothing: it stands alone.
Result<std::optional<storage::ImageLayer>> Below(const fs::path& path, int file) {
  const auto header = NACRE_TRY(storage::ReadQcow2Header(path.string(), file));
  if (!header.has_backing()) return std::nullopt;
  return NACRE_TRY(storage::BackingOf(path.string(), header));
}

Result<std::optional<storage::ImageLayer>> Below(const fs::path& path) {
  const Fd file(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
  if (!file.valid()) return FailErrno("{}", path.string());
  return Below(path, file.get());
}

/// One file by all of its names.
fs::path Canonical(const fs::path& path) {
  std::error_code error;
  fs::path canonical = fs::weakly_canonical(path, error);
  return error ? path.lexically_normal() : canonical;
}

/// Not locked: headers of images in use are looked at too, and do not change.
void CollectReference(const fs::path& path, BackingReferences& to) {
  const Fd file(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
  if (!file.valid() && errno == ENOENT) return;  // removed meanwhile
  uint8_t start[8] = {};
  const bool is_named_so = path.filename().string().ends_with(kSuffix);
  if (!file.valid() || pread(file.get(), start, sizeof(start), 0) < 0) {
    to.unreadable.push_back({fmt::format("{}: {}", path.string(), std::strerror(errno)), errno});
    return;
  }
  if (!storage::qcow2::LooksLikeQcow2(start)) {
    if (is_named_so) to.unreadable.push_back({fmt::format("{}: is no qcow2 image", path.string()), 0});
    return;
  }
  const auto below = Below(path, file.get());
  // A guest can write anything into a raw disk.
  if (!below && is_named_so) to.unreadable.push_back(below.error());
  if (below && *below) to.references.push_back({path, Canonical((*below)->path)});
}

Status CollectReferences(const fs::path& folder, BackingReferences& to) {
  std::error_code error;
  fs::recursive_directory_iterator at(folder, error), end;
  for (; !error && at != end; at.increment(error)) {
    std::error_code ignored;
    if (fs::is_regular_file(at->symlink_status(ignored))) CollectReference(at->path(), to);
  }
  if (error && error != std::errc::no_such_file_or_directory) return Fail("{}: {}", folder.string(), error.message());
  return {};
}

/// As deep below $NACRE_HOME as the disks of a VM, so that a backing file's relative name stays right.
fs::path PathOfLayer(const Home& home, const std::string& id) { return home.layers() / id / "disks/disk.qcow2"; }

Status RemoveLayer(const fs::path& path) {
  if (unlink(path.c_str()) != 0 && errno != ENOENT) return FailErrno("{}", path.string());
  rmdir(path.parent_path().c_str());
  rmdir(path.parent_path().parent_path().c_str());
  return {};
}

Status CheckSameBelow(const fs::path& disk, const fs::path& layer) {
  const auto before = NACRE_TRY(Below(disk)), after = NACRE_TRY(Below(layer));
  if (!before || (after && Canonical(before->path) == Canonical(after->path))) return {};
  return Fail("{}: it names its backing file relative to another folder than disks/; move it there", disk.string());
}

}  // namespace

Result<LayersGuard> LayersGuard::Take(const Home& home) {
  NACRE_TRY_STATUS(MakeFolders(home.layers()));
  return LayersGuard(home.layers());
}

Result<DiskLayer> LookAtDisk(const fs::path& path, std::optional<ImageFormat> format) {
  DiskLayer layer;
  layer.path = path;
  layer.format = format ? *format : NACRE_TRY(storage::ProbeFormat(path.string()));
  auto io = NACRE_TRY(storage::AsyncIo::Create());
  const auto disk =
      NACRE_TRY(storage::OpenImage({.path = path.string(), .format = layer.format, .read_only = true}, std::move(io)));
  layer.size_bytes = disk->size_bytes();
  return layer;
}

Status MakeOverlay(const Home& home, const fs::path& path, const DiskLayer& below, uint64_t size_bytes) {
  storage::Qcow2Options options;
  options.size_bytes = size_bytes;
  options.backing = below.path.string();
  options.backing_format = below.format;
  if (IsBelow(below.path, home.folder()) && IsBelow(path, home.folder()))
    options.backing = below.path.lexically_relative(path.parent_path()).string();
  return storage::CreateQcow2(path.string(), options);
}

Result<DiskLayer> FreezeDisk(const Home& home, const fs::path& disk, const LayersGuard&) {
  DiskLayer layer = NACRE_TRY(LookAtDisk(disk, ImageFormat::kQcow2));
  const auto below = NACRE_TRY(Below(disk));
  const auto report = NACRE_TRY(storage::CheckQcow2(disk.string(), false));
  if (report.corruptions != 0)
    return Fail("{}: the image is damaged ({}); `nacre disk check` tells more", disk.string(),
                report.faults.empty() ? "" : report.faults[0]);
  if (below && report.allocated_clusters == 0) {
    const DiskLayer base = NACRE_TRY(LookAtDisk(fs::path(below->path).lexically_normal(), below->format));
    if (base.size_bytes == layer.size_bytes) return base;
  }
  const std::string id = NewUuid();
  layer.path = PathOfLayer(home, id);
  NACRE_TRY_STATUS(MakeFolders(layer.path.parent_path()));
  // A second name first: the disk is at its place whenever this ends early, and so the layer is nobody's then.
  if (link(disk.c_str(), layer.path.c_str()) != 0)
    return FailErrno("{}: a second name for {} (both must be on one file system)", layer.path.string(), disk.string());
  const fs::path draft = disk.parent_path() / fmt::format(".{}.{}.tmp", disk.filename().string(), id.substr(0, 8));
  Status made = CheckSameBelow(disk, layer.path);
  for (fs::path folder = layer.path.parent_path(); made && folder != home.folder(); folder = folder.parent_path())
    made = SyncFolder(folder);
  if (made) made = MakeOverlay(home, draft, layer);
  if (made && rename(draft.c_str(), disk.c_str()) != 0) made = FailErrno("{}", disk.string());
  if (!made) {
    unlink(draft.c_str());
    static_cast<void>(RemoveLayer(layer.path));
    return std::unexpected(made.error());
  }
  // Against slips only: whoever opens it for writing breaks every disk that stands on it.
  chmod(layer.path.c_str(), 0400);
  NACRE_TRY_STATUS(SyncFolder(disk.parent_path()));
  return layer;
}

Result<std::optional<DiskLayer>> LayerBelow(const fs::path& path) {
  const auto below = NACRE_TRY(Below(path));
  if (!below) return std::nullopt;
  return NACRE_TRY(LookAtDisk(fs::path(below->path).lexically_normal(), below->format));
}

Result<BackingReferences> FindBackingReferences(const Home& home) {
  BackingReferences found;
  NACRE_TRY_STATUS(CollectReferences(home.vms(), found));
  NACRE_TRY_STATUS(CollectReferences(home.layers(), found));
  return found;
}

Result<std::vector<fs::path>> UnusedLayers(const Home& home) {
  // First: what appears after that has its reference before it has its name, and is not looked at.
  std::vector<fs::path> layers;
  std::error_code error;
  for (fs::directory_iterator at(home.layers(), error), end; !error && at != end; at.increment(error)) {
    std::error_code ignored;
    if (fs::is_directory(at->path(), ignored)) layers.push_back(PathOfLayer(home, at->path().filename().string()));
  }
  const BackingReferences found = NACRE_TRY(FindBackingReferences(home));
  if (!found.unreadable.empty()) return Context(found.unreadable[0], "which layers are used is not known");
  std::set<fs::path> used;
  for (const auto& reference : found.references) used.insert(reference.to);
  std::erase_if(layers, [&](const fs::path& layer) { return used.contains(Canonical(layer)); });
  return layers;
}

Result<size_t> RemoveUnusedLayers(const Home& home, const LayersGuard&) {
  size_t removed = 0;
  std::set<fs::path> seen;
  // What stood below a removed layer may be free then.
  for (;;) {
    auto unused = NACRE_TRY(UnusedLayers(home));
    // A folder that holds something else stays.
    std::erase_if(unused, [&](const fs::path& layer) { return !seen.insert(layer).second; });
    if (unused.empty()) return removed;
    for (const fs::path& layer : unused) {
      NACRE_TRY_STATUS(RemoveLayer(layer));
      ++removed;
    }
  }
}

namespace {

/// What `upper` holds goes into `lower`, which then takes its place.
Status Merge(const fs::path& upper, const fs::path& lower) {
  NACRE_TRY_STATUS(storage::CommitImage(upper.string()));
  // From here on both hold the same, whichever has the name.
  if (rename(lower.c_str(), upper.c_str()) != 0) return FailErrno("{}", upper.string());
  NACRE_TRY_STATUS(SyncFolder(upper.parent_path()));
  return RemoveLayer(lower);
}

/// A VM that runs on them has all files below its disk open, and would not see tables change. A disk does not shrink.
bool CanMerge(const fs::path& upper, const fs::path& lower) {
  chmod(lower.c_str(), 0600);
  chmod(upper.c_str(), 0600);
  const Fd file(open(lower.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW));
  if (!file.valid() || !storage::LockImage(lower.string(), file.get(), false)) return false;
  const auto above = storage::ReadQcow2Header(upper.string(), Fd(open(upper.c_str(), O_RDONLY | O_CLOEXEC)).get());
  const auto below = storage::ReadQcow2Header(lower.string(), file.get());
  return above && below && above->size_bytes >= below->size_bytes;
}

}  // namespace

Result<size_t> MergeLayers(const Home& home, const LayersGuard&) {
  size_t merged = 0;
  std::set<fs::path> seen;
  for (bool again = true; again;) {
    again = false;
    const BackingReferences found = NACRE_TRY(FindBackingReferences(home));
    if (!found.unreadable.empty()) return Context(found.unreadable[0], "which layers are used is not known");
    std::map<fs::path, std::vector<fs::path>> above;
    for (const auto& reference : found.references) above[reference.to].push_back(reference.from);
    const fs::path layers = Canonical(home.layers());
    for (const auto& [lower, uppers] : above) {
      const fs::path upper = Canonical(uppers[0]);
      if (uppers.size() != 1 || !IsBelow(lower, layers) || !IsBelow(upper, layers) || !seen.insert(upper).second)
        continue;
      const bool can = CanMerge(upper, lower);
      const Status done = can ? Merge(upper, lower) : Status();
      for (const fs::path& layer : {lower, upper}) chmod(layer.c_str(), 0400);
      NACRE_TRY_STATUS(done);
      if (!can) continue;
      ++merged;
      // A third one below may stand alone now, too.
      seen.erase(upper);
      again = true;
      break;
    }
  }
  return merged;
}

void TidyLayers(const Home& home) {
  std::error_code error;
  if (!fs::exists(home.layers(), error)) return;
  const auto guard = LayersGuard::Take(home);
  if (guard && RemoveUnusedLayers(home, *guard)) static_cast<void>(MergeLayers(home, *guard));
}

}  // namespace nacre::lifecycle
