#include "control/server.h"

#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <algorithm>

namespace nacre::control {

void Server::Mailbox::Put(Letter letter) {
  const std::lock_guard lock(mutex);
  letters.push_back(std::move(letter));
  eventfd_write(wake.get(), 1);
}

Result<std::unique_ptr<Server>> Server::Create(const std::string& path, Vm& vm) {
  std::unique_ptr<Server> server(new Server(NACRE_TRY(ListeningSocket::Create(path)), vm));
  server->mailbox_->wake = Fd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!server->mailbox_->wake.valid()) return FailErrno("the control socket");
  server->thread_ = std::thread([self = server.get()] { self->Loop(); });
  pthread_setname_np(server->thread_.native_handle(), "control");
  return server;
}

Server::~Server() {
  if (!thread_.joinable()) return;
  stop_ = true;
  eventfd_write(mailbox_->wake.get(), 1);
  thread_.join();
}

void Server::Loop() {
  while (!stop_) Poll();
  ReadMail();
}

void Server::Poll() {
  std::vector<pollfd> fds{{mailbox_->wake.get(), POLLIN, 0}, {accept_failed_ ? -1 : socket_.fd(), POLLIN, 0}};
  for (const auto& client : clients_) {
    // Read only while there is nothing else to do for it: what it sends on waits in the kernel.
    const bool reads = !client->work && client->out.empty() && !client->in_ended;
    const int events = (reads ? POLLIN : 0) | (client->out.empty() ? 0 : POLLOUT);
    fds.push_back({client->gone ? -1 : client->fd.get(), static_cast<int16_t>(events), 0});
  }
  constexpr int kAcceptAgainMs = 200;
  if (poll(fds.data(), fds.size(), accept_failed_ ? kAcceptAgainMs : -1) < 0) return;
  accept_failed_ = false;
  for (size_t i = 0; i < clients_.size(); ++i) {
    Client& client = *clients_[i];
    const int16_t events = fds[i + 2].revents;
    if (events & (POLLHUP | POLLERR | POLLNVAL)) client.gone = true;
    if (!client.out.empty() && (client.gone || (events & POLLOUT))) Flush(client);
    if (events & POLLIN) ReadFrom(client);
    if (events) Advance(client);
  }
  ReadMail();
  std::erase_if(clients_, [](const auto& client) { return client->broken; });
  if (fds[1].revents) Accept();
}

void Server::Accept() {
  for (;;) {
    auto fd = AcceptOwnUser(socket_);
    if (!fd) {
      accept_failed_ = AcceptsLater(fd.error());
      return;
    }
    auto client = std::make_unique<Client>();
    client->id = next_client_++;
    client->fd = std::move(*fd);
    if (clients_.size() >= kMaxClients) {
      Say(*client, Answer(nullptr, std::unexpected(RpcError{RpcCode::kFailed, "too many clients"})));
      Flush(*client);
      continue;
    }
    clients_.push_back(std::move(client));
  }
}

void Server::ReadMail() {
  eventfd_t count = 0;
  eventfd_read(mailbox_->wake.get(), &count);
  std::vector<Mailbox::Letter> letters;
  {
    const std::lock_guard lock(mailbox_->mutex);
    letters.swap(mailbox_->letters);
  }
  for (const auto& [id, ticket, result] : letters) {
    const auto found = std::ranges::find(clients_, id, [](const auto& client) { return client->id; });
    if (found == clients_.end()) continue;
    Client& client = **found;
    if (client.ticket != ticket) continue;
    client.ticket.reset();
    if (client.wants_answer) TakeAnswer(client, client.id_asked, result);
    Advance(client);
  }
}

void Server::Advance(Client& client) {
  while (!client.broken && !client.ticket && client.out.empty()) {
    if (client.work && !client.work->messages.empty()) {
      StartNext(client);
    } else if (client.work) {
      FinishWork(client);
    } else if (client.closing) {
      client.broken = true;
    } else if (const auto line = TakeLine(client)) {
      BeginWork(client, *line);
    } else if (client.closing) {
      continue;
    } else if (client.in_ended) {
      client.broken = true;
    } else if (client.gone) {
      ReadFrom(client);
    } else {
      return;
    }
  }
}

