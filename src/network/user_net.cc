#include "network/user_net.h"

#include <arpa/inet.h>
#include <signal.h>
#include <slirp/libslirp.h>
#include <sys/epoll.h>

#include <algorithm>
#include <charconv>
#include <utility>

#include "base/check.h"
#include "base/log.h"

namespace nacre::network {
namespace {

// Frames kept for a receiver without room. TCP's windows (64 KiB a connection) fill it slowly; when it is
// full, frames are lost and TCP sends them again.
constexpr uint64_t kMaxQueueBytes = 8 * 1024 * 1024;
constexpr uint64_t kFrameOverhead = 128;
constexpr int kMaxEvents = 64;

uint32_t ToEpoll(int events) {
  uint32_t result = 0;
  if (events & SLIRP_POLL_IN) result |= EPOLLIN;
  if (events & SLIRP_POLL_OUT) result |= EPOLLOUT;
  if (events & SLIRP_POLL_PRI) result |= EPOLLPRI;
  return result | EPOLLERR;  // never 0: errors and hang-ups are always reported
}

int FromEpoll(uint32_t events) {
  int result = 0;
  if (events & EPOLLIN) result |= SLIRP_POLL_IN;
  if (events & EPOLLOUT) result |= SLIRP_POLL_OUT;
  if (events & EPOLLPRI) result |= SLIRP_POLL_PRI;
  if (events & EPOLLERR) result |= SLIRP_POLL_ERR;
  if (events & EPOLLHUP) result |= SLIRP_POLL_HUP;
  return result;
}

struct Network {
  uint32_t address = 0;  // host byte order
  uint32_t mask = 0;
};

Result<Network> ParseNetwork(const std::string& text) {
  const size_t slash = text.find('/');
  unsigned bits = 0;
  in_addr address{};
  if (slash != std::string::npos) std::from_chars(text.data() + slash + 1, text.data() + text.size(), bits);
  if (inet_pton(AF_INET, text.substr(0, slash).c_str(), &address) != 1 || bits < 8 || bits > 27)
    return Fail("network '{}': give ADDRESS/BITS with 8 to 27 bits, as in 10.0.2.0/24", text);
  const uint32_t mask = ~uint32_t{0} << (32 - bits);
  return Network{ntohl(address.s_addr) & mask, mask};
}

in_addr ToAddress(uint32_t host_order) { return in_addr{htonl(host_order)}; }

void IgnoreSigpipe() {
  struct sigaction action {};
  if (sigaction(SIGPIPE, nullptr, &action) == 0 && action.sa_handler == SIG_DFL) signal(SIGPIPE, SIG_IGN);
}

}  // namespace

/// libslirp's view of us. `opaque` is the UserNet.
struct UserNet::Callbacks {
  struct SlirpTimer {
    UserNet* net;
    SlirpTimerId id;
    void* opaque;
    std::unique_ptr<Timer> timer;
  };
  static UserNet* Self(void* opaque) { return static_cast<UserNet*>(opaque); }

