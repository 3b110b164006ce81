#include "cli/cp_command.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <sys/stat.h>
#include <unistd.h>

#include <charconv>
#include <filesystem>
#include <optional>

#include "base/write_all.h"
#include "cli/commands.h"
#include "cli/guest_session.h"
#include "cli/run_options.h"
#include "cli/tar_stream.h"

namespace nacre::cli {

namespace {

namespace fs = std::filesystem;

constexpr std::string_view kHelp =
    "Usage: nacre cp [--wait TIME] [--quiet] VM:PATH LOCAL\n"
    "       nacre cp [--wait TIME] [--quiet] LOCAL VM:PATH\n\n"
    "Copies a file or a folder out of a running VM or into it by its guest agent (Debian's package qemu-guest-agent).\n"
    "A target that is a folder gets the source below its own name. Permissions are kept; folders need tar in the "
    "guest.\n\n"
    "  --wait TIME  wait so long for the VM and its agent (0)\n"
    "  --quiet      show no progress, which is shown on a terminal\n\n"
    "VM is a VM's name, or the path of the socket of `nacre run --control PATH` (with a '/'). A local file with a "
    "colon\n"
    "in its name is given with a '/' before it: ./a:b\n";

/// VM:PATH.
struct GuestPath {
  std::string vm, path;
};

struct CpOptions {
  std::string local;
  GuestPath guest;
  bool into_guest = false, help = false, quiet = false;
  std::chrono::milliseconds wait{0};
};

std::optional<GuestPath> ParseGuestPath(const std::string& word) {
  const size_t colon = word.rfind(':');
  for (size_t at = word.find(':'); at != std::string::npos; at = word.find(':', at + 1)) {
    const std::string vm = word.substr(0, at);
    std::error_code error;
    const bool socket = vm.find('/') != std::string::npos && fs::is_socket(vm, error);
    const bool name = !vm.empty() && vm.find('/') == std::string::npos;
    if (name || socket) return GuestPath{vm, word.substr(at + 1)};
    if (at == colon) break;
  }
  return std::nullopt;
}

Result<CpOptions> Parse(std::span<const std::string_view> words) {
  CpOptions options;
  std::vector<std::string> plain;
  bool only_plain = false;
  for (size_t i = 0; i < words.size(); ++i) {
    const std::string_view word = words[i];
    if (only_plain || !word.starts_with("-")) {
      plain.emplace_back(word);
    } else if (word == "--") {
      only_plain = true;
    } else if (word == "--help" || word == "-h") {
      options.help = true;
      return options;
    } else if (word == "--quiet") {
      options.quiet = true;
    } else if (word == "--wait" && i + 1 < words.size()) {
      const auto time = ParseDurationMs(words[++i]);
      if (!time) return Fail("--wait {}: {}", words[i], time.error().message);
      options.wait = std::chrono::milliseconds(*time);
    } else {
      return Fail("unknown option {}", word);
    }
  }
  if (plain.size() != 2) return Fail("give VM:PATH LOCAL, or LOCAL VM:PATH");
  auto from = ParseGuestPath(plain[0]), to = ParseGuestPath(plain[1]);
  if (!from == !to)
    return Fail("{}; give VM:PATH LOCAL, or LOCAL VM:PATH",
                from ? "from a VM to a VM: copy by way of a local file" : "neither of the two is VM:PATH");
  options.into_guest = to.has_value();
  options.guest = from ? *from : *to;
  options.local = from ? plain[1] : plain[0];
  if (options.guest.path.empty()) return Fail("name a path after {}:", options.guest.vm);
  if (options.local.empty()) return Fail("a local path is empty");
  return options;
}

class Progress {
 public:
  Progress(bool shown, std::optional<uint64_t> total) : shown_(shown), total_(total) {}
  ~Progress() {
    if (printed_) fmt::print(stderr, "\r\x1b[K");
  }
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  void Add(size_t bytes) {
    done_ += bytes;
    const auto now = GuestSession::Clock::now();
    if (!shown_ || now < next_) return;
    next_ = now + std::chrono::milliseconds(200);
    const double seconds = std::chrono::duration<double>(now - start_).count();
    const std::string of =
        total_ && *total_ > 0
            ? fmt::format(" of {:.1f} MiB, {} %", static_cast<double>(*total_) / 1048576, done_ * 100 / *total_)
            : " MiB";
    fmt::print(stderr, "\r\x1b[K{:.1f}{}, {:.1f} MiB/s", static_cast<double>(done_) / 1048576, of,
               seconds > 0 ? static_cast<double>(done_) / 1048576 / seconds : 0.0);
    printed_ = true;
  }

