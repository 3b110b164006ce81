// nacre-cpio MANIFEST OUTPUT: the initramfs that a manifest describes (boot/cpio.h), written atomically.

#include <fmt/core.h>

#include <cstdio>
#include <filesystem>
#include <fstream>

#include "boot/cpio.h"

namespace {

nacre::Status WriteFile(const std::filesystem::path& path, const std::vector<uint8_t>& bytes) {
  std::filesystem::path temporary = path;
  temporary += ".new";
  std::ofstream file(temporary, std::ios::binary | std::ios::trunc);
  file.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  file.close();
  if (!file) return nacre::FailErrno("{}", temporary.string());
  std::error_code error;
  std::filesystem::rename(temporary, path, error);
  if (error) return nacre::Fail("{}: {}", path.string(), error.message());
  return {};
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    fmt::print(stderr, "usage: nacre-cpio MANIFEST OUTPUT\n");
    return 2;
  }
  const auto archive = nacre::boot::BuildInitramfs(argv[1]);
  const nacre::Status status = archive ? WriteFile(argv[2], *archive) : std::unexpected(archive.error());
  if (!status) {
    fmt::print(stderr, "nacre-cpio: {}\n", status.error().message);
    return 1;
  }
  return 0;
}
