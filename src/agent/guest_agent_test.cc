#include "agent/guest_agent.h"

#include <future>
#include <random>

#include "agent/exec_jobs.h"
#include "agent/fake_guest_testing.h"
#include "agent/json_text.h"
#include "base/base64.h"
#include "base/fuzz_testing.h"

namespace nacre::agent {
namespace {

using std::chrono::milliseconds;

/// A guest with an agent that knows some commands.
class GuestAgentTest : public testing::Test {
 protected:
  GuestAgentTest() {
    guest.answer = [this](const std::string& line) { Answer(line); };
  }
  void Answer(const std::string& line) {
    const bool marked = !line.empty() && line.front() == '\xff';
    const Json request = Json::parse(marked ? line.substr(1) : line);
    const std::string command = request["execute"];
    if (command == "guest-sync-delimited") {
      guest.Say(before_sync);
      guest.Say("\xff{\"return\": " + request["arguments"]["id"].dump() + "}\n");
    } else if (const auto found = answers.find(command); found != answers.end()) {
      guest.Say(found->second);
    }
  }
  Result<std::string> Call(GuestAgent::Request request) {
    std::promise<Result<std::string>> promise;
    agent.Call(std::move(request), [&](Result<std::string> result) { promise.set_value(std::move(result)); });
    return promise.get_future().get();
  }
  static int CodeOf(const Result<std::string>& result) { return result ? 0 : result.error().code; }