 private:
  const bool shown_;
  const std::optional<uint64_t> total_;
  const GuestSession::Clock::time_point start_ = GuestSession::Clock::now();
  GuestSession::Clock::time_point next_ = start_ + std::chrono::milliseconds(500);
  uint64_t done_ = 0;
  bool printed_ = false;
};

std::string BaseName(std::string path) {
  while (path.size() > 1 && path.ends_with('/')) path.pop_back();
  return path.substr(path.rfind('/') + 1);
}

struct GuestKind {
  enum class Kind : uint8_t { kNothing, kFile, kFolder, kOther } kind = Kind::kNothing;
  uint32_t mode = 0;
  uint64_t size_bytes = 0;
};

/// What a path of the guest is, links followed.
Result<GuestKind> Look(GuestSession& session, const std::string& path) {
  const std::string text = NACRE_TRY(
      session.Ask({"/bin/sh", "-c", R"(if [ -e "$0" ]; then stat -L -c '%f %s' -- "$0"; else echo none; fi)", path}));
  GuestKind found;
  if (text == "none\n") return found;
  unsigned mode = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), mode, 16);
  if (error != std::errc() || std::from_chars(end + 1, text.data() + text.size(), found.size_bytes).ec != std::errc())
    return Fail("{}: the guest's stat makes no sense", path);
  using Kind = GuestKind::Kind;
  found.kind = S_ISREG(mode) ? Kind::kFile : S_ISDIR(mode) ? Kind::kFolder : Kind::kOther;
  found.mode = mode & 0777;
  return found;
}

/// Removes a temporary file of the guest at the end.
class GuestTemporary {
 public:
  static Result<std::unique_ptr<GuestTemporary>> Make(GuestSession& session) {
    return std::unique_ptr<GuestTemporary>(new GuestTemporary(session, NACRE_TRY(session.MakeTemporary())));
  }
  ~GuestTemporary() { session_.Remove(path_); }
  GuestTemporary(const GuestTemporary&) = delete;
  GuestTemporary& operator=(const GuestTemporary&) = delete;
  const std::string& path() const { return path_; }

 private:
  GuestTemporary(GuestSession& session, std::string path) : session_(session), path_(std::move(path)) {}
  GuestSession& session_;
  const std::string path_;
};

// -- out of the guest

/// Complete, or not there.
Status TakeFile(GuestSession& session, const std::string& from, const GuestKind& kind, const fs::path& to,
                bool progress) {
  std::error_code error;
  if (fs::exists(to, error) && !fs::is_regular_file(to, error)) {  // a pipe, /dev/null
    const Fd file(open(to.c_str(), O_WRONLY | O_CLOEXEC));
    if (!file.valid()) return FailErrno("{}", to.string());
    return session.ReadFile(from, [&](std::string_view bytes) { return WriteAll(file.get(), bytes); });
  }
  std::string name = (to.parent_path() / fmt::format(".{}.XXXXXX", to.filename().string().substr(0, 200))).string();
  const Fd file(mkostemp(name.data(), O_CLOEXEC));
  if (!file.valid()) return FailErrno("{}", to.string());
  Progress shown(progress, kind.size_bytes);
  Status status = session.ReadFile(from, [&](std::string_view bytes) {
    shown.Add(bytes.size());
    return WriteAll(file.get(), bytes);
  });
  if (status && (fchmod(file.get(), kind.mode) != 0 || rename(name.c_str(), to.c_str()) != 0))
    status = FailErrno("{}", to.string());
  if (!status) unlink(name.c_str());
  return status;
}

Status TakeFolder(GuestSession& session, const std::string& from, const fs::path& to, bool progress) {
  const auto temporary = NACRE_TRY(GuestTemporary::Make(session));
  // By the folder's own name, also where the path is a link or ends with "..".
  NACRE_TRY(
      session.Ask({"/bin/sh", "-c", R"sh(cd -P -- "$1" && n=$(basename "$PWD") && cd .. && tar -cf "$0" "./$n")sh",
                   temporary->path(), from}));
  const fs::path parent = to.parent_path().empty() ? fs::path(".") : to.parent_path();
  TarReader reader(Fd(open(parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)), to.filename().string());
  const GuestKind archive = NACRE_TRY(Look(session, temporary->path()));
  Progress shown(progress, archive.size_bytes);
  NACRE_TRY_STATUS(session.ReadFile(temporary->path(), [&](std::string_view bytes) {
    shown.Add(bytes.size());
    return reader.Take(bytes);
  }));
  NACRE_TRY_STATUS(reader.Finish());
  for (const std::string& name : reader.skipped())
    fmt::print(stderr, "nacre: left out, no file and no folder: {}\n", name);
  return {};
}

Status CopyOut(GuestSession& session, const CpOptions& options, bool progress) {
  const std::string& from = options.guest.path;
  const GuestKind kind = NACRE_TRY(Look(session, from));
  if (kind.kind == GuestKind::Kind::kNothing) return Fail("{}: not there in the guest", from);
  if (kind.kind == GuestKind::Kind::kOther) return Fail("{}: neither a file nor a folder in the guest", from);
  fs::path to = options.local;
  std::error_code error;
  const std::string name = BaseName(from);
  if (fs::is_directory(to, error)) {
    if (name.empty() || name == "." || name == "..") return Fail("{}: give it a name: {}/NAME", from, options.local);
    to /= name;
  } else if (!to.has_filename()) {
    return Fail("{}: no such folder", options.local);
  }
  if (to.parent_path().empty()) to = fs::path(".") / to;
  return kind.kind == GuestKind::Kind::kFile ? TakeFile(session, from, kind, to, progress)
                                             : TakeFolder(session, from, to, progress);
}

