// Mutated requests in pieces of any size, by clients that leave at any moment: whatever the server says is JSON-RPC,
// and it goes on to serve.
//
// Longer runs: base/fuzz_testing.h; a case is a client.

#include <cstdlib>
#include <random>

#include "base/fuzz_testing.h"
#include "control/control_testing.h"
#include "control/server.h"

namespace nacre::control {
namespace {

class Mutator {
 public:
  explicit Mutator(uint64_t seed) : random_(seed) {}

  uint64_t Below(uint64_t n) { return random_() % n; }

  std::string Line() {
    static constexpr std::string_view kGood[] = {
        R"({"jsonrpc":"2.0","method":"vm.info","id":1})",
        R"({"jsonrpc":"2.0","method":"engine.switch","params":{"engine":"interp"},"id":"a\u00e9\\\""})",
        R"({"jsonrpc":"2.0","method":"engine.info","params":{},"id":-1.5e300})",
        R"([{"jsonrpc":"2.0","method":"vm.pause","id":null},{"jsonrpc":"2.0","method":"vm.resume"},[[1]],{}])",
        R"({"jsonrpc":"2.0","method":"vm.power"})"};
    static constexpr std::string_view kPieces[] = {
        "{",      "}",      "[",           "]",    "\"",       ",", ":", "null",       "\\u00",       "\\ud800",
        "1e9999", "\"id\"", "\"jsonrpc\"", "\xff", "\xf0\x9f", "-", "0", "\"params\"", "\"method\":", "\n"};
    std::string line(kGood[Below(std::size(kGood))]);
    for (uint64_t count = Below(4); count > 0; --count) {
      const size_t at = Below(line.size() + 1);
      switch (Below(5)) {
        case 0:
          line.insert(at, kPieces[Below(std::size(kPieces))]);
          break;
        case 1:
          if (at < line.size()) line[at] = static_cast<char>(random_());
          break;
        case 2:
          line.erase(at, Below(20));
          break;
        case 3:
          line.insert(at, line.substr(0, Below(line.size() + 1)));
          break;
        default:
          line.insert(at, Below(16) ? Below(100) : Below(2 * Server::kMaxRequestBytes), "[{ \"0"[Below(5)]);
          break;
      }
    }
    return line + "\n";
  }

 private:
  std::mt19937_64 random_;
};

TEST(ServerFuzz, WhateverComesItServesOn) {
  const ScratchFolder folder;
  const std::string path = folder / "s";
  FakeVm vm;
  const auto server = Server::Create(path, vm);
  ASSERT_TRUE(server);
  RawClient steady(path);
  FuzzRun run(1000);
  Mutator mutator(FuzzSeed(1));
  uint64_t answers = 0;
  while (run.Next()) {
    vm.holds = mutator.Below(4) == 0;
    RawClient client(path);
    std::string bytes;
    for (uint64_t lines = 1 + mutator.Below(6); lines > 0; --lines) bytes += mutator.Line();
    if (mutator.Below(4) == 0) bytes.resize(mutator.Below(bytes.size() + 1));
    for (size_t at = 0; at < bytes.size();) {
      const size_t count = std::min<size_t>(bytes.size() - at, 1 + mutator.Below(mutator.Below(2) ? 20 : 100000));
      const size_t sent = client.SendWhatFits(std::string_view(bytes).substr(at, count));
      at += sent;
      if (sent == 0) break;
    }
    if (mutator.Below(4)) {
      vm.holds = false;
      client.EndInput();
      for (;;) {
        vm.Release();
        const std::string line = client.Line(10, false);
        if (line.empty()) break;
        const auto answer = ParseJson(line);
        ASSERT_TRUE(answer) << line;
        ASSERT_TRUE(answer->is_array() || (*answer)["jsonrpc"] == "2.0") << line;
        ++answers;
      }
    }
    client.Close();
    vm.Release();
    if (run.index() % 16 == 0) {
      ASSERT_TRUE(steady.Call("vm.info").contains("result")) << "case " << run.index();
    }
  }
  EXPECT_GT(answers, run.cases() / 2);
  EXPECT_EQ(vm.stops(), 0);
}

}  // namespace
}  // namespace nacre::control
