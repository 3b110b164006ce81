#pragma once
// The other end of a control socket: one request at a time. One thread.

#include <chrono>
#include <string>

#include "base/fd.h"
#include "base/result.h"
#include "control/json_rpc.h"

namespace nacre::control {

class Client {
 public:
  static constexpr size_t kMaxAnswerBytes = 4 * 1024 * 1024;

  /// Errors say what is wrong with the VM at `path`.
  static Result<Client> Connect(const std::string& path);

  /// The method's result. An error is the VM's own text, or says that the VM did not answer in time or has ended.
  Result<Json> Call(const std::string& method, const Json& params, std::chrono::milliseconds patience);

 private:
  Client(Fd fd, std::string path) : fd_(std::move(fd)), path_(std::move(path)) {}
  Result<std::string> ReadLine(std::chrono::steady_clock::time_point deadline);

  Fd fd_;
  std::string path_, in_;
  uint64_t last_id_ = 0;
};

}  // namespace nacre::control
