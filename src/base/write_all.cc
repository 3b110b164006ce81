#include "base/write_all.h"

#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace nacre {

Status WriteAll(int fd, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t done = write(fd, bytes.data(), bytes.size());
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) return std::unexpected(Error{std::strerror(errno), errno});
    bytes.remove_prefix(static_cast<size_t>(done));
  }
  return {};
}

}  // namespace nacre
