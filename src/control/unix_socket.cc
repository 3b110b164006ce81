#include "control/unix_socket.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <chrono>
#include <cstring>
#include <filesystem>
#include <thread>

namespace nacre::control {

namespace {

Result<sockaddr_un> AddressOf(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.find('\0') != std::string::npos) return Fail("'{}' is not the path of a socket", path);
  if (path.size() >= sizeof(address.sun_path))
    return Fail("{}: the path of a socket may have {} bytes, this one has {}; give a shorter one, perhaps relative",
                path, sizeof(address.sun_path) - 1, path.size());
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

/// Above it a path is no address. The name in its folder is one, by the folder's descriptor.
constexpr size_t kMaxPath = sizeof(sockaddr_un::sun_path) - 1, kMaxLongPathName = 64;

bool IsLong(const std::string& path) {
  return path.size() > kMaxPath && std::filesystem::path(path).filename().string().size() <= kMaxLongPathName;
}

Result<sockaddr_un> AddressIn(int folder, const std::string& name) {
  return AddressOf(fmt::format("/proc/self/fd/{}/{}", folder, name));
}

int Connect(int fd, const sockaddr_un& address) {
  return connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address));
}

/// Whether somebody listens at `path`. An error that leaves it open counts as yes.
bool InUse(const sockaddr_un& address) {
  const Fd probe(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  return Connect(probe.get(), address) == 0 || errno != ECONNREFUSED;
}

/// Two processes that find the same dead socket must not remove each other's new one. Whoever may read a folder can
/// hold its lock: no longer than a second is waited for it.
class FolderLock {
 public:
  explicit FolderLock(int folder) : folder_(folder) {
    for (int i = 0; i < 100 && flock(folder_, LOCK_EX | LOCK_NB) != 0; ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  ~FolderLock() { flock(folder_, LOCK_UN); }
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;

 private:
  int folder_;
};

}  // namespace

Result<ListeningSocket> ListeningSocket::Create(const std::string& path) {
  if (!IsLong(path)) NACRE_TRY(AddressOf(path));
  const std::filesystem::path whole(path);
  const std::string folder_name = whole.has_parent_path() ? whole.parent_path().string() : ".";
  if (!whole.has_filename()) return Fail("{}: a folder, not the path of a socket", path);
  Fd folder(open(folder_name.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!folder.valid()) return FailErrno("{}: its folder", path);
  Fd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid()) return FailErrno("{}: a socket", path);
  ListeningSocket made(std::move(fd), std::move(folder), whole.filename().string());
  NACRE_TRY_STATUS(made.Publish(path));
  return made;
}

/// Under a name of our own first: at `path` it is complete from the first moment on.
Status ListeningSocket::Publish(const std::string& path) {
  const int folder = folder_.get();
  const std::string draft = fmt::format(".nacre-{}-{}", getpid(), fd_.get());
  const sockaddr_un address = NACRE_TRY(IsLong(path) ? AddressIn(folder, name_) : AddressOf(path));
  const sockaddr_un draft_address = NACRE_TRY(AddressIn(folder, draft));
  unlinkat(folder, draft.c_str(), 0);
  // The mode of the socket's own inode, less the umask, is the name's (unix(7) does not say so: net/unix/af_unix.c).
  if (fchmod(fd_.get(), 0600) != 0 ||
      bind(fd_.get(), reinterpret_cast<const sockaddr*>(&draft_address), sizeof(draft_address)) != 0)
    return FailErrno("{}: a socket there", path);
  struct Undo {
    int folder;
    const std::string& name;
    ~Undo() { unlinkat(folder, name.c_str(), 0); }
  } undo{folder, draft};
  struct stat made {};
  if (fchmodat(folder, draft.c_str(), 0600, 0) != 0 || listen(fd_.get(), 16) != 0 ||
      fstatat(folder, draft.c_str(), &made, AT_SYMLINK_NOFOLLOW) != 0)
    return FailErrno("{}: a socket there", path);
  const FolderLock lock(folder);
  if (linkat(folder, draft.c_str(), folder, name_.c_str(), 0) != 0) {
    if (errno != EEXIST) return FailErrno("{}: a socket there", path);
    struct stat present {};
    if (fstatat(folder, name_.c_str(), &present, AT_SYMLINK_NOFOLLOW) != 0 || !S_ISSOCK(present.st_mode))
      return Fail("{}: is there and is no socket; it is left alone", path);
    if (InUse(address)) return Fail("{}: another process listens there; give another path", path);
    if (renameat(folder, draft.c_str(), folder, name_.c_str()) != 0) return FailErrno("{}: a socket there", path);
  }
  device_ = made.st_dev;
  inode_ = made.st_ino;
  return {};
}

ListeningSocket::~ListeningSocket() {
  if (!folder_.valid() || inode_ == 0) return;
  const FolderLock lock(folder_.get());
  struct stat present {};
  if (fstatat(folder_.get(), name_.c_str(), &present, AT_SYMLINK_NOFOLLOW) == 0 && present.st_dev == device_ &&
      present.st_ino == inode_)
    unlinkat(folder_.get(), name_.c_str(), 0);
}

Result<Fd> ConnectSocket(const std::string& path) {
  const std::filesystem::path whole(path);
  const Fd folder(IsLong(path) ? open(whole.parent_path().c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC) : -1);
  if (IsLong(path) && !folder.valid()) return FailErrno("{}", path);
  const sockaddr_un address =
      NACRE_TRY(IsLong(path) ? AddressIn(folder.get(), whole.filename().string()) : AddressOf(path));
  Fd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd.valid() || Connect(fd.get(), address) != 0) return FailErrno("{}", path);
  return fd;
}

Result<uid_t> PeerUser(int fd) {
  ucred peer{};
  socklen_t size = sizeof(peer);
  if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0 || size != sizeof(peer))
    return FailErrno("who is at the other end of a socket");
  return peer.uid;
}

Result<Fd> AcceptOwnUser(const ListeningSocket& socket) {
  for (;;) {
    Fd fd(accept4(socket.fd(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!fd.valid()) return FailErrno("no client");
    const auto user = PeerUser(fd.get());
    if (user && (*user == geteuid() || *user == 0)) return fd;
  }
}

bool AcceptsLater(const Error& error) {
  return error.code == EMFILE || error.code == ENFILE || error.code == ENOBUFS || error.code == ENOMEM;
}

}  // namespace nacre::control
