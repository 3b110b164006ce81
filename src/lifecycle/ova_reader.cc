#include "lifecycle/ova_reader.h"

#include <fcntl.h>

#include <algorithm>

#include "base/printable.h"
#include "base/sha1.h"
#include "base/sha256.h"
#include "base/tar_header.h"
#include "storage/host_file.h"

namespace nacre::lifecycle {

namespace fs = std::filesystem;

namespace {

constexpr uint64_t kMaxExtraBytes = 64 * 1024;  // of a long name or pax header

/// A name with folders in it could lead anywhere.
bool IsPlain(std::string_view name) {
  return !name.empty() && name != "." && name != ".." && name.find('/') == std::string_view::npos &&
         name.find('\0') == std::string_view::npos;
}

std::string WithoutDot(std::string name) {
  while (name.starts_with("./")) name.erase(0, 2);
  return name;
}

template <typename Hash>
Result<std::string> DigestOf(const storage::VmdkSource& file, const ExchangeProgress& progress) {
  Hash sum;
  std::vector<uint8_t> piece(1 << 20);
  for (uint64_t done = 0; done < file.size_bytes;) {
    const size_t size = std::min<uint64_t>(piece.size(), file.size_bytes - done);
    NACRE_TRY_STATUS(storage::ReadAt(file.name, file.fd, file.offset + done, piece.data(), size));
    sum.Add(std::span(piece).first(size));
    done += size;
    if (progress && !progress("sum of " + file.name, done, file.size_bytes)) {
      errno = ECANCELED;
      return FailErrno("{}", file.name);
    }
  }
  return sum.Finish();
}

}  // namespace

Result<OvfPackage> OvfPackage::Open(const fs::path& path) {
  OvfPackage package;
  package.path_ = path;
  package.file_ = Fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!package.file_.valid()) return FailErrno("{}", path.string());
  std::array<char, tar::kBlock> start{};
  const ssize_t got = pread(package.file_.get(), start.data(), start.size(), 0);
  const bool archive =
      got == static_cast<ssize_t>(start.size()) && tar::ParseHeader({start.data(), start.size()}).has_value();
  NACRE_TRY_STATUS(archive ? package.ReadArchive() : package.ReadFolder());
  auto machine = ReadOvf(NACRE_TRY(package.TextOf(package.descriptor_, kMaxOvfBytes)));
  if (!machine) return Context(machine.error(), "{}: {}", path.string(), Printable(package.descriptor_));
  package.machine_ = std::move(*machine);
  return package;
}

Status OvfPackage::ReadArchive() {
  const std::string name = path_.string();
  const uint64_t total = NACRE_TRY(storage::FileBytes(name, file_.get()));
  std::string long_name, sums;
  std::optional<uint64_t> long_size;
  for (uint64_t at = 0; at + tar::kBlock <= total;) {
    std::array<char, tar::kBlock> block{};
    NACRE_TRY_STATUS(storage::ReadAt(name, file_.get(), at, block.data(), block.size()));
    const std::string_view text(block.data(), block.size());
    if (tar::IsEnd(text)) break;
    auto member = tar::ParseHeader(text);
    if (!member) return Fail("{}: damaged: there is no header at byte {}", name, at);
    at += tar::kBlock;
    const bool extra = member->type == 'L' || member->type == 'x' || member->type == 'g' || member->type == 'K';
    if (!extra && !long_name.empty()) member->name = std::exchange(long_name, {});
    if (!extra && long_size) member->size = *std::exchange(long_size, std::nullopt);
    if (member->size > total - at) return Fail("{}: ends within {}: it is cut off", name, Printable(member->name));
    if (extra) {
      if (member->size > kMaxExtraBytes) return Fail("{}: damaged: a name of {} bytes", name, member->size);
      std::string data(member->size, '\0');
      NACRE_TRY_STATUS(storage::ReadAt(name, file_.get(), at, data.data(), data.size()));
      if (member->type == 'L') long_name = data.substr(0, data.find('\0'));
      if (member->type == 'x') {
        auto pax = tar::ParsePax(data);
        if (!pax) return Fail("{}: damaged: a pax header at byte {}", name, at);
        if (pax->name) long_name = std::move(*pax->name);
        if (pax->size) long_size = pax->size;
      }
    } else if (member->type == '0' || member->type == '7') {
      const std::string plain = WithoutDot(member->name);
      if (parts_.size() >= kMaxFiles) return Fail("{}: more than {} files", name, kMaxFiles);
      parts_[plain] = {.offset = at, .size_bytes = member->size, .own = {}};
      if (plain.ends_with(".ovf") && descriptor_.empty()) descriptor_ = plain;
      if (plain.ends_with(".mf")) sums = plain;
    }
    at += member->size + std::min(tar::PaddingOf(member->size), total - at - member->size);
  }
  if (descriptor_.empty()) return Fail("{}: there is no .ovf in it: this is no OVA package", name);
  return sums.empty() ? Status() : ReadSums(sums);
}

