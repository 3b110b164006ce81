#include "cli/guest_session.h"

#include <algorithm>
#include <thread>

#include "base/base64.h"
#include "base/printable.h"
#include "cli/paths.h"
#include "control/agent_commands.h"
#include "control/client.h"

namespace nacre::cli {

namespace {

using control::Json;
using std::chrono::milliseconds;

constexpr milliseconds kPatience{120'000};
constexpr milliseconds kFirstPoll{2}, kLongestPoll{200};

Error NoSense(std::string_view method) { return {fmt::format("{}: the VM's answer makes no sense", method), EPROTO}; }

Result<int64_t> Number(const Json& answer, const char* name) {
  const auto member = answer.is_object() ? answer.find(name) : answer.end();
  if (member == answer.end() || !member->is_number_integer()) return std::unexpected(NoSense(name));
  return member->get<int64_t>();
}

Result<std::string> Bytes(const Json& answer, const char* name) {
  const auto member = answer.is_object() ? answer.find(name) : answer.end();
  if (member == answer.end() || !member->is_string()) return std::unexpected(NoSense(name));
  auto bytes = Base64Decode(member->get_ref<const std::string&>());
  if (!bytes) return std::unexpected(NoSense(name));
  return std::move(*bytes);
}

/// `value` of what agent.call answered.
Result<Json> AgentCall(control::Client& client, const char* command, Json arguments) {
  Json answer =
      NACRE_TRY(client.Call("agent.call", {{"command", command}, {"arguments", std::move(arguments)}}, kPatience));
  if (!answer.is_object() || !answer.contains("value")) return std::unexpected(NoSense(command));
  return std::move(answer["value"]);
}

/// An open file of the guest.
class GuestFile {
 public:
  static Result<GuestFile> Open(control::Client& client, const std::string& path, const char* mode) {
    const Json value = NACRE_TRY(AgentCall(client, "guest-file-open", {{"path", path}, {"mode", mode}}));
    if (!value.is_number_integer()) return std::unexpected(NoSense("guest-file-open"));
    return GuestFile(client, value.get<int64_t>());
  }
  GuestFile(GuestFile&& other) noexcept : client_(other.client_), handle_(std::exchange(other.handle_, -1)) {}
  ~GuestFile() {
    if (handle_ >= 0) (void)Close();
  }
  Status Close() {
    NACRE_TRY(AgentCall(client_, "guest-file-close", {{"handle", std::exchange(handle_, -1)}}));
    return {};
  }
  Result<std::string> Read() {
    const Json value =
        NACRE_TRY(AgentCall(client_, "guest-file-read", {{"handle", handle_}, {"count", control::kMaxOutputBytes}}));
    return Bytes(value, "buf-b64");
  }
  Status Write(std::string_view bytes) {
    while (!bytes.empty()) {
      const auto piece = bytes.substr(0, control::kMaxInputBytes);
      const Json value =
          NACRE_TRY(AgentCall(client_, "guest-file-write", {{"handle", handle_}, {"buf-b64", Base64Encode(piece)}}));
      const auto count = NACRE_TRY(Number(value, "count"));
      if (count <= 0 || static_cast<uint64_t>(count) > piece.size())
        return std::unexpected(NoSense("guest-file-write"));
      bytes.remove_prefix(static_cast<size_t>(count));
    }
    return {};
  }

 private:
  GuestFile(control::Client& client, int64_t handle) : client_(client), handle_(handle) {}
  control::Client& client_;
  int64_t handle_;
};

}  // namespace

GuestSession::GuestSession(std::unique_ptr<control::Client> client) : client_(std::move(client)) {}
GuestSession::GuestSession(GuestSession&&) noexcept = default;
GuestSession::~GuestSession() = default;

Result<GuestSession> GuestSession::Open(const std::string& vm, milliseconds patience) {
  const auto deadline = Clock::now() + patience;
  for (;;) {
    Error error;
    auto path = ControlSocketOf(vm);
    if (path) {
      auto connected = control::Client::Connect(*path);
      if (connected) {
        auto client = std::make_unique<control::Client>(std::move(*connected));
        const auto info = client->Call("agent.call", {{"command", "guest-ping"}}, kPatience);
        if (info) return GuestSession(std::move(client));
        error = info.error();
      } else {
        error = connected.error();
      }
    } else {
      error = path.error();
    }
    if (Clock::now() >= deadline) return std::unexpected(error);
    std::this_thread::sleep_for(milliseconds(100));
  }
}

Result<int64_t> GuestSession::Start(const Program& program) {
  Json params{{"words", program.words}};
  if (!program.environment.empty()) params["environment"] = program.environment;
  if (program.input) {
    std::string first;
    bool all = false;
    while (!all && first.size() <= control::kMaxInputBytes / 2) {
      const std::string piece = NACRE_TRY(program.input());
      all = piece.empty();
      first += piece;
    }
    if (all) {
      params["input"] = Base64Encode(first);
    } else {
      const std::string file = NACRE_TRY(MakeTemporary());
      const auto written = WriteFile(file, [&](const GuestSession::Sink& sink) -> Status {
        for (std::string piece = std::move(first); !piece.empty(); piece = NACRE_TRY(program.input()))
          NACRE_TRY_STATUS(sink(piece));
        return {};
      });
      if (!written) {
        Remove(file);
        return std::unexpected(written.error());
      }
      // The shell opens the file and removes its name, then becomes the program.
      std::vector<std::string> words{"/bin/sh", "-c", R"(exec <"$0"; rm -f "$0"; exec "$@")", file};
      words.insert(words.end(), program.words.begin(), program.words.end());
      params["words"] = words;
    }
  }
  return Number(NACRE_TRY(client_->Call("agent.exec", params, kPatience)), "pid");
}

Status GuestSession::Kill(int64_t pid) {
  NACRE_TRY(client_->Call("agent.exec", {{"words", {"/bin/sh", "-c", fmt::format("kill -KILL {}", pid)}}}, kPatience));
  return {};
}

Result<GuestSession::Ended> GuestSession::Run(const Program& program) {
  const int64_t pid = NACRE_TRY(Start(program));
  Ended ended;
  Json status;
  for (milliseconds wait = kFirstPoll;; wait = std::min(wait * 2, kLongestPoll)) {
    status = NACRE_TRY(client_->Call("agent.exec_status", {{"pid", pid}}, kPatience));
    if (!status.is_object()) return std::unexpected(NoSense("agent.exec_status"));
    if (status.value("exited", Json()) == true) break;
    const bool late = program.deadline && Clock::now() >= *program.deadline;
    if (late || (program.interrupted && (*program.interrupted)())) {
      ended.how = late ? Ended::How::kTimedOut : Ended::How::kInterrupted;
      NACRE_TRY_STATUS(Kill(pid));
      return ended;
    }
    std::this_thread::sleep_for(wait);
  }
  const auto code = Number(status, "exit_code");
  ended.how = code ? Ended::How::kExited : Ended::How::kSignalled;
  ended.number = static_cast<int>(code ? *code : NACRE_TRY(Number(status, "signal")));
  ended.truncated = status.value("truncated", Json()) == true;
  for (const auto& [stream, text] : {std::pair("out", &ended.out), std::pair("err", &ended.err)}) {
    for (;;) {
      const Json answer = NACRE_TRY(
          client_->Call("agent.exec_output", {{"pid", pid}, {"stream", stream}, {"offset", text->size()}}, kPatience));
      const std::string piece = NACRE_TRY(Bytes(answer, "data"));
      if (piece.empty()) break;
      *text += piece;
    }
  }
  return ended;
}

Result<std::string> GuestSession::Ask(std::vector<std::string> words) {
  const std::string name = words[0];
  Ended ended = NACRE_TRY(Run({.words = std::move(words)}));
  if (ended.how == Ended::How::kExited && ended.number == 0) return std::move(ended.out);
  while (ended.err.ends_with('\n')) ended.err.pop_back();
  return Fail("in the guest: {}",
              ended.err.empty() ? fmt::format("{}: status {}", name, ended.number) : Printable(std::move(ended.err)));
}

Status GuestSession::ReadFile(const std::string& path, const Sink& take) {
  GuestFile file = NACRE_TRY(GuestFile::Open(*client_, path, "rb"));
  for (;;) {
    const std::string piece = NACRE_TRY(file.Read());
    if (piece.empty()) return file.Close();
    NACRE_TRY_STATUS(take(piece));
  }
}

Status GuestSession::WriteFile(const std::string& path, const std::function<Status(const Sink&)>& produce) {
  GuestFile file = NACRE_TRY(GuestFile::Open(*client_, path, "wb"));
  std::string waiting;
  const auto take = [&](std::string_view bytes) -> Status {
    waiting += bytes;
    if (waiting.size() < control::kMaxInputBytes) return {};
    const size_t whole = waiting.size() / control::kMaxInputBytes * control::kMaxInputBytes;
    NACRE_TRY_STATUS(file.Write(std::string_view(waiting).substr(0, whole)));
    waiting.erase(0, whole);
    return {};
  };
  NACRE_TRY_STATUS(produce(take));
  NACRE_TRY_STATUS(file.Write(waiting));
  return file.Close();
}

Result<std::string> GuestSession::MakeTemporary() {
  std::string path = NACRE_TRY(Ask({"mktemp"}));
  if (!path.ends_with('\n') || !path.starts_with('/')) return Fail("in the guest: mktemp made no file");
  path.pop_back();
  return path;
}

void GuestSession::Remove(const std::string& path) { (void)Ask({"rm", "-f", path}); }

}  // namespace nacre::cli
