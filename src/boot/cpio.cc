#include "boot/cpio.h"

#include <charconv>
#include <fstream>
#include <iterator>
#include <optional>
#include <sstream>

namespace nacre::boot {
namespace {

constexpr uint32_t kTypeDirectory = 0040000;
constexpr uint32_t kTypeCharacter = 0020000;
constexpr uint32_t kTypeBlock = 0060000;
constexpr uint32_t kTypeFile = 0100000;
constexpr uint32_t kTypeLink = 0120000;
constexpr uint32_t kModeMask = 07777;
constexpr size_t kMaxPath = 4095;  // the kernel's N_ALIGN(PATH_MAX) buffer
constexpr std::string_view kTrailer = "TRAILER!!!";

std::span<const uint8_t> Bytes(std::string_view text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

Status CheckPath(std::string_view path) {
  if (path.empty() || path.size() > kMaxPath) return Fail("path of {} bytes in an initramfs", path.size());
  if (path == kTrailer) return Fail("{}: the name that ends a cpio archive cannot be a file", path);
  std::string_view rest = path;
  while (true) {
    const size_t slash = rest.find('/');
    const std::string_view part = rest.substr(0, slash);
    if (part.empty() || part == "." || part == ".." || part.find('\0') != part.npos) {
      return Fail("{}: not a plain path relative to the root of the initramfs", path);
    }
    if (slash == rest.npos) return {};
    rest.remove_prefix(slash + 1);
  }
}

template <typename T>
std::optional<T> ParseNumber(std::string_view text, int base) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  if (error != std::errc{} || end != text.data() + text.size()) return std::nullopt;
  return value;
}

Result<uint32_t> ParseMode(std::string_view text) {
  const auto mode = ParseNumber<uint32_t>(text, 8);
  if (!mode || *mode > kModeMask) return Fail("mode {} is not an octal number up to 7777", text);
  return *mode;
}

Result<std::vector<uint8_t>> ReadWhole(const std::filesystem::path& path) {
  std::error_code error;
  const uint64_t size = std::filesystem::file_size(path, error);
  if (error) return Fail("{}: {}", path.string(), error.message());
  if (size > CpioWriter::kMaxSize) return Fail("{}: {} bytes are too many for an initramfs", path.string(), size);
  std::ifstream file(path, std::ios::binary);
  if (!file) return FailErrno("{}", path.string());
  std::vector<uint8_t> content(size);
  file.read(reinterpret_cast<char*>(content.data()), static_cast<std::streamsize>(size));
  if (static_cast<uint64_t>(file.gcount()) != size) return Fail("{}: the file shrank while it was read", path.string());
  return content;
}

Status AddLine(CpioWriter& writer, const std::vector<std::string>& words, const std::filesystem::path& folder) {
  const std::string& kind = words[0];
  if (kind == "dir" && words.size() == 3) return writer.AddDirectory(words[1], NACRE_TRY(ParseMode(words[2])));
  if (kind == "link" && words.size() == 3) return writer.AddLink(words[2], words[1]);
  if (kind == "file" && words.size() == 4) {
    const uint32_t mode = NACRE_TRY(ParseMode(words[3]));
    return writer.AddFile(words[2], mode, NACRE_TRY(ReadWhole(folder / words[1])));
  }
  if (kind == "node" && words.size() == 6 && (words[3] == "c" || words[3] == "b")) {
    const uint32_t mode = NACRE_TRY(ParseMode(words[2]));
    const auto major = ParseNumber<uint32_t>(words[4], 10);
    const auto minor = ParseNumber<uint32_t>(words[5], 10);
    if (!major || !minor) return Fail("device numbers {} {} are not numbers", words[4], words[5]);
    const auto node_kind = words[3] == "c" ? CpioWriter::NodeKind::kCharacter : CpioWriter::NodeKind::kBlock;
    return writer.AddNode(words[1], mode, node_kind, *major, *minor);
  }
  return Fail("expected: dir PATH MODE | file SOURCE PATH MODE | link TARGET PATH | node PATH MODE c|b MAJOR MINOR");
}

}  // namespace

Status CpioWriter::AddDirectory(std::string_view path, uint32_t mode) {
  return AddEntry(path, {.mode = kTypeDirectory | (mode & kModeMask), .links = 2}, {});
}

Status CpioWriter::AddFile(std::string_view path, uint32_t mode, std::span<const uint8_t> content) {
  return AddEntry(path, {.mode = kTypeFile | (mode & kModeMask)}, content);
}

Status CpioWriter::AddLink(std::string_view path, std::string_view target) {
  if (target.empty() || target.size() > kMaxPath) return Fail("{}: a link of {} bytes", path, target.size());
  return AddEntry(path, {.mode = kTypeLink | 0777}, Bytes(target));
}

Status CpioWriter::AddNode(std::string_view path, uint32_t mode, NodeKind kind, uint32_t major, uint32_t minor) {
  const uint32_t type = kind == NodeKind::kCharacter ? kTypeCharacter : kTypeBlock;
  return AddEntry(path, {.mode = type | (mode & kModeMask), .major = major, .minor = minor}, {});
}

Status CpioWriter::AddEntry(std::string_view path, Header header, std::span<const uint8_t> content) {
  NACRE_TRY_STATUS(CheckPath(path));
  if (paths_.contains(path)) return Fail("{}: twice in one initramfs", path);
  if (content.size() > kMaxSize || bytes_.size() + content.size() > kMaxSize) {
    return Fail("{}: the initramfs would be larger than {} MiB", path, kMaxSize >> 20);
  }
  for (size_t slash = path.find('/'); slash != path.npos; slash = path.find('/', slash + 1)) {
    const std::string_view parent = path.substr(0, slash);
    if (paths_.emplace(parent).second) Append(parent, {.mode = kTypeDirectory | 0755, .links = 2}, {});
  }
  paths_.emplace(path);
  Append(path, header, content);
  return {};
}

void CpioWriter::Append(std::string_view path, const Header& header, std::span<const uint8_t> content) {
  // c_magic c_ino c_mode c_uid c_gid c_nlink c_mtime c_filesize c_maj c_min c_rmaj c_rmin c_namesize c_chksum
  const std::string text = fmt::format(
      "070701{:08X}{:08X}{:08X}{:08X}{:08X}{:08X}{:08X}{:08X}{:08X}{:08X}{:08X}{:08X}{:08X}", next_inode_++,
      header.mode, 0, 0, header.links, 0, content.size(), 0, 0, header.major, header.minor, path.size() + 1, 0);
  const auto pad = [this] { bytes_.resize((bytes_.size() + 3) & ~size_t{3}); };
  bytes_.insert(bytes_.end(), text.begin(), text.end());
  bytes_.insert(bytes_.end(), path.begin(), path.end());
  bytes_.push_back(0);
  pad();
  bytes_.insert(bytes_.end(), content.begin(), content.end());
  pad();
}

std::vector<uint8_t> CpioWriter::Finish() {
  Append(kTrailer, {}, {});
  paths_.clear();
  next_inode_ = 1;
  return std::exchange(bytes_, {});
}

Result<std::vector<uint8_t>> BuildInitramfs(const std::filesystem::path& manifest) {
  std::ifstream file(manifest);
  if (!file) return FailErrno("{}", manifest.string());
  CpioWriter writer;
  std::string line;
  for (int number = 1; std::getline(file, line); ++number) {
    std::istringstream stream(line.substr(0, line.find('#')));
    const std::vector<std::string> words{std::istream_iterator<std::string>(stream), {}};
    if (words.empty()) continue;
    const Status added = AddLine(writer, words, manifest.parent_path());
    if (!added) return Context(added.error(), "{}:{}", manifest.string(), number);
  }
  return writer.Finish();
}

}  // namespace nacre::boot
