#include "agent/guest_agent.h"

#include <pthread.h>

#include <algorithm>

#include "agent/json_text.h"
#include "base/printable.h"

namespace nacre::agent {

namespace {

constexpr char kSyncByte = '\xff';
constexpr size_t kMaxSyncLine = 256;
constexpr size_t kMaxErrorText = 1000;
/// They answer only when they fail.
constexpr std::string_view kSilent[] = {"guest-shutdown", "guest-suspend-disk", "guest-suspend-ram",
                                        "guest-suspend-hybrid"};
constexpr std::chrono::milliseconds kSilentPatience{2000};

std::unexpected<Error> FailWith(int code, std::string message) {
  return std::unexpected(Error{std::move(message), code});
}

std::string ErrorText(const Json& error) {
  const auto text = error.is_object() && error.contains("desc") ? error["desc"] : Json();
  std::string shown = text.is_string() ? text.get<std::string>() : TextOf(error);
  if (shown.size() > kMaxErrorText) shown.resize(kMaxErrorText);
  return Printable(std::move(shown));
}

}  // namespace

GuestAgent::GuestAgent(PortStream& port) : port_(port) {
  port_.SetHandlers({.received = [this](std::span<const uint8_t> bytes) { Received(bytes); },
                     .opened =
                         [this](bool open) {
                           const std::lock_guard lock(mutex_);
                           if (!open) closed_ = true;
                           changed_.notify_all();
                         }});
}

GuestAgent::~GuestAgent() {
  Cancel();
  port_.SetHandlers({});
  if (thread_.joinable()) thread_.join();
}

void GuestAgent::Call(Request request, Done done) {
  Error refusal{"the guest has ended", ECANCELED};
  {
    const std::lock_guard lock(mutex_);
    if (!stop_ && jobs_.size() < kMaxQueue) {
      jobs_.push_back({std::move(request), std::move(done)});
      changed_.notify_all();
      if (!thread_.joinable()) {
        thread_ = std::thread([this] { Work(); });
        pthread_setname_np(thread_.native_handle(), "guest-agent");
      }
      return;
    }
    if (!stop_) refusal = {"too many requests wait for the guest agent", EBUSY};
  }
  done(std::unexpected(refusal));
}

void GuestAgent::Cancel() {
  std::deque<Job> jobs;
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
    jobs.swap(jobs_);
    changed_.notify_all();
  }
  for (const Job& job : jobs) job.done(FailWith(ECANCELED, "the guest has ended"));
}

void GuestAgent::Work() {
  for (;;) {
    Job job;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return stop_ || !jobs_.empty(); });
      if (stop_) return;
      job = std::move(jobs_.front());
      jobs_.pop_front();
    }
    Result<std::string> result = Carry(job.request);
    // The next answer could be this one's.
    if (!result && result.error().code != EREMOTEIO) synchronized_ = false;
    {
      const std::lock_guard lock(mutex_);
      inbox_room_ = 0;
      inbox_ = {};
      searched_ = 0;
    }
    job.done(std::move(result));
  }
}

