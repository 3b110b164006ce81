#include "lifecycle/image_store.h"

#include <fcntl.h>
#include <fmt/chrono.h>
#include <fmt/ranges.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <ctime>
#include <fstream>

#include "base/sha256.h"
#include "lifecycle/toml_value.h"
#include "lifecycle/vm_files.h"
#include "lifecycle/vm_layers.h"

namespace nacre::lifecycle {

namespace fs = std::filesystem;

namespace {

constexpr std::string_view kTomlName = "image.toml", kLockName = ".lock";
constexpr size_t kPiece = 1024 * 1024;

Status Measure(const fs::path& path, ImageFile& file) {
  struct stat status {};
  if (stat(path.c_str(), &status) != 0) return FailErrno("{}", path.string());
  file.size_bytes = static_cast<uint64_t>(status.st_size);
  file.disk_bytes = static_cast<uint64_t>(status.st_blocks) * 512;
  return {};
}

Result<std::string> SumOf(const fs::path& path, const std::function<void(size_t)>& read_bytes) {
  const Fd file(open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_CLOEXEC));
  if (!file.valid()) return FailErrno("{}", path.string());
  Sha256 sum;
  std::vector<uint8_t> piece(kPiece);
  for (;;) {
    const ssize_t got = read(file.get(), piece.data(), piece.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return FailErrno("{}", path.string());
    if (got == 0) return sum.Finish();
    sum.Add(std::span(piece).first(static_cast<size_t>(got)));
    read_bytes(static_cast<size_t>(got));
  }
}

/// Files in the order of their names.
std::string IdOf(const std::vector<ImageFile>& files) {
  Sha256 sum;
  for (const ImageFile& file : files) {
    const std::string line = fmt::format("{}  {}\n", file.sha256, file.name);
    sum.Add({reinterpret_cast<const uint8_t*>(line.data()), line.size()});
  }
  return sum.Finish();
}

class Counter {
 public:
  Counter(const ImageProgress& progress, const std::vector<ImageFile>& files) : progress_(progress) {
    for (const ImageFile& file : files) total_ += file.size_bytes;
  }
  void Add(size_t bytes) {
    done_ += bytes;
    if (progress_) progress_(done_, total_);
  }

