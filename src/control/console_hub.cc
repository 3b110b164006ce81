#include "control/console_hub.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>

namespace nacre::control {

Result<std::unique_ptr<ConsoleHub>> ConsoleHub::Create(const std::string& socket, const std::filesystem::path& log,
                                                       Fd guest) {
  auto file = NACRE_TRY(lifecycle::BoundedLog::Open(log));
  std::unique_ptr<ConsoleHub> hub(
      new ConsoleHub(NACRE_TRY(ListeningSocket::Create(socket)), std::move(file), std::move(guest)));
  hub->wake_ = Fd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!hub->wake_.valid()) return FailErrno("{}: an eventfd", socket);
  const int flags = fcntl(hub->guest_.get(), F_GETFL);
  if (flags < 0 || fcntl(hub->guest_.get(), F_SETFL, flags | O_NONBLOCK) != 0) return FailErrno("{}", socket);
  hub->thread_ = std::thread([raw = hub.get()] { raw->Loop(); });
  pthread_setname_np(hub->thread_.native_handle(), "console");
  return hub;
}

ConsoleHub::~ConsoleHub() {
  if (!thread_.joinable()) return;
  stop_ = true;
  eventfd_write(wake_.get(), 1);
  thread_.join();
}

void ConsoleHub::Loop() {
  while (!stop_) Poll();
  // What the guest printed last: until its end is closed, or nothing more is there.
  while (!guest_ended_) {
    pollfd fd{guest_.get(), POLLIN, 0};
    if (poll(&fd, 1, 0) <= 0) break;
    ReadGuest();
  }
  for (const auto& watcher : watchers_) Flush(*watcher);
}

void ConsoleHub::Poll() {
  std::vector<pollfd> fds;
  const bool room = typed_.size() < kMaxTypedBytes;
  fds.push_back({wake_.get(), POLLIN, 0});
  fds.push_back({accept_failed_ ? -1 : socket_.fd(), POLLIN, 0});
  fds.push_back(
      {guest_ended_ ? -1 : guest_.get(), static_cast<int16_t>(typed_.empty() ? POLLIN : POLLIN | POLLOUT), 0});
  for (const auto& watcher : watchers_) {
    const int events = (watcher->types && room ? POLLIN : 0) | (watcher->out.empty() ? 0 : POLLOUT);
    fds.push_back({watcher->fd.get(), static_cast<int16_t>(events), 0});
  }
  constexpr int kRetryMs = 100;
  if (poll(fds.data(), fds.size(), accept_failed_ ? kRetryMs : -1) < 0) return;
  accept_failed_ = false;
  if (fds[2].revents & (POLLIN | POLLHUP | POLLERR)) ReadGuest();
  for (size_t i = 3; i < fds.size(); ++i) {
    Watcher& watcher = *watchers_[i - 3];
    if (fds[i].revents & (POLLHUP | POLLERR | POLLNVAL)) {
      ReadFrom(watcher);  // what it typed before it hung up
      watcher.broken = true;
      continue;
    }
    if (fds[i].revents & POLLIN) ReadFrom(watcher);
    if (!watcher.out.empty()) Flush(watcher);
  }
  std::erase_if(watchers_, [](const auto& watcher) { return watcher->broken; });
  WriteGuest();
  if (fds[1].revents) Accept();
}

void ConsoleHub::Accept() {
  for (;;) {
    auto fd = AcceptOwnUser(socket_);
    if (!fd) {
      accept_failed_ = AcceptsLater(fd.error());
      return;
    }
    auto watcher = std::make_unique<Watcher>();
    watcher->fd = std::move(*fd);
    const bool full = watchers_.size() >= kMaxWatchers;
    watcher->out = full ? "nacre: too many watch this console\r\n" : scrollback_;
    Flush(*watcher);
    if (!full) watchers_.push_back(std::move(watcher));
  }
}

void ConsoleHub::ReadGuest() {
  char bytes[16 * 1024];
  const ssize_t got = recv(guest_.get(), bytes, sizeof(bytes), MSG_DONTWAIT);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (got <= 0) {
    guest_ended_ = true;
    return;
  }
  const std::string_view text(bytes, static_cast<size_t>(got));
  log_.Write(text);
  scrollback_ += text;
  if (scrollback_.size() > kScrollbackBytes) {
    // Whole lines, where there are any: the middle of an escape sequence would confuse a terminal.
    size_t start = scrollback_.size() - kScrollbackBytes * 3 / 4;
    if (const size_t line = scrollback_.find('\n', start); line != std::string::npos) start = line + 1;
    scrollback_.erase(0, start);
  }
  for (const auto& watcher : watchers_) {
    watcher->out += text;
    Flush(*watcher);
    if (watcher->out.size() - watcher->sent > kMaxPendingBytes) watcher->broken = true;
  }
}

void ConsoleHub::WriteGuest() {
  while (!typed_.empty()) {
    const ssize_t sent = send(guest_.get(), typed_.data(), typed_.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent <= 0) {
      if (sent < 0 && errno != EAGAIN && errno != EINTR) typed_.clear();  // it reads no more
      return;
    }
    typed_.erase(0, static_cast<size_t>(sent));
  }
}

void ConsoleHub::ReadFrom(Watcher& watcher) {
  char bytes[4096];
  if (typed_.size() >= kMaxTypedBytes) return;
  const ssize_t got = recv(watcher.fd.get(), bytes, sizeof(bytes), MSG_DONTWAIT);
  if (got > 0)
    typed_.append(bytes, static_cast<size_t>(got));
  else if (got == 0)
    watcher.types = false;
  else if (errno != EAGAIN && errno != EINTR)
    watcher.broken = true;
}

void ConsoleHub::Flush(Watcher& watcher) {
  while (watcher.sent < watcher.out.size()) {
    const ssize_t sent = send(watcher.fd.get(), watcher.out.data() + watcher.sent, watcher.out.size() - watcher.sent,
                              MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0) {
      if (errno == EINTR) continue;
      if (errno != EAGAIN) watcher.broken = true;
      if (watcher.sent > kScrollbackBytes) {
        watcher.out.erase(0, watcher.sent);
        watcher.sent = 0;
      }
      return;
    }
    watcher.sent += static_cast<size_t>(sent);
  }
  watcher.out.clear();
  watcher.sent = 0;
}

}  // namespace nacre::control