Result<std::string> GuestAgent::Carry(const Request& request) {
  if (!connected())
    return FailWith(ENOTCONN,
                    "the guest agent does not run (nothing in the guest has the port org.qemu.guest_agent.0 open); "
                    "Debian's package is qemu-guest-agent");
  const auto is_name = [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-'; };
  if (request.command.empty() || !std::ranges::all_of(request.command, is_name))
    return FailWith(EINVAL, fmt::format("'{}' is not the name of a command of the guest agent", request.command));
  const auto deadline = Clock::now() + request.patience;
  if (!synchronized_) {
    NACRE_TRY_STATUS(Synchronize(deadline));
    synchronized_ = true;
  }
  const std::string arguments = request.arguments.empty() ? "" : ",\"arguments\":" + request.arguments;
  const size_t most = std::min(request.max_answer_bytes, kMaxAnswerBytes);
  NACRE_TRY_STATUS(Send(fmt::format("{{\"execute\":\"{}\"{}}}\n", request.command, arguments), most));
  const bool silent = std::ranges::find(kSilent, request.command) != std::end(kSilent);
  const auto until = silent ? std::min(deadline, Clock::now() + kSilentPatience) : deadline;
  auto line = ReadLine(until, most);
  if (!line && silent && (line.error().code == ETIMEDOUT || line.error().code == ENOTCONN)) {
    synchronized_ = false;
    return "{}";
  }
  if (!line) return Context(std::move(line).error(), "{}", request.command);
  const auto answer = ParseUntrusted(*line, kMaxDepth);
  if (!answer || !answer->is_object())
    return FailWith(EPROTO, fmt::format("{}: the guest agent's answer is not JSON", request.command));
  if (const auto error = answer->find("error"); error != answer->end())
    return FailWith(EREMOTEIO, fmt::format("{}: {}", request.command, ErrorText(*error)));
  const auto value = answer->find("return");
  if (value == answer->end())
    return FailWith(EPROTO, fmt::format("{}: the guest agent's answer has no \"return\"", request.command));
  return TextOf(*value);
}

/// guest-sync-delimited: the byte 0xff ends whatever the agent's parser had begun, and stands in front of its answer.
Status GuestAgent::Synchronize(Clock::time_point deadline) {
  const uint64_t id = next_sync_++;
  {
    const std::lock_guard lock(mutex_);
    seeking_ = true;
  }
  NACRE_TRY_STATUS(
      Send(fmt::format("{}{{\"execute\":\"guest-sync-delimited\",\"arguments\":{{\"id\":{}}}}}\n", kSyncByte, id),
           kMaxSyncLine));
  while (Clock::now() < deadline) {
    auto line = ReadLine(deadline, kMaxSyncLine);
    if (!line && line.error().code == EMSGSIZE) continue;
    if (!line) return Context(std::move(line).error(), "guest-sync-delimited");
    if (line->empty() || line->front() != kSyncByte) continue;
    const auto answer = ParseUntrusted(std::string_view(*line).substr(1), kMaxDepth);
    if (!answer || !answer->is_object()) continue;
    const auto value = answer->find("return");
    if (value == answer->end() || !value->is_number_unsigned() || value->get<uint64_t>() != id) continue;
    const std::lock_guard lock(mutex_);
    seeking_ = false;
    return {};
  }
  return FailWith(ETIMEDOUT, "guest-sync-delimited: the guest agent did not answer in time");
}

Status GuestAgent::Send(std::string_view text, size_t room) {
  const std::lock_guard lock(mutex_);
  closed_ = overflow_ = false;
  inbox_.clear();
  searched_ = 0;
  inbox_room_ = room + 1;
  if (port_.Send(text)) return {};
  return FailWith(ENOTCONN, "the guest agent has gone, or does not read");
}

Result<std::string> GuestAgent::ReadLine(Clock::time_point deadline, size_t max_bytes) {
  std::unique_lock lock(mutex_);
  for (;;) {
    if (const size_t end = inbox_.find('\n', searched_); end != std::string::npos) {
      std::string line = inbox_.substr(0, end);
      inbox_.erase(0, end + 1);
      searched_ = 0;
      return line;
    }
    searched_ = inbox_.size();
    if (overflow_) {
      inbox_.clear();
      searched_ = 0;
      overflow_ = false;
      return FailWith(EMSGSIZE, fmt::format("the guest agent's answer is longer than {} bytes", max_bytes));
    }
    if (stop_) return FailWith(ECANCELED, "the guest has ended");
    if (closed_) return FailWith(ENOTCONN, "the guest agent has gone before it answered");
    if (Clock::now() >= deadline) return FailWith(ETIMEDOUT, "the guest agent did not answer in time");
    changed_.wait_until(lock, deadline);
  }
}

void GuestAgent::Received(std::span<const uint8_t> bytes) {
  const std::lock_guard lock(mutex_);
  if (inbox_room_ == 0) return;
  std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  if (seeking_) {
    const size_t start = text.rfind(kSyncByte);
    if (start != std::string::npos) {
      text.remove_prefix(start);
      inbox_.clear();
      searched_ = 0;
      overflow_ = false;
    } else if (inbox_.empty()) {
      return;
    }
  }
  const size_t room = inbox_room_ - inbox_.size();
  if (text.size() > room) overflow_ = true;
  inbox_ += text.substr(0, room);
  changed_.notify_all();
}

}  // namespace nacre::agent
