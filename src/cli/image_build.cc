#include "cli/image_build.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <fmt/ranges.h>
#include <signal.h>
#include <spawn.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <fstream>

#include "base/fd.h"
#include "base/size_text.h"
#include "cli/paths.h"
#include "lifecycle/vm_files.h"
#include "storage/foreign_image.h"
#include "storage/image_tools.h"

namespace nacre::cli {

namespace {

namespace fs = std::filesystem;
using Parts = lifecycle::NewImage::Parts;

constexpr const char* kScript = "scripts/build-image";
constexpr std::string_view kDiskName = "disk.raw";
/// Also when its file has been replaced meanwhile.
constexpr const char* kOwnProgram = "/proc/self/exe";
std::atomic<pid_t> running_child = 0;

/// While a program runs, a signal that asks us to end ends it, and we tidy up behind it.
class PassSignals {
 public:
  PassSignals() {
    struct sigaction action {};
    action.sa_handler = [](int number) {
      if (const pid_t child = running_child; child > 0) kill(child, number);
    };
    for (size_t i = 0; i < std::size(kNumbers); ++i) sigaction(kNumbers[i], &action, &before_[i]);
  }
  ~PassSignals() {
    for (size_t i = 0; i < std::size(kNumbers); ++i) sigaction(kNumbers[i], &before_[i], nullptr);
  }
  PassSignals(const PassSignals&) = delete;
  PassSignals& operator=(const PassSignals&) = delete;