 private:
  const ImageProgress& progress_;
  uint64_t done_ = 0, total_ = 0;
};

bool IsSum(std::string_view text) {
  return text.size() == 64 && text.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

std::vector<fs::path> FilesOf(const Image& image) {
  std::vector<fs::path> files = image.initrds;
  for (const fs::path* one : {&image.kernel, &image.disk})
    if (!one->empty()) files.push_back(*one);
  std::ranges::sort(files);
  return files;
}

}  // namespace

Result<ImageReport> InspectImage(const Home& home, std::string_view name) {
  ImageReport report{.image = NACRE_TRY(ReadImage(home, name)), .id = {}, .created = {}, .source = {}, .files = {}};
  const std::string toml = (report.image.folder / kTomlName).string();
  const TomlValue root = NACRE_TRY(ReadToml(toml));
  if (const TomlValue* created = root.Find("created")) report.created = created->text;
  if (const TomlValue* source = root.Find("source")) report.source = source->text;
  const TomlValue* sums = root.Find("sha256");
  for (const fs::path& path : FilesOf(report.image)) {
    ImageFile file{.name = path.filename().string(), .sha256 = {}};
    NACRE_TRY_STATUS(Measure(path, file));
    const TomlValue* sum = sums && sums->kind == TomlValue::Kind::kTable ? sums->Find(file.name) : nullptr;
    if (!sum || !IsSum(sum->text))
      return Fail("{}:{}: [sha256] has no sum of {}; the image is not one that `nacre image build` made", toml,
                  sums ? sums->line : 1, file.name);
    file.sha256 = sum->text;
    report.files.push_back(std::move(file));
  }
  report.id = IdOf(report.files);
  return report;
}

Status VerifyImage(const Home& home, std::string_view name, const ImageProgress& progress) {
  const ImageReport report = NACRE_TRY(InspectImage(home, name));
  Counter counter(progress, report.files);
  std::vector<std::string> wrong;
  for (const ImageFile& file : report.files) {
    const std::string sum =
        NACRE_TRY(SumOf(report.image.folder / file.name, [&](size_t bytes) { counter.Add(bytes); }));
    if (sum != file.sha256) wrong.push_back(file.name);
  }
  if (wrong.empty()) return {};
  return Fail("image {}: {} changed since it was made; build the image again", name, fmt::join(wrong, " and "));
}

Status RemoveImage(const Home& home, std::string_view name) {
  NACRE_TRY_STATUS(CheckName(name));
  const fs::path folder = home.images() / name;
  std::error_code error;
  if (!fs::is_directory(folder, error)) return Fail("{}: there is no image of this name", name);
  std::vector<std::string> users;
  const std::string below = fmt::format("images/{}/", name);
  for (const std::string& vm : home.VmNames()) {
    std::ifstream file(home.vms() / vm / "vm.toml", std::ios::binary);
    const std::string text(std::istreambuf_iterator<char>(file), {});
    if (text.find(below) != std::string::npos) users.push_back(vm);
  }
  // Disks stand on it by their own headers; a layer is somebody's too.
  const BackingReferences backing = NACRE_TRY(FindBackingReferences(home));
  if (!backing.unreadable.empty()) return Context(backing.unreadable[0], "which images are used is not known");
  const fs::path here = fs::canonical(folder, error);
  for (const auto& reference : backing.references) {
    if (reference.to.parent_path() != here) continue;
    const fs::path from = reference.from.lexically_relative(home.folder());
    std::string user = std::next(from.begin())->string();
    if (*from.begin() == "layers") user = "layer " + user;
    if (std::ranges::find(users, user) == users.end()) users.push_back(std::move(user));
  }
  if (!users.empty())
    return Fail("image {} is in use by {}; remove them first (nacre rm)", name, fmt::join(users, ", "));
  const fs::path removed = home.images() / fmt::format("{}{}-{}", kRemovedPrefix, name, getpid());
  NACRE_TRY_STATUS(RenameNew(folder, removed));
  NACRE_TRY_STATUS(SyncFolder(home.images()));
  return RemoveTree(removed);
}

Result<std::unique_ptr<NewImage>> NewImage::Begin(const Home& home, const std::string& name, bool replace) {
  NACRE_TRY_STATUS(CheckName(name));
  std::error_code error;
  if (!replace && fs::exists(home.images() / name, error))
    return Fail("{}: there is an image of this name; --replace makes it anew, `nacre image rm {}` removes it", name,
                name);
  NACRE_TRY_STATUS(MakeFolders(home.images()));
  std::unique_ptr<NewImage> made(new NewImage(home, name, replace));
  NACRE_TRY_STATUS(made->RemoveLeftovers());
  std::string path = (home.images() / fmt::format("{}{}-XXXXXX", kNewPrefix, name)).string();
  if (!mkdtemp(path.data())) return FailErrno("{}", path);
  made->folder_ = path;
  made->lock_ = Fd(open((made->folder_ / kLockName).c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!made->lock_.valid() || flock(made->lock_.get(), LOCK_EX | LOCK_NB) != 0) return FailErrno("{}", path);
  return made;
}

NewImage::~NewImage() {
  if (!done_ && !folder_.empty()) (void)RemoveTree(folder_);
}

/// What is locked is being made. A folder without a lock file is another process's that has just made it, or a removed
/// image; an old one is nobody's.
Status NewImage::RemoveLeftovers() const {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(home_.images(), error)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with(kNewPrefix) && !name.starts_with(kRemovedPrefix)) continue;
    const Fd lock(open((entry.path() / kLockName).c_str(), O_RDWR | O_CLOEXEC));
    struct stat status {};
    const bool old = stat(entry.path().c_str(), &status) == 0 && time(nullptr) - status.st_mtime > 3600;
    const bool free = lock.valid() ? flock(lock.get(), LOCK_EX | LOCK_NB) == 0 : old;
    if (free) NACRE_TRY_STATUS(RemoveTree(entry.path()));
  }
  return {};
}

void NewImage::ShareFile(const ImageFile& file) const {
  for (const std::string& name : home_.ImageNames()) {
    const auto other = InspectImage(home_, name);
    if (!other) continue;
    for (const ImageFile& candidate : other->files) {
      const fs::path from = other->image.folder / candidate.name;
      if (candidate.sha256 != file.sha256 || candidate.size_bytes != file.size_bytes) continue;
      // What it says it is, it may be no more.
      const auto sum = SumOf(from, [](size_t) {});
      const fs::path linked = folder_ / (file.name + ".same");
      if (!sum || *sum != file.sha256 || link(from.c_str(), linked.c_str()) != 0) continue;
      if (rename(linked.c_str(), (folder_ / file.name).c_str()) == 0) {
        unlink(linked.c_str());
        return;
      }
      unlink(linked.c_str());
    }
  }
}

Result<std::string> NewImage::Commit(const Parts& parts, const ImageProgress& progress) {
  std::vector<std::string> names = parts.initrds;
  for (const std::string* one : {&parts.kernel, &parts.disk})
    if (!one->empty()) names.push_back(*one);
  std::ranges::sort(names);
  std::vector<ImageFile> files;
  for (const std::string& name : names) {
    files.push_back({.name = name, .sha256 = {}});
    NACRE_TRY_STATUS(Measure(folder_ / name, files.back()));
  }
  Counter counter(progress, files);
  for (ImageFile& file : files) {
    const fs::path path = folder_ / file.name;
    file.sha256 = NACRE_TRY(SumOf(path, [&](size_t bytes) { counter.Add(bytes); }));
    ShareFile(file);
    const Fd written(open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (!written.valid() || fchmod(written.get(), 0444) != 0 || fsync(written.get()) != 0)
      return FailErrno("{}", path.string());
  }
  std::string text =
      fmt::format("name = {}\ncreated = {:%Y-%m-%dT%H:%M:%S}Z\n", TomlQuoted(name_), fmt::gmtime(time(nullptr)));
  const auto add = [&](std::string_view key, const std::string& value) {
    if (!value.empty()) text += fmt::format("{} = {}\n", key, TomlQuoted(value));
  };
  add("source", parts.source);
  add("kernel", parts.kernel);
  if (parts.initrds.size() == 1) add("initrd", parts.initrds[0]);
  if (parts.initrds.size() > 1) {
    std::vector<std::string> quoted;
    for (const std::string& one : parts.initrds) quoted.push_back(TomlQuoted(one));
    text += fmt::format("initrd = [{}]\n", fmt::join(quoted, ", "));
  }
  add("append", parts.append);
  add("disk", parts.disk);
  if (!parts.disk.empty()) add("disk-format", parts.disk_format);
  add("firmware", parts.firmware);
  add("memory", parts.memory);
  text += "\n[sha256]\n";
  for (const ImageFile& file : files) text += fmt::format("{} = {}\n", TomlQuoted(file.name), TomlQuoted(file.sha256));
  NACRE_TRY_STATUS(WriteAtomically(folder_ / kTomlName, text, 0444));
  // Nothing else of the making stays.
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder_, error)) {
    const std::string name = entry.path().filename().string();
    if (name != kTomlName && name != kLockName && std::ranges::find(names, name) == names.end())
      NACRE_TRY_STATUS(RemoveTree(entry.path()));
  }
  unlink((folder_ / kLockName).c_str());
  if (chmod(folder_.c_str(), 0755) != 0) return FailErrno("{}", folder_.string());
  NACRE_TRY_STATUS(SyncFolder(folder_));
  if (replace_ && fs::exists(home_.images() / name_, error)) NACRE_TRY_STATUS(RemoveImage(home_, name_));
  NACRE_TRY_STATUS(RenameNew(folder_, home_.images() / name_));
  done_ = true;
  NACRE_TRY_STATUS(SyncFolder(home_.images()));
  return IdOf(files);
}

}  // namespace nacre::lifecycle