  static ssize_t SendPacket(const void* data, size_t size, void* opaque) {
    Self(opaque)->Deliver({static_cast<const uint8_t*>(data), size});
    return static_cast<ssize_t>(size);
  }
  static void GuestError(const char* message, void*) {
    static LogThrottle throttle;
    if (throttle.Allow()) LogInfo("network: the guest: {}", message);
  }
  static int64_t ClockNs(void* opaque) { return Self(opaque)->loop_.NowNs(); }
  static void* TimerNew(SlirpTimerId id, void* timer_opaque, void* opaque) {
    auto* timer = new SlirpTimer{Self(opaque), id, timer_opaque, nullptr};
    timer->timer =
        timer->net->loop_.CreateTimer([timer] { slirp_handle_timer(timer->net->slirp_, timer->id, timer->opaque); });
    return timer;
  }
  static void TimerFree(void* timer, void*) { delete static_cast<SlirpTimer*>(timer); }
  static void TimerMod(void* timer, int64_t expire_ms, void*) {
    static_cast<SlirpTimer*>(timer)->timer->Arm(expire_ms * 1'000'000);
  }
  static void ForgetFd(int fd, void* opaque) { Self(opaque)->Forget(fd); }
  static void Notify(void*) {}
  static int AddPoll(int fd, int events, void* opaque) {
    UserNet* self = Self(opaque);
    Polled& polled = self->PolledFor(fd);
    if (polled.fill != self->fill_) {
      polled.fill = self->fill_;
      self->next_active_.push_back(fd);
      polled.wanted = 0;
    }
    polled.wanted |= ToEpoll(events);
    return fd;
  }
  static int GetReady(int fd, void* opaque) {
    UserNet* self = Self(opaque);
    return fd < 0 ? 0 : FromEpoll(self->PolledFor(fd).ready);
  }
  static constexpr SlirpCb kTable = {
      .send_packet = SendPacket,
      .guest_error = GuestError,
      .clock_get_ns = ClockNs,
      .timer_new = nullptr,
      .timer_free = TimerFree,
      .timer_mod = TimerMod,
      // A new descriptor may have the number of one that was closed: epoll forgot that one by itself.
      .register_poll_fd = ForgetFd,
      .unregister_poll_fd = ForgetFd,
      .notify = Notify,
      .init_completed = nullptr,
      .timer_new_opaque = TimerNew,
  };
};

Result<std::unique_ptr<UserNet>> UserNet::Create(const UserNetOptions& options, EventLoop& loop) {
  IgnoreSigpipe();
  std::unique_ptr<UserNet> net(new UserNet(loop));
  NACRE_TRY_STATUS(net->Open(options));
  return net;
}

Status UserNet::Open(const UserNetOptions& options) {
  const Network network = NACRE_TRY(ParseNetwork(options.network));
  if (options.mtu < 576 || options.mtu > 65520) return Fail("mtu {}: from 576 to 65520", options.mtu);
  mtu_ = options.mtu;
  epoll_ = Fd(epoll_create1(EPOLL_CLOEXEC));
  if (!epoll_.valid()) return FailErrno("user network: epoll");
  SlirpConfig config{};
  config.version = 4;
  config.restricted = options.restricted;
  config.in_enabled = true;
  config.vnetwork = ToAddress(network.address);
  config.vnetmask = ToAddress(network.mask);
  config.vhost = ToAddress(network.address + 2);
  config.vnameserver = ToAddress(network.address + 3);
  config.vdhcp_start = ToAddress(network.address + 15);
  config.vhostname = options.hostname.empty() ? nullptr : options.hostname.c_str();
  config.vdomainname = options.domain.empty() ? nullptr : options.domain.c_str();
  config.if_mtu = config.if_mru = mtu_;
  slirp_ = slirp_new(&config, &Callbacks::kTable, this);
  if (!slirp_) return Fail("user network '{}': libslirp refused it", options.network);
  timer_ = loop_.CreateTimer([this] { HandleEvents(); });
  watch_ = NACRE_TRY(loop_.Watch(epoll_.get(), EPOLLIN, [this](uint32_t) { HandleEvents(); }));
  for (const PortForward& forward : options.forwards) NACRE_TRY_STATUS(AddForward(forward));
  Fill();
  return {};
}

UserNet::~UserNet() {
  receiver_ = nullptr;
  watch_.reset();
  if (slirp_) slirp_cleanup(slirp_);
}

Status UserNet::AddForward(const PortForward& forward) {
  in_addr host{}, guest{};
  if (inet_pton(AF_INET, forward.host_address.c_str(), &host) != 1)
    return Fail("forward: '{}' is not an IPv4 address", forward.host_address);
  if (!forward.guest_address.empty() && inet_pton(AF_INET, forward.guest_address.c_str(), &guest) != 1)
    return Fail("forward: '{}' is not an IPv4 address", forward.guest_address);
  errno = 0;
  if (slirp_add_hostfwd(slirp_, forward.udp, host, forward.host_port, guest, forward.guest_port) != 0) {
    const char* advice = errno == EADDRINUSE      ? " (another program listens there: choose another host port)"
                         : errno == EACCES        ? " (ports below 1024 need privileges: choose a higher one)"
                         : errno == EADDRNOTAVAIL ? " (this host has no such address)"
                                                  : "";
    return FailErrno("forward: cannot listen on {} {}:{}{}", forward.udp ? "udp" : "tcp", forward.host_address,
                     forward.host_port, advice);
  }
  Fill();
  return {};
}

void UserNet::Attach(FrameReceiver* receiver) {
  receiver_ = receiver;
  queue_.clear();
  queue_bytes_ = 0;
  watch_->SetEvents(EPOLLIN);
}

void UserNet::Send(std::span<const uint8_t> frame) {
  slirp_input(slirp_, frame.data(), static_cast<int>(frame.size()));
}

void UserNet::SendDone() {
  if (std::exchange(delivered_, false) && receiver_) receiver_->ReceiveDone();
  Fill();  // new connections, and windows that opened
}

void UserNet::Deliver(std::span<const uint8_t> frame) {
  if (!receiver_) return;
  if (queue_.empty() && receiver_->Receive(frame)) {
    delivered_ = true;
    return;
  }
  if (queue_bytes_ + frame.size() + kFrameOverhead > kMaxQueueBytes) {
    ++dropped_frames_;
    return;
  }
  if (queue_.empty()) watch_->SetEvents(0);  // read nothing more from sockets: their peers wait meanwhile
  queue_.emplace_back(frame.begin(), frame.end());
  queue_bytes_ += frame.size() + kFrameOverhead;
}

bool UserNet::FlushQueue() {
  while (!queue_.empty()) {
    if (!receiver_->Receive(queue_.front())) return false;
    delivered_ = true;
    queue_bytes_ -= queue_.front().size() + kFrameOverhead;
    queue_.pop_front();
  }
  return true;
}

void UserNet::ReceiveReady() {
  if (queue_.empty() || !receiver_) return;
  const bool empty = FlushQueue();
  if (std::exchange(delivered_, false)) receiver_->ReceiveDone();
  if (empty) watch_->SetEvents(EPOLLIN);
}

void UserNet::HandleEvents() {
  epoll_event events[kMaxEvents];
  const int count = queue_.empty() ? epoll_wait(epoll_.get(), events, kMaxEvents, 0) : 0;
  for (int i = 0; i < count; ++i) PolledFor(events[i].data.fd).ready = events[i].events;
  slirp_pollfds_poll(slirp_, 0, Callbacks::GetReady, this);
  for (int i = 0; i < count; ++i) PolledFor(events[i].data.fd).ready = 0;
  if (std::exchange(delivered_, false) && receiver_) receiver_->ReceiveDone();
  Fill();
}

void UserNet::Fill() {
  ++fill_;
  next_active_.clear();
  uint32_t timeout_ms = ~uint32_t{0};
  slirp_pollfds_fill(slirp_, &timeout_ms, Callbacks::AddPoll, this);
  for (int fd : active_)
    if (PolledFor(fd).fill != fill_) Forget(fd);
  for (int fd : next_active_) UpdatePolled(fd);
  active_.swap(next_active_);
  if (timeout_ms != ~uint32_t{0})
    timer_->Arm(loop_.NowNs() + int64_t{timeout_ms} * 1'000'000);
  else
    timer_->Cancel();
}

UserNet::Polled& UserNet::PolledFor(int fd) {
  NACRE_CHECK(fd >= 0);
  if (static_cast<size_t>(fd) >= polled_.size()) polled_.resize(static_cast<size_t>(fd) + 1);
  return polled_[static_cast<size_t>(fd)];
}

void UserNet::UpdatePolled(int fd) {
  Polled& polled = PolledFor(fd);
  if (polled.registered == polled.wanted) return;
  epoll_event event{.events = polled.wanted, .data = {.fd = fd}};
  const int first = polled.registered == 0 ? EPOLL_CTL_ADD : EPOLL_CTL_MOD;
  const int second = first == EPOLL_CTL_ADD ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
  const bool ok = epoll_ctl(epoll_.get(), first, fd, &event) == 0 ||
                  ((errno == ENOENT || errno == EEXIST) && epoll_ctl(epoll_.get(), second, fd, &event) == 0);
  polled.registered = ok ? polled.wanted : 0;
}

void UserNet::Forget(int fd) {
  if (fd < 0) return;
  Polled& polled = PolledFor(fd);
  if (polled.registered != 0) epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr);
  polled.registered = 0;
  polled.ready = 0;
}

}  // namespace nacre::network