/// Files are opened when somebody wants them.
Status OvfPackage::ReadFolder() {
  descriptor_ = path_.filename().string();
  parts_[descriptor_] = {
      .offset = 0, .size_bytes = NACRE_TRY(storage::FileBytes(path_.string(), file_.get())), .own = {}};
  const fs::path folder = path_.has_parent_path() ? path_.parent_path() : fs::path(".");
  auto beside = [&](const std::string& name) -> Status {
    const fs::path path = folder / name;
    Fd file(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
    if (!file.valid()) return FailErrno("{}", path.string());
    const uint64_t size = NACRE_TRY(storage::FileBytes(path.string(), file.get()));
    parts_[name] = {.offset = 0, .size_bytes = size, .own = std::move(file)};
    return {};
  };
  const auto machine = ReadOvf(NACRE_TRY(TextOf(descriptor_, kMaxOvfBytes)));
  if (!machine) return Context(machine.error(), "{}", path_.string());
  for (const OvfDisk& disk : machine->disks)
    if (IsPlain(disk.file)) NACRE_TRY_STATUS(beside(disk.file));
  const std::string sums = path_.stem().string() + ".mf";
  std::error_code error;
  if (!fs::exists(folder / sums, error)) return {};
  NACRE_TRY_STATUS(beside(sums));
  NACRE_TRY_STATUS(ReadSums(sums));
  for (const Sum& sum : sums_)  // what is not there is told when the sums are checked
    if (!parts_.contains(sum.file) && IsPlain(sum.file)) static_cast<void>(beside(sum.file));
  return {};
}

Result<std::string> OvfPackage::TextOf(const std::string& name, uint64_t most_bytes) const {
  const storage::VmdkSource file = NACRE_TRY(FileNamed(name));
  if (file.size_bytes > most_bytes)
    return Fail("{}: {} has {} bytes, at most {} are read", path_.string(), file.name, file.size_bytes, most_bytes);
  std::string text(file.size_bytes, '\0');
  NACRE_TRY_STATUS(storage::ReadAt(file.name, file.fd, file.offset, text.data(), text.size()));
  return text;
}

/// Lines of "SHA256(disk1.vmdk)= 0123...".
Status OvfPackage::ReadSums(const std::string& name) {
  const std::string text = NACRE_TRY(TextOf(name, kMaxSumsBytes));
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    const std::string line = text.substr(at, end - at);
    at = end + 1;
    const size_t open = line.find('('), close = line.rfind(")=");
    if (open == std::string::npos || close == std::string::npos || close < open) continue;
    Sum sum{line.substr(0, open), line.substr(open + 1, close - open - 1), ""};
    for (const char c : line.substr(close + 2)) {
      if (c >= '0' && c <= '9') sum.digits += c;
      if ((c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F')) sum.digits += static_cast<char>(c | 0x20);
    }
    std::erase(sum.kind, ' ');
    std::erase(sum.kind, '-');
    if (sums_.size() < kMaxFiles) sums_.push_back(std::move(sum));
  }
  return {};
}

Status OvfPackage::CheckSums(const ExchangeProgress& progress) const {
  std::string wrong;
  for (const Sum& sum : sums_) {
    if (sum.kind != "SHA1" && sum.kind != "SHA256") continue;
    const auto file = FileNamed(sum.file);
    std::string digits;
    if (file)
      digits = NACRE_TRY(sum.kind == "SHA1" ? DigestOf<Sha1>(*file, progress) : DigestOf<Sha256>(*file, progress));
    if (digits != sum.digits) wrong += (wrong.empty() ? "" : ", ") + Printable(sum.file);
  }
  if (wrong.empty()) return {};
  return Fail("{}: damaged: not what the manifest's sums say: {}", path_.string(), wrong);
}

Result<storage::VmdkSource> OvfPackage::FileNamed(const std::string& name) const {
  const auto found = parts_.find(WithoutDot(name));
  if (found == parts_.end()) return Fail("{}: there is no file '{}' in it", path_.string(), Printable(name));
  const Part& part = found->second;
  return storage::VmdkSource{.name = Printable(name),
                             .fd = part.own.valid() ? part.own.get() : file_.get(),
                             .offset = part.offset,
                             .size_bytes = part.size_bytes};
}

}  // namespace nacre::lifecycle
