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

/// A string that must be given.
struct Parameter {
  std::string_view name;
  std::span<const std::string_view> choices;
};

struct Command {
  std::string_view name;
  std::span<const Parameter> parameters;
  std::string_view result;  ///< the names of what it answers, "" for an empty object
  std::string_view help;
  /// `params` is what `parameters` allow.
  void (*run)(Vm& vm, const Json& params, Reply reply);
};

std::span<const Command> Commands();

/// Checks and runs one request. Of a notification too `reply` is called.
void Execute(Vm& vm, const RpcRequest& request, Reply reply);

}  // namespace nacre::control
