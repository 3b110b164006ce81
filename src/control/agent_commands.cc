#include "control/agent_commands.h"

#include <array>

#include "base/base64.h"

namespace nacre::control {

namespace {

using agent::ExecJobs;

RpcError AgentError(const Error& error) {
  return {error.code == ECANCELED ? RpcCode::kEnded : RpcCode::kFailed, error.message};
}

/// Answers the request where there is no agent.
std::optional<Vm::Agent> AgentOf(Vm& vm, const Reply& reply) {
  auto agent = vm.GuestAgent();
  if (!agent)
    reply(std::unexpected(RpcError{RpcCode::kFailed, "this VM has no port for a guest agent (--guest-agent off)"}));
  return agent;
}

/// `reply` with a value of the agent as it is.
agent::GuestAgent::Done Passed(Reply reply) {
  return [reply = std::move(reply)](const Result<std::string>& answer) {
    if (!answer) return reply(std::unexpected(AgentError(answer.error())));
    auto value = ParseJson(*answer);
    if (!value) return reply(std::unexpected(value.error()));
    reply(Json{{"value", std::move(*value)}});
  };
}

void Info(Vm& vm, const Json&, Reply reply) {
  const auto to = AgentOf(vm, reply);
  if (!to) return;
  to->agent.Call({.command = "guest-info"}, [reply](const Result<std::string>& answer) {
    if (!answer) return reply(std::unexpected(AgentError(answer.error())));
    const auto value = ParseJson(*answer);
    Json names = Json::array();
    if (value && value->is_object() && value->contains("supported_commands") &&
        (*value)["supported_commands"].is_array())
      for (const Json& command : (*value)["supported_commands"])
        if (command.is_object() && command.value("enabled", Json()) == true &&
            command.value("name", Json()).is_string())
          names.push_back(command["name"]);
    const Json version = value && value->is_object() ? value->value("version", Json()) : Json();
    reply(Json{{"version", version.is_string() ? version : Json("?")}, {"commands", std::move(names)}});
  });
}

void Call(Vm& vm, const Json& params, Reply reply) {
  const auto to = AgentOf(vm, reply);
  if (!to) return;
  agent::GuestAgent::Request request{.command = params["command"].get<std::string>()};
  if (const auto arguments = params.find("arguments"); arguments != params.end())
    request.arguments = JsonText(*arguments);
  if (const auto patience = params.find("patience_ms"); patience != params.end())
    request.patience = std::chrono::milliseconds(std::min<uint64_t>(patience->get<uint64_t>(), 3'600'000));
  request.max_answer_bytes = kMaxOutputBytes * 2;
  to->agent.Call(std::move(request), Passed(std::move(reply)));
}

void Exec(Vm& vm, const Json& params, Reply reply) {
  const auto to = AgentOf(vm, reply);
  if (!to) return;
  ExecJobs::Program program{.words = params["words"].get<std::vector<std::string>>()};
  const auto invalid = [&](const char* name, std::string_view what) {
    reply(std::unexpected(RpcError{RpcCode::kInvalidParams, fmt::format("agent.exec: {}", what), name}));
  };
  if (program.words.empty() || program.words[0].empty()) return invalid("words", "words: name a program");
  if (const auto environment = params.find("environment"); environment != params.end())
    program.environment = environment->get<std::vector<std::string>>();
  if (const auto input = params.find("input"); input != params.end()) {
    auto bytes = Base64Decode(input->get_ref<const std::string&>());
    if (!bytes) return invalid("input", "input: not Base64");
    program.input = std::move(*bytes);
    program.has_input = true;
  }
  to->jobs.Start(program, [reply](Result<int64_t> pid) {
    if (!pid) return reply(std::unexpected(AgentError(pid.error())));
    reply(Json{{"pid", *pid}});
  });
}

void ExecStatus(Vm& vm, const Json& params, Reply reply) {
  const auto to = AgentOf(vm, reply);
  if (!to) return;
  to->jobs.Poll(params["pid"].get<int64_t>(), [reply](Result<ExecJobs::Status> status) {
    if (!status) return reply(std::unexpected(AgentError(status.error())));
    reply(Json{{"exited", status->exited},
               {"exit_code", status->exit_code ? Json(*status->exit_code) : Json()},
               {"signal", status->signal ? Json(*status->signal) : Json()},
               {"out_bytes", status->out_bytes},
               {"err_bytes", status->err_bytes},
               {"truncated", status->out_truncated || status->err_truncated}});
  });
}

void ExecOutput(Vm& vm, const Json& params, Reply reply) {
  const auto to = AgentOf(vm, reply);
  if (!to) return;
  const auto stream = params["stream"] == "out" ? ExecJobs::Stream::kOut : ExecJobs::Stream::kErr;
  const auto bytes =
      to->jobs.Output(params["pid"].get<int64_t>(), stream, params["offset"].get<size_t>(), kMaxOutputBytes);
  if (!bytes) return reply(std::unexpected(AgentError(bytes.error())));
  reply(Json{{"data", Base64Encode(*bytes)}});
}

constexpr std::array<std::string_view, 2> kStreams{"out", "err"};
constexpr Parameter kPid{"pid", {}, "1234", ParameterKind::kNumber};
constexpr std::array kCallParameters{
    Parameter{"command", {}, "guest-get-host-name"},
    Parameter{"arguments", {}, "{}", ParameterKind::kObject, true},
    Parameter{"patience_ms", {}, "10000", ParameterKind::kNumber, true},
};
constexpr std::array kExecParameters{
    Parameter{"words", {}, R"(["uname", "-r"])", ParameterKind::kTexts},
    Parameter{"environment", {}, R"(["NAME=VALUE"])", ParameterKind::kTexts, true},
    Parameter{"input", {}, "aGVsbG8K", ParameterKind::kText, true},
};
constexpr std::array kStatusParameters{kPid};
constexpr std::array kOutputParameters{kPid, Parameter{"stream", kStreams},
                                       Parameter{"offset", {}, "0", ParameterKind::kNumber}};

constexpr std::array kAgentCommands = std::to_array<Command>({
    {"agent.info", {}, "version, commands", "the guest agent's version and what it can", Info},
    {"agent.call", kCallParameters, "value", "any command of the guest agent", Call},
    {"agent.exec", kExecParameters, "pid", "start a program in the guest", Exec},
    {"agent.exec_status", kStatusParameters, "exited, exit_code, signal, out_bytes, err_bytes, truncated",
     "what became of it", ExecStatus},
    {"agent.exec_output", kOutputParameters, "data", "what it has written, once it has ended", ExecOutput},
});

}  // namespace

std::span<const Command> AgentCommands() { return kAgentCommands; }

}  // namespace nacre::control
