#include "control/agent_commands.h"

#include <set>

#include "agent/fake_guest_testing.h"
#include "base/base64.h"
#include "control/control_testing.h"
#include "control/server.h"

namespace nacre::control {
namespace {

class AgentCommandsTest : public testing::Test {
 protected:
  AgentCommandsTest() {
    guest_.answer = [this](const std::string& line) {
      const Json request = Json::parse(line.front() == '\xff' ? line.substr(1) : line);
      if (request["execute"] == "guest-sync-delimited")
        guest_.Say("\xff{\"return\": " + request["arguments"]["id"].dump() + "}\n");
      else
        guest_.Say(answer_ + "\n");
      asked_ = request;
    };
    guest_.Open();
    vm_.agent.emplace(Vm::Agent{agent_, jobs_});
    server_ = std::move(*Server::Create(path_, vm_));
  }
  Json Ask(std::string_view method, std::string_view params) {
    return client().Ask(fmt::format(R"({{"jsonrpc":"2.0","method":"{}","params":{},"id":1}})", method, params));
  }
  RawClient& client() {
    if (!client_) client_ = std::make_unique<RawClient>(path_);
    return *client_;
  }

  agent::FakeGuest guest_;
  agent::GuestAgent agent_{guest_.port};
  agent::ExecJobs jobs_{agent_};
  std::string answer_;
  Json asked_;
  const ScratchFolder folder_;
  const std::string path_ = folder_ / "s";
  FakeVm vm_;
  std::unique_ptr<Server> server_;
  std::unique_ptr<RawClient> client_;
};

TEST_F(AgentCommandsTest, Info) {
  answer_ = R"({"return":{"version":"7.2","supported_commands":[{"enabled":true,"name":"guest-ping"},)"
            R"({"enabled":false,"name":"guest-exec"},1,{"name":2}]}})";
  EXPECT_EQ(Ask("agent.info", "{}")["result"], (Json{{"version", "7.2"}, {"commands", {"guest-ping"}}}));
  for (const char* answer : {R"({"return":1})", R"({"return":{"version":1,"supported_commands":1}})"}) {
    answer_ = answer;
    EXPECT_EQ(Ask("agent.info", "{}")["result"], (Json{{"version", "?"}, {"commands", Json::array()}}));
  }
}

TEST_F(AgentCommandsTest, Call) {
  answer_ = R"({"return":[1,{"a":null}]})";
  const Json called = Ask("agent.call", R"({"command":"guest-x","arguments":{"n":"\n"},"patience_ms":60000})");
  EXPECT_EQ(called["result"], Json::parse(R"({"value":[1,{"a":null}]})"));
  EXPECT_EQ(asked_, Json::parse(R"({"execute":"guest-x","arguments":{"n":"\n"}})"));
  answer_ = R"({"error":{"desc":"no"}})";
  EXPECT_EQ(Ask("agent.call", R"({"command":"guest-x"})")["error"]["message"], "guest-x: no");
  for (const char* params : {"{}", R"({"command":"a","arguments":"b"})", R"({"command":"a","patience_ms":-1})",
                             R"({"command":"a","patience_ms":1.5})", R"({"command":"a","patience_ms":1e30})"})
    EXPECT_EQ(Ask("agent.call", params)["error"]["code"], -32602) << params;
}

TEST_F(AgentCommandsTest, Exec) {
  answer_ = R"({"return":{"pid":12}})";
  EXPECT_EQ(Ask("agent.exec", R"({"words":["ls","-l"],"input":"eA=="})")["result"]["pid"], 12);
  EXPECT_EQ(asked_["arguments"]["input-data"], "eA==");
  for (const char* params : {R"({"words":[]})", R"({"words":[""]})", R"({"words":["a",1]})", R"({"words":"ls"})",
                             R"({"words":["a"],"input":"?"})", R"({"words":["a"],"environment":{}})"})
    EXPECT_EQ(Ask("agent.exec", params)["error"]["code"], -32602) << params;
  answer_ = R"({"return":{"exited":false}})";
  EXPECT_EQ(Ask("agent.exec_status", R"({"pid":12})")["result"]["exited"], false);
  EXPECT_EQ(Ask("agent.exec_output", R"({"pid":12,"stream":"out","offset":0})")["error"]["code"], -32001);
  answer_ = R"({"return":{"exited":true,"signal":9,"out-data":")" + Base64Encode(std::string(300'000, 'o')) + "\"}}";
  EXPECT_EQ(Ask("agent.exec_status", R"({"pid":12})")["result"],
            Json::parse(R"({"exited":true,"exit_code":null,"signal":9,"out_bytes":300000,"err_bytes":0,)"
                        R"("truncated":false})"));
  EXPECT_EQ(Ask("agent.exec_output", R"({"pid":12,"stream":"out","offset":299998})")["result"]["data"], "b28=");
  const std::string piece = Ask("agent.exec_output", R"({"pid":12,"stream":"out","offset":0})")["result"]["data"];
  EXPECT_EQ(Base64Decode(piece)->size(), kMaxOutputBytes);
}

TEST_F(AgentCommandsTest, NoPortAndNoAgent) {
  guest_.Open(false);
  EXPECT_NE(Ask("agent.info", "{}")["error"]["message"].get<std::string>().find("qemu-guest-agent"), std::string::npos);
  vm_.agent.reset();
  std::set<std::string_view> refused;
  for (const Command& command : AgentCommands()) {
    Execute(vm_,
            {.method = std::string(command.name),
             .params = Json::parse(command.name == "agent.call"          ? R"({"command":"a"})"
                                   : command.name == "agent.exec"        ? R"({"words":["a"]})"
                                   : command.name == "agent.exec_status" ? R"({"pid":1})"
                                   : command.name == "agent.exec_output" ? R"({"pid":1,"stream":"out","offset":0})"
                                                                         : "{}"),
             .id = 1},
            [&](const RpcResult<Json>& result) {
              if (!result && result.error().code == RpcCode::kFailed) refused.insert(command.name);
            });
  }
  EXPECT_EQ(refused.size(), AgentCommands().size());
}

}  // namespace
}  // namespace nacre::control
