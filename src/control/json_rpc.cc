#include "control/json_rpc.h"

#include <fmt/format.h>

#include "base/json_depth.h"

namespace nacre::control {

namespace {

std::unexpected<RpcError> Invalid(std::string_view what) {
  return std::unexpected(RpcError{RpcCode::kInvalidRequest, fmt::format("not a JSON-RPC 2.0 request: {}", what)});
}

}  // namespace

RpcResult<Json> ParseJson(std::string_view text) {
  if (JsonDepth(text) > kMaxJsonDepth)
    return std::unexpected(RpcError{RpcCode::kInvalidRequest, fmt::format("nested deeper than {}", kMaxJsonDepth)});
  Json value = Json::parse(text.begin(), text.end(), nullptr, false);
  if (value.is_discarded()) return std::unexpected(RpcError{RpcCode::kParseError, "not JSON"});
  return value;
}

std::string JsonText(const Json& value) { return value.dump(-1, ' ', false, Json::error_handler_t::replace); }

Json IdOf(const Json& message) {
  if (!message.is_object()) return nullptr;
  const auto id = message.find("id");
  return id != message.end() && (id->is_string() || id->is_number()) ? *id : Json();
}

RpcResult<RpcRequest> ReadRequest(const Json& message) {
  if (!message.is_object()) return Invalid("not an object");
  const auto version = message.find("jsonrpc");
  if (version == message.end() || *version != "2.0") return Invalid("\"jsonrpc\" is not \"2.0\"");
  const auto method = message.find("method");
  if (method == message.end() || !method->is_string()) return Invalid("\"method\" is not a string");
  RpcRequest request{.method = method->get<std::string>(), .params = Json::object(), .id = nullptr};
  if (const auto id = message.find("id"); id != message.end()) {
    if (!id->is_string() && !id->is_number() && !id->is_null()) return Invalid("\"id\" is no string and no number");
    request.id = *id;
    request.wants_answer = true;
  }
  if (const auto params = message.find("params"); params != message.end()) {
    if (params->is_object())
      request.params = *params;
    else if (!params->is_array() || !params->empty())
      return std::unexpected(RpcError{RpcCode::kInvalidParams, "give \"params\" as an object, by their names"});
  }
  return request;
}

Json Answer(const Json& id, const RpcResult<Json>& result) {
  if (result) return {{"jsonrpc", "2.0"}, {"result", *result}, {"id", id}};
  const RpcError& error = result.error();
  Json described{{"code", static_cast<int>(error.code)}, {"message", error.message}};
  if (!error.parameter.empty()) described["data"] = {{"parameter", error.parameter}};
  return {{"jsonrpc", "2.0"}, {"error", std::move(described)}, {"id", id}};
}

}  // namespace nacre::control
