#include "machine/snapshot_files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>

#include "base/fd.h"
#include "machine/config_archive.h"
#include "state/archive.h"
#include "storage/image.h"

namespace nacre::machine {
namespace {

/// Screens are the largest part of it.
constexpr uint64_t kMaxStateBytes = 1 * kGiB;
constexpr size_t kMaxName = 255, kMaxParents = 1000;

Result<std::vector<uint8_t>> ReadFile(const std::string& path, uint64_t most_bytes) {
  const Fd file(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  struct stat info {};
  if (!file.valid() || fstat(file.get(), &info) != 0) return FailErrno("{}", path);
  if (!S_ISREG(info.st_mode) || static_cast<uint64_t>(info.st_size) > most_bytes)
    return Fail("{}: not a saved state of Nacre", path);
  std::vector<uint8_t> bytes(static_cast<size_t>(info.st_size));
  for (size_t at = 0; at < bytes.size();) {
    const ssize_t got = read(file.get(), &bytes[at], bytes.size() - at);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return FailErrno("{}", path);
    if (got == 0) return Fail("{}: the file ends too early", path);
    at += static_cast<size_t>(got);
  }
  return bytes;
}

std::filesystem::path SiblingsOf(const std::string& directory) {
  const std::filesystem::path path = std::filesystem::absolute(directory).lexically_normal();
  return path.has_filename() ? path.parent_path() : path.parent_path().parent_path();
}

/// A directory beside, nothing else.
bool IsPlainName(const std::string& name) {
  return !name.empty() && name.find('/') == std::string::npos && name.find('\0') == std::string::npos && name[0] != '.';
}

}  // namespace

void SnapshotIdentity::Serialize(state::Archive& archive) {
  archive.Text(1, id, 64);
  archive.Text(2, parent, kMaxName);
  archive.Text(3, parent_id, 64);
  archive.Field(4, created_utc_ns);
  archive.Field(5, passing);
  if (archive.loading() && !parent.empty() && !IsPlainName(parent)) archive.Reject("an impossible name of a parent");
}

Result<state::StateFile> ReadStateFile(const std::string& directory) {
  const std::string path = fmt::format("{}/{}", directory, kStateFile);
  const std::vector<uint8_t> bytes = NACRE_TRY(ReadFile(path, kMaxStateBytes));
  auto file = state::StateFile::Decode(bytes);
  if (!file) return Context(file.error(), "{}", path);
  return file;
}

Status LoadSection(const state::StateFile& file, const std::string& name,
                   const std::function<void(state::Archive&)>& fields) {
  const state::StateFile::Section* const section = file.Find(name);
  if (!section) return Fail("section '{}' is missing", name);
  state::Archive archive = state::Archive::ForLoading(section->content);
  if (archive.ok()) fields(archive);
  if (const Status status = archive.status(); !status) return Context(status.error(), "section '{}'", name);
  return {};
}

std::vector<uint8_t> SaveSection(const std::function<void(state::Archive&)>& fields) {
  state::Archive archive = state::Archive::ForSaving();
  fields(archive);
  return archive.Finish();
}

Result<SnapshotIdentity> ReadIdentity(const state::StateFile& file) {
  SnapshotIdentity identity;
  NACRE_TRY_STATUS(LoadSection(file, "identity", [&](state::Archive& archive) { identity.Serialize(archive); }));
  return identity;
}

Result<memory::ImageMap> ReadImageMap(const state::StateFile& file) {
  memory::ImageMap map;
  NACRE_TRY_STATUS(LoadSection(file, "memory", [&](state::Archive& archive) { map.Serialize(archive); }));
  return map;
}

Result<MachineConfig> ReadConfig(const state::StateFile& file) {
  MachineConfig config;
  NACRE_TRY_STATUS(LoadSection(file, "config", [&](state::Archive& archive) { SerializeConfig(archive, config); }));
  return config;
}

std::string SnapshotDiskName(size_t number) { return fmt::format("disk{}.qcow2", number); }

Result<MachineConfig> ReadConfigToRun(const std::string& directory) {
  const state::StateFile file = NACRE_TRY(ReadStateFile(directory));
  MachineConfig config = NACRE_TRY(ReadConfig(file));
  config.restore = directory;
  for (size_t i = 0; i < config.disks.size(); ++i) {
    DiskConfig& disk = config.disks[i];
    if (disk.read_only) continue;
    disk.path = fmt::format("{}/{}", directory, SnapshotDiskName(i));
    disk.format = storage::ImageFormat::kQcow2;
    disk.snapshot = true;
  }
  return config;
}

Result<std::unique_ptr<memory::MemoryImage>> OpenMemory(const std::string& directory) {
  std::vector<memory::ImageLayer> layers;
  const std::filesystem::path siblings = SiblingsOf(directory);
  std::string at = directory, wanted_id;
  for (;;) {
    const state::StateFile file = NACRE_TRY(ReadStateFile(at));
    auto identity = ReadIdentity(file);
    if (!identity) return Context(identity.error(), "{}/{}", at, kStateFile);
    if (!layers.empty() && identity->id != wanted_id)
      return Fail("{}: not the snapshot that the ones above were made on; that is gone", at);
    auto map = ReadImageMap(file);
    if (!map) return Context(map.error(), "{}/{}", at, kStateFile);
    layers.push_back({fmt::format("{}/{}", at, kMemoryFile), std::move(*map)});
    if (identity->parent.empty()) break;
    if (layers.size() > kMaxParents) return Fail("{}: more than {} parents", directory, kMaxParents);
    wanted_id = identity->parent_id;
    at = siblings / identity->parent;
  }
  return memory::MemoryImage::Open(std::move(layers));
}

Status SyncDirectory(const std::string& path) {
  const Fd directory(open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!directory.valid() || fsync(directory.get()) != 0) return FailErrno("{}", path);
  return {};
}

namespace {

Status WriteAs(const std::string& path, int flags, std::span<const uint8_t> bytes, bool sync) {
  const Fd file(open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | flags, 0600));
  if (!file.valid()) return FailErrno("{}", path);
  while (!bytes.empty()) {
    const ssize_t done = write(file.get(), bytes.data(), bytes.size());
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) return FailErrno("{}", path);
    bytes = bytes.subspan(static_cast<size_t>(done));
  }
  if (sync && fsync(file.get()) != 0) return FailErrno("{}", path);
  return {};
}

}  // namespace

Status WriteNewFile(const std::string& path, std::span<const uint8_t> bytes) {
  return WriteAs(path, O_EXCL, bytes, false);
}

Status WriteFileDurably(const std::string& path, std::span<const uint8_t> bytes) {
  const std::string temporary = path + ".new";
  NACRE_TRY_STATUS(WriteAs(temporary, O_TRUNC, bytes, true));
  if (rename(temporary.c_str(), path.c_str()) != 0) return FailErrno("{}", path);
  return SyncDirectory(std::filesystem::path(path).parent_path());
}

}  // namespace nacre::machine
