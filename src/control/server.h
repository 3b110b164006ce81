#pragma once
// The control socket of a running VM: JSON-RPC 2.0, a message a line, over a Unix stream socket (docs/control.md).
//
// Threads: one of its own does everything and never waits for a client or for the VM; Create and the destructor on any
// one thread. The VM must outlive it.

#include <poll.h>

#include <atomic>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "base/fd.h"
#include "base/result.h"
#include "control/commands.h"
#include "control/json_rpc.h"
#include "control/unix_socket.h"
#include "control/vm.h"

namespace nacre::control {

class Server {
 public:
  static constexpr size_t kMaxClients = 32;
  static constexpr size_t kMaxRequestBytes = 64 * 1024;
  static constexpr size_t kMaxBatch = 32;
  /// Of answers that a client has not read; the requests of one line can make more than one.
  static constexpr size_t kMaxPendingBytes = 1024 * 1024;

  /// Listens at `path`; the error says what is wrong with it.
  static Result<std::unique_ptr<Server>> Create(const std::string& path, Vm& vm);
  /// Answers what the VM has done already, as far as clients take it at once, and removes the socket.
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

 private:
  /// What commands have answered, from any thread. Shared with their replies, which may outlive the server.
  struct Mailbox {
    struct Letter {
      uint64_t client, ticket;
      RpcResult<Json> result;
    };
    std::mutex mutex;
    std::vector<Letter> letters;
    Fd wake;  ///< eventfd
    void Put(Letter letter);
  };
  /// The requests of one line.
  struct Work {
    std::deque<Json> messages;
    Json answers = Json::array();
    bool batch = false;
  };
  struct Client {
    uint64_t id = 0;
    Fd fd;
    std::string in, out;
    size_t searched = 0;    ///< bytes of `in` known to hold no end of line
    size_t sent = 0;        ///< of `out`
    bool in_ended = false;  ///< it will send no more
    bool gone = false;      ///< it has closed; what it sent is still carried out
    bool closing = false;   ///< once `out` is sent
    bool broken = false;    ///< to be dropped
    std::optional<Work> work;
    std::optional<uint64_t> ticket;  ///< of the command that is waited for
    Json id_asked;                   ///< of its request
    bool wants_answer = false;
  };

  Server(ListeningSocket socket, Vm& vm) : socket_(std::move(socket)), vm_(vm) {}

  void Loop();
  void Poll();
  void Accept();
  void ReadMail();
  /// Carries on until the client must be waited for, or a command.
  void Advance(Client& client);
  void ReadFrom(Client& client);
  std::optional<std::string> TakeLine(Client& client);
  void BeginWork(Client& client, const std::string& line);
  void StartNext(Client& client);
  void TakeAnswer(Client& client, const Json& id, const RpcResult<Json>& result);
  void FinishWork(Client& client);
  void Say(Client& client, const Json& message);
  void Flush(Client& client);

  ListeningSocket socket_;
  Vm& vm_;
  std::shared_ptr<Mailbox> mailbox_ = std::make_shared<Mailbox>();
  std::vector<std::unique_ptr<Client>> clients_;
  uint64_t next_client_ = 1, next_ticket_ = 1;
  bool accept_failed_ = false;  ///< no descriptors left: look again later
  std::atomic<bool> stop_ = false;
  std::thread thread_;
};

}  // namespace nacre::control
