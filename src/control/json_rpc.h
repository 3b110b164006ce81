#pragma once
// JSON-RPC 2.0 (jsonrpc.org/specification): messages to values and back. Any thread. No input can make it throw,
// recurse deeply or use more memory than a small multiple of its length.

#include <expected>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace nacre::control {

using Json = nlohmann::ordered_json;

/// Codes of the specification (5.1), and those of Nacre from -32000 down.
enum class RpcCode : int {
  kParseError = -32700,
  kInvalidRequest = -32600,
  kMethodNotFound = -32601,
  kInvalidParams = -32602,
  kEnded = -32000,         ///< the guest has ended
  kFailed = -32001,        ///< the VM could not do it
  kEngineRefused = -32002  ///< the VM goes on with the engine that it had
};

struct RpcError {
  RpcCode code;
  std::string message;
  std::string parameter = {};  ///< kInvalidParams: which one, if one
};

template <typename T>
using RpcResult = std::expected<T, RpcError>;

/// Arrays and objects in each other.
inline constexpr int kMaxJsonDepth = 16;

/// UTF-8 text of one value. Fails with kParseError, or kInvalidRequest where it is nested too deeply.
RpcResult<Json> ParseJson(std::string_view text);
/// One line without its end. Bytes that are not UTF-8 are replaced.
std::string JsonText(const Json& value);

struct RpcRequest {
  std::string method;
  Json params;  ///< an object
  Json id;
  bool wants_answer = false;  ///< false: a notification
};

/// The id of a request that is wrong in other ways, null if it has none.
Json IdOf(const Json& message);
RpcResult<RpcRequest> ReadRequest(const Json& message);
Json Answer(const Json& id, const RpcResult<Json>& result);

}  // namespace nacre::control