  std::map<std::string, std::string> answers{{"guest-ping", "{\"return\": {}}\n"}};
  std::string before_sync;
  FakeGuest guest;
  GuestAgent agent{guest.port};
};

TEST_F(GuestAgentTest, AsksOneAfterAnother) {
  guest.Open();
  answers["guest-get-host-name"] = "{\"return\": {\"host-name\": \"debian\"}}\n";
  EXPECT_EQ(*Call({.command = "guest-ping"}), "{}");
  EXPECT_EQ(*Call({.command = "guest-get-host-name", .arguments = R"({"a":1})"}), R"({"host-name":"debian"})");
  EXPECT_EQ(guest.heard(),
            (std::vector<std::string>{"\xff{\"execute\":\"guest-sync-delimited\",\"arguments\":{\"id\":1}}",
                                      R"({"execute":"guest-ping"})",
                                      R"({"execute":"guest-get-host-name","arguments":{"a":1}})"}));
}

TEST_F(GuestAgentTest, NobodyThere) {
  EXPECT_EQ(CodeOf(Call({.command = "guest-ping"})), ENOTCONN);
  guest.Open();
  EXPECT_EQ(CodeOf(Call({.command = "guest-ping"})), 0);
  guest.Open(false);
  EXPECT_EQ(CodeOf(Call({.command = "guest-ping"})), ENOTCONN);
}

TEST_F(GuestAgentTest, NamesAreChecked) {
  guest.Open();
  for (const char* name : {"", "guest\"-ping", "guest ping", "guest-ping\n", "\xff"})
    EXPECT_EQ(CodeOf(Call({.command = name})), EINVAL) << name;
  EXPECT_TRUE(guest.heard().empty());
}

TEST_F(GuestAgentTest, ItsErrorsAreShownWithoutControlCharacters) {
  guest.Open();
  answers["guest-exec"] = R"({"error": {"class": "GenericError", "desc": "no \u001b[31m such"}})"
                          "\n";
  const auto result = Call({.command = "guest-exec"});
  EXPECT_EQ(CodeOf(result), EREMOTEIO);
  EXPECT_EQ(result.error().message, "guest-exec: no ?[31m such");
  EXPECT_EQ(*Call({.command = "guest-ping"}), "{}");
  EXPECT_EQ(guest.heard().size(), 3u) << "an error is an answer: no new synchronization";
}

TEST_F(GuestAgentTest, AnAnswerThatComesTooLateIsNotTheNextOnes) {
  guest.Open();
  EXPECT_EQ(CodeOf(Call({.command = "guest-slow", .patience = milliseconds(20)})), ETIMEDOUT);
  before_sync = "{\"return\": \"late\"}\n" + std::string(100'000, 'x');
  EXPECT_EQ(*Call({.command = "guest-ping"}), "{}");
}

TEST_F(GuestAgentTest, NonsenseBeforeTheSynchronization) {
  guest.Open();
  before_sync =
      "\xff\xff\n\xff{}\n\xff[[[[\n\xff{\"return\": 77}\n{\"return\": 1}\n\xff" + std::string(1000, 'y') + "\n";
  EXPECT_EQ(*Call({.command = "guest-ping"}), "{}");
}

TEST_F(GuestAgentTest, LongAndBrokenAnswersAreRefused) {
  guest.Open();
  answers["guest-long"] = "{\"return\": \"" + std::string(5000, 'x') + "\"}\n";
  EXPECT_EQ(CodeOf(Call({.command = "guest-long", .max_answer_bytes = 1000})), EMSGSIZE);
  EXPECT_EQ(Call({.command = "guest-long", .max_answer_bytes = 6000})->size(), 5002u);
  answers["guest-endless"] = std::string(5000, '[');
  EXPECT_EQ(CodeOf(Call({.command = "guest-endless", .max_answer_bytes = 1000})), EMSGSIZE);
  for (const char* text : {"", "1", "[]", "{}", "{\"return\"", "nonsense", "{\"return\": \"\xff\"}"}) {
    answers["guest-broken"] = std::string(text) + "\n";
    EXPECT_EQ(CodeOf(Call({.command = "guest-broken"})), EPROTO) << text;
  }
  answers["guest-deep"] = "{\"return\": " + std::string(100, '[') + std::string(100, ']') + "}\n";
  EXPECT_EQ(CodeOf(Call({.command = "guest-deep"})), EPROTO);
  EXPECT_EQ(*Call({.command = "guest-ping"}), "{}");
}

TEST_F(GuestAgentTest, ThePortIsClosedMeanwhile) {
  guest.Open();
  EXPECT_EQ(*Call({.command = "guest-ping"}), "{}");
  guest.answer = [&](const std::string&) { guest.port.SetOpen(false); };
  EXPECT_EQ(CodeOf(Call({.command = "guest-ping", .patience = milliseconds(300'000)})), ENOTCONN);
}

TEST_F(GuestAgentTest, SilenceIsTheAnswerToAShutdown) {
  guest.Open();
  EXPECT_EQ(*Call({.command = "guest-ping"}), "{}");
  EXPECT_EQ(*Call({.command = "guest-shutdown", .patience = milliseconds(20)}), "{}");
}

TEST_F(GuestAgentTest, TheEndAnswersWhatWaits) {
  guest.Open();
  std::vector<std::promise<Result<std::string>>> promises(GuestAgent::kMaxQueue + 8);
  for (auto& promise : promises)
    agent.Call({.command = "guest-slow", .patience = milliseconds(600'000)},
               [&](Result<std::string> result) { promise.set_value(std::move(result)); });
  agent.Cancel();
  size_t refused = 0;
  for (auto& promise : promises) {
    const int code = CodeOf(promise.get_future().get());
    EXPECT_TRUE(code == ECANCELED || code == EBUSY) << code;
    refused += code == EBUSY;
  }
  EXPECT_GE(refused, 7u);
  EXPECT_EQ(CodeOf(Call({.command = "guest-ping"})), ECANCELED);
}

TEST_F(GuestAgentTest, AFloodCostsNothing) {
  guest.Open();
  EXPECT_EQ(*Call({.command = "guest-ping"}), "{}");
  guest.Locked([&] {
    for (int i = 0; i < 1000; ++i) guest.Say(std::string(100'000, i % 3 ? 'x' : '\xff'));
  });
  EXPECT_EQ(*Call({.command = "guest-ping"}), "{}");
}

TEST_F(GuestAgentTest, Programs) {
  guest.Open();
  ExecJobs jobs(agent);
  const auto start = [&](const ExecJobs::Program& program) {
    std::promise<Result<int64_t>> promise;
    jobs.Start(program, [&](Result<int64_t> pid) { promise.set_value(std::move(pid)); });
    return promise.get_future().get();
  };
  const auto poll = [&](int64_t pid) {
    std::promise<Result<ExecJobs::Status>> promise;
    jobs.Poll(pid, [&](Result<ExecJobs::Status> status) { promise.set_value(std::move(status)); });
    return promise.get_future().get();
  };
  answers["guest-exec"] = "{\"return\": {\"pid\": 7}}\n";
  EXPECT_EQ(*start({.words = {"cat", "-n"}, .environment = {"A=b"}, .input = "x\n", .has_input = true}), 7);
  EXPECT_EQ(guest.heard().back(), R"({"execute":"guest-exec","arguments":{"path":"cat","capture-output":true,)"
                                  R"("arg":["-n"],"env":["A=b"],"input-data":"eAo="}})");
  answers["guest-exec-status"] = "{\"return\": {\"exited\": false}}\n";
  EXPECT_FALSE(poll(7)->exited);
  EXPECT_FALSE(jobs.Output(7, ExecJobs::Stream::kOut, 0, 10));
  answers["guest-exec-status"] = "{\"return\": {\"exited\": true, \"exitcode\": 3, \"out-data\": \"" +
                                 Base64Encode("hello\n") + "\", \"err-truncated\": true}}\n";
  const auto status = poll(7);
  ASSERT_TRUE(status) << status.error().message;
  EXPECT_TRUE(status->exited && status->exit_code == 3 && !status->signal);
  EXPECT_EQ(status->out_bytes, 6u);
  EXPECT_TRUE(status->err_truncated);
  answers.erase("guest-exec-status");  // it tells once
  EXPECT_EQ(poll(7)->out_bytes, 6u);
  EXPECT_EQ(*jobs.Output(7, ExecJobs::Stream::kOut, 1, 3), "ell");
  EXPECT_EQ(*jobs.Output(7, ExecJobs::Stream::kOut, 6, 3), "");
  EXPECT_EQ(*jobs.Output(7, ExecJobs::Stream::kOut, ~size_t{0}, 3), "");
  EXPECT_EQ(*jobs.Output(7, ExecJobs::Stream::kErr, 0, 3), "");

  for (const char* text : {"{}", "[]", "{\"pid\": \"7\"}", "{\"pid\": 1.5}"}) {
    answers["guest-exec"] = fmt::format("{{\"return\": {}}}\n", text);
    EXPECT_FALSE(start({.words = {"x"}})) << text;
  }
  for (const char* text :
       {"[]", "{\"exited\": true}", R"({"exited": true, "exitcode": 1e99})",
        R"({"exited": true, "exitcode": 0, "out-data": "?"})", R"({"exited": true, "exitcode": 0, "out-data": 1})"}) {
    answers["guest-exec-status"] = fmt::format("{{\"return\": {}}}\n", text);
    EXPECT_FALSE(poll(9)) << text;
  }
}

TEST_F(GuestAgentTest, WhatIsKeptOfProgramsIsBounded) {
  guest.Open();
  ExecJobs jobs(agent);
  answers["guest-exec-status"] = "{\"return\": {\"exited\": true, \"exitcode\": 0, \"out-data\": \"" +
                                 Base64Encode(std::string(12 * 1024 * 1024, 'x')) + "\"}}\n";
  for (int64_t pid = 1; pid <= 8; ++pid) {
    std::promise<bool> promise;
    jobs.Poll(pid, [&](Result<ExecJobs::Status> status) { promise.set_value(status.has_value()); });
    EXPECT_TRUE(promise.get_future().get());
  }
  EXPECT_FALSE(jobs.Output(3, ExecJobs::Stream::kOut, 0, 1));
  EXPECT_TRUE(jobs.Output(4, ExecJobs::Stream::kOut, 0, 1));
  EXPECT_TRUE(jobs.Output(8, ExecJobs::Stream::kOut, 0, 1));
}

// A guest that says anything, with a seed; longer runs: base/fuzz_testing.h. Asserted: no crash, and every call is
// answered.
TEST(GuestAgentFuzz, AnyAnswer) {
  std::mt19937_64 random(FuzzSeed(20261122));
  FakeGuest guest;
  const std::vector<std::string> pieces{"{\"return\":",
                                        "{",
                                        "}",
                                        "[",
                                        "]",
                                        "\xff",
                                        "\n",
                                        "\"",
                                        "\\",
                                        "1",
                                        "{}",
                                        "}\n",
                                        "\"out-data\":",
                                        "\"QUJD\"",
                                        "\"exited\":true,",
                                        "\"exitcode\":0",
                                        ",",
                                        "{\"error\":{\"desc\":\"x\"}}\n",
                                        std::string("\0", 1),
                                        std::string(300, 'a')};
  guest.answer = [&](const std::string& line) {
    guest.room = 1 + random() % 4096;
    if (line.find("sync") != std::string::npos && random() % 8 != 0) {
      const size_t at = line.find("\"id\":") + 5;
      guest.Say("\xff{\"return\":" + line.substr(at, line.find('}') - at) + "}\n");
      return;
    }
    std::string text;
    for (uint64_t i = random() % 12; i != 0; --i) text += pieces[random() % pieces.size()];
    guest.Say(text);
    if (random() % 2) guest.Say("\n");
    if (random() % 32 == 0) guest.port.SetOpen(false);
  };
  GuestAgent agent(guest.port);
  ExecJobs jobs(agent);
  for (FuzzRun run(300); run.Next();) {
    const uint64_t i = run.index();
    guest.Open();
    std::promise<void> promise;
    if (i % 2) {
      jobs.Poll(static_cast<int64_t>(i), [&](const auto&) { promise.set_value(); });
      guest.Open(false);  // it waits long for that
      guest.Open();
    } else {
      agent.Call({.command = "guest-ping", .patience = milliseconds(2), .max_answer_bytes = 1000},
                 [&](const auto&) { promise.set_value(); });
    }
    const auto answered = promise.get_future();
    while (answered.wait_for(milliseconds(20)) != std::future_status::ready) guest.Open(false);
  }
}

}  // namespace
}  // namespace nacre::agent
