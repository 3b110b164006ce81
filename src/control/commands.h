#pragma once
// The table of the control socket's methods: what each is called, takes, answers and does. The server runs it, the
// command line's help is made of it, docs/control.md is checked against it. Threads: as control/vm.h.

#include <functional>
#include <span>
#include <string>
#include <string_view>

#include "control/json_rpc.h"
#include "control/vm.h"

namespace nacre::control {

/// Called once, on any thread.
using Reply = std::function<void(RpcResult<Json>)>;

enum class ParameterKind : uint8_t {
  kText,
  kNumber,  ///< an integer from 0 on
  kTexts,   ///< an array of texts
  kObject
};

struct Parameter {
  std::string_view name;
  std::span<const std::string_view> choices;  ///< of a text; none: any text
  std::string_view example = {};              ///< of what has no choices, as JSON, for people
  ParameterKind kind = ParameterKind::kText;
  bool optional = false;
};

struct Command {
  std::string_view name;
  std::span<const Parameter> parameters;
  std::string_view result;  ///< the names of what it answers, "" for an empty object
  std::string_view help;
  /// `params` is what `parameters` allow.
  void (*run)(Vm& vm, const Json& params, Reply reply);
};

/// Of the texts of keyboard.type and keyboard.press: typing a text takes some seconds at most, in which its client is
/// not answered.
inline constexpr size_t kMaxTypedBytes = 1024;

std::span<const Command> Commands();

/// Checks and runs one request. Of a notification too `reply` is called.
void Execute(Vm& vm, const RpcRequest& request, Reply reply);

}  // namespace nacre::control