 private:
  static constexpr int kNumbers[] = {SIGINT, SIGTERM, SIGHUP};
  struct sigaction before_[std::size(kNumbers)]{};
};

/// With our standard streams, or with no input and all output on our standard error.
Status RunProgram(std::vector<std::string> words, bool interactive) {
  std::vector<char*> arguments;
  for (std::string& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  if (!interactive) {
    posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&actions, STDERR_FILENO, STDOUT_FILENO);
  }
  const PassSignals signals;
  pid_t child = 0;
  const int failed = posix_spawnp(&child, arguments[0], &actions, nullptr, arguments.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (failed != 0) return Fail("{}: {}", words[0], std::strerror(failed));
  running_child = child;
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  running_child = 0;
  if (WIFSIGNALED(status)) return Fail("{} was ended by signal {}", words[0], WTERMSIG(status));
  if (WEXITSTATUS(status) != 0) return Fail("{} failed (its messages are above)", words[0]);
  return {};
}

Result<std::string> FirstLine(const fs::path& path) {
  std::ifstream file(path);
  std::string line;
  if (!std::getline(file, line)) return Fail("{}: cannot read it", path.string());
  return line;
}

Result<Parts> BuildDebian(const ImageBuildOptions& options, const fs::path& folder) {
  const auto tree = SourceTree();
  if (!tree)
    return Fail("`nacre image build debian` needs {} of Nacre's source folder, and the program runs elsewhere",
                kScript);
  std::vector<std::string> words{(*tree / kScript).string(), folder.string()};
  const auto add = [&](const char* option, const std::string& value) {
    if (!value.empty()) words.insert(words.end(), {option, value});
  };
  add("--size", options.size);
  add("--user", options.user);
  add("--ssh-key", options.ssh_key);
  for (const std::string& package : options.packages) add("--package", package);
  NACRE_TRY_STATUS(RunProgram(std::move(words), false));
  // Zeros take no time to check, and no room where files have no holes.
  const std::string disk = "disk.qcow2", raw = (folder / kDiskName).string();
  NACRE_TRY_STATUS(RunProgram({kOwnProgram, "disk", "convert", raw, (folder / disk).string()}, false));
  if (unlink(raw.c_str()) != 0) return FailErrno("{}", raw);
  return Parts{.kernel = "kernel",
               .disk = disk,
               .initrds = {"initrd"},
               .append = NACRE_TRY(FirstLine(folder / "cmdline")),
               .firmware = {},
               .disk_format = "qcow2",
               .source = "debian",
               .memory = options.memory};
}

enum class Kind : uint8_t { kDisk, kQcow2, kDisc };

Result<Kind> KindOf(const std::string& path) {
  const Fd file(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file.valid()) return FailErrno("{}", path);
  char start[8] = {}, volume[5] = {};
  if (pread(file.get(), start, sizeof(start), 0) < 0) return FailErrno("{}", path);
  if (pread(file.get(), volume, sizeof(volume), 32769) == sizeof(volume) && std::string_view(volume, 5) == "CD001")
    return Kind::kDisc;
  return std::string_view(start, sizeof(start)).starts_with("QFI\xfb") ? Kind::kQcow2 : Kind::kDisk;
}

Result<Parts> TakeDisk(const ImageBuildOptions& options, Kind kind, const fs::path& folder) {
  const std::string foreign = storage::ForeignFormat(options.from);
  const bool qcow2 = kind == Kind::kQcow2 || !foreign.empty();
  const std::string name = qcow2 ? "disk.qcow2" : std::string(kDiskName), to = (folder / name).string();
  const storage::ImageOptions source{.path = options.from, .format = storage::ImageFormat::kQcow2};
  // An image stands alone.
  if (!foreign.empty())
    NACRE_TRY_STATUS(storage::ConvertForeign(foreign, options.from, to));
  else if (qcow2 && !NACRE_TRY(storage::DescribeImage(source, false)).front().backing.empty())
    NACRE_TRY_STATUS(storage::ConvertImage(source, to, {}));
  else
    NACRE_TRY_STATUS(lifecycle::CopyFile(options.from, to));
  return Parts{.kernel = {},
               .disk = name,
               .initrds = {},
               .append = {},
               .firmware = options.firmware.empty() ? "bios" : options.firmware,
               .disk_format = qcow2 ? "qcow2" : "raw",
               .source = options.from,
               .memory = options.memory};
}

Status MakeDisk(const fs::path& path, const std::string& size) {
  const auto bytes = ParseSize(size);
  if (!bytes) return Fail("--size {}: {}", size, bytes.error().message);
  const Fd file(open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (!file.valid() || ftruncate(file.get(), static_cast<off_t>(*bytes)) != 0) return FailErrno("{}", path.string());
  return {};
}

/// The newest kernel, as Debian and others name them, and its initrd.
Status TakeKernel(const fs::path& boot, const fs::path& folder, Parts& parts) {
  std::vector<std::string> releases;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(boot, error)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with("vmlinuz-")) releases.push_back(name.substr(8));
  }
  if (releases.empty()) return Fail("{}: there is no vmlinuz-VERSION to start it with", boot.string());
  std::ranges::sort(releases,
                    [](const std::string& a, const std::string& b) { return strverscmp(a.c_str(), b.c_str()) < 0; });
  const std::string& release = releases.back();
  NACRE_TRY_STATUS(lifecycle::CopyFile(boot / ("vmlinuz-" + release), folder / "kernel"));
  parts.kernel = "kernel";
  for (const std::string& name : {"initrd.img-" + release, "initramfs-" + release + ".img", "initramfs-" + release}) {
    if (!fs::exists(boot / name, error)) continue;
    NACRE_TRY_STATUS(lifecycle::CopyFile(boot / name, folder / "initrd"));
    parts.initrds = {"initrd"};
    break;
  }
  return {};
}

Result<Parts> TakeFolder(const ImageBuildOptions& options, const fs::path& folder) {
  Parts parts{.kernel = {},
              .disk = std::string(kDiskName),
              .initrds = {},
              .append = "console=ttyS0 root=/dev/vda rw systemd.hostname={name}",
              .firmware = {},
              .disk_format = "raw",
              .source = options.from,
              .memory = options.memory};
  NACRE_TRY_STATUS(TakeKernel(fs::path(options.from) / "boot", folder, parts));
  const fs::path disk = folder / kDiskName;
  NACRE_TRY_STATUS(MakeDisk(disk, options.size.empty() ? "8G" : options.size));
  NACRE_TRY_STATUS(
      RunProgram({"mke2fs", "-q", "-F", "-t", "ext4", "-L", "root", "-d", options.from, disk.string()}, false));
  return parts;
}

/// A person installs, or the disc does by itself; the image is what stands on the disk when the machine powers off or
/// restarts.
Result<Parts> Install(const ImageBuildOptions& options, const fs::path& folder) {
  const fs::path disk = folder / kDiskName;
  const std::string firmware = options.firmware.empty() ? "bios" : options.firmware;
  NACRE_TRY_STATUS(MakeDisk(disk, options.size.empty() ? "16G" : options.size));
  const std::string display = options.display.empty() ? "vnc:unix:" + (folder / "vnc").string() : options.display;
  fmt::print(
      stderr,
      "nacre: the installer starts, its screen is {} and its serial port this terminal; the image is complete when "
      "the\nmachine powers off or restarts\n",
      display);
  NACRE_TRY_STATUS(RunProgram({kOwnProgram, "run", "--firmware", firmware, "--boot", "cdrom,disk", "--cdrom",
                               options.from, "--disk", disk.string() + ",format=raw", "--memory",
                               options.memory.empty() ? "1G" : options.memory, "--display", display, "--no-reboot"},
                              true));
  return Parts{.kernel = {},
               .disk = std::string(kDiskName),
               .initrds = {},
               .append = {},
               .firmware = firmware,
               .disk_format = "raw",
               .source = options.from,
               .memory = options.memory};
}

}  // namespace

Result<Parts> BuildImage(const ImageBuildOptions& options, const lifecycle::NewImage& image) {
  if (options.from.empty()) return BuildDebian(options, image.folder());
  std::error_code error;
  if (fs::is_directory(options.from, error)) return TakeFolder(options, image.folder());
  const Kind kind = NACRE_TRY(KindOf(options.from));
  return kind == Kind::kDisc ? Install(options, image.folder()) : TakeDisk(options, kind, image.folder());
}

}  // namespace nacre::cli
