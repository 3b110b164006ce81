#include "cli/control_commands.h"

#include <fmt/core.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "cli/paths.h"
#include "control/client.h"
#include "control/commands.h"
#include "display/keys.h"

namespace nacre::cli {

namespace {

using control::Json;

/// A CPU gives up at an instruction boundary; where the host's KVM emulates, that can take long.
constexpr std::chrono::milliseconds kPatience{60'000};

struct Words {
  std::vector<std::string> plain;
  bool json = false, help = false, list = false;
};

struct ControlWord {
  std::string_view name, usage, help;
  size_t least, most;  ///< words behind the name
  int (*run)(const Words& words);
};

int Failed(const Error& error) {
  fmt::print(stderr, "nacre: {}\n", error.message);
  return kExitFailed;
}

int WrongUsage(std::string_view command, std::string_view what) {
  fmt::print(stderr, "nacre: `nacre {}`: {}\nTry `nacre {} --help`.\n", command, what, command);
  return kExitUsage;
}

Result<Json> Ask(const std::string& vm, const std::string& method, const Json& params) {
  const std::string path = NACRE_TRY(ControlSocketOf(vm));
  control::Client client = NACRE_TRY(control::Client::Connect(path));
  return client.Call(method, params, kPatience);
}

template <typename Print>
int Report(const Result<Json>& answer, bool json, Print print) {
  if (!answer) return Failed(answer.error());
  if (json)
    fmt::print("{}\n", answer->dump(2, ' ', false, Json::error_handler_t::replace));
  else
    print(*answer);
  return kExitDone;
}

/// What a VM says stands on the user's terminal.
std::string TextOf(const Json& answer, const char* name) {
  const auto found = answer.find(name);
  if (found == answer.end()) return "?";
  return found->is_string() ? found->get<std::string>() : control::JsonText(*found);
}

int Engine(const Words& words) {
  const std::string& vm = words.plain[0];
  if (words.plain.size() == 1)
    return Report(Ask(vm, "vm.info", Json::object()), words.json,
                  [](const Json& answer) { fmt::print("{}\n", TextOf(answer, "engine")); });
  const auto kind = machine::EngineByName(words.plain[1]);
  if (!kind || *kind == machine::EngineKind::kAuto)
    return WrongUsage("engine", fmt::format("'{}' is no engine to go to; choose jit, kvm or interp", words.plain[1]));
  return Report(Ask(vm, "engine.switch", {{"engine", words.plain[1]}}), words.json, [](const Json& answer) {
    const auto pause = answer.find("pause_us");
    const double ms = pause != answer.end() && pause->is_number() ? pause->get<double>() / 1000 : 0;
    fmt::print("{} -> {}, the guest stood still for {:.1f} ms\n", TextOf(answer, "from"), TextOf(answer, "engine"), ms);
  });
}

int State(const Words& words, const char* method) {
  return Report(Ask(words.plain[0], method, Json::object()), words.json,
                [&](const Json& answer) { fmt::print("{}: {}\n", words.plain[0], TextOf(answer, "state")); });
}
int Pause(const Words& words) { return State(words, "vm.pause"); }
int Resume(const Words& words) { return State(words, "vm.resume"); }

int Control(const Words& words) {
  Json params = Json::object();
  if (words.plain.size() == 3) {
    auto given = control::ParseJson(words.plain[2]);
    if (!given || !given->is_object())
      return WrongUsage("control", fmt::format("{} is no JSON object such as {{\"engine\": \"jit\"}}", words.plain[2]));
    params = std::move(*given);
  }
  return Report(Ask(words.plain[0], words.plain[1], params), true, [](const Json&) {});
}

int Screenshot(const Words& words) {
  // The VM's process writes it, wherever that stands.
  std::error_code error;
  const std::filesystem::path path = std::filesystem::absolute(words.plain[1], error);
  if (error) return Failed({fmt::format("{}: {}", words.plain[1], error.message()), error.value()});
  return Report(Ask(words.plain[0], "display.screenshot", {{"path", path.string()}}), words.json,
                [&](const Json& answer) {
                  fmt::print("{}: {} x {}\n", words.plain[1], TextOf(answer, "width"), TextOf(answer, "height"));
                });
}

int Type(const Words& words) {
  const std::string& text = words.plain[1];
  // Nothing is typed of a text that cannot be typed whole.
  if (const auto strokes = display::TypeText(text); !strokes) return WrongUsage("type", strokes.error().message);
  for (size_t at = 0; at < text.size(); at += control::kMaxTypedBytes) {
    const auto typed = Ask(words.plain[0], "keyboard.type", {{"text", text.substr(at, control::kMaxTypedBytes)}});
    if (!typed) return Failed(typed.error());
  }
  return kExitDone;
}

int Key(const Words& words) {
  if (words.list) {
    for (const std::string& line : display::KeyNames()) fmt::print("{}\n", line);
    fmt::print("and what US keys print without Shift, but for minus: a-z 0-9 ` = [ ] \\ ; ' , . /\n");
    return kExitDone;
  }
  if (words.plain.size() < 2) return WrongUsage("key", "give VM KEY[-KEY...]...");
  const std::string keys = fmt::format("{}", fmt::join(std::span(words.plain).subspan(1), " "));
  if (const auto strokes = display::PressKeys(keys); !strokes) return WrongUsage("key", strokes.error().message);
  return Report(Ask(words.plain[0], "keyboard.press", {{"keys", keys}}), words.json, [](const Json&) {});
}

constexpr size_t kMaxKeyWords = 64;
constexpr std::array kControlWords = std::to_array<ControlWord>({
    {"engine", "VM [jit|kvm|interp]", "Prints the engine of a running VM, or lets it go on with another.", 1, 2,
     Engine},
    {"pause", "VM", "The guest and its time stand still until `nacre resume`.", 1, 1, Pause},
    {"resume", "VM", "A paused VM goes on.", 1, 1, Resume},
    {"screenshot", "VM FILE.png", "Writes the screen of a running VM into a PNG file.", 2, 2, Screenshot},
    {"type", "VM TEXT", "Types a text on a running VM's keyboard, of US layout; a newline in it is the Enter key.", 2,
     2, Type},
    {"key", "VM KEY[-KEY...]...",
     "Presses keys of a running VM, those of a word together: nacre key VM ctrl-alt-del\n`nacre key --list` has their "
     "names.",
     0, kMaxKeyWords, Key},
    {"control", "VM METHOD [JSON]", "Calls a method of a running VM's control socket and prints its result.", 2, 3,
     Control},
});

std::string ExampleOf(const control::Parameter& parameter) {
  std::string value(parameter.example);
  if (!parameter.choices.empty()) value = fmt::format("{}", fmt::join(parameter.choices, "|"));
  if (parameter.kind == control::ParameterKind::kText) value = '"' + value + '"';
  const std::string example = fmt::format("{{\"{}\": {}}}", parameter.name, value);
  return parameter.optional ? "[" + example + "]" : example;
}

int Help(const ControlWord& word) {
  fmt::print("Usage: nacre {} {}{}\n\n{}\n", word.name, word.usage, word.run == Control ? "" : " [--json]", word.help);
  if (word.run == Control) {
    fmt::print("\n");
    for (const control::Command& command : control::Commands()) {
      std::string call(command.name);
      for (const control::Parameter& parameter : command.parameters) call += fmt::format(" {}", ExampleOf(parameter));
      fmt::print("  {:<44} {}\n", call, command.help);
    }
  }
  fmt::print("\nVM is the path of the socket of `nacre run --control PATH` (with a '/'), or a VM's name.\n");
  return kExitDone;
}

}  // namespace

std::optional<int> ControlCommand(std::span<const std::string_view> words) {
  const auto command = std::ranges::find(kControlWords, words[0], &ControlWord::name);
  if (command == kControlWords.end()) return std::nullopt;
  Words sorted;
  bool only_plain = false;  // behind "--"
  for (const std::string_view word : words.subspan(1)) {
    if (only_plain || !word.starts_with("-") || word == "-")
      sorted.plain.emplace_back(word);
    else if (word == "--")
      only_plain = true;
    else if (word == "--json")
      sorted.json = true;
    else if (word == "--help" || word == "-h")
      sorted.help = true;
    else if (word == "--list" && command->run == Key)
      sorted.list = true;
    else
      return WrongUsage(command->name, fmt::format("unknown option {}{}", word,
                                                   command->run == Type ? "; a text with - comes behind --" : ""));
  }
  if (sorted.help) return Help(*command);
  if (sorted.plain.size() < command->least || sorted.plain.size() > command->most)
    return WrongUsage(command->name, fmt::format("give {}", command->usage));
  return command->run(sorted);
}

}  // namespace nacre::cli
