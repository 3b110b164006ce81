#include "cli/tar_stream.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <memory>

#include "base/write_all.h"

namespace nacre::cli {

namespace {

using tar::kBlock;
using tar::kNameSize;
constexpr int kMaxFolders = 256;
using Sink = std::function<Status(std::string_view)>;

std::string Text(std::string_view field) { return std::string(field.substr(0, field.find('\0'))); }

Status PutData(std::string_view data, const Sink& sink) {
  NACRE_TRY_STATUS(sink(data));
  return sink(std::string(tar::PaddingOf(data.size()), '\0'));
}

Status PutHeader(const std::string& name, const std::string& link, char type, const struct stat& status, uint64_t size,
                 const Sink& sink) {
  for (const auto& [text, kind] : {std::pair(&name, 'L'), std::pair(&link, 'K')}) {
    if (text->size() <= kNameSize) continue;
    NACRE_TRY_STATUS(
        sink(tar::HeaderOf({.name = "././@LongLink", .size = text->size() + 1, .type = kind}, tar::Dialect::kGnu)));
    NACRE_TRY_STATUS(PutData(*text + '\0', sink));
  }
  return sink(tar::HeaderOf({.name = name,
                             .link = link,
                             .size = size,
                             .mode = status.st_mode & 0777,
                             .time_s = status.st_mtim.tv_sec,
                             .type = type},
                            tar::Dialect::kGnu));
}

Status PutFile(int folder, const std::string& entry, const std::string& name, const Sink& sink) {
  const Fd file(openat(folder, entry.c_str(), O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK));
  struct stat status {};
  if (!file.valid() || fstat(file.get(), &status) != 0) return FailErrno("{}", name);
  const auto size = static_cast<uint64_t>(status.st_size);
  NACRE_TRY_STATUS(PutHeader(name, "", '0', status, size, sink));
  std::string piece(256 * 1024, '\0');
  for (uint64_t done = 0; done < size;) {
    const ssize_t got = read(file.get(), piece.data(), std::min<uint64_t>(piece.size(), size - done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return FailErrno("{}", name);
    if (got == 0) return Fail("{}: it became shorter while it was copied", name);
    NACRE_TRY_STATUS(sink(std::string_view(piece).substr(0, static_cast<size_t>(got))));
    done += static_cast<uint64_t>(got);
  }
  return sink(std::string(tar::PaddingOf(size), '\0'));
}

struct Walk {
  const Sink& sink;
  const std::function<void(const std::string&)>& skipped;

  Status Put(int folder, const std::string& entry, const std::string& name, int depth) {
    struct stat status {};
    if (fstatat(folder, entry.c_str(), &status, AT_SYMLINK_NOFOLLOW) != 0) return FailErrno("{}", name);
    if (S_ISREG(status.st_mode)) return PutFile(folder, entry, name, sink);
    if (S_ISLNK(status.st_mode)) {
      std::string link(static_cast<size_t>(PATH_MAX), '\0');
      const ssize_t size = readlinkat(folder, entry.c_str(), link.data(), link.size());
      if (size < 0) return FailErrno("{}", name);
      link.resize(static_cast<size_t>(size));
      return PutHeader(name, link, '2', status, 0, sink);
    }
    if (S_ISDIR(status.st_mode)) return PutFolder(folder, entry, name, depth, status);
    skipped(name);
    return {};
  }

  Status PutFolder(int folder, const std::string& entry, const std::string& name, int depth,
                   const struct stat& status) {
    if (depth > kMaxFolders) return Fail("{}: more than {} folders in each other", name, kMaxFolders);
    NACRE_TRY_STATUS(PutHeader(name + "/", "", '5', status, 0, sink));
    const int fd = openat(folder, entry.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    const std::unique_ptr<DIR, int (*)(DIR*)> open(fd < 0 ? nullptr : fdopendir(fd), closedir);
    if (!open) return FailErrno("{}", name);
    std::vector<std::string> names;
    while (const dirent* const one = readdir(open.get())) names.emplace_back(one->d_name);
    std::ranges::sort(names);
    for (const std::string& one : names)
      if (one != "." && one != "..") NACRE_TRY_STATUS(Put(fd, one, name + "/" + one, depth + 1));
    return {};
  }
};

/// The parts of a member's name; nothing where one of them is no plain name.
std::optional<std::vector<std::string>> PartsOf(std::string_view name) {
  std::vector<std::string> parts;
  while (name.starts_with("./")) name.remove_prefix(2);
  while (name.ends_with('/')) name.remove_suffix(1);
  for (;;) {
    const size_t end = name.find('/');
    const std::string_view part = name.substr(0, end);
    if (part.empty() || part == "." || part == ".." || part.size() > NAME_MAX || parts.size() == kMaxFolders)
      return std::nullopt;
    parts.emplace_back(part);
    if (end == std::string_view::npos) return parts;
    name.remove_prefix(end + 1);
  }
}

}  // namespace

Status WriteTar(const std::string& path, const std::string& name, const Sink& sink,
                const std::function<void(const std::string&)>& skipped) {
  Walk walk{sink, skipped};
  std::string plain = path;
  while (plain.size() > 1 && plain.ends_with('/')) plain.pop_back();
  // What the user names may be a link.
  struct stat status {};
  if (stat(plain.c_str(), &status) != 0) return FailErrno("{}", path);
  if (S_ISDIR(status.st_mode)) plain += "/.";
  NACRE_TRY_STATUS(walk.Put(AT_FDCWD, plain, name, 0));
  return sink(std::string(2 * kBlock, '\0'));
}

Status TarReader::Take(std::string_view bytes) {
  while (!bytes.empty()) {
    if (data_left_ > 0) {
      const auto piece = bytes.substr(0, std::min<uint64_t>(data_left_, bytes.size()));
      if (extra_type_ != 0) extra_ += piece;
      if (file_.valid())
        if (const Status written = WriteAll(file_.get(), piece); !written)
          return Context(written.error(), "{}", target_);
      bytes.remove_prefix(piece.size());
      data_left_ -= piece.size();
      if (data_left_ == 0) NACRE_TRY_STATUS(EndData());
      continue;
    }
    if (padding_left_ > 0) {
      const auto size = std::min<uint64_t>(padding_left_, bytes.size());
      bytes.remove_prefix(size);
      padding_left_ -= size;
      continue;
    }
    const size_t size = std::min(kBlock - block_.size(), bytes.size());
    block_ += bytes.substr(0, size);
    bytes.remove_prefix(size);
    if (block_.size() < kBlock) return {};
    const std::string block = std::exchange(block_, {});
    if (!ended_) NACRE_TRY_STATUS(ReadHeader(block));
  }
  return {};
}

Status TarReader::ReadHeader(std::string_view block) {
  if (tar::IsEnd(block)) {
    ended_ = true;
    return {};
  }
  auto parsed = tar::ParseHeader(block);
  if (!parsed) return Fail("what the guest's tar wrote is damaged");
  Member& member = *parsed;
  if (member.type == 'L' || member.type == 'K' || member.type == 'x' || member.type == 'g') {
    if (member.size > kMaxExtra) return Fail("what the guest's tar wrote has too long a name");
    extra_type_ = member.type;
    extra_.clear();
  } else {
    if (!long_name_.empty()) member.name = std::exchange(long_name_, {});
    if (!long_link_.empty()) member.link = std::exchange(long_link_, {});
    if (long_size_) member.size = *std::exchange(long_size_, {});
    const bool has_data = member.type == '0' || member.type == '7';
    if (!has_data && (member.type == '1' || member.type == '2' || member.type == '5')) member.size = 0;
    NACRE_TRY_STATUS(BeginMember(member));
  }
  data_left_ = member.size;
  padding_left_ = tar::PaddingOf(member.size);
  return data_left_ == 0 ? EndData() : Status();
}

Status TarReader::EndData() {
  const char type = std::exchange(extra_type_, 0);
  if (type == 'L') long_name_ = Text(extra_);
  if (type == 'K') long_link_ = Text(extra_);
  if (type == 'x') NACRE_TRY_STATUS(TakePax(extra_));
  if (file_.valid()) {
    const timespec times[] = {{file_time_s_, 0}, {file_time_s_, 0}};
    (void)futimens(file_.get(), times);
    file_.Close();
  }
  return {};
}

Status TarReader::TakePax(std::string_view text) {
  auto said = tar::ParsePax(text);
  if (!said) return Fail("what the guest's tar wrote is damaged");
  if (said->name) long_name_ = std::move(*said->name);
  if (said->link) long_link_ = std::move(*said->link);
  if (said->size) long_size_ = said->size;
  return {};
}

Result<TarReader::Place> TarReader::PlaceOf(const std::string& name) {
  const auto parts = PartsOf(name);
  if (!parts) return Fail("the guest's tar wrote a name that leads elsewhere");
  if (root_.empty()) root_ = (*parts)[0];
  if ((*parts)[0] != root_) return Fail("the guest's tar wrote more than was asked for");
  Place place{Fd(fcntl(parent_.get(), F_DUPFD_CLOEXEC, 0)), target_};
  for (size_t i = 1; i < parts->size(); ++i) {
    if (mkdirat(place.folder.get(), place.name.c_str(), 0777) != 0 && errno != EEXIST)
      return FailErrno("{}", place.name);
    Fd below(openat(place.folder.get(), place.name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    if (!below.valid()) return FailErrno("{}", place.name);
    place = {std::move(below), (*parts)[i]};
  }
  return place;
}

void TarReader::Skip(const std::string& name) {
  if (skipped_.size() < kMaxSkipped) skipped_.push_back(name);
}

Status TarReader::BeginMember(const Member& member) {
  const Place place = NACRE_TRY(PlaceOf(member.name));
  const int folder = place.folder.get();
  const char* const name = place.name.c_str();
  if (member.type == '5') {
    if (mkdirat(folder, name, 0777) != 0 && errno != EEXIST) return FailErrno("{}", place.name);
    const Fd made(openat(folder, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    if (!made.valid()) return FailErrno("{}", place.name);
    folder_modes_.emplace_back(member.name, member.mode);
    return {};
  }
  const bool file = member.type == '0' || member.type == '7';
  if (!file && member.type != '1' && member.type != '2') {
    Skip(member.name);
    return {};
  }
  if (unlinkat(folder, name, 0) != 0 && errno != ENOENT) return FailErrno("{}", place.name);
  if (file) {
    file_ = Fd(openat(folder, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
    if (!file_.valid() || fchmod(file_.get(), member.mode) != 0) return FailErrno("{}", place.name);
    file_time_s_ = member.time_s;
  } else if (member.type == '2') {
    if (symlinkat(member.link.c_str(), folder, name) != 0) return FailErrno("{}", place.name);
  } else {
    const Place to = NACRE_TRY(PlaceOf(member.link));
    if (linkat(to.folder.get(), to.name.c_str(), folder, name, 0) != 0) return FailErrno("{}", place.name);
  }
  return {};
}

Status TarReader::Finish() {
  if (!ended_ || data_left_ > 0) return Fail("what the guest's tar wrote is not complete");
  for (auto folder = folder_modes_.rbegin(); folder != folder_modes_.rend(); ++folder) {
    const Place place = NACRE_TRY(PlaceOf(folder->first));
    const Fd open(openat(place.folder.get(), place.name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    if (!open.valid() || fchmod(open.get(), folder->second) != 0) return FailErrno("{}", place.name);
  }
  return {};
}

}  // namespace nacre::cli