void Server::ReadFrom(Client& client) {
  char bytes[16 * 1024];
  // One byte more than a request may have shows that it is too long.
  const size_t room = std::min(sizeof(bytes), kMaxRequestBytes + 1 - std::min(client.in.size(), kMaxRequestBytes + 1));
  if (room == 0) return;
  const ssize_t got = recv(client.fd.get(), bytes, room, MSG_DONTWAIT);
  if (got > 0)
    client.in.append(bytes, static_cast<size_t>(got));
  else if (got == 0 || (errno != EAGAIN && errno != EINTR) || client.gone)
    client.in_ended = true;
}

/// The next line that is not blank; the last one may lack its end.
std::optional<std::string> Server::TakeLine(Client& client) {
  for (;;) {
    size_t end = client.in.find('\n', client.searched);
    if (end == std::string::npos) {
      if (client.in.size() > kMaxRequestBytes) {
        const std::string text = fmt::format("a request may have {} bytes", kMaxRequestBytes);
        Say(client, Answer(nullptr, std::unexpected(RpcError{RpcCode::kInvalidRequest, text})));
        client.in.clear();
        client.closing = true;
        Flush(client);
        return std::nullopt;
      }
      client.searched = client.in.size();
      if (!client.in_ended || client.in.empty()) return std::nullopt;
      end = client.in.size();
    }
    std::string line = client.in.substr(0, end);
    client.in.erase(0, end + 1);
    client.searched = 0;
    if (line.find_first_not_of(" \t\r") != std::string::npos) return line;
  }
}

void Server::BeginWork(Client& client, const std::string& line) {
  client.work.emplace();
  auto message = ParseJson(line);
  if (!message) return TakeAnswer(client, nullptr, std::unexpected(message.error()));
  if (!message->is_array()) return client.work->messages.push_back(std::move(*message));
  if (message->empty() || message->size() > kMaxBatch) {
    const std::string text = fmt::format("a batch holds 1 to {} requests", kMaxBatch);
    return TakeAnswer(client, nullptr, std::unexpected(RpcError{RpcCode::kInvalidRequest, text}));
  }
  client.work->batch = true;
  for (Json& one : *message) client.work->messages.push_back(std::move(one));
}

void Server::StartNext(Client& client) {
  const Json message = std::move(client.work->messages.front());
  client.work->messages.pop_front();
  const auto request = ReadRequest(message);
  if (!request) return TakeAnswer(client, IdOf(message), std::unexpected(request.error()));
  client.id_asked = request->id;
  client.wants_answer = request->wants_answer;
  const uint64_t id = client.id, ticket = next_ticket_++;
  client.ticket = ticket;
  Execute(vm_, *request, [mailbox = mailbox_, id, ticket](RpcResult<Json> result) {
    mailbox->Put({id, ticket, std::move(result)});
  });
}

void Server::TakeAnswer(Client& client, const Json& id, const RpcResult<Json>& result) {
  client.work->answers.push_back(Answer(id, result));
}

void Server::FinishWork(Client& client) {
  const Work work = std::move(*client.work);
  client.work.reset();
  if (work.answers.empty()) return;  // notifications
  Say(client, work.batch ? work.answers : work.answers[0]);
  Flush(client);
}

void Server::Say(Client& client, const Json& message) {
  client.out += JsonText(message) + "\n";
  if (client.out.size() > kMaxPendingBytes) client.broken = true;
}

void Server::Flush(Client& client) {
  while (client.sent < client.out.size()) {
    const ssize_t sent = send(client.fd.get(), client.out.data() + client.sent, client.out.size() - client.sent,
                              MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0) {
      if (errno != EAGAIN && errno != EINTR) client.broken = true;
      return;
    }
    client.sent += static_cast<size_t>(sent);
  }
  client.out.clear();
  client.sent = 0;
}

}  // namespace nacre::control
