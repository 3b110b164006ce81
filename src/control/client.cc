#include "control/client.h"

#include <poll.h>
#include <sys/socket.h>

#include "control/unix_socket.h"

namespace nacre::control {

Result<Client> Client::Connect(const std::string& path) {
  auto fd = ConnectSocket(path);
  if (fd) return Client(std::move(*fd), path);
  const Error& error = fd.error();
  if (error.code == ENOENT) return Fail("{}: there is no control socket; does the VM run, with --control?", path);
  if (error.code == ECONNREFUSED || error.code == ENOTSOCK)
    return Fail("{}: no VM listens there; it has ended, or this is no control socket", path);
  return std::unexpected(error);
}

Result<Json> Client::Call(const std::string& method, const Json& params, std::chrono::milliseconds patience) {
  const auto deadline = std::chrono::steady_clock::now() + patience;
  const std::string text =
      JsonText({{"jsonrpc", "2.0"}, {"method", method}, {"params", params}, {"id", ++last_id_}}) + "\n";
  for (size_t sent = 0; sent < text.size();) {
    const ssize_t done = send(fd_.get(), text.data() + sent, text.size() - sent, MSG_NOSIGNAL);
    if (done < 0 && errno != EINTR) return FailErrno("{}: the VM does not listen", path_);
    if (done > 0) sent += static_cast<size_t>(done);
  }
  const std::string line = NACRE_TRY(ReadLine(deadline));
  const auto answer = ParseJson(line);
  if (!answer || !answer->is_object()) return Fail("{}: what answered is no VM of Nacre", path_);
  if (const auto error = answer->find("error"); error != answer->end()) {
    const bool has_text = error->is_object() && error->contains("message") && (*error)["message"].is_string();
    return Fail("{}", has_text ? (*error)["message"].get<std::string>() : JsonText(*error));
  }
  if (const auto result = answer->find("result"); result != answer->end()) return *result;
  return Fail("{}: what answered is no VM of Nacre", path_);
}

Result<std::string> Client::ReadLine(std::chrono::steady_clock::time_point deadline) {
  for (;;) {
    if (const size_t end = in_.find('\n'); end != std::string::npos) {
      std::string line = in_.substr(0, end);
      in_.erase(0, end + 1);
      return line;
    }
    if (in_.size() > kMaxAnswerBytes) return Fail("{}: what answered is no VM of Nacre", path_);
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now()).count();
    pollfd fd{fd_.get(), POLLIN, 0};
    const int ready = left <= 0 ? 0 : poll(&fd, 1, static_cast<int>(std::min<int64_t>(left, 1 << 30)));
    if (ready == 0) return Fail("{}: the VM did not answer in time", path_);
    if (ready < 0) continue;
    char bytes[16 * 1024];
    const ssize_t got = recv(fd_.get(), bytes, sizeof(bytes), 0);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return FailErrno("{}", path_);
    if (got == 0) return Fail("{}: the VM ended before it answered, or does not serve this user", path_);
    in_.append(bytes, static_cast<size_t>(got));
  }
}

}  // namespace nacre::control
