#include "control/commands.h"

#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <vector>

#include "control/agent_commands.h"

namespace nacre::control {

namespace {

using machine::RunState;

std::string_view NameOf(RunState state) {
  switch (state) {
    case RunState::kCreated:
      return "created";
    case RunState::kRunning:
      return "running";
    case RunState::kPaused:
      return "paused";
    case RunState::kEnded:
      break;
  }
  return "ended";
}

RpcError ErrorOf(const Error& error, RpcCode code) {
  return {error.code == ECANCELED ? RpcCode::kEnded : code, error.message};
}

/// `reply` with the answer that `answer` makes of a value, or with an error.
template <typename T, typename MakeAnswer>
Vm::Done<T> Then(Reply reply, RpcCode code, MakeAnswer answer) {
  return [reply = std::move(reply), code, answer](Result<T> result) {
    if (!result) return reply(std::unexpected(ErrorOf(result.error(), code)));
    if constexpr (std::is_void_v<T>)
      reply(answer());
    else
      reply(answer(*result));
  };
}

void Info(Vm& vm, const Json&, Reply reply) {
  const VmInfo info = vm.Info();
  reply(Json{{"name", info.name},
             {"state", info.asleep && info.state == RunState::kRunning ? "asleep" : NameOf(info.state)},
             {"engine", machine::NameOf(info.engine)},
             {"cpu_model", info.cpu_model},
             {"cpus", info.cpus},
             {"memory_bytes", info.memory_bytes},
             {"uptime_ms", info.uptime_ms},
             {"pid", getpid()},
             {"version", info.version}});
}

Json StateIs(RunState state) { return {{"state", NameOf(state)}}; }

void Pause(Vm& vm, const Json&, Reply reply) {
  vm.Pause(Then<void>(std::move(reply), RpcCode::kFailed, [] { return StateIs(RunState::kPaused); }));
}

void Resume(Vm& vm, const Json&, Reply reply) {
  vm.Resume(Then<void>(std::move(reply), RpcCode::kFailed, [] { return StateIs(RunState::kRunning); }));
}

void Power(Vm& vm, const Json&, Reply reply) {
  vm.PressPowerButton();
  reply(Json::object());
}

void NewGeneration(Vm& vm, const Json&, Reply reply) {
  const Status status = vm.NewGeneration();
  if (!status) return reply(std::unexpected(ErrorOf(status.error(), RpcCode::kFailed)));
  reply(Json::object());
}

/// The answer is on its way before the end.
void Stop(Vm& vm, const Json&, Reply reply) {
  reply(Json::object());
  vm.Stop();
}

void SwitchEngine(Vm& vm, const Json& params, Reply reply) {
  const auto kind = machine::EngineByName(params["engine"].get_ref<const std::string&>());
  const auto answer = [kind](const Vm::EngineSwitch& done) {
    return Json{{"from", machine::NameOf(done.before)},
                {"engine", machine::NameOf(*kind)},
                {"pause_us", std::chrono::duration_cast<std::chrono::microseconds>(done.pause).count()}};
  };
  vm.SwitchEngine(*kind, Then<Vm::EngineSwitch>(std::move(reply), RpcCode::kEngineRefused, answer));
}

void EngineInfo(Vm& vm, const Json&, Reply reply) {
  const auto answer = [&vm](const std::vector<machine::StatisticsSection>& sections) {
    Json list = Json::array();
    for (const auto& [title, entries] : sections) {
      Json values = Json::array();
      for (const auto& [name, value] : entries) values.push_back({{"name", name}, {"value", value}});
      list.push_back({{"title", title}, {"entries", std::move(values)}});
    }
    return Json{{"engine", machine::NameOf(vm.Info().engine)}, {"sections", std::move(list)}};
  };
  vm.Statistics(Then<std::vector<machine::StatisticsSection>>(std::move(reply), RpcCode::kFailed, answer));
}

void Registers(Vm& vm, const Json&, Reply reply) {
  const auto answer = [](const std::vector<std::string>& cpus) {
    Json list = Json::array();
    for (const std::string& text : cpus) list.push_back(text);
    return Json{{"cpus", std::move(list)}};
  };
  vm.Registers(Then<std::vector<std::string>>(std::move(reply), RpcCode::kFailed, answer));
}

void Screenshot(Vm& vm, const Json& params, Reply reply) {
  const auto answer = [](const Vm::ScreenSize& size) { return Json{{"width", size.width}, {"height", size.height}}; };
  vm.Screenshot(params["path"].get<std::string>(), Then<Vm::ScreenSize>(std::move(reply), RpcCode::kFailed, answer));
}

Json JsonOf(const Vm::SnapshotReport& report) {
  const auto us = [](auto time) { return std::chrono::duration_cast<std::chrono::microseconds>(time).count(); };
  return Json{{"pause_us", us(report.pause)},
              {"total_us", us(report.total)},
              {"memory_bytes", report.memory_bytes},
              {"parent", report.parent}};
}

void Snapshot(Vm& vm, const Json& params, Reply reply) {
  vm.Snapshot(params["path"].get<std::string>(), Then<Vm::SnapshotReport>(std::move(reply), RpcCode::kFailed, JsonOf));
}

void Fork(Vm& vm, const Json& params, Reply reply) {
  vm.Fork(params["path"].get<std::string>(), Then<Vm::SnapshotReport>(std::move(reply), RpcCode::kFailed, JsonOf));
}

void PressKeys(Vm& vm, Result<std::vector<display::KeyStroke>> strokes, std::string_view parameter, Reply reply) {
  if (!strokes)
    return reply(std::unexpected(RpcError{RpcCode::kInvalidParams, strokes.error().message, std::string(parameter)}));
  vm.PressKeys(std::move(*strokes), Then<void>(std::move(reply), RpcCode::kFailed, [] { return Json::object(); }));
}

void TypeText(Vm& vm, const Json& params, Reply reply) {
  const auto& text = params["text"].get_ref<const std::string&>();
  if (text.size() > kMaxTypedBytes)
    return reply(std::unexpected(
        RpcError{RpcCode::kInvalidParams,
                 fmt::format("text: {} bytes; at most {} are typed at once", text.size(), kMaxTypedBytes), "text"}));
  PressKeys(vm, display::TypeText(text), "text", std::move(reply));
}

void PressChords(Vm& vm, const Json& params, Reply reply) {
  const auto& keys = params["keys"].get_ref<const std::string&>();
  if (keys.size() > kMaxTypedBytes)
    return reply(std::unexpected(RpcError{RpcCode::kInvalidParams, "keys: too many at once", "keys"}));
  PressKeys(vm, display::PressKeys(keys), "keys", std::move(reply));
}

constexpr std::array<std::string_view, 3> kEngines{"jit", "kvm", "interp"};
constexpr std::array kSwitchParameters{Parameter{"engine", kEngines}};
constexpr std::array kScreenshotParameters{Parameter{"path", {}, "/tmp/screen.png"}};
constexpr std::array kSnapshotParameters{Parameter{"path", {}, "/tmp/before-upgrade"}};
constexpr std::array kTypeParameters{Parameter{"text", {}, "ls\\n"}};
constexpr std::array kPressParameters{Parameter{"keys", {}, "ctrl-alt-del"}};

constexpr std::array kOwnCommands = std::to_array<Command>({
    {"vm.info",
     {},
     "name, state, engine, cpu_model, cpus, memory_bytes, uptime_ms, pid, version",
     "what the VM is and whether it runs",
     Info},
    {"vm.pause", {}, "state", "the guest and its time stand still", Pause},
    {"vm.resume", {}, "state", "a paused guest goes on", Resume},
    {"vm.power", {}, "", "press the power button: the guest's operating system shuts down, or wakes from S3", Power},
    {"vm.new_generation",
     {},
     "",
     "tell the guest that it is a copy: its random numbers are seeded anew",
     NewGeneration},
    {"vm.stop", {}, "", "end at once, as if the plug were pulled", Stop},
    {"vm.snapshot", kSnapshotParameters, "pause_us, total_us, memory_bytes, parent",
     "save the running machine into a new directory", Snapshot},
    {"vm.fork", kSnapshotParameters, "pause_us, total_us, memory_bytes, parent",
     "as vm.snapshot, for clones that go on from it at once: nothing of it is synced", Fork},
    {"cpu.registers", {}, "cpus", "what each CPU is at, as text", Registers},
    {"engine.info", {}, "engine, sections", "the statistics of --engine-stats", EngineInfo},
    {"engine.switch", kSwitchParameters, "from, engine, pause_us", "go on with another engine", SwitchEngine},
    {"display.screenshot", kScreenshotParameters, "width, height", "write the screen into a PNG file", Screenshot},
    {"keyboard.type", kTypeParameters, "", "type a text", TypeText},
    {"keyboard.press", kPressParameters, "", "press keys together; several such with spaces between", PressChords},
});

bool IsOfKind(const Json& value, ParameterKind kind) {
  switch (kind) {
    case ParameterKind::kText:
      return value.is_string();
    case ParameterKind::kNumber:
      return value.is_number_unsigned() && value.get<uint64_t>() <= INT64_MAX;
    case ParameterKind::kTexts:
      return value.is_array() && std::ranges::all_of(value, [](const Json& one) { return one.is_string(); });
    case ParameterKind::kObject:
      return value.is_object();
  }
  return false;
}

constexpr std::string_view NameOf(ParameterKind kind) {
  switch (kind) {
    case ParameterKind::kText:
      return "a string";
    case ParameterKind::kNumber:
      return "a number from 0 on";
    case ParameterKind::kTexts:
      return "an array of strings";
    case ParameterKind::kObject:
      break;
  }
  return "an object";
}

RpcResult<void> CheckParams(const Command& command, const Json& params) {
  const auto invalid = [&](std::string_view parameter, std::string_view what) {
    return std::unexpected(RpcError{RpcCode::kInvalidParams,
                                    fmt::format("{}: parameter \"{}\" {}", command.name, parameter, what),
                                    std::string(parameter)});
  };
  for (const auto& [name, value] : params.items())
    if (std::ranges::find(command.parameters, name, &Parameter::name) == command.parameters.end())
      return invalid(name, "is not known");
  for (const auto& [name, choices, example, kind, optional] : command.parameters) {
    const auto value = params.find(name);
    if (value == params.end() && optional) continue;
    if (value == params.end()) return invalid(name, "is missing");
    if (!IsOfKind(*value, kind)) return invalid(name, fmt::format("is not {}", NameOf(kind)));
    if (!choices.empty() && std::ranges::find(choices, value->get_ref<const std::string&>()) == choices.end())
      return invalid(name, fmt::format("is not one of {}", fmt::join(choices, ", ")));
  }
  return {};
}

}  // namespace

std::span<const Command> Commands() {
  static const std::vector<Command> all = [] {
    std::vector<Command> commands(kOwnCommands.begin(), kOwnCommands.end());
    commands.insert(commands.end(), AgentCommands().begin(), AgentCommands().end());
    return commands;
  }();
  return all;
}

void Execute(Vm& vm, const RpcRequest& request, Reply reply) {
  const auto command = std::ranges::find(Commands(), request.method, &Command::name);
  if (command == Commands().end())
    return reply(
        std::unexpected(RpcError{RpcCode::kMethodNotFound, fmt::format("there is no method \"{}\"", request.method)}));
  if (const auto checked = CheckParams(*command, request.params); !checked)
    return reply(std::unexpected(checked.error()));
  command->run(vm, request.params, std::move(reply));
}

}  // namespace nacre::control