// -- into the guest

Status SendFile(GuestSession& session, const std::string& from, const struct stat& status, const std::string& to,
                bool replaces, bool progress) {
  const Fd file(open(from.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file.valid()) return FailErrno("{}", from);
  Progress shown(progress, S_ISREG(status.st_mode) ? std::optional<uint64_t>(status.st_size) : std::nullopt);
  const auto produce = [&](const GuestSession::Sink& sink) -> Status {
    std::string piece(256 * 1024, '\0');
    for (;;) {
      const ssize_t got = read(file.get(), piece.data(), piece.size());
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return FailErrno("{}", from);
      if (got == 0) return {};
      NACRE_TRY_STATUS(sink(std::string_view(piece).substr(0, static_cast<size_t>(got))));
      shown.Add(static_cast<size_t>(got));
    }
  };
  // A device or a link of the guest is written to; a file is replaced when all is there.
  if (!replaces) return session.WriteFile(to, produce);
  const std::string name = NACRE_TRY(session.Ask({"mktemp", to + ".XXXXXX"}));
  const std::string temporary = name.substr(0, name.find('\n'));
  Status written = session.WriteFile(temporary, produce);
  if (written) {
    const auto moved = session.Ask({"/bin/sh", "-c", R"(chmod "$0" "$1" && mv -f "$1" "$2")",
                                    fmt::format("{:o}", status.st_mode & 0777), temporary, to});
    if (!moved) written = std::unexpected(moved.error());
  }
  if (!written) session.Remove(temporary);
  return written;
}

Status SendFolder(GuestSession& session, const std::string& from, const std::string& to, bool progress) {
  const auto temporary = NACRE_TRY(GuestTemporary::Make(session));
  Progress shown(progress, std::nullopt);
  const std::string name = BaseName(to);
  if (name.empty() || name == "." || name == "..") return Fail("{}: it has no name of its own", to);
  NACRE_TRY_STATUS(session.WriteFile(temporary->path(), [&](const GuestSession::Sink& sink) {
    const auto count = [&](std::string_view bytes) {
      shown.Add(bytes.size());
      return sink(bytes);
    };
    return WriteTar(from, name, count, [](const std::string& what) {
      fmt::print(stderr, "nacre: left out, no file and no folder: {}\n", what);
    });
  }));
  NACRE_TRY(
      session.Ask({"/bin/sh", "-c", R"sh(cd -- "$(dirname -- "$1")" && tar -xpof "$0")sh", temporary->path(), to}));
  return {};
}

Status CopyIn(GuestSession& session, const CpOptions& options, bool progress) {
  struct stat status {};
  if (stat(options.local.c_str(), &status) != 0) return FailErrno("{}", options.local);
  std::string to = options.guest.path;
  GuestKind kind = NACRE_TRY(Look(session, to));
  if (kind.kind == GuestKind::Kind::kFolder) {
    std::error_code error;
    const std::string name = BaseName(fs::weakly_canonical(options.local, error).string());
    if (name.empty()) return Fail("{}: it has no name of its own", options.local);
    to += (to.ends_with('/') ? "" : "/") + name;
    kind = NACRE_TRY(Look(session, to));
  } else if (to.ends_with('/')) {
    return Fail("{}: no such folder in the guest", to);
  }
  using Kind = GuestKind::Kind;
  if (S_ISDIR(status.st_mode)) {
    if (kind.kind == Kind::kFile || kind.kind == Kind::kOther) return Fail("{}: a file stands there in the guest", to);
    return SendFolder(session, options.local, to, progress);
  }
  if (kind.kind == Kind::kFolder) return Fail("{}: a folder stands there in the guest", to);
  const auto link = session.Ask({"/bin/sh", "-c", R"([ -L "$0" ] && echo link || echo plain)", to});
  const bool replaces = kind.kind != Kind::kOther && link && *link == "plain\n";
  return SendFile(session, options.local, status, to, replaces, progress);
}

}  // namespace

int CpCommand(std::span<const std::string_view> words) {
  const auto options = Parse(words);
  if (!options) {
    fmt::print(stderr, "nacre: `nacre cp`: {}\nTry `nacre cp --help`.\n", options.error().message);
    return kExitUsage;
  }
  if (options->help) {
    fmt::print("{}", kHelp);
    return kExitDone;
  }
  const bool progress = !options->quiet && isatty(STDERR_FILENO) != 0;
  Status status;
  {
    auto session = GuestSession::Open(options->guest.vm, options->wait);
    if (!session)
      status = std::unexpected(session.error());
    else
      status = options->into_guest ? CopyIn(*session, *options, progress) : CopyOut(*session, *options, progress);
  }
  if (status) return kExitDone;
  fmt::print(stderr, "nacre: {}\n", status.error().message);
  return kExitFailed;
}

}  // namespace nacre::cli
