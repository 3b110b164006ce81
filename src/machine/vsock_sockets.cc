#include "machine/vsock_sockets.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <charconv>
#include <cstring>

namespace nacre::machine {

namespace {

constexpr size_t kMaxLine = 32;
constexpr std::string_view kConnect = "CONNECT ";

Result<sockaddr_un> AddressOf(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof(address.sun_path))
    return Fail("--vsock {}: a socket's path has 1 to {} bytes", path, sizeof(address.sun_path) - 1);
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

Fd NewSocket() { return Fd(socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)); }

bool ConnectTo(const Fd& fd, const sockaddr_un& address) {
  return connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0;
}

class SocketStream final : public devices::VsockStream {
 public:
  /// Null: the loop cannot watch it.
  static std::unique_ptr<SocketStream> Create(Fd fd, EventLoop& loop) {
    std::unique_ptr<SocketStream> stream(new SocketStream(std::move(fd)));
    auto watch = loop.Watch(stream->fd_.get(), 0, [raw = stream.get()](uint32_t) {
      // Level-triggered: what is not taken now is asked for again. The call may destroy the stream.
      raw->watch_->SetEvents(0);
      const auto ready = raw->ready_;
      if (ready) ready();
    });
    if (!watch) return nullptr;
    stream->watch_ = std::move(*watch);
    return stream;
  }

  int64_t Read(std::span<uint8_t> to) override { return Outcome(recv(fd_.get(), to.data(), to.size(), 0)); }
  int64_t Write(std::span<const uint8_t> from) override {
    return Outcome(send(fd_.get(), from.data(), from.size(), MSG_NOSIGNAL));
  }
  void EndWrites() override { shutdown(fd_.get(), SHUT_WR); }
  void SetReady(std::function<void()> ready) override { ready_ = std::move(ready); }
  void Want(bool read, bool write) override { watch_->SetEvents((read ? EPOLLIN : 0u) | (write ? EPOLLOUT : 0u)); }
  void Accepted(uint32_t host_port) override {
    const std::string line = fmt::format("OK {}\n", host_port);
    (void)send(fd_.get(), line.data(), line.size(), MSG_NOSIGNAL);
  }

 private:
  explicit SocketStream(Fd fd) : fd_(std::move(fd)) {}
  static int64_t Outcome(ssize_t done) {
    if (done >= 0) return done;
    return errno == EAGAIN || errno == EINTR ? kNotNow : kBroken;
  }

  const Fd fd_;
  std::unique_ptr<FdWatch> watch_;
  std::function<void()> ready_;
};

}  // namespace

Result<std::unique_ptr<VsockSockets>> VsockSockets::Create(const std::string& path, EventLoop& loop) {
  const sockaddr_un address = NACRE_TRY(AddressOf(path));
  std::unique_ptr<VsockSockets> made(new VsockSockets(path, loop));
  struct stat status {};
  if (lstat(path.c_str(), &status) == 0) {
    if (!S_ISSOCK(status.st_mode)) return Fail("--vsock {}: there is a file of this name, and it is no socket", path);
    if (ConnectTo(NewSocket(), address)) return Fail("--vsock {}: another process listens there", path);
    unlink(path.c_str());
  }
  Fd fd = NewSocket();
  const mode_t before = umask(0177);
  const bool bound = fd.valid() && bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0;
  umask(before);
  if (!bound || listen(fd.get(), 64) != 0) return FailErrno("--vsock {}", path);
  made->socket_ = std::move(fd);
  made->watch_ = NACRE_TRY(loop.Watch(made->socket_.get(), EPOLLIN, [raw = made.get()](uint32_t) { raw->Accept(); }));
  return made;
}

VsockSockets::~VsockSockets() {
  if (socket_.valid()) unlink(path_.c_str());
}

std::unique_ptr<devices::VsockStream> VsockSockets::Connect(uint32_t port) {
  const auto address = AddressOf(fmt::format("{}_{}", path_, port));
  if (!address) return nullptr;
  Fd fd = NewSocket();
  if (!fd.valid() || !ConnectTo(fd, *address)) return nullptr;
  return SocketStream::Create(std::move(fd), loop_);
}

void VsockSockets::Accept() {
  Fd fd(accept4(socket_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
  if (!fd.valid() || clients_.size() >= kMaxWaiting) return;
  const uint64_t id = next_client_++;
  auto watch = loop_.Watch(fd.get(), EPOLLIN, [this, id](uint32_t) { ReadLine(id); });
  if (watch) clients_.emplace(id, Client{std::move(fd), std::move(*watch), {}});
}

/// Byte by byte: what follows is the guest's.
void VsockSockets::ReadLine(uint64_t id) {
  const auto place = clients_.find(id);
  Client& client = place->second;
  char byte = 0;
  while (client.line.size() < kMaxLine) {
    const ssize_t got = recv(client.fd.get(), &byte, 1, 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (got <= 0) break;
    client.line += byte;
    if (byte == '\n') break;
  }
  uint32_t port = 0;
  const std::string_view line = client.line;
  const char* const last = line.data() + line.size();
  const bool connects = line.starts_with(kConnect) && line.ends_with('\n') &&
                        std::from_chars(line.data() + kConnect.size(), last, port).ptr == last - 1;
  Fd fd = std::move(client.fd);
  clients_.erase(place);  // ends the watch that called this
  if (!connects || !guest_) return;
  if (auto stream = SocketStream::Create(std::move(fd), loop_)) guest_->ConnectToGuest(port, std::move(stream));
}

}  // namespace nacre::machine
