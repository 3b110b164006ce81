#include "storage/foreign_image.h"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>

#include "base/fd.h"

namespace nacre::storage {

namespace {

constexpr std::string_view kDescriptor = "# Disk DescriptorFile";

/// `text` in JSON's quotes.
std::string Quoted(const std::string& text) {
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\')
      quoted += fmt::format("\\{}", c);
    else if (static_cast<uint8_t>(c) < 0x20)
      quoted += fmt::format("\\u{:04x}", c);
    else
      quoted += c;
  }
  return quoted + '"';
}

/// A VMDK descriptor's lines `RW 4192256 SPARSE "disk-s001.vmdk"` name files.
Status CheckExtents(const std::string& path) {
  constexpr size_t kMostBytes = 1 << 20;
  const Fd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  std::string text(kMostBytes, '\0');
  const ssize_t got = fd.valid() ? pread(fd.get(), text.data(), text.size(), 0) : -1;
  if (got < 0) return FailErrno("{}", path);
  text.resize(static_cast<size_t>(got));
  if (!text.starts_with(kDescriptor)) return {};
  if (text.size() == kMostBytes) return Fail("{}: its descriptor is too long", path);
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    const std::string line = text.substr(at, end - at);
    at = end + 1;
    const bool extent = line.starts_with("RW ") || line.starts_with("RDONLY ") || line.starts_with("NOACCESS ");
    if (extent && line.find('/') != std::string::npos)
      return Fail("{}: names a file of another folder: {}", path, line);
  }
  return {};
}

}  // namespace

std::string ForeignFormat(const std::string& path) {
  const Fd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  std::array<char, 72> start{};
  if (!fd.valid() || pread(fd.get(), start.data(), start.size(), 0) < 4) return "";
  const std::string_view text(start.data(), start.size());
  if (text.starts_with("KDMV") || text.starts_with("COWD") || text.starts_with(kDescriptor)) return "vmdk";
  if (text.starts_with("vhdxfile")) return "vhdx";
  if (text.starts_with("conectix")) return "vpc";
  if (text.substr(64, 4) == "\x7f\x10\xda\xbe") return "vdi";
  if (text.starts_with(std::string_view("QFI\xfb\0\0\0\1", 8))) return "qcow";
  return "";
}

Status ConvertForeign(const std::string& format, const std::string& from, const std::string& to) {
  if (format == "vmdk") NACRE_TRY_STATUS(CheckExtents(from));
  // A parent that the image names could be any file of the host.
  const bool may_have_backing = format == "vmdk" || format == "qcow";
  const std::string source = fmt::format(R"(json:{{"driver":{},"file":{{"driver":"file","filename":{}}}{}}})",
                                         Quoted(format), Quoted(from), may_have_backing ? R"(,"backing":null)" : "");
  const pid_t child = fork();
  if (child < 0) return FailErrno("qemu-img");
  if (child == 0) {
    execlp("qemu-img", "qemu-img", "convert", "-O", "qcow2", source.c_str(), to.c_str(), nullptr);
    _exit(127);
  }
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (WIFEXITED(status) && WEXITSTATUS(status) == 127)
    return Fail("{}: format {} is read by qemu-img, which is not there; install it (Debian: qemu-utils)", from, format);
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) return Fail("{}: qemu-img could not convert it", from);
  return {};
}

}  // namespace nacre::storage
