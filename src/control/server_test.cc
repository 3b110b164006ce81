#include "control/server.h"

#include <sys/stat.h>
#include <sys/wait.h>

#include <array>
#include <fstream>
#include <sstream>

#include "control/client.h"
#include "control/control_testing.h"

namespace nacre::control {
namespace {

constexpr int kParse = -32700, kInvalid = -32600, kUnknown = -32601, kParams = -32602, kHasEnded = -32000,
              kRefused = -32002;
constexpr std::string_view kInfo = R"({"jsonrpc":"2.0","method":"vm.info","id":1})";

class ServerTest : public testing::Test {
 protected:
  ServerTest() {
    auto server = Server::Create(path_, vm_);
    EXPECT_TRUE(server) << server.error().message;
    if (server) server_ = std::move(*server);
  }
  /// Until the switches that clients asked for have reached the VM.
  void ReleaseOne() {
    while (vm_.Release() == 0) std::this_thread::yield();
  }

  const ScratchFolder folder_;
  const std::string path_ = folder_ / "s";
  FakeVm vm_;
  std::unique_ptr<Server> server_;
};

TEST_F(ServerTest, AnswersWithTheIdOfTheRequest) {
  RawClient client(path_);
  for (const char* id : {"1", "-7", "0.5", "\"a\\u0000b\"", "null", "18446744073709551615"}) {
    const Json answer = client.Ask(fmt::format(R"({{"jsonrpc":"2.0","method":"vm.info","id":{}}})", id));
    EXPECT_EQ(answer["id"], Json::parse(id));
    EXPECT_EQ(answer["jsonrpc"], "2.0");
    EXPECT_EQ(answer["result"]["name"], "fake");
    EXPECT_EQ(answer["result"]["engine"], "jit");
    EXPECT_EQ(answer["result"]["state"], "running");
  }
}

TEST_F(ServerTest, EveryCommand) {
  RawClient client(path_);
  EXPECT_EQ(client.Call("vm.pause")["result"]["state"], "paused");
  EXPECT_EQ(client.Call("vm.info")["result"]["state"], "paused");
  EXPECT_EQ(client.Call("vm.resume")["result"]["state"], "running");
  EXPECT_EQ(client.Call("vm.power")["result"], Json::object());
  EXPECT_EQ(vm_.power(), 1);
  EXPECT_EQ(client.Call("cpu.registers")["result"]["cpus"], Json::array({"\n  CPU 0: RIP f000:fff0\n"}));
  const Json statistics = client.Call("engine.info")["result"];
  EXPECT_EQ(statistics["engine"], "jit");
  EXPECT_EQ(statistics["sections"].size(), 2u);
  EXPECT_EQ(statistics["sections"][0]["entries"][0]["value"], ~uint64_t{0});
  const Json switched =
      client.Ask(R"({"jsonrpc":"2.0","method":"engine.switch","params":{"engine":"interp"},"id":1})")["result"];
  EXPECT_EQ(switched["from"], "jit");
  EXPECT_EQ(switched["engine"], "interp");
  EXPECT_EQ(switched["pause_us"], 1500);
  EXPECT_EQ(client.Call("vm.info")["result"]["engine"], "interp");
  EXPECT_EQ(client.Call("vm.stop")["result"], Json::object());
  EXPECT_EQ(vm_.stops(), 1);
}

TEST_F(ServerTest, ANotificationIsCarriedOutWithoutAnAnswer) {
  RawClient client(path_);
  client.Send("{\"jsonrpc\":\"2.0\",\"method\":\"vm.power\"}\n{\"jsonrpc\":\"2.0\",\"method\":\"none\"}\n\n \r\n");
  EXPECT_EQ(client.Ask(kInfo)["id"], 1);
  EXPECT_EQ(vm_.power(), 1);
}

TEST_F(ServerTest, ErrorsOfTheSpecification) {
  RawClient client(path_);
  for (const char* text : {"{", "}", "nonsense", "{\"jsonrpc\":\"2.0\"", "\xff\xfe", "[1,", "\"\xc3\"", "{\"a\":1}x"})
    EXPECT_EQ(client.CodeOf(text), kParse) << text;
  for (const char* text :
       {"1", "\"x\"", "null", "{}", R"({"method":"vm.info","id":1})", R"({"jsonrpc":"1.0","method":"vm.info","id":1})",
        R"({"jsonrpc":"2.0","id":1})", R"({"jsonrpc":"2.0","method":1,"id":1})",
        R"({"jsonrpc":"2.0","method":"vm.info","id":{}})", "[]"})
    EXPECT_EQ(client.CodeOf(text), kInvalid) << text;
  EXPECT_EQ(client.CodeOf(R"({"jsonrpc":"2.0","method":"vm.fly","id":1})"), kUnknown);
  EXPECT_EQ(client.CodeOf(R"({"jsonrpc":"2.0","method":"vm.info","params":[1],"id":1})"), kParams);
  EXPECT_EQ(client.CodeOf(R"({"jsonrpc":"2.0","method":"vm.info","params":[],"id":1})"), 0);
  // The id of what could be read.
  EXPECT_EQ(client.Ask(R"({"jsonrpc":"2.0","method":1,"id":"x"})")["id"], "x");
  EXPECT_EQ(client.Ask("{")["id"], nullptr);
}

TEST_F(ServerTest, WrongParametersAreNamed) {
  RawClient client(path_);
  for (const auto& [params, name] :
       {std::pair("{}", "engine"), std::pair(R"({"engine":"tcg"})", "engine"),
        std::pair(R"({"engine":"auto"})", "engine"), std::pair(R"({"engine":1})", "engine"),
        std::pair(R"({"engine":"jit","speed":1})", "speed")}) {
    const Json error =
        client.Ask(fmt::format(R"({{"jsonrpc":"2.0","method":"engine.switch","params":{},"id":1}})", params))["error"];
    EXPECT_EQ(error["code"], kParams) << params;
    EXPECT_EQ(error["data"]["parameter"], name);
    EXPECT_NE(error["message"].get<std::string>().find(name), std::string::npos);
  }
  EXPECT_EQ(client.CodeOf(R"({"jsonrpc":"2.0","method":"vm.stop","params":{"now":true},"id":1})"), kParams);
  EXPECT_EQ(vm_.stops(), 0);
}

TEST_F(ServerTest, TheScreenAndTheKeyboard) {
  RawClient client(path_);
  const auto ask = [&](std::string_view method, std::string_view params) {
    return client.Ask(fmt::format(R"({{"jsonrpc":"2.0","method":"{}","params":{},"id":1}})", method, params));
  };
  EXPECT_EQ(ask("display.screenshot", R"({"path":"/a b.png"})")["result"], (Json{{"width", 640}, {"height", 480}}));
  EXPECT_EQ(vm_.screenshot(), "/a b.png");
  EXPECT_EQ(ask("vm.snapshot", R"({"path":"/s"})")["result"],
            (Json{{"pause_us", 2500}, {"total_us", 80000}, {"memory_bytes", 4096}, {"parent", "s"}}));
  EXPECT_EQ(ask("vm.fork", R"({"path":"/s"})")["result"]["parent"], "s+");
  EXPECT_EQ(ask("keyboard.type", R"({"text":"a\n"})")["result"], Json::object());
  EXPECT_EQ(vm_.strokes(), *display::TypeText("a\n"));
  EXPECT_EQ(ask("keyboard.press", R"({"keys":"esc ctrl-alt-del"})")["result"], Json::object());
  EXPECT_EQ(vm_.strokes(), *display::PressKeys("esc ctrl-alt-del"));
  EXPECT_EQ(ask("keyboard.type", fmt::format(R"({{"text":"{}"}})", std::string(kMaxTypedBytes, 'x')))["result"],
            Json::object());
  for (const auto& [method, params, name] :
       {std::tuple("display.screenshot", std::string("{}"), "path"),
        std::tuple("display.screenshot", std::string(R"({"path":1})"), "path"),
        std::tuple("keyboard.type", std::string(R"({"text":"\u00e4"})"), "text"),
        std::tuple("keyboard.type", std::string(R"({"text":"\u0000"})"), "text"),
        std::tuple("keyboard.type", fmt::format(R"({{"text":"{}"}})", std::string(kMaxTypedBytes + 1, 'x')), "text"),
        std::tuple("keyboard.press", std::string(R"({"keys":"any"})"), "keys")}) {
    const Json answer = ask(method, params);
    EXPECT_EQ(answer["error"]["code"], kParams) << method << params;
    EXPECT_EQ(answer["error"]["data"]["parameter"], name);
  }
  vm_.ended = true;
  EXPECT_EQ(ask("display.screenshot", R"({"path":"/a"})")["error"]["code"], kHasEnded);
  EXPECT_EQ(ask("keyboard.type", R"({"text":"a"})")["error"]["code"], kHasEnded);
}

TEST_F(ServerTest, ARefusedEngineSaysWhy) {
  RawClient client(path_);
  const Json error =
      client.Ask(R"({"jsonrpc":"2.0","method":"engine.switch","params":{"engine":"kvm"},"id":1})")["error"];
  EXPECT_EQ(error["code"], kRefused);
  EXPECT_EQ(error["message"], "no KVM here");
  vm_.ended = true;
  EXPECT_EQ(client.Call("engine.info")["error"]["code"], kHasEnded);
}

TEST_F(ServerTest, DeepNestingIsRefused) {
  RawClient client(path_);
  const std::string deep(60000, '[');
  EXPECT_EQ(client.CodeOf(deep), kInvalid);
  EXPECT_EQ(client.CodeOf(deep.substr(0, 17) + std::string(17, ']')), kInvalid);
  std::string objects;
  for (int i = 0; i < 10000; ++i) objects += "{\"a\":";
  EXPECT_EQ(client.CodeOf(objects), kInvalid);
  // Brackets in strings are text.
  const Json answer =
      client.Ask(fmt::format(R"({{"jsonrpc":"2.0","method":"vm.info","id":"\"{}\\"}})", std::string(1000, '[')));
  EXPECT_EQ(answer["result"]["name"], "fake");
}

TEST_F(ServerTest, TheLongestRequestAndOneByteMore) {
  RawClient client(path_);
  const std::string request(kInfo);
  EXPECT_TRUE(client.Ask(request + std::string(Server::kMaxRequestBytes - request.size(), ' ')).contains("result"));
  RawClient other(path_);
  other.Send(std::string(Server::kMaxRequestBytes + 1, ' '));
  EXPECT_EQ(other.Answer()["error"]["code"], kInvalid);
  EXPECT_EQ(other.Line(), "");
  RawClient endless(path_);
  const std::string much(1 << 20, 'x');
  while (endless.Send(much)) {
  }
  EXPECT_TRUE(client.Ask(kInfo).contains("result"));
}

TEST_F(ServerTest, LinesInPiecesAndTogether) {
  RawClient client(path_);
  for (const char c : kInfo) client.Send({&c, 1});
  EXPECT_EQ(client.Ask("")["id"], 1);
  std::string many;
  for (int i = 0; i < 50; ++i) many += fmt::format("{{\"jsonrpc\":\"2.0\",\"method\":\"vm.info\",\"id\":{}}}\r\n", i);
  client.Send(many);
  for (int i = 0; i < 50; ++i) EXPECT_EQ(client.Answer()["id"], i);
  // The last one without its end.
  client.Send(kInfo);
  client.EndInput();
  EXPECT_EQ(client.Answer()["id"], 1);
  EXPECT_EQ(client.Line(), "");
}

TEST_F(ServerTest, Batches) {
  RawClient client(path_);
  const std::string info(kInfo), notification = R"({"jsonrpc":"2.0","method":"vm.power"})";
  const Json answers = client.Ask("[" + info + ",1," + notification + "," + info + "]");
  ASSERT_EQ(answers.size(), 3u);
  EXPECT_TRUE(answers[0].contains("result"));
  EXPECT_EQ(answers[1]["error"]["code"], kInvalid);
  EXPECT_TRUE(answers[2].contains("result"));
  EXPECT_EQ(vm_.power(), 1);
  client.Send("[" + notification + "]\n");
  std::string many = "[" + info;
  for (size_t i = 0; i < Server::kMaxBatch; ++i) many += "," + info;
  EXPECT_EQ(client.CodeOf(many + "]"), kInvalid);
  EXPECT_EQ(vm_.power(), 2);
}

TEST_F(ServerTest, TooManyClientsAreToldSo) {
  std::vector<std::unique_ptr<RawClient>> clients;
  for (size_t i = 0; i < Server::kMaxClients; ++i) {
    clients.push_back(std::make_unique<RawClient>(path_));
    EXPECT_TRUE(clients.back()->Ask(kInfo).contains("result"));
  }
  {
    RawClient more(path_);
    EXPECT_EQ(more.Answer()["error"]["message"], "too many clients");
    EXPECT_EQ(more.Line(), "");
  }
  clients[3].reset();
  for (;;) {
    RawClient again(path_);
    again.Send(std::string(kInfo) + "\n");
    if (again.Answer().contains("result")) break;
  }
  EXPECT_TRUE(clients[0]->Ask(kInfo).contains("result"));
}

// A client that reads nothing gets no more than it was sent; others are served.
TEST_F(ServerTest, AClientThatDoesNotReadIsNotReadFrom) {
  vm_.statistics_sections = 1000;
  RawClient slow(path_);
  std::string requests;
  for (int i = 0; i < 50000; ++i) requests += "{\"jsonrpc\":\"2.0\",\"method\":\"engine.info\",\"id\":1}\n";
  size_t sent = 0, last = 1;
  for (int quiet = 0; quiet < 5; quiet = sent == last ? quiet + 1 : 0) {
    last = sent;
    sent += slow.SendWhatFits(std::string_view(requests).substr(sent));
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  EXPECT_LT(sent, requests.size());
  RawClient other(path_);
  EXPECT_TRUE(other.Ask(kInfo).contains("result"));
  // Once it reads, it is served on.
  for (int i = 0; i < 20; ++i) EXPECT_TRUE(slow.Answer().contains("result"));
}

TEST_F(ServerTest, AnswersBeyondTheBoundEndTheClient) {
  vm_.statistics_sections = 5000;
  RawClient client(path_);
  std::string batch;
  for (size_t i = 0; i < Server::kMaxBatch; ++i)
    batch += std::string(i ? "," : "[") + R"({"jsonrpc":"2.0","method":"engine.info","id":1})";
  client.Send(batch + "]\n");
  EXPECT_EQ(client.Line(), "");
  RawClient other(path_);
  EXPECT_TRUE(other.Ask(kInfo).contains("result"));
}

constexpr std::string_view kToInterp =
    R"({"jsonrpc":"2.0","method":"engine.switch","params":{"engine":"interp"},"id":1})"
    "\n";

TEST_F(ServerTest, OthersAreServedWhileACommandTakesTime) {
  vm_.holds = true;
  RawClient waits(path_), other(path_);
  waits.Send(std::string(kToInterp) + std::string(kInfo) + "\n");
  EXPECT_TRUE(other.Ask(kInfo).contains("result"));
  EXPECT_EQ(waits.Line(50, false), "");
  ReleaseOne();
  EXPECT_EQ(waits.Answer()["result"]["engine"], "interp");  // in the order of the requests
  EXPECT_EQ(waits.Answer()["result"]["name"], "fake");
}

TEST_F(ServerTest, AClientMayLeaveAtAnyMoment) {
  vm_.holds = true;
  {
    RawClient in_the_middle(path_);
    in_the_middle.Send("{\"jsonrpc\":\"2.0\",\"met");
    RawClient while_it_waits(path_);
    while_it_waits.Send(kToInterp);
    ReleaseOne();
    RawClient before_the_answer(path_);
    before_the_answer.Send(kToInterp);
    RawClient says_and_goes(path_);
    says_and_goes.Send("{\"jsonrpc\":\"2.0\",\"method\":\"vm.power\"}\n");
  }
  ReleaseOne();
  RawClient other(path_);
  while (vm_.power() == 0) std::this_thread::yield();
  EXPECT_TRUE(other.Ask(kInfo).contains("result"));
}

TEST_F(ServerTest, RepliesMayOutliveTheServer) {
  vm_.holds = true;
  RawClient client(path_);
  client.Send(kToInterp);
  client.Send(kInfo);
  RawClient other(path_);
  EXPECT_TRUE(other.Ask(kInfo).contains("result"));
  server_.reset();
  vm_.Release();
  EXPECT_EQ(client.Line(), "");
  EXPECT_FALSE(std::filesystem::exists(path_));
}

TEST_F(ServerTest, OtherUsersAreRefused) {
  if (geteuid() != 0) GTEST_SKIP() << "only root can become another user";
  ASSERT_EQ(chmod(folder_.path().c_str(), 0755), 0);
  ASSERT_EQ(chmod(path_.c_str(), 0666), 0);
  const pid_t child = fork();
  if (child == 0) {
    if (setuid(65534) != 0) _exit(2);
    const auto fd = ConnectSocket(path_);
    char byte = 0;
    _exit(fd && recv(fd->get(), &byte, 1, 0) == 0 ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  RawClient self(path_);
  EXPECT_TRUE(self.Ask(kInfo).contains("result"));
}

TEST_F(ServerTest, TheClientOfTheCommandLine) {
  using std::chrono::milliseconds;
  auto client = Client::Connect(path_);
  ASSERT_TRUE(client) << client.error().message;
  EXPECT_EQ((*client->Call("vm.info", Json::object(), milliseconds(20000)))["name"], "fake");
  EXPECT_EQ(client->Call("engine.switch", {{"engine", "kvm"}}, milliseconds(20000)).error().message, "no KVM here");
  vm_.holds = true;
  EXPECT_NE(client->Call("engine.switch", {{"engine", "jit"}}, milliseconds(20)).error().message.find("in time"),
            std::string::npos);
  server_.reset();
  EXPECT_NE(Client::Connect(path_).error().message.find("no control socket"), std::string::npos);
}

// Switches from many clients at once on a machine: every one is carried out, each from the engine that the one before
// it led to.
TEST(ServerOfAMachine, ConcurrentSwitches) {
  const ScratchFolder folder;
  {
    std::ofstream kernel(folder / "kernel", std::ios::binary);
    constexpr uint32_t kBase = 0x100000, kFlags = 1 << 16, kMagic = 0x1badb002;
    const uint32_t header[] = {kMagic, kFlags, 0u - kMagic - kFlags, kBase, kBase, 0, 0, kBase + 0x20, 0xfeeb};
    kernel.write(reinterpret_cast<const char*>(header), sizeof(header));
  }
  machine::MachineConfig config;
  config.kernel = folder / "kernel";
  config.memory_bytes = 16 * kMiB;
  config.engine = machine::EngineKind::kJit;
  config.serial.kind = machine::SerialKind::kNone;
  config.timeout_ms = 120000;
  const auto machine = machine::Machine::Create(config);
  ASSERT_TRUE(machine) << machine.error().message;
  MachineVm vm(**machine, "spin", "1");
  const std::string path = folder / "s";
  auto server = Server::Create(path, vm);
  ASSERT_TRUE(server);
  constexpr int kClients = 4, kTimes = 8;
  std::atomic<int> from_jit = 0, from_interp = 0, to_jit = 0, to_interp = 0;
  std::vector<std::thread> clients;
  for (int i = 0; i < kClients; ++i) {
    clients.emplace_back([&, i] {
      RawClient client(path);
      for (int n = 0; n < kTimes; ++n) {
        const char* const engine = (i + n) % 3 ? "jit" : "interp";
        const Json answer = client.Ask(
            fmt::format(R"({{"jsonrpc":"2.0","method":"engine.switch","params":{{"engine":"{}"}},"id":1}})", engine));
        ASSERT_TRUE(answer.contains("result")) << JsonText(answer);
        EXPECT_EQ(answer["result"]["engine"], engine);
        ++(answer["result"]["from"] == "jit" ? from_jit : from_interp);
        ++(answer["result"]["engine"] == "jit" ? to_jit : to_interp);
        if (n == 3) {
          EXPECT_EQ(client.Call("vm.pause")["result"]["state"], "paused");
        }
        if (n == 5) {
          EXPECT_EQ(client.Call("vm.resume")["result"]["state"], "running");
        }
        if (n == 6) {
          EXPECT_TRUE(client.Call("engine.info").contains("result"));
        }
      }
    });
  }
  std::thread end([&] {
    for (std::thread& client : clients) client.join();
    RawClient client(path);
    const Json info = client.Call("vm.info")["result"];
    // As many ways lead from an engine as to it, but for the first engine and the last.
    EXPECT_EQ(from_jit + from_interp, kClients * kTimes);
    EXPECT_EQ(to_jit - from_jit, info["engine"] == "jit" ? 0 : -1);
    EXPECT_EQ(info["memory_bytes"], 16 * kMiB);
    EXPECT_EQ(info["cpus"], 1);
    EXPECT_EQ(client.Call("vm.stop")["result"], Json::object());
  });
  EXPECT_EQ((*machine)->Run().reason, machine::EndReason::kLeft);
  end.join();
}

// The document names each method with its parameters and results, and none that is not there.
TEST(ControlCommands, TheDocumentIsTrue) {
  std::ifstream file("docs/control.md");
  ASSERT_TRUE(file);
  std::vector<std::string> rows, wanted;
  for (std::string line; std::getline(file, line);)
    if (line.starts_with("| `") && line.find('.') < line.find("` | "))
      rows.push_back(line.substr(0, line.rfind(" | ")));
  for (const Command& command : Commands()) {
    std::string parameters;
    for (const auto& [name, choices, example, kind, optional] : command.parameters) {
      constexpr std::array<std::string_view, 4> kKinds{"a text", "a number", "texts", "an object"};
      if (!parameters.empty()) parameters += ", ";
      parameters += fmt::format("`{}`{}:", name, optional ? " (may be missing)" : "");
      if (choices.empty()) parameters += fmt::format(" {}", kKinds[static_cast<size_t>(kind)]);
      for (const std::string_view choice : choices) parameters += fmt::format(" `{}`", choice);
    }
    wanted.push_back(fmt::format("| `{}` | {} | {}", command.name, parameters.empty() ? "none" : parameters,
                                 command.result.empty() ? "nothing" : command.result));
  }
  EXPECT_EQ(rows, wanted);
}

}  // namespace
}  // namespace nacre::control
