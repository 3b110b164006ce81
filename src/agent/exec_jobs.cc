#include "agent/exec_jobs.h"

#include <algorithm>

#include "agent/json_text.h"
#include "base/base64.h"

namespace nacre::agent {

namespace {

std::unexpected<Error> NoSense(std::string_view command) {
  return std::unexpected(Error{fmt::format("{}: the guest agent's answer makes no sense", command), EPROTO});
}

/// A member that may be missing, and then is empty.
std::optional<std::string> Decoded(const Json& answer, const char* name) {
  const auto member = answer.find(name);
  if (member == answer.end()) return "";
  return member->is_string() ? Base64Decode(member->get_ref<const std::string&>()) : std::nullopt;
}

bool IsTrue(const Json& answer, const char* name) {
  const auto member = answer.find(name);
  return member != answer.end() && member->is_boolean() && member->get<bool>();
}

std::optional<int> Small(const Json& answer, const char* name) {
  const auto member = answer.find(name);
  if (member == answer.end() || !member->is_number_integer()) return std::nullopt;
  const auto value = member->get<int64_t>();
  return value >= INT32_MIN && value <= INT32_MAX ? std::optional(static_cast<int>(value)) : std::nullopt;
}

}  // namespace

void ExecJobs::Start(const Program& program, std::function<void(Result<int64_t>)> done) {
  Json arguments{{"path", program.words.empty() ? "" : program.words[0]}, {"capture-output", true}};
  arguments["arg"] = Json::array();
  for (size_t i = 1; i < program.words.size(); ++i) arguments["arg"].push_back(program.words[i]);
  if (!program.environment.empty()) arguments["env"] = program.environment;
  if (program.has_input) arguments["input-data"] = Base64Encode(program.input);
  agent_.Call({.command = "guest-exec", .arguments = TextOf(arguments)},
              [done, kept = kept_](Result<std::string> answer) {
                if (!answer) return done(std::unexpected(answer.error()));
                const auto value = ParseUntrusted(*answer, GuestAgent::kMaxDepth);
                if (!value || !value->is_object()) return done(NoSense("guest-exec"));
                const auto pid = value->find("pid");
                if (pid == value->end() || !pid->is_number_integer()) return done(NoSense("guest-exec"));
                {
                  const std::lock_guard lock(kept->mutex);
                  kept->ended.erase(pid->get<int64_t>());  // the guest uses numbers again
                }
                done(pid->get<int64_t>());
              });
}

void ExecJobs::Poll(int64_t pid, std::function<void(Result<Status>)> done) {
  std::optional<Status> known;
  {
    const std::lock_guard lock(kept_->mutex);
    if (const auto job = kept_->ended.find(pid); job != kept_->ended.end()) known = job->second.status;
  }
  if (known) return done(*known);
  agent_.Call({.command = "guest-exec-status",
               .arguments = fmt::format("{{\"pid\":{}}}", pid),
               .patience = std::chrono::milliseconds(60'000),
               .max_answer_bytes = GuestAgent::kMaxAnswerBytes},
              [done, pid, kept = kept_](Result<std::string> answer) {
                if (!answer) return done(std::unexpected(answer.error()));
                const auto value = ParseUntrusted(*answer, GuestAgent::kMaxDepth);
                if (!value || !value->is_object()) return done(NoSense("guest-exec-status"));
                Ended ended;
                ended.status.exited = IsTrue(*value, "exited");
                if (!ended.status.exited) return done(ended.status);
                auto out = Decoded(*value, "out-data"), err = Decoded(*value, "err-data");
                ended.status.exit_code = Small(*value, "exitcode");
                ended.status.signal = Small(*value, "signal");
                if (!out || !err || (!ended.status.exit_code && !ended.status.signal))
                  return done(NoSense("guest-exec-status"));
                ended.out = std::move(*out);
                ended.err = std::move(*err);
                ended.status.out_bytes = ended.out.size();
                ended.status.err_bytes = ended.err.size();
                ended.status.out_truncated = IsTrue(*value, "out-truncated");
                ended.status.err_truncated = IsTrue(*value, "err-truncated");
                const Status status = ended.status;
                kept->Add(pid, std::move(ended));
                done(status);
              });
}

void ExecJobs::Kept::Add(int64_t pid, Ended one) {
  const std::lock_guard lock(mutex);
  one.order = next_order++;
  ended[pid] = std::move(one);
  const auto bytes = [this] {
    size_t sum = 0;
    for (const auto& [id, job] : ended) sum += job.out.size() + job.err.size();
    return sum;
  };
  while (ended.size() > 1 && (ended.size() > kMaxKept || bytes() > kMaxKeptBytes))
    ended.erase(std::ranges::min_element(ended, {}, [](const auto& entry) { return entry.second.order; }));
}

Result<std::string> ExecJobs::Output(int64_t pid, Stream stream, size_t offset, size_t most) const {
  const std::lock_guard lock(kept_->mutex);
  const auto job = kept_->ended.find(pid);
  if (job == kept_->ended.end()) return Fail("process {}: it has not ended, or its output is no longer kept", pid);
  const std::string& text = stream == Stream::kOut ? job->second.out : job->second.err;
  return offset >= text.size() ? std::string() : text.substr(offset, most);
}

}  // namespace nacre::agent
