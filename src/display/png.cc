#include "display/png.h"

#include <fcntl.h>
#include <png.h>
#include <unistd.h>

#include <cstdio>

#include "base/fd.h"

namespace nacre::display {

Result<std::vector<uint8_t>> EncodePng(const Surface& surface) {
  if (surface.width() == 0) return Fail("screenshot: the screen has no size yet");
  png_image image{};
  image.version = PNG_IMAGE_VERSION;
  image.width = surface.width();
  image.height = surface.height();
  std::vector<uint8_t> rgb(surface.pixels().size() * 3);
  size_t at = 0;
  for (const uint32_t pixel : surface.pixels()) {
    rgb[at++] = static_cast<uint8_t>(pixel >> 16);
    rgb[at++] = static_cast<uint8_t>(pixel >> 8);
    rgb[at++] = static_cast<uint8_t>(pixel);
  }
  image.format = PNG_FORMAT_RGB;
  std::vector<uint8_t> file(PNG_IMAGE_PNG_SIZE_MAX(image));
  png_alloc_size_t size = file.size();
  if (!png_image_write_to_memory(&image, file.data(), &size, 0, rgb.data(), 0, nullptr))
    return Fail("screenshot: libpng: {}", image.message);
  file.resize(size);
  return file;
}

Status WritePng(const Surface& surface, const std::string& path) {
  const std::vector<uint8_t> file = NACRE_TRY(EncodePng(surface));
  const std::string beside = fmt::format("{}.{}.part", path, getpid());
  Fd fd(open(beside.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
  if (!fd.valid()) return FailErrno("screenshot {}", beside);
  const auto discard = [&]() -> Status {
    auto failure = FailErrno("screenshot {}", path);
    unlink(beside.c_str());
    return failure;
  };
  for (size_t done = 0; done < file.size();) {
    const ssize_t count = write(fd.get(), file.data() + done, file.size() - done);
    if (count < 0) return discard();
    done += static_cast<size_t>(count);
  }
  if (rename(beside.c_str(), path.c_str()) != 0) return discard();
  return {};
}

}  // namespace nacre::display
